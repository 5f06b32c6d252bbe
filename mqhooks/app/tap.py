"""
``twistd mqhooks``: its options, and the service they ask for.

- :func:`plan` collects every mistake, in the options and in the file, and opens nothing. So a start, ``--check`` and
  ``mqhooks check`` report the same.
- Options win over the file, and they still do after a reload.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.application.service import IService, IServiceCollection
from twisted.logger import Logger
from twisted.python.reflect import qual

from mqhooks.app.build import build
from mqhooks.app.configuration import for_url, load_with
from mqhooks.app.describe import describe
from mqhooks.app.engine import examined
from mqhooks.app.logs import FORMATS, observer_for, text_file_observer_for
from mqhooks.app.reactor import MonotonicReactor, install
from mqhooks.app.settings import SIDECAR_PORT, Settings
from mqhooks.app.webhooks import StoredWebhook
from mqhooks.errors import ConfigError, MqhooksError, together, told
from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.block import place_of, placed
from mqhooks.sinks import LogSink, sinkFromString
from mqhooks.sinks.appending import AppendingSink
from mqhooks.sources.grpc.settings import GRPC_PORT
from mqhooks.support.options import CommandOptions, one_of, whole
from mqhooks.support.output import closed, occupy, put
from mqhooks.support.services import DaemonService, LoggedService


def _port(name: str) -> Callable[[str], int]:
    return whole(f"--{name}-port", 0, 65_535)


def _log_format(text: str) -> str:
    return one_of("--log-format", text, FORMATS)


_INSTEAD = {
    "mqhooks.admin.listen": "admin-port",
    "mqhooks.sources.webhooks.listen": "webhooks-port",
    "mqhooks.sources.grpc.listen": "grpc-port",
}
"""Options that override a key."""


class Options(CommandOptions):
    """The command line of ``twistd mqhooks``."""

    synopsis = "[options]"
    longdesc = (
        "Relay VerneMQ's events as NanoMQ-style webhooks. Point VerneMQ's vmq_webhooks at the webhooks port, or the "
        "vmq_events_sidecar of its fork at the sidecar port or the gRPC port, and mqhooks at the nanomq.conf that holds the "
        "webhook block: --check prints the lines for vernemq.conf. Without a configuration the events go to "
        "stdout as JSON lines."
    )
    optParameters = [
        [
            "sidecar-port",
            None,
            None,
            f"Listen for VerneMQ's sidecar on this port of 127.0.0.1. [default: {SIDECAR_PORT}, but not with webhooks]",
            _port("sidecar"),
        ],
        [
            "webhooks-port",
            None,
            None,
            "Take the requests of VerneMQ's own vmq_webhooks on this port of 127.0.0.1, usually 8892; 0 for any free one.",
            _port("webhooks"),
        ],
        [
            "grpc-port",
            None,
            None,
            f"Take VerneMQ's gRPC calls on this port of 127.0.0.1, usually {GRPC_PORT}; 0 for any free one.",
            _port("grpc"),
        ],
        ["config", "c", None, "The HOCON file with the webhook {} block, such as nanomq.conf."],
        ["url", None, None, "Send all NanoMQ events to this address; no file is needed."],
        [
            "admin-port",
            None,
            None,
            "Serve the status page, the API and the metrics on this port of 127.0.0.1; 0 for none. [default: 8891]",
            _port("admin"),
        ],
        ["log-format", None, "text", "Write the log as text, or as json: one object a line.", _log_format],
    ]
    optFlags = [
        ["check", None, "Check the configuration, print what would be sent where, and exit."],
        ["sample", None, "With --check: also print a request for each rule."],
    ]

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
    Build the service that the options ask for, and install our reactor unless ``twistd --reactor`` has chosen one.

    :raises SystemExit: with a line for each setting that is wrong; with status 0 after ``--check``.
    """
    occupy()
    try:
        return _make(install(), options)
    except MqhooksError as error:
        mistakes = getattr(error, "mistakes", (error,))
        raise SystemExit("\n".join(f"mqhooks: {told(mistake)}" for mistake in mistakes)) from None


@dataclass(frozen=True, slots=True)
class PlannedBridge:
    """
    The bridge that a command line asks for.

    :param sidecars: the endpoints to listen on for VerneMQ's stream.
    :param sinks: the sinks other than webhooks.
    :param service: the whole bridge, not started.
    """

    settings: Settings
    sidecars: Sequence[str]
    sinks: Sequence[IEventSink]
    service: IService


