"""
Another configuration for a process that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.server import AdminService
from mqhooks.app.group import WebhookGroup
from mqhooks.app.settings import Settings
from mqhooks.errors import MqhooksError
from mqhooks.outbox.memory import MemoryStore
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.support.hangup import on_hangup


class Reloader(Service):
    """
    Reads the configuration again at SIGHUP, and has the bridge run with what it says now. One that is wrong changes nothing.

    :param reactor: reads it between two of its turns.
    :param load: reads it; ``None`` when there is none, so that SIGHUP is for others.
    :param bridge: runs with it.
    :param webhooks: its webhooks.
    :param store: their outboxes; ``None`` when there are none.
    :param admin: the status page; ``None`` when there is none.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        load: Callable[[], Settings] | None,
        bridge: Bridge,
        webhooks: WebhookGroup,
        store: SqliteStore | MemoryStore | None,
        admin: AdminService | None,
    ) -> None:
        self._reactor = reactor
        self._load = load
        self._bridge = bridge
        self._webhooks = webhooks
        self._store = store
        self._admin = admin
        self._forget: Callable[[], None] | None = None

    def privilegedStartService(self) -> None:
        """Listen for the signal, which would end the process: from before the first line of the log that others wait for."""
        self._forget = on_hangup(lambda: self._reactor.callFromThread(self.reload))

    def startService(self) -> None:
        """Listen for the signal, unless that was done while there were privileges."""
        super().startService()
        if self._forget is None:
            self.privilegedStartService()

    def stopService(self) -> None:
        """Leave the signal to others."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        super().stopService()

    def reload(self) -> None:
        """Read it again, and say what that changed, or why it changed nothing."""
        if self._load is None:
            self.log.info("there is no configuration file to be read again")
            return
        if not self._webhooks.running:
            return
        old = self._bridge.settings
        try:
            read = self._load()
            new = _kept(old, read)
            if self._admin is not None:
                self._admin.check(new.admin)
            plan = self._webhooks.plan(new.webhooks)
        except MqhooksError as error:
            self.log.error("configuration not read again, the old one stays: {reason}", reason=str(error))
            return
        for warning in new.warnings:
            self.log.warn("{line}", line=warning)
        if self._store is not None:
            _resize(self._store, new)
        self._bridge.sidecar.limit(new.sidecar.max_frame, new.sidecar.max_sessions)
        if self._admin is not None:
            self._admin.change(new.admin)
        self._webhooks.apply(plan, new.shutdown_timeout)
        self._bridge.settings = new
        self._bridge.webhooks = self._webhooks.sinks
        changed = [*plan.words, *(f"{key} changed" for key in _differences(old, new))]
        self.log.info("configuration read again: {changed}", changed=", ".join(changed) or "nothing changed")
        fixed = ", ".join(_differences(new, read))
        if fixed:
            self.log.warn("as before until a restart: {keys}", keys=fixed)


def _kept(old: Settings, new: Settings) -> Settings:
    """Put what cannot change into settings."""
    outbox = replace(new.outbox, path=old.outbox.path, sync=old.outbox.sync)
    if new.outbox.kind != old.outbox.kind:
        # What is said of another kind does not go for this one.
        outbox = old.outbox
    return replace(new, outbox=outbox, admin=replace(new.admin, listen=old.admin.listen))


def _differences(old: Settings, new: Settings) -> Iterator[str]:
    for name in ("sidecar", "outbox", "admin"):
        one, other = getattr(old, name), getattr(new, name)
        for field in fields(one):
            if getattr(one, field.name) != getattr(other, field.name):
                yield f"{name}.{field.name}"
    if old.shutdown_timeout != new.shutdown_timeout:
        yield "shutdown_timeout"


def _resize(store: SqliteStore | MemoryStore, settings: Settings) -> None:
    outbox = settings.outbox
    if isinstance(store, SqliteStore):
        store.resize(outbox.max_size, outbox.on_full, outbox.dead_max)
    else:
        store.resize(outbox.max_size, outbox.dead_max)
