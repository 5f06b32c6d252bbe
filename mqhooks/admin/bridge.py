"""
What the status page is about.
"""

from __future__ import annotations

from dataclasses import dataclass

from mqhooks.app.settings import Settings
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.webhook.sink import WebhookSink


@dataclass
class Bridge:
    """
    The parts of a running bridge. Whoever puts others in their place changes them here: they are looked up each time.

    :param settings: what it runs with.
    :param sidecar: what VerneMQ's connections share.
    :param listener: listens for them.
    :param webhooks: the webhooks that are configured.
    :param store: the outbox's file; ``None`` when deliveries wait in memory.
    """

    settings: Settings
    sidecar: SidecarFactory
    listener: SidecarService
    webhooks: list[WebhookSink]
    store: SqliteStore | None
