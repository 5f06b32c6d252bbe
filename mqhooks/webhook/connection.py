"""
One persistent connection to an endpoint, with one request under way at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Any
from typing import Protocol as Typing

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.errors import BadAnswer, ConnectionBroken, DeliveryError
from mqhooks.readiness import Reader, Readiness
from mqhooks.webhook.tlschannel import TLSChannel

MAX_HEAD = 64 << 10
"""How many bytes an answer may have beside its body."""

SHORT = 479
"""How many bytes of an answer are received at a time, at first: what Python's own allocator has room for at once."""

LONG = 1 << 16
"""How many at a time of an endpoint whose answers are longer."""

KNOWN_LENGTH = 1024
"""An answer of more bytes, its head included, is not remembered."""

KNOWN = 64
"""How many answers are remembered; then all are forgotten, for a time in them may have gone on."""

MAX_BODY = 1 << 20
"""How many bytes of an answer's body are read; of a longer one the rest stays unread, and the connection is closed."""


class Answer(msgspec.Struct, frozen=True):
    """
    What an endpoint said.

    :param status: the status code, 200 to 599.
    :param headers: names and values as they came.
    :param body: its first bytes, as many as the exchange keeps.
    :param length: how many bytes of the body were read.
    :param complete: whether these are all bytes of the body.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    length: int
    complete: bool


class Exchange(msgspec.Struct, gc=False):
    """
    A request, and who waits for its answer.

    :param request: all its bytes.
    :param done: called once, with the answer or with why there is none.
    :param keep: how many bytes of the answer's body are wanted.
    :param since: when it was asked for, in the reactor's seconds.
    :param resent: whether it was sent before, on a connection that the endpoint had closed meanwhile.
    """

    request: bytes
    done: Callable[[Answer | DeliveryError], None]
    keep: int
    since: float
    resent: bool = False


@implementer(IPushProducer)
class _LongRequest:
    """
    Learns from the transport when a request that it had to buffer has left.

    :param transport: is to write the request once this is registered.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.left = True
        transport.registerProducer(self, streaming=True)

    def pauseProducing(self) -> None:
        self.left = False

    def resumeProducing(self) -> None:
        self.left = True
        self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        pass


def _buffers(transport: Any) -> bool:
    """Say whether a TCP connection of Twisted's has something that is not sent yet."""
    return len(transport.dataBuffer) > transport.offset or bool(transport._tempDataBuffer)  # noqa: SLF001 - nothing public says it


class ConnectionOwner(Typing):
    """
    Who a connection reports to.

    :ivar readiness: watches sockets; ``None`` when the reactor itself is to do it.
    :ivar known: short answers that came whole and in one piece, by their bytes: most endpoints give the same one all the time.
    """

    known: dict[bytes, Answer]
    readiness: Readiness | None

    def answered(self, connection: HTTPConnection, exchange: Exchange, answer: Answer) -> None:
        """Note the answer to an exchange, and that the connection is free for another one."""

    def ended(self, exchange: Exchange, result: Answer | DeliveryError) -> None:
        """Note what came of an exchange, when the connection is of no more use."""

    def unfit(self, connection: HTTPConnection) -> None:
        """Note that a free connection is of no more use."""

    def lost(self, connection: HTTPConnection) -> None:
        """Note that the connection is gone."""

    def resend(self, exchange: Exchange) -> None:
        """Send a request again that a closed connection swallowed."""


