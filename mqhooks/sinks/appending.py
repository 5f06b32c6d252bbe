"""
Appending lines to a file that may be rotated, or to an open descriptor, and the base class of sinks that do so.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EACCES, EISDIR, ENXIO
from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from mqhooks.errors import ConfigError
from mqhooks.support.hangup import on_hangup
from mqhooks.support.ratelimit import RateLimit

STANDARD_OUTPUT = 1
"""The descriptor itself: twistd logs ``sys.stdout``."""


class Appender:
    """
    Appends lines, one for each event.

    A file is created with mode 0640 less the umask, and reopened at SIGHUP, between two batches. A batch is one synchronous
    write: a slow reader of a pipe slows the whole process down.

    Lines that cannot be written, to a full disk for example, are counted in :attr:`lost` and logged once a minute; the next
    batch is tried again. A file never keeps part of a line. When the reader of a descriptor has gone, the reactor is stopped.

    :param reactor: tells the time, reopens after a signal, and is stopped when the reader has gone.
    :param destination: a path, or the number of an open descriptor, which is never closed here.
    :param log: gets the log lines.
    :param read_back: whether to open the file for reading too.
    :param prepare: called with the descriptor and the path of each newly opened file before anything is written. It may raise
        :class:`~mqhooks.errors.ConfigError` or ``OSError``; the file is closed then.
    :ivar written: lines written.
    :ivar lost: lines that could not be written.
    """

    def __init__(
        self,
        reactor: Any,
        destination: str | os.PathLike[str] | int,
        log: Logger,
        *,
        read_back: bool = False,
        prepare: Callable[[int, str], object] | None = None,
    ) -> None:
        self.written = 0
        self.lost = 0
        self.path = None if isinstance(destination, int) else os.fspath(destination)
        self.name = self.path or ("standard output" if destination == STANDARD_OUTPUT else f"descriptor {destination}")
        self.descriptor = destination if isinstance(destination, int) else None
        self._reactor = reactor
        self._log = log
        self._access = os.O_RDWR if read_back else os.O_WRONLY
        self._prepare = prepare
        self._complaints = RateLimit(reactor)
        self._complained = False
        self._forget_hangup: Callable[[], None] | None = None

    def open(self) -> None:
        """
        Open the file.

        :raises mqhooks.errors.ConfigError: when it cannot be opened.
        """
        if self.path is not None:
            self.descriptor = self._open(self.path)
            self._forget_hangup = on_hangup(lambda: self._reactor.callFromThread(self.reopen))

    def look(self, directory: str) -> None:
        """See :meth:`AppendingSink.look`."""
        if self.path is None:
            return
        try:
            path = os.path.join(directory, self.path)
            needed = os.W_OK if self._access == os.O_WRONLY else os.R_OK | os.W_OK
            try:
                mode = os.stat(path).st_mode
            except FileNotFoundError:
                # The file that a dangling link names is made, too.
                path, needed, mode = os.path.dirname(os.path.realpath(path)), os.W_OK | os.X_OK, 0
                os.stat(path)
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
            if not os.access(path, needed):
                raise PermissionError(EACCES, os.strerror(EACCES))
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                # Nothing else tells whether a FIFO has a reader.
                os.close(os.open(path, self._access | os.O_CLOEXEC | os.O_NONBLOCK))
        except (OSError, ValueError) as error:
            raise _unusable(self.path, error) from None

    def close(self) -> None:
        """Close the file."""
        if self._forget_hangup is not None:
            self._forget_hangup()
            self._forget_hangup = None
        if self.path is not None and self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def reopen(self) -> None:
        """Reopen the path, after the file was renamed. If that fails, keep the file that is open."""
        if self.path is None or self.descriptor is None:
            return
        try:
            descriptor = self._open(self.path)
        except ConfigError as error:
            self._log.error("{error}; still writing to the file that is open", error=error)
            return
        os.close(self.descriptor)
        self.descriptor = descriptor
        self._log.info("{name}: reopened", name=self.name)

    def append(self, lines: bytes, count: int) -> int:
        """
        Append lines.

        :param lines: whole lines.
        :param count: number of lines.
        :returns: bytes of them that the file keeps.
        """
        if self.descriptor is None:
            self.lost += count
            return 0
        kept, error = _append(self.descriptor, lines)
        if error is None:
            self.written += count
            if self._complained:
                self._complained = False
                self._log.info("{name}: can be written again; {lost} events were lost", name=self.name, lost=self.lost)
            return kept
        written = lines.count(b"\n", 0, kept)
        self.written += written
        self.lost += count - written
        if isinstance(error, BrokenPipeError) and self.path is None:
            self._end()
        elif self._complaints.allow("write") is not None:
            self._complained = True
            self._log.error(
                "{name}: cannot be written ({reason}); {lost} events lost so far",
                name=self.name,
                reason=error.strerror,
                lost=self.lost,
            )
        return kept

    def _end(self) -> None:
        self.descriptor = None
        self._log.error("{name}: its reader is gone, stopping", name=self.name)
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _open(self, path: str) -> int:
        # Opening a FIFO fails when it has no reader, instead of blocking; writing to it then blocks.
        flags = self._access | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = None
        try:
            descriptor = os.open(path, flags, 0o640)
            os.set_blocking(descriptor, True)
            if self._prepare is not None:
                self._prepare(descriptor, path)
        except (ConfigError, OSError, ValueError) as error:
            if descriptor is not None:
                os.close(descriptor)
            if isinstance(error, ConfigError):
                raise
            raise _unusable(path, error) from None
        return descriptor


def _unusable(path: str, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, OSError) and error.errno == ENXIO:
        return ConfigError("is a FIFO that nothing reads, or a socket; start its reader first, or give another file", path)
    reason = error.strerror if isinstance(error, OSError) else "a path must not contain NUL"
    return ConfigError(f"cannot be opened for appending ({reason}); create its directory and let this user write there", path)


def _append(descriptor: int, lines: bytes) -> tuple[int, OSError | None]:
    """
    Write lines; if that fails, remove the part of a line at the end.

    :returns: bytes that the file keeps, and the error, if there was one.
    """
    written = 0
    try:
        while written < len(lines):
            try:
                written += os.write(descriptor, lines[written:])
            except BlockingIOError:
                _wait_for_room(descriptor)
    except OSError as error:
        whole = lines.rfind(b"\n", 0, written) + 1
        with suppress(OSError):
            _take_back(descriptor, written - whole)
        return whole, error
    return written, None


def _take_back(descriptor: int, size: int) -> None:
    status = os.fstat(descriptor)
    # When another process has appended after us, the end of the file is not ours to cut.
    if size and stat.S_ISREG(status.st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == status.st_size:
        os.ftruncate(descriptor, status.st_size - size)
        os.lseek(descriptor, -size, os.SEEK_CUR)


def _wait_for_room(descriptor: int) -> None:
    """Block until there is room: another process may have made a shared descriptor non-blocking."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


