"""
An HTTP agent whose pool keeps its promises: never more connections than it may have, and none that waits for ever.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IConsumer, IProtocol, IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import URI, ResponseDone
from twisted.web.error import SchemeNotSupported
from twisted.web.http import RESPONSES
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from mqhooks.errors import BadAnswer, DeliveryError
from mqhooks.webhook.connection import MAX_BODY, Answer
from mqhooks.webhook.pool import ConnectionPool
from mqhooks.webhook.settings import TLSSettings
from mqhooks.webhook.tls import tls_options


@implementer(IAgent)
class PooledAgent:
    """
    A pool of connections for each scheme, host and port.

    Requests and answers are held in memory whole; an answer's body may have :data:`~mqhooks.webhook.connection.MAX_BODY` bytes.

    :param reactor: connects and tells the time.
    :param size: how many connections a pool may have.
    :param timeout: seconds until a request without a whole answer fails.
    :param tls: for ``https``.
    """

    def __init__(self, reactor: Any, *, size: int = 32, timeout: float = 5.0, tls: TLSSettings | None = None) -> None:
        self._reactor = reactor
        self._size = size
        self._timeout = timeout
        self._tls = tls
        self._pools: dict[tuple[bytes, bytes, int], ConnectionPool] = {}

    def pool(self, uri: URI) -> ConnectionPool:
        """
        Get the connections to where a URL points.

        :raises twisted.web.error.SchemeNotSupported: when it is neither ``http`` nor ``https``.
        :raises mqhooks.errors.ConfigError: when the certificates don't serve.
        """
        key = (uri.scheme, uri.host, uri.port)
        if key not in self._pools:
            host = uri.host.decode("ascii")
            endpoint: Any = HostnameEndpoint(self._reactor, host, uri.port, timeout=self._timeout)
            if uri.scheme == b"https":
                endpoint = wrapClientTLS(tls_options(host, self._tls), endpoint)
            elif uri.scheme != b"http":
                raise SchemeNotSupported(f"Unsupported scheme: {uri.scheme!r}")
            name = f"{uri.scheme.decode()}://{uri.netloc.decode()}"
            self._pools[key] = ConnectionPool(self._reactor, endpoint, name, self._size, self._timeout)
        return self._pools[key]

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """
        Send a request.

        :returns: a ``Deferred`` of the answer; it fails with a :class:`~mqhooks.errors.DeliveryError` when there is none.
        """
        parsed = URI.fromBytes(uri)
        pool = self.pool(parsed)
        fields = headers.copy() if headers is not None else Headers()
        if not fields.hasHeader(b"host"):
            fields.setRawHeaders(b"host", [parsed.netloc])
        body = succeed(b"") if bodyProducer is None else _collect(bodyProducer)

        def send(content: bytes) -> Deferred[IResponse]:
            if content or bodyProducer is not None:
                fields.setRawHeaders(b"content-length", [b"%d" % len(content)])
            lines = [b"%b %b HTTP/1.1" % (method, parsed.originForm)]
            lines += [b"%b: %b" % (name, value) for name, values in fields.getAllRawHeaders() for value in values]
            answered: Deferred[IResponse] = Deferred()
            pool.send(b"\r\n".join([*lines, b"", content]), lambda result: _fire(answered, result), MAX_BODY)
            return answered

        return body.addCallback(send)

    def close(self) -> Deferred[Any]:
        """
        Close all connections.

        :returns: a ``Deferred`` that fires when none is left.
        """
        return gatherResults([pool.close() for pool in self._pools.values()])


def _fire(answered: Deferred[IResponse], result: Answer | DeliveryError) -> None:
    if isinstance(result, DeliveryError):
        answered.errback(result)
    elif not result.complete and result.length > MAX_BODY:
        answered.errback(BadAnswer(f"its answer is longer than {MAX_BODY} bytes"))
    else:
        answered.callback(_Response(result))


def _collect(producer: IBodyProducer) -> Deferred[bytes]:
    collector = _Collector()
    produced: Deferred[None] = producer.startProducing(collector)
    return produced.addCallback(lambda _: b"".join(collector.pieces))


@implementer(IConsumer)
class _Collector:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def registerProducer(self, producer: object, streaming: bool) -> None:  # noqa: FBT001 - the interface's
        raise RuntimeError("a body producer produces by itself")

    def unregisterProducer(self) -> None:
        raise RuntimeError("a body producer produces by itself")

    def write(self, data: bytes) -> None:
        self.pieces.append(data)


@implementer(IResponse)
class _Response:
    version = (b"HTTP", 1, 1)
    request = None
    previousResponse = None

    def __init__(self, answer: Answer) -> None:
        self.code = answer.status
        self.phrase = RESPONSES.get(answer.status, b"")
        self.headers = Headers()
        for name, value in answer.headers:
            self.headers.addRawHeader(name, value)
        self.length = len(answer.body)
        self._body = answer.body

    def deliverBody(self, protocol: IProtocol) -> None:
        transport: Any = _Delivered()
        protocol.makeConnection(transport)
        if self._body:
            protocol.dataReceived(self._body)
        protocol.connectionLost(Failure(ResponseDone("Response body fully received")))

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response


@implementer(IPushProducer)
class _Delivered:
    """The transport of a body that is there already."""

    disconnecting = False

    def pauseProducing(self) -> None:
        """Nothing more comes."""

    def resumeProducing(self) -> None:
        """Nothing more comes."""

    def stopProducing(self) -> None:
        """Nothing more comes."""

    def loseConnection(self) -> None:
        """Nothing more comes."""
