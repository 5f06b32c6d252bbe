"""
Events as JSON lines.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.bodies import hook_body
from mqhooks.ratelimit import RateLimit
from mqhooks.sidecar.events import Event
from mqhooks.sinks.hangup import on_hangup

STANDARD_OUTPUT = 1
"""The descriptor itself: ``sys.stdout`` is the log's under twistd."""


@implementer(IEventSink)
class LogSink(Service):
    """
    Writes each event as one line: a JSON object in VerneMQ's own words.

    A file is appended to, made with mode 0640 less the umask, and opened anew at SIGHUP, between two batches. A batch is one
    synchronous write: a reader of a pipe who is slow slows the whole process down.

    What cannot be written, to a full disk for example, is counted in :attr:`lost` and said once a minute; the next batch is
    tried again. A file never keeps part of a line. When the reader of a descriptor is gone, nothing can follow: the reactor is
    stopped.

    :param reactor: tells the time; reopens after a signal; is stopped when nobody reads any more.
    :param destination: a path, or the number of an open descriptor, which is not closed here.
    """

    log = Logger()

    def __init__(self, reactor: Any, destination: str | os.PathLike[str] | int = STANDARD_OUTPUT) -> None:
        self.written = 0
        self.lost = 0
        self._reactor = reactor
        self._path = None if isinstance(destination, int) else os.fspath(destination)
        self._descriptor = destination if isinstance(destination, int) else None
        self._name = self._path or ("standard output" if destination == STANDARD_OUTPUT else f"descriptor {destination}")
        self._complaints = RateLimit(reactor)
        self._complained = False
        self._forget_hangup: Callable[[], None] | None = None

    @property
    def uses_stdout(self) -> bool:
        """Whether the lines go to standard output."""
        return self._path is None and self._descriptor == STANDARD_OUTPUT

    def startService(self) -> None:
        """
        Open the file.

        :raises mqhooks.errors.ConfigError: when that is not possible.
        """
        super().startService()
        if self._path is not None:
            self._descriptor = _open(self._path)
            self._forget_hangup = on_hangup(lambda: self._reactor.callFromThread(self.reopen))

    def stopService(self) -> None:
        """Close the file."""
        super().stopService()
        if self._forget_hangup is not None:
            self._forget_hangup()
            self._forget_hangup = None
        if self._path is not None and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def reopen(self) -> None:
        """Open the path anew, after the file was renamed; if that fails, go on with the file that is open."""
        if self._path is None or self._descriptor is None:
            return
        try:
            descriptor = _open(self._path)
        except ConfigError as error:
            self.log.error("{error}; the file opened before is still written to", error=error)
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
        self.log.info("{name}: opened anew", name=self._name)

    def receive(self, events: Sequence[Event]) -> None:
        """
        Write one line for each event.

        :returns: ``None``: what is not written now never will be.
        """
        if not events:
            return
        if self._descriptor is None:
            self.lost += len(events)
            return
        lines = b"".join([hook_body(event) + b"\n" for event in events])
        kept, error = _append(self._descriptor, lines)
        if error is None:
            self.written += len(events)
            if self._complained:
                self._complained = False
                self.log.info("{name}: written to again; {lost} events are lost", name=self._name, lost=self.lost)
            return
        written = lines.count(b"\n", 0, kept)
        self.written += written
        self.lost += len(events) - written
        if isinstance(error, BrokenPipeError) and self._path is None:
            self._end()
        elif self._complaints.allow("write") is not None:
            self._complained = True
            self.log.error(
                "{name}: cannot be written to ({reason}); {lost} events are lost so far",
                name=self._name,
                reason=error.strerror,
                lost=self.lost,
            )

    def _end(self) -> None:
        self._descriptor = None
        self.log.error("{name}: nobody reads it any more, stopping", name=self._name)
        with suppress(ReactorNotRunning):
            self._reactor.stop()


def _open(path: str) -> int:
    # A pipe without a reader is refused rather than waited for; once it is open, writing waits for the reader.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o640)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a path has no NUL character"
        raise ConfigError(
            f"cannot be opened for appending ({reason}); make its directory and let this user write there", path
        ) from None
    os.set_blocking(descriptor, True)
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
