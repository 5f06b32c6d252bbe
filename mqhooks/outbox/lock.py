"""
The lock file beside an outbox: one process owns an outbox at a time.

- The file stays when no process holds the lock: it says that the file beside it is an outbox, whether the outbox was ever in
  use, and whether it was found damaged.
- After locking, the path must still name the locked file: a lock on a file that was removed keeps nobody out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress

from mqhooks.errors import OutboxError

USED = b"used"
"""The word for an outbox that was in use: if it is empty, it is damaged."""

DAMAGED = b"damaged"
"""The word for an outbox that was found damaged and is not yet set aside."""

SIZE = 64
"""Bytes read from the lock file."""

TRIES = 10
"""Attempts to take the lock when its file keeps being removed."""


class Lock:
    """
    Keeps other processes away from an outbox.

    :param path: the outbox.
    :ivar known: whether there was a lock file before.
    :ivar used: whether the outbox was in use before.
    :ivar damaged: whether the outbox was found damaged, and is not set aside yet.
    """

    def __init__(self, path: str) -> None:
        self.known = self.used = self.damaged = False
        self._outbox = path
        self._path = f"{path}.lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """
        Take the lock.

        :raises mqhooks.errors.OutboxError: when another process holds it, or the file cannot be used.
        """
        for _ in range(TRIES):
            self.known = os.path.lexists(self._path)
            descriptor = self._open()
            try:
                kept = self._locked(descriptor)
                words = os.pread(descriptor, SIZE, 0).split(b"\n")[1:]
            except BaseException as error:
                os.close(descriptor)
                if not isinstance(error, OSError):
                    raise
                remedy = "put outbox.path on a local disk that works, and whose file system has locks (flock)"
                raise OutboxError(f"{self._path}: cannot be locked: {error.strerror}; {remedy}") from None
            if kept:
                self._descriptor = descriptor
                self.used, self.damaged = USED in words, DAMAGED in words
                self._write()
                return
            os.close(descriptor)
        raise OutboxError(f"{self._path}: keeps being removed; something else uses this name")

    def _open(self) -> int:
        try:
            # A FIFO must not block, and a symbolic link may lead to anything.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            return os.open(self._path, flags, 0o640)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OutboxError(f"{self._path}: is a symbolic link; remove it, or give outbox.path another name") from None
            remedy = "its directory has to exist and be writable; outbox.path names it"
            raise OutboxError(f"{self._path}: cannot be written: {error.strerror}; {remedy}") from None

    def _locked(self, descriptor: int) -> bool:
        """
        Lock the file.

        :returns: whether the path still names it.
        """
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OutboxError(f"{self._path}: is not a regular file; remove it, or give outbox.path another name")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            owner = os.pread(descriptor, SIZE, 0).decode(errors="replace").partition("\n")[0]
            remedy = "stop that one or give outbox.path another name"
            raise OutboxError(f"{self._outbox}: is in use by process {owner or 'unknown'}; {remedy}") from None
        found = os.fstat(descriptor)
        if found.st_nlink > 1:
            raise OutboxError(f"{self._path}: has another name, a hard link; remove that, or give outbox.path another name")
        try:
            named = os.lstat(self._path)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)

    def note_use(self) -> None:
        """Note in the file that the outbox is in use, and not damaged."""
        self.used, self.damaged = True, False
        self._write()

    def note_damage(self) -> None:
        """Note in the file that the outbox is damaged, for its next owner."""
        self.damaged = True
        self._write()

    def _write(self) -> None:
        words = [b"%d" % os.getpid(), *[word for word, said in ((USED, self.used), (DAMAGED, self.damaged)) if said], b""]
        content = b"\n".join(words)
        if self._descriptor is not None:
            # On a full disk the note is lost: the damage will be found again.
            with suppress(OSError):
                os.pwrite(self._descriptor, content, 0)
                os.ftruncate(self._descriptor, len(content))

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def withdraw(self) -> None:
        """Release the lock, and remove its file if there was none before."""
        if not self.known and self._descriptor is not None:
            # While it is still locked: the next process to lock it sees that its name is gone.
            with suppress(OSError):
                os.unlink(self._path)
        self.release()
