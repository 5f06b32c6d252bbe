"""
The settings of the whole program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from mqhooks.admin.settings import AdminSettings
from mqhooks.outbox.jetstream.store import JetStreamSettings, Role
from mqhooks.outbox.queue import OnFull
from mqhooks.sources.grpc.settings import GrpcSettings
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.webhook.settings import WebhookSettings

OutboxKind = Literal["sqlite", "memory", "jetstream"]
Sync = Literal["normal", "full"]
Kind = Literal["down", "up", "held", "dead", "full", "forgotten"]

OUTBOX_KIND: OutboxKind = "sqlite"
"""The default kind of outbox."""

OUTBOX_SIZES: dict[OutboxKind, int] = {"sqlite": 1 << 30, "memory": 64 << 20, "jetstream": 1 << 30}
"""The default ``max_size``, in bytes for each webhook."""

OUTBOX_LETTERS: dict[OutboxKind, int] = {"sqlite": 100_000, "memory": 1_000, "jetstream": 100_000}
"""The default ``dead_max``, for each webhook."""


GATHER = 0.005
"""Longest time for which events are gathered by default, in seconds: longer saves little more."""


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """
    Settings for reading VerneMQ's stream.

    :param max_frame: bytes; longer frames are skipped.
    :param max_sessions: most clients whose usernames are remembered.
    :param max_sessions_size: most bytes that those may take.
    :param gather: seconds for which events are gathered before sinks get them; -1 to let :attr:`Settings.gather` decide.
    """

    max_frame: int = 16 << 20
    max_sessions: int = 1_000_000
    max_sessions_size: int = 64 << 20
    gather: float = -1


SIDECAR_PORT = 8890
"""Default port of VerneMQ's ``vmq_events_sidecar``."""

SIDECAR_LISTEN = f"tcp:{SIDECAR_PORT}"
"""The same, as an endpoint to listen on."""


@dataclass(frozen=True, slots=True)
class SidecarListening:
    """
    Where to listen for VerneMQ's stream.

    :param listen: Twisted endpoints; empty for none; ``None`` for :data:`SIDECAR_LISTEN`, unless events come by webhooks.
    """

    listen: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class SourcesSettings:
    """
    Where events come from.

    :param sidecar: VerneMQ's stream of frames.
    :param grpc: VerneMQ's gRPC calls.
    :param webhooks: VerneMQ's own webhooks.
    """

    sidecar: SidecarListening = SidecarListening()
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    webhooks: WebhooksSettings = field(default_factory=WebhooksSettings)

    @property
    def sidecars(self) -> tuple[str, ...]:
        """Endpoints to listen on for VerneMQ's stream: by default one, even beside gRPC, but none if webhooks bring events."""
        if self.sidecar.listen is not None:
            return self.sidecar.listen
        return () if self.webhooks.listen else (SIDECAR_LISTEN,)


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """
    Where deliveries wait.

    :param kind: ``sqlite`` survives the end of the process, ``memory`` does not, ``jetstream`` survives machines.
    :param path: the file of ``sqlite``.
    :param sync: ``full``: each commit of ``sqlite`` waits for the disk; ``normal``: the kernel writes it in its own time.
    :param max_size: most bytes that may wait for each webhook.
    :param on_full: what to do then: ``pause`` stops reading (backpressure), ``drop_oldest`` makes room.
    :param dead_max: most dead letters kept for each webhook.
    :param jetstream: the servers of ``jetstream``, and how to use them.
    """

    kind: OutboxKind = OUTBOX_KIND
    path: str = "mqhooks-outbox"
    sync: Sync = "normal"
    max_size: int = OUTBOX_SIZES[OUTBOX_KIND]
    on_full: OnFull = "pause"
    dead_max: int = OUTBOX_LETTERS[OUTBOX_KIND]
    jetstream: JetStreamSettings | None = None

    @property
    def role(self) -> Role:
        """The role of this process; always ``both`` with outboxes other than ``jetstream``."""
        return "both" if self.kind != "jetstream" or self.jetstream is None else self.jetstream.role


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """
    Notifications of changes in a webhook's state.

    :param url: an absolute ``http`` or ``https`` URL to send them to; empty for none.
    :param on: the changes to notify of: ``down``, ``up``: the endpoint is; ``held``: it refuses everything; ``dead``: there are
        new dead letters; ``full``: the outbox is; ``forgotten``: dead letters were removed to make room.
    :param secret: the secrets, each of which signs the requests.
    """

    url: str = ""
    on: tuple[Kind, ...] = get_args(Kind)
    secret: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """
    All settings.

    :param webhooks: the enabled ones.
    :param sources: where events come from.
    :param sidecar: how to read VerneMQ's stream.
    :param shutdown_timeout: seconds that a stop waits for deliveries.
    :param warnings: oddities in the file that are not mistakes, one line each.
    :param places: the file and line of each key in the file.
    """

    webhooks: tuple[WebhookSettings, ...] = ()
    sources: SourcesSettings = field(default_factory=SourcesSettings)
    sidecar: SidecarSettings = SidecarSettings()
    outbox: OutboxSettings = OutboxSettings()
    admin: AdminSettings = field(default_factory=AdminSettings)
    notify: NotifySettings = NotifySettings()
    shutdown_timeout: float = 10.0
    warnings: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def gather(self) -> float:
        """Seconds for which events are gathered: by default a tenth of the shortest merge window, at most :data:`GATHER`."""
        if self.sidecar.gather >= 0:
            return self.sidecar.gather
        windows = [webhook.merge_window if webhook.ordering == "client" else 0.0 for webhook in self.webhooks]
        return min([GATHER, *(window / 10 for window in windows)]) if windows else 0.0


DEFAULTS = Settings()
