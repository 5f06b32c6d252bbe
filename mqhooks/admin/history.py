"""
The last 15 minutes, for the page's charts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from mqhooks.admin.bridge import Bridge
from mqhooks.events import HOOKS
from mqhooks.interfaces import IEventSource

STEP = 5.0
"""Seconds between two samples."""

STEPS = 180
"""Samples kept: 15 minutes of them."""

SERIES = ("accepted", "delivered", "failed", "waiting")


class History:
    """
    Samples of the counters. Call :meth:`sample` every :data:`STEP` seconds.

    :param bridge: the bridge whose counters are sampled.
    :param clock: tells the time.
    """

    def __init__(self, bridge: Bridge, clock: IReactorTime) -> None:
        self._bridge = bridge
        self._clock = clock
        self._sampled = clock.seconds()
        self._webhooks: dict[str, _Samples] = {}
        self._hooks: deque[tuple[float, dict[IEventSource, Counter[str]]]] = deque(maxlen=2)
        self._count()

    def sample(self) -> None:
        """Take a sample."""
        self._sampled = self._clock.seconds()
        self._count()
        webhooks = {}
        for sink in self._bridge.webhooks:
            name, counts, counters = sink.settings.name, sink.outbox.counts, sink.counters
            samples = webhooks[name] = self._webhooks.get(name) or _Samples()
            samples.add(counts.appended + counts.replayed, counts.delivered, counters.failed + counters.refused, counts.pending)
        self._webhooks = webhooks

    def of(self, name: str, now: float) -> dict[str, Any]:
        """
        Get the history of a webhook.

        :param now: the time of day, in seconds since 1970.
        :returns: the length of a step in seconds, the end of the last step, and the counts of each step, oldest first.
        """
        samples = self._webhooks.get(name) or _Samples()
        end = now - (self._clock.seconds() - self._sampled)
        return {"step": STEP, "end": end} | dict(zip(SERIES, map(list, samples.steps), strict=True))

    def rates(self, sources: Iterable[IEventSource] | None = None) -> dict[str, float]:
        """
        Get the events per second of each hook, averaged since the last sample but one.

        :param sources: the sources to count; ``None`` for all.
        """
        since, then = self._hooks[0]
        span = max(self._clock.seconds() - since, 0.001)
        came: Counter[str] = Counter(dict.fromkeys(HOOKS, 0))
        for source in self._bridge.sources if sources is None else sources:
            came.update(source.counters.hooks)
            came.subtract(then[source])
        return {hook: round(count / span, 2) for hook, count in came.items()}

    def _count(self) -> None:
        self._hooks.append((self._sampled, {source: Counter(source.counters.hooks) for source in self._bridge.sources}))


class _Samples:
    def __init__(self) -> None:
        self.steps: tuple[deque[int], ...] = tuple(deque(maxlen=STEPS) for _ in SERIES)
        self._last = (0, 0, 0)

    def add(self, accepted: int, delivered: int, failed: int, waiting: int) -> None:
        now = (accepted, delivered, failed)
        for steps, count, last in zip(self.steps, now, self._last, strict=False):
            # A webhook that was removed and added again counts from 0.
            steps.append(count - last if count >= last else count)
        self.steps[-1].append(waiting)
        self._last = now
