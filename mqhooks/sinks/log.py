"""
The ``log`` sink: writes events as JSON lines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.events import Event
from mqhooks.interfaces import IShownSink
from mqhooks.nanomq.bodies import hook_body
from mqhooks.sinks.appending import STANDARD_OUTPUT, Appender, AppendingSink


@implementer(IShownSink)
class LogSink(AppendingSink):
    """
    Writes each event as one line: a JSON object with VerneMQ's own names.

    A file is appended to, created with mode 0640 less the umask, and reopened at SIGHUP, between two batches. A batch is one
    synchronous write: a slow reader of a pipe slows the whole process down.

    Events that cannot be written, to a full disk for example, are counted in :attr:`lost` and logged once a minute; the next
    batch is tried again. A file never keeps part of a line. When the reader of a descriptor has gone, the reactor is stopped.

    :param reactor: tells the time, reopens after a signal, and is stopped when the reader has gone.
    :param destination: a path, or the number of an open descriptor, which is never closed here.
    """

    log = Logger()

    def __init__(self, reactor: Any, destination: str | os.PathLike[str] | int = STANDARD_OUTPUT) -> None:
        super().__init__(Appender(reactor, destination, self.log))

    @property
    def uses_stdout(self) -> bool:
        """Whether the lines go to standard output."""
        return self._appender.path is None and self._appender.descriptor == STANDARD_OUTPUT

    def receive(self, events: Sequence[Event]) -> None:
        """
        Write one line for each event.

        :returns: ``None``: an event that cannot be written now never will be.
        """
        if events:
            self._appender.append(b"".join([hook_body(event) + b"\n" for event in events]), len(events))
