"""
The sockets under the pooled transport, which bypass Twisted's transport where the system has epoll.

For every readable connection the reactor makes a logging context and a dozen calls, and every write goes through a buffer, two
calls of epoll_ctl and a turn of the reactor. That costs more than a short request and its answer. Bypassing the transport to
send takes a delivered event from 33.4 to 28.7 microseconds of CPU, and bypassing it to read, from 28.7 to 20.6. Nothing outside
this file knows which way its bytes go.

- Reading: one edge-triggered epoll watches all sockets, and the reactor watches that epoll. The transport stops reading.
- Sending: the socket's own send() nearly always takes a whole request. If not, the transport gets the rest, and reads from then
  on, too: if it only wrote, it would see a reset before the answer that came first.
- Connecting and closing are left to Twisted: at the first sign of an end or an error the socket goes back to the transport.

Where epoll is missing, or the reactor watches no file descriptors, :class:`PlainSockets` does the same with Twisted alone.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IPullProducer,
    IReactorFDSet,
    IReadDescriptor,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.support.names import in_words

EVENTS = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)
"""Data and its end, edge-triggered: a socket that was read until empty is not reported again before more comes."""

ENOUGH = 128
"""Reads after which the reactor gets its turn."""

SHORT = 479
"""Bytes received at a time at first: the most that fit into a bytes object of Python's small-object allocator."""

LONG = 1 << 16
"""Bytes received at a time once an answer did not fit into :data:`SHORT`."""


class Receiver(Protocol):
    """Receives the bytes of a channel."""

    def received(self, data: bytes) -> None:
        """Take received bytes."""

    def lost(self, reason: str, *, refused: bool = False) -> None:
        """
        Note that the channel is closed. Called once.

        :param reason: the reason, in words.
        :param refused: whether the endpoint refused the channel, so that it cannot have acted on anything sent on it.
        """


class Channel(Protocol):
    """
    An open connection that carries bytes.

    :ivar receiver: gets the received bytes; set by whoever connects, before any can come.
    :ivar full: whether there may be more to receive than was just delivered; :meth:`pending` makes sure.
    """

    receiver: Receiver
    full: bool

    @property
    def behind(self) -> bool:
        """Whether some of what was sent still waits here, because the other side has not taken it yet."""

    def send(self, data: bytes) -> None:
        """Send all bytes, now or as soon as there is room."""

    def pending(self) -> bool:
        """Return whether anything has come that was not delivered yet, if only the end."""

    def hurry(self) -> None:
        """Send the TCP acknowledgement now: the other side may be waiting for it before it sends the rest."""

    def close(self) -> None:
        """Close cleanly, once everything is sent."""

    def abort(self) -> None:
        """Close at once."""


class Sockets(Protocol):
    """Makes channels."""

    def connect(self, endpoint: IStreamClientEndpoint) -> Deferred[Channel]:
        """Connect to an endpoint. The receiver has to be set in the first callback."""


def sockets(reactor: Any) -> Sockets:
    """Choose the fastest sockets that the reactor and the system support."""
    return EpollSockets(reactor) if EpollSockets.possible(reactor) else PlainSockets()


@implementer(IPullProducer)
class PlainSocket(protocol.Protocol):
    """A channel over Twisted's TCP transport."""

    receiver: Receiver
    behind = False
    # Nobody can see from outside whether the transport has left anything unread.
    full = True
    _handle: socket.socket | None = None

    def connectionMade(self) -> None:
        """Disable Nagle's algorithm, since a request is one write."""
        transport: Any = self.transport
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            handle = transport.getHandle()
            self._handle = handle if isinstance(handle, socket.socket) else None

    def dataReceived(self, data: bytes) -> None:
        """Hand over the data."""
        self.receiver.received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the end."""
        self._handle = None
        self.receiver.lost(in_words(reason.value))

    def send(self, data: bytes) -> None:
        """See :class:`Channel`."""
        transport: Any = self.transport
        transport.write(data)
        if not self.behind:
            # The transport asks a producer for more once everything is sent, and also now, which does not count.
            transport.registerProducer(self, streaming=False)
            self.behind = True

    def resumeProducing(self) -> None:
        """Note that everything is sent."""
        if self.behind:
            self.behind = False
            transport: Any = self.transport
            transport.unregisterProducer()

    def stopProducing(self) -> None:
        """Do nothing: the end is reported otherwise."""

    def pending(self) -> bool:
        """See :class:`Channel`."""
        if self._handle is None:
            return False
        try:
            self._handle.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            # An error has to be delivered, too.
            return True
        return True

    def hurry(self) -> None:
        """See :class:`Channel`. With Nagle's algorithm at the other end, a delayed ACK here costs 40 ms."""
        if self._handle is not None and hasattr(socket, "TCP_QUICKACK"):
            try:
                self._handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            except OSError:
                # Only speed is lost.
                pass

    def close(self) -> None:
        """See :class:`Channel`."""
        transport: Any = self.transport
        transport.loseConnection()

    def abort(self) -> None:
        """See :class:`Channel`."""
        transport: Any = self.transport
        transport.abortConnection()


