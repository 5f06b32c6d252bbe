"""
Reads a configuration file: the webhooks, and the settings of mqhooks itself.

- Reading goes on past mistakes, so that all of them are reported together, each with its line.
- The commands that need only the outbox or the admin API read only that, so that other blocks' secrets need not be set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import cast, get_args

from mqhooks.admin.settings import ADMIN_LISTEN, TOKEN, AdminSettings
from mqhooks.app.jetstreamblock import jetstream
from mqhooks.app.settings import (
    DEFAULTS,
    OUTBOX_LETTERS,
    OUTBOX_SIZES,
    Kind,
    NotifySettings,
    OutboxKind,
    OutboxSettings,
    Settings,
    SidecarSettings,
    Sync,
)
from mqhooks.app.sourcesblock import SOURCES, sources
from mqhooks.app.webhookblock import read_secrets, shared, webhooks
from mqhooks.errors import ConfigError, together
from mqhooks.nanomq.block import Block, Unset, placed, suggest
from mqhooks.nanomq.events import NANOMQ_EVENTS
from mqhooks.nanomq.hocon import read
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.queue import OnFull
from mqhooks.support.listening import interface_of
from mqhooks.support.tls import client_context
from mqhooks.webhook.settings import SharedSettings, WebhookSettings, check_url

_IN_SOURCES = "set where mqhooks listens in mqhooks {{ sources {{ {} }} }}"

_MISPLACED = {
    **{key: f"; {_IN_SOURCES.format(f'{key} {{ listen = … }}')}" for key in ("webhooks", "grpc")},
    "webhook": "; the webhook block belongs beside mqhooks { … }, not inside it",
    "listen": f"; {_IN_SOURCES.format('sidecar { listen = … }')}",
}
"""Hints about keys that do not belong in the ``mqhooks`` block."""


def load(path: str) -> Settings:
    """
    Read a file, such as a whole ``nanomq.conf``: its ``webhook``, ``webhooks`` and ``mqhooks`` blocks; the rest is ignored.

    :raises mqhooks.errors.ConfigError: when there are mistakes, each with file, key and remedy:
        :class:`~mqhooks.errors.ConfigErrors` when there are several.
    """
    errors: list[ConfigError] = []
    settings = load_with(path, errors)
    if errors:
        raise together(errors)
    return settings


def load_with(path: str, errors: list[ConfigError]) -> Settings:
    """
    Read a file as :func:`load` does, but go on past mistakes.

    :param errors: collects the mistakes.
    :returns: the settings, without webhooks that have mistakes, and with defaults in place of other wrong values.
    :raises mqhooks.errors.ConfigError: when the file cannot be read at all.
    """
    document = read(path)
    warnings = document.warnings
    found = list(document.mistakes)
    root = Block(document.values, path, "", warnings, found, document.places)
    try:
        settings = compose(root)
    except ConfigError as error:
        found.append(error)
        settings = Settings()
    unset = list(_unset(document.values, ""))
    told = [error for error in found if not any(f"{error.key}.".startswith(f"{key}.") for key in unset)]
    errors += [placed(error, document.places) for error in told]
    for key in ("sources", "sidecar", "outbox", "admin"):
        if key in document.others:
            root.warn(key, f"belongs in the mqhooks block and is ignored here: mqhooks {{ {key} {{ … }} }}")
    wrong = [f"{key}." for key in (*unset, *(error.key for error in found))]
    good = []
    for webhook in settings.webhooks:
        if not any(key.startswith((f"webhooks.{webhook.name}.", f"{webhook.name}.")) for key in wrong):
            good.append(webhook)
            continue
        if webhook.tls is not None and not any(error.key.startswith(webhook.tls.path) for error in found):
            try:
                # The files of good webhooks are checked when those are made.
                client_context(webhook.tls)
            except ConfigError as error:
                errors.append(error)
    return replace(settings, webhooks=tuple(good), warnings=tuple(warnings), places=document.places)


def _unset(value: object, path: str) -> Iterator[str]:
    """Find the keys whose values need variables that are not set."""
    if isinstance(value, Unset):
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _unset(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _unset(inner, f"{path}[{index}]")


def outbox_path(path: str) -> str:
    """
    Read the outbox's path, and nothing else, so that variables with secrets need not be set.

    :raises mqhooks.errors.ConfigError: when the file cannot be read, the outbox has no file, or the path needs a variable that
        is not set.
    """
    values = read(path, required=False).values
    block = Block(values, path, "", []).block("mqhooks").block("outbox")
    if str(block.string("kind", None)).lower() == "jetstream":
        raise block.error("kind", "is jetstream: such an outbox has no file; its dead letters are in JetStream")
    if str(block.string("kind", None)).lower() == "memory":
        raise block.error("kind", "is memory: such an outbox has no file, and its dead letters end with the process")
    outbox = block.file("path", DEFAULTS.outbox.path)
    if "${" in outbox:
        raise block.error("path", f"{outbox}: set the environment variable that it refers to, or give --outbox")
    return outbox


def admin_access(file: str, given: str | None = None) -> tuple[str, str | None]:
    """
    Read the admin API's address and token, and nothing else, so that variables with other secrets need not be set.

    :param given: the address, if it is known; ``None`` to read it from the file.
    :returns: a URL, or ``unix:`` and a path; and the token.
    :raises mqhooks.errors.ConfigError: when the file cannot be read, there is no admin API, or its address is not fixed.
    """
    block = Block(read(file, required=False).values, file, "", []).block("mqhooks").block("admin")
    listen = block.string("listen", ADMIN_LISTEN)
    for key in ("listen", "token") if given is None else ("token",):
        if "${" in str(block.tree(key)):
            raise block.error(key, "set the environment variable that it refers to")
    if given is not None:
        return given, block.secret("token")
    if listen == "off":
        raise block.error("listen", "is off, so there is no API to ask: set it to an address like tcp:8891")
    kind, interface, port = interface_of(listen)
    if kind == "unix":
        path = re.split(r"(?<!\\):", listen)[1].removeprefix("address=")
        return f"unix:{path}", block.secret("token")
    if not port:
        raise block.error("listen", f"{listen} has no fixed port: also give --url")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(interface, interface)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if kind == 'ssl' else 'http'}://{host}:{port}", block.secret("token")


def compose(root: Block) -> Settings:
    """
    Make settings from a whole file.

    :raises mqhooks.errors.ConfigError: when that is impossible; other mistakes are noted with ``root``.
    """
    ours = root.block("mqhooks")
    enabled = tuple(webhooks(root, shared(ours, SharedSettings())))
    sidecar = ours.block("sidecar")
    settings = Settings(
        webhooks=enabled,
        sources=sources(ours.block("sources")),
        sidecar=SidecarSettings(
            max_frame=sidecar.size("max_frame", DEFAULTS.sidecar.max_frame, least=1 << 10, most=256 << 20),
            max_sessions=sidecar.integer("max_sessions", DEFAULTS.sidecar.max_sessions, least=0),
            max_sessions_size=sidecar.size("max_sessions_size", DEFAULTS.sidecar.max_sessions_size, least=1 << 10),
            gather=sidecar.duration("gather", -1, unit="ms", zero=True),
        ),
        outbox=_outbox(ours.block("outbox")),
        admin=_admin(ours.block("admin")),
        notify=_notify(ours, ours.block("notify")),
        shutdown_timeout=ours.duration("shutdown_timeout", DEFAULTS.shutdown_timeout, unit="ms", plain=0.1),
    )
    sidecar.close({"listen": f"; {_IN_SOURCES.format('sidecar { listen = … }')}"})
    for key in ours.unread:
        if any(ours.holds(key, source) for source in SOURCES):
            ours.fail(ours.error(key, "is unknown, but holds sources: write mqhooks { sources { … } }"))
    ours.close(_MISPLACED)
    return settings


def _outbox(block: Block) -> OutboxSettings:
    defaults = DEFAULTS.outbox
    kind = cast(OutboxKind, block.choice("kind", defaults.kind, get_args(OutboxKind)))
    settings = OutboxSettings(
        kind=kind,
        path=block.file("path", defaults.path),
        sync=cast(Sync, block.choice("sync", defaults.sync, get_args(Sync))),
        max_size=block.size("max_size", OUTBOX_SIZES[kind], least=1 << 20),
        on_full=cast(OnFull, block.choice("on_full", defaults.on_full, get_args(OnFull))),
        dead_max=block.integer("dead_max", OUTBOX_LETTERS[kind], least=0),
        jetstream=jetstream(block, wanted=kind == "jetstream"),
    )
    unused = {"memory": ("path", "sync", "on_full"), "jetstream": ("on_full",)}
    for key in unused.get(kind, ()):
        if key in block:
            block.warn(key, "applies only to kind = sqlite, and is ignored here")
    block.close()
    return settings


def _admin(block: Block) -> AdminSettings:
    settings = AdminSettings(
        listen=block.string("listen", None),
        token=block.secret("token"),
        hosts=tuple(_hosts(block)),
    )
    if settings.listen == "":
        block.fail(block.error("listen", "is empty: write it like tcp:8891, or off for no status page"))
    if settings.token is not None and not TOKEN.fullmatch(settings.token):
        remedy = "make one with openssl rand -hex 24, and put it in quotes"
        block.fail(block.error("token", f"is not 16 or more ASCII characters without spaces: {remedy}"))
    block.close()
    return settings


def _notify(ours: Block, block: Block) -> NotifySettings:
    defaults = NotifySettings()
    url = block.string("url", None)
    if "notify" in ours and not url and not block.replaced:
        block.fail(block.missing("url", 'set where notifications go, for example url = "https://chat.example/hooks/ops"'))
    on = tuple(_kinds(block)) if "on" in block else defaults.on
    block.entries("on")
    secrets = read_secrets(block)
    block.close()
    try:
        return NotifySettings(check_url(url, "a path or a query that authenticates") if url else "", on, secrets)
    except ConfigError as error:
        block.fail(block.error("url", error.message))
        return defaults


def _kinds(block: Block) -> Iterator[Kind]:
    kinds = get_args(Kind)
    entries = block.entries("on") or []
    if not entries:
        block.fail(block.error("on", f"is empty, so no notification would be sent: choose from {', '.join(kinds)}"))
    for entry in entries:
        name = str(entry).lower()
        if name not in kinds:
            block.fail(block.error("on", f"{str(entry)[:80]!r} is not one of {', '.join(kinds)}{suggest(name, kinds)}"))
        else:
            yield cast(Kind, name)


def _hosts(block: Block) -> Iterator[str]:
    for host in block.entries("hosts") or ():
        try:
            yield _host(block, host)
        except ConfigError as error:
            block.fail(error)


def _host(block: Block, host: object) -> str:
    if not isinstance(host, str):
        raise block.error("hosts", "is not a list of host names, like [mqhooks.example]")
    with suppress(ValueError):
        # Written as browsers write it; otherwise it would never match.
        return str(ip_address(host.strip("[]")))
    if re.fullmatch(r".*:\d+", host):
        raise block.error("hosts", f"{host[:80]!r} has a port: leave it out, since any port is accepted")
    if not re.fullmatch(r"[\w.-]*\w\.?", host, re.ASCII):
        raise block.error("hosts", f"{host[:80]!r} is not a host name, like mqhooks.example")
    return host.removesuffix(".").lower()


def for_url(url: str) -> Settings:
    """
    Make settings that send all of NanoMQ's events to one address.

    :raises mqhooks.errors.ConfigError: when requests cannot be sent to the address.
    """
    try:
        checked = check_url(url, "webhook.auth in a file, with --config,")
        if "{{" in url:
            raise ConfigError(
                "has a placeholder that not every event can fill: write a webhook block in a file, and give --config"
            )
    except ConfigError as error:
        raise ConfigError(error.message, "--url") from None
    return Settings(webhooks=(WebhookSettings("webhook", checked, tuple(Rule(event) for event in NANOMQ_EVENTS)),))
