"""Environment variables for as long as a block lasts; processes started in it inherit them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(updates: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process, and put back what was there before.

    Examples
    --------
    >>> with environment({"PATCHWORKS_EXAMPLE": "1"}):
    ...     os.environ["PATCHWORKS_EXAMPLE"]
    '1'
    >>> "PATCHWORKS_EXAMPLE" in os.environ
    False
    """
    before = {name: os.environ.get(name) for name in updates}
    os.environ.update(updates)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