def plan(reactor: Any, options: Options, warnings: list[str], *, looking: bool = False) -> PlannedBridge:
    """
    Read the configuration and put everything together; nothing is opened.

    :param warnings: collects the warnings, even when there are mistakes.
    :param looking: whether to look for what would keep sinks from starting, too; the start itself finds that out.
    :raises mqhooks.errors.ConfigError: when there are mistakes: all of them, each with its file or option.
    """
    twistd: Mapping[str, Any] = options.parent or {}
    directory = _directory(twistd)
    errors: list[ConfigError] = []
    settings = _settings_with(options, options["config"], directory, errors)
    warnings += settings.warnings
    engine = settings.outbox.jetstream
    needed = settings.outbox.kind == "sqlite" or (engine is not None and engine.spill == "sqlite")
    if (settings.webhooks or errors) and needed and not twistd.get("chroot"):
        _check_place(settings.outbox.path, errors)
    sinks: list[IEventSink] = []
    for description in options["sink"]:
        try:
            sinks.append(sinkFromString(reactor, description))
        except ConfigError as error:
            errors.append(error)
    if looking and not twistd.get("chroot"):
        _look_at(sinks, directory, errors)
    reload = None
    if options["config"] is not None:
        # By the time of a reload the process may have changed its directory.
        reload = partial(_settings, options, os.path.abspath(options["config"]), directory)
    elif errors or (not settings.webhooks and not sinks):
        sinks.append(LogSink(reactor))
    given = _sidecars(options)
    try:
        service = build(settings, reactor, sidecars=given or None, sinks=sinks, descriptions=options["sink"], load=reload)
    except ConfigError as error:
        # A setting that was wrong in the file may be missing here: report it once.
        told_of = {each.key for each in errors}
        errors += [each for each in error.mistakes if not each.key or each.key not in told_of]
    if errors:
        raise together(_located(error, options, settings.places) for error in errors)
    return PlannedBridge(settings, given or settings.sources.sidecars, sinks, service)


def looked_at(settings: Settings, options: Options) -> Settings:
    """
    Examine the outbox, if it is in JetStream.

    :returns: the settings, with the outbox's oddities added to their warnings.
    :raises mqhooks.errors.ConfigError: when it cannot be used.
    """
    if not settings.webhooks or settings.outbox.jetstream is None:
        return settings
    found = examined(settings)
    if found.problems:
        mistakes = [ConfigError(problem, key="mqhooks.outbox") for problem in found.problems]
        raise together([_located(mistake, options, settings.places) for mistake in mistakes])
    notes = tuple(f"outbox: {note}" for note in found.notes)
    return replace(settings, warnings=(*settings.warnings, *notes))


def _make(reactor: Any, options: Options) -> IService:
    if options["sample"] and not options["check"]:
        raise ConfigError("works only with --check: give both", "--sample")
    log = Logger()
    twistd: Mapping[str, Any] = options.parent or {}
    planned = plan(reactor, options, [], looking=options["check"])
    if options["check"]:
        settings = looked_at(planned.settings, options)
        described = describe(settings, planned.sidecars, options["sink"], samples=bool(options["sample"]))
        with suppress(BrokenPipeError):
            put(partial(print, described))
            put(sys.stdout.flush)
        raise SystemExit(0)
    settings, sinks, service = planned.settings, planned.sinks, planned.service
    for warning in settings.warnings:
        log.warn("{line}", line=told(warning))
    if not isinstance(reactor, MonotonicReactor):
        log.warn(
            "with {reactor}, timers follow the wall clock: start twistd without --reactor, and they ignore clock changes",
            reactor=qual(type(reactor)),
        )
    to_stdout = _to_stdout(sinks)
    daemon = bool(twistd) and not twistd.get("nodaemon")
    if to_stdout and closed():
        raise ConfigError("standard output is closed: give --config, --url or --sink log:path=FILE")
    if to_stdout and daemon:
        raise ConfigError("a daemon has no standard output: give --config, --url or --sink log:path=FILE, or run twistd -n")
    observer = observer_for(reactor, options.parent, options["log-format"], stdout_taken=to_stdout)
    if twistd and not signal.getsignal(signal.SIGUSR1):
        # Without a log file to rotate, the signal would end the process.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    observer = observer or text_file_observer_for(reactor, options.parent)
    top: IService = DaemonService([service]) if daemon else service
    return top if observer is None else LoggedService([top], observer)


