"""
The counters, as Prometheus reads them.

The names: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

import mqhooks
from mqhooks.admin.replies import Answer, Call
from mqhooks.admin.status import Status
from mqhooks.outbox.totals import Totals
from mqhooks.support.histogram import Histogram
from mqhooks.webhook.sink import WebhookSink

WEBHOOK = ("webhook",)


class Metrics:
    """
    What ``/metrics`` answers.

    :param status: where to look.
    """

    def __init__(self, status: Status) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(BridgeCollector(status))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def __call__(self, call: Call) -> Answer:
        """Answer in the format that is asked for."""
        encode, type_ = choose_encoder(call.request.getHeader("accept") or "")
        return Answer(encode(self._registry), type_)


class BridgeCollector(Collector):
    """
    Reads the counters when they are asked for, so that counting costs nothing more.

    :param status: where to look.
    """

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Read all."""
        yield InfoMetricFamily("mqhooks", "Which mqhooks this is.", {"version": mqhooks.__version__})
        yield from self._sidecar()
        webhooks = [(sink.settings.name, sink, sink.outbox.totals) for sink in self._status.bridge.webhooks]
        yield from _events(webhooks)
        yield from _deliveries(webhooks)
        yield from _histograms(webhooks)
        yield from self._outbox(webhooks)

    def _sidecar(self) -> Iterator[Metric]:
        counters = self._status.bridge.sidecar.counters
        yield CounterMetricFamily("mqhooks_frames", "Frames that VerneMQ sent.", counters.frames)
        malformed = "Frames that do not parse, are too long, or were cut off."
        yield CounterMetricFamily("mqhooks_frames_malformed", malformed, counters.malformed)
        yield CounterMetricFamily(
            "mqhooks_frames_unknown", "Frames of a type that no hook sends.", sum(counters.unknown.values())
        )
        yield CounterMetricFamily("mqhooks_frames_empty", "Frames without an event in them.", counters.empty)
        received = CounterMetricFamily("mqhooks_events_received", "Events that came, by hook.", labels=("hook",))
        for hook, count in counters.hooks.items():
            received.add_metric((hook,), count)
        yield received
        yield GaugeMetricFamily("mqhooks_sidecar_connections", "VerneMQ's open connections.", counters.connections)
        paused = "Whether the connections are not read, for want of room."
        yield GaugeMetricFamily("mqhooks_sidecar_paused", paused, int(counters.paused))
        yield CounterMetricFamily("mqhooks_sidecar_pauses", "How often they stopped being read.", counters.pauses)

    def _outbox(self, webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
        pending = GaugeMetricFamily("mqhooks_outbox_pending", "Deliveries that wait or are under way.", labels=WEBHOOK)
        oldest = "Seconds since the oldest of them was accepted; 0 when there is none."
        age = GaugeMetricFamily("mqhooks_outbox_oldest_seconds", oldest, labels=WEBHOOK)
        used = GaugeMetricFamily(
            "mqhooks_outbox_used_ratio", "How much of its room a webhook uses, from 0 to 1.", labels=WEBHOOK
        )
        letters = GaugeMetricFamily("mqhooks_dead_letters", "Dead letters that are kept.", labels=WEBHOOK)
        size = 0
        for name, sink, totals in webhooks:
            pending.add_metric((name,), totals.pending)
            age.add_metric((name,), self._status.oldest(sink) or 0)
            used.add_metric((name,), sink.outbox.used / sink.outbox.max_size)
            letters.add_metric((name,), sink.outbox.letters)
            size += sink.outbox.used
        yield from (pending, age, used, letters)
        yield GaugeMetricFamily("mqhooks_outbox_bytes", "What all that waits takes.", size)
        store = self._status.bridge.store
        writable = store is None or store.failing is None
        yield GaugeMetricFamily("mqhooks_outbox_writable", "Whether the outbox can be written.", int(writable))


_Webhook = tuple[str, WebhookSink, Totals]


def _events(webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
    filtered = CounterMetricFamily("mqhooks_events_filtered", "Events that no rule of a webhook wants.", labels=WEBHOOK)
    matched = CounterMetricFamily("mqhooks_events_matched", "Events that became deliveries.", labels=WEBHOOK)
    for name, sink, _ in webhooks:
        filtered.add_metric((name,), sink.counters.filtered)
        matched.add_metric((name,), sink.counters.matched)
    yield from (filtered, matched)
    late = "Deliveries that came too late to be put before a later one of their client."
    yield CounterMetricFamily("mqhooks_events_late", late, sum(sink.counters.late for _, sink, _ in webhooks))


def _deliveries(webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
    taken = "Deliveries taken over: made of events, left in the outbox by an earlier process, or replayed."
    accepted = CounterMetricFamily("mqhooks_deliveries_accepted", taken, labels=("webhook", "source"))
    delivered = CounterMetricFamily("mqhooks_deliveries_delivered", "Deliveries that arrived.", labels=WEBHOOK)
    dead = CounterMetricFamily("mqhooks_deliveries_dead", "Deliveries that became dead letters.", labels=WEBHOOK)
    dropped = CounterMetricFamily(
        "mqhooks_deliveries_dropped", "Deliveries that had to make room, or are lost.", labels=WEBHOOK
    )
    attempts = CounterMetricFamily("mqhooks_delivery_attempts", "Attempts, by outcome.", labels=("webhook", "outcome"))
    up = GaugeMetricFamily("mqhooks_webhook_up", "Whether the endpoint is up, as far as is known.", labels=WEBHOOK)
    paused = GaugeMetricFamily("mqhooks_webhook_paused", "Whether somebody has paused the webhook.", labels=WEBHOOK)
    for name, sink, totals in webhooks:
        counters = sink.counters
        accepted.add_metric((name, "events"), totals.appended)
        accepted.add_metric((name, "resumed"), totals.resumed)
        accepted.add_metric((name, "replayed"), totals.replayed)
        delivered.add_metric((name,), totals.delivered)
        dead.add_metric((name,), totals.dead)
        dropped.add_metric((name,), totals.dropped)
        attempts.add_metric((name, "delivered"), counters.attempts - counters.refused - counters.failed)
        attempts.add_metric((name, "refused"), counters.refused)
        for reason, count in counters.failures.items():
            attempts.add_metric((name, reason), count)
        up.add_metric((name,), int(sink.down_since is None))
        paused.add_metric((name,), int(sink.paused))
    yield from (accepted, delivered, dead, dropped, attempts, up, paused)


def _histograms(webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
    ages = HistogramMetricFamily("mqhooks_delivery_age_seconds", "From the event to its delivery.", labels=WEBHOOK)
    answers = HistogramMetricFamily("mqhooks_answer_seconds", "How long the endpoint took to answer.", labels=WEBHOOK)
    for name, sink, _ in webhooks:
        ages.add_metric((name,), _buckets(sink.counters.ages), sink.counters.ages.sum)
        answers.add_metric((name,), _buckets(sink.counters.answers), sink.counters.answers.sum)
    yield from (ages, answers)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    limits = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(limits, accumulate(histogram.counts), strict=True))
