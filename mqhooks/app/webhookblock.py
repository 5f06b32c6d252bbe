"""
Reads ``webhook {}`` blocks.

A block that takes notes collects all mistakes, and reading goes on; otherwise the first mistake is raised.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, cast, get_args

from mqhooks.app import shapeblock
from mqhooks.app.proxies import from_environment, read_proxy
from mqhooks.app.tlsblock import read_tls
from mqhooks.errors import ConfigError
from mqhooks.http.proxy import ProxySettings
from mqhooks.nanomq.block import Block, suggest
from mqhooks.nanomq.events import RULE_EVENTS, TOPIC_EVENTS
from mqhooks.nanomq.settings import Encoding, Rule
from mqhooks.nanomq.topics import check_filter
from mqhooks.shapes.cloudevents import BATCH, STRUCTURED
from mqhooks.shapes.settings import CloudEventsSettings
from mqhooks.shapes.templates import normal
from mqhooks.support.signatures import check_signing
from mqhooks.support.tls import TLSSettings
from mqhooks.webhook.auth import TOKEN
from mqhooks.webhook.settings import (
    AuthSettings,
    BasicSettings,
    BatchFormat,
    BatchSettings,
    BearerSettings,
    Compression,
    CredentialsIn,
    LimitSettings,
    OAuth2Settings,
    Ordering,
    Refusals,
    RetrySettings,
    SharedSettings,
    Transport,
    WebhookSettings,
    check_url,
)

Proxy = ProxySettings | Literal["env"] | None

_DEFAULTS = SharedSettings()
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_JSON = re.compile(r"application/json\s*(;|$)", re.IGNORECASE)
_RATE = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*/\s*(s|min|m|h|d)\s*", re.ASCII | re.IGNORECASE)
_TIMES = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_OURS = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }
)


def webhooks(root: Block, defaults: SharedSettings) -> Iterator[WebhookSettings]:
    """
    Read ``webhook {}`` and the blocks in ``webhooks {}``, except those that are not enabled.

    :param root: the whole file.
    :param defaults: used where a block doesn't say otherwise.
    :raises mqhooks.errors.ConfigError: when something else is in a block's place; other mistakes are noted with ``root``, if it
        takes notes.
    """
    single = root.block("webhook", "; for several webhooks, give each a name: webhooks { billing { … }, audit { … } }")
    if "webhook" in root and not single.replaced and single.boolean("enable", default=True):
        yield from _read(root, single, "webhook", defaults)
    several = root.block("webhooks", "; give each webhook a name: webhooks { billing { … }, audit { … } }")
    for name in several.names():
        elsewhere = "; to receive VerneMQ's webhooks, write mqhooks { sources { webhooks { listen = … } } }"
        single_one = f"; webhooks holds a named block for each: for a single one write webhook {{ {name} = … }}"
        block = several.block(name, elsewhere if name == "listen" else single_one)
        if not block.replaced and block.boolean("enable", default=True):
            if name == "webhook" and "webhook" in root:
                root.fail(several.error(name, "the webhook block already has this name: call this one something else"))
            yield from _read(root, block, name, defaults)


def _read(root: Block, block: Block, name: str, defaults: SharedSettings) -> Iterator[WebhookSettings]:
    try:
        yield webhook(block, name, defaults)
    except ConfigError as error:
        root.fail(error)


def webhook(block: Block, name: str, defaults: SharedSettings = _DEFAULTS) -> WebhookSettings:
    """
    Read one block.

    :param name: its name in logs and counters.
    :param defaults: used where the block doesn't say otherwise.
    :raises mqhooks.errors.ConfigError: at the first mistake.
    """
    block.boolean("enable", default=True)
    url, path = _url(block)
    unknown = block.block("unknown")
    common = shared(block, defaults)
    batch = _batch(block.block("batch")) if "batch" in block else None
    cloudevents = shapeblock.cloud_events(block, batch)
    if cloudevents is not None and cloudevents.mode == "batch" and batch is None:
        batch = BatchSettings()
    headers = _headers(block.block("headers"), batch, cloudevents)
    whole, headers = shapeblock.webhook_parts(block, path, headers)
    body = _body(block, whole)
    encoding = cast(Encoding, body.choice("encoding", "plain", get_args(Encoding)))
    said = encoding if "encoding" in body else None
    content_type = next((value for header, value in headers if header.lower() == "content-type"), "")
    rules = []
    for rule, entry in _rules(block):
        own = shapeblock.rule_parts(entry, _headers(entry.block("headers"), None, cloudevents))
        rules.append((shapeblock.shaped(whole, rule, own, encoding=said, content_type=content_type), own))
    shapeblock.check(whole, rules, cloudevents, batch)
    for _, own in rules:
        own.block.close()
    settings = WebhookSettings(
        name=name,
        url=url,
        rules=tuple(rule for rule, _ in rules),
        headers=headers,
        encoding=encoding,
        pool_size=block.integer("pool_size", 32, least=1, most=65535),
        cancel_timeout=block.duration("cancel_timeout", 5.0, unit="ms", plain=0.1),
        tls=_tls(block, url),
        details=block.boolean("details", default=False),
        proto_ver=unknown.integer("proto_ver", None, least=0, most=255),
        keepalive=unknown.integer("keepalive", None, least=0, most=65535),
        retry=common.retry,
        ordering=common.ordering,
        merge_window=common.merge_window,
        batch=batch,
        limit=_limit(block),
        secrets=read_secrets(block),
        transport=cast(Transport, block.choice("transport", "pooled", get_args(Transport))),
        auth=common.auth,
        cloudevents=cloudevents,
    )
    _check_auth(block, settings)
    settings = _through_proxy(block, settings, common.proxy)
    for part in (unknown, block) if whole.body is not None else (unknown, body, block):
        part.close()
    return settings


def shared(block: Block, defaults: SharedSettings) -> SharedSettings:
    """
    Read the settings that both a webhook's block and, for all webhooks, the ``mqhooks`` block may have.

    :param defaults: used where the block doesn't say otherwise.
    :raises mqhooks.errors.ConfigError: at the first mistake.
    """
    return SharedSettings(
        retry=_retry(block.block("retry"), defaults.retry),
        ordering=cast(Ordering, block.choice("ordering", defaults.ordering, get_args(Ordering))),
        merge_window=block.duration("merge_window", defaults.merge_window, unit="ms", zero=True),
        auth=_auth(block, defaults.auth),
        proxy=_proxy(block, defaults.proxy),
    )


def _proxy(block: Block, default: Proxy) -> Proxy:
    text = block.secret("proxy")
    if text is None:
        return default
    if text.lower() in ("off", "no", "false"):
        block.fail(block.error("proxy", f"{text} is not a proxy: write none"))
        return None
    if text.lower() in ("none", "env"):
        return None if text.lower() == "none" else "env"
    try:
        return read_proxy(text)
    except ConfigError as error:
        block.fail(block.error("proxy", error.message))
        return None


def _through_proxy(block: Block, settings: WebhookSettings, proxy: Proxy) -> WebhookSettings:
    def to(url: str) -> ProxySettings | None:
        try:
            return from_environment(url, os.environ) if proxy == "env" else proxy
        except ConfigError as error:
            block.fail(block.error("proxy", error.message))
            return None

    auth = settings.auth
    if isinstance(auth, OAuth2Settings):
        auth = replace(auth, proxy=to(auth.token_url))
    return replace(settings, auth=auth, proxy=to(settings.url))


def _auth(outer: Block, default: AuthSettings | None) -> AuthSettings | None:
    block = outer.block("auth")
    enabled = block.boolean("enable", default=True)
    readers = {"basic": _basic, "bearer": _bearer, "oauth2": _oauth2}
    inner = {kind: block.block(kind, f", like {kind} {{ … }}") for kind in readers}
    found = {
        kind: read(inner[kind], given=enabled and kind in block and not inner[kind].replaced) for kind, read in readers.items()
    }
    block.close()
    if "auth" not in outer or block.replaced:
        return default
    if not enabled:
        return None
    given = [kind for kind in found if kind in block]
    if len(given) != 1:
        example = "auth { bearer { token_file = /run/secrets/token } }"
        nothing = "is empty" if not block.names() else "has none of basic, bearer and oauth2"
        problem = f"has {' and '.join(given)}: keep one" if given else f"{nothing}: write for example {example}"
        outer.fail(outer.error("auth", problem))
        return None
    return found[given[0]]


def _basic(block: Block, *, given: bool) -> AuthSettings:
    username, password = block.string("username", None), block.secret("password")
    block.close()
    if given:
        for key, value in (("username", username), ("password", password)):
            if value is None and key not in block:
                block.fail(block.missing(key, 'write an empty one as ""'))
            elif value is not None and not value.isprintable():
                block.fail(block.error(key, "has a line break or another control character: remove it"))
        if username is not None and ":" in username:
            block.fail(block.error("username", "has a colon, where the password would begin: RFC 7617 allows none"))
    return BasicSettings(username or "", password or "")


def _bearer(block: Block, *, given: bool) -> AuthSettings:
    token, file = block.secret("token"), block.file("token_file", None)
    block.close()
    if not given:
        return BearerSettings()
    if token is None and file is None and "token" not in block and "token_file" not in block:
        block.fail(block.missing("token", "write token = …, or token_file = …"))
    if token is not None and file is not None:
        block.fail(block.error("token_file", "and token are both given: keep one"))
    if token is not None and token.lower().startswith("bearer "):
        block.fail(block.error("token", "begins with Bearer, which mqhooks adds: remove it"))
    elif token is not None and not TOKEN.fullmatch(token):
        block.fail(block.error("token", "is empty, or has spaces or characters that no header has: copy all of it again"))
    if file is not None and not os.access(file, os.R_OK):
        problem = "may not be read by this user" if os.path.exists(file) else "does not exist"
        block.warn("token_file", f"{file} {problem}: nothing is sent until it holds a token")
    return BearerSettings(token, file)


def _oauth2(block: Block, *, given: bool) -> AuthSettings:
    url, secret = block.string("token_url", None), block.secret("client_secret")
    texts = {key: block.string(key, None) for key in ("client_id", "scope", "audience")}
    tls = _tls(block, url or "")
    settings = OAuth2Settings(
        token_url=url or "",
        client_id=texts["client_id"] or "",
        client_secret=secret or "",
        scope=texts["scope"] or "",
        audience=texts["audience"] or "",
        credentials=cast(CredentialsIn, block.choice("credentials", "header", get_args(CredentialsIn))),
        tls=tls,
    )
    block.close()
    if not given:
        return settings
    for key, value in (("token_url", url), ("client_id", texts["client_id"]), ("client_secret", secret)):
        if value == "" or (value is None and key not in block):
            block.fail(block.missing(key, "the token's server needs token_url, client_id and client_secret"))
    for key, value in texts.items():
        if value is not None and not value.isprintable():
            block.fail(block.error(key, "has a line break or another control character: remove it"))
    if not url:
        return settings
    try:
        return replace(settings, token_url=check_url(url, "client_id and client_secret"))
    except ConfigError as error:
        block.fail(block.error("token_url", error.message))
        return settings


def _check_auth(block: Block, settings: WebhookSettings) -> None:
    written = next((name for name, _ in settings.headers if name.lower() == "authorization"), None)
    if settings.auth is None or written is None:
        return
    shared = "auth" not in block
    remedy = "remove one of the two" + (", or write auth { enable = false } in this webhook" if shared else "")
    block.fail(block.error(f"headers.{written}", f"is also set by {'mqhooks.auth' if shared else 'auth'}: {remedy}"))


def _body(block: Block, whole: shapeblock.Parts) -> Block:
    """Return the block with the body's encoding; an empty one when the body is text."""
    if isinstance(block.tree("body"), str) and whole.body is not None:
        return Block({}, block.where, block.path("body"), [])
    return block.block("body")