def _located(error: ConfigError, options: Options, places: Mapping[str, str]) -> ConfigError:
    """Add to a mistake where the setting comes from: the option that was given, or the file and the line."""
    message, key = error.message, error.key
    if not key or error.place or error.where not in ("", options["config"]):
        return error
    for setting, option in _INSTEAD.items():
        if options[option] is not None:
            message, key = message.replace(setting, f"--{option}"), key.replace(setting, f"--{option}")
    if key.startswith("--"):
        return ConfigError(message, "", key)
    return placed(ConfigError(message, options["config"] or "", key), places)


def _sidecars(options: Options) -> list[str]:
    descriptions: list[str] = list(options["sidecar"])
    if options["sidecar-port"] is not None:
        descriptions.insert(0, f"tcp:{options['sidecar-port']}")
    return descriptions


def _to_stdout(sinks: Iterable[object]) -> bool:
    """Return whether one of these sinks, or of those that they are made of, writes to standard output."""
    return any(
        sink.uses_stdout if isinstance(sink, LogSink) else IServiceCollection.providedBy(sink) and _to_stdout(sink)
        for sink in sinks
    )


def _settings(options: Options, config: str | None, directory: str) -> Settings:
    errors: list[ConfigError] = []
    settings = _settings_with(options, config, directory, errors)
    if errors:
        raise together(errors)
    return settings


def _settings_with(options: Options, config: str | None, directory: str, errors: list[ConfigError]) -> Settings:
    """Read the settings, and collect mistakes instead of stopping at them."""
    settings = Settings()
    try:
        settings = settings if config is None else load_with(config, errors)
    except ConfigError as error:
        errors.append(error)
    if options["url"] is not None:
        try:
            (webhook,) = for_url(options["url"]).webhooks
        except ConfigError as error:
            errors.append(error)
        else:
            if settings.webhooks:
                webhook = replace(webhook, name="url")
            if webhook.name in [other.name for other in settings.webhooks]:
                problem = "--url has this name too: rename this webhook"
                errors.append(ConfigError(problem, config or "", "webhooks.url", place_of("webhooks.url", settings.places)))
            else:
                settings = replace(settings, webhooks=(*settings.webhooks, webhook))
    if config is not None and not errors and not settings.webhooks and not options["sink"]:
        remedy = "add webhook { url = … events = […] }, or give --url or --sink"
        errors.append(ConfigError(f"no webhook is enabled: {remedy}", config))
    if options["admin-port"] is not None:
        port = options["admin-port"]
        settings = replace(settings, admin=replace(settings.admin, listen=f"tcp:{port}" if port else "off"))
    if options["webhooks-port"] is not None:
        webhooks = replace(settings.sources.webhooks, listen=(f"tcp:{options['webhooks-port']}",))
        settings = replace(settings, sources=replace(settings.sources, webhooks=webhooks))
    if options["grpc-port"] is not None:
        grpc = replace(settings.sources.grpc, listen=(f"tcp:{options['grpc-port']}",))
        settings = replace(settings, sources=replace(settings.sources, grpc=grpc))
    return replace(settings, outbox=replace(settings.outbox, path=os.path.join(directory, settings.outbox.path)))


def _directory(twistd: Mapping[str, Any]) -> str:
    """Return the base of relative paths: the directory in which twistd is going to run, or "" for the current one."""
    directory = twistd.get("rundir") or "."
    if directory == ".":
        return "/" if twistd.get("chroot") else ""
    return os.path.abspath(directory)


def _look_at(sinks: Iterable[object], directory: str, errors: list[ConfigError]) -> None:
    """Note what would keep these sinks, and those that they are made of, from starting."""
    for sink in sinks:
        if isinstance(sink, AppendingSink):
            try:
                sink.look(directory)
            except ConfigError as error:
                errors.append(error)
        elif isinstance(sink, StoredWebhook):
            _check_place(os.path.join(directory, sink.path), errors, "--sink webhook", "outbox")
        elif IServiceCollection.providedBy(sink):
            _look_at(sink, directory, errors)


def _check_place(path: str, errors: list[ConfigError], where: str = "", key: str = "mqhooks.outbox.path") -> None:
    problem = None
    directory = os.path.abspath(os.path.dirname(path))
    if os.path.isdir(path):
        problem = f"{path} is a directory: name a file in it"
    elif os.path.exists(path) and not os.path.isfile(path):
        problem = f"{path} is not a regular file: name another one"
    elif not os.path.isdir(directory):
        problem = f"{path}: there is no directory {directory}: make it or name another place"
    if problem is not None:
        errors.append(ConfigError(problem, where, key))
