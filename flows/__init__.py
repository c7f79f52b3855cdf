"""Prefect flows over patchworks: every step a task, watched in the Prefect UI."""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect looks at it when it is imported

from flows.convert_image import convert_image
from flows.segment_image import segment_image

__all__ = ["convert_image", "segment_image"]
