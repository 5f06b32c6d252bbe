"""
The sink that makes events into webhooks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from secrets import token_hex
from time import time
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.errors import ConnectFailed, DeliveryError
from mqhooks.interfaces import IEventSink, IOutbox
from mqhooks.nanomq.rules import Rules
from mqhooks.outbox.delivery import Delivery
from mqhooks.sources.sidecar.events import Event
from mqhooks.support.ratelimit import RateLimit
from mqhooks.support.redact import hide
from mqhooks.webhook.batches import BatchLanes
from mqhooks.webhook.breaker import WHOLESALE, Breaker
from mqhooks.webhook.client import WebhookClient
from mqhooks.webhook.connection import Answer
from mqhooks.webhook.counters import WebhookCounters, failure_of
from mqhooks.webhook.lanes import DONE, Lanes, Verdict
from mqhooks.webhook.merge import MergeWindow
from mqhooks.webhook.retry import DELIVERED, RetryPolicy, retry_after
from mqhooks.webhook.settings import WebhookSettings

WINDOW = 4096
"""How many deliveries are claimed from the outbox and neither settled nor parked; what is beyond them stays in the outbox."""

MOST = 1 << 14
"""How many they are at most, when it takes more of them to fill all batches that may be under way."""

WINDOW_BYTES = 8 << 20
"""How many bytes their bodies may have, about; as many again in the merge window."""

APPENDED_BYTES = 1 << 20
"""How many bytes of bodies are made before they go into the outbox, about."""

LONGEST_COMMIT = 1.0
"""How many seconds a commit may take before the merge window no longer waits for it."""

NEVER = float("inf")
"""A time that everything is before."""

FRESH_PROBE = 1.0
"""
The longest wait for a probe, in seconds, while a client waits that has never failed: poisoned messages of some clients hold no
other client up for longer. An endpoint that cannot be connected to, or has said when to come back, is not probed early.
"""

PARKED_CLIENTS = 8192
"""When more clients than these wait for their retries, it is the endpoint's failure rather than theirs."""


@dataclass(frozen=True, slots=True)
class Failure:
    """
    An attempt that did not deliver.

    :param at: when, in seconds since 1970.
    :param reason: why.
    :param status: the answer's status; 0 when there was none.
    :param body: the beginning of the answer's body.
    """

    at: float
    reason: str
    status: int
    body: bytes


