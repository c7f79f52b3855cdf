"""A fresh SQLite database for a Prefect server, without 5 s of migrations each time."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import prefect
from prefect.settings import get_current_settings


def empty_database_template() -> Path:
    """Where this version of Prefect keeps a migrated database that holds no runs."""
    return get_current_settings().home / f"patchworks-empty-{prefect.__version__}.db"


def start_from_template(database: Path) -> bool:
    """Copy the template to `database`; False where there is none yet, and Prefect migrates."""
    part = database.with_name(f"{database.name}.part")  # half a copy must not pass for a database
    try:
        shutil.copyfile(empty_database_template(), part)
        part.replace(database)
    except OSError:
        part.unlink(missing_ok=True)
        return False
    return True


def discard_template() -> None:
    """Forget the template: a server did not start, and a damaged one must not last."""
    with contextlib.suppress(OSError):
        empty_database_template().unlink(missing_ok=True)


def save_template(database: Path) -> None:
    """Keep a copy of a database that a server has just migrated, for the starts to come.

    Only a saving of time: where the home of Prefect cannot be written, nothing is kept.
    """
    template = empty_database_template()
    if template.exists():
        return
    with contextlib.suppress(OSError, sqlite3.Error):
        descriptor, name = tempfile.mkstemp(dir=template.parent, prefix=template.name)
        os.close(descriptor)
        try:
            # SQLite's own backup is consistent while the server has the file open.
            with (
                contextlib.closing(sqlite3.connect(database)) as migrated,
                contextlib.closing(sqlite3.connect(name)) as copy,
            ):
                migrated.backup(copy)
            Path(name).replace(template)
        finally:
            Path(name).unlink(missing_ok=True)
