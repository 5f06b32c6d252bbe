"""
One connection to one server: the protocol itself, from the server's first line on.

- Bytes that come before TLS are not trusted: no message is delivered, nothing may follow the first line, and we send
  credentials only to a server whose certificate names the host.
- Data sent in one turn of the reactor is written together. While the transport is full it waits here, where it is counted.
- A server that says nothing from one ping to the next is given up. Any received bytes count, and so does progress in sending: a
  pong may be stuck behind megabytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from typing import Protocol as Interface

import msgspec
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.errors import MqhooksError, NATSError, NATSFull, NATSMalformed, NATSRefused, NATSUnavailable
from mqhooks.nats.parser import NatsParser, Receiver
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.support.names import in_words
from mqhooks.support.printable import printable
from mqhooks.support.verifying import Verifier

CHUNK = 128 << 10
"""Bytes handed to the transport at once, roughly."""

HIGH = 1 << 20
"""A connection with more waiting bytes is full."""


CLOSING_TIME = 2.0
"""Seconds that a connection has to close before it is aborted."""

_IN_THE_CLEAR = "it sends plain text where TLS has to begin"


class Info(msgspec.Struct, frozen=True):
    """A server's information about itself."""

    server_name: str = ""
    version: str = ""
    max_payload: int = 1 << 20
    headers: bool = False
    jetstream: bool = False
    nonce: str = ""
    auth_required: bool = False
    tls_required: bool = False
    tls_available: bool = False
    connect_urls: list[str] | None = None

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; 0, 0 if they cannot be read."""
        numbers = self.version.split(".")[:2]
        if len(numbers) < 2 or not all(number.isdecimal() and len(number) < 9 for number in numbers):
            return 0, 0
        return int(numbers[0]), int(numbers[1])


_INFO = msgspec.json.Decoder(Info)


class NatsOwner(Interface):
    """The owner of a connection; the connection reports to it."""

    def greeted(self, connection: Connection) -> Mapping[bytes, Receiver]:
        """Send subscriptions, now that CONNECT is sent. Return the receiver for each subscription's number."""

    def opened(self, connection: Connection) -> None:
        """Note that the server has let us in."""

    def told(self, connection: Connection) -> None:
        """Note that the server has sent new information about itself."""

    def writable(self) -> None:
        """Note that the connection is not full."""

    def warned(self, words: str) -> None:
        """Note that the server has refused something, and keeps the connection."""

    def lost(self, connection: Connection, error: NATSError) -> None:
        """Note that the connection is closed."""