class HTTPConnection(Protocol):
    """
    Sends requests as they are and parses the answers.

    Once an answer's head is there, its status stands, whatever becomes of its body or of the connection.

    :param owner: whom to tell what becomes of the connection.
    """

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self._parser = HttpResponseParser(self)
        self._used = False
        self._reader: Reader | None = None
        self._send: Callable[[bytes], int] | None = None
        self._sending: _LongRequest | None = None
        self.exchange: Exchange | None = None
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._length = 0
        self._received = 0
        self._complete = False
        self._reusable = False

    def connectionMade(self) -> None:
        """Switch off Nagle's algorithm: a request is one write."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            if not ISSLTransport.providedBy(self.transport):
                self._take_over()

    def _take_over(self) -> None:
        """Read and write the socket past the transport, which is left with the connection's end."""
        transport: Any = self.transport
        source: socket
        take: Callable[[bytes], object]
        if isinstance(transport, TLSMemoryBIOProtocol):
            channel = TLSChannel(transport, self.dataReceived, self.close)
            source, self._send, take = channel.socket, channel.send, channel.received
        else:
            source = transport.getHandle()
            self._send, take = source.send, self.dataReceived
        if self._owner.readiness is not None:
            self._reader = Reader(self._owner.readiness, transport, source, take, SHORT, LONG)

    def _note_use(self) -> None:
        """Take note of the end of the first exchange."""
        self._used = True
        transport: Any = self.transport
        # Only now is it certain that the handshake is over. An answer may come before the request has left.
        if isinstance(transport, TLSMemoryBIOProtocol) and not _buffers(transport.transport):
            self._take_over()

    def start(self, exchange: Exchange) -> None:
        """Send a request. The connection must be free."""
        self.exchange = exchange
        request = exchange.request
        if self._send is not None:
            # A transport's write() is a turn of the reactor and two calls of epoll_ctl; the socket mostly takes it all at once.
            try:
                sent = self._send(request)
            except OSError:
                # Whatever it is, the transport finds out as well.
                sent = 0
            if sent == len(request):
                return
            request = request[sent:]
            # The rest may still be in the transport's buffer when the next request comes: from now on all goes through it.
            self._send = None
        transport: Any = self.transport
        if len(request) <= LONG:
            transport.write(request)
            return
        self._sending = _LongRequest(transport)
        transport.write(request)
        if self._sending.left:
            self._sending = None
            transport.unregisterProducer()

    def abandon(self, error: DeliveryError) -> None:
        """End the exchange without waiting for more of its answer, and the connection with it."""
        self._finish(error)

    def close(self) -> None:
        """Close the connection in order."""
        if self._reader is not None:
            self._reader.give_back()
        transport: Any = self.transport
        transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Parse what came of an answer."""
        exchange, owner = self.exchange, self._owner
        if exchange is None:
            # Nobody asked: what follows could not be told from the answer to the next request.
            owner.unfit(self)
            self.abort()
            return
        if not self._received and self._sending is None:
            known = owner.known.get(data)
            if known is not None and known.length <= exchange.keep:
                self.exchange = None
                if not self._used:
                    self._note_use()
                owner.answered(self, exchange, known)
                return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._finish(BadAnswer("it answered with another protocol than HTTP"))
        except HttpParserError as error:
            self._finish(BadAnswer(f"its answer is not HTTP: {error}"))
        else:
            if self._complete:
                self._remember(data)
                self._finish(None)
            elif self._received - self._length > MAX_HEAD:
                self._finish(BadAnswer(f"what its answer has beside a body is longer than {MAX_HEAD} bytes"))
            elif self._length > MAX_BODY:
                self._finish(BadAnswer(f"its answer is longer than {MAX_BODY} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the exchange that was under way, if any."""
        exchange = self.exchange
        if self._reader is not None:
            self._reader.leave()
        self._owner.lost(self)
        if exchange is None:
            return
        if self._used and not self._received and not exchange.resent:
            # An idle connection that the endpoint closed just when it was needed: RFC 9110, section 9.2.2.
            self.exchange = None
            exchange.resent = True
            self._owner.resend(exchange)
        else:
            self._finish(ConnectionBroken(f"the connection ended before an answer came: {reason.getErrorMessage()}"), lost=True)

    def _finish(self, error: DeliveryError | None, *, lost: bool = False) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        answer = None
        if error is None or self._status:
            body = b"".join(self._body)[: exchange.keep]
            answer = Answer(self._status, self._headers, body, self._length, self._complete and len(body) == self._length)
        # Nothing can follow a body that is not sent to its end.
        reusable = self._reusable and error is None and (self._sending is None or self._sending.left)
        self._sending = None
        self._reset()
        self.exchange = None
        if reusable and answer is not None:
            if not self._used:
                self._note_use()
            self._owner.answered(self, exchange, answer)
            return
        if not lost:
            self.abort()
        result = answer or error
        assert result is not None
        self._owner.ended(exchange, result)

    def _remember(self, data: bytes) -> None:
        # The parser is back at a beginning: the same bytes would lead it to the same answer, and back there.
        if self._reusable and self._received == len(data) <= KNOWN_LENGTH:
            known = self._owner.known
            if len(known) >= KNOWN:
                known.clear()
            known[data] = Answer(self._status, self._headers, b"".join(self._body), self._length, complete=True)

    # The parser's callbacks. It wraps what they raise, so they only take notes.

    def on_message_begin(self) -> None:
        """Note that an answer begins."""
        if self._complete:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header, unless it belongs to an answer that nobody asked for."""
        if not self._complete:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Note the status."""
        if not self._complete:
            self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep what is wanted of the body, and count the rest."""
        if self._complete or self.exchange is None:
            return
        if self._length < self.exchange.keep:
            self._body.append(data)
        self._length += len(data)

    def on_message_complete(self) -> None:
        """Note that the answer is whole, unless it is an interim one."""
        if self._complete:
            return
        if 100 <= self._status < 200:
            self._reset()
        else:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()
