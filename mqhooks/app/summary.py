"""
What has flowed, once a minute in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mqhooks.interfaces import IOutbox
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.webhook.counters import WebhookCounters
from mqhooks.webhook.settings import WebhookSettings

INTERVAL = 60.0
"""How many seconds lie between two summaries."""


class Counted(Protocol):
    """A webhook, as far as its numbers go."""

    settings: WebhookSettings
    counters: WebhookCounters
    outbox: IOutbox


class SummaryService(Service):
    """
    Says in one line what has flowed since the last one; nothing when nothing has.

    :param clock: for the interval.
    :param sidecar: what came in.
    :param webhooks: asked each time for the webhooks that there are.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, sidecar: SidecarCounters, webhooks: Callable[[], Sequence[Counted]]) -> None:
        self._sidecar = sidecar
        self._webhooks = webhooks
        self._loop = LoopingCall(self._summarise)
        self._loop.clock = clock
        self._clock = clock
        self._since = 0.0
        self._came = (0, 0)
        self._went: list[tuple[WebhookCounters, dict[str, int]]] = []

    def startService(self) -> None:
        """Begin to count."""
        super().startService()
        self._since = self._clock.seconds()
        self._loop.start(INTERVAL, now=False)

    def stopService(self) -> None:
        """Say what has flowed since the last summary."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()
            self._summarise()

    def _summarise(self) -> None:
        now = self._clock.seconds()
        seconds, self._since = now - self._since, now
        came = (self._sidecar.events, self._sidecar.malformed)
        events, malformed = (new - old for new, old in zip(came, self._came, strict=True))
        self._came = came
        webhooks = self._webhooks()
        rows = [{"webhook": each.settings.name, **self._since_last(each), "pending": each.outbox.pending} for each in webhooks]
        # One that is gone may come back, with the same counters.
        gone = [pair for pair in self._went if all(each.counters is not pair[0] for each in webhooks)]
        self._went = [*gone, *((each.counters, _totals(each.counters)) for each in webhooks)]
        if (
            events
            or malformed
            or any(value for row in rows for name, value in row.items() if name not in ("webhook", "pending"))
        ):
            self.log.info(
                "in {seconds:.0f} s: {events} events in{_more}",
                seconds=seconds,
                events=events,
                malformed=malformed,
                _more=(f", {malformed} frames malformed" if malformed else "") + "".join(map(_words, rows)),
                webhooks=rows,
            )

    def _since_last(self, webhook: Counted) -> dict[str, int]:
        # A webhook that was not there before counts from the beginning.
        before = next((totals for counters, totals in self._went if counters is webhook.counters), {})
        return {name: value - before.get(name, 0) for name, value in _totals(webhook.counters).items()}


def _totals(counters: WebhookCounters) -> dict[str, int]:
    return {
        "filtered": counters.filtered,
        "delivered": counters.delivered,
        "dead": counters.dead,
        "dropped": counters.dropped,
        "failed": counters.failed + counters.refused,
    }


def _words(row: dict[str, object]) -> str:
    dropped = f"{row['dropped']} dropped, " if row["dropped"] else ""
    return (
        f"; webhook {row['webhook']}: {row['filtered']} filtered, {row['delivered']} delivered, {row['dead']} dead, "
        f"{dropped}{row['failed']} attempts failed, {row['pending']} pending"
    )