def _url(block: Block) -> tuple[str, str | None]:
    """Read the URL, and also its path and query if they have placeholders."""
    url = block.string("url", None)
    if url is None:
        inner = next((name for name in block.names() if block.holds(name, "url")), None)
        if inner is not None:
            block.fail(block.error(inner, f"is a webhook within a webhook: write webhooks {{ {inner} {{ … }} }}"))
        elif "url" not in block:
            example = 'url = "http://127.0.0.1:8080/hook"'
            block.fail(block.missing("url", f"set where to send events, for example {example}"))
        return "", None
    try:
        whole, path = shapeblock.webhook_url(url)
        checked = check_url(whole, "auth { basic { … } }, or headers.authorization,")
    except ConfigError as error:
        block.fail(block.error("url", error.message))
        return "", None
    return checked if path is None else normal(url), path


def _headers(block: Block, batch: BatchSettings | None, cloudevents: CloudEventsSettings | None) -> tuple[tuple[str, str], ...]:
    headers: dict[str, tuple[str, str]] = {}
    replaced = _replaced(batch, cloudevents)
    for name, value in block.members():
        if not _TOKEN.fullmatch(name):
            block.fail(block.error(name, "is not a header name: use letters, digits and hyphens"))
        elif name.lower() in _OURS:
            block.fail(block.error(name, "is set by mqhooks itself: remove it"))
        if name.lower() == "content-encoding" and batch is not None and batch.compression != "none":
            block.fail(block.error(name, f"is set by batch.compression = {batch.compression}: remove one of the two"))
        text = _header_value(block, name, value)
        if name.lower().startswith("ce-") and cloudevents is not None:
            block.fail(block.error(name, "is set by format = cloudevents: remove it"))
        # Every nanomq.conf has this header, meant for bodies that are one JSON value.
        if name.lower() == "content-type" and _JSON.match(text) and replaced is not None:
            block.warn(name, replaced)
            continue
        headers[name.lower()] = (name, text)
    return tuple(headers.values())


