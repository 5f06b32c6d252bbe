"""
Reloads the configuration of a running process.

- SIGHUP changes whatever can change without losing an event or one of VerneMQ's connections: the webhooks with their secrets
  and certificates, who may see the status page or post events, the notifications, and the limits of the outbox and of the
  sources. Everything else needs a restart, and the log says so in one line.
- The new configuration is checked as a whole first: a wrong one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.logger import Logger

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.server import AdminService
from mqhooks.app.group import WebhookGroup
from mqhooks.app.settings import OutboxSettings, Settings
from mqhooks.errors import ConfigError, MqhooksError, told
from mqhooks.nanomq.block import placed
from mqhooks.sources.webhooks.listener import check
from mqhooks.support.hangup import on_hangup

if TYPE_CHECKING:
    from mqhooks.app.supervisor import Supervisor

RELOADABLE = {
    "sources.sidecar": (),
    "sources.webhooks": ("path", "token", "user", "password", "max_body", "payload_encoding"),
    "sources.grpc": (),
    "sidecar": ("max_frame", "max_sessions", "max_sessions_size", "gather"),
    "outbox": ("max_size", "on_full", "dead_max"),
    "admin": ("token", "hosts"),
    "notify": ("url", "on", "secret"),
}
"""The keys of the ``mqhooks`` block that a reload changes."""


class Reloader(Service):
    """
    Reloads the configuration at SIGHUP.

    :param reactor: runs the reload, outside the signal handler.
    :param load: reads the configuration; ``None`` when there is none, so that SIGHUP concerns only sinks with files.
    :param bridge: the parts that the status page reads; a reload replaces the settings and webhooks in it.
    :param webhooks: the bridge's webhooks.
    :param resize: replaces the limits of the outbox.
    :param admin: the status page; ``None`` when there is none.
    :param limit: replaces the limits of the sources.
    :param supervisor: notified of reloads; ``None`` when there is none.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        load: Callable[[], Settings] | None,
        bridge: Bridge,
        webhooks: WebhookGroup,
        resize: Callable[[OutboxSettings], object],
        admin: AdminService | None,
        limit: Callable[[Settings], object],
        supervisor: Supervisor | None = None,
    ) -> None:
        self._reactor = reactor
        self._load = load
        self._bridge = bridge
        self._webhooks = webhooks
        self._resize = resize
        self._admin = admin
        self._limit = limit
        self._supervisor = supervisor
        self._forget: Callable[[], None] | None = None

    def privilegedStartService(self) -> None:
        """Handle SIGHUP before the log's first line, since whoever waits for that line may send the signal."""
        self._forget = on_hangup(lambda: self._reactor.callFromThread(self.reload))

    def startService(self) -> None:
        """Handle SIGHUP, unless that is done already."""
        super().startService()
        if self._forget is None:
            self.privilegedStartService()

    def stopService(self) -> None:
        """Leave SIGHUP to others."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        super().stopService()

    def reload(self) -> None:
        """Reload the configuration, and log what changed or why nothing did."""
        if self._supervisor is None:
            self._reload()
            return
        self._supervisor.reloading()
        well = False
        try:
            well = self._reload()
        finally:
            self._supervisor.reloaded(well=well)

    def _reload(self) -> bool:
        """Reload, and return whether the configuration is good."""
        if self._load is None:
            self.log.info("there is no configuration file to reload")
            return True
        if not self._webhooks.running:
            return True
        places: Mapping[str, str] = {}
        try:
            wanted = self._load()
            places = wanted.places
            new, changes, fixed = merge(self._bridge.settings, wanted)
            check(new.sources.webhooks)
            if self._admin is not None:
                self._admin.check(new.admin)
            plan = self._webhooks.plan(new.webhooks)
        except MqhooksError as error:
            mistakes = [placed(each, places) for each in error.mistakes] if isinstance(error, ConfigError) else [error]
            for reason in mistakes:
                self.log.error("reload failed, keeping the current configuration: {reason}", reason=told(reason))
            return False
        for warning in new.warnings:
            self.log.warn("{line}", line=told(warning))
        self._resize(new.outbox)
        self._limit(new)
        if self._admin is not None:
            self._admin.change(new.admin)
        self._webhooks.apply(plan)
        self._bridge.settings = new
        self._bridge.webhooks = self._webhooks.sinks
        self.log.info("configuration reloaded: {changes}", changes=", ".join(plan.changes + changes) or "nothing changed")
        if fixed:
            self.log.warn("these changes need a restart: {keys}", keys=", ".join(fixed))
        return True


def merge(old: Settings, wanted: Settings) -> tuple[Settings, list[str], list[str]]:
    """
    Merge new settings into the current ones, as far as a running process can change them.

    :returns: the settings to run with, the changes besides the webhooks, and the keys that need a restart.
    """
    new = replace(old, webhooks=wanted.webhooks, warnings=wanted.warnings, places=wanted.places)
    changes: list[str] = []
    fixed: list[str] = []
    for part, reloadable in RELOADABLE.items():
        before, after = attrgetter(part)(old), attrgetter(part)(wanted)
        different = [field.name for field in fields(before) if getattr(before, field.name) != getattr(after, field.name)]
        # With another kind of outbox, the new limits are not meant for the current one.
        live = [] if "kind" in different else [name for name in different if name in reloadable]
        new = _with(new, part, replace(before, **{name: getattr(after, name) for name in live}))
        changes += [f"{part}.{name} changed" for name in live]
        fixed += [f"{part}.{name}" for name in different if name not in live]
    if old.shutdown_timeout != wanted.shutdown_timeout:
        fixed.append("shutdown_timeout")
    return new, changes, fixed


def _with(settings: Any, path: str, part: object) -> Any:
    """Replace the part of settings that a dotted path names."""
    name, _, rest = path.partition(".")
    return replace(settings, **{name: _with(getattr(settings, name), rest, part) if rest else part})
