"""
The file beside an outbox that says who uses it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from mqhooks.errors import OutboxError

DAMAGED = b"damaged\n"
"""What the lock file says, beside who has it, when the outbox was found damaged and is not repaired yet."""


SIZE = 64
"""How many bytes of it are read."""


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

        :returns: whether it was found damaged, and not repaired.
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
            owner = os.pread(descriptor, SIZE, 0).decode(errors="replace").partition("\n")[0]
            os.close(descriptor)
            raise OutboxError(
                f"{self._outbox}: is in use by process {owner or 'unknown'}; stop that one or give outbox.path another name"
            ) from None
        damaged = DAMAGED in os.pread(descriptor, SIZE, 0)
        self._descriptor = descriptor
        self._write(DAMAGED if damaged else b"")
        return damaged

    def note_damage(self) -> None:
        """Leave word for who takes it next."""
        self._write(DAMAGED)

    def note_repair(self) -> None:
        """Take that word back."""
        self._write(b"")

    def _write(self, word: bytes) -> None:
        content = b"%d\n%b" % (os.getpid(), word)
        if self._descriptor is not None:
            # On a disk without room the word is lost: what is damaged will be found again.
            with suppress(OSError):
                os.pwrite(self._descriptor, content, 0)
                os.ftruncate(self._descriptor, len(content))

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
