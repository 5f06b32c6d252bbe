"""
Lines, appended to a file that somebody rotates, or to a descriptor.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from mqhooks.errors import ConfigError
from mqhooks.support.hangup import on_hangup
from mqhooks.support.ratelimit import RateLimit

STANDARD_OUTPUT = 1
"""The descriptor itself: ``sys.stdout`` is the log's under twistd."""


class Appender:
    """
    Appends lines, one for each event.

    A file is made with mode 0640 less the umask, and opened anew at SIGHUP, between two batches. A batch is one synchronous
    write: a reader of a pipe who is slow slows the whole process down.

    What cannot be written, to a full disk for example, is counted in :attr:`lost` and said once a minute; the next batch is
    tried again. A file never keeps part of a line. When the reader of a descriptor is gone, nothing can follow: the reactor is
    stopped.

    :param reactor: tells the time; reopens after a signal; is stopped when nobody reads any more.
    :param destination: a path, or the number of an open descriptor, which is not closed here.
    :param log: says what happens.
    :param read_back: whether the file is to be readable too.
    :param prepare: called with the descriptor of each file that was opened and with its path, before anything is written. It
        may raise :class:`~mqhooks.errors.ConfigError` or ``OSError``; the file is closed then.
    :ivar written: how many lines were written.
    :ivar lost: how many were not.
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

        :raises mqhooks.errors.ConfigError: when that is not possible.
        """
        if self.path is not None:
            self.descriptor = self._open(self.path)
            self._forget_hangup = on_hangup(lambda: self._reactor.callFromThread(self.reopen))

    def close(self) -> None:
        """Close the file."""
        if self._forget_hangup is not None:
            self._forget_hangup()
            self._forget_hangup = None
        if self.path is not None and self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def reopen(self) -> None:
        """Open the path anew, after the file was renamed; if that fails, go on with the file that is open."""
        if self.path is None or self.descriptor is None:
            return
        try:
            descriptor = self._open(self.path)
        except ConfigError as error:
            self._log.error("{error}; the file opened before is still written to", error=error)
            return
        os.close(self.descriptor)
        self.descriptor = descriptor
        self._log.info("{name}: opened anew", name=self.name)

    def append(self, lines: bytes, count: int) -> int:
        """
        Write lines.

        :param lines: whole ones.
        :param count: how many they are.
        :returns: how many bytes of them are in the file now.
        """
        if self.descriptor is None:
            self.lost += count
            return 0
        kept, error = _append(self.descriptor, lines)
        if error is None:
            self.written += count
            if self._complained:
                self._complained = False
                self._log.info("{name}: written to again; {lost} events are lost", name=self.name, lost=self.lost)
            return kept
        written = lines.count(b"\n", 0, kept)
        self.written += written
        self.lost += count - written
        if isinstance(error, BrokenPipeError) and self.path is None:
            self._end()
        elif self._complaints.allow("write") is not None:
            self._complained = True
            self._log.error(
                "{name}: cannot be written to ({reason}); {lost} events are lost so far",
                name=self.name,
                reason=error.strerror,
                lost=self.lost,
            )
        return kept

    def _end(self) -> None:
        self.descriptor = None
        self._log.error("{name}: nobody reads it any more, stopping", name=self.name)
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _open(self, path: str) -> int:
        # A pipe without a reader is refused rather than waited for; once it is open, writing waits for the reader.
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
            reason = error.strerror if isinstance(error, OSError) else "a path has no NUL character"
            raise ConfigError(
                f"cannot be opened for appending ({reason}); make its directory and let this user write there", path
            ) from None
        return descriptor


def _append(descriptor: int, lines: bytes) -> tuple[int, OSError | None]:
    """
    Write lines, and if that fails, take back the part of a line that was written.

    :returns: how many bytes stay, and why it failed.
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
    # Where another process has appended behind us, the end of the file is not ours to cut.
    if size and stat.S_ISREG(status.st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == status.st_size:
        os.ftruncate(descriptor, status.st_size - size)
        os.lseek(descriptor, -size, os.SEEK_CUR)


def _wait_for_room(descriptor: int) -> None:
    """Someone who shares the descriptor has made it non-blocking."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


class AppendingSink(Service):
    """
    What sinks have in common whose events go through an :class:`Appender`.

    :param appender: writes; it is open while the service runs.
    """

    def __init__(self, appender: Appender) -> None:
        self._appender = appender

    @property
    def written(self) -> int:
        """How many events were written."""
        return self._appender.written

    @property
    def lost(self) -> int:
        """How many events could not be written."""
        return self._appender.lost

    def startService(self) -> None:
        """
        Open the file.

        :raises mqhooks.errors.ConfigError: when that is not possible, or it holds what it should not.
        """
        super().startService()
        self._appender.open()

    def stopService(self) -> None:
        """Close the file."""
        super().stopService()
        self._appender.close()

    def reopen(self) -> None:
        """Open the path anew, after the file was renamed; if that fails, go on with the file that is open."""
        self._appender.reopen()