class PlainSockets:
    """Makes sockets with Twisted alone."""

    def connect(self, endpoint: IStreamClientEndpoint) -> Deferred[Channel]:
        """See :class:`Sockets`."""
        connecting: Deferred[Any] = endpoint.connect(_Factory(PlainSocket))
        return connecting


class EpollSocket(PlainSocket):
    """
    A channel that bypasses Twisted's transport, except at the connection's end.

    :param watch: calls the socket when there is something to read.
    """

    def __init__(self, watch: EpollSockets) -> None:
        self.full = False
        self._watch = watch
        self._room = SHORT
        self._descriptor = -1
        self._receive: Callable[[int], bytes] | None = None
        self._send: Callable[[bytes], int] | None = None

    def connectionMade(self) -> None:
        """Take the socket over from the transport."""
        super().connectionMade()
        handle = self._handle
        if handle is None:
            return
        transport: Any = self.transport
        self._send = handle.send
        self._descriptor = handle.fileno()
        try:
            self._watch.add(self._descriptor, self._read)
        except OSError:
            # The system has no more epoll watches or memory: the transport keeps reading.
            return
        self._receive = handle.recv
        transport.stopReading()

    def dataReceived(self, data: bytes) -> None:
        """Hand over data that the transport has read, once it has the socket again."""
        self.full = True
        self.receiver.received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the socket, and report the end."""
        self._forget()
        self._send = None
        super().connectionLost(reason)

    def send(self, data: bytes) -> None:
        """See :class:`Channel`."""
        if self._send is not None:
            try:
                sent = self._send(data)
            except OSError:
                # The buffer is full, or the connection is gone: the transport will deal with it.
                sent = 0
            if sent == len(data):
                return
            self._send = None
            self._give_back()
            data = data[sent:]
        super().send(data)

    def close(self) -> None:
        """See :class:`Channel`."""
        self._give_back()
        super().close()

    def _read(self, sound: bool) -> bool:  # noqa: FBT001 - what EpollSockets calls
        """
        Receive once.

        :param sound: whether there is only data to read, and neither the end nor an error.
        :returns: whether to call this again.
        """
        receive, room, data = self._receive, self._room, b""
        if receive is None:
            return False
        if sound:
            try:
                data = receive(room)
            except BlockingIOError:
                return False
            except OSError:
                # The transport will report it.
                pass
        if not data:
            self._give_back()
            return False
        if len(data) < room:
            self.full = False
            self.receiver.received(data)
            return False
        self.full = True
        self._room = LONG
        self.receiver.received(data)
        return True

    def _give_back(self) -> None:
        if self._forget():
            transport: Any = self.transport
            transport.startReading()

    def _forget(self) -> bool:
        if self._receive is None:
            return False
        self._receive = None
        self._watch.remove(self._descriptor)
        return True


@implementer(IReadDescriptor)
class EpollSockets:
    """
    Reads all readable sockets in one turn of the reactor. While it has any sockets, it is one of the reactor's readers.

    :param reactor: watches its epoll.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._readers: dict[int, Callable[[bool], bool]] = {}
        self._epoll: Any = None

    @staticmethod
    def possible(reactor: Any) -> bool:
        """Return whether this works here: the reactor has to support file descriptors, the system epoll."""
        return hasattr(select, "epoll") and IReactorFDSet.providedBy(reactor)

    def connect(self, endpoint: IStreamClientEndpoint) -> Deferred[Channel]:
        """See :class:`Sockets`."""
        connecting: Deferred[Any] = endpoint.connect(_Factory(lambda: EpollSocket(self)))
        return connecting

    def add(self, descriptor: int, read: Callable[[bool], bool]) -> None:
        """
        Watch a socket.

        :param read: called when anything has come; its argument says whether that is nothing but data. It returns whether to
            call it again.
        :raises OSError: when the system has no room for another watch.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
        self._epoll.register(descriptor, EVENTS)
        if not self._readers:
            self._reactor.addReader(self)
        self._readers[descriptor] = read

    def remove(self, descriptor: int) -> None:
        """Stop watching a socket; it may be closed already."""
        if self._readers.pop(descriptor, None) is None:
            return
        try:
            self._epoll.unregister(descriptor)
        except OSError:
            # Closing the socket has unregistered it.
            pass
        if not self._readers:
            self._reactor.removeReader(self)

    def fileno(self) -> int:
        """Return the descriptor that the reactor has to watch."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """Read all sockets that are readable, or become so meanwhile."""
        readers, epoll, sound = self._readers, self._epoll, select.EPOLLIN
        count = 0
        # Polling again costs a tenth of another turn of the reactor.
        while count < ENOUGH:
            ready = epoll.poll(0)
            for descriptor, events in ready:
                # Reading an earlier one may have closed it.
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
        """Do nothing: the reactor stops, or cannot watch the epoll."""

    def logPrefix(self) -> str:
        """Name the reader in Twisted's log."""
        return "webhook"


class _Factory(protocol.Factory):
    noisy = False

    def __init__(self, make: Callable[[], PlainSocket]) -> None:
        self._make = make

    def buildProtocol(self, addr: IAddress | None) -> PlainSocket:
        return self._make()
