"""
``twistd mqhooks``: the options, and the service tree that they ask for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from time import monotonic
from typing import Any

from twisted.application.service import IService
from twisted.logger import Logger

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.server import AdminService
from mqhooks.app.configuration import for_url, load
from mqhooks.app.describe import describe
from mqhooks.app.group import WebhookGroup
from mqhooks.app.logs import FORMATS, observer_for
from mqhooks.app.reload import Reloader
from mqhooks.app.settings import Settings
from mqhooks.app.summary import SummaryService
from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink, IOutbox
from mqhooks.outbox.memory import MemoryStore
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.sinks import FanOut, LogSink, sinkFromString
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.support.options import CommandOptions, one_of, whole
from mqhooks.support.services import LoggedService, OrderedService

SIDECAR_PORT = 8890
"""Where VerneMQ's ``vmq_events_sidecar`` connects to unless it is told otherwise."""


def _port(name: str) -> Callable[[str], int]:
    return whole(f"--{name}-port", 0, 65_535)


def _log_format(text: str) -> str:
    return one_of("--log-format", text, FORMATS)


class Options(CommandOptions):
    """The command line of ``twistd mqhooks``."""

    synopsis = "[options]"
    longdesc = (
        "Relay VerneMQ's events as NanoMQ-style webhooks. Point vmq_events_sidecar at the sidecar port, and mqhooks at the "
        "nanomq.conf that holds the webhook block. Without a configuration the events go to stdout as JSON lines."
    )
    optParameters = [
        [
            "sidecar-port",
            None,
            None,
            f"Listen for VerneMQ on this port of 127.0.0.1. [default: {SIDECAR_PORT}]",
            whole("--sidecar-port", 0, 65_535),
        ],
        ["config", "c", None, "The HOCON file with the webhook {} block, such as nanomq.conf."],
        ["url", None, None, "Send all NanoMQ events to this address; no file is needed."],
        [
            "admin-port",
            None,
            None,
            "Have the status page, the API and the metrics on this port of 127.0.0.1; 0 for none. [default: 8891]",
            _port("admin"),
        ],
        ["log-format", None, "text", "Write the log as text, or as json: one object a line.", _log_format],
    ]
    optFlags = [["check", None, "Check the configuration, print what would be sent where, and exit."]]

    def __init__(self) -> None:
        super().__init__()
        self["sidecar"] = []
        self["sink"] = []

    def opt_sidecar(self, description: str) -> None:
        """
        Listen for VerneMQ on this Twisted endpoint, such as tcp:8890:interface=10.0.0.1; may be repeated.
        """
        self["sidecar"].append(description)

    def opt_sink(self, description: str) -> None:
        """
        Send the events to this sink too, such as log:path=/var/log/mqhooks.jsonl; may be repeated.
        """
        self["sink"].append(description)


def makeService(options: Options) -> IService:
    """
    Put the service together that the options ask for.

    :raises SystemExit: with one line when a setting is wrong; with status 0 after ``--check``.
    """
    from twisted.internet import reactor

    # Timers must not stop, or all end at once, when somebody sets the clock.
    reactor.seconds = monotonic  # type: ignore[method-assign]
    try:
        return _build(reactor, options)
    except ConfigError as error:
        raise SystemExit(f"mqhooks: {error}") from None


def _build(reactor: Any, options: Options) -> IService:
    settings = _settings(options)
    descriptions = list(options["sidecar"])
    if options["sidecar-port"] is not None or not descriptions:
        port = SIDECAR_PORT if options["sidecar-port"] is None else options["sidecar-port"]
        descriptions.insert(0, f"tcp:{port}")
    store = _store(reactor, options, settings)
    webhooks = WebhookGroup(reactor, settings.webhooks, _outboxes(store), drain_time=settings.shutdown_timeout)
    sinks = _sinks(reactor, options, webhooks)
    sink = sinks[0] if len(sinks) == 1 else FanOut(sinks)
    factory = SidecarFactory(reactor, sink, max_frame=settings.sidecar.max_frame, max_sessions=settings.sidecar.max_sessions)
    listener = SidecarService(reactor, descriptions, factory)
    file = store if isinstance(store, SqliteStore) else None
    bridge = Bridge(settings, factory, listener, webhooks.sinks, file)
    admin = _admin(reactor, options, bridge)
    if options["check"]:
        print(describe(settings, descriptions, options["sink"]))  # noqa: T201 - this is what the option is for
        raise SystemExit(0)
    log = Logger()
    for warning in settings.warnings:
        log.warn("{line}", line=warning)
    to_stdout = any(isinstance(each, LogSink) and each.uses_stdout for each in sinks)
    if to_stdout and options.parent is not None and not options.parent.get("nodaemon"):
        raise ConfigError("a daemon has no standard output: give --config, --url or --sink log:path=FILE, or run twistd -n")
    summary = SummaryService(reactor, factory.counters, lambda: bridge.webhooks)
    reloader = Reloader(reactor, _again(options), bridge, webhooks, store, admin)
    # What handles a signal is there first and last: without it the signal ends the process.
    children = [each for each in (reloader, file, summary, sink, admin, listener) if each is not None]
    observer = observer_for(reactor, options.parent, options["log-format"], stdout_taken=to_stdout)
    return OrderedService(children) if observer is None else LoggedService(children, observer)


