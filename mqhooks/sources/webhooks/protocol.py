"""
One of VerneMQ's connections: HTTP/1.1, requests in, answers out in the same order.

- VerneMQ 2.2.0 writes head and body separately, and between them waits for the head's TCP acknowledgement, which the kernel
  would delay by 40 ms. So an incomplete request is acknowledged at once (``TCP_QUICKACK``, which has to be set each time).
- Answers go straight to the socket, which saves a fifth of an event's cost. Once the socket has not taken all of an answer, the
  rest and all later answers of the connection go through Twisted's transport.
- Connections stay open: closing one may lose a request that is on its way. We close one only when there is no telling where the
  next request begins, or when it is slow or idle for too long.
"""

from __future__ import annotations

import socket
from collections import deque
from http import HTTPStatus
from typing import Any, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from twisted.internet.interfaces import IPushProducer, ITCPTransport, ITransport
from twisted.internet.protocol import Protocol as BaseProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.sources.sidecar.longframes import COMMON, LONG, LongFrames
from mqhooks.sources.webhooks.access import AccessGuard
from mqhooks.sources.webhooks.answers import CONTINUE, NEXT, NEXT_BYTES, Answer, problem
from mqhooks.sources.webhooks.counters import WebhooksCounters
from mqhooks.sources.webhooks.decode import HOOKS, Hook
from mqhooks.support.listening import address_name

MAX_HEAD = 16 << 10
"""Most bytes in a request's head."""

