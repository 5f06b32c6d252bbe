"""
One persistent HTTP/1.1 connection, with one request in flight at a time.

- An answer counts as soon as its status line has come. Trouble with its headers or body closes the connection but does not undo
  the status: the endpoint has the request, and sending it again would only duplicate it.
- Unsolicited bytes are not an answer. A connection that brings any is not used again, since nothing tells such bytes from the
  answer to the next request.
- Most endpoints keep giving the same short answer, so such answers are remembered by their bytes and not parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf
from typing import Protocol

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.web.http import SWITCHING as SWITCHING_PROTOCOLS

from mqhooks.delivery import Response
from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryError
from mqhooks.http.limits import KEEP, MAX_BODY, MAX_HEAD
from mqhooks.http.sockets import Channel

KNOWN_LENGTH = 1024
"""The longest answer that is remembered, in bytes, its head included."""

KNOWN = 64
"""Number of answers to remember; then all are forgotten, since a ``Date`` header makes old ones useless."""

_STATUS_LINE = re.compile(rb"(?:\r?\n)*HTTP/1\.[0-9] +([0-9]{3})(?: [^\r\n]*)?(?=\r?\n)")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"\r?\n")


class Exchange(msgspec.Struct, gc=False):
    """
    A request, and the callback for its result.

    :param request: its bytes.
    :param done: called with the answer, or the reason why there is none.
    :param since: when it was submitted, in the reactor's seconds.
    :param bodiless: whether its answer has no body whatever its headers say, as for ``HEAD``.
    :param resent: whether it must not be sent again when the endpoint closes its idle connection: it has been, or may never be.
    """

    request: bytes
    done: Callable[[Response | DeliveryError], object]
    since: float
    bodiless: bool = False
    resent: bool = False


class ConnectionOwner(Protocol):
    """
    The owner of a connection; the connection reports to it.

    :ivar known: remembered answers by their bytes.
    """

    known: dict[bytes, Response]

    def answered(self, connection: HTTPConnection, exchange: Exchange, response: Response) -> None:
        """Note the answer to an exchange, and that the connection is free for another one."""

    def ended(self, exchange: Exchange, result: Response | DeliveryError) -> None:
        """Note the result of an exchange whose connection cannot be used again."""

    def unfit(self, connection: HTTPConnection) -> None:
        """Note that unsolicited bytes came on a connection."""

    def lost(self, connection: HTTPConnection, reason: str) -> None:
        """Note that the connection is gone, and the reason."""

    def resend(self, exchange: Exchange) -> None:
        """Send a request again after its connection turned out to be closed."""


class HTTPConnection:
    """
    Sends requests as they are and parses the answers.

    :param owner: notified of everything that happens.
    :param channel: carries the bytes.
    :param now: the time of connecting, in the reactor's seconds.
    :ivar born: the same.
    :ivar expires: the time from which it is too old to be used.
    :ivar exchange: the exchange in flight, if any.
    :ivar idle_since: the time of its last answer.
    """

    def __init__(self, owner: ConnectionOwner, channel: Channel, now: float) -> None:
        self.channel = channel
        self.born = now
        self.expires = inf
        self.idle_since = now
        self.exchange: Exchange | None = None
        self._owner = owner
        self._parser = HttpResponseParser(self)
        self._used = False
        # Number of bytes received of the current answer, including interim answers; and the bytes that read_head() may need.
        self._received = 0
        self._raw = b""
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._length = 0
        self._complete = False
        self._reusable = False

    def start(self, exchange: Exchange) -> None:
        """Send a request. The connection must be free."""
        self.exchange = exchange
        self.channel.send(exchange.request)

    def abandon(self, error: DeliveryError) -> None:
        """End the exchange without waiting for the rest of its answer, and close the connection."""
        self._finish(error)

    def received(self, data: bytes) -> None:
        """Parse received bytes."""
        exchange, owner = self.exchange, self._owner
        if exchange is None:
            owner.unfit(self)
            self.channel.abort()
            return
        if not self._received:
            known = owner.known.get(data)
            if known is not None and not (self.channel.full and self.channel.pending()):
                self.exchange = None
                self._used = True
                owner.answered(self, exchange, known)
                return
        self._received += len(data)
        if not self._status:
            self._raw = self._raw + data if self._raw else data
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._status = 0
            self._finish(BadAnswer("it switched to a protocol other than HTTP"))
        except HttpParserError as error:
            self._doubtful(error)
        else:
            self._progress(data, exchange)

    def _progress(self, data: bytes, exchange: Exchange) -> None:
        if self._complete:
            if self.channel.full and self.channel.pending():
                self._reusable = False
            self._remember(data)
            self._finish(None)
        elif exchange.bodiless and self._status:
            self._finish(None)
        elif self._received - self._length > MAX_HEAD:
            self._finish(BadAnswer(f"its answer has more than {MAX_HEAD} bytes besides the body"))
        elif self._length > MAX_BODY:
            self._finish(BadAnswer(f"its answer has more than {MAX_BODY} bytes"))
        else:
            self.channel.hurry()

    def _doubtful(self, error: HttpParserError) -> None:
        """Use the readable part of an answer that the parser rejects, and stop using the connection."""
        if not self._status:
            self._status, self._headers, self._body = read_head(self._raw)
            self._length = sum(map(len, self._body))
        self._finish(BadAnswer(f"its answer is not HTTP: {error}"))

    def lost(self, reason: str, *, refused: bool = False) -> None:
        """End the exchange that was in flight, if any."""
        exchange = self.exchange
        self._owner.lost(self, reason)
        if exchange is None:
            return
        if refused and not self._used and not self._received:
            self.exchange = None
            self._owner.ended(exchange, ConnectFailed(reason))
        elif self._used and not self._received and not exchange.resent:
            # The endpoint closed the idle connection just when it was needed: RFC 9110, section 9.2.2.
            self.exchange = None
            exchange.resent = True
            self._owner.resend(exchange)
        else:
            self._finish(ConnectionBroken(f"the connection ended before an answer came: {reason}"), lost=True)

    def _finish(self, error: DeliveryError | None, *, lost: bool = False) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        result: Response | DeliveryError | None = error
        status = self._status
        if 200 <= status < 600:
            body = b"".join(self._body)[:KEEP]
            result = Response(status, self._headers, body, self._length, self._complete and len(body) == self._length)
        elif status:
            result = error = BadAnswer(f"it answered with status {status:03}, which is not an HTTP status")
        elif error is None:
            result = error = BadAnswer("it answered with status 000, which is not an HTTP status")
        reusable = self._reusable and error is None
        self._reset()
        self._received, self._raw = 0, b""
        self.exchange = None
        if reusable and isinstance(result, Response):
            self._used = True
            self._owner.answered(self, exchange, result)
            return
        if not lost:
            self.channel.abort()
        assert result is not None
        self._owner.ended(exchange, result)

    def _remember(self, data: bytes) -> None:
        # The parser is back in its initial state, so the same bytes would give the same answer again.
        if self._reusable and self._received == len(data) <= KNOWN_LENGTH and 200 <= self._status < 600:
            known = self._owner.known
            if len(known) >= KNOWN:
                known.clear()
            body = b"".join(self._body)
            known[data] = Response(self._status, self._headers, body, self._length, complete=True)

    # The parser's callbacks. The parser wraps whatever they raise, so they only take notes.

    def on_message_begin(self) -> None:
        """Note that an answer begins; a second one means that the connection cannot be used again."""
        if self._complete:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header, unless it belongs to an unsolicited answer."""
        if not self._complete:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Note the status."""
        if not self._complete:
            self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep the beginning of the body, and count the rest."""
        if self._complete:
            return
        if self._length < KEEP:
            self._body.append(data)
        self._length += len(data)

    def on_message_complete(self) -> None:
        """Note that the answer is complete, unless it is an interim one."""
        if self._complete:
            return
        if 100 <= self._status < 200:
            self._reset()
        else:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()


def read_head(raw: bytes) -> tuple[int, list[tuple[bytes, bytes]], list[bytes]]:
    """
    Read an answer's head as leniently as possible: any line ends, folded headers, blanks, control characters.

    :param raw: the answer's first bytes; interim answers may precede it.
    :returns: the status, or 0 without a clear status line; the headers; and the bytes behind them.
    """
    while (line := _STATUS_LINE.match(raw)) is not None:
        status = int(line[1])
        end = _END_OF_HEAD.search(raw, line.end())
        if status >= 200 or status < 100:
            head, rest = (raw[line.end() :], b"") if end is None else (raw[line.end() : end.start()], raw[end.end() :])
            return status, _fields(head), [rest] if rest else []
        if end is None or status == SWITCHING_PROTOCOLS:
            break
        raw = raw[end.end() :]
    return 0, [], []


def _fields(head: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for line in _LINE.split(head):
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t") and found:
            # A folded header: RFC 9112, section 5.2.
            found[-1] = (found[-1][0], (found[-1][1] + b" " + line.strip()).strip())
        elif colon and name.strip():
            found.append((name.strip(), value.strip()))
    return found
