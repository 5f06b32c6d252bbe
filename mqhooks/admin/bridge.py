"""
The parts of a bridge that the admin room reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqhooks.admin.cluster import Cluster, look
from mqhooks.delivery import Delivery, Request
from mqhooks.events import HOOKS
from mqhooks.interfaces import IEventSink, IEventSource
from mqhooks.outbox.jetstream.store import JetStreamStore
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.sink import WebhookSink


@dataclass
class Bridge:
    """
    The parts of a running bridge. A reload replaces them here, so look them up at each use.

    :param settings: the configuration.
    :param sources: the sources of VerneMQ's events.
    :param webhooks: the configured webhooks.
    :param store: the outbox's file; ``None`` when deliveries are kept elsewhere.
    :param sinks: the other sinks, by name.
    :param engine: the outbox in JetStream; ``None`` when deliveries are kept elsewhere.
    :param make_test: makes a delivery and its request for testing a webhook, or raises a
        :class:`~mqhooks.errors.MqhooksError` when it cannot. ``None`` when nothing can be tested.
    """

    settings: Any
    sources: Sequence[IEventSource]
    webhooks: list[WebhookSink]
    store: SqliteStore | None
    sinks: Mapping[str, IEventSink] = field(default_factory=dict)
    engine: JetStreamStore | None = None
    make_test: Callable[[WebhookSettings], tuple[Delivery, Request]] | None = None

    @property
    def failing(self) -> str | None:
        """The reason why the outbox accepts nothing; ``None`` when all is well."""
        store = self.store or self.engine
        return None if store is None else store.failing

    @property
    def cluster(self) -> Cluster | None:
        """All bridges that share this one's outboxes, as it knows them; ``None`` when its outboxes cannot be shared."""
        return None if self.engine is None else look(self.engine, [sink.settings.name for sink in self.webhooks])

    @property
    def hooks(self) -> Counter[str]:
        """The number of events received from all sources, by hook."""
        hooks: Counter[str] = Counter(dict.fromkeys(HOOKS, 0))
        for source in self.sources:
            hooks.update(source.counters.hooks)
        return hooks
