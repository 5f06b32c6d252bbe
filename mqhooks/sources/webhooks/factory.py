"""
Turning the requests of all of VerneMQ's connections into committed events, and answering them.

- An answer means that the event is committed: VerneMQ acknowledges its client's message only then.
- The events that all connections bring in one turn of the reactor are one batch, and so one commit. It does not wait for more.
- An event with very many topics goes piece by piece, each once the one before is committed: a slow disk piles up no pieces.
- Refusing is better than stalling: a stalled request holds up its client, and 50 of them every hook that goes to this address.
  So an event that cannot be committed is refused at once, and one that is not committed within seconds is given up. Where
  VerneMQ treats the answer as a decision, the answer is still ``next``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from time import time_ns
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocolNegotiationFactory, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.errors import MalformedBody
from mqhooks.events import Event
from mqhooks.interfaces import IEventSink
from mqhooks.sources.connections import SourceFactory
from mqhooks.sources.listening import CLOSING_TIME
from mqhooks.sources.sessions import CONCERNED, SessionTable
from mqhooks.sources.sidecar.longframes import HELD, HELD_COMMON, LongFrames
from mqhooks.sources.sidecar.pieces import Divided, Pieces
from mqhooks.sources.webhooks.access import AccessGuard
from mqhooks.sources.webhooks.answers import NEXT, problem
from mqhooks.sources.webhooks.counters import WebhooksCounters
from mqhooks.sources.webhooks.decode import Hook, decode, divide
from mqhooks.sources.webhooks.protocol import HookExchange, WebhooksProtocol
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.support.loops import Loop
from mqhooks.support.ratelimit import RateLimit

ANSWER_TIME = 4.0
"""Seconds that a commit may take before VerneMQ gets an answer without it: less than VerneMQ's own timeout of 5."""

REQUEST_TIME = 30.0
"""Seconds that a request may take from its first byte to its last."""

IDLE_TIME = 300.0
"""Seconds that an idle connection stays open: longer than VerneMQ keeps it, so that VerneMQ closes it."""

UNCOMMITTED_LIMIT = 64 << 20
"""Bytes of bodies that may wait for their commit before further ones are refused."""

DIVIDED = 16 << 20
"""Bytes of bodies with very many topics that may be in progress before further ones are refused."""

PATIENCE = 1.0
"""Seconds of refusing before a warning, and between two checks of the connections."""

_FULL = problem(HTTPStatus.SERVICE_UNAVAILABLE, "the outbox has no room for more events")
_LOST = problem(HTTPStatus.SERVICE_UNAVAILABLE, "the event was not accepted: the log of mqhooks says why")
_LATE = problem(HTTPStatus.SERVICE_UNAVAILABLE, "the event is not committed yet")
_TOO_MANY = problem(HTTPStatus.SERVICE_UNAVAILABLE, "too many events with very many topics are being processed")


class _Batch:
    """Events that are committed together: the requests that brought them, their bytes, and the deadline's timer."""

    __slots__ = ("exchanges", "late", "overdue", "size")

    def __init__(self, exchanges: list[HookExchange], size: int) -> None:
        self.exchanges = exchanges
        self.size = size
        self.overdue = False
        self.late: IDelayedCall | None = None


