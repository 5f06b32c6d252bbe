"""
The default transport: a bounded pool of persistent connections to one endpoint.

- Requests go out in order, each as soon as a connection is free. One timer watches all deadlines, so a timeout is at most a
  twentieth late.
- Work is shared between requests: the head is rendered once, sockets are read together (:mod:`mqhooks.http.sockets`), and
  recurring short answers are not parsed again.
- Bytes that an endpoint sends before any request must not count as an answer. So the first connection to an endpoint is watched
  for a moment before it is used; once one has stayed quiet, later ones are used at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.delivery import Head, Request, Response
from mqhooks.errors import ConnectFailed, ConnectionBroken, DeliveryError, DeliveryTimeout
from mqhooks.http import lookups
from mqhooks.http.connection import Exchange, HTTPConnection
from mqhooks.http.proxy import AUTHENTICATION_REQUIRED, ProxySettings
from mqhooks.http.request import Renderer, endpoint_for, target, unwritable
from mqhooks.http.sockets import Channel, Sockets, sockets
from mqhooks.http.tls import TLSChannel, TLSSettings, client_context, no_handshake
from mqhooks.interfaces import ICallbackTransport

CLOSING_TIME = 1.0
"""Seconds that connections have to close before they are aborted."""

MAX_AGE = 300.0
"""Lifetime of a connection, in seconds. It is bounded so that a DNS change takes effect without a restart."""

QUIET = 0.02
"""Seconds that the first connection to an endpoint has to stay quiet before it is used."""

LONG_IDLE = 1.0
"""Seconds of idle time from which a connection's socket is checked before use."""


