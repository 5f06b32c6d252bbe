"""
The dispatcher: sends the lanes' deliveries, and carries out the outcomes.

- One place decides how much is in flight: the circuit breaker sets the limit.
- While the circuit breaker is open, one probe at a time stands for all lanes. It is a delivery of the most recent client whose
  last attempt did not fail, since the poisoned messages of some clients must not keep the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from random import Random
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mqhooks.delivery import Delivery, Response, address
from mqhooks.errors import DeliveryError, NotAuthenticated
from mqhooks.interfaces import IOutbox, IWebhookTransport
from mqhooks.support.ratelimit import RateLimit
from mqhooks.support.redact import hide
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.counters import LastFailure, WebhookCounters, failure_of
from mqhooks.webhook.handshake import Handshake
from mqhooks.webhook.hider import hider_for
from mqhooks.webhook.intake import UNREADABLE, Intake
from mqhooks.webhook.lanes import Lanes, Settle
from mqhooks.webhook.outcomes import AGAIN, ARRIVED, DEAD, HALVE, PARK, Outcome, Outcomes
from mqhooks.webhook.rate import Rate
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.retry import RetryPolicy, retry_after
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.submit import submitter

FRESH_PROBE = 1.0
"""
Longest wait for the next probe, in seconds, while a client is waiting whose last attempt did not fail. An endpoint that cannot
be reached, or that has sent a ``Retry-After``, is not probed early.
"""


class Dispatcher:
    """
    Delivers the contents of one outbox.

    :param clock: for timers.
    :param settings: the webhook's settings.
    :param outbox: holds the pending deliveries; open between :meth:`start` and :meth:`close`.
    :param transport: sends requests; closed by its owner.
    :param counters: counts the attempts.
    :param budget: bounds the bodies in memory.
    :param random: the source of jitter.
    :param now: returns the time of day, in seconds since 1970.
    :ivar settled: called whenever an attempt has ended; ``None`` if nobody wants to know.
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
        self._submit = submitter(transport, settings.name, settings.url, self.log)
        self._requests = RequestMaker(settings, now)
        self._hider = hider_for(settings)
        self._counters = counters
        self._now = now
        self._outcomes = Outcomes(settings.retry, settings.pool_size, random)
        self._breaker = self._outcomes.breaker
        self._rate = None if settings.limit is None else Rate(settings.limit)
        self._rate_timer: IDelayedCall | None = None
        ordered = settings.ordering == "client"
        self._lanes = Lanes(
            settings.pool_size,
            self._send if self._rate is None else self._send_limited,
            outbox,
            self._unreadable,
            key=attrgetter("client" if ordered else "id"),
            clock=clock,
            batch=settings.batch,
            gate=outbox.gate,
            rated=self._rate is not None,
        )
        self._intake = Intake(
            clock, settings, outbox, self._lanes, counters, budget=budget, now=now, pumped=self._hurry_if_down
        )
        self._handshake: Handshake | None = None
        if settings.cloudevents is not None and settings.cloudevents.handshake:
            policy, origin = RetryPolicy(settings.retry), settings.cloudevents.origin
            self._handshake = Handshake(clock, origin, self._requests.head, self._submit, policy, random, self._shook)
            self._lanes.limit = 0
        self._running = False
        self._paused = False
        self._retries: dict[IDelayedCall, Sequence[str]] = {}
        self._calls: set[IDelayedCall] = set()
        self._probe_timer: IDelayedCall | None = None
        self._probe_due = 0.0
        self._held_at = 0.0
        self._early = False
        self._complaints = RateLimit(clock)

    @property
    def in_flight(self) -> int:
        """Number of requests without a result."""
        return self._lanes.in_flight

    @property
    def in_flight_limit(self) -> int:
        """Number of requests that may be in flight now."""
        return 0 if self._paused else self._breaker.limit

    @property
    def paused(self) -> bool:
        """Whether an operator has paused the webhook."""
        return self._paused

    @property
    def refusing(self) -> bool:
        """Whether the breaker is open because the endpoint refuses everything."""
        return self._breaker.refusing

    @property
    def retrying(self) -> int:
        """Number of retries that wait for their backoff; clients that failed in the same request count once."""
        return len(self._retries)

    @property
    def next_probe(self) -> float | None:
        """Seconds until an endpoint that is down is probed; ``None`` when it is up or being probed."""
        return None if self._probe_timer is None else max(self._probe_due - self._seconds(), 0.0)

    def start(self) -> None:
        """Start delivering, beginning with the contents of the outbox."""
        self._running = True
        # A pause may have begun and ended before the start.
        self._admit()
        self._intake.start()
        if self._handshake is not None:
            self._handshake.start()

    def stop_sending(self) -> None:
        """Send nothing more; requests in flight go on."""
        self._running = False
        self._lanes.limit = 0
        self._intake.stop()
        if self._handshake is not None:
            self._handshake.stop()

    def close(self) -> None:
        """Cancel all timers, and leave the memory to other webhooks."""
        self.stop_sending()
        self._lanes.stop()
        for timer in (*self._retries, *self._calls, self._probe_timer, self._rate_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._retries.clear()
        self._calls.clear()
        self._intake.close()

    def pause(self) -> None:
        """Send nothing more until :meth:`resume`; requests in flight go on."""
        self._paused = True
        self._lanes.limit = 0

    def resume(self) -> None:
        """Send again."""
        self._paused = False
        self._admit()
        self._intake.pump()

    def try_now(self) -> bool:
        """
        Make the next attempts now: the probe of an endpoint that is down, and the retries of parked clients.

        :returns: whether any attempt was waiting for its time, and nothing else prevents it.
        """
        if self._paused or not self._running:
            return False
        waited = bool(self._retries) | (self._handshake is not None and self._handshake.try_now())
        if self._rate is not None and self._rate.release(self._seconds()):
            waited = True
            self._admit()
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

    # Retries.

    def _unreadable(self, key: str) -> None:
        self._call_later(UNREADABLE, lambda: self._lanes.reread(key))

    def _call_later(self, delay: float, call: Callable[[], object]) -> None:
        def now() -> None:
            self._calls.discard(timer)
            call()

        timer: IDelayedCall = self._clock.callLater(delay, now)
        self._calls.add(timer)

    def _later(self, delay: float, keys: Sequence[str]) -> None:
        def again() -> None:
            for key in self._retries.pop(retry):
                self._lanes.unpark(key)

        retry: IDelayedCall = self._clock.callLater(delay, again)
        self._retries[retry] = keys

    # Attempts.

    def _send(self, deliveries: list[Delivery], settle: Settle) -> None:
        for delivery in deliveries:
            if delivery.variation is not None and (len(deliveries) > 1 or delivery.variation.problem is not None):
                # Lanes would go round in circles if it were settled at once.
                self._call_later(0, lambda: self._not_sent(deliveries, settle))
                return
        self._submit(self._requests.make(deliveries), partial(self._answered, deliveries, settle, self._seconds()))

    def _send_limited(self, deliveries: list[Delivery], settle: Settle) -> None:
        """Send a request of a webhook with a ``limit``; the next one goes when there is a token for it."""
        assert self._rate is not None
        self._rate.take(self._seconds())
        if self._limited():
            self._lanes.limit = 0
        self._send(deliveries, settle)

    def _limited(self) -> bool:
        """Return whether the ``limit`` forbids sending now; if so, set the timer that admits requests again."""
        wait = 0.0 if self._rate is None else self._rate.wait(self._seconds())
        if self._rate_timer is not None and self._rate_timer.active():
            self._rate_timer.cancel()
        self._rate_timer = self._clock.callLater(wait, self._admit) if wait else None
        return wait > 0

    def _not_sent(self, deliveries: list[Delivery], settle: Settle) -> None:
        """Settle deliveries that cannot share a request, or some of which cannot have one."""
        problems = [None if delivery.variation is None else delivery.variation.problem for delivery in deliveries]
        now = self._now()
        for delivery, problem in zip(deliveries, problems, strict=True):
            if problem is not None:
                reason = f"it cannot be sent: {problem}"
                self.outbox.bury(delivery, self._settings.url, reason, 0, b"", int(now * 1000))
                self._counters.failure = LastFailure(now, reason, 0, b"")
                self._complain(reason, "{id} became a dead letter", id=delivery.id)
        if any(problems):
            settle([AGAIN if problem is None else DEAD for problem in problems])
        else:
            settle([HALVE] * len(deliveries))
        self._go_on()

    def _answered(self, deliveries: list[Delivery], settle: Settle, since: float, response: Response | DeliveryError) -> None:
        counters, now, seconds = self._counters, self._now(), self._seconds() - since
        if self._hider is not None and isinstance(response, Response):
            response = self._hider.hide(response)
        counters.note(now, seconds, deliveries, self._settings.url, response)
        if not isinstance(response, Response):
            self._not_delivered(deliveries, response, settle)
            return
        counters.answers.observe(seconds)
        if not 200 <= response.status < 300:
            self._not_delivered(deliveries, response, settle)
            return
        counters.attempts += len(deliveries)
        for delivery in deliveries:
            counters.ages.observe(now - delivery.timestamp * 1e-9)
        self.outbox.acknowledge(deliveries)
        breaker = self._breaker
        if not breaker.well or breaker.failing:
            self._note_arrival(deliveries)
        settle(ARRIVED)
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
            cause = failure_of(result)
            counters.failures[cause] = counters.failures.get(cause, 0) + count
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
        self._intake.go_on()
        if self.settled is not None:
            self.settled()

    def _carry_out(self, outcome: Outcome, deliveries: Sequence[Delivery], result: Response | DeliveryError) -> None:
        reason = f"{self._settings.url} answered {result.status}" if isinstance(result, Response) else str(result)
        now = self._now()
        self._note(deliveries[0], result, reason, now)
        if self._rate is not None and isinstance(result, Response) and not self._outcomes.refused(result):
            self._obey(self._rate, result, reason, now)
        if outcome.closed:
            self._recovered()
        if outcome.probe is not None:
            self._hold(outcome, outcome.probe, reason, sent=not isinstance(result, NotAuthenticated))
        else:
            # A refusal shows that the endpoint works, so the limit may have risen.
            self._admit()
        status, body = (result.status, result.body) if isinstance(result, Response) else (0, b"")
        parked = []
        for delivery, fate, why in zip(deliveries, outcome.fates, outcome.reasons, strict=True):
            if fate is DEAD:
                self.outbox.bury(delivery, self._settings.url, f"{reason}: {why}", status, body, int(now * 1000))
                self._complain(f"{reason}: {why}", "{id} became a dead letter", id=delivery.id)
            elif fate is PARK:
                parked.append(delivery)
        # After stop_sending() nothing is tried again, and after close() a timer would be left behind.
        if parked and self._running:
            attempts = max(delivery.attempts for delivery in parked)
            self._complain(
                reason, "attempt {attempts}, retrying in {delay:.1f} s", attempts=max(attempts, 1), delay=outcome.delay
            )
            self._later(outcome.delay, tuple(dict.fromkeys(map(self._lanes.key, parked))))
        if outcome.fates[0] is HALVE:
            self._complain(reason, "a batch of {count} is tried in halves", count=len(deliveries))

    def _obey(self, rate: Rate, response: Response, reason: str, now: float) -> None:
        """Send nothing more until the endpoint's ``Retry-After`` is over."""
        pause = retry_after(response.headers, now)
        if pause:
            rate.hold(self._seconds() + pause)
            self._complain(f"{reason}, Retry-After", "nothing more is sent for {delay:.0f} s", delay=pause)

    def _note(self, delivery: Delivery, result: Response | DeliveryError, reason: str, now: float) -> None:
        # A reload may change the URL, so hide this one's secrets now.
        reason = hide(reason, self._settings.url)
        if isinstance(result, Response):
            body = hide(result.body.decode("utf-8", "replace"), self._settings.url)
            if delivery.variation is not None and delivery.variation.path is not None:
                body = hide(body, address(self._settings.url, delivery.variation.path))
            self._counters.failure = self._counters.refusal = LastFailure(now, reason, result.status, body.encode())
        else:
            self._counters.failure = LastFailure(now, reason, 0, b"")

    # The breaker.

    def _hold(self, outcome: Outcome, delay: float, reason: str, *, sent: bool) -> None:
        """Send nothing more before the next probe."""
        self._lanes.limit = 0
        if self.down_since is None:
            self.down_since = self._now()
        if self._probe_timer is not None or not self._running:
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
            what = "the endpoint is down" if sent else "nothing can be sent"
            line = f"webhook {{name}}: {what}: {{reason}}"
            self.log.error(line, name=name, reason=hide(reason, self._settings.url))
        self._complain(reason, "probing in {delay:.1f} s", delay=delay)
        self._held_at = self._seconds()
        self._probe_due = self._held_at + delay
        self._early = outcome.early
        self._probe_timer = self._clock.callLater(min(delay, FRESH_PROBE) if outcome.early else delay, self._probe)

    def _hurry_if_down(self) -> None:
        if self._breaker.down:
            self._hurry()

    def _hurry(self) -> None:
        """Probe early if a client is waiting whose last attempt did not fail."""
        timer, at = self._probe_timer, self._held_at + FRESH_PROBE
        if self._early and timer is not None and timer.getTime() > at and self._lanes.newest(self._breaker.knows) is not None:
            timer.reset(max(at - self._seconds(), 0))

    def _probe(self) -> None:
        self._probe_timer = None
        self._lanes.shelve()
        self._intake.pump()
        newest = self._lanes.newest(self._breaker.knows)
        left = self._probe_due - self._seconds()
        if left > 0 and (newest is None or not self._early):
            self._probe_timer = self._clock.callLater(left, self._probe)
            return
        self._breaker.probe()
        if newest is not None:
            self._lanes.prefer(newest)
        self._admit()
        self._intake.pump()

    def _recovered(self) -> None:
        """End the probing, now that the breaker has closed."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        self.down_since = None
        self.log.info(
            "webhook {name}: the endpoint is up again, {pending} deliveries are waiting",
            name=self._settings.name,
            pending=self.outbox.counts.pending,
        )

    def _shook(self, reason: str | None) -> None:
        """Send after a handshake that succeeded; send nothing more after one that did not."""
        name, handshake = self._settings.name, self._handshake
        if reason is None:
            self.log.info("webhook {name}: the endpoint allows our events", name=name)
            self._admit()
            self._intake.pump()
            return
        self._counters.failure = LastFailure(self._now(), hide(reason, self._settings.url), 0, b"")
        if handshake is not None and not handshake.allows:
            self._lanes.limit = 0
            self._complain(reason, "deliveries wait until the endpoint allows them")

    def _admit(self) -> None:
        if self._running and not self._paused and (self._handshake is None or self._handshake.allows):
            if self._rate is not None and self._limited():
                self._lanes.limit = 0
                return
            self._lanes.limit = self._breaker.limit
            self._lanes.admit()

    def _complain(self, reason: str, what: str, **values: Any) -> None:
        held = self._complaints.allow(reason)
        if held is not None:
            more = f" ({held} more like it since the last time)" if held else ""
            line = f"webhook {{name}}: {{reason}}; {what}{{more}}"
            self.log.warn(line, name=self._settings.name, reason=hide(reason, self._settings.url), more=more, **values)
