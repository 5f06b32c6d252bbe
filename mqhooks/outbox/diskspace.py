"""
Watch the disk's free space, and keep a reserve that lets a full disk drain.

Acknowledging a delivery takes disk space too, and so does moving SQLite's write-ahead log into the file. An outbox that had
filled its own disk could do neither, and would send everything again after each start.

- Nothing new is written when that would leave too little space to move the log.
- A file beside the outbox reserves some space, whatever else fills the disk. It is removed when a commit finds no space, and
  nothing new is written until it is back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

RESERVE = 4 << 20
"""Bytes to reserve, but at most a quarter of the free space: about the size at which the log is moved."""

ALLOWED = 8 << 20
"""Bytes written before the disk is checked again, but at most a quarter of the free space."""

LEAST = 64 << 10
"""A reserve of fewer bytes is not worth having."""


class DiskSpace:
    """
    The free space on an outbox's disk, and the reserve.

    :param path: the outbox.
    :ivar spent: whether the reserve was given up, or could not be made.
    """

    def __init__(self, path: str) -> None:
        self.spent = False
        self._allowed = 0
        self._directory = os.path.dirname(path) or "."
        self._log = f"{path}-wal"
        self._reserve = f"{path}.reserve"

    def enough(self, size: int, free_inside: Callable[[], int]) -> bool:
        """
        Return whether something new may be written.

        :param size: its size in bytes.
        :param free_inside: returns the number of free bytes inside the outbox's file.
        """
        if self.spent:
            return False
        if size <= self._allowed:
            self._allowed -= size
            return True
        # New data grows the log first, and then the file.
        needed, free = 2 * size + self._log_size(), self.free()
        self._allowed = min(max((free - needed) // 4, 0), ALLOWED)
        return free >= needed or (free >= size and free + free_inside() >= needed)

    def make(self) -> bool:
        """
        Reserve space, if there is any.

        :returns: whether there was.
        """
        size = min(RESERVE, self.free() // 4)
        while size >= LEAST:
            try:
                descriptor = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, size)
                finally:
                    os.close(descriptor)
            except OSError:
                self._remove()
                size //= 2
            else:
                self.spent = False
                return True
        self.spent = True
        return False

    def spend(self) -> bool:
        """
        Give up the reserve.

        :returns: whether there was one.
        """
        spent, self.spent, self._allowed = self.spent, True, 0
        self._remove()
        return not spent

    def renew(self, free_inside: int) -> None:
        """
        Reserve space again.

        :param free_inside: free bytes inside the outbox's own file: enough of them are as good as a reserve.
        """
        if not self.make() and free_inside >= RESERVE:
            self.spent = False

    def free(self) -> int:
        """Return the number of free bytes on the disk; 0 when it is unknown."""
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize

    def _log_size(self) -> int:
        try:
            return os.stat(self._log).st_size
        except OSError:
            return 0

    def _remove(self) -> None:
        # A reserve that cannot be removed frees nothing, which the next commit notices.
        with suppress(OSError):
            os.unlink(self._reserve)