@implementer(ICallbackTransport)
class PooledTransport:
    """
    Keeps connections to one endpoint, at most ``size`` of them open or opening.

    :param reactor: for connections and time.
    :param url: the endpoint; only scheme, host and port matter.
    :param size: maximum number of connections.
    :param timeout: seconds that a request may take, including the wait for a connection.
    :param tls: for ``https``; ``None`` for the system's authorities and no client certificate.
    :param max_age: lifetime of a connection, in seconds.
    :param by: makes the connections' sockets; ``None`` for the fastest that the reactor supports.
    :param endpoint: connects; ``None`` for the URL's host and port.
    :param proxy: the proxy for requests; ``None`` to connect directly to the endpoint.
    :param resend: whether to send a request again if the endpoint was just closing its idle connection.
    :raises mqhooks.errors.ConfigError: when a TLS file cannot be used.
    :ivar known: recurring short answers by their bytes; they are not parsed again.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        size: int = 32,
        timeout: float = 5.0,
        tls: TLSSettings | None = None,
        max_age: float = MAX_AGE,
        by: Sockets | None = None,
        endpoint: IStreamClientEndpoint | None = None,
        proxy: ProxySettings | None = None,
        resend: bool = True,
    ) -> None:
        self.known: dict[bytes, Response] = {}
        at = target(url)
        self._target = at
        self._name = at.origin
        self._context = client_context(tls) if at.scheme == "https" else None
        self._sockets = sockets(reactor) if by is None else by
        # A proxy that sees the requests; through a tunnel it does not.
        self._proxy = proxy if at.scheme == "http" else None
        self._endpoint = endpoint_for(reactor, at, timeout, proxy) if endpoint is None else endpoint
        self._clock = reactor
        self._seconds = reactor.seconds
        self._size = size
        self._timeout = timeout
        self._max_age = max_age
        self._resend = resend
        self._renderer = Renderer(Head("POST", url, ()), self._proxy)
        self._quiet = False
        self._connecting: set[Deferred[Any]] = set()
        self._connections: set[HTTPConnection] = set()
        # Connections that cannot be used yet, with the timer that ends their quiet time.
        self._opening: dict[HTTPConnection, IDelayedCall | None] = {}
        self._refusals: dict[HTTPConnection, str] = {}
        self._idle: list[HTTPConnection] = []
        self._waiting: deque[Exchange] = deque()
        self._watch: IDelayedCall | None = None
        self._closed: Deferred[None] | None = None
        self._left: list[Deferred[None]] = []

    @property
    def connections(self) -> int:
        """Number of connections that are open or opening."""
        return len(self._connections) + len(self._connecting)

    def send(self, request: Request) -> Deferred[Response]:
        """See :class:`~mqhooks.interfaces.IWebhookTransport`."""
        answered: Deferred[Response] = Deferred()

        def done(result: Response | DeliveryError) -> None:
            if isinstance(result, Response):
                answered.callback(result)
            else:
                answered.errback(result)

        self.submit(request, done)
        return answered

    def submit(self, request: Request, done: Callable[[Response | DeliveryError], object]) -> None:
        """See :class:`~mqhooks.interfaces.ICallbackTransport`."""
        renderer = self._renderer
        try:
            if request.head is not renderer.head:
                renderer = self._renderer = Renderer(request.head, self._proxy)
            data = renderer.render(request)
        except UnicodeError as error:
            done(unwritable(self._name, error))
            return
        if self._proxy is not None:
            done = partial(self._passed_on, self._proxy, done)
        since = self._seconds()
        exchange = Exchange(data, done, since, resent=not self._resend)
        if request.method == "HEAD" or renderer.asks_for_head:
            exchange.bodiless = True
        connection = self._free(since) if self._idle else None
        if connection is not None:
            connection.start(exchange)
        elif self._closed is not None:
            self._refuse(exchange)
            return
        else:
            self._waiting.append(exchange)
            self._open()
        if self._watch is None:
            self._watch = self._clock.callLater(self._timeout / 20, self._look)

    def _passed_on(
        self, proxy: ProxySettings, done: Callable[[Response | DeliveryError], object], result: Response | DeliveryError
    ) -> None:
        if isinstance(result, Response) and result.status == AUTHENTICATION_REQUIRED:
            result = ConnectFailed(f"{self._name}: {proxy.unauthorized()}")
        done(result)

    def close(self) -> Deferred[None]:
        """See :class:`~mqhooks.interfaces.IWebhookTransport`."""
        waiting: Deferred[None] = Deferred()
        if self._closed is None:
            self._closed = Deferred()
            self._end()
        if self._closed.called:
            waiting.callback(None)
        else:
            self._left.append(waiting)
        return waiting

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            self._refuse(self._waiting.popleft())
        for connecting in list(self._connecting):
            connecting.cancel()
        for connection in list(self._connections):
            if connection.exchange is not None:
                connection.abandon(ConnectionBroken(f"{self._name}: the transport was closed before an answer came"))
            elif connection in self._opening:
                connection.channel.abort()
            else:
                connection.channel.close()
        self._idle.clear()
        late = self._clock.callLater(CLOSING_TIME, self._abort)
        assert self._closed is not None
        self._closed.addCallback(lambda _: late.cancel() if late.active() else None)
        self._check_closed()

    # Connections call these: see Owner.

    def answered(self, connection: HTTPConnection, exchange: Exchange, response: Response) -> None:
        """Hand over an answer, and use its connection for the next request, or keep it."""
        now = self._seconds()
        connection.idle_since = now
        if connection.channel.behind and response.status >= 300:
            # The endpoint wants no more of this request, and may never read what would come behind it.
            connection.channel.abort()
        elif now > connection.expires:
            connection.channel.close()
        elif self._waiting:
            connection.start(self._waiting.popleft())
        elif self._closed is None:
            self._idle.append(connection)
        else:
            connection.channel.close()
        exchange.done(response)

    def ended(self, exchange: Exchange, result: Response | DeliveryError) -> None:
        """Hand over the result of an exchange whose connection cannot be used again."""
        exchange.done(result)

    def unfit(self, connection: HTTPConnection) -> None:
        """Stop using a connection that brought unsolicited bytes."""
        self._quiet = False
        if connection in self._opening:
            self._refusals[connection] = "it sent something before any request"
        elif connection in self._idle:
            self._idle.remove(connection)

    def lost(self, connection: HTTPConnection, reason: str) -> None:
        """Forget a connection, and open another if requests wait."""
        reason = self._refusals.pop(connection, reason)
        opening = connection in self._opening
        self._settled(connection)
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if opening:
            self._refused(reason)
        else:
            self._open()
            self._check_closed()

    def resend(self, exchange: Exchange) -> None:
        """Send a request again, ahead of the waiting ones."""
        if self._closed is not None:
            self._refuse(exchange)
        else:
            self._waiting.appendleft(exchange)
            self._open()

    # Connecting.

    def _open(self) -> None:
        while (
            self._closed is None
            and len(self._connecting) + len(self._opening) < len(self._waiting)
            and self.connections < self._size
        ):
            connecting: Deferred[Any] = self._sockets.connect(self._endpoint)
            self._connecting.add(connecting)
            connecting.addCallbacks(self._connected, self._not_connected, (connecting,), {}, (connecting,))

    def _not_connected(self, failure: Failure, connecting: Deferred[Any]) -> None:
        self._connecting.discard(connecting)
        self._refused(lookups.connect_problem(failure.value, self._target.host))

    def _connected(self, channel: Channel, connecting: Deferred[Any]) -> None:
        self._connecting.discard(connecting)
        if self._context is not None:
            channel = TLSChannel(channel, self._context, self._target.host, self._target.port)
        connection = HTTPConnection(self, channel, self._seconds())
        connection.expires = connection.born + self._max_age
        channel.receiver = connection
        self._connections.add(connection)
        self._opening[connection] = None
        if isinstance(channel, TLSChannel):
            channel.handshake(partial(self._opened, connection))
        else:
            self._opened(connection)

    def _opened(self, connection: HTTPConnection) -> None:
        if connection not in self._opening or connection in self._refusals:
            return
        if self._quiet and not connection.channel.pending():
            self._ready(connection)
        else:
            self._opening[connection] = self._clock.callLater(QUIET, self._listened, connection)

    def _listened(self, connection: HTTPConnection) -> None:
        self._opening[connection] = None
        self._quiet = not connection.channel.pending()
        self._opened(connection)

    def _ready(self, connection: HTTPConnection) -> None:
        self._settled(connection)
        if self._waiting:
            connection.start(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _settled(self, connection: HTTPConnection) -> None:
        timer = self._opening.pop(connection, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _refused(self, reason: str) -> None:
        if self._waiting:
            self._waiting.popleft().done(ConnectFailed(f"{self._name}: {reason}"))
        self._open()
        self._check_closed()

    def _refuse(self, exchange: Exchange) -> None:
        exchange.done(ConnectFailed(f"{self._name}: the transport was closed before the request was sent"))

    def _free(self, now: float) -> HTTPConnection | None:
        """Take an idle connection that is fit for use, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < LONG_IDLE:
                return connection
            if now > connection.expires:
                connection.channel.close()
            elif connection.channel.pending():
                connection.channel.abort()
            else:
                return connection
        return None

    # Deadlines, and the end.

    def _look(self) -> None:
        self._watch = None
        begun = self._seconds() - self._timeout
        for connection in self._connections.difference(self._idle):
            if connection in self._opening:
                if connection.born <= begun and connection not in self._refusals:
                    self._refusals[connection] = no_handshake(self._timeout)
                    connection.channel.abort()
            elif connection.exchange is None:
                # It is closing, but its last bytes may never get through.
                if connection.idle_since <= begun:
                    connection.channel.abort()
            elif connection.exchange.since <= begun:
                connection.abandon(DeliveryTimeout(f"{self._name}: no answer within {self._timeout:g} s"))
        # With a connection open, the endpoint is slow; with none, it cannot be reached.
        kind = DeliveryTimeout if len(self._connections) > len(self._opening) else ConnectFailed
        shaking = self._context is not None and len(self._connections) == len(self._opening) > 0
        words = no_handshake(self._timeout) if shaking else f"no connection within {self._timeout:g} s"
        while self._waiting and self._waiting[0].since <= begun:
            self._waiting.popleft().done(kind(f"{self._name}: {words}"))
        busy = self._waiting or len(self._connections) > len(self._idle)
        if busy and self._watch is None and self._closed is None:
            self._watch = self._clock.callLater(self._timeout / 20, self._look)

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.channel.abort()

    def _check_closed(self) -> None:
        if self._closed is not None and not self._closed.called and not self.connections:
            self._closed.callback(None)
            left, self._left = self._left, []
            for waiting in left:
                waiting.callback(None)
