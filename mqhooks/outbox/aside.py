"""
Set a damaged outbox aside, so that an empty one can take its place.

The database is renamed first, then the files that SQLite keeps beside it. If this is interrupted, the next start finishes it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from glob import escape, glob
from time import strftime

ASIDE = ".damaged-"
"""Separator between the outbox's name and the time in a damaged file's name."""

BESIDE = ("-wal", "-shm")
"""The suffixes of the files that SQLite keeps beside a database."""

SALVAGED = ".salvaged"
"""The suffix of a damaged file that was salvaged."""


def damaged_files(path: str) -> list[str]:
    """List the damaged files of an outbox that have not been salvaged yet, oldest first."""
    found = glob(f"{escape(path + ASIDE)}*")
    return sorted(name for name in found if not name.endswith((SALVAGED, *BESIDE)))


def set_aside(path: str) -> str:
    """
    Rename a damaged outbox.

    :returns: its new name.
    :raises OSError: when it cannot be renamed.
    """
    aside = _free_name(path)
    os.rename(path, aside)
    finish(path)
    return aside


def finish(path: str) -> None:
    """Finish setting an outbox aside: rename the files that SQLite left beside it."""
    if os.path.exists(path):
        return
    left = [suffix for suffix in BESIDE if os.path.exists(path + suffix)]
    if not left:
        return
    aside = next(reversed(damaged_files(path)), None)
    if aside is None or any(os.path.exists(aside + suffix) for suffix in left):
        # Someone else moved the file itself away.
        aside = _free_name(path)
    for suffix in left:
        os.rename(path + suffix, aside + suffix)
    sync_directory(path)


def note_salvaged(aside: str) -> str:
    """
    Mark a damaged file as salvaged, by renaming it.

    :returns: its new name.
    :raises OSError: when it cannot be renamed.
    """
    salvaged = aside + SALVAGED
    # The database first: its write-ahead log belongs to it.
    for suffix in ("", *BESIDE):
        if os.path.exists(aside + suffix):
            os.rename(aside + suffix, salvaged + suffix)
    sync_directory(aside)
    return salvaged


def sync_directory(path: str) -> None:
    """Sync the directory of a file, so that renames survive a power failure."""
    with suppress(OSError):
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _free_name(path: str) -> str:
    aside = f"{path}{ASIDE}{strftime('%Y%m%dT%H%M%S')}"
    while glob(f"{escape(aside)}*"):
        aside += "+"
    return aside
