"""
The sink that makes events into webhooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from mqhooks.nanomq.settings import WebhookSettings
from mqhooks.outbox.delivery import Delivery
from mqhooks.ratelimit import RateLimit
from mqhooks.sidecar.events import Event
from mqhooks.webhook.breaker import Breaker
from mqhooks.webhook.client import WebhookClient
from mqhooks.webhook.connection import Answer
from mqhooks.webhook.counters import WebhookCounters
from mqhooks.webhook.lanes import Lanes, Verdict
from mqhooks.webhook.merge import MergeWindow
from mqhooks.webhook.retry import RetryPolicy, retry_after

WINDOW = 4096
"""How many deliveries are claimed from the outbox and neither settled nor parked; what is beyond them stays in the outbox."""

WINDOW_BYTES = 8 << 20
"""How many bytes their bodies may have, about; as many again in the merge window."""

APPENDED_BYTES = 1 << 20
"""How many bytes of bodies are made before they go into the outbox, about."""

LONGEST_COMMIT = 1.0
"""How many seconds a commit may take before the merge window no longer waits for it."""

NEVER = float("inf")
"""A time that everything is before."""

PARKED_CLIENTS = 8192
"""When more clients than these wait for their retries, it is the endpoint's failure rather than theirs."""


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
    :param random: the source of jitter.
    :param now: tells the time of day, in seconds since 1970; the reactor's may be another.
    :raises mqhooks.errors.ConfigError: when the certificates don't serve.
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
        random: Random | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        self.settings = settings
        self.counters = WebhookCounters()
        self.outbox = outbox
        self._clock = reactor
        self._now = now
        self._client = client or WebhookClient(reactor, settings, now=now)
        self._rules = Rules(settings)
        self._policy = RetryPolicy(settings.retry)
        self._breaker = Breaker(settings.pool_size)
        self._lanes = Lanes(settings.pool_size, self._client.deliver, self._finished, outbox.recall)
        self._ordered = settings.ordering == "client"
        window = settings.merge_window if self._ordered else 0
        self._merge = MergeWindow(window) if window else None
        self._merge_interval = settings.merge_window / 5
        self._merge_timer: IDelayedCall | None = None
        self._pumping = False
        self._random = random or Random()
        self._drain_time = drain_time
        self._complaints = RateLimit(reactor)
        self._retries: set[IDelayedCall] = set()
        self._probe_timer: IDelayedCall | None = None
        self._drained: Deferred[None] | None = None
        self._stopping = False
        self._id_prefix = f"msg_{token_hex(9)}"
        self._id_count = 0

    def startService(self) -> None:
        """Begin to deliver, first of all what the outbox holds."""
        super().startService()
        self.outbox.more = self._pump
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
        drained: Deferred[None] = Deferred()
        self._drained = drained
        late = self._clock.callLater(self._drain_time, self._give_up)
        drained.addCallback(lambda _: late.cancel() if late.active() else None)
        drained.addCallback(self._close)
        self._check_drained()
        return drained

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Put what the rules want into the outbox."""
        deliveries: list[Delivery] = []
        waiting: list[Deferred[None]] = []
        size = 0
        counters = self.counters
        now = int(self._now() * 1000)
        for event in events:
            filtered = True
            client = f"{event.mountpoint}\0{event.client_id}" if event.mountpoint else event.client_id
            for body in self._rules.bodies(event):
                filtered = False
                self._id_count += 1
                id_ = f"{self._id_prefix}{self._id_count:x}"
                deliveries.append(Delivery(id_, client if self._ordered else id_, event.timestamp, body, now))
                size += len(body)
                if size > APPENDED_BYTES:
                    self._append(deliveries, waiting)
                    deliveries, size = [], 0
            counters.filtered += filtered
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

    # From the outbox through the merge window into the lanes.

    def _pump(self) -> None:
        # An attempt that ends at once comes back here: what it makes room for must not go before what is being pushed.
        if not self.running or self._stopping or self._pumping:
            return
        self._pumping = True
        try:
            if self._merge is None:
                while self._has_room() and (claimed := self.outbox.claim(WINDOW - self._lanes.load)):
                    self._lanes.push(claimed)
            else:
                self._pump_merged(self._merge)
                self.counters.late = self._merge.late
        finally:
            self._pumping = False

    def _pump_merged(self, merge: MergeWindow) -> None:
        """Claim as much as the window takes, and let go what it has held long enough."""
        now = self._clock.seconds()
        # What is not committed yet may belong before what is here; but a disk that is full must not stop what frees it.
        since = self.outbox.waiting_since
        horizon = now if since is None else max(since, now - LONGEST_COMMIT)
        while self._has_room():
            room = WINDOW - len(merge) if merge.size <= WINDOW_BYTES else 0
            claimed = self.outbox.claim(room) if room > 0 else ()
            merge.push(claimed, now)
            released = merge.release(horizon, WINDOW - self._lanes.load)
            if not released and room <= 0:
                # More came within the window than it holds: its first part has to go.
                released = merge.release(NEVER, WINDOW // 2)
            self._lanes.push(released)
            if not claimed and not released:
                break
        if len(merge) and self._merge_timer is None:
            self._merge_timer = self._clock.callLater(self._merge_interval, self._tick)

    def _shed(self, size: int) -> None:
        """Give up deliveries that wait behind a parked one, for want of room."""
        for delivery in self._lanes.shed(size):
            self.outbox.discard(delivery)
            self.counters.dropped += 1

    def _has_room(self) -> bool:
        return self._lanes.load <= WINDOW // 2 and self._lanes.size <= WINDOW_BYTES

    def _tick(self) -> None:
        self._merge_timer = None
        self._pump()

    # What becomes of an attempt.

    def _finished(self, delivery: Delivery, result: Answer | DeliveryError) -> Verdict:
        self.counters.attempts += 1
        if isinstance(result, Answer):
            judged = self._policy.verdict(result.status)
            if judged == "delivered":
                self.counters.delivered += 1
                self.outbox.settle(delivery)
                verdict = Verdict.DONE
            elif judged == "dead":
                delivery.attempts += 1
                verdict = self._bury(delivery, result, "the endpoint refuses it")
            else:
                verdict = self._retry(delivery, result)
        else:
            judged = "retry"
            verdict = self._retry(delivery, result)
        if judged != "retry" and (self._breaker.limit < self._lanes.count or self._breaker.suspects):
            self._recover()
        if self._has_room():
            self._pump()
        if self._drained is not None:
            self._check_drained()
        return verdict

    def _retry(self, delivery: Delivery, result: Answer | DeliveryError) -> Verdict:
        self.counters.failed += 1
        if self._stopping:
            return Verdict.AGAIN
        now = self._now()
        reason = self._describe(result)
        was_down = self._breaker.down
        pause = retry_after(result.headers, now) if isinstance(result, Answer) else None
        down = self._breaker.failed(delivery, result) or self._lanes.clients >= PARKED_CLIENTS
        # While the endpoint is down, an attempt says nothing of the delivery.
        delivery.attempts += not down
        exhausted = self._policy.exhausted(delivery.attempts, now - delivery.accepted / 1000)
        if down:
            self._hold(reason, 0 if exhausted else pause, was_down=was_down, at_once=exhausted is not None)
        if exhausted is not None:
            return self._bury(delivery, result, exhausted)
        if down and (isinstance(result, ConnectFailed) or self._lanes.clients >= PARKED_CLIENTS):
            return Verdict.AGAIN
        # Another client's delivery is the next probe: were it always this one, it could keep a good endpoint down.
        delay = self._policy.delay(max(delivery.attempts, 1), self._random)
        if pause is not None:
            delay = max(delay, pause)
        self._complain(reason, "attempt {attempts}, the next in {delay:.1f} s", attempts=delivery.attempts, delay=delay)

        def again() -> None:
            self._retries.discard(retry)
            self._lanes.unpark(delivery.client)

        retry: IDelayedCall = self._clock.callLater(delay, again)
        self._retries.add(retry)
        return Verdict.PARK

    def _bury(self, delivery: Delivery, result: Answer | DeliveryError, why: str) -> Verdict:
        self.counters.dead += 1
        reason = self._describe(result)
        status, answer = (result.status, result.body) if isinstance(result, Answer) else (0, b"")
        died = int(self._now() * 1000)
        self.outbox.bury(delivery, self.settings.url, f"{reason}: {why}", status, answer, died)
        self._complain(f"{reason}: {why}", "{id} is a dead letter", id=delivery.id)
        return Verdict.DONE

    # The endpoint as a whole.

    def _hold(self, reason: str, pause: float | None, *, was_down: bool, at_once: bool) -> None:
        """Try nothing more before a probe."""
        self._lanes.limit = 0
        if self._probe_timer is not None:
            return
        delay = 0 if at_once else self._policy.delay(self._breaker.probes + 1, self._random)
        if pause is not None:
            delay = max(delay, pause)
        if not was_down:
            self.log.error("webhook {name}: the endpoint is down: {reason}", name=self.settings.name, reason=reason)
        self._complain(reason, "the endpoint is tried again in {delay:.1f} s", delay=delay)
        self._probe_timer = self._clock.callLater(delay, self._probe)

    def _probe(self) -> None:
        self._probe_timer = None
        self._breaker.probe()
        self._admit()

    def _recover(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        if self._breaker.answered():
            self.log.info(
                "webhook {name}: the endpoint is up again, {pending} deliveries are waiting",
                name=self.settings.name,
                pending=self.outbox.pending,
            )
        self._admit()

    def _admit(self) -> None:
        if not self._stopping:
            self._lanes.limit = self._breaker.limit
            self._lanes.admit()

    # The end.

    def _stop_sending(self) -> None:
        self._stopping = True
        self._lanes.limit = 0

    def _check_drained(self) -> None:
        left = self._lanes.under_way if self.outbox.durable else self.outbox.pending
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
        self._retries.clear()
        for timer in timers:
            if timer is not None and timer.active():
                timer.cancel()
        if self.outbox.pending and not self.outbox.durable:
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
            self.log.warn(line, name=self.settings.name, reason=reason, more=more, **values)
