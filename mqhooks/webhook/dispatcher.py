"""
From the outbox through the merge window and the lanes to the transport, and back.

- One place decides how much is in flight: deliveries are claimed only when the lanes have room, and the circuit breaker sets
  how many requests there may be.
- Accept first, order afterwards: window, lanes and parked clients are in memory only, and a restart begins with the outbox.
- While the circuit breaker is open, one probe at a time stands for all lanes: the most recent client that has never failed,
  since the poisoned messages of some clients must not keep the others waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from random import Random
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.delivery import Delivery, Request, Response, Shelved
from mqhooks.errors import ConnectionBroken, DeliveryError, OutboxError
from mqhooks.interfaces import ICallbackTransport, IOutbox, IWebhookTransport
from mqhooks.support.ratelimit import RateLimit
from mqhooks.support.redact import hide
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.counters import LastFailure, WebhookCounters, failure_of
from mqhooks.webhook.lanes import Lanes, Settle
from mqhooks.webhook.merge import MergeWindow
from mqhooks.webhook.outcomes import AGAIN, ARRIVED, DEAD, HALVE, PARK, Outcome, Outcomes
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.settings import WebhookSettings

Done = Callable[[Response | DeliveryError], object]

WINDOW = 4096
"""How many deliveries are claimed and neither settled nor parked; further ones stay in the outbox."""

MOST = 1 << 14
"""The most that :data:`WINDOW` grows to when it takes that many to fill all batches that may be in flight."""

HELD = 1 << 14
"""How many deliveries the merge window holds with their bodies: 50 milliseconds of 300,000 a second."""

SHELVED = 1 << 16
"""
How many deliveries the merge window holds at most, those of which it keeps only the places included; and how many runs of
consecutive places lanes are given to keep.
"""

PATIENCE = 1.0
"""How many seconds most lanes have nothing to do before a few long ones are shortened: what they keep has to be read again."""

AHEAD = 1 << 20
"""About how many bytes of bodies are claimed in one turn when only their places are kept."""

LONGEST_COMMIT = 1.0
"""How many seconds the merge window waits for a commit at most."""

FRESH_PROBE = 1.0
"""
How many seconds at most until the next probe when a client that has never failed is waiting. An endpoint that cannot be
reached, or that has sent a ``Retry-After``, is not probed early.
"""

UNREADABLE = 1.0
"""Seconds before deliveries that could not be read are recalled again."""


class Dispatcher:
    """
    Delivers what one outbox holds.

    :param clock: for timers.
    :param settings: the webhook's.
    :param outbox: holds what waits; it is open between :meth:`start` and :meth:`close`.
    :param transport: sends; it is closed by its owner.
    :param counters: attempts are counted here.
    :param budget: bounds what is held in memory.
    :param random: the source of jitter.
    :param now: the time of day, in seconds since 1970.
    :ivar settled: called whenever an attempt has ended; ``None`` for no call.
    :ivar down_since: when the breaker opened, in seconds since 1970; ``None`` while it is closed.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: WebhookSettings,
        outbox: IOutbox,
        transport: IWebhookTransport,
        counters: WebhookCounters,
        *,
        budget: Budget,
        random: Random,
        now: Callable[[], float],
    ) -> None:
        self.settled: Callable[[], object] | None = None
        self.down_since: float | None = None
        self.outbox = outbox
        self._clock = clock
        self._seconds = clock.seconds
        self._settings = settings
        self._submit = transport.submit if ICallbackTransport.providedBy(transport) else partial(self._wait_for, transport)
        self._requests = RequestMaker(settings, now)
        self._counters = counters
        self._now = now
        self._outcomes = Outcomes(settings.retry, settings.pool_size, random)
        self._breaker = self._outcomes.breaker
        ordered = settings.ordering == "client"
        self._lanes = Lanes(
            settings.pool_size,
            self._send,
            outbox,
            self._unreadable,
            key=attrgetter("client" if ordered else "id"),
            clock=clock,
            batch=settings.batch,
        )
        self._window = _window(settings)
        self._low = self._window // 2
        self._stay = max(self._low // settings.pool_size, 1 if settings.batch is None else settings.batch.size)
        merge = settings.merge_window if ordered else 0
        self._merge = MergeWindow(merge, counters.late) if merge else None
        self._merge_timer: IDelayedCall | None = None
        # Of how many the window, or what it has released, holds only the places.
        self._shelved = 0
        # What it has released and lanes have no room for yet, the bytes of its bodies, and whether some is being recalled.
        self._due: deque[Delivery | Shelved] = deque()
        self._due_size = 0
        self._recalling = False
        self._recall_timer: IDelayedCall | None = None
        self._room_timer: IDelayedCall | None = None
        self._crowded_since: float | None = None
        self._budget = budget
        self._claim: Deferred[Sequence[Delivery]] | None = None
        self._last_arrival = 0.0
        self._pumping = False
        self._running = False
        self._paused = False
        self._retries: dict[IDelayedCall, Sequence[str]] = {}
        self._rereads: set[IDelayedCall] = set()
        self._probe_timer: IDelayedCall | None = None
        self._probe_due = 0.0
        self._held_at = 0.0
        self._early = False
        self._complaints = RateLimit(clock)

    @property
    def in_flight(self) -> int:
        """How many requests have no result yet."""
        return self._lanes.in_flight

    @property
    def paused(self) -> bool:
        """Whether an operator has paused it."""
        return self._paused

    @property
    def refusing(self) -> bool:
        """Whether the breaker is open because the endpoint refuses everything."""
        return self._breaker.refusing

    @property
    def retrying(self) -> int:
        """How many attempts wait for their time; clients that failed in one request are one."""
        return len(self._retries)

    @property
    def next_probe(self) -> float | None:
        """Seconds until an endpoint that is down is probed; ``None`` when it is up or being probed."""
        return None if self._probe_timer is None else max(self._probe_due - self._seconds(), 0.0)

    def start(self) -> None:
        """Begin to deliver, first of all what the outbox holds."""
        self._running = True
        self._budget.join(self)
        self._pump()

    def stop_sending(self) -> None:
        """Send nothing more; what is in flight goes on."""
        self._running = False
        self._lanes.limit = 0
        if self._claim is not None:
            self._claim.cancel()

    def close(self) -> None:
        """End all timers, and leave the memory to others."""
        self.stop_sending()
        self._lanes.stop()
        for timer in (
            *self._retries,
            *self._rereads,
            self._probe_timer,
            self._merge_timer,
            self._room_timer,
            self._recall_timer,
        ):
            if timer is not None and timer.active():
                timer.cancel()
        self._retries.clear()
        self._rereads.clear()
        self._budget.leave(self)

    def pause(self) -> None:
        """Send nothing more until :meth:`resume`; what is in flight goes on."""
        self._paused = True
        self._lanes.limit = 0

    def resume(self) -> None:
        """Send again."""
        self._paused = False
        self._admit()
        self._pump()

    def try_now(self) -> bool:
        """
        Make the next attempts now: the probe of an endpoint that is down, and the retries of parked clients.

        :returns: whether any waited for its time, and nothing keeps them from being made.
        """
        if self._paused or not self._running:
            return False
        waited = bool(self._retries)
        retries, self._retries = self._retries, {}
        for retry, keys in retries.items():
            retry.cancel()
            for key in keys:
                self._lanes.unpark(key)
        if self._probe_timer is None:
            return waited
        self._probe_due = self._seconds()
        self._probe_timer.reset(0)
        return True

    # From the outbox through the merge window into the lanes.

    def _pump(self) -> None:
        # An attempt that ends at once comes back here; what it makes room for must not overtake what is being pushed.
        if not self._running or self._pumping:
            return
        self._pumping = True
        try:
            while self._release() or self._claim_more():
                pass
        finally:
            self._pumping = False
        if self._merge is not None and len(self._merge) and self._merge_timer is None:
            self._merge_timer = self._clock.callLater(self._settings.merge_window / 5, self._tick)
        self._check_room()
        if self._breaker.down:
            self._hurry()

    def _claim_more(self) -> bool:
        """Claim what there is room for; returns whether something came at once."""
        lanes, merge = self._lanes, self._merge
        if self._claim is not None or lanes.load > self._low:
            return False
        limit = self._window - lanes.load if merge is None else HELD - len(merge)
        left = self._left()
        lanes.most = self._most
        if limit <= 0 or left <= 0:
            return False
        return self._claim_up_to(limit, left)

    def _claim_up_to(self, limit: int, size: int) -> bool:
        claimed = self.outbox.claim(limit, size)
        if isinstance(claimed, Deferred):
            self._claim = claimed
            claimed.addCallbacks(self._claimed, self._not_claimed)
            return False
        self._take(claimed)
        return True

    @property
    def _full(self) -> bool:
        """Whether the merge window has no room in memory for another body."""
        return self._merge is not None and (len(self._merge) >= HELD or self._left() <= 0)

    @property
    def _stuck(self) -> bool:
        """Whether lanes have nothing to do while the merge window is full of what may not go yet."""
        lanes = self._lanes
        idle = lanes.load <= self._low and lanes.in_flight < lanes.limit
        return idle and self._claim is None and not self._due and self._full

    @property
    def _crowded(self) -> bool:
        """Whether most lanes have nothing to do while a few have all the room."""
        lanes = self._lanes
        return lanes.load > self._low and 2 * lanes.in_flight <= lanes.limit and not lanes.idle

    def _check_room(self) -> None:
        """Keep places instead of bodies if there is need, in a turn of the reactor of its own."""
        if self._stuck:
            delay = 0.0
        elif self._crowded:
            self._crowded_since = since = self._crowded_since or self._seconds()
            delay = max(since + PATIENCE - self._seconds(), 0.0)
        else:
            if 2 * self._lanes.in_flight > self._lanes.limit:
                self._crowded_since = None
            return
        if self._room_timer is None:
            self._room_timer = self._clock.callLater(delay, self._make_room)
        elif not delay:
            self._room_timer.reset(0)

    def _make_room(self) -> None:
        self._room_timer = None
        if not self._running:
            return
        if self._crowded:
            self._shorten()
        elif self._stuck and self._merge is not None:
            self._claim_ahead(self._merge)

    def _shorten(self) -> None:
        """Keep the places of what is far behind in long lanes, so that a client's backlog does not hold up the others."""
        if self._lanes.runs < SHELVED and self._lanes.shorten(self._stay):
            self._pump()

    def _claim_ahead(self, merge: MergeWindow) -> None:
        """Have the full window keep the places of what comes, so that it restores the order however long the bodies are."""
        if len(merge) < SHELVED:
            self._claim_up_to(self._window, AHEAD)
        else:
            # What happened first has to go before its time.
            self._put_due(merge.release_oldest(SHELVED // 64))
        self._pump()

    def _left(self) -> int:
        """How many bytes of bodies may be claimed."""
        return self._most - self._lanes.size - self._due_size - (0 if self._merge is None else self._merge.size)

    @property
    def _most(self) -> int:
        # What is in lanes is not dropped when the outbox is full: half of its room is for what may be.
        return min(self._budget.part, self.outbox.max_size // 2)

    def _claimed(self, claimed: Sequence[Delivery]) -> None:
        self._claim = None
        pumping, self._pumping = self._pumping, True
        try:
            self._take(claimed)
        finally:
            self._pumping = pumping
        self._pump()

    def _not_claimed(self, failure: Failure) -> None:
        self._claim = None
        failure.trap(CancelledError)

    def _take(self, claimed: Sequence[Delivery]) -> None:
        if self._merge is None:
            self._lanes.push(claimed)
            return
        held = [delivery for delivery in claimed if delivery.window]
        if len(held) < len(claimed):
            self._lanes.push([delivery for delivery in claimed if not delivery.window])
        # A backlog was accepted at different times: each delivery waits for the window from its own acceptance on.
        now, wall = self._seconds(), int(self._now() * 1000)
        groups = [held] if held and held[0].accepted == held[-1].accepted else _by_acceptance(held)
        for group in groups:
            arrival = now - max(wall - group[0].accepted, 0) / 1000
            self._last_arrival = arrival = max(arrival, self._last_arrival)
            self._merge.push(self._shelve(group) if self._full else group, arrival)

    def _shelve(self, deliveries: Sequence[Delivery]) -> Sequence[Shelved]:
        self._shelved += len(deliveries)
        self.outbox.shelve([delivery.place for delivery in deliveries])
        return [Shelved(each.client, each.timestamp, each.place, len(each.body)) for each in deliveries]

    def _release(self) -> bool:
        """Let the merge window go what it has held long enough; returns whether there was some."""
        merge, lanes = self._merge, self._lanes
        if merge is None or not (len(merge) or self._due) or lanes.load > self._low or self._recalling:
            return False
        if not self._due:
            released = merge.release(self._horizon(), self._window - lanes.load)
            self._counters.late = merge.late
            if not self._shelved:
                lanes.push(cast("Sequence[Delivery]", released))
                return bool(released)
            self._put_due(released)
        return self._push_due()

    def _put_due(self, released: Sequence[Delivery | Shelved]) -> None:
        self._due.extend(released)
        self._due_size += sum([len(held.body) for held in released])

    def _push_due(self) -> bool:
        """Push what was released and there is memory for; returns whether there was some, and none of it is being recalled."""
        due, room = self._due, self._left()
        batch: list[Delivery | Shelved] = []
        while due and (room > 0 or not (batch or self._lanes.load)):
            held = due.popleft()
            # A body that was in memory all the time takes no more than before.
            room -= held.size if isinstance(held, Shelved) else 0
            self._shelved -= isinstance(held, Shelved)
            self._due_size -= len(held.body)
            batch.append(held)
        if batch:
            self._recall(batch)
        return bool(batch) and not self._recalling

    def _recall(self, batch: Sequence[Delivery | Shelved]) -> None:
        self._recalling = True
        places = [held.place for held in batch if isinstance(held, Shelved)]
        recall: Callable[[Sequence[int]], Any] = self.outbox.recall
        recalled: Deferred[Sequence[Delivery]] = maybeDeferred(recall, places)
        recalled.addCallbacks(self._recalled, self._not_recalled, (batch,), {}, (batch,))

    def _recalled(self, found: Sequence[Delivery], batch: Sequence[Delivery | Shelved]) -> None:
        self._recalling = False
        back = {delivery.place: delivery for delivery in found}
        whole = [back.get(held.place) if isinstance(held, Shelved) else held for held in batch]
        pumping, self._pumping = self._pumping, True
        try:
            # What the outbox had to drop is missing.
            self._lanes.push([delivery for delivery in whole if delivery is not None])
        finally:
            self._pumping = pumping
        self._pump()

    def _not_recalled(self, failure: Failure, batch: Sequence[Delivery | Shelved]) -> None:
        failure.trap(OutboxError)
        self._recall_timer = self._clock.callLater(UNREADABLE, self._recall, batch)

    def _horizon(self) -> float:
        """Work out up to what time everything accepted has also been claimed."""
        if self._claim is None:
            return self._last_arrival
        now, since = self._seconds(), self.outbox.waiting_since
        # A full disk must not stop the deliveries that would free it.
        return now if since is None else max(since, now - LONGEST_COMMIT)

    def _tick(self) -> None:
        self._merge_timer = None
        self._pump()

    def _unreadable(self, key: str) -> None:
        def again() -> None:
            self._rereads.discard(reread)
            self._lanes.reread(key)

        reread: IDelayedCall = self._clock.callLater(UNREADABLE, again)
        self._rereads.add(reread)

    def _later(self, delay: float, keys: Sequence[str]) -> None:
        def again() -> None:
            for key in self._retries.pop(retry):
                self._lanes.unpark(key)

        retry: IDelayedCall = self._clock.callLater(delay, again)
        self._retries[retry] = keys

    # Attempts.

    def _send(self, deliveries: list[Delivery], settle: Settle) -> None:
        self._submit(self._requests.make(deliveries), partial(self._answered, deliveries, settle, self._seconds()))

    def _wait_for(self, transport: IWebhookTransport, request: Request, done: Done) -> None:
        """Send a request by a transport that returns a ``Deferred``."""
        transport.send(request).addErrback(self._explain).addCallback(done)

    def _explain(self, failure: Failure) -> DeliveryError:
        error = failure.value
        if isinstance(error, DeliveryError):
            return error
        self.log.failure("webhook {name}: an attempt failed in an unexpected way", failure, name=self._settings.name)
        return ConnectionBroken(f"{self._settings.url}: {failure.getErrorMessage() or type(error).__name__}")

    def _answered(self, deliveries: list[Delivery], settle: Settle, since: float, response: Response | DeliveryError) -> None:
        if not isinstance(response, Response):
            self._not_delivered(deliveries, response, settle)
            return
        counters = self._counters
        counters.answers.observe(self._seconds() - since)
        if not 200 <= response.status < 300:
            self._not_delivered(deliveries, response, settle)
            return
        counters.attempts += len(deliveries)
        now = self._now()
        for delivery in deliveries:
            counters.ages.observe(now - delivery.timestamp * 1e-9)
        self.outbox.acknowledge(deliveries)
        breaker = self._breaker
        if not breaker.well or breaker.failing:
            self._note_arrival(deliveries)
        settle(ARRIVED)
        # While a claim waits, what comes wakes the pump by itself.
        if self._claim is None or self._due or self.settled is not None:
            self._go_on()

    def _note_arrival(self, deliveries: list[Delivery]) -> None:
        if self._outcomes.arrived(deliveries):
            self._recovered()
        self._admit()

    def _not_delivered(self, deliveries: list[Delivery], result: Response | DeliveryError, settle: Settle) -> None:
        counters, count = self._counters, len(deliveries)
        counters.attempts += count
        if isinstance(result, Response) and self._outcomes.refused(result):
            counters.refused += count
        else:
            counters.failed += count
            counters.failures[failure_of(result)] += count
            if not self._running:
                settle(AGAIN)
                if self.settled is not None:
                    self.settled()
                return
        outcome = self._outcomes.failed(deliveries, result, self._now(), self._lanes.parked, self._lanes.waits_beside)
        self._carry_out(outcome, deliveries, result)
        settle(outcome.fates)
        self._go_on()

    def _go_on(self) -> None:
        if self._lanes.load > self._low:
            self._check_room()
        elif self._claim is None or self._due:
            self._pump()
        if self.settled is not None:
            self.settled()

    def _carry_out(self, outcome: Outcome, deliveries: Sequence[Delivery], result: Response | DeliveryError) -> None:
        reason = f"{self._settings.url} answered {result.status}" if isinstance(result, Response) else str(result)
        now = self._now()
        self._note(result, reason, now)
        if outcome.closed:
            self._recovered()
        if outcome.probe is not None:
            self._hold(outcome, outcome.probe, reason)
        else:
            # A refusal shows that the endpoint works: there may be more in flight than before.
            self._admit()
        status, body = (result.status, result.body) if isinstance(result, Response) else (0, b"")
        parked = []
        for delivery, fate, why in zip(deliveries, outcome.fates, outcome.reasons, strict=True):
            if fate is DEAD:
                self.outbox.bury(delivery, self._settings.url, f"{reason}: {why}", status, body, int(now * 1000))
                self._complain(f"{reason}: {why}", "{id} is a dead letter", id=delivery.id)
            elif fate is PARK:
                parked.append(delivery)
        if parked:
            attempts = max(delivery.attempts for delivery in parked)
            self._complain(
                reason, "attempt {attempts}, retrying in {delay:.1f} s", attempts=max(attempts, 1), delay=outcome.delay
            )
            self._later(outcome.delay, tuple(dict.fromkeys(map(self._lanes.key, parked))))
        if outcome.fates[0] is HALVE:
            self._complain(reason, "a batch of {count} is tried in halves", count=len(deliveries))

    def _note(self, result: Response | DeliveryError, reason: str, now: float) -> None:
        # A reload may change the URL: what may not be shown of this one is hidden now.
        reason = hide(reason, self._settings.url)
        if isinstance(result, Response):
            body = hide(result.body.decode("utf-8", "replace"), self._settings.url).encode()
            self._counters.failure = self._counters.refusal = LastFailure(now, reason, result.status, body)
        else:
            self._counters.failure = LastFailure(now, reason, 0, b"")

    # The breaker.

    def _hold(self, outcome: Outcome, delay: float, reason: str) -> None:
        """Send nothing more before the next probe."""
        self._lanes.limit = 0
        if self.down_since is None:
            self.down_since = self._now()
        if self._probe_timer is not None:
            return
        name = self._settings.name
        if outcome.opened and self._breaker.refusing:
            self.log.error(
                "webhook {name}: the endpoint refuses everything: {reason}; deliveries wait until it accepts one, and none "
                "becomes a dead letter meanwhile: check its URL, its token and its routes",
                name=name,
                reason=hide(reason, self._settings.url),
            )
        elif outcome.opened:
            self.log.error("webhook {name}: the endpoint is down: {reason}", name=name, reason=hide(reason, self._settings.url))
        self._complain(reason, "probing in {delay:.1f} s", delay=delay)
        self._held_at = self._seconds()
        self._probe_due = self._held_at + delay
        self._early = outcome.early
        self._probe_timer = self._clock.callLater(min(delay, FRESH_PROBE) if outcome.early else delay, self._probe)

    def _hurry(self) -> None:
        """Probe early when a client that has never failed is waiting."""
        timer, at = self._probe_timer, self._held_at + FRESH_PROBE
        if self._early and timer is not None and timer.getTime() > at and self._lanes.newest(self._breaker.knows) is not None:
            timer.reset(max(at - self._seconds(), 0))

    def _probe(self) -> None:
        self._probe_timer = None
        self._lanes.shelve()
        self._pump()
        newest = self._lanes.newest(self._breaker.knows)
        left = self._probe_due - self._seconds()
        if left > 0 and (newest is None or not self._early):
            self._probe_timer = self._clock.callLater(left, self._probe)
            return
        self._breaker.probe()
        if newest is not None:
            self._lanes.prefer(newest)
        self._admit()

    def _recovered(self) -> None:
        """Go on now that the breaker has closed."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        self.down_since = None
        self.log.info(
            "webhook {name}: the endpoint is up again, {pending} deliveries are waiting",
            name=self._settings.name,
            pending=self.outbox.counts.pending,
        )

    def _admit(self) -> None:
        if self._running and not self._paused:
            self._lanes.limit = self._breaker.limit
            self._lanes.admit()

    def _complain(self, reason: str, what: str, **values: Any) -> None:
        held = self._complaints.allow(reason)
        if held is not None:
            more = f" ({held} more like it since the last time)" if held else ""
            line = f"webhook {{name}}: {{reason}}; {what}{{more}}"
            self.log.warn(line, name=self._settings.name, reason=hide(reason, self._settings.url), more=more, **values)


def _window(settings: WebhookSettings) -> int:
    if settings.batch is None:
        return WINDOW
    return min(max(WINDOW, 2 * settings.pool_size * settings.batch.size), MOST)


def _by_acceptance(deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
    return [list(group) for _, group in groupby(deliveries, attrgetter("accepted"))]
