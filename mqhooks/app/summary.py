"""
Logs the events and deliveries of each minute, in one line.

The numbers come from the outboxes and counters, like those on ``/metrics`` and the page. The summary counts nothing itself; it
only remembers the numbers of a minute ago.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mqhooks.interfaces import IOutbox
from mqhooks.sources.counters import SourceCounters
from mqhooks.support.loops import Loop
from mqhooks.webhook.counters import WebhookCounters
from mqhooks.webhook.settings import WebhookSettings

INTERVAL = 60.0
"""Seconds between two summaries."""

NAMES = ("filtered", "delivered", "dead", "dropped", "failed")
"""The numbers of each webhook."""


class Counted(Protocol):
    """The parts of a webhook that the summary reads."""

    settings: WebhookSettings
    counters: WebhookCounters
    outbox: IOutbox


class SummaryService(Service):
    """
    Logs one line about events and deliveries since the last line; nothing when there were none.

    :param clock: for the interval.
    :param sources: the sources' counters.
    :param webhooks: returns the webhooks that are configured now.
    """

    log = Logger()

    def __init__(
        self, clock: IReactorTime, sources: Sequence[SourceCounters], webhooks: Callable[[], Sequence[Counted]]
    ) -> None:
        self._sources = sources
        self._webhooks = webhooks
        self._loop = Loop(clock, "summarising the last minute", self._summarise)
        self._clock = clock
        self._since = 0.0
        self._came = (0, 0)
        self._went: dict[str, dict[str, int]] = {}

    def startService(self) -> None:
        """Start the first minute."""
        super().startService()
        self._since = self._clock.seconds()
        self._loop.start(INTERVAL)

    def stopService(self) -> None:
        """Log what has happened since the last summary."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()
            self._summarise()

    def _summarise(self) -> None:
        now = self._clock.seconds()
        seconds, self._since = now - self._since, now
        came = (sum(source.events for source in self._sources), sum(source.malformed for source in self._sources))
        events, malformed = (new - old for new, old in zip(came, self._came, strict=True))
        self._came = came
        rows: list[dict[str, Any]] = []
        went = {}
        for webhook in self._webhooks():
            name = webhook.settings.name
            went[name] = numbers = _numbers(webhook)
            before = self._went.get(name, {})
            # A new webhook counts from zero.
            since = {key: value - before.get(key, 0) for key, value in numbers.items()}
            rows.append({"webhook": name, **since, "pending": webhook.outbox.counts.pending})
        # A webhook that was removed may come back with the same counters.
        self._went |= went
        if events or malformed or any(row[name] for row in rows for name in NAMES):
            self.log.info(
                "in {seconds:.0f} s: {events} events in{_more}",
                seconds=seconds,
                events=events,
                malformed=malformed,
                _more=(f", {malformed} frames malformed" if malformed else "") + "".join(map(_words, rows)),
                webhooks=rows,
            )


def _numbers(webhook: Counted) -> dict[str, int]:
    counts, counters = webhook.outbox.counts, webhook.counters
    numbers = (counters.filtered, counts.delivered, counts.dead, counts.dropped, counters.failed + counters.refused)
    return dict(zip(NAMES, numbers, strict=True))


def _words(row: Mapping[str, object]) -> str:
    dropped = f"{row['dropped']} dropped, " if row["dropped"] else ""
    return (
        f"; webhook {row['webhook']}: {row['filtered']} filtered, {row['delivered']} delivered, {row['dead']} dead, "
        f"{dropped}{row['failed']} attempts failed, {row['pending']} pending"
    )