@implementer(IHandshakeListener, IPushProducer)
class Connection(Protocol):
    """
    A connection to a server.

    :param reactor: for timers.
    :param settings: the client's settings.
    :param server: the server.
    :param owner: notified of everything that happens.
    :ivar info: the server's latest information about itself.
    :ivar ready: whether the server has let us in, and the connection is not being closed.
    :ivar problem: why we close it at once; ``None`` when we don't.
    """

    transport: Any

    def __init__(self, reactor: Any, settings: NATSSettings, server: Server, owner: NatsOwner) -> None:
        self.server = server
        self.info = Info()
        self.ready = False
        self.problem: NATSError | None = None
        self._reactor = reactor
        self._settings = settings
        self._verifier: Verifier | None = None
        self._owner = owner
        self._parser = NatsParser(self._controlled, settings.max_message)
        self._greeted = False
        # In turn: the first line asks for TLS; TLS has begun; the certificate is right.
        self._upgrading = self._encrypting = self._secure = False
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._scheduled = False
        self._paused = False
        self._heard = False
        self._pongs: deque[Callable[[], object] | None] = deque()
        self._timer: Any = None

    # Sending

    @property
    def full(self) -> bool:
        """Whether to send less because the server reads too slowly."""
        return self._paused or self._queued > HIGH

    def send(self, data: bytes, extra: int = 0) -> None:
        """
        Send one or more whole lines or messages.

        :param extra: bytes that may wait beyond ``max_pending``.
        :raises mqhooks.errors.NATSFull: when too much is waiting; the data is not added to it then.
        """
        if self._queued and self._queued + len(data) > self._settings.max_pending + extra:
            raise NATSFull(f"NATS server {self.server} reads too slowly: {self._queued} bytes wait to be sent to it")
        self._queue.append(data)
        self._queued += len(data)
        if not self._scheduled and not self._paused:
            self._scheduled = True
            self._reactor.callLater(0, self._flush)

    def ping(self, answered: Callable[[], object] | None) -> None:
        """
        Ask the server to confirm that it has read everything sent before.

        :param answered: called without arguments when the answer comes.
        :raises mqhooks.errors.NATSFull: as in ``send``.
        """
        self.send(b"PING\r\n", CHUNK)
        self._pongs.append(answered)

    def close(self) -> None:
        """Write the waiting bytes, then close the connection; if the server has not let us in yet, close it at once."""
        if not self.ready:
            self.fail(NATSUnavailable(f"the connection to NATS server {self.server} is closed"))
            return
        self.ready = self._paused = False
        self._flush(everything=True)
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        self._stop_timer()
        self._timer = self._reactor.callLater(CLOSING_TIME, self.transport.abortConnection)

    def fail(self, error: NATSError) -> None:
        """Close the connection at once."""
        self.ready = False
        self.problem = self.problem or error
        self._parser.stopped = True
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Note that the transport is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Write more, now that the transport is empty."""
        self._paused = False
        self._heard = True
        self._flush()

    def stopProducing(self) -> None:
        """Do nothing: the transport is closed, and ``connectionLost`` follows."""

    def _flush(self, *, everything: bool = False) -> None:
        self._scheduled = False
        queue = self._queue
        while queue and not self._paused:
            size, pieces = 0, []
            while queue and (size < CHUNK or everything):
                pieces.append(queue.popleft())
                size += len(pieces[-1])
            self._queued -= size
            self.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self.ready and not self.full:
            self._owner.writable()

    # Receiving

    def connectionMade(self) -> None:
        """Wait for the server's first line, or begin with TLS."""
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, streaming=True)
        self._timer = self._reactor.callLater(self._settings.connect_timeout, self._late)
        if self._settings.tls_first:
            self._guard(self._encrypt)

    def dataReceived(self, data: bytes) -> None:
        """Parse received bytes."""
        self._heard = True
        self._guard(self._parse, data)

    def handshakeCompleted(self) -> None:
        """Log in, now that the certificate is verified; with ``tls_first``, wait for the server's first line before that."""
        self._secure = True
        if not self._settings.tls_first:
            self._guard(self._greet)

    def _parse(self, data: bytes) -> None:
        self._parser.feed(data)
        if self._upgrading:
            if self._parser.pending:
                raise NATSMalformed(_IN_THE_CLEAR)
            self._upgrading = self._parser.stopped = False
            self._encrypt()

    def _guard(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except NATSMalformed as error:
            hint = "" if self._greeted else ": it may be something other than NATS"
            self.fail(NATSMalformed(f"NATS server {self.server} does not speak the protocol: {error}{hint}"))
        except NATSError as error:
            self.fail(error)
        except MqhooksError as error:
            # One of our files cannot be read just now.
            self.fail(NATSRefused(f"NATS server {self.server} cannot be used: {error}"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the reason to the owner."""
        self._parser.stopped = True
        self.ready = False
        self._stop_timer()
        self._queue.clear()
        self._queued = 0
        self._owner.lost(self, self.problem or NATSUnavailable(self._explain(reason.value)))

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _explain(self, error: BaseException | None) -> str:
        if isinstance(error, SSL.Error) and self._verifier is not None:
            words, _ = self._verifier.explain(error, self.server.host, self.server.port)
            return words
        when = " during the TLS handshake" if self._encrypting and not self._secure else ""
        how = "closed the connection" if isinstance(error, ConnectionDone) else f"is gone ({in_words(error)})"
        return f"NATS server {self.server} {how}{when}"

    def _controlled(self, verb: bytes, rest: bytes) -> None:
        if verb == b"PING":
            self.send(b"PONG\r\n", CHUNK)
        elif verb == b"PONG":
            answered = self._pongs.popleft() if self._pongs else None
            if answered is not None:
                answered()
        elif verb == b"INFO":
            self._informed(rest)
        elif verb == b"-ERR":
            self._erred(printable(rest.decode("utf-8", "backslashreplace").strip("'"), 200))
        elif verb != b"+OK":
            words = printable((verb + b" " + rest[:40]).decode("utf-8", "backslashreplace"), 40)
            raise NATSMalformed(f"it sends {words!r}")

    def _informed(self, rest: bytes) -> None:
        try:
            self.info = _INFO.decode(rest)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise NATSMalformed(f"its INFO cannot be read: {printable(str(error), 200)}") from None
        if self._greeted:
            self._owner.told(self)
            return
        info, oldest = self.info, self._settings.oldest
        if info.release < oldest:
            raise NATSRefused(
                f"NATS server {self.server} has version {printable(info.version, 40) or 'unknown'}: "
                f"update it to {'.'.join(map(str, oldest))} or newer"
            )
        if not info.headers:
            raise NATSRefused(
                f"NATS server {self.server} does not support headers: remove no_header_support from its configuration"
            )
        if self._secure:
            self._greet()
        elif self._settings.tls_first:
            raise NATSMalformed(_IN_THE_CLEAR)
        elif self.server.tls or info.tls_required or self._settings.tls is not None:
            if not info.tls_required and not info.tls_available:
                raise NATSRefused(f"NATS server {self.server} does not offer TLS: give it a certificate, or write nats://")
            # _parse starts TLS once all received bytes are parsed, since nothing may follow this line.
            self._upgrading = self._parser.stopped = True
        else:
            self._greet()

    def _encrypt(self) -> None:
        self._encrypting = True
        self._verifier = Verifier(self._settings.tls, "nats")
        self.transport.startTLS(self._verifier.creator(self.server.host, self.server.port))

    def _greet(self) -> None:
        auth = self.server.auth or self._settings.auth
        if auth.signs and not self.info.nonce:
            raise NATSRefused(f"NATS server {self.server} does not support nkeys: it asks for no signature")
        connect = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "protocol": 1,
            "lang": "twisted",
            "version": "1",
            "name": self._settings.name,
            "tls_required": self._secure,
            **auth.answer(self.info.nonce),
        }
        self._greeted = True
        self.send(b"CONNECT " + msgspec.json.encode(connect) + b"\r\n")
        self._parser.receivers = self._owner.greeted(self)
        self.ping(self._welcomed)

    def _welcomed(self) -> None:
        self.ready = True
        self._timer.cancel()
        self._heard = True
        self._timer = self._reactor.callLater(self._settings.ping_interval, self._tick)
        self._owner.opened(self)

    def _erred(self, words: str) -> None:
        lower = words.lower()
        if lower.startswith(("permissions violation", "invalid subject", "maximum subscriptions")):
            self._owner.warned(words)
        elif "authorization" in lower or "authentication" in lower:
            self.fail(
                NATSRefused(
                    f"NATS server {self.server} refused the login ({words}): check user and password, token, nkey or JWT"
                )
            )
        else:
            self.fail(NATSRefused(f"NATS server {self.server} ends the connection: {words}"))

    def _late(self) -> None:
        what, hint = "sent no INFO", ": is it NATS, without TLS first (tls_first)?"
        if self._greeted:
            what, hint = "did not answer our login", ""
        elif self._encrypting and not self._secure:
            what, hint = "did not finish the TLS handshake", ": does it speak TLS?"
        limit = self._settings.connect_timeout
        self.fail(NATSUnavailable(f"NATS server {self.server} {what} within {limit:g} s{hint}"))

    def _tick(self) -> None:
        if not self._heard:
            # If this process was the one that slept, the answer is there and is read before the next turn.
            self._timer = self._reactor.callLater(0, self._silent)
            return
        self._heard = False
        self._timer = self._reactor.callLater(self._settings.ping_interval, self._tick)
        if not self._pongs:
            try:
                self.ping(None)
            except NATSFull:
                # The waiting bytes serve as the ping: some must be taken before the next tick.
                pass

    def _silent(self) -> None:
        if self._heard:
            self._tick()
        else:
            interval = self._settings.ping_interval
            self.fail(NATSUnavailable(f"NATS server {self.server} did not answer a ping within {interval:g} s"))
