"""
The parts of a bridge that the admin room looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mqhooks.interfaces import IEventSink
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.webhook.sink import WebhookSink


@dataclass
class Bridge:
    """
    The parts of a running bridge. A reload replaces them here; they are looked up at each use.

    :param settings: the configuration.
    :param sidecar: receives VerneMQ's events.
    :param listener: listens for VerneMQ.
    :param webhooks: the configured webhooks.
    :param store: the durable outbox; ``None`` when deliveries are kept in memory.
    :param sinks: the other sinks, by what they are called.
    """

    settings: Any
    sidecar: SidecarFactory
    listener: SidecarService
    webhooks: list[WebhookSink]
    store: SqliteStore | None
    sinks: Mapping[str, IEventSink] = field(default_factory=dict)
