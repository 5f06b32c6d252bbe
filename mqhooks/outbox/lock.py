"""
The file beside an outbox that says who uses it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from mqhooks.errors import OutboxError

DAMAGED = b"damaged"
"""What the lock file says when the file was found damaged while it was in use."""


class Lock:
    """
    Keeps other processes away from an outbox.

    Its file stays when nobody holds it: it says that the file beside it is an outbox.

    :param path: the outbox.
    :ivar known: whether the outbox was used before.
    """

    def __init__(self, path: str) -> None:
        self.known = False
        self._outbox = path
        self._path = f"{path}.lock"
        self._descriptor: int | None = None

    def take(self) -> bool:
        """
        Take it.

        :returns: whether the last one who had it found the outbox damaged.
        :raises mqhooks.errors.OutboxError: when another process has it, or the file cannot be written.
        """
        self.known = os.path.exists(self._path)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            remedy = "its directory has to exist and be writable; outbox.path names it"
            raise OutboxError(f"{self._path}: cannot be written: {error.strerror}; {remedy}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise OutboxError(
                f"{self._outbox}: is in use by process {owner or 'unknown'}; stop that one or give outbox.path another name"
            ) from None
        damaged = os.pread(descriptor, len(DAMAGED), 0) == DAMAGED
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return damaged

    def note_damage(self) -> None:
        """Leave word for who takes it next."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.pwrite(self._descriptor, DAMAGED + b"\n", 0)

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def withdraw(self) -> None:
        """Let others have it, and say nothing of an outbox that was none before."""
        self.release()
        if not self.known:
            os.unlink(self._path)
