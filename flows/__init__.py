"""Prefect flows over patchworks: every step a task, watched in the Prefect UI."""

from flows.segment_image import segment_image

__all__ = ["segment_image"]
