"""
The connections to one endpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from mqhooks.errors import ConnectFailed, ConnectionBroken, DeliveryError, DeliveryTimeout
from mqhooks.readiness import Readiness
from mqhooks.support.histogram import Histogram
from mqhooks.webhook.connection import Answer, Exchange, HTTPConnection
from mqhooks.webhook.counters import ANSWERS

ENOUGH = 128
"""How many answers are read in one turn of the reactor."""

CLOSING_TIME = 1.0
"""How many seconds connections get to close before they are aborted."""


class ConnectionPool:
    """
    Persistent connections, at most ``size`` of them open or opening at any moment.

    Requests go out as soon as one is free, in the order they came. One timer watches the deadlines of all of them, so a request
    is given up at most a twentieth of ``timeout`` late.

    :param reactor: tells the time.
    :param endpoint: connects.
    :param name: what is connected to, for errors.
    :param size: how many connections.
    :param timeout: seconds that a request may take, the wait for a connection included.
    :ivar readiness: watches the connections' sockets.
    :ivar known: see :class:`~mqhooks.webhook.connection.ConnectionOwner`.
    :ivar answers: how long the answers took, the wait for a connection included.
    """

    def __init__(self, reactor: IReactorTime, endpoint: IStreamClientEndpoint, name: str, size: int, timeout: float) -> None:
        self.known: dict[bytes, Answer] = {}
        self.readiness = Readiness(reactor, "webhook", ENOUGH) if Readiness.possible(reactor) else None
        self.answers = Histogram(ANSWERS)
        self._clock = reactor
        self._seconds = reactor.seconds
        self._endpoint = endpoint
        self._factory = _Factory(self)
        self._name = name
        self._size = size
        self._timeout = timeout
        self._interval = timeout / 20
        self._connections: set[HTTPConnection] = set()
        self._idle: list[HTTPConnection] = []
        self._connecting: set[Deferred[Any]] = set()
        self._waiting: deque[Exchange] = deque()
        self._watch: IDelayedCall | None = None
        self._closed: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """How many connections are open or opening."""
        return len(self._connections) + len(self._connecting)

    def send(self, request: bytes, done: Any, keep: int) -> None:
        """
        Send a request.

        :param request: all its bytes.
        :param done: called once, with an :class:`~mqhooks.webhook.connection.Answer` or a
            :class:`~mqhooks.errors.DeliveryError`; possibly before this method returns.
        :param keep: how many bytes of the answer's body are wanted.
        """
        exchange = Exchange(request, done, keep, self._seconds())
        if self._closed is not None:
            self._refuse(exchange)
            return
        if self._idle:
            self._idle.pop().start(exchange)
        else:
            self._waiting.append(exchange)
            self._open()
        if self._watch is None:
            self._watch = self._clock.callLater(self._interval, self._look)

    def afterwards(self, callback: Callable[[], object]) -> None:
        """Call something once when all answers that are here have been handed over; at once when none is."""
        if self.readiness is not None and self.readiness.reading:
            self.readiness.afterwards(callback)
        else:
            callback()

    def resend(self, exchange: Exchange) -> None:
        """Send a request again, before those that wait."""
        if self._closed is not None:
            self._refuse(exchange)
        else:
            self._waiting.appendleft(exchange)
            self._open()

    def close(self) -> Deferred[None]:
        """
        Close all connections; requests without an answer fail.

        :returns: a ``Deferred`` that fires when no connection is left.
        """
        if self._closed is not None:
            return self._closed
        closed: Deferred[None] = Deferred()
        self._closed = closed
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            self._refuse(self._waiting.popleft())
        for connecting in list(self._connecting):
            connecting.cancel()
        for connection in list(self._connections):
            if connection.exchange is None:
                connection.close()
            else:
                connection.abandon(ConnectionBroken(f"{self._name}: closed before an answer came"))
        late = self._clock.callLater(CLOSING_TIME, self._abort)
        closed.addCallback(lambda _: late.cancel() if late.active() else None)
        self._check_closed()
        return closed

    def answered(self, connection: HTTPConnection, exchange: Exchange, answer: Answer) -> None:
        """Use a free connection for what waits, or keep it; hand its last answer over."""
        if self._waiting or self._closed is not None:
            self._use(connection)
        else:
            self._idle.append(connection)
        self.answers.observe(self._seconds() - exchange.since)
        exchange.done(answer)

    def ended(self, exchange: Exchange, result: Answer | DeliveryError) -> None:
        """Hand over what came of an exchange whose connection can serve no other."""
        if isinstance(result, Answer):
            self.answers.observe(self._seconds() - exchange.since)
        exchange.done(result)

    def _use(self, connection: HTTPConnection) -> None:
        if self._waiting:
            connection.start(self._waiting.popleft())
        elif self._closed is None:
            self._idle.append(connection)
        else:
            connection.close()

    def unfit(self, connection: HTTPConnection) -> None:
        """Use a connection for nothing more."""
        if connection in self._idle:
            self._idle.remove(connection)

    def lost(self, connection: HTTPConnection) -> None:
        """Forget a connection, and open another when something waits."""
        self._connections.discard(connection)
        self.unfit(connection)
        self._open()
        self._check_closed()

    def _refuse(self, exchange: Exchange) -> None:
        exchange.done(ConnectFailed(f"{self._name}: closed before it was sent"))

    def _open(self) -> None:
        while self._closed is None and len(self._connecting) < len(self._waiting) and self.connections < self._size:
            connecting: Deferred[Any] = self._endpoint.connect(self._factory)
            self._connecting.add(connecting)
            connecting.addBoth(self._connected_or_not, connecting)

    def _connected_or_not(self, result: Any, connecting: Deferred[Any]) -> None:
        self._connecting.discard(connecting)
        if isinstance(result, Failure):
            self._refused(result)
        else:
            self._connected(result)

    def _connected(self, protocol: Any) -> None:
        self._connections.add(protocol)
        self._use(protocol)

    def _refused(self, failure: Failure) -> None:
        if self._waiting:
            self._waiting.popleft().done(ConnectFailed(f"{self._name}: {_cause(failure)}"))
        self._open()
        self._check_closed()

    def _look(self) -> None:
        self._watch = None
        begun = self._seconds() - self._timeout
        late = DeliveryTimeout(f"{self._name}: no answer within {self._timeout:g} s")
        for connection in list(self._connections):
            if connection.exchange is not None and connection.exchange.since <= begun:
                connection.abandon(late)
        while self._waiting and self._waiting[0].since <= begun:
            self._waiting.popleft().done(DeliveryTimeout(f"{self._name}: no connection within {self._timeout:g} s"))
        busy = self._waiting or any(connection.exchange is not None for connection in self._connections)
        if busy and self._watch is None and self._closed is None:
            self._watch = self._clock.callLater(self._interval, self._look)

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    def _check_closed(self) -> None:
        if self._closed is not None and not self._closed.called and not self.connections:
            self._closed.callback(None)


class _Factory(Factory):
    noisy = False

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return HTTPConnection(self._pool)


def _cause(failure: Failure) -> str:
    error = failure.value
    reasons = getattr(error, "reasons", None)
    if reasons:
        return "; ".join(_cause(reason) for reason in reasons)
    if error is not None and error.args and isinstance(error.args[0], list):
        return "; ".join(str(entry[-1]) for entry in error.args[0]) or type(error).__name__
    return str(error) or type(error).__name__
