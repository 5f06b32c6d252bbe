"""
The ``capture`` sink: records frames with their times, in a file that the simulator can replay.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.events import Event, Message
from mqhooks.interfaces import IShownSink
from mqhooks.sinks.appending import Appender, AppendingSink
from mqhooks.support.recording import Record, check_header, line, resume


@implementer(IShownSink)
class CaptureSink(AppendingSink):
    """
    Records each event's frame and its time of arrival. :mod:`mqhooks.support.recording` describes the file format.

    The file is appended to, created with mode 0640 less the umask, and reopened at SIGHUP, between two batches. A batch is one
    synchronous write. Events that cannot be written, to a full disk for example, are counted in :attr:`lost` and logged once a
    minute; the next batch is tried again.

    :param reactor: tells the time, and reopens after a signal.
    :param path: the file.
    :param encode: encodes an event's message as a frame, as ``mqhooks.sources.sidecar.encode.encode`` does.
    :param max_size: the size limit in bytes, 0 for none; further events are counted in :attr:`left_out` until the file is
        reopened.
    :param now: returns the time of day, in nanoseconds since 1970.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str | os.PathLike[str],
        encode: Callable[[Message], bytes],
        *,
        max_size: int = 0,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.left_out = 0
        self._encode = encode
        self._max_size = max_size
        self._now = now
        self._size = 0
        self._full = False
        super().__init__(Appender(reactor, os.fspath(path), self.log, read_back=True, prepare=self._prepare))

    def look(self, directory: str) -> None:
        """
        Look whether this user can open the file, and whether it is a capture; make and change nothing.

        :param directory: where relative paths begin; ``""`` for the current directory.
        :raises mqhooks.errors.ConfigError: what :meth:`startService` would raise.
        """
        super().look(directory)
        path = os.path.join(directory, self._appender.name)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                check_header(file.readline(64), self._appender.name)
        elif os.path.exists(path):
            raise _irregular(self._appender.name)

    def receive(self, events: Sequence[Event]) -> None:
        """
        Record events.

        :returns: ``None``: an event that cannot be written now never will be.
        """
        now = self._now()
        lines = [line(Record(now, self._encode(event.message))) for event in events]
        if self._max_size:
            lines = self._fitting(lines)
        if lines:
            self._size += self._appender.append(b"".join(lines), len(lines))

    def shown(self) -> dict[str, str | float | bool | None]:
        """Return details for the status page; see :meth:`mqhooks.interfaces.IShownSink.shown`."""
        return super().shown() | {"left out": self.left_out}

    def _fitting(self, lines: list[bytes]) -> list[bytes]:
        room = self._max_size - self._size
        count = 0
        while not self._full and count < len(lines):
            room -= len(lines[count])
            if room < 0:
                self._full = True
                self.log.warn(
                    "{name}: max_size ({size} bytes) is reached, recording stops; rename the file and send SIGHUP to continue",
                    name=self._appender.name,
                    size=self._max_size,
                )
            else:
                count += 1
        self.left_out += len(lines) - count
        return lines[:count]

    def _prepare(self, descriptor: int, path: str) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _irregular(path)
        self._size = resume(descriptor, path)
        self._full = False


def _irregular(path: str) -> ConfigError:
    return ConfigError("is not a regular file; a capture needs one", path)