def _replaced(batch: BatchSettings | None, cloudevents: CloudEventsSettings | None) -> str | None:
    """Return the warning that another content-type replaces JSON's, and why; ``None`` if none does."""
    if cloudevents is not None and cloudevents.mode != "binary":
        return f"{BATCH if cloudevents.mode == 'batch' else STRUCTURED} is sent instead, since format is cloudevents"
    if batch is not None and batch.format == "ndjson":
        return "application/x-ndjson is sent instead, since batch.format is ndjson"
    return None


def _header_value(block: Block, name: str, value: Any) -> str:
    if not isinstance(value, str):
        block.fail(block.error(name, "is a list, not text"))
        return ""
    text = value.strip(" \t")
    if any((ord(character) < 32 and character != "\t") or ord(character) == 127 for character in text):
        block.fail(block.error(name, "has a line break or another control character, which a header cannot have"))
    return text


def _rules(block: Block) -> list[tuple[Rule, Block]]:
    rules: list[tuple[Rule, Block]] = []
    for entry in block.blocks("events", '{ event = "on_message_publish" }'):
        name = entry.string("event", None)
        if name is None:
            if "event" not in entry:
                entry.fail(entry.missing("event", 'name the event, for example event = "on_message_publish"'))
            continue
        event = name.lower()
        if event not in RULE_EVENTS:
            hint = suggest(event, RULE_EVENTS) or f"; there are {', '.join(RULE_EVENTS)}"
            entry.fail(entry.error("event", f"there is no event {name[:80]!r}{hint}"))
        topic = entry.string("topic", None)
        if topic is not None:
            problem = check_filter(topic)
            if problem is not None:
                entry.fail(entry.error("topic", f"{topic!r}: {problem}"))
            if event not in TOPIC_EVENTS:
                entry.warn("topic", f"{event} has no topic: every {event} is sent")
                topic = None
        rules.append((Rule(event, topic), entry))
    if not block.tree("events"):
        block.warn("events", 'is empty: nothing will be sent; add for example events = [ { event = "on_message_publish" } ]')
    return rules


