"""
The counters, for Prometheus.

Naming: https://prometheus.io/docs/practices/naming/
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
from mqhooks.admin.replies import AdminCall, Reply
from mqhooks.admin.status import Status
from mqhooks.delivery import Counts
from mqhooks.interfaces import IEventSource
from mqhooks.sources.grpc.counters import GrpcCounters
from mqhooks.sources.grpc.status import STATUSES
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.sources.webhooks.counters import WebhooksCounters
from mqhooks.support.histogram import Histogram
from mqhooks.webhook.sink import WebhookSink

WEBHOOK = ("webhook",)


class Metrics:
    """
    Serves ``/metrics``.

    :param status: the state of the bridge.
    """

    def __init__(self, status: Status) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(BridgeCollector(status))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def __call__(self, call: AdminCall) -> Reply:
        """Reply in the format that the request accepts."""
        encode, type_ = choose_encoder(call.request.getHeader("accept") or "")
        return Reply(encode(self._registry), type_)


class BridgeCollector(Collector):
    """
    Reads the counters at each scrape, so that metrics cost nothing in between.

    :param status: the state of the bridge.
    """

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Read all counters."""
        yield InfoMetricFamily("mqhooks", "The version of mqhooks.", {"version": mqhooks.__version__})
        yield from _sources(self._status.bridge.sources)
        yield from self._sidecar()
        yield from _requests(self._status.bridge.sources)
        webhooks = [(sink.settings.name, sink, sink.outbox.counts) for sink in self._status.bridge.webhooks]
        yield from _events(webhooks)
        yield from _deliveries(webhooks)
        yield from _histograms(webhooks)
        yield from self._outbox(webhooks)
        yield from self._cluster()

    def _sidecar(self) -> Iterator[Metric]:
        bridge = self._status.bridge
        received = CounterMetricFamily("mqhooks_events_received", "Events received, by hook.", labels=("hook",))
        for hook, count in bridge.hooks.items():
            received.add_metric((hook,), count)
        yield received
        calls = [source.counters for source in bridge.sources if isinstance(source.counters, GrpcCounters)]
        yield from _calls(calls[0] if calls else GrpcCounters())
        sidecars = [source.counters for source in bridge.sources if isinstance(source.counters, SidecarCounters)]
        counters = sidecars[0] if sidecars else SidecarCounters()
        yield CounterMetricFamily("mqhooks_frames", "Frames that VerneMQ sent.", counters.frames)
        malformed = "Frames that do not parse, are too long, or were cut off."
        yield CounterMetricFamily("mqhooks_frames_malformed", malformed, counters.malformed)
        yield CounterMetricFamily(
            "mqhooks_frames_unknown", "Frames of a type that no hook sends.", sum(counters.unknown.values())
        )
        yield CounterMetricFamily("mqhooks_frames_empty", "Frames without an event in them.", counters.empty)
        yield GaugeMetricFamily("mqhooks_sidecar_connections", "Open connections from VerneMQ.", counters.connections)
        paused = "Whether backpressure has stopped reading from VerneMQ."
        yield GaugeMetricFamily("mqhooks_sidecar_paused", paused, int(counters.paused))
        yield CounterMetricFamily(
            "mqhooks_sidecar_pauses", "How often backpressure stopped reading from VerneMQ.", counters.pauses
        )

    def _outbox(self, webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
        pending = GaugeMetricFamily("mqhooks_outbox_pending", "Deliveries that are waiting or in flight.", labels=WEBHOOK)
        oldest = "Age in seconds of the oldest pending delivery; 0 when there is none."
        age = GaugeMetricFamily("mqhooks_outbox_oldest_seconds", oldest, labels=WEBHOOK)
        used = GaugeMetricFamily(
            "mqhooks_outbox_used_ratio", "Share of its outbox that a webhook uses, from 0 to 1.", labels=WEBHOOK
        )
        letters = GaugeMetricFamily("mqhooks_dead_letters", "Dead letters kept now.", labels=WEBHOOK)
        room = "Dead letters discarded to make room for newer ones (dead_max)."
        forgotten = CounterMetricFamily("mqhooks_dead_letters_forgotten", room, labels=WEBHOOK)
        size = 0
        for name, sink, counts in webhooks:
            pending.add_metric((name,), counts.pending)
            age.add_metric((name,), self._status.oldest(sink) or 0)
            used.add_metric((name,), sink.outbox.used / sink.outbox.max_size)
            letters.add_metric((name,), sink.outbox.letters)
            forgotten.add_metric((name,), counts.forgotten)
            size += sink.outbox.used
        yield from (pending, age, used, letters, forgotten)
        yield GaugeMetricFamily("mqhooks_outbox_bytes", "Bytes of all pending deliveries.", size)
        store = self._status.bridge.store
        writable = self._status.bridge.failing is None
        yield GaugeMetricFamily("mqhooks_outbox_writable", "Whether the outbox can be written to.", int(writable))
        damaged = "Damaged outbox files that were set aside and not salvaged yet."
        yield GaugeMetricFamily("mqhooks_outbox_damaged_files", damaged, 0 if store is None else len(store.damaged))

    def _cluster(self) -> Iterator[Metric]:
        members = GaugeMetricFamily("mqhooks_cluster_members", "Bridges that share the outboxes, this one included.", labels=())
        connected = GaugeMetricFamily("mqhooks_cluster_connected", "Whether there is a connection to NATS.", labels=())
        pending = GaugeMetricFamily("mqhooks_cluster_pending", "Pending deliveries across all bridges.", labels=WEBHOOK)
        told = "Age in seconds of the oldest pending delivery across all bridges; 0 when there is none."
        oldest = GaugeMetricFamily("mqhooks_cluster_oldest_seconds", told, labels=WEBHOOK)
        nobody = "Partitions without an owner, as far as this bridge knows."
        unowned = GaugeMetricFamily("mqhooks_cluster_partitions_unowned", nobody, labels=WEBHOOK)
        missing = "Replicas missing from the partition that lacks the most; absent while unknown."
        lacking = GaugeMetricFamily("mqhooks_cluster_replicas_missing", missing, labels=WEBHOOK)
        labels = ("webhook", "partition")
        here = GaugeMetricFamily("mqhooks_cluster_partition_owned", "Whether a partition is this bridge's.", labels=labels)
        each = GaugeMetricFamily("mqhooks_cluster_partition_pending", "Pending deliveries of a partition.", labels=labels)
        lag = "Age in seconds of a partition's oldest pending delivery; 0 when there is none."
        age = GaugeMetricFamily("mqhooks_cluster_partition_oldest_seconds", lag, labels=labels)
        cluster = self._status.bridge.cluster
        if cluster is not None:
            members.add_metric((), len(cluster.members))
            connected.add_metric((), int(cluster.server is not None))
            for shared in cluster.webhooks:
                name = (shared.name,)
                pending.add_metric(name, shared.pending)
                oldest.add_metric(name, self._status.age(shared.oldest) or 0)
                unowned.add_metric(name, shared.unowned)
                if shared.replicas is not None:
                    lacking.add_metric(name, max(cluster.replicas - shared.replicas, 0))
                for number, (who, share) in shared.owned.items():
                    place = shared.name, str(number)
                    here.add_metric(place, int(who == cluster.me))
                    each.add_metric(place, share.pending)
                    age.add_metric(place, self._status.age(share.oldest) or 0)
        yield from (members, connected, pending, oldest, unowned, lacking, here, each, age)


def _sources(sources: Sequence[IEventSource]) -> Iterator[Metric]:
    via = ("via",)
    events = CounterMetricFamily("mqhooks_source_events", "Events received, by the way they came.", labels=via)
    malformed = CounterMetricFamily("mqhooks_source_malformed", "Messages that could not become events.", labels=via)
    refused = CounterMetricFamily("mqhooks_source_refused", "Events refused because there was no room for them.", labels=via)
    connections = GaugeMetricFamily("mqhooks_source_connections", "Open connections from VerneMQ.", labels=via)
    paused = GaugeMetricFamily("mqhooks_source_paused", "Whether reading is stopped, or events are refused.", labels=via)
    pauses = CounterMetricFamily("mqhooks_source_pauses", "Times that reading was stopped, or refusing began.", labels=via)
    for source in sources:
        counters, name = source.counters, (source.via,)
        events.add_metric(name, counters.events)
        malformed.add_metric(name, counters.malformed)
        refused.add_metric(name, counters.refused)
        connections.add_metric(name, counters.connections)
        paused.add_metric(name, int(counters.paused))
        pauses.add_metric(name, counters.pauses)
    yield from (events, malformed, refused, connections, paused, pauses)


def _requests(sources: Sequence[IEventSource]) -> Iterator[Metric]:
    found = [source.counters for source in sources if isinstance(source.counters, WebhooksCounters)]
    counters = found[0] if found else WebhooksCounters()
    late = "Events from VerneMQ's webhooks that were answered before their commit, because it took too long."
    yield CounterMetricFamily("mqhooks_requests_late", late, counters.late)
    rejected = CounterMetricFamily(
        "mqhooks_requests_rejected", "Requests rejected because they are not events.", labels=("reason",)
    )
    for reason in ("unauthorized", "invalid", "unknown"):
        rejected.add_metric((reason,), getattr(counters, reason))
    yield rejected
    questions = CounterMetricFamily(
        "mqhooks_requests_questions", "Questions to an authorizer, which are not events.", labels=("hook",)
    )
    for hook, count in counters.questions.items():
        questions.add_metric((hook,), count)
    yield questions


def _calls(counters: GrpcCounters) -> Iterator[Metric]:
    told = "gRPC calls by the status that answered them; CANCELLED: the caller ended them first."
    calls = CounterMetricFamily("mqhooks_grpc_calls", told, labels=("status",))
    for status, count in counters.calls.items():
        calls.add_metric((STATUSES[status],), count)
    orphaned = "gRPC calls that began and never ended, and were reset."
    yield from (calls, CounterMetricFamily("mqhooks_grpc_orphaned", orphaned, counters.orphaned))


_Webhook = tuple[str, WebhookSink, Counts]


def _events(webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
    filtered = CounterMetricFamily("mqhooks_events_filtered", "Events that no rule of the webhook matches.", labels=WEBHOOK)
    matched = CounterMetricFamily("mqhooks_events_matched", "Events that became deliveries.", labels=WEBHOOK)
    for name, sink, _ in webhooks:
        filtered.add_metric((name,), sink.counters.filtered)
        matched.add_metric((name,), sink.counters.matched)
    yield from (filtered, matched)
    late = "Deliveries that came too late to be put in order."
    yield CounterMetricFamily("mqhooks_events_late", late, sum(sink.counters.late for _, sink, _ in webhooks))


def _deliveries(webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
    taken = "Deliveries accepted: from events, taken over from another process (resumed), or replayed."
    accepted = CounterMetricFamily("mqhooks_deliveries_accepted", taken, labels=("webhook", "source"))
    delivered = CounterMetricFamily("mqhooks_deliveries_delivered", "Deliveries that the endpoint accepted.", labels=WEBHOOK)
    dead = CounterMetricFamily("mqhooks_deliveries_dead", "Deliveries that became dead letters.", labels=WEBHOOK)
    dropped = CounterMetricFamily("mqhooks_deliveries_dropped", "Deliveries dropped to make room, or lost.", labels=WEBHOOK)
    others = "Deliveries that another bridge delivers now, because it has their partition."
    handed = CounterMetricFamily("mqhooks_deliveries_handed", others, labels=WEBHOOK)
    attempts = CounterMetricFamily("mqhooks_delivery_attempts", "Delivery attempts, by outcome.", labels=("webhook", "outcome"))
    up = GaugeMetricFamily(
        "mqhooks_webhook_up", "Whether the circuit breaker is closed: the endpoint counts as up.", labels=WEBHOOK
    )
    paused = GaugeMetricFamily("mqhooks_webhook_paused", "Whether an operator has paused the webhook.", labels=WEBHOOK)
    limit = GaugeMetricFamily(
        "mqhooks_webhook_in_flight_limit",
        "Requests that may be in flight: fewer while the endpoint asks for less.",
        labels=WEBHOOK,
    )
    for name, sink, counts in webhooks:
        counters = sink.counters
        accepted.add_metric((name, "events"), counts.appended)
        accepted.add_metric((name, "resumed"), counts.resumed)
        accepted.add_metric((name, "replayed"), counts.replayed)
        delivered.add_metric((name,), counts.delivered)
        dead.add_metric((name,), counts.dead)
        dropped.add_metric((name,), counts.dropped)
        handed.add_metric((name,), counts.handed)
        attempts.add_metric((name, "delivered"), counters.arrived)
        attempts.add_metric((name, "refused"), counters.refused)
        for reason, count in counters.failures.items():
            attempts.add_metric((name, reason), count)
        up.add_metric((name,), int(sink.down_since is None))
        paused.add_metric((name,), int(sink.paused))
        limit.add_metric((name,), sink.in_flight_limit)
    yield from (accepted, delivered, dead, dropped, handed, attempts, up, paused, limit)


def _histograms(webhooks: Sequence[_Webhook]) -> Iterator[Metric]:
    ages = HistogramMetricFamily("mqhooks_delivery_age_seconds", "Seconds from the event to its delivery.", labels=WEBHOOK)
    answers = HistogramMetricFamily("mqhooks_answer_seconds", "Seconds the endpoint took to answer.", labels=WEBHOOK)
    for name, sink, _ in webhooks:
        ages.add_metric((name,), _buckets(sink.counters.ages), sink.counters.ages.sum)
        answers.add_metric((name,), _buckets(sink.counters.answers), sink.counters.answers.sum)
    yield from (ages, answers)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    limits = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(limits, accumulate(histogram.counts), strict=True))
