"""
The transport for rare cases: it sends through treq, over any agent of Twisted's or treq's.

- It costs many times as much as the pooled transport and keeps the same contract: one response or typed failure, no redirects,
  no cookies, bounded bodies, and a status that counts as soon as it has come.
- Twisted's agent hides an answer's status until the whole request is written, so bodies are written at once. After a long body
  its connection is not used again: the endpoint may have answered without reading it.
- treq never sees the real URL, since it cannot cope with IPv6 addresses or names with an underscore. Only the agent gets it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from OpenSSL import SSL
from treq.client import HTTPClient
from twisted.internet import error as internet
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IConsumer, IDelayedCall, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web import client as web
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from mqhooks.delivery import Request, Response
from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryError, DeliveryTimeout
from mqhooks.http import lookups
from mqhooks.http.limits import KEEP, MAX_BODY
from mqhooks.http.policy import VerifyingPolicy
from mqhooks.http.pooled import MAX_AGE
from mqhooks.http.proxy import AUTHENTICATION_REQUIRED, ProxySettings
from mqhooks.http.request import endpoint_for, origin_form, target, unwritable
from mqhooks.interfaces import IWebhookTransport
from mqhooks.support.tls import TLSSettings, no_handshake

LONG = 1 << 16
"""Bytes of a body that a connection which is used again takes without waiting for the endpoint to read."""

_NOT_CONNECTED = (internet.ConnectError, internet.DNSLookupError, internet.UnsupportedAddressFamily)
_ENDED = (internet.ConnectionDone, internet.ConnectionLost, internet.ConnectionAborted, SSL.Error, CancelledError)


@implementer(IWebhookTransport)
class TreqTransport:
    """
    Sends each request through an agent.

    :param reactor: for time, and for connections without an ``agent``.
    :param url: the endpoint: for messages, and for connections without an ``agent``.
    :param agent: sends the requests; its owner closes it. ``None`` for Twisted's own, made from ``size`` and ``tls``. Another
        agent decides what becomes of an answer that comes before a long request is written.
    :param timeout: seconds that a request may take.
    :param size: idle connections that Twisted's agent keeps.
    :param tls: for Twisted's agent.
    :param max_age: seconds until Twisted's agent opens new connections, so that a DNS change takes effect.
    :param endpoint: connects Twisted's agent; ``None`` for the URL's host and port.
    :param keep: bytes of an answer's body to keep.
    :param proxy: the proxy for Twisted's agent; ``None`` to connect directly to the endpoint.
    :raises mqhooks.errors.ConfigError: when a TLS file cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        agent: IAgent | None = None,
        *,
        timeout: float = 5.0,
        size: int = 32,
        tls: TLSSettings | None = None,
        max_age: float = MAX_AGE,
        endpoint: IStreamClientEndpoint | None = None,
        keep: int = KEEP,
        proxy: ProxySettings | None = None,
    ) -> None:
        at = target(url)
        self._target = at
        self._name = at.origin
        self._clock = reactor
        self._timeout = timeout
        self._keep = keep
        self._policy: VerifyingPolicy | None = None
        self._pool: web.HTTPConnectionPool | None = None
        self._under_way: set[_Attempt] = set()
        self._ending: dict[_Connection, IDelayedCall] = {}
        self._closed = False
        self._size = size
        self._max_age = max_age
        self._expires = float("inf")
        # A proxy that sees the requests; through a tunnel it does not.
        self._proxy = proxy if agent is None and at.scheme == "http" else None
        if agent is None:
            if at.scheme == "https":
                self._policy = VerifyingPolicy(tls)
            self._endpoint = endpoint_for(reactor, at, timeout, proxy) if endpoint is None else endpoint
            agent = self._new_agent()
        self._agent = agent
        self._long_agent = agent if self._pool is None else self._agent_over(None)
        self._cookies: Any = CookieJar(DefaultCookiePolicy(allowed_domains=[]))

    def send(self, request: Request) -> Deferred[Response]:
        """See :class:`~mqhooks.interfaces.IWebhookTransport`."""
        if self._closed:
            return fail(ConnectFailed(f"{self._name}: the transport was closed before the request was sent"))
        head = request.head
        at = target(head.url)
        url = at.url if request.path is None else at.origin + origin_form(request.path)
        fields = Headers()
        ours = [] if self._proxy is None else self._proxy.headers
        try:
            address = url.encode("ascii")
            for name, value in (*ours, *head.headers, *request.headers):
                fields.addRawHeader(name, value)
        except UnicodeError as error:
            return fail(unwritable(self._name, error))
        if self._clock.seconds() >= self._expires:
            self._agent = self._new_agent()
        attempt = _Attempt(self._explain, self._keep)
        self._under_way.add(attempt)
        timer = self._clock.callLater(self._timeout, self._late, attempt)

        def over(result: Response | Failure) -> Response | Failure:
            self._under_way.discard(attempt)
            if timer.active():
                timer.cancel()
            refused = isinstance(result, Response) and result.status == AUTHENTICATION_REQUIRED
            if self._proxy is not None and refused:
                return Failure(ConnectFailed(f"{self._name}: {self._proxy.unauthorized()}"))
            return result

        attempt.result.addBoth(over)
        method = request.method or head.method
        body = request.body
        client = HTTPClient(_Exactly(self._long_agent if len(body) > LONG else self._agent, address), self._cookies)
        # An agent of somebody else's may use the connection again before the endpoint has read all.
        data = _AtOnce(body) if body and self._pool is not None else body
        more: dict[str, Any] = {"headers": fields, "data": data, "allow_redirects": False, "unbuffered": True}
        attempt.begin(maybeDeferred(client.request, method, "http://endpoint/", **more))
        return attempt.result

    def _new_agent(self) -> IAgent:
        """Make an agent with a pool of its own; connections of the previous agent are closed as soon as they are idle."""
        old, self._pool = self._pool, web.HTTPConnectionPool(self._clock)
        if old is not None:
            old.cachedConnectionTimeout = 0
            old.closeCachedConnections()
        self._pool.maxPersistentPerHost = self._size
        self._expires = self._clock.seconds() + self._max_age
        return self._agent_over(self._pool)

    def _agent_over(self, pool: web.HTTPConnectionPool | None) -> IAgent:
        """Make an agent that keeps its connections in a pool, or uses each of them once."""
        agent: IAgent
        if self._proxy is not None:
            agent = web.ProxyAgent(_Ending(self._endpoint, self._end), self._clock, pool)
        else:
            agent = web.Agent.usingEndpointFactory(self._clock, _Endpoints(self._endpoint, self._policy, self._end), pool)
        return agent

    def _end(self, connection: _Connection) -> None:
        """Abort a connection that is to close and cannot: its endpoint does not read the rest of a request."""
        if connection not in self._ending:
            self._ending[connection] = self._clock.callLater(self._timeout, connection.abortConnection)
            connection.lost.addCallback(self._ended)

    def _ended(self, connection: _Connection) -> None:
        timer = self._ending.pop(connection)
        if timer.active():
            timer.cancel()

    def _late(self, attempt: _Attempt) -> None:
        if self._policy is not None and self._policy.unanswered:
            attempt.give_up(ConnectFailed(f"{self._name}: {no_handshake(self._timeout)}"))
        else:
            attempt.give_up(DeliveryTimeout(f"{self._name}: no answer within {self._timeout:g} s"))

    def close(self) -> Deferred[None]:
        """See :class:`~mqhooks.interfaces.IWebhookTransport`. A given agent's connections are left to its owner."""
        self._closed = True
        under_way = list(self._under_way)
        for attempt in under_way:
            attempt.give_up(ConnectionBroken(f"{self._name}: the transport was closed before an answer came"))
        if self._pool is None:
            return succeed(None)
        ending = list(self._ending)
        for connection in ending:
            connection.abortConnection()
        closed: Deferred[None] = self._pool.closeCachedConnections()
        if under_way or ending:
            # Their connections are closed in the next turn.
            closed.addCallback(lambda _: deferLater(self._clock, 0))
        return closed.addCallback(lambda _: None)

    def _explain(self, failure: Failure) -> DeliveryError:
        error = _root(failure)
        if isinstance(error, DeliveryError):
            return error
        if isinstance(error, SSL.Error) and self._policy is not None:
            words, nothing_sent = self._policy.explain(error, self._target.host, self._target.port)
            return ConnectFailed(f"{self._name}: {words}") if nothing_sent else ConnectionBroken(f"{self._name}: {words}")
        words = lookups.connect_problem(error, self._target.host)
        if isinstance(error, _NOT_CONNECTED):
            return ConnectFailed(f"{self._name}: {words}")
        if failure.check(web.ResponseFailed, web.ResponseNeverReceived) and not isinstance(error, _ENDED):
            return BadAnswer(f"{self._name}: its answer is not HTTP: {words}")
        return ConnectionBroken(f"{self._name}: {words}")


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Returns the same endpoint for every request."""

    def __init__(
        self, endpoint: IStreamClientEndpoint, policy: VerifyingPolicy | None, end: Callable[[_Connection], object]
    ) -> None:
        self._endpoint = endpoint
        self._policy = policy
        self._end = end

    def endpointForURI(self, uri: web.URI) -> IStreamClientEndpoint:
        endpoint = self._endpoint
        if self._policy is not None:
            endpoint = wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
        return _Ending(endpoint, self._end)


@implementer(IStreamClientEndpoint)
class _Ending:
    """Connects as another endpoint does, and tells when a connection is to be closed."""

    def __init__(self, endpoint: IStreamClientEndpoint, end: Callable[[_Connection], object]) -> None:
        self._endpoint = endpoint
        self._end = end

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        factory: WrappingFactory[_Connection] = WrappingFactory(protocolFactory)
        factory.noisy = False
        factory.protocol = partial(_Connection, self._end)
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(lambda connection: connection.wrappedProtocol)


class _Connection(ProtocolWrapper):
    """
    The agent's connection.

    :ivar lost: fires with it when it is closed.
    """

    def __init__(self, end: Callable[[_Connection], object], factory: WrappingFactory[_Connection], wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self.lost: Deferred[_Connection] = Deferred()
        self._end = end

    def loseConnection(self) -> None:
        self._end(self)
        super().loseConnection()

    def stopProducing(self) -> None:
        self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.lost.callback(self)


@implementer(IBodyProducer)
class _AtOnce:
    """Writes a body at once, so that the request counts as written."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


