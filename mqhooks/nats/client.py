"""
A client of NATS: keeps one connection to any of several servers, and makes another when that ends.

- Nothing is kept for later: without a connection, publishing fails at once, so the publisher knows.
- A request without an answer fails when the connection ends, since nobody knows its outcome. The caller decides whether to
  repeat it.
- All answers come over one subscription.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random, SystemRandom
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.errors import (
    ConfigError,
    NATSDisconnected,
    NATSError,
    NATSNoResponders,
    NATSRefused,
    NATSTimeout,
    NATSTooLong,
    NATSUnavailable,
)
from mqhooks.nats.connection import CHUNK, Connection, Info
from mqhooks.nats.message import NATSMessage, encode_headers, encode_subject
from mqhooks.nats.parser import Receiver
from mqhooks.nats.settings import NATSSettings, Server, server
from mqhooks.support.names import connect_problem, endpoint
from mqhooks.support.verifying import Verifier

DISCOVERED = 64
"""Maximum number of servers to remember of those that a server names."""

TIMEOUT = 5.0
"""Default timeout of a request, in seconds."""

_PUBLISHED = re.compile(r'publish to "([^"]+)"', re.IGNORECASE)

_T = TypeVar("_T")


class Subscription:
    """
    A subscription, as returned by :meth:`NATSClient.subscribe`.

    :param number: its id, for server and client.
    :param line: the line that subscribes.
    :param left: number of messages still wanted; ``None`` for all.
    """

    __slots__ = ("left", "line", "number")

    def __init__(self, number: bytes, line: bytes, left: int | None) -> None:
        self.number = number
        self.line = line
        self.left = left

    @property
    def lines(self) -> bytes:
        """The lines to send to a server."""
        return self.line if self.left is None else b"%bUNSUB %b %d\r\n" % (self.line, self.number, self.left)


class _Asked:
    """A request or ping without an answer yet."""

    __slots__ = ("answered", "receive", "subject", "timeout", "timer")

    def __init__(self, subject: str, receive: Callable[[NATSMessage], bool] | None, timeout: float) -> None:
        self.subject = subject
        self.receive = receive
        self.timeout = timeout
        self.timer: Any = None
        self.answered: Deferred[Any]


class NATSClient:
    """
    A client. A subject is text without white space and empty tokens; methods raise ``ValueError`` for anything else.

    :param reactor: for connections and time.
    :param settings: the servers, and the settings for them.
    :param connected: called with the server, ``host:port``, for each connection.
    :param disconnected: called with the reason whenever a connection ends or cannot be made.
    :param warned: called with the error when a server refuses something and keeps the connection.
    :param random: for the order of servers, jitter, and the subject of answers, which nobody must be able to guess.
    :ivar problem: the latest reason why there was no connection.
    :raises mqhooks.errors.ConfigError: when a setting or a file is not what it should be.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: NATSSettings,
        *,
        connected: Callable[[str], object] | None = None,
        disconnected: Callable[[NATSError], object] | None = None,
        warned: Callable[[NATSError], object] | None = None,
        random: Random | None = None,
    ) -> None:
        if not settings.servers:
            raise ConfigError("no NATS server is given")
        settings.auth.check()
        if settings.tls is not None:
            Verifier(settings.tls)
        self.problem: NATSError | None = None
        self._reactor = reactor
        self._settings = settings
        self._connected = connected
        self._disconnected = disconnected
        self._warned = warned
        self._random = random or SystemRandom()
        self._servers = self._random.sample(settings.servers, len(settings.servers))
        self._discovered: list[Server] = []
        self._at = -1
        self._tried = 0
        self._since: float | None = None
        self._connecting: Deferred[Any] | None = None
        self._connection: Connection | None = None
        # The same connection, once it takes subscriptions.
        self._link: Connection | None = None
        self._timer: Any = None
        self._started = self._closed = self._draining = False
        self._for_connection: list[Deferred[None]] = []
        self._for_end: list[Deferred[None]] = []
        self._for_room: list[Deferred[None]] = []
        self._for_answers: list[Deferred[None]] = []
        self._number = 0
        self._subscriptions: dict[bytes, Subscription] = {}
        self._receivers: dict[bytes, Receiver] = {}
        self._asked: dict[bytes, _Asked] = {}
        self._inbox = f"{settings.inbox}.{self._random.getrandbits(96):024x}.".encode()
        try:
            self._answers = self.subscribe(f"{self._inbox.decode()}*", self._answer)
        except ValueError:
            raise ConfigError(
                f"{settings.inbox!r} is not a valid inbox prefix: use words separated by dots, like _INBOX"
            ) from None

    # Connections

    def start(self) -> None:
        """Start connecting. The client reconnects until it is closed."""
        if not self._started and not self._closed:
            self._started = True
            self._attempt()

    @property
    def server(self) -> str | None:
        """The server that we are connected to, as ``host:port``; ``None`` while there is no connection."""
        return str(self._link.server) if self._link is not None and self._link.ready else None

    @property
    def info(self) -> Info | None:
        """That server's information about itself; ``None`` while there is no connection."""
        return self._link.info if self._link is not None and self._link.ready else None

    @property
    def full(self) -> bool:
        """Whether to send less because the server reads too slowly; publishing still works until ``max_pending`` bytes wait."""
        return self._link is not None and self._link.full

    def when_connected(self) -> Deferred[None]:
        """
        Wait for a connection.

        :returns: a ``Deferred`` that fails with :class:`~mqhooks.errors.NATSError` when the client gives up or is closed.
        """
        if self._closed:
            return fail(self.problem or NATSUnavailable("the NATS client is closed"))
        return succeed(None) if self.info is not None else _wait(self._for_connection)

    def when_writable(self) -> Deferred[None]:
        """
        Wait until the connection is not full.

        :returns: a ``Deferred`` that fails with :class:`~mqhooks.errors.NATSUnavailable` when there is no connection, or it
            ends.
        """
        if self.info is None:
            return fail(self._unavailable())
        return _wait(self._for_room) if self.full else succeed(None)

    def close(self) -> Deferred[None]:
        """
        Write the waiting bytes and end for good. Requests without an answer fail.

        :returns: a ``Deferred`` that fires when the connection is closed.
        """
        self._finish(NATSUnavailable("the NATS client is closed"))
        return succeed(None) if self._connection is None else _wait(self._for_end)

    def drain(self, timeout: float = TIMEOUT) -> Deferred[None]:
        """
        End subscriptions, wait for answers, make sure that the server has read everything, and close.

        :param timeout: seconds that each of the two waits may last.
        :returns: a ``Deferred`` that fires when the connection is closed.
        """
        return ensureDeferred(self._drain(timeout))

    async def _drain(self, timeout: float) -> None:
        self._draining = True
        for subscription in list(self._subscriptions.values()):
            if subscription is not self._answers:
                self.unsubscribe(subscription)
        try:
            if self._asked:
                await _wait(self._for_answers).addTimeout(timeout, self._reactor)
            await self.flush(timeout)
        except (NATSError, defer.TimeoutError):
            # Close it all the same.
            pass
        await self.close()

    def _finish(self, error: NATSError) -> None:
        if self._closed:
            return
        self._closed = True
        self.problem = error
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        _fail(self._for_connection, error)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    def _attempt(self) -> None:
        servers = [*self._servers, *self._discovered]
        self._at = (self._at + 1) % len(servers)
        target = servers[self._at]
        # The endpoint may build several connections, and keeps one.
        factory = Factory.forProtocol(lambda: Connection(self._reactor, self._settings, target, self))
        factory.noisy = False
        self._connecting = endpoint(self._reactor, target.host, target.port, self._settings.connect_timeout).connect(factory)
        self._connecting.addCallbacks(self._made, self._unreachable, errbackArgs=(target,))

    def _made(self, connection: Connection) -> None:
        self._connecting = None
        self._connection = connection

    def _unreachable(self, failure: Failure, target: Server) -> None:
        self._connecting = None
        self._tried += 1
        why = connect_problem(failure.value, target.host)
        self._again(NATSUnavailable(f"no connection to NATS server {target}: {why}"))

    def _again(self, error: NATSError) -> None:
        if self._closed:
            return
        self.problem = error
        self._tell(self._disconnected, error)
        settings, number = self._settings, len(self._servers) + len(self._discovered)
        rounds, rest = divmod(self._tried, number)
        if self._tried == 0:
            # All clients of a server lose it at the same time: spread their attempts.
            delay = settings.min_backoff * self._random.random()
        elif rest:
            delay = 0.0
        else:
            longest = min(settings.max_backoff, settings.min_backoff * 2.0 ** min(rounds - 1, 32))
            delay = longest * self._random.uniform(0.5, 1.0)
        if settings.max_rounds is not None and rounds >= settings.max_rounds:
            self._finish(error)
        elif not self._closed:
            self._timer = self._reactor.callLater(delay, self._attempt)

    # Connections call these: see Owner

    def greeted(self, connection: Connection) -> Mapping[bytes, Receiver]:
        """Send subscriptions."""
        self._link = connection
        connection.send(b"".join(subscription.lines for subscription in self._subscriptions.values()))
        return self._receivers

    def opened(self, connection: Connection) -> None:
        """Note that publishing is possible."""
        self._since = self._reactor.seconds()
        self.told(connection)
        self._tell(self._connected, str(connection.server))
        _succeed(self._for_connection)

    def told(self, connection: Connection) -> None:
        """Note the servers that a server names."""
        if not self._settings.discover:
            return
        self._discovered.clear()
        for url in (connection.info.connect_urls or [])[:DISCOVERED]:
            try:
                named = server(url)
            except ConfigError:
                continue
            known = [(each.host, each.port) for each in (*self._servers, *self._discovered)]
            if (named.host, named.port) not in known:
                self._discovered.append(Server(named.host, named.port, connection.server.tls, connection.server.auth))

    def writable(self) -> None:
        """Fire the Deferreds of :meth:`when_writable`."""
        if self._for_room:
            _succeed(self._for_room)

    def warned(self, words: str) -> None:
        """Fail the requests that the server refuses, as far as it names them."""
        error = NATSRefused(f"NATS server {self._name} denied a request: {words}: check the permissions of its user")
        refused = _PUBLISHED.search(words)
        if refused:
            for token in [token for token, asked in self._asked.items() if asked.subject == refused[1]]:
                self._settle(token, Failure(error))
        self._tell(self._warned, error)

    def lost(self, connection: Connection, error: NATSError) -> None:
        """Fail the requests in flight, and connect again."""
        if connection is not self._connection:
            return
        # A server that lets us in and throws us out again counts as unreachable.
        lasted = self._since is not None and self._reactor.seconds() - self._since >= self._settings.max_backoff
        self._tried = 0 if lasted else self._tried + 1
        if not self._closed:
            self.problem = error
        self._since = None
        self._connection = self._link = None
        for token, asked in list(self._asked.items()):
            self._settle(token, Failure(NATSDisconnected(f"the outcome of {asked.subject} is unknown: {error}")))
        _fail(self._for_room, error)
        self._again(error)
        _succeed(self._for_end)

    # Messages

    def publish(self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """
        Send a message to all subscribers. There is no acknowledgement; check ``full`` before sending much.

        :raises mqhooks.errors.NATSUnavailable: when there is no connection, or too much is waiting to be sent.
        :raises mqhooks.errors.NATSTooLong: when the server would not accept it.
        """
        self._publish(subject, encode_subject(reply) if reply else b"", payload, headers)

    def request(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT
    ) -> Deferred[NATSMessage]:
        """
        Send a message and wait for one answer.

        :param timeout: in seconds.
        :returns: a ``Deferred`` of the answer. It fails with :class:`~mqhooks.errors.NATSUnavailable` or
            :class:`~mqhooks.errors.NATSTooLong` when nothing was sent, :class:`~mqhooks.errors.NATSNoResponders` when nobody
            received it, and :class:`~mqhooks.errors.NATSTimeout` or :class:`~mqhooks.errors.NATSDisconnected` when the outcome
            is unknown.
        """
        return self._ask(subject, payload, headers, timeout, None)

    def request_many(
        self,
        subject: str,
        payload: bytes,
        receive: Callable[[NATSMessage], bool],
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> Deferred[None]:
        """
        Send a message and take several answers.

        :param receive: called with each answer; returns whether it was the last. If it raises, the ``Deferred`` fails with that
            error.
        :param timeout: seconds that each answer may take.
        :returns: a ``Deferred`` that fails like that of ``request``.
        """
        return self._ask(subject, payload, headers, timeout, receive)

    def subscribe(self, subject: str, receive: Receiver, *, queue: str = "", limit: int | None = None) -> Subscription:
        """
        Subscribe to a subject, over this connection and all later ones.

        :param subject: may have wildcards.
        :param receive: called with each message.
        :param queue: of the subscribers with the same queue, only one gets each message.
        :param limit: number of messages after which the subscription ends.
        """
        name = encode_subject(subject)
        self._number += 1
        number = b"%d" % self._number
        line = b"SUB %b %b %b\r\n" % (name, encode_subject(queue) if queue else b"", number)
        subscription = Subscription(number, line, limit)

        def counted(message: NATSMessage) -> None:
            assert subscription.left is not None
            subscription.left -= 1
            if not subscription.left:
                self._forget(subscription)
            receive(message)

        if self._link is not None:
            self._link.send(subscription.lines, CHUNK)
        self._subscriptions[number] = subscription
        self._receivers[number] = receive if limit is None else counted
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription: its receiver is not called again."""
        if self._forget(subscription) and self._link is not None:
            self._link.send(b"UNSUB %b\r\n" % subscription.number, CHUNK)

    def flush(self, timeout: float = TIMEOUT) -> Deferred[None]:
        """
        Wait until the server has read everything that was sent.

        :returns: a ``Deferred`` that fails like that of ``request``.
        """
        link = self._link
        if link is None or not link.ready:
            return fail(self._unavailable())
        token = self._token()
        try:
            link.ping(lambda: self._settle(token, None))
        except NATSError as error:
            return fail(error)
        return self._await(token, _Asked("PING", None, timeout))

    def _forget(self, subscription: Subscription) -> bool:
        self._receivers.pop(subscription.number, None)
        return self._subscriptions.pop(subscription.number, None) is not None

    def _publish(self, subject: str, reply: bytes, payload: bytes, headers: Mapping[str, str] | None) -> None:
        to = encode_subject(subject)
        link = self._link
        if link is None or not link.ready or self._draining:
            raise self._unavailable()
        block = encode_headers(headers) if headers else b""
        size = len(block) + len(payload)
        if size > link.info.max_payload:
            raise NATSTooLong(
                f"a message of {size} bytes for {subject} is too long for NATS server {link.server}: "
                f"its max_payload is {link.info.max_payload}"
            )
        if block:
            link.send(b"HPUB %b %b %d %d\r\n%b%b\r\n" % (to, reply, len(block), size, block, payload))
        else:
            link.send(b"PUB %b %b %d\r\n%b\r\n" % (to, reply, size, payload))

    def _unavailable(self) -> NATSUnavailable:
        if self._draining or self._closed:
            return NATSUnavailable("the NATS client is closed")
        problem = (self._link and self._link.problem) or self.problem or "there was no connection yet"
        return NATSUnavailable(f"not connected to NATS: {problem}")

    @property
    def _name(self) -> str:
        """The name of the server, also while the connection is being closed."""
        return str(self._link.server) if self._link else "…"

    def _token(self) -> bytes:
        self._number += 1
        return b"%x" % self._number

    def _ask(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        timeout: float,
        receive: Callable[[NATSMessage], bool] | None,
    ) -> Deferred[Any]:
        token = self._token()
        try:
            self._publish(subject, self._inbox + token, payload, headers)
        except (NATSError, ValueError) as error:
            return fail(error)
        return self._await(token, _Asked(subject, receive, timeout))

    def _await(self, token: bytes, asked: _Asked) -> Deferred[Any]:
        def cancel(_: object) -> None:
            self._drop(token)

        asked.answered = Deferred(cancel)
        asked.timer = self._reactor.callLater(asked.timeout, self._late, token)
        self._asked[token] = asked
        return asked.answered

    def _late(self, token: bytes) -> None:
        asked = self._asked[token]
        words = f"no answer to {asked.subject} from NATS server {self._name} within {asked.timeout:g} s: the outcome is unknown"
        self._settle(token, Failure(NATSTimeout(words)))

    def _answer(self, message: NATSMessage) -> None:
        token = message.raw_subject[len(self._inbox) :]
        asked = self._asked.get(token)
        if asked is None:
            return
        if message.block and message.status == 503 and not message.payload:
            self._settle(token, Failure(NATSNoResponders(f"nobody listens on {asked.subject}")))
        elif asked.receive is None:
            self._settle(token, message)
        else:
            try:
                last = asked.receive(message)
            except Exception:
                self._settle(token, Failure())
                return
            if last:
                self._settle(token, None)
            elif asked.timer.active():
                asked.timer.reset(asked.timeout)

    def _drop(self, token: bytes) -> _Asked | None:
        asked = self._asked.pop(token, None)
        if asked is not None and asked.timer.active():
            asked.timer.cancel()
        if self._for_answers and not self._asked:
            _succeed(self._for_answers)
        return asked

    def _settle(self, token: bytes, result: NATSMessage | Failure | None) -> None:
        asked = self._drop(token)
        if asked is not None:
            asked.answered.callback(result)

    def _tell(self, whom: Callable[[_T], object] | None, what: _T) -> None:
        if whom is not None:
            try:
                whom(what)
            except Exception:
                self.log.failure("a callback for NATS connections failed")


def _wait(waiting: list[Deferred[None]]) -> Deferred[None]:
    """Add a new Deferred to a list of waiting ones; cancelling it removes it."""
    deferred: Deferred[None] = Deferred(waiting.remove)
    waiting.append(deferred)
    return deferred


def _succeed(waiting: list[Deferred[None]]) -> None:
    ready = waiting[:]
    waiting.clear()
    for deferred in ready:
        deferred.callback(None)


def _fail(waiting: list[Deferred[None]], error: NATSError) -> None:
    failed = waiting[:]
    waiting.clear()
    for deferred in failed:
        deferred.errback(error)
