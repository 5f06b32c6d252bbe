"""
The webhooks of a configuration, which a reload adds, replaces and removes while events flow.

A webhook whose settings change gets a new sink on the same outbox and counters. The new sink accepts events at once, but starts
to deliver only when the old one has finished its requests in flight, beginning with what the old one left in the outbox. So
nothing is lost, sent twice or overtaken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mqhooks.app.webhooks import transport_for
from mqhooks.errors import ConfigError, together
from mqhooks.events import Event
from mqhooks.interfaces import IOutbox
from mqhooks.sinks.compose import FanOut
from mqhooks.support.files import read_bounded
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.settings import OAuth2Settings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink

LONG_PAYLOAD = 1 << 20
"""Longest payload that is passed on to all webhooks at once, in bytes."""

Version = tuple[WebhookSettings, tuple[bytes, ...]]
"""What a sink was made from: its settings, and a hash of each of its certificate files."""


@dataclass(frozen=True)
class ReloadPlan:
    """
    The changes that a reload is going to make.

    :param names: all webhooks after the reload, in the order of their settings.
    :param sinks: the new sinks among them, each with what it was made from.
    :param changes: for the log.
    """

    names: list[str]
    sinks: dict[str, tuple[Version, WebhookSink]]
    changes: list[str]


class WebhookGroup(FanOut):
    """
    All webhooks of a configuration.

    :param reactor: for the sinks.
    :param settings: the webhooks.
    :param outbox: returns the outbox for a webhook's name, always the same one for a name.
    :param drain_time: seconds that stopping waits for deliveries.
    :param delivers: whether this process delivers; otherwise it only accepts, and others deliver.
    :raises mqhooks.errors.ConfigError: when the certificates of a webhook cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Iterable[WebhookSettings],
        outbox: Callable[[str], IOutbox],
        *,
        drain_time: float,
        delivers: bool = True,
    ) -> None:
        super().__init__(())
        self._reactor = reactor
        self._outbox = outbox
        self._drain_time = drain_time
        self._delivers = delivers
        self._budget = Budget()
        self._slots: dict[str, _Slot] = {}
        self._current: list[WebhookSink] = []
        self._waiting: deque[tuple[Sequence[Event], Deferred[None], bool]] = deque()
        self._passing = False
        self._passed = succeed(None)
        self._room: Deferred[None] | None = None
        self._stopping = False
        self.apply(self.plan(settings))

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """
        Pass a batch on to all webhooks, or, with a long payload, to one after the other, each in its own turn of the reactor.

        Each webhook makes a body from it. Made all at once, forty of them would stop everything for many seconds. Batches that
        come meanwhile wait behind it.
        """
        if not self._passing and (len(self._current) < 2 or not _long(events)):
            return super().receive(events)
        return self._pass_in_turn(events, room=True)

    @property
    def lags(self) -> bool:
        """Whether batches wait here, which no outbox has, or for an outbox that never holds any."""
        return self._passing or super().lags

    def store(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Pass a batch on as :meth:`receive` does; see :meth:`mqhooks.interfaces.IBoundedSink.store`."""
        if not self._passing and (len(self._current) < 2 or not _long(events)):
            return super().store(events)
        return self._pass_in_turn(events, room=False)

    def _pass_in_turn(self, events: Sequence[Event], *, room: bool) -> Deferred[None]:
        accepted: Deferred[None] = Deferred()
        self._waiting.append((events, accepted, room))
        if not self._passing:
            self._passing = True
            self._passed = self._pass_long()
            self._passed.addErrback(lambda failure: self.log.failure("a batch could not be passed on", failure))
        return accepted

    @inlineCallbacks
    def _pass_long(self) -> Generator[Deferred[None], None, None]:
        while self._waiting:
            events, accepted, room = self._waiting.popleft()
            if _long(events):
                for name in [sink.settings.name for sink in self._current]:
                    # A reload may have replaced it meanwhile.
                    sink = self._slots[name].sink
                    stored = None if sink is None else self.pass_on(sink, events, room=room)
                    if stored is not None and not self._stopping:
                        room_made = self._room = Deferred()
                        stored.addCallback(self._go_on)
                        yield room_made
                    yield deferLater(self._reactor, 0)
                accepted.callback(None)
            else:
                passed = super().receive(events) if room else super().store(events)
                (passed or succeed(None)).chainDeferred(accepted)
        self._passing = False

    def _go_on(self, _: None = None) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    @property
    def sinks(self) -> list[WebhookSink]:
        """The configured webhooks, in the order of their settings."""
        return list(self._current)

    def startService(self) -> None:
        """Start to deliver."""
        super().startService()
        self._stopping = False
        for slot in self._slots.values():
            slot.start()

    def stopService(self) -> Deferred[None]:
        """
        Pass on the batches that wait here, whether or not there is room for more, and stop all webhooks at once.

        :returns: a ``Deferred`` that fires when all connections are closed.
        """
        super().stopService()
        self._stopping = True
        self._go_on()
        return self._passed.addCallback(self._stop_slots)

    def _stop_slots(self, _: None) -> Deferred[None]:
        return gatherResults([slot.stop() for slot in self._slots.values()], consumeErrors=True).addCallback(lambda _: None)

    def plan(self, settings: Iterable[WebhookSettings]) -> ReloadPlan:
        """
        Make the sinks that new settings need; nothing changes before :meth:`apply`.

        :raises mqhooks.errors.ConfigError: when the certificates of a webhook cannot be used.
        :raises mqhooks.errors.OutboxError: when a new webhook cannot get its outbox.
        """
        plan = ReloadPlan([], {}, [])
        mistakes = []
        for each in settings:
            plan.names.append(each.name)
            version = each, _certificates(each)
            slot = self._slots.get(each.name)
            if slot is not None and slot.version == version:
                continue
            try:
                plan.sinks[each.name] = version, self._make(each, slot)
            except ConfigError as error:
                mistakes.append(error)
                continue
            plan.changes.append(f"webhook {each.name} {'added' if slot is None or slot.sink is None else 'changed'}")
        if mistakes:
            raise together(mistakes)
        removed = [sink.settings.name for sink in self.sinks if sink.settings.name not in plan.names]
        plan.changes.extend(f"webhook {name} removed" for name in removed)
        return plan

    def _make(self, settings: WebhookSettings, slot: _Slot | None) -> WebhookSink:
        return WebhookSink(
            self._reactor,
            settings,
            self._outbox(settings.name),
            transport_for(self._reactor, settings),
            drain_time=self._drain_time,
            counters=None if slot is None else slot.counters,
            budget=self._budget,
            delivers=self._delivers,
        )

    def apply(self, plan: ReloadPlan) -> None:
        """Carry out a plan made of the current webhooks."""
        for name, slot in self._slots.items():
            if name not in plan.names:
                slot.remove()
        for name, (version, sink) in plan.sinks.items():
            if name not in self._slots:
                self._slots[name] = _Slot(sink)
                if self.running:
                    self._slots[name].start()
            self._slots[name].put(sink, version)
        current = [self._slots[name].sink for name in plan.names]
        self._current = [sink for sink in current if sink is not None]
        self._sinks = tuple(self._current)


def _long(events: Sequence[Event]) -> bool:
    return any(len(getattr(event.message, "payload", b"")) > LONG_PAYLOAD for event in events)


class _Slot:
    """
    One webhook's name, with the sink that accepts its events and the one before that, which may still be finishing. It stays
    when the webhook is removed, since the webhook may come back.

    :param sink: its first one.
    :ivar sink: the sink now; ``None`` when the webhook is not configured.
    :ivar version: what the sink was made from.
    """

    log = Logger()

    def __init__(self, sink: WebhookSink) -> None:
        self.sink: WebhookSink | None = None
        self.version: Version | None = None
        self.counters = sink.counters
        self._name = sink.settings.name
        self._outbox = sink.outbox
        self._retiring: WebhookSink | None = None
        self._running = False

    def start(self) -> None:
        self._running = True
        if self.sink is not None:
            self.sink.startService()

    def put(self, sink: WebhookSink, version: Version) -> None:
        """Have a new sink take over."""
        old, self.sink, self.version = self.sink, sink, version
        if old is not None:
            if old.paused:
                sink.pause(old.paused_until)
            self._retire(old)
        elif self._running and self._retiring is None:
            self._begin(sink)

    def remove(self) -> None:
        """Accept nothing more."""
        old, self.sink, self.version = self.sink, None, None
        if old is not None:
            # Without a sink nothing makes room in this outbox.
            self._outbox.abandon()
            self._retire(old)

    def _retire(self, old: WebhookSink) -> None:
        retired = old.retire()
        # While an earlier sink is still finishing, this one has not started: it has nothing in flight.
        if self._retiring is None:
            self._retiring = old
            retired.addCallback(self._retired)

    def _retired(self, _: None) -> None:
        self._retiring = None
        pending = self._outbox.counts.pending
        if self.sink is None:
            if pending:
                self.log.warn(
                    "webhook {name} is no longer configured: {pending} deliveries stay in the outbox",
                    name=self._name,
                    pending=pending,
                )
        elif self._running or not self._outbox.durable:
            # During a stop, only what would be lost with the process is still delivered.
            self._begin(self.sink)

    def _begin(self, sink: WebhookSink) -> None:
        self._outbox.reclaim()
        sink.startService()

    def stop(self) -> Deferred[None]:
        self._running = False
        stopped = succeed(None) if self._retiring is None else self._retiring.stopService()
        return stopped.addCallback(self._stop_current)

    def _stop_current(self, _: None) -> Deferred[None] | None:
        if self.sink is not None:
            return self.sink.stopService()
        pending = self._outbox.counts.pending
        if pending and not self._outbox.durable:
            self.log.error(
                "webhook {name} is no longer configured: {pending} deliveries in memory are lost",
                name=self._name,
                pending=pending,
            )
        return None


def _certificates(settings: WebhookSettings) -> tuple[bytes, ...]:
    """Hash each of a webhook's certificate files; an unreadable one counts as empty."""
    server = settings.auth.tls if isinstance(settings.auth, OAuth2Settings) else None
    paths = [path for tls in (settings.tls, server) if tls is not None for path in (tls.cacertfile, tls.certfile, tls.keyfile)]
    hashes = []
    for path in paths:
        try:
            hashes.append(b"" if path is None else sha256(read_bounded(path)).digest())
        except OSError:
            hashes.append(b"")
    return tuple(hashes)
