"""
Webhooks that come, change and go while events flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from mqhooks.interfaces import IOutbox
from mqhooks.sinks.compose import FanOut
from mqhooks.webhook.counters import WebhookCounters
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.sink import WebhookSink


@dataclass(frozen=True)
class Plan:
    """
    Which webhooks there are to be.

    :param sinks: all of them, in the order of their settings. Those that stay as they are are those of before.
    :param certificates: what their certificates' files hold, by the webhooks' names.
    :param words: what changes, in a few words each.
    """

    sinks: Sequence[WebhookSink]
    certificates: dict[str, tuple[bytes, ...]]
    words: Sequence[str]


class WebhookGroup(FanOut):
    """
    All webhooks of a configuration.

    One that is configured anew gets another sink. That one takes the events from then on; it begins to deliver when the
    attempts that its predecessor has under way have ended, with what the predecessor leaves in the outbox. So nothing is lost,
    nothing overtakes anything, and what an attempt delivers is not sent again.

    :param reactor: for the sinks.
    :param settings: the webhooks.
    :param outbox: gets the outbox of a webhook by its name; always the same one for a name.
    :param drain_time: how many seconds stopping waits for deliveries.
    :raises mqhooks.errors.ConfigError: when the certificates of one don't serve.
    """

    def __init__(
        self, reactor: Any, settings: Iterable[WebhookSettings], outbox: Callable[[str], IOutbox], *, drain_time: float
    ) -> None:
        super().__init__(())
        self._reactor = reactor
        self._outbox = outbox
        self._drain_time = drain_time
        self._current: dict[str, WebhookSink] = {}
        self._retiring: dict[str, WebhookSink] = {}
        self._left: dict[str, IOutbox] = {}
        self._counters: dict[str, WebhookCounters] = {}
        self._certificates: dict[str, tuple[bytes, ...]] = {}
        self._put(self.plan(settings))

    @property
    def sinks(self) -> list[WebhookSink]:
        """The webhooks that there are, in the order of their settings."""
        return list(self._current.values())

    def startService(self) -> None:
        """Begin to deliver."""
        super().startService()
        for sink in self._current.values():
            sink.startService()

    def stopService(self) -> Deferred[None]:
        """
        Stop all webhooks at once.

        :returns: a ``Deferred`` that fires when nothing is open any more.
        """
        super().stopService()
        names = dict.fromkeys([*self._current, *self._retiring])
        return gatherResults(map(self._stop, names), consumeErrors=True).addCallback(self._stopped)

    def plan(self, settings: Iterable[WebhookSettings]) -> Plan:
        """
        Make what other settings ask for; nothing changes before :meth:`apply`.

        :raises mqhooks.errors.ConfigError: when the certificates of a webhook don't serve.
        :raises mqhooks.errors.OutboxError: when a new one cannot get its outbox.
        """
        wanted = {each.name: each for each in settings}
        certificates = {name: _certificates(each) for name, each in wanted.items()}
        sinks = []
        words = []
        for name, each in wanted.items():
            old = self._current.get(name)
            if old is not None and old.settings == each and certificates[name] == self._certificates[name]:
                sinks.append(old)
                continue
            words.append(f"webhook {name} {'added' if old is None else 'changed'}")
            counters = self._counters.get(name)
            outbox = self._outbox(name)
            sinks.append(WebhookSink(self._reactor, each, outbox, drain_time=self._drain_time, counters=counters))
        words += [f"webhook {name} removed" for name in self._current if name not in wanted]
        return Plan(sinks, certificates, words)

    def apply(self, plan: Plan, drain_time: float) -> None:
        """
        Have the webhooks of a plan, which was made of those that there are.

        :param drain_time: as for the whole group.
        """
        before = dict(self._current)
        self._put(plan)
        self._drain_time = drain_time
        for sink in self._current.values():
            sink.drain_time = drain_time
        for name, old in before.items():
            new = self._current.get(name)
            if new is old:
                continue
            if new is None:
                self._left[name] = old.outbox
                # Nobody is going to make room there.
                old.outbox.abandon()
            elif old.paused:
                new.pause()
            # One that has not begun yet has nothing under way: whoever it was waiting for is waited for on.
            retired = old.retire()
            if name not in self._retiring:
                self._retiring[name] = old
                retired.addCallback(self._take_over, name)
        for name, sink in self._current.items():
            if name not in before and name not in self._retiring:
                self._left.pop(name, None)
                self._begin(sink)

    def _put(self, plan: Plan) -> None:
        self._sinks = tuple(plan.sinks)
        self._current = {sink.settings.name: sink for sink in plan.sinks}
        self._certificates = plan.certificates
        self._counters |= {name: sink.counters for name, sink in self._current.items()}

    def _take_over(self, _: None, name: str) -> None:
        outbox = self._retiring.pop(name).outbox
        sink = self._current.get(name)
        if sink is not None:
            self._left.pop(name, None)
            # What would be lost with the process is delivered before its end.
            if self.running or not outbox.durable:
                self._begin(sink)
        elif outbox.pending:
            self.log.warn(
                "webhook {name} is not configured any more: {pending} deliveries stay in the outbox",
                name=name,
                pending=outbox.pending,
            )

    def _begin(self, sink: WebhookSink) -> None:
        sink.outbox.reclaim()
        sink.startService()

    def _stop(self, name: str) -> Deferred[None]:
        old, sink = self._retiring.get(name), self._current.get(name)
        if old is None:
            assert sink is not None
            return sink.stopService()
        stopped = old.stopService()
        return stopped if sink is None else stopped.addCallback(lambda _: sink.stopService())

    def _stopped(self, _: object) -> None:
        for name, outbox in self._left.items():
            if outbox.pending and not outbox.durable:
                self.log.error(
                    "webhook {name}: is not configured any more, and had {pending} deliveries; they are lost",
                    name=name,
                    pending=outbox.pending,
                )


def _certificates(settings: WebhookSettings) -> tuple[bytes, ...]:
    """Get a hash of each file that a webhook's certificates are in; of one that cannot be read, nothing."""
    tls = settings.tls
    paths = () if tls is None else (tls.cacertfile, tls.certfile, tls.keyfile)
    hashes = []
    for path in paths:
        try:
            hashes.append(b"" if path is None else sha256(Path(path).read_bytes()).digest())
        except OSError:
            hashes.append(b"")
    return tuple(hashes)
