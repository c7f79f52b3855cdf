"""A flow that takes what the inbox says of an image, and takes a second."""

import time
from pathlib import Path

from prefect import flow


@flow(name="quick")
def quick_flow(source: str, target: str) -> None:
    """Leave a mark where the image would go."""
    time.sleep(1)
    Path(target).mkdir(parents=True)
    (Path(target) / "made of").write_text(source)