@implementer(IEventSink)
class WebhookSink(Service):
    """
    Sends what the rules want to one endpoint, each client's events in the order in which they happened.

    2xx is delivered. What may succeed later is tried again, for as long as the settings say; what will not is a dead letter.

    :param reactor: connects and tells the time.
    :param settings: the endpoint and its rules.
    :param outbox: holds what waits. It is opened before the sink is started, and closed after the sink has stopped.
    :param client: ``None`` for one of its own.
    :param drain_time: how many seconds stopping waits: for the attempts under way when the outbox outlives the process, else
        for everything that is pending.
    :param counters: ``None`` for new ones; else those of the sink that this one takes the place of.
    :param random: the source of jitter.
    :param now: tells the time of day, in seconds since 1970; the reactor's may be another.
    :ivar down_since: when the endpoint was found down, in seconds since 1970; ``None`` while it is up.
    :ivar failure: the last attempt that did not deliver.
    :ivar refusal: the last of those that was answered.
    :raises mqhooks.errors.ConfigError: when the URL is no place to send requests to, or the certificates don't serve.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: WebhookSettings,
        outbox: IOutbox,
        *,
        client: WebhookClient | None = None,
        drain_time: float = 10.0,
        counters: WebhookCounters | None = None,
        random: Random | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        self.settings = settings
        self.drain_time = drain_time
        self.counters = counters or WebhookCounters()
        self.down_since: float | None = None
        self.failure: Failure | None = None
        self.refusal: Failure | None = None
        self.outbox = outbox
        self._clock = reactor
        self._now = now
        self._client = client or WebhookClient(reactor, settings, now=now)
        self._rules = Rules(settings.bodies)
        self._policy = RetryPolicy(settings.retry)
        self._breaker = Breaker(settings.pool_size)
        self._lanes = self._make_lanes()
        self._ordered = settings.ordering == "client"
        window = settings.merge_window if self._ordered else 0
        self._merge = MergeWindow(window, self.counters.late) if window else None
        self._merge_interval = settings.merge_window / 5
        self._merge_timer: IDelayedCall | None = None
        self._pumping = False
        self._dry = False
        self._window = _window(settings)
        self._random = random or Random()
        if counters is None:
            self.counters.answers = self._client.answers
        else:
            self._client.answers = counters.answers
        self._complaints = RateLimit(reactor)
        self._retries: set[IDelayedCall] = set()
        self._probe_timer: IDelayedCall | None = None
        self._held_at = 0.0
        self._probe_due = 0.0
        self._early = False
        self._reachable = True
        self._arrived: list[Delivery] = []
        self._drained: Deferred[None] | None = None
        self._stopping = False
        self._retired = False
        self._paused = False
        self._id_prefix = f"msg_{token_hex(9)}"
        self._id_numbers = itertools.count(1)

    def _make_lanes(self) -> Lanes:
        count, client, recall = self.settings.pool_size, self._client, self.outbox.recall
        batch = self.settings.batch
        if batch is None:
            return Lanes(count, client.deliver, self._finished, recall)
        return BatchLanes(self._clock, batch, count, client.deliver_batch, self._batch_finished, recall)

    def startService(self) -> None:
        """Begin to deliver, first of all what the outbox holds."""
        super().startService()
        self.outbox.more = self._more
        self.outbox.overflow = self._shed
        if self.outbox.pending:
            self.log.info(
                "webhook {name}: {pending} deliveries are waiting", name=self.settings.name, pending=self.outbox.pending
            )
        self._pump()

    def stopService(self) -> Deferred[None]:
        """
        Finish what is under way, or all that is pending when it would be lost otherwise, and close the connections.

        :returns: a ``Deferred`` that fires when nothing is open any more, after ``drain_time`` and a little at the latest.
        """
        if self.outbox.durable:
            self._stop_sending()
        late = self._clock.callLater(self.drain_time, self._give_up)
        return self._end().addCallback(lambda _: late.cancel() if late.active() else None)

    def retire(self) -> Deferred[None]:
        """
        Finish what is under way, however long it takes, and leave all the rest in the outbox, for another sink to reclaim.

        :returns: a ``Deferred`` that fires when nothing is open any more; :meth:`stopService` hurries it.
        """
        self._retired = True
        self._stop_sending()
        return self._end()

    def _end(self) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        if self._drained is None:
            self._drained = Deferred()
            self._drained.addCallback(self._close)
        self._drained.addCallback(lambda _: ended.callback(None))
        self._check_drained()
        return ended

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Put what the rules want into the outbox."""
        deliveries: list[Delivery] = []
        waiting: list[Deferred[None]] = []
        size = 0
        counters = self.counters
        bodies, numbers, prefix, ordered = self._rules.bodies, self._id_numbers, self._id_prefix, self._ordered
        now = int(self._now() * 1000)
        for event in events:
            filtered = True
            client = f"{event.mountpoint}\0{event.client_id}" if event.mountpoint else event.client_id
            for body in bodies(event):
                filtered = False
                id_ = f"{prefix}{next(numbers):x}"
                deliveries.append(Delivery(id_, client if ordered else id_, event.timestamp, body, now))
                size += len(body)
                if size > APPENDED_BYTES:
                    self._append(deliveries, waiting)
                    deliveries, size = [], 0
            if filtered:
                counters.filtered += 1
        counters.events += len(events)
        self._append(deliveries, waiting)
        if len(waiting) < 2:
            return waiting[0] if waiting else None
        return gatherResults(waiting).addCallback(lambda _: None)

    def _append(self, deliveries: list[Delivery], waiting: list[Deferred[None]]) -> None:
        if deliveries:
            self.counters.accepted += len(deliveries)
            accepted = self.outbox.append(deliveries)
            if accepted is not None:
                waiting.append(accepted)

    @property
    def paused(self) -> bool:
        """Whether nothing is sent because somebody wants it so."""
        return self._paused

    def pause(self) -> None:
        """
        Send nothing more until :meth:`resume`; what comes is accepted, and what is under way goes on.

        A new process is not paused.
        """
        if not self._paused:
            self._paused = True
            self._lanes.limit = 0
            self.log.info("webhook {name}: paused", name=self.settings.name)

    def resume(self) -> None:
        """Send again."""
        if self._paused:
            self._paused = False
            self.log.info(
                "webhook {name}: goes on, {pending} deliveries are waiting",
                name=self.settings.name,
                pending=self.outbox.pending,
            )
            self._admit()

    @property
    def refusing(self) -> bool:
        """Whether the endpoint is taken for down because it refuses everything."""
        return self._breaker.refusing

    @property
    def next_probe(self) -> float | None:
        """In how many seconds an endpoint that is down is tried again; ``None`` when it is up or is being tried."""
        return None if self._probe_timer is None else max(self._probe_due - self._clock.seconds(), 0.0)

    # From the outbox through the merge window into the lanes.

    def _more(self) -> None:
        self._dry = False
        if self._lanes.unread:
            self._lanes.recall_again()
        self._pump()

    def _pump(self) -> None:
        # An attempt that ends at once comes back here: what it makes room for must not go before what is being pushed.
        if not self.running or self._stopping or self._pumping:
            return
        self._pumping = True
        try:
            if self._merge is None:
                while self._has_room():
                    claimed = self.outbox.claim(self._window - self._lanes.load)
                    if not claimed:
                        self._dry = True
                        break
                    self._lanes.push(claimed)
            else:
                self._pump_merged(self._merge)
                self.counters.late = self._merge.late
        finally:
            self._pumping = False
        if self._breaker.down:
            self._hurry()

    def _pump_merged(self, merge: MergeWindow) -> None:
        """Claim as much as the window takes, and let go what it has held long enough."""
        now = self._clock.seconds()
        # What is not committed yet may belong before what is here; but a disk that is full must not stop what frees it.
        since = self.outbox.waiting_since
        horizon = now if since is None else max(since, now - LONGEST_COMMIT)
        while self._has_room():
            room = self._window - len(merge) if merge.size <= WINDOW_BYTES else 0
            claimed = self.outbox.claim(room) if room > 0 else ()
            merge.push(claimed, now)
            released = merge.release(horizon, self._window - self._lanes.load)
            if not released and room <= 0:
                # More came within the window than it holds: its first part has to go.
                released = merge.release(NEVER, self._window // 2)
            self._lanes.push(released)
            if not claimed and not released:
                # What the window holds back, its timer lets go.
                self._dry = True
                break
        if len(merge) and self._merge_timer is None:
            self._merge_timer = self._clock.callLater(self._merge_interval, self._tick)

    def _shed(self, size: int) -> None:
        """Give up deliveries that wait behind a parked one, for want of room."""
        shed = self._lanes.shed(size)
        self.outbox.discard(*shed)
        self.counters.dropped += len(shed)

    def _has_room(self) -> bool:
        return self._lanes.load <= self._window // 2 and self._lanes.size <= WINDOW_BYTES

    def _tick(self) -> None:
        self._merge_timer = None
        self._pump()

    # What becomes of an attempt.

    def _finished(self, delivery: Delivery, result: Answer | DeliveryError) -> Verdict:
        if isinstance(result, Answer) and result.status in DELIVERED:
            self._arrived.append(delivery)
            if len(self._arrived) == 1:
                self._client.afterwards(self._settle_arrived)
            return DONE
        self._settle_arrived()
        verdicts = self._failed((delivery,), result)
        # Only several can be tried in halves.
        assert verdicts is not None
        return verdicts[0]

    def _settle_arrived(self) -> None:
        """Do together what the answers of one turn make possible."""
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self.counters.attempts += len(arrived)
            self._delivered(arrived)
            self._go_on()

    def _delivered(self, deliveries: Sequence[Delivery]) -> None:
        self.counters.delivered += len(deliveries)
        self._breaker.arrived(deliveries)
        now = self._now()
        self.counters.ages.observe_all([now - delivery.timestamp * 1e-9 for delivery in deliveries])
        self.outbox.settle(*deliveries)
        if not self._breaker.well:
            self._recover(succeeded=True)

    def _batch_finished(self, batch: Sequence[Delivery], result: Answer | DeliveryError) -> Sequence[Verdict] | None:
        if isinstance(result, Answer) and result.status in DELIVERED:
            self.counters.attempts += len(batch)
            self._delivered(batch)
            self._go_on()
            return [DONE] * len(batch)
        return self._failed(batch, result)

    def _failed(self, deliveries: Sequence[Delivery], result: Answer | DeliveryError) -> list[Verdict] | None:
        """
        Decide on deliveries that did not arrive, tried together in one request.

        :returns: ``None`` when they are to be tried in halves.
        """
        self.counters.attempts += len(deliveries)
        if isinstance(result, Answer) and self._policy.verdict(result.status) == "dead":
            verdicts = self._refuse(deliveries, result)
        else:
            verdicts = self._retry(deliveries, result)
        self._go_on()
        return verdicts

    def _refuse(self, deliveries: Sequence[Delivery], result: Answer) -> list[Verdict] | None:
        self.counters.refused += len(deliveries)
        breaker = self._breaker
        was_down = breaker.down
        wholesale = result.status in WHOLESALE and self.settings.retry.refusals == "hold"
        if wholesale and breaker.refused(deliveries, self._lanes.waits_beside):
            return self._wait(deliveries, result, down=True, was_down=was_down)
        if len(deliveries) == 1:
            deliveries[0].attempts += 1
            verdicts = [self._bury(deliveries[0], result, "the endpoint refuses it")]
        else:
            self._complain(self._describe(result), "a batch of {count} is tried in halves", count=len(deliveries))
            verdicts = None
        if breaker.refusing:
            # It alone is to blame, and says nothing about the others.
            self._hold(self._describe(result), 0, was_down=True, at_once=True)
        elif not wholesale and not breaker.well:
            self._recover(succeeded=False)
        return verdicts

    def _go_on(self) -> None:
        """Do what every attempt's end makes possible."""
        if not self._dry and self._has_room():
            self._pump()
        if self._drained is not None:
            self._check_drained()

    def _retry(self, deliveries: Sequence[Delivery], result: Answer | DeliveryError) -> list[Verdict]:
        """Decide on deliveries that failed together, in one request."""
        self.counters.failed += len(deliveries)
        self.counters.failures[failure_of(result)] += len(deliveries)
        if self._stopping:
            return [Verdict.AGAIN] * len(deliveries)
        was_down = self._breaker.down
        down = self._breaker.failed(deliveries[0], result) or self._lanes.clients >= PARKED_CLIENTS
        return self._wait(deliveries, result, down=down, was_down=was_down)

    def _wait(
        self, deliveries: Sequence[Delivery], result: Answer | DeliveryError, *, down: bool, was_down: bool
    ) -> list[Verdict]:
        """
        Have deliveries wait for another attempt, or bury those that have waited long enough.

        :param down: whether the endpoint is to blame, rather than the deliveries.
        """
        if self._stopping:
            return [Verdict.AGAIN] * len(deliveries)
        now = self._now()
        reason = self._describe(result)
        self._note(result, reason, now)
        pause = retry_after(result.headers, now) if isinstance(result, Answer) else None
        given_up = []
        for delivery in deliveries:
            # While the endpoint is down, an attempt says nothing of the delivery.
            delivery.attempts += not down
            given_up.append(self._policy.exhausted(delivery.attempts, now - delivery.accepted / 1000))
        if down:
            at_once = None not in given_up
            self._reachable = not isinstance(result, ConnectFailed)
            self._hold(reason, 0 if at_once else pause, was_down=was_down, at_once=at_once)
        # Another client's delivery is the next probe: were it always this one, it could keep a good endpoint down.
        parks = not down or not (isinstance(result, ConnectFailed) or self._lanes.clients >= PARKED_CLIENTS)
        verdicts = []
        attempts: dict[str, int] = {}
        for delivery, why in zip(deliveries, given_up, strict=True):
            if why is not None:
                verdicts.append(self._bury(delivery, result, why))
            elif parks:
                attempts.setdefault(delivery.client, delivery.attempts)
                verdicts.append(Verdict.PARK)
            else:
                verdicts.append(Verdict.AGAIN)
        if attempts:
            self._park(attempts, pause, reason)
        return verdicts

    def _park(self, attempts: dict[str, int], pause: float | None, reason: str) -> None:
        """Let clients go on after a while; ``attempts`` says how often the first delivery of each was tried."""
        made = max(attempts.values())
        delay = self._policy.delay(max(made, 1), self._random)
        if pause is not None:
            delay = max(delay, pause)
        self._complain(reason, "attempt {attempts}, the next in {delay:.1f} s", attempts=made, delay=delay)

        def again() -> None:
            self._retries.discard(retry)
            for client in attempts:
                self._lanes.unpark(client)

        retry: IDelayedCall = self._clock.callLater(delay, again)
        self._retries.add(retry)

    def _bury(self, delivery: Delivery, result: Answer | DeliveryError, why: str) -> Verdict:
        self.counters.dead += 1
        reason = self._describe(result)
        status, answer = (result.status, result.body) if isinstance(result, Answer) else (0, b"")
        now = self._now()
        self._note(result, reason, now)
        self.outbox.bury(delivery, self.settings.url, f"{reason}: {why}", status, answer, int(now * 1000))
        self._complain(f"{reason}: {why}", "{id} is a dead letter", id=delivery.id)
        return Verdict.DONE

    def _note(self, result: Answer | DeliveryError, reason: str, now: float) -> None:
        if isinstance(result, Answer):
            self.failure = self.refusal = Failure(now, reason, result.status, result.body)
        else:
            self.failure = Failure(now, reason, 0, b"")

    # The endpoint as a whole.

    def _hold(self, reason: str, pause: float | None, *, was_down: bool, at_once: bool) -> None:
        """Try nothing more before a probe."""
        self._lanes.limit = 0
        if self.down_since is None:
            self.down_since = self._now()
        if self._probe_timer is not None:
            return
        delay = 0 if at_once else self._policy.delay(self._breaker.probes + 1, self._random)
        if pause is not None:
            delay = max(delay, pause)
        if not was_down:
            shown = hide(reason, self.settings.url)
            if self._breaker.refusing:
                self.log.error(
                    "webhook {name}: the endpoint refuses everything: {reason}; deliveries wait until it accepts one, and none "
                    "becomes a dead letter meanwhile: check its URL, its token and its routes",
                    name=self.settings.name,
                    reason=shown,
                )
            else:
                self.log.error("webhook {name}: the endpoint is down: {reason}", name=self.settings.name, reason=shown)
        self._complain(reason, "the endpoint is tried again in {delay:.1f} s", delay=delay)
        self._held_at = self._clock.seconds()
        self._probe_due = self._held_at + delay
        self._early = self._reachable and not pause
        self._probe_timer = self._clock.callLater(min(delay, FRESH_PROBE) if self._early else delay, self._probe)

    def _hurry(self) -> None:
        """Probe soon when a client waits that has never failed."""
        timer, at = self._probe_timer, self._held_at + FRESH_PROBE
        if self._early and timer is not None and timer.getTime() > at and self._lanes.newest(self._breaker.knows) is not None:
            timer.reset(max(at - self._clock.seconds(), 0))

    def _probe(self) -> None:
        self._probe_timer = None
        self._lanes.shelve()
        self._pump()
        newest = self._lanes.newest(self._breaker.knows) if self._reachable else None
        left = self._probe_due - self._clock.seconds()
        if newest is None and left > 0:
            self._probe_timer = self._clock.callLater(left, self._probe)
            return
        self._breaker.probe()
        if newest is not None:
            self._lanes.prefer(newest)
        self._admit()

    def _recover(self, *, succeeded: bool) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        self.down_since = None
        if self._breaker.succeeded() if succeeded else self._breaker.answered():
            self.log.info(
                "webhook {name}: the endpoint is up again, {pending} deliveries are waiting",
                name=self.settings.name,
                pending=self.outbox.pending,
            )
        self._admit()

    def _admit(self) -> None:
        if not self._stopping and not self._paused:
            self._lanes.limit = self._breaker.limit
            self._lanes.admit()

    # The end.

    def _stop_sending(self) -> None:
        self._stopping = True
        self._lanes.limit = 0

    def _check_drained(self) -> None:
        self._settle_arrived()
        left = self._lanes.under_way if self.outbox.durable or self._retired else self.outbox.pending
        if self._drained is not None and not self._drained.called and not left:
            self._drained.callback(None)

    def _give_up(self) -> None:
        self._stop_sending()
        if self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    def _close(self, _: None) -> Deferred[None]:
        self._stop_sending()
        super().stopService()
        timers = [*self._retries, self._probe_timer, self._merge_timer]
        self._lanes.stop()
        self._retries.clear()
        for timer in timers:
            if timer is not None and timer.active():
                timer.cancel()
        if self.outbox.pending and not self.outbox.durable and not self._retired:
            self.log.error(
                "webhook {name}: stopped with {pending} deliveries not delivered; they are lost",
                name=self.settings.name,
                pending=self.outbox.pending,
            )
        return self._client.close().addCallback(lambda _: None)

    def _describe(self, result: Answer | DeliveryError) -> str:
        return f"{self.settings.url} answered {result.status}" if isinstance(result, Answer) else str(result)

    def _complain(self, reason: str, what: str, **values: Any) -> None:
        held = self._complaints.allow(reason)
        if held is not None:
            more = f" ({held} more like it since the last time)" if held else ""
            line = f"webhook {{name}}: {{reason}}; {what}{{more}}"
            self.log.warn(line, name=self.settings.name, reason=hide(reason, self.settings.url), more=more, **values)


def _window(settings: WebhookSettings) -> int:
    if settings.batch is None:
        return WINDOW
    return min(max(WINDOW, 2 * settings.pool_size * settings.batch.size), MOST)