class AppendingSink(Service):
    """
    Base class of sinks that write through an :class:`Appender`.

    :param appender: open while the service runs.
    """

    def __init__(self, appender: Appender) -> None:
        self._appender = appender

    @property
    def written(self) -> int:
        """Events written."""
        return self._appender.written

    @property
    def lost(self) -> int:
        """Events that could not be written."""
        return self._appender.lost

    def shown(self) -> dict[str, str | float | bool | None]:
        """Return details for the status page; see :meth:`mqhooks.interfaces.IShownSink.shown`."""
        return {"file": self._appender.name, "written": self.written, "lost": self.lost}

    def look(self, directory: str) -> None:
        """
        Look, without making anything, whether this user can open the file. Only a FIFO is opened for that: its reader may see
        an end of file.

        :param directory: where relative paths begin; ``""`` for the current directory.
        :raises mqhooks.errors.ConfigError: what :meth:`startService` would raise.
        """
        self._appender.look(directory)

    def startService(self) -> None:
        """
        Open the file.

        :raises mqhooks.errors.ConfigError: when it cannot be opened, or has the wrong content.
        """
        super().startService()
        self._appender.open()

    def stopService(self) -> None:
        """Close the file."""
        super().stopService()
        self._appender.close()

    def reopen(self) -> None:
        """Reopen the path, after the file was renamed. If that fails, keep the file that is open."""
        self._appender.reopen()
