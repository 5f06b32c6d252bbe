"""
Events as JSON lines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.bodies import hook_body
from mqhooks.sinks.appending import STANDARD_OUTPUT, Appender, AppendingSink
from mqhooks.sources.sidecar.events import Event


@implementer(IEventSink)
class LogSink(AppendingSink):
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
        super().__init__(Appender(reactor, destination, self.log))

    @property
    def uses_stdout(self) -> bool:
        """Whether the lines go to standard output."""
        return self._appender.path is None and self._appender.descriptor == STANDARD_OUTPUT

    def receive(self, events: Sequence[Event]) -> None:
        """
        Write one line for each event.

        :returns: ``None``: what is not written now never will be.
        """
        if events:
            self._appender.append(b"".join([hook_body(event) + b"\n" for event in events]), len(events))
