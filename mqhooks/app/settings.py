"""
The settings of the whole program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from mqhooks.webhook.settings import WebhookSettings

OutboxKind = Literal["sqlite", "memory"]
Sync = Literal["normal", "full"]
OnFull = Literal["pause", "drop_oldest"]

OUTBOX_KIND: OutboxKind = "sqlite"
"""Where deliveries wait when nothing is said."""

OUTBOX_SIZES: dict[OutboxKind, int] = {"sqlite": 1 << 30, "memory": 64 << 20}
"""How many bytes may wait for each webhook when nothing is said."""

OUTBOX_LETTERS: dict[OutboxKind, int] = {"sqlite": 100_000, "memory": 1_000}
"""How many dead letters are kept for each webhook when nothing is said."""


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """
    How VerneMQ's stream is read.

    :param max_frame: bytes; a longer frame is left out.
    :param max_sessions: of how many clients the username is remembered.
    """

    max_frame: int = 16 << 20
    max_sessions: int = 1_000_000


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """
    Where deliveries wait.

    :param kind: ``sqlite`` outlives the process, ``memory`` does not.
    :param path: the file of ``sqlite``.
    :param sync: whether ``sqlite`` waits for the disk with each commit (``full``) or leaves that to the kernel (``normal``).
    :param max_size: bytes for each webhook.
    :param on_full: whether no more is read then, or the oldest is dropped.
    :param dead_max: how many dead letters are kept for each webhook.
    """

    kind: OutboxKind = OUTBOX_KIND
    path: str = "mqhooks-outbox"
    sync: Sync = "normal"
    max_size: int = OUTBOX_SIZES[OUTBOX_KIND]
    on_full: OnFull = "pause"
    dead_max: int = OUTBOX_LETTERS[OUTBOX_KIND]


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """
    The status page, the metrics and what goes with them.

    :param listen: a Twisted endpoint; ``off`` for none of it; ``None`` for the usual address, which another process may have.
    :param token: what who asks has to know; ``None`` for nothing.
    :param hosts: names beside the loopback's and the address itself that it may be called by.
    """

    listen: str | None = None
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Everything that a file says.

    :param webhooks: those that are enabled.
    :param shutdown_timeout: how many seconds stopping may wait for deliveries.
    :param warnings: what is odd but no mistake, each in one line.
    """

    webhooks: tuple[WebhookSettings, ...] = ()
    sidecar: SidecarSettings = SidecarSettings()
    outbox: OutboxSettings = OutboxSettings()
    admin: AdminSettings = AdminSettings()
    shutdown_timeout: float = 10.0
    warnings: tuple[str, ...] = ()


DEFAULTS = Settings()

ADMIN_LISTEN = "tcp:8891"
"""Where the status page is when nothing is said."""

TOKEN = re.compile(r"[!-~]{16,}")
"""What a token of :class:`AdminSettings` looks like: it has to fit into a header."""