def _retry(block: Block, defaults: RetrySettings) -> RetrySettings:
    settings = RetrySettings(
        initial=block.duration("initial", defaults.initial, unit="ms"),
        multiplier=block.number("multiplier", defaults.multiplier, least=1, most=100),
        maximum=block.duration("max", defaults.maximum, unit="ms"),
        jitter=block.number("jitter", defaults.jitter, least=0, most=1),
        max_age=block.duration("max_age", defaults.max_age, unit="ms", plain=1.0),
        max_attempts=block.integer("max_attempts", defaults.max_attempts, least=0),
        refusals=cast(Refusals, block.choice("refusals", defaults.refusals, get_args(Refusals))),
        on=_statuses(block, defaults.on),
    )
    if settings.maximum < settings.initial:
        error = block.error("max", f"{settings.maximum:g} s is less than initial, {settings.initial:g} s: raise it")
        block.fail(error)
    block.close()
    return settings


def _statuses(block: Block, defaults: tuple[int | str, ...]) -> tuple[int | str, ...]:
    entries = block.entries("on")
    if entries is None:
        return defaults
    statuses: list[int | str] = []
    for entry in entries:
        text = str(entry).lower()
        if text not in ("3xx", "4xx", "5xx") and not re.fullmatch("[345][0-9][0-9]", text):
            commas = "; separate statuses by commas" if " " in text else ""
            block.fail(block.error("on", f'{text[:80]!r} is not a status from 300 to 599, "3xx", "4xx" or "5xx"{commas}'))
            continue
        statuses.append(int(text) if text.isdigit() else text)
    return tuple(statuses)