@implementer(IProtocolNegotiationFactory)
class WebhooksFactory(SourceFactory):
    """
    Holds what the connections share: the sink, the counters, the session table, and the limits.

    :param reactor: a clock, whose ``callLater(0, …)`` ends a turn.
    :param sink: gets the events. The factory neither starts nor stops it.
    :param settings: decide which requests are accepted.
    :param sessions: remembers usernames; ``None`` for a table of its own.
    :param now: returns the time of day, in nanoseconds since 1970.
    :ivar guard: decides who may post.
    :ivar long_bodies: decides which connections are read while unfinished bodies take too much memory.
    :ivar common_bodies: likewise, for bodies of up to a MiB.
    """

    protocol: Any = WebhooksProtocol
    counters: WebhooksCounters
    connections: set[WebhooksProtocol]
    log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        sink: IEventSink,
        settings: WebhooksSettings,
        *,
        sessions: SessionTable | None = None,
        now: Callable[[], int] = time_ns,
    ) -> None:
        super().__init__(sink, WebhooksCounters())
        self.long_bodies = LongFrames(reactor, HELD)
        self.common_bodies = LongFrames(reactor, HELD_COMMON)
        self.change(settings)
        self._clock = reactor
        self._now = now
        self._sessions = SessionTable() if sessions is None else sessions
        self._complaints = RateLimit(reactor)
        self._events: list[Event] = []
        self._exchanges: list[HookExchange] = []
        self._size = 0
        self._flushing: IDelayedCall | None = None
        # All pieces are decoded before the first is handed over: none can fail.
        self._pieces = Pieces(reactor, self._store_piece, lambda *_: None, self.tell_empty)
        self._divided = 0
        # The request of the piece that is handed over, and the deadlines of all requests in pieces.
        self._exchange: HookExchange | None = None
        self._deadlines: dict[HookExchange, IDelayedCall] = {}
        self._uncommitted = 0
        self._overdue = 0
        self._refusing: float | None = None
        self._greeted = False
        self._watch = Loop(reactor, "checking the connections of VerneMQ's webhooks", self._look)

    def seconds(self) -> float:
        """Return the time, in the reactor's seconds."""
        return self._clock.seconds()

    def change(self, settings: WebhooksSettings) -> None:
        """Replace path, token, user and password, the limit for bodies, and the payloads' encoding."""
        self.guard = AccessGuard(settings)
        self.max_body = settings.max_body
        self._text = settings.payload_encoding == "text"

    # The connections.

    def startFactory(self) -> None:
        """Begin to check the connections."""
        if not self._watch.running:
            self._watch.start(PATIENCE)

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802 - Twisted's interface
        """Return the protocols for TLS: a client that also offers HTTP/2 must be told."""
        return [b"http/1.1"]

    def joined(self, protocol: WebhooksProtocol) -> None:
        """Note a new connection."""
        super().joined(protocol)
        if not self._greeted:
            self._greeted = True
            self.log.info("first connection of VerneMQ's webhooks, from {peer}", peer=protocol.peer)

    def left(self, protocol: WebhooksProtocol, *, cut: bool = False) -> None:
        """
        Note that a connection ended.

        :param cut: whether it ended in the middle of a request.
        """
        super().left(protocol)
        if cut:
            self.counters.truncated += 1
            self.complain(protocol, "cut", "a connection ended in the middle of a request")

    def close(self) -> Deferred[None]:
        """
        Answer all complete requests, and close all connections, within :data:`CLOSING_TIME` seconds.

        :returns: fires when no connection is open, and all events are handed over or given up.
        """
        late = self._clock.callLater(CLOSING_TIME, self.give_up)
        for protocol in list(self.connections):
            protocol.finish()
        return self.when_empty().addCallback(self._closed, late)

    @property
    def empty(self) -> bool:
        """Whether no connection is open and no event waits to be handed over; a client may leave before its event is."""
        return not (self.connections or self._events or self._pieces.clients)

    def _closed(self, _: None, late: IDelayedCall) -> None:
        if late.active():
            late.cancel()
        self._watch.stop()

    def give_up(self) -> None:
        """Abort all connections, and forget events that are not yet handed over."""
        count = self._pieces.drop()
        self._divided = 0
        for late in self._deadlines.values():
            late.cancel()
        self._deadlines.clear()
        if count:
            self.log.error("stopped in the middle of {count} requests with many topics: the rest of them is lost", count=count)
        super().give_up()

    def _look(self) -> None:
        """Close slow and idle connections, and log when refusing begins and ends."""
        now = self._clock.seconds()
        for protocol in list(self.connections):
            if protocol.closing:
                if now - protocol.quiet > ANSWER_TIME + CLOSING_TIME:
                    protocol.abort()
            elif protocol.began is not None:
                if now - protocol.began > REQUEST_TIME:
                    protocol.late()
            elif now - protocol.quiet > IDLE_TIME:
                protocol.finish()
        if self._refusing is None:
            return
        if not self._full:
            self._refusing = None
            if self.counters.paused:
                self.counters.paused = False
                self.log.info("backpressure is over: VerneMQ's events are accepted again")
        elif not self.counters.paused and now - self._refusing >= PATIENCE:
            self.counters.paused = True
            self.counters.pauses += 1
            self.log.warn("backpressure: VerneMQ's events are refused, and lost, because the sinks are full")

    # The events.

    @property
    def _full(self) -> bool:
        return bool(self._overdue) or self._uncommitted > UNCOMMITTED_LIMIT or self.handover.full

    def count_question(self, hook: bytes) -> bool:
        """Count a request if it is a question to an authorizer, and return whether it is."""
        name = hook.decode("latin-1")
        questions = self.counters.questions
        if name not in questions:
            return False
        questions[name] += 1
        return True

    def take(self, exchange: HookExchange, hook: Hook, body: bytes) -> None:
        """Take a request's event, and answer the request: at once if refused, otherwise after the commit."""
        if self._full:
            if self._refusing is None:
                self._refusing = self._clock.seconds()
            self.counters.refused += 1
            exchange.finish(NEXT if exchange.chain else _FULL)
            return
        try:
            event = decode(hook, body, self._now(), text=self._text)
        except MalformedBody as error:
            self.counters.undecodable += 1
            self.complain(exchange.protocol, "undecodable", f"a body of {len(body)} bytes is {error}")
            exchange.finish(problem(HTTPStatus.BAD_REQUEST, f"the body is {error}"))
            return
        if event.hook in CONCERNED:
            event = self._sessions.see(event)
        client = event.mountpoint, event.client_id
        pieces = divide(event)
        first, second = next(pieces), next(pieces, None)
        if second is None and client not in self._pieces.clients:
            self._add(exchange, event, len(body))
        elif self._divided > DIVIDED:
            self.counters.refused += 1
            self.complain(exchange.protocol, "divided", "events with very many topics come too fast: some are refused")
            exchange.finish(NEXT if exchange.chain else _TOO_MANY)
        else:
            self._divided += len(body)
            self._deadlines[exchange] = self._clock.callLater(ANSWER_TIME, self._late, exchange)
            events = self._worked_off(exchange, first, second, pieces, len(body))
            # To keep the client's order, its next events wait behind the pieces.
            self._pieces.add(exchange, Divided(events, client, cut=False), len(body))

    def _worked_off(
        self, exchange: HookExchange, piece: Event, following: Event | None, pieces: Iterator[Event], size: int
    ) -> Iterator[tuple[Event, int]]:
        """Pass a request's pieces on, each asked for once the one before is committed; the last one's commit answers it."""
        try:
            while following is not None:
                self._exchange = exchange
                exchange.events += 1
                yield piece, 0
                piece, following = following, next(pieces, None)
            self._exchange = exchange
            yield piece, 0
        finally:
            self._divided -= size
            late = self._deadlines.pop(exchange, None)
            if late is not None and late.active():
                late.cancel()

    def _store_piece(self, events: list[Event], size: int, frames: int) -> Deferred[None] | None:
        self._flush()
        exchange = self._exchange
        assert exchange is not None
        # Between pieces there is time to wait for room.
        return self._store(events, _Batch([exchange], size), room=exchange.events > 1)

    def _add(self, exchange: HookExchange, event: Event, size: int) -> None:
        self._events.append(event)
        self._exchanges.append(exchange)
        self._size += size
        self._schedule()

    def _schedule(self) -> None:
        if self._flushing is None:
            self._flushing = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        """Hand over the events of this turn of the reactor as one batch."""
        if self._flushing is not None and self._flushing.active():
            self._flushing.cancel()
        self._flushing = None
        events, self._events = self._events, []
        if not events:
            return
        batch = _Batch(self._exchanges, self._size)
        self._exchanges, self._size = [], 0
        self._store(events, batch)
        self.tell_empty()

    def _store(self, events: list[Event], batch: _Batch, *, room: bool = False) -> Deferred[None] | None:
        stored = self.handover.store(events, room=room)
        if stored is None:
            self._committed(None, batch)
            return None
        self._uncommitted += batch.size
        batch.late = self._clock.callLater(ANSWER_TIME, self._give_up_on, batch)
        return stored.addCallbacks(self._committed, self._not_stored, (batch,), errbackArgs=(batch,))

    def _settle(self, batch: _Batch) -> None:
        if batch.late is not None:
            self._uncommitted -= batch.size
            if batch.late.active():
                batch.late.cancel()
            if batch.overdue:
                self._overdue -= 1

    def _not_stored(self, _: Failure, batch: _Batch) -> None:
        """Answer requests whose events the sink failed to take. The handover has logged the failure."""
        self._settle(batch)
        self.counters.refused += sum(exchange.answer is None for exchange in batch.exchanges)
        for exchange in batch.exchanges:
            exchange.finish(NEXT if exchange.chain else _LOST)

    def _committed(self, _: None, batch: _Batch) -> None:
        self._settle(batch)
        for exchange in batch.exchanges:
            exchange.events -= 1
            if not exchange.events:
                exchange.finish(NEXT)

    def _give_up_on(self, batch: _Batch) -> None:
        """Answer requests whose events were not committed in time. They may still be."""
        batch.overdue = True
        self._overdue += 1
        if self._refusing is None:
            self._refusing = self._clock.seconds()
        for exchange in batch.exchanges:
            self._late(exchange)

    def _late(self, exchange: HookExchange) -> None:
        if exchange.answer is None:
            self.counters.late += 1
            exchange.finish(NEXT if exchange.chain else _LATE)

    def complain(self, protocol: WebhooksProtocol, kind: str, complaint: str) -> None:
        """Log what is wrong with a peer's requests, once a minute for each host and kind."""
        held = self._complaints.allow((protocol.peer.rpartition(":")[0], kind))
        if held is not None:
            more = f" ({held} more like it since the last line)" if held else ""
            self.log.warn("{peer}: {complaint}{more}", peer=protocol.peer, complaint=complaint, more=more)