def _admin(reactor: Any, options: Options, bridge: Bridge) -> AdminService | None:
    settings = bridge.settings.admin
    if settings.listen == "off":
        return None
    try:
        return AdminService(reactor, bridge, settings)
    except ConfigError as error:
        raise ConfigError(str(error), options["config"] or "", "mqhooks.admin.listen") from None


def _settings(options: Options) -> Settings:
    settings = Settings() if options["config"] is None else load(options["config"])
    if options["url"] is not None:
        (webhook,) = for_url(options["url"]).webhooks
        if settings.webhooks:
            webhook = replace(webhook, name="url")
        if webhook.name in [other.name for other in settings.webhooks]:
            raise ConfigError("--url is called so too: call this webhook something else", options["config"], "webhooks.url")
        settings = replace(settings, webhooks=(*settings.webhooks, webhook))
    if options["config"] is not None and not settings.webhooks and not options["sink"]:
        remedy = "add webhook { url = … events = […] }, or give --url or --sink"
        raise ConfigError(f"no webhook is enabled: {remedy}", options["config"])
    if options["admin-port"] is not None:
        port = options["admin-port"]
        settings = replace(settings, admin=replace(settings.admin, listen=f"tcp:{port}" if port else "off"))
    return settings


def _again(options: Options) -> Callable[[], Settings] | None:
    if options["config"] is None:
        return None
    # By then the process may run in another directory.
    options = copy(options)
    options["config"] = os.path.abspath(options["config"])
    return lambda: _settings(options)


def _store(reactor: Any, options: Options, settings: Settings) -> SqliteStore | MemoryStore | None:
    outbox = settings.outbox
    if outbox.kind == "memory":
        return MemoryStore(outbox.max_size, outbox.dead_max)
    if not settings.webhooks:
        return None
    problem = _misplaced(outbox.path, options.parent or {})
    if problem is not None:
        raise ConfigError(problem, options["config"] or "", "mqhooks.outbox.path")
    return SqliteStore(
        reactor,
        outbox.path,
        sync=outbox.sync,
        max_size=outbox.max_size,
        on_full=outbox.on_full,
        dead_max=outbox.dead_max,
    )


def _misplaced(path: str, twistd: Mapping[str, Any]) -> str | None:
    """Say why a file cannot be where it is to be; what only the root of another file system shows is not known yet."""
    if twistd.get("chroot"):
        return None
    place = os.path.join(twistd.get("rundir") or "", path)
    if os.path.isdir(place):
        return f"{path} is a directory: name a file in it"
    directory = os.path.abspath(os.path.dirname(place))
    return None if os.path.isdir(directory) else f"{path}: there is no directory {directory}: make it or name another place"


def _outboxes(store: SqliteStore | MemoryStore | None) -> Callable[[str], IOutbox]:
    if store is not None:
        return store.outbox

    def refuse(name: str) -> IOutbox:
        raise ConfigError(f"no webhook was enabled at the start, so there is no outbox for {name}: restart mqhooks")

    return refuse


def _sinks(reactor: Any, options: Options, webhooks: WebhookGroup) -> list[IEventSink]:
    sinks = [sinkFromString(reactor, description) for description in options["sink"]]
    if options["config"] is not None or webhooks.sinks:
        sinks.insert(0, webhooks)
    return sinks or [LogSink(reactor)]
