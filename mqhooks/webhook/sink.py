"""
The sink that turns events into webhooks: the rules turn events into deliveries, the deliveries go into the outbox, and a
:class:`~mqhooks.webhook.dispatcher.Dispatcher` delivers them from there.

- A body is made before it goes into the outbox, so that every retry, even tomorrow's, sends the same bytes under the same
  idempotency key.
- A sink's settings never change: a sink with new settings takes over its outbox and counters (:mod:`mqhooks.app.group`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from random import Random
from secrets import token_hex
from time import time
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import alsoProvides, implementer

from mqhooks.delivery import Delivery, Request, Response
from mqhooks.errors import DeliveryError
from mqhooks.events import Event
from mqhooks.interfaces import IBoundedSink, IHolding, IOutbox, IWebhookTransport
from mqhooks.nanomq.rules import Rules
from mqhooks.shapes.rules import ShapedRules
from mqhooks.support.times import written
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.counters import AUTH, Attempt, LastFailure, WebhookCounters
from mqhooks.webhook.dispatcher import Dispatcher
from mqhooks.webhook.hider import hider_for
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.submit import careful_submitter

PAUSE_LOOK = 60.0
"""Longest time between two looks at the time of day, in seconds, while a webhook is paused until some time."""

APPENDED_BYTES = 1 << 20
"""Bytes of bodies, roughly, that are made before they go into the outbox."""


@implementer(IBoundedSink)
class WebhookSink(Service):
    """
    Sends the events that the rules want to one endpoint, each client's in the order in which they happened. It provides
    :class:`~mqhooks.interfaces.IHolding` if its outbox does.

    :param clock: for timers.
    :param settings: the endpoint and its rules.
    :param outbox: holds the deliveries. It is opened before the sink is started, and closed after the sink has stopped.
    :param transport: sends the requests; the sink closes it when it stops.
    :param drain_time: seconds that stopping may wait: for requests in flight if the outbox outlives the process, else for all
        pending deliveries.
    :param counters: the counters of the sink that this one replaces; ``None`` for new ones.
    :param budget: bounds the memory of all webhooks; ``None`` for a budget of its own.
    :param random: the source of jitter.
    :param now: returns the time of day, in seconds since 1970; the clock may count from elsewhere.
    :param delivers: whether to deliver, or only to put events into the outbox, for other processes.
    :ivar paused_until: the time when a pause ends automatically, in seconds since 1970; ``None`` if it does not.
    :ivar testing: whether a test is in flight.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: WebhookSettings,
        outbox: IOutbox,
        transport: IWebhookTransport,
        *,
        drain_time: float = 10.0,
        counters: WebhookCounters | None = None,
        budget: Budget | None = None,
        random: Random | None = None,
        now: Callable[[], float] = time,
        delivers: bool = True,
    ) -> None:
        self.settings = settings
        self._delivers = delivers
        self.drain_time = drain_time
        self.counters = counters or WebhookCounters()
        if settings.auth is not None:
            self.counters.failures.setdefault(AUTH, 0)
        self.outbox = outbox
        if IHolding.providedBy(outbox):
            alsoProvides(self, IHolding)
        self._clock = clock
        self._now = now
        self._transport = transport
        self._id_prefix = f"msg_{token_hex(9)}"
        self._id_numbers = itertools.count(1)
        self._shaped = settings.shaped
        if settings.shaped:
            made: Callable[[Event], Iterable[Any]] = ShapedRules(settings.bodies, settings.cloudevents, self._next_id).requests
        else:
            made = Rules(settings.bodies).bodies
        self._made = made
        self._dispatcher = Dispatcher(
            clock,
            settings,
            outbox,
            transport,
            self.counters,
            budget=budget or Budget(),
            random=random or Random(),
            now=now,
        )
        self._submit = careful_submitter(transport, settings.name, settings.url, self.log)
        self._drained: Deferred[None] | None = None
        self._retired = False
        self._pause_timer: IDelayedCall | None = None
        self.paused_until: float | None = None
        self.testing = False

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Put the events that the rules want into the outbox; see :meth:`mqhooks.interfaces.IEventSink.receive`."""
        return self._put(events, room=True)

    @property
    def full(self) -> bool:
        """Whether the outbox has no room."""
        return self.outbox.full

    @property
    def holds(self) -> bool:
        """Whether the outbox holds deliveries that it cannot commit yet; see :class:`mqhooks.interfaces.IHolding`."""
        return IHolding.providedBy(self.outbox) and self.outbox.holds

    def store(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Put the events that the rules want into the outbox; see :meth:`mqhooks.interfaces.IBoundedSink.store`."""
        return self._put(events, room=False)

    def _put(self, events: Sequence[Event], *, room: bool) -> Deferred[None] | None:
        deliveries: list[Delivery] = []
        waiting: list[Deferred[None]] = []
        size = filtered = 0
        bodies, numbers, prefix, shaped = self._made, self._id_numbers, self._id_prefix, self._shaped
        now = int(self._now() * 1000)
        for event in events:
            client = f"{event.mountpoint}\0{event.client_id}" if event.mountpoint else event.client_id
            matched = False
            for body in bodies(event):
                matched = True
                if shaped:
                    identity, body, variation = body
                else:
                    identity, variation = f"{prefix}{next(numbers):x}", None
                deliveries.append(
                    Delivery(identity, client, event.timestamp, body, now, window=event.window, variation=variation)
                )
                size += len(body)
                if size > APPENDED_BYTES:
                    self._append(deliveries, waiting, room=room)
                    deliveries, size = [], 0
            if not matched:
                filtered += 1
        self.counters.events += len(events)
        self.counters.filtered += filtered
        self._append(deliveries, waiting, room=room)
        if len(waiting) < 2:
            return waiting[0] if waiting else None
        return gatherResults(waiting).addCallback(lambda _: None)

    def _next_id(self) -> str:
        return f"{self._id_prefix}{next(self._id_numbers):x}"

    def _append(self, deliveries: list[Delivery], waiting: list[Deferred[None]], *, room: bool) -> None:
        if deliveries:
            accepted = self.outbox.append(deliveries) if room else self.outbox.append(deliveries, room=False)
            if accepted is not None:
                waiting.append(accepted)

    # Life cycle.

    def startService(self) -> None:
        """Start delivering, beginning with the contents of the outbox."""
        super().startService()
        pending = self.outbox.counts.pending
        if pending:
            self.log.info("webhook {name}: {pending} deliveries are waiting", name=self.settings.name, pending=pending)
        if self._delivers:
            self._dispatcher.start()

    def stopService(self) -> Deferred[None]:
        """
        Finish the requests in flight, or all pending deliveries if they would be lost otherwise, and close the connections.

        :returns: a ``Deferred`` that fires when everything is closed, shortly after ``drain_time`` at the latest.
        """
        if self.outbox.durable:
            self._dispatcher.stop_sending()
        late = self._clock.callLater(self.drain_time, self._give_up)
        return self._end().addCallback(lambda _: late.cancel() if late.active() else None)

    def retire(self) -> Deferred[None]:
        """
        Finish the requests in flight, however long it takes, and leave the rest in the outbox for another sink to reclaim.

        :returns: a ``Deferred`` that fires when everything is closed; :meth:`stopService` hurries it.
        """
        self._retired = True
        self._pause_until(None)
        self._dispatcher.stop_sending()
        return self._end()

    def pause(self, until: float | None = None) -> None:
        """
        Send nothing more until :meth:`resume`. Events are still accepted, and requests in flight go on.

        A restart ends the pause.

        :param until: when to resume automatically, in seconds since 1970; ``None`` for never. A later call replaces it.
        """
        if not self._dispatcher.paused or until != self.paused_until:
            end = "" if until is None else f" until {written(int(until * 1e9))}"
            self.log.info("webhook {name}: paused{end}", name=self.settings.name, end=end)
        self._dispatcher.pause()
        self._pause_until(until)

    def _pause_until(self, until: float | None) -> None:
        self.paused_until = until
        if self._pause_timer is not None and self._pause_timer.active():
            self._pause_timer.cancel()
        if until is not None:
            left = until - self._now()
            # The time of day may be changed meanwhile.
            self._pause_timer = self._clock.callLater(min(max(left, 0), PAUSE_LOOK), self._look_at_pause, until)

    def _look_at_pause(self, until: float) -> None:
        if self._now() >= until:
            self.resume()
        else:
            self._pause_until(until)

    def resume(self) -> None:
        """Send again."""
        self._pause_until(None)
        if self._dispatcher.paused:
            self.log.info(
                "webhook {name}: resumed, {pending} deliveries are waiting",
                name=self.settings.name,
                pending=self.outbox.counts.pending,
            )
            self._dispatcher.resume()

    def try_now(self) -> bool:
        """
        Make the next attempts now instead of waiting for their time: the probe of an endpoint that is down, and retries.

        :returns: whether any were waiting; always ``False`` while the webhook is paused.
        """
        tried = self._dispatcher.try_now()
        if tried:
            self.log.info("webhook {name}: the next attempts are made now", name=self.settings.name)
        return tried

    def send_test(self, delivery: Delivery, request: Request) -> Deferred[Attempt]:
        """
        Send a request past the outbox, even while the webhook is paused, down or at its limit. The request changes none of
        that, and is not counted. Send one test at a time.

        :param delivery: a delivery made for the test.
        :param request: the request that carries it.
        :returns: a ``Deferred`` that fires with the result.
        """
        answered: Deferred[Attempt] = Deferred()
        since = self._clock.seconds()
        self.testing = True

        def ended(result: Response | DeliveryError) -> None:
            self.testing = False
            hider = hider_for(self.settings)
            if hider is not None and isinstance(result, Response):
                result = hider.hide(result)
            self.counters.note(self._now(), self._clock.seconds() - since, [delivery], self.settings.url, result)
            answered.callback(self.counters.tried[-1])

        self._submit(request, ended)
        return answered

    def _end(self) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        if self._drained is None:
            self._drained = Deferred()
            self._drained.addCallback(self._close)
            self._dispatcher.settled = self._check_drained
        self._drained.addCallback(lambda _: ended.callback(None))
        self._check_drained()
        return ended

    def _check_drained(self) -> None:
        if self._drained is None or self._drained.called:
            return
        forgets = not self.outbox.durable and not self._retired
        if not (self.outbox.counts.pending if forgets else self._dispatcher.in_flight):
            self._drained.callback(None)

    def _give_up(self) -> None:
        self._dispatcher.stop_sending()
        if self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    def _close(self, _: None) -> Deferred[None]:
        super().stopService()
        self._pause_until(None)
        self._dispatcher.close()
        pending = self.outbox.counts.pending
        if pending and not self.outbox.durable and not self._retired:
            self.log.error(
                "webhook {name}: stopped with {pending} deliveries undelivered; they are lost",
                name=self.settings.name,
                pending=pending,
            )
        return self._transport.close()

    # State, for the status page and metrics.

    @property
    def paused(self) -> bool:
        """Whether an operator has paused the webhook."""
        return self._dispatcher.paused

    @property
    def in_flight_limit(self) -> int:
        """Number of requests that may be in flight now."""
        return self._dispatcher.in_flight_limit

    @property
    def down_since(self) -> float | None:
        """The time when the circuit breaker opened, in seconds since 1970; ``None`` while it is closed."""
        return self._dispatcher.down_since

    @property
    def refusing(self) -> bool:
        """Whether the breaker is open because the endpoint refuses everything."""
        return self._dispatcher.refusing

    @property
    def retrying(self) -> int:
        """Number of retries that wait for their backoff; clients that failed in the same request count once."""
        return self._dispatcher.retrying

    @property
    def next_probe(self) -> float | None:
        """Seconds until an endpoint that is down is probed; ``None`` when it is up or being probed."""
        return self._dispatcher.next_probe

    @property
    def failure(self) -> LastFailure | None:
        """The last failed attempt, possibly of the sink that this one replaced."""
        return self.counters.failure

    @property
    def refusal(self) -> LastFailure | None:
        """The last failed attempt that got an answer."""
        return self.counters.refusal
