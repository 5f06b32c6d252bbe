"""
Reading many connections in one turn of the reactor.

What the reactor does for each readable connection (a logging context, a dozen calls) costs more than reading a short answer.
Here it does that once for all of them: it watches an epoll that watches them.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

ENOUGH = 128
"""After how many reads it leaves what has become readable meanwhile to the reactor's next turn."""

EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""Data and the end of it, each told once when it comes: what was read is not looked at once more."""

Read = Callable[[bool], bool]


@implementer(IReadDescriptor)
class Readiness:
    """
    Calls readers when their sockets can be read. It is one of the reactor's as long as it has any.

    :param reactor: watches it.
    :ivar reading: whether it is calling them.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.reading = False
        self._readers: dict[int, Read] = {}
        self._afterwards: list[Callable[[], object]] = []
        self._epoll: Any = None

    @staticmethod
    def possible(reactor: Any) -> bool:
        """Say whether this can be done here: the reactor has to know file descriptors, the system epoll."""
        return hasattr(select, "epoll") and IReactorFDSet.providedBy(reactor)

    def add(self, descriptor: int, read: Read) -> None:
        """
        Watch a socket.

        :param read: called when something has come, with whether it is nothing but data: no error and no hang-up. It returns
            whether it has left some, to be called again.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._readers[descriptor] = read
        self._epoll.register(descriptor, EVENTS)

    def remove(self, descriptor: int) -> None:
        """Watch a socket no longer; it may be closed already."""
        if self._readers.pop(descriptor, None) is None:
            return
        try:
            self._epoll.unregister(descriptor)
        except OSError:
            # It was closed, and has left by that.
            pass
        if not self._readers:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    def afterwards(self, callback: Callable[[], object]) -> None:
        """Call something once, in this turn, when all readers have been called."""
        self._afterwards.append(callback)

    def fileno(self) -> int:
        """Say what the reactor is to watch."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """Call the readers of all sockets to which something has come, or does by then."""
        self.reading = True
        self._look()
        self.reading = False
        afterwards, self._afterwards = self._afterwards, []
        for callback in afterwards:
            try:
                callback()
            except Exception:
                self.log.failure("what was read could not be dealt with")

    def _look(self) -> None:
        readers, epoll, sound = self._readers, self._epoll, select.EPOLLIN
        count = 0
        # Another look costs a tenth of what another turn of the reactor does.
        while count < ENOUGH and self._epoll is epoll:
            ready = epoll.poll(0)
            for descriptor, events in ready:
                # One of those before it may have closed it.
                read = readers.get(descriptor)
                if read is not None:
                    try:
                        if read(events == sound) and descriptor in readers:
                            epoll.modify(descriptor, EVENTS)
                    except Exception:
                        self.log.failure("a connection could not be read")
            if not ready:
                break
            count += len(ready)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, or cannot watch it."""

    def logPrefix(self) -> str:
        """Say who reads."""
        return "webhook"
