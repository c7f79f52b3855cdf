"""Prefect flows over patchworks: every step a task, watched in the Prefect UI."""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect looks at it when it is imported

from flows.build_pyramid import build_pyramid
from flows.convert_image import convert_image
from flows.merge_labels import merge_labels
from flows.process_image import process_image
from flows.segment_image import segment_image

__all__ = ["build_pyramid", "convert_image", "merge_labels", "process_image", "segment_image"]
