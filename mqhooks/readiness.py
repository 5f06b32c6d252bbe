"""
Reading many connections in one turn of the reactor.

What the reactor does for each readable connection (a logging context, a dozen calls) costs more than reading a short answer.
Here it does that once for all of them: it watches an epoll that watches them.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from socket import socket
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""Data and the end of it, each told once when it comes: what was read is not looked at once more."""

Read = Callable[[bool], bool]


@implementer(IReadDescriptor)
class Readiness:
    """
    Calls readers when their sockets can be read. It is one of the reactor's as long as it has any.

    :param reactor: watches it.
    :param name: whose connections they are, for the log.
    :param enough: after how many reads it leaves what has become readable meanwhile to the reactor's next turn.
    :ivar reading: whether it is calling them.
    """

    log = Logger()

    def __init__(self, reactor: Any, name: str, enough: int) -> None:
        self._reactor = reactor
        self._name = name
        self._enough = enough
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
        :raises OSError: when the system has no room for it.
        """
        # Once made it stays: where descriptors are short, there may be none for another.
        if self._epoll is None:
            self._epoll = select.epoll()
        self._epoll.register(descriptor, EVENTS)
        if not self._readers:
            self._reactor.addReader(self)
        self._readers[descriptor] = read

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
        while count < self._enough:
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
        return self._name


class Reader:
    """
    Receives from a connection's socket past its transport, which is left with the connection's end.

    :param readiness: watches the socket.
    :param transport: a connected TCP connection of Twisted's, or what is made of one.
    :param source: its socket.
    :param take: gets what was received.
    :param room: how many bytes are received at a time, at first.
    :param more: how many at a time once so many have come.
    """

    def __init__(
        self, readiness: Readiness, transport: Any, source: socket, take: Callable[[bytes], object], room: int, more: int
    ) -> None:
        self._readiness = readiness
        self._transport = transport
        self._descriptor = source.fileno()
        self._receive = source.recv
        self._take = take
        self._room = room
        self._more = more
        self._watched = False
        self._direct = True
        transport.stopReading()
        self.resume()

    def pause(self) -> None:
        """Receive nothing more for now, not even the connection's end."""
        if self._direct:
            self._unwatch()
        else:
            self._transport.pauseProducing()

    def resume(self) -> None:
        """Go on, after :meth:`pause`."""
        if not self._direct:
            self._transport.resumeProducing()
        elif not self._watched:
            try:
                self._readiness.add(self._descriptor, self._read)
            except OSError:
                self._direct = False
                self._transport.startReading()
            else:
                self._watched = True

    def give_back(self) -> None:
        """Leave the socket to the transport."""
        if self._watched:
            self.leave()
            self._transport.startReading()

    def leave(self) -> None:
        """Have done with the socket: the connection has ended, or is about to."""
        self._direct = False
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._readiness.remove(self._descriptor)

    def _read(self, sound: bool) -> bool:  # noqa: FBT001 - what Readiness calls
        data, room = b"", self._room
        if sound:
            try:
                data = self._receive(room)
            except BlockingIOError:
                return False
            except OSError:
                # Whatever it is, the transport finds out as well.
                pass
        if data:
            self._take(data)
        else:
            self.give_back()
        if len(data) < room:
            return False
        self._room = self._more
        return True
