"""
Send notifications when a webhook's state changes: a webhook about webhooks.

- The states are compared once a second with those last notified. So this costs an event nothing, and when a state flips back
  and forth, only the outcome is notified.
- Each kind is sent at most once a minute for each webhook. A notification that fails a few times is dropped: notifications
  hold up nothing, and are never about themselves.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from secrets import token_hex
from time import time
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

import mqhooks
from mqhooks.admin.bridge import Bridge
from mqhooks.app.settings import Kind, NotifySettings
from mqhooks.app.webhooks import transport_for
from mqhooks.delivery import Delivery, Response
from mqhooks.errors import DeliveryError
from mqhooks.interfaces import IWebhookTransport
from mqhooks.support.loops import Loop
from mqhooks.support.ratelimit import RateLimit
from mqhooks.support.redact import hide, hide_url
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.retry import RetryPolicy, retry_after
from mqhooks.webhook.settings import RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink

EVERY = 1.0
"""Seconds between two looks at the states."""

QUIET = 60.0
"""Shortest time between two notifications of a kind for a webhook, in seconds."""

MOST = 64
"""Most notifications under way at a time."""

RETRY = RetrySettings(initial=1.0, multiplier=4.0, maximum=60.0, max_attempts=4)
"""The retries of a notification."""

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Told:
    """
    The state of a webhook that was last notified.

    :ivar sink: the sink that was last seen down.
    :ivar delivered: the count of delivered deliveries at that time.
    :ivar since: when that sink went down, in seconds since 1970.
    """

    dead: int = 0
    forgotten: int = 0
    dropped: int = 0
    full: bool = False
    state: Kind = "up"
    sink: WebhookSink | None = None
    delivered: int = 0
    since: float | None = None
    at: dict[Kind, float] = field(default_factory=dict)


class Notifier(Service):
    """
    Notifies of changes.

    :param reactor: connects and tells the time.
    :param bridge: the bridge whose webhooks are watched.
    :param settings: where to send notifications, and of which changes.
    :param transport: makes the transport.
    :param random: the source of jitter.
    :param now: the time of day, in seconds since 1970.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        bridge: Bridge,
        settings: NotifySettings,
        *,
        transport: Callable[[Any, WebhookSettings], IWebhookTransport] = transport_for,
        random: Random | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        self._reactor = reactor
        self._bridge = bridge
        self._settings = settings
        self._make = transport
        self._random = random or Random()
        self._now = now
        self._host = socket.gethostname()
        self._policy = RetryPolicy(RETRY)
        self._complaints = RateLimit(reactor)
        self._told: dict[str, _Told] = {}
        self._transport: IWebhookTransport | None = None
        self._requests: RequestMaker
        # The timers of notifications that wait for their next attempt; and the number of all that wait for that or an answer.
        self._retries: set[IDelayedCall] = set()
        self._under_way = 0
        self._loop = Loop(reactor, "checking the webhooks for notifications", self._look)

    def startService(self) -> None:
        """Begin to watch."""
        super().startService()
        if self._settings.url:
            self._begin()

    def stopService(self) -> Deferred[None]:
        """Stop watching; notifications under way are dropped."""
        super().stopService()
        return self._end()

    def change(self, settings: NotifySettings) -> None:
        """Replace the settings; if they differ, notifications under way are dropped."""
        if settings == self._settings:
            return
        self._settings = settings
        if self.running:
            self._end()
            if settings.url:
                self._begin()

    def _begin(self) -> None:
        settings = self._settings
        webhook = WebhookSettings("notify", settings.url, (), pool_size=2, secrets=settings.secret)
        self._transport = self._make(self._reactor, webhook)
        self._requests = RequestMaker(webhook, self._now)
        for sink in self._bridge.webhooks:
            counts = sink.outbox.counts
            self._told[sink.settings.name] = _Told(counts.dead, counts.forgotten, counts.dropped)
        self._loop.start(EVERY)

    def _end(self) -> Deferred[None]:
        self._loop.stop()
        for retry in self._retries:
            retry.cancel()
        self._retries.clear()
        self._under_way = 0
        transport, self._transport = self._transport, None
        return succeed(None) if transport is None else transport.close()

    # Changes.

    def _look(self) -> None:
        for sink in self._bridge.webhooks:
            name = sink.settings.name
            told = self._told.setdefault(name, _Told())
            try:
                for kind, values in self._changes(sink, told):
                    self._tell(kind, name, sink.outbox.counts.pending, **values)
            except Exception:
                # The others have nothing to do with it.
                if self._complaints.allow(("failed", name)) is not None:
                    self.log.failure("checking webhook {name} for notifications failed", name=name)

    def _changes(self, sink: WebhookSink, told: _Told) -> Iterator[tuple[Kind, dict[str, Any]]]:
        counts = sink.outbox.counts
        reason = "" if sink.failure is None else sink.failure.reason
        state: Kind = "up" if sink.down_since is None else "held" if sink.refusing else "down"
        if state != "up":
            told.sink, told.delivered, told.since = sink, counts.delivered, sink.down_since
        # A reload replaces a sink: that the new one has not failed yet says nothing.
        if state != told.state and (state != "up" or sink is told.sink or counts.delivered > told.delivered):
            if state == "up":
                words = f"is up again; {_deliveries(counts.pending)}"
            elif state == "down":
                words = f"is down: {reason}; {_deliveries(counts.pending)}"
            else:
                words = f"refuses everything: {reason}; {_deliveries(counts.pending)} until it accepts one"
            if self._may(state, told):
                yield state, {"words": words, "since": told.since, "reason": "" if state == "up" else reason}
                told.state = state
            elif state not in self._settings.on:
                told.state = state
        if counts.dead > told.dead and self._may("dead", told):
            count, told.dead = counts.dead - told.dead, counts.dead
            why = reason or "mqhooks dead list --groups says why"
            yield "dead", {"words": f"has {_dead_letters(count, 'new ')}: {why}", "reason": reason, "count": count}
        if counts.forgotten > told.forgotten and self._may("forgotten", told):
            count, told.forgotten = counts.forgotten - told.forgotten, counts.forgotten
            why = "discarded to make room for newer ones (outbox.dead_max)"
            yield "forgotten", {"words": f"has lost {_dead_letters(count)}, {why}", "reason": why, "count": count}
        dropped, told.dropped = counts.dropped - told.dropped, counts.dropped
        full = sink.outbox.full or dropped > 0
        if not full:
            told.full = False
        elif not told.full and self._may("full", told):
            told.full = True
            why = self._why_full(dropped)
            yield "full", {"words": f"has a full outbox: {why}", "reason": why}

    def _why_full(self, dropped: int) -> str:
        failing = self._bridge.failing
        if failing is not None:
            return f"it cannot be written ({failing})"
        if dropped > 0:
            return f"{dropped} deliveries were dropped (outbox.max_size)"
        return "nothing more is read from VerneMQ (outbox.max_size)"

    def _may(self, kind: Kind, told: _Told) -> bool:
        """Return whether a kind may be sent now, and note that it is."""
        now = self._reactor.seconds()
        last = told.at.get(kind)
        if kind not in self._settings.on or (last is not None and now - last < QUIET):
            return False
        told.at[kind] = now
        return True

    # Sending.

    def _tell(
        self,
        kind: Kind,
        webhook: str,
        pending: int,
        *,
        words: str,
        reason: str,
        since: float | None = None,
        count: int | None = None,
    ) -> None:
        now = self._now()
        body = {
            "text": f"mqhooks on {self._host}: webhook {webhook} {words}",
            "event": kind,
            "webhook": webhook,
            "since": since,
            "pending": pending,
            "reason": reason,
            "host": self._host,
            "version": mqhooks.__version__,
            "time": now,
        }
        if count is not None:
            body["count"] = count
        if self._under_way >= MOST:
            self._drop(kind, webhook, f"{MOST} other notifications are still being sent")
            return
        self._under_way += 1
        delivery = Delivery(f"notify_{token_hex(12)}", webhook, int(now * 1e9), _encode(body), int(now * 1000))
        self._try(kind, delivery)

    def _try(self, kind: Kind, delivery: Delivery) -> None:
        transport = self._transport
        assert transport is not None
        delivery.attempts += 1
        sent = transport.send(self._requests.make([delivery]))
        sent.addBoth(lambda result: self._ended(transport, kind, delivery, result))
        sent.addErrback(lambda failure: self.log.failure("a notification failed in an unexpected way", failure))

    def _ended(self, transport: IWebhookTransport, kind: Kind, delivery: Delivery, result: Response | Failure) -> None:
        if transport is not self._transport:
            # The settings have changed meanwhile, or the service has stopped.
            return
        pause = 0.0
        again = True
        if isinstance(result, Response):
            if 200 <= result.status < 300:
                self._under_way -= 1
                return
            reason = f"{self._settings.url} answered {result.status}"
            again = self._policy.retries(result.status)
            pause = min(retry_after(result.headers, self._now()) or 0.0, RETRY.maximum)
        else:
            reason = result.getErrorMessage()
            if not isinstance(result.value, DeliveryError):
                self.log.failure("a notification failed in an unexpected way", result)
        if not again or delivery.attempts >= RETRY.max_attempts:
            self._under_way -= 1
            self._drop(kind, delivery.client, hide(reason, self._settings.url))
            return

        def retry() -> None:
            self._retries.discard(timer)
            self._try(kind, delivery)

        delay = max(self._policy.delay(delivery.attempts, self._random), pause)
        timer: IDelayedCall = self._reactor.callLater(delay, retry)
        self._retries.add(timer)

    def _drop(self, kind: Kind, webhook: str, reason: str) -> None:
        held = self._complaints.allow(reason)
        if held is not None:
            self.log.warn(
                "notify: could not send the '{kind}' notification for webhook {name}: {reason}{_more}",
                name=webhook,
                kind=kind,
                reason=reason,
                url=hide_url(self._settings.url),
                _more=f" ({held} more like it since the last time)" if held else "",
            )


def _deliveries(count: int) -> str:
    return f"{count} {'delivery waits' if count == 1 else 'deliveries wait'}"


def _dead_letters(count: int, which: str = "") -> str:
    return f"{count} {which}dead letter{'' if count == 1 else 's'}"