PIPELINED = 64
"""Requests of one connection that may wait for their answers before reading stops."""

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_TOO_LONG = problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the request's head has more than {MAX_HEAD} bytes")
_NOT_HTTP = problem(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP request")
_UPGRADE = problem(HTTPStatus.BAD_REQUEST, "there is nothing to upgrade to: send a plain HTTP/1.1 request")
_NO_HOOK = problem(HTTPStatus.BAD_REQUEST, "the header vernemq-hook is missing: requests of VerneMQ's vmq_webhooks have it")
_LATE = problem(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time")


class _RefusedHeadError(Exception):
    """Stops the parser when a request's head is too long."""


class WebhooksOwner(Protocol):
    """
    The interface of a factory that connections' protocols need.

    :ivar guard: decides who may post.
    :ivar counters: the source's counters.
    :ivar max_body: bytes; longer bodies are refused.
    :ivar long_bodies: decides which connections are read while unfinished bodies take too much memory.
    :ivar common_bodies: likewise, for bodies of up to a MiB.
    """

    guard: AccessGuard
    counters: WebhooksCounters
    max_body: int
    long_bodies: LongFrames
    common_bodies: LongFrames

    def seconds(self) -> float:
        """Return the time, in the reactor's seconds."""

    def joined(self, protocol: WebhooksProtocol) -> None:
        """Note a new connection."""

    def left(self, protocol: WebhooksProtocol, *, cut: bool) -> None:
        """Note that a connection ended."""

    def count_question(self, hook: bytes) -> bool:
        """Count a request if it is a question to an authorizer, and return whether it is."""

    def take(self, exchange: HookExchange, hook: Hook, body: bytes) -> None:
        """Take a request's event, and answer the request."""

    def complain(self, protocol: WebhooksProtocol, kind: str, complaint: str) -> None:
        """Log what is wrong with a peer's requests."""


class HookExchange:
    """
    A request that waits for its answer.

    :param protocol: its connection.
    :param chain: whether VerneMQ must be told "next" whatever happens.
    :param connection: the answer's ``Connection`` header; empty for none.
    :param bodiless: whether its answer has no body.
    :ivar answer: the answer's bytes; ``None`` until it is answered.
    :ivar events: events that still have to be committed.
    """

    __slots__ = ("answer", "bodiless", "chain", "connection", "events", "protocol")

    def __init__(self, protocol: WebhooksProtocol, chain: bool, connection: bytes, bodiless: bool) -> None:  # noqa: FBT001
        self.protocol = protocol
        self.chain = chain
        self.connection = connection
        self.bodiless = bodiless
        self.answer: bytes | None = None
        self.events = 1

    def finish(self, answer: Answer) -> None:
        """Answer the request, unless it is answered."""
        if self.answer is not None:
            return
        if answer is NEXT and not self.connection:
            self.answer = NEXT_BYTES
        else:
            self.answer = answer.write(connection=self.connection, bodiless=self.bodiless)
        self.protocol.send()


@implementer(IPushProducer)
class WebhooksProtocol(BaseProtocol):
    """
    Reads one connection's requests, and writes their answers in order.

    :ivar peer: the peer's address, for log lines.
    :ivar began: when the unfinished request began, in the reactor's seconds; ``None`` without one.
    :ivar quiet: when the connection was last used.
    :ivar held: bytes of an unfinished long body that it holds.
    :ivar waiting: whether it is paused until other long bodies have ended.
    """

    factory: WebhooksOwner

    def __init__(self) -> None:
        self.peer = ""
        self.began: float | None = None
        self.quiet = 0.0
        self.held = 0
        self.waiting = False
        self.closing = False
        self._socket: Any = None
        self._direct: Any = None
        self._parser = HttpRequestParser(self)
        self._exchanges: deque[HookExchange] = deque()
        self._choked = False
        self._lost = False
        self._begun = 0
        self._turns: LongFrames
        self._reset()

    def _reset(self) -> None:
        self._head = 0
        self._trickled = 0
        self._url = b""
        self._hook_name = b""
        self._authorization = b""
        self._expects = False
        self._length = 0
        self._hook: Hook | None = None
        self._refusal: Answer | None = None
        self._kept = False
        self._body: bytes | bytearray = b""
        self._came = 0

    # The connection.

    def connectionMade(self) -> None:
        """Set the socket's options, and join the factory's connections."""
        transport: Any = self.transport
        peer = transport.getPeer()
        self.peer = address_name(peer if hasattr(peer, "host") else transport.getHost())
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
            handle = _socket(transport)
            if _QUICKACK is not None:
                self._socket = handle
            if not isinstance(transport, ProtocolWrapper):
                self._direct = handle
        transport.registerProducer(self, True)  # noqa: FBT003 - Twisted's own interface
        self.quiet = self.factory.seconds()
        self.factory.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the factory's connections. Events that this one brought stay accepted."""
        self._lost = True
        self._socket = self._direct = None
        self._hold(0)
        self.factory.left(self, cut=self.began is not None and not self.closing)

    def pauseProducing(self) -> None:
        """Stop reading, because the peer does not read its answers."""
        self._choked = True
        self.regulate()

    def resumeProducing(self) -> None:
        """Resume reading."""
        self._choked = False
        self.regulate()

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost, and :meth:`connectionLost` follows."""

    def regulate(self) -> None:
        """Pause reading if too many answers are due or other connections have their turn; otherwise resume it."""
        transport: Any = self.transport
        if self._lost or self.closing:
            return
        if self._choked or self.waiting or len(self._exchanges) > PIPELINED:
            transport.pauseProducing()
        else:
            transport.resumeProducing()

    def finish(self) -> None:
        """Close the connection once its complete requests are answered. An incomplete one gets no answer."""
        self.closing = True
        self.quiet = self.factory.seconds()
        if not self._exchanges:
            self._close()

    def _close(self) -> None:
        transport: Any = self.transport
        if not self._lost:
            transport.unregisterProducer()
            transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def late(self) -> None:
        """Give up a request that comes too slowly."""
        self._fail(_LATE, "a request did not come in time", "truncated")

    # Reading.

    def dataReceived(self, data: bytes) -> None:
        """Parse the bytes of one read."""
        if self.closing:
            return
        before = None if self.began is None else (self._begun, self._came)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            # The request is answered already.
            return
        except HttpParserError as error:
            if isinstance(error.__context__, _RefusedHeadError):
                self._fail(_TOO_LONG, f"a request's head has more than {MAX_HEAD} bytes")
            else:
                self._fail(_NOT_HTTP, "this is not an HTTP request")
        if self.began is None or self.closing:
            return
        if before == (self._begun, self._came):
            # It may be part of a header or a trailer, which the parser keeps and has not passed on yet.
            self._trickled += len(data)
            if self._trickled > MAX_HEAD:
                self._fail(_TOO_LONG, f"a request's head has more than {MAX_HEAD} bytes")
                return
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._reset()
        self._begun += 1
        self.began = self.factory.seconds()

    def on_url(self, url: bytes) -> None:
        """Note a part of the request's target."""
        self._url += url
        if len(self._url) > MAX_HEAD:
            raise _RefusedHeadError

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """Note a header."""
        value = value or b""
        self._head += len(name) + len(value)
        if self._head > MAX_HEAD:
            raise _RefusedHeadError
        name = name.lower()
        if name == b"vernemq-hook":
            self._hook_name = value.strip()
        elif name == b"content-length":
            self._length = int(value) if value.isdigit() and len(value) < 19 else 1 << 62
        elif name == b"authorization":
            self._authorization = value
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """Decide whether to read the request's body, and whether to refuse it."""
        factory = self.factory
        guard = factory.guard
        if self._parser.should_upgrade():
            self._refuse(_UPGRADE, "invalid", "a request asks to switch protocols")
        elif self._parser.get_method() != b"POST":
            self._refuse(guard.not_posted, "invalid", "a request is not a POST")
        elif not guard.here(self._url):
            self._refuse(guard.elsewhere, "invalid", "a request is for another path")
        elif not guard.allows(self._url, self._authorization):
            self._refuse(guard.unauthorized, "unauthorized", "a request has a wrong token or password, or none")
        elif self._hook_name in HOOKS:
            self._hook = HOOKS[self._hook_name]
            self._kept = True
            if self._length > factory.max_body:
                self._too_long()
        elif not self._hook_name:
            self._refuse(_NO_HOOK, "invalid", "a request has no header vernemq-hook")
        if self._refusal is not None and (self._expects or self._refusal is _UPGRADE):
            # The client may or may not send the body now, so there is no telling where the next request begins.
            self._answer(self._refusal, b"close")
        elif self._expects:
            waiting = HookExchange(self, chain=False, connection=b"", bodiless=False)
            self._exchanges.append(waiting)
            waiting.answer = CONTINUE
            self.send()

    def _refuse(self, answer: Answer, kind: str, reason: str) -> None:
        self._refusal = answer
        self._kept = False
        self._body = b""
        self.factory.counters.count(kind)
        self.factory.complain(self, kind, reason)

    def _too_long(self) -> None:
        most = self.factory.max_body
        answer = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most} bytes: sources.webhooks.max_body")
        self._refuse(answer, "oversized", f"a body exceeds sources.webhooks.max_body ({most}): refused")
        self._hold(0)

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body, unless the request is refused or not an event."""
        self._came += len(data)
        if not self._kept:
            return
        if self._came > self.factory.max_body:
            self._too_long()
        elif not self._body:
            self._body = data
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data
        if self._came > LONG and self._kept:
            self._hold(self._came)

    def on_message_complete(self) -> None:
        """Hand over the request's event; the request is answered in its turn."""
        factory = self.factory
        self.began = None
        self.quiet = factory.seconds()
        body, self._body = self._body, b""
        self._hold(0)
        if self.closing:
            return
        parser = self._parser
        if not parser.should_keep_alive():
            connection = b"close"
        else:
            connection = b"keep-alive" if parser.get_http_version() == "1.0" else b""
        hook = self._hook
        if self._refusal is not None:
            self._answer(self._refusal, connection)
            return
        if hook is None:
            if not factory.count_question(self._hook_name):
                factory.counters.count("unknown")
                factory.complain(self, "unknown", "requests of an unknown hook are answered and ignored")
            self._answer(NEXT, connection)
            return
        exchange = HookExchange(self, hook.chain, connection, bodiless=False)
        self._enqueue(exchange)
        factory.take(exchange, hook, bytes(body))

    def _answer(self, answer: Answer, connection: bytes) -> None:
        exchange = HookExchange(self, False, connection, self._parser.get_method() == b"HEAD")  # noqa: FBT003
        self._enqueue(exchange)
        exchange.finish(answer)

    def _enqueue(self, exchange: HookExchange) -> None:
        exchanges = self._exchanges
        exchanges.append(exchange)
        if exchange.connection == b"close":
            self.closing = True
        elif len(exchanges) > PIPELINED:
            self.regulate()

    def _fail(self, answer: Answer, reason: str, kind: str = "invalid") -> None:
        """Answer with an error, and close the connection after the answers to earlier requests."""
        if self.closing:
            return
        self.factory.counters.count(kind)
        self.factory.complain(self, kind, reason)
        self._hold(0)
        exchange = HookExchange(self, chain=False, connection=b"close", bodiless=False)
        self._enqueue(exchange)
        exchange.finish(answer)

    # Long bodies take turns; see mqhooks.sources.sidecar.longframes.

    @property
    def length(self) -> int:
        """Length of the unfinished body, in bytes; ``max_body`` while it is unknown."""
        return self._length or self.factory.max_body

    def give_up(self) -> None:
        """Give up a long body that comes too slowly while others wait for its room."""
        self.late()

    def _hold(self, held: int) -> None:
        if held != self.held:
            if not self.held:
                self._turns = self.factory.common_bodies if self.length <= COMMON else self.factory.long_bodies
            self._turns.note(self, held)

    # Answering.

    def send(self) -> None:
        """Send the answers that are ready, up to the first request that has none yet."""
        exchanges = self._exchanges
        ready = []
        while exchanges and (answer := exchanges[0].answer) is not None:
            ready.append(answer)
            exchanges.popleft()
        if not ready or self._lost:
            return
        self._write(b"".join(ready) if len(ready) > 1 else ready[0])
        if self.closing:
            if not exchanges:
                self.quiet = self.factory.seconds()
                self._close()
        elif len(exchanges) + len(ready) > PIPELINED >= len(exchanges):
            self.regulate()

    def _write(self, data: bytes) -> None:
        if self._direct is not None:
            try:
                data = data[self._direct.send(data) :]
            except OSError:
                # The socket takes nothing now, or the connection has ended: the transport finds out.
                pass
            if not data:
                return
            # From now on, everything goes through the transport, behind the bytes that it holds.
            self._direct = None
        transport: ITransport = self.transport  # type: ignore[assignment]
        transport.write(data)


def _socket(transport: Any) -> Any:
    # TLS wraps the transport that has the socket.
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport.getHandle()
