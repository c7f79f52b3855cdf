"""Why an image failed, as a text that a person finds: files of microscopes stay where they are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from patchworks.fingerprint import digest
from patchworks.io.stage import write_whole

logger = logging.getLogger(__name__)

_LONGEST = 230
"""Bytes of an image's name that leave room for the endings of its text and of the text's draft."""

HOW_TO_GO_ON = """\
The file lies where it was, and nothing of it was changed. It is tried again when
  - this text is deleted,
  - a settings file that counts for it is changed,
  - or it is written anew.
What was done already is kept, and the next try goes on from there.
"""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A folder with a text for each image that failed.

    Parameters
    ----------
    root : Path
        The folder.
    """

    root: Path

    def text_of(self, path: str) -> Path:
        """Return where the reason for an image is, by its path below the inbox."""
        text = self.root / path
        name = text.name.encode()
        if len(name) > _LONGEST:
            begin = name[: _LONGEST - 9].decode(errors="ignore")
            text = text.with_name(f"{begin}-{digest('quarantine', path)[:8]}")
        return text.with_name(f"{text.name}.txt")

    def holds(self, path: str) -> bool:
        """Whether a text says that an image failed."""
        return self.text_of(path).exists()

    def put(self, path: str, where: str, reason: str) -> Path:
        """Write down why an image failed.

        Parameters
        ----------
        path : str
            The image, below the inbox.
        where : str
            Its absolute path or URL.
        reason : str
            Why.
        """
        text = self.text_of(path)
        text.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = f"{where}\nquarantined {now}\n\n{reason.strip()}\n\n{HOW_TO_GO_ON}"
        write_whole(text, content.encode())
        logger.warning("%s: quarantined: %s", path, reason)
        return text

    def release(self, path: str) -> None:
        """Remove the text of an image that is tried again, or is done."""
        self.text_of(path).unlink(missing_ok=True)