def _batch(block: Block) -> BatchSettings:
    defaults = BatchSettings()
    settings = BatchSettings(
        size=block.integer("size", defaults.size, least=1, most=10_000),
        linger=block.duration("linger", defaults.linger, unit="ms", zero=True),
        max_bytes=block.size("max_bytes", defaults.max_bytes, least=1 << 10, most=64 << 20),
        format=cast(BatchFormat, block.choice("format", defaults.format, get_args(BatchFormat))),
        compression=cast(Compression, block.choice("compression", defaults.compression, get_args(Compression))),
    )
    block.close()
    return settings


def _limit(block: Block) -> LimitSettings | None:
    """Read ``limit = "100/s"``, or ``limit { rate = 100/s, burst = 20 }``."""
    short = block.entries("limit")
    if short is not None and not isinstance(short[0] if short else None, dict):
        rate = _rate(block, "limit", short[0] if len(short) == 1 else short)
        return LimitSettings(rate, _burst(rate)) if rate else None
    inner = block.block("limit")
    given = inner.string("rate", None)
    rate = _rate(inner, "rate", given) if "limit" in block else None
    burst = inner.integer("burst", _burst(rate or 1), least=1, most=1_000_000)
    inner.close()
    return LimitSettings(rate, burst) if rate else None


def _burst(rate: float) -> int:
    return max(round(rate / 10), 1)


def _rate(block: Block, key: str, value: object) -> float | None:
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    rate = float(match[1]) / _TIMES[match[2].lower()] if match else 0.0
    if not 1e-6 <= rate <= 1e6:
        problem = "is missing: write a rate" if value is None else f"{str(value)[:80]!r} is not a rate of requests,"
        block.fail(block.error(key, f"{problem} like 100/s, 600/min or 5000/h"))
        return None
    return rate


def read_secrets(block: Block) -> tuple[str, ...]:
    """
    Read the secrets that requests are signed with.

    :raises mqhooks.errors.ConfigError: at the first mistake, if the block takes no notes.
    """
    entries = block.secrets("secret")
    if entries == []:
        block.fail(block.error("secret", "is an empty list: remove it, or nothing is signed"))
    for entry in entries or ():
        # The value must not be shown.
        if not isinstance(entry, str):
            block.fail(block.error("secret", 'is not text, or a list of it: write it like "whsec_…", in quotes'))
        elif " " in entry.strip():
            block.fail(block.error("secret", "has a space in it: separate secrets by commas"))
        else:
            try:
                check_signing(entry)
            except ConfigError as error:
                block.fail(block.error("secret", error.message))
    return tuple(entries or ())


def _tls(block: Block, url: str) -> TLSSettings | None:
    if "tls" in block and "ssl" in block:
        block.fail(block.error("ssl", "tls and ssl are two names for the same block: keep one"))
    spellings = {key: block.block(key) for key in ("tls", "ssl")}
    given = [key for key in spellings if key in block]
    if not given or not spellings[given[0]].boolean("enable", default=True):
        return None
    tls = spellings[given[0]]
    encrypted = url.lower().startswith("https:")
    if not encrypted:
        tls.warn("enable", "the url is http, so nothing is encrypted and this block is not used")
    return read_tls(tls, used=encrypted)
