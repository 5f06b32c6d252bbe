"""
The connections of the admin port, shared fairly: monitoring gets its answer, whatever other clients do.

- A request has to arrive within a time limit, however its bytes are spread. When all places are taken, the connection that has
  gone longest without a complete request makes room. There is no limit for each peer, because on loopback and behind a proxy
  all clients are one peer.
- A request is answered once its connection has taken the previous answers, and only one request in each turn of the reactor.
  So many requests that are sent ahead cost no memory and hold up no deliveries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.server import Request
from zope.interface import implementer

from mqhooks.support.closing import CLOSING_TIME, ClosingFactory

IDLE = 75.0
"""Seconds that a connection may be open without a request: longer than the usual minute between two scrapes."""

COMPLETE = 20.0
"""Seconds from the first byte of a request to its last."""

TAKEN = 60.0
"""Seconds that a client may take to read an answer, from when it no longer fits into the socket's buffers."""

MOST_UNTAKEN = 32 << 20
"""Approximate bytes of answers that may wait for all clients; beyond that, the one that has not read for longest is cut off."""

MAX_BODY = 64 << 10
"""The longest body of a request, in bytes."""


class AdminConnections(ClosingFactory):
    """
    Limits the connections of another factory, whose requests are :class:`AdminRequest`.

    :param clock: for timeouts.
    :param factory: makes the connections' protocols.
    """

    def __init__(self, clock: IReactorTime, factory: Any) -> None:
        super().__init__(clock, factory)
        self.protocol = _Connection
        self.clock = clock
        # In the order of their last complete request.
        self._open: dict[_Connection, None] = {}
        # In the order in which they stopped reading.
        self._full: dict[_Connection, None] = {}
        self._asked: deque[AdminRequest] = deque()
        self._turn: IDelayedCall | None = None

    def room(self, most: int) -> bool:
        """
        Make room for one more connection; event streams that are read keep their places.

        :param most: how many connections may be open.
        :returns: whether there is room.
        """
        if len(self._open) < most:
            return True
        victim = next((connection for connection in self._open if not connection.watching), None)
        if victim is not None:
            victim.abort()
        return victim is not None

    def opened(self, connection: _Connection) -> None:
        """Note a new connection."""
        self._open[connection] = None

    def asked(self, connection: _Connection) -> None:
        """Note a complete request."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def closed(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._open.pop(connection, None)
        self._full.pop(connection, None)

    def filled(self, connection: _Connection) -> None:
        """Note that a client does not read its answer."""
        self._full[connection] = None

    def drained(self, connection: _Connection) -> None:
        """Note that a client has taken everything."""
        self._full.pop(connection, None)

    def written(self) -> None:
        """Cut off clients that do not read, if too much waits."""
        while self._full and sum(connection.untaken for connection in self._full) > MOST_UNTAKEN:
            next(iter(self._full)).abort()

    def answer(self, request: AdminRequest) -> None:
        """Answer a request in one of the next turns."""
        self._asked.append(request)
        if self._turn is None:
            self._turn = self.clock.callLater(0, self._answer)

    def _answer(self) -> None:
        self._turn = None
        while self._asked:
            request = self._asked.popleft()
            if not request.gone:
                if self._asked:
                    self._turn = self.clock.callLater(0, self._answer)
                request.answer()
                return


class AdminRequest(Request):
    """
    A request whose body is limited to :data:`MAX_BODY`, and that is answered in its turn.

    :ivar oversized: whether its body is longer.
    :ivar gone: whether its connection is closed.
    """

    oversized = False
    gone = False

    @property
    def _connection(self) -> _Connection:
        channel: Any = self.channel
        connection: _Connection = channel.transport
        return connection

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        """Keep a part of the body, unless it gets too long."""
        if self.content is not None and self.content.tell() + len(data) > MAX_BODY:
            self.oversized = True
        else:
            super().handleContentChunk(data)

    def process(self) -> None:
        """Wait for its turn: the request is complete."""
        self._connection.asked(self)

    def answer(self) -> None:
        """Process the request."""
        super().process()

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: FBT001 - as Twisted has it
        """Begin a response that goes on for as long as it is read."""
        self._connection.watching = True
        super().registerProducer(producer, streaming)

    def finish(self) -> None:
        """End the response."""
        if not self.gone:
            # Bytes sent ahead are read next, and may be a complete request.
            self._connection.answered()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """Note that nobody waits for the response any more."""
        self.gone = True
        super().connectionLost(reason)


class _Connection(ProtocolWrapper):
    """
    One connection.

    :ivar untaken: lower bound of the bytes that its client has not taken, while it does not read.
    """

    def __init__(self, factory: Any, protocol: Any) -> None:
        super().__init__(factory, protocol)
        self.untaken = 0
        self._watching = False
        self._connections: AdminConnections = factory
        self._full = False
        self._begun = self._busy = False
        self._held: AdminRequest | None = None
        self._timer: IDelayedCall | None = None

    def makeConnection(self, transport: Any) -> None:  # noqa: N802
        self._connections.opened(self)
        self._within(IDLE)
        super().makeConnection(transport)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)
        # This comes last: the call above may fire the Deferred of close(), and its callbacks may answer a request.
        self._within(None)
        self._connections.closed(self)

    @property
    def watching(self) -> bool:
        """Whether it has a stream, and reads it."""
        return self._watching and not self._full

    @watching.setter
    def watching(self, watching: bool) -> None:
        self._watching = watching

    def abort(self) -> None:
        """Give up its place at once."""
        self._connections.closed(self)
        transport: Any = self.transport
        transport.abortConnection()

    # Requests.

    def dataReceived(self, data: bytes) -> None:
        if not (self._begun or self._busy or self._full):
            self._begun = True
            self._within(COMPLETE)
        super().dataReceived(data)

    def asked(self, request: AdminRequest) -> None:
        """Note a complete request."""
        self._busy = True
        self._connections.asked(self)
        if self._full:
            self._held = request
        else:
            self._within(None)
            self._connections.answer(request)

    def answered(self) -> None:
        """Note that the response to it is complete."""
        self._begun = self._busy = self._watching = False
        if not self._full:
            self._within(IDLE)

    # Answers, and whether clients take them.

    def write(self, data: bytes) -> None:
        self.untaken = self.untaken + len(data) if self._full else len(data)
        super().write(data)
        self._connections.written()

    def writeSequence(self, data: Iterable[bytes]) -> None:  # noqa: N802
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: FBT001 - as Twisted has it
        super().registerProducer(_Gate(producer, self), streaming)

    def filled(self) -> None:
        self._full = True
        self._connections.filled(self)
        self._within(TAKEN)

    def drained(self) -> None:
        self._full = False
        self._connections.drained(self)
        self._within(None if self._busy else IDLE)
        held, self._held = self._held, None
        if held is not None:
            self._connections.answer(held)

    def _within(self, seconds: float | None) -> None:
        """Close the connection unless this is called again within so many seconds; ``None`` for no limit."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._connections.clock.callLater(seconds, self._late)

    def _late(self) -> None:
        if self._full or self.disconnecting:
            self.abort()
        else:
            self._within(CLOSING_TIME)
            self.loseConnection()


@implementer(IPushProducer)
class _Gate:
    """Stands between a producing protocol and its transport, and tells the connection when the transport pauses and resumes."""

    def __init__(self, producer: Any, connection: _Connection) -> None:
        self._producer = producer
        self._connection = connection

    def pauseProducing(self) -> None:
        self._connection.filled()
        self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._producer.resumeProducing()
        self._connection.drained()

    def stopProducing(self) -> None:
        self._producer.stopProducing()
