"""
The state of a bridge as plain data.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from time import time
from typing import Any

from twisted.internet.interfaces import IReactorTime

import mqhooks
from mqhooks.admin.bridge import Bridge
from mqhooks.admin.history import History
from mqhooks.admin.sinks import shown_sinks
from mqhooks.admin.verdict import judge
from mqhooks.events import HOOKS
from mqhooks.interfaces import IEventSource
from mqhooks.sources.counters import SourceCounters
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.support.listening import address_name
from mqhooks.support.redact import hide_url
from mqhooks.webhook.counters import LastFailure
from mqhooks.webhook.sink import WebhookSink


class Status:
    """
    Takes snapshots of a bridge.

    :param bridge: the bridge.
    :param clock: measures the uptime.
    :param now: the time of day, in seconds since 1970.
    """

    def __init__(self, bridge: Bridge, clock: IReactorTime, now: Callable[[], float] = time) -> None:
        self.bridge = bridge
        self.history = History(bridge, clock)
        self._clock = clock
        self._now = now
        self._began = clock.seconds()
        self._host = socket.gethostname()

    def snapshot(self) -> dict[str, Any]:
        """
        Take a snapshot, in plain JSON values. Times are seconds since 1970, durations seconds.
        """
        now = self._now()
        uptime = self._clock.seconds() - self._began
        status: dict[str, Any] = {
            "version": mqhooks.__version__,
            "host": self._host,
            "now": now,
            "started": now - uptime,
            "uptime": uptime,
            "sidecar": self._sidecar(),
            "sources": [self._source(source) for source in self.bridge.sources],
            **self._came(self.bridge.sources),
            "webhooks": [self._webhook(sink, now) for sink in self.bridge.webhooks],
            "sinks": shown_sinks(self.bridge.sinks),
            "outbox": self._outbox(),
            "cluster": self._cluster(),
        }
        return status | {"verdict": judge(status)}

    def age(self, accepted: int | None) -> float | None:
        """Get the age in seconds of a delivery, from its time of acceptance in milliseconds since 1970."""
        return None if accepted is None else max(self._now() - accepted / 1000, 0.0)

    def oldest(self, sink: WebhookSink) -> float | None:
        """Get the age in seconds of a webhook's oldest pending delivery; ``None`` when none is pending."""
        return self.age(sink.outbox.oldest)

    def _came(self, sources: Sequence[IEventSource]) -> dict[str, Any]:
        """Count the events from these sources by hook, with their rates."""
        hooks = dict.fromkeys(HOOKS, 0)
        for source in sources:
            for hook, count in source.counters.hooks.items():
                hooks[hook] += count
        rates = self.history.rates(sources)
        return {"hooks": hooks, "rates": rates, "rate": round(sum(rates.values()), 2)}

    def _sidecar(self) -> dict[str, Any]:
        sidecars = [source for source in self.bridge.sources if isinstance(source.counters, SidecarCounters)]
        counters: SidecarCounters = sidecars[0].counters if sidecars else SidecarCounters()
        return {
            "connections": counters.connections,
            "paused": counters.paused,
            "frames": counters.frames,
            "events": counters.events,
            "malformed": counters.malformed,
            "unknown": sum(counters.unknown.values()),
            "empty": counters.empty,
            **self._came(sidecars),
        }

    def _source(self, source: IEventSource) -> dict[str, Any]:
        counters: SourceCounters = source.counters
        return {
            "via": source.via,
            "listening": [address_name(address) for address in source.addresses],
            "connections": counters.connections,
            "paused": counters.paused,
            "events": counters.events,
            "malformed": counters.malformed,
            "refused": counters.refused,
            **self._came([source]),
        }

    def _webhook(self, sink: WebhookSink, now: float) -> dict[str, Any]:
        counts, counters, settings = sink.outbox.counts, sink.counters, sink.settings
        probe = sink.next_probe
        return {
            "name": settings.name,
            "url": hide_url(settings.url),
            "state": "paused" if sink.paused else "up" if sink.down_since is None else "down",
            "down_since": sink.down_since,
            "paused_until": sink.paused_until,
            "refusing": sink.refusing,
            "next_attempt": None if probe is None or sink.paused else now + probe,
            "retrying": sink.retrying,
            "in_flight_limit": sink.in_flight_limit,
            "last_error": _error(sink.failure),
            "last_answer": _answer(sink.refusal),
            "accepted": counts.accepted,
            "resumed": counts.resumed,
            "replayed": counts.replayed,
            "delivered": counts.delivered,
            "dead": counts.dead,
            "dropped": counts.dropped,
            "handed": counts.handed,
            "pending": counts.pending,
            "filtered": counters.filtered,
            "matched": counters.matched,
            "late": counters.late,
            "attempts": {
                "delivered": counters.arrived,
                "refused": counters.refused,
                "failed": counters.failed,
            },
            "failures": dict(counters.failures),
            "letters": sink.outbox.letters,
            "forgotten": counts.forgotten,
            "oldest_seconds": self.oldest(sink),
            "bytes": sink.outbox.used,
            "max_size": sink.outbox.max_size,
            "history": self.history.of(settings.name, now),
        }

    def _outbox(self) -> dict[str, Any]:
        store = self.bridge.store
        outboxes = [sink.outbox for sink in self.bridge.webhooks]
        return {
            "kind": "sqlite" if store is not None else "jetstream" if self.bridge.engine is not None else "memory",
            "path": None if store is None else store.path,
            "bytes": sum(outbox.used for outbox in outboxes),
            "max_size": self.bridge.settings.outbox.max_size,
            "failing": self.bridge.failing,
            "damaged": [] if store is None else store.damaged,
            "dead": sum(outbox.letters for outbox in outboxes),
        }

    def _cluster(self) -> dict[str, Any] | None:
        cluster = self.bridge.cluster
        if cluster is None:
            return None
        shares = {member: list(cluster.of(member)) for member in cluster.members}
        return {
            "name": cluster.me,
            "server": cluster.server,
            "replicas": cluster.replicas,
            "pending": cluster.pending,
            "members": [
                {"name": member, "partitions": len(those), "pending": sum(share.pending for share in those)}
                for member, those in shares.items()
            ],
            "webhooks": [
                {
                    "name": shared.name,
                    "pending": shared.pending,
                    "oldest_seconds": self.age(shared.oldest),
                    "unowned": shared.unowned,
                    "replicas": shared.replicas,
                    "partitions": [
                        {
                            "partition": number,
                            "owner": who,
                            "pending": share.pending,
                            "oldest_seconds": self.age(share.oldest),
                            "leader": share.leader or None,
                            "replicas": share.replicas or None,
                        }
                        for number, (who, share) in shared.owned.items()
                    ],
                }
                for shared in cluster.webhooks
            ],
        }


def _error(failure: LastFailure | None) -> dict[str, Any] | None:
    return None if failure is None else {"at": failure.at, "reason": failure.reason}


def _answer(failure: LastFailure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"at": failure.at, "status": failure.status, "body": failure.body.decode("utf-8", "replace")}