@implementer(IAgent)
class _Exactly:
    """Requests the real URL: treq accepts neither IPv6 addresses nor names with an underscore."""

    def __init__(self, agent: IAgent, url: bytes) -> None:
        self._agent = agent
        self._url = url

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        return self._agent.request(method, self._url, headers, bodyProducer)


class _Attempt(Protocol):
    """
    One request in flight, and the reader of its answer's body.

    :param explain: turns the agent's failure into our error.
    :param keep: bytes of the body to keep.
    :ivar result: fires with the response, or fails.
    """

    def __init__(self, explain: Callable[[Failure], DeliveryError], keep: int) -> None:
        self.result: Deferred[Response] = Deferred(lambda _: self.give_up(ConnectionBroken("cancelled")))
        self._explain = explain
        self._keep = keep
        self._requesting: Deferred[Any] | None = None
        self._response: IResponse | None = None
        self._kept = bytearray()
        self._length = 0

    def begin(self, requesting: Deferred[Any]) -> None:
        """Wait for the answer's head."""
        self._requesting = requesting
        requesting.addCallbacks(self._head_came, self._failed)

    def give_up(self, error: DeliveryError) -> None:
        """Stop waiting. A status that has come already still counts."""
        if self._response is None:
            self._end(error)
            if self._requesting is not None:
                self._requesting.cancel()
        else:
            self._stop()

    def _head_came(self, response: Any) -> None:
        if not 200 <= response.code < 600:
            self._end(BadAnswer(f"it answered with status {response.code:03}, which is not an HTTP status"))
        unwanted = self.result.called
        self._response = response
        response.deliverBody(self)
        if unwanted:
            self._stop()

    def _failed(self, failure: Failure) -> None:
        self._end(self._explain(failure))

    def dataReceived(self, data: bytes) -> None:
        """Keep the beginning of the body."""
        self._length += len(data)
        if len(self._kept) < self._keep:
            self._kept += data[: self._keep - len(self._kept)]
        if self._length > MAX_BODY:
            self._stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note the end of the body."""
        self._answer(whole=reason.check(web.ResponseDone) is not None)

    def _stop(self) -> None:
        self._answer(whole=False)
        transport: Any = self.transport
        if transport is not None:
            transport.stopProducing()

    def _answer(self, *, whole: bool) -> None:
        response = self._response
        assert response is not None
        pairs = [(name, value) for name, values in response.headers.getAllRawHeaders() for value in values]
        whole = whole and self._length == len(self._kept)
        self._end(Response(response.code, pairs, bytes(self._kept), self._length, whole))

    def _end(self, result: Response | DeliveryError) -> None:
        if self.result.called:
            return
        if isinstance(result, Response):
            self.result.callback(result)
        else:
            self.result.errback(result)


def _root(failure: Failure) -> BaseException | None:
    """Find the error that an agent's failure wraps."""
    reasons: list[Failure] = list(getattr(failure.value, "reasons", None) or [])
    if not reasons:
        return failure.value
    found = [_root(reason) for reason in reasons]
    return next((error for error in found if not isinstance(error, _ENDED)), found[0])
