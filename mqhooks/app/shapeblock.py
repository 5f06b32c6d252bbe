"""
Reads the shapes of requests: the templates of a ``webhook {}`` block and of its rules, and the CloudEvents settings.

Every template is compiled here for each rule that uses it, so that every mistake is reported at the start.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from socket import gethostname
from typing import Any, cast, get_args

import msgspec

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS
from mqhooks.nanomq.block import Bare, Block
from mqhooks.nanomq.bodies import as_json
from mqhooks.nanomq.events import RULE_EVENTS
from mqhooks.nanomq.settings import Encoding, Rule
from mqhooks.shapes.cloudevents import check_source
from mqhooks.shapes.fields import PLACEHOLDER, hooks_of
from mqhooks.shapes.rules import Maker
from mqhooks.shapes.settings import CloudEventsSettings, Method, Mode, Shape
from mqhooks.shapes.templates import normal, placeholders
from mqhooks.support.redact import hide_url
from mqhooks.webhook.settings import BatchSettings

Headers = tuple[tuple[str, str], ...]

_AUTHENTICATION = frozenset({"authorization", "proxy-authorization", "cookie"})
_URL = re.compile(r"([A-Za-z]+://[^/?#]*)(.*)", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9_.-]+")

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Parts:
    """
    A block's settings for the shape of its requests.

    :param block: the block.
    :param url: path and query with placeholders; ``None`` if the block does not set them. Likewise ``method`` and ``body``.
    :param headers: a webhook's headers with placeholders, or all of a rule's.
    """

    block: Block
    url: str | None = None
    method: str | None = None
    headers: Headers = ()
    body: str | None = None


def webhook_url(url: str) -> tuple[str, str | None]:
    """
    Split a webhook's URL.

    :returns: the URL with text in place of its placeholders, for checking; and path and query, if they have placeholders.
    :raises mqhooks.errors.ConfigError: when a placeholder is in the host; only the message is set.
    """
    match = _URL.fullmatch(normal(url))
    if match is None or "{{" not in match[0]:
        return url, None
    host, path = match.groups()
    if "{{" in host:
        raise ConfigError(f"{hide_url(url)!r} has a placeholder in the host: write placeholders only in the path or the query")
    return host + PLACEHOLDER.sub("x", path), path if path.startswith("/") else f"/{path}"


def webhook_parts(block: Block, url: str | None, headers: Headers) -> tuple[Parts, Headers]:
    """
    Read the shape settings of a webhook's block.

    :param url: path and query, if they have placeholders.
    :param headers: all headers of the block.
    :returns: the parts, and the headers that have no placeholders.
    """
    own = tuple(pair for pair in headers if "{{" in pair[1])
    for name, _ in own:
        _check_header(block, name)
    fixed = tuple(pair for pair in headers if "{{" not in pair[1])
    return Parts(block, url, _method(block), own, _webhook_body(block)), fixed


def rule_parts(entry: Block, headers: Headers) -> Parts:
    """
    Read the shape settings of a rule.

    :param headers: the rule's headers.
    """
    for name, _ in headers:
        _check_header(entry, name)
    url = entry.string("url", None)
    value = entry.tree("body")
    if isinstance(value, dict) and "encoding" in value:
        entry.fail(entry.error("body.encoding", "is set for the whole webhook: move it to webhook.body.encoding"))
    if isinstance(value, (str, dict)):
        body = _template(value)
    else:
        body = None
        if value is not None:
            entry.fail(entry.error("body", 'is a list: write a block in braces, or text like """[ {{payload}} ]"""'))
    return Parts(entry, None if url is None else normal(url), _method(entry), headers, body)


def shaped(whole: Parts, rule: Rule, own: Parts, *, encoding: Encoding | None, content_type: str) -> Rule:
    """
    Give a rule its shape.

    :param whole: the settings of the webhook's block.
    :param own: the rule's own settings, which take precedence.
    :param encoding: the encoding of payloads, if the configuration sets one.
    :param content_type: the webhook's.
    """
    headers = {name.lower(): (name, value) for name, value in (*whole.headers, *own.headers)}
    kind = headers.get("content-type", ("", content_type))[1]
    shape = Shape(
        method=cast(Method, own.method or whole.method or "POST"),
        url=whole.url if own.url is None else own.url,
        headers=tuple(headers.values()),
        body=whole.body if own.body is None else own.body,
    )
    if shape == Shape():
        return rule
    shape = replace(shape, encoding=encoding or "json", plain=kind.lower().startswith("text/plain"))
    texts = (shape.url or "", shape.body or "", *(value for _, value in shape.headers))
    named = any("username" in placeholders(text) for text in texts)
    nameless = any("username" not in HOOKS[hook].__struct_fields__ for hook in hooks_of(rule.event))
    return replace(rule, shape=cast(Hashable, shape), names_user=named and nameless)


def check(
    whole: Parts, rules: Sequence[tuple[Rule, Parts]], cloudevents: CloudEventsSettings | None, batch: BatchSettings | None
) -> None:
    """Compile the templates of all rules, and note their mistakes."""
    told: set[str] = set()
    if cloudevents is not None and cloudevents.handshake and (whole.url or any(own.url for _, own in rules)):
        remedy = "remove it, or the URLs with placeholders and those of rules"
        whole.block.fail(whole.block.error("cloudevents.handshake", f"covers only the webhook's own URL: {remedy}"))
    for rule, own in rules:
        if not isinstance(rule.shape, Shape) or rule.event not in RULE_EVENTS:
            continue
        try:
            maker = Maker(rule, _nothing, cloudevents, str)
        except ConfigError as error:
            block, message = _blame(error.key, whole, own), error.message
            if block is whole.block:
                if error.key in told:
                    continue
                told.add(error.key)
                message = f"for {rule.event}: {message}"
            block.fail(block.error(error.key, message))
            continue
        if batch is None:
            continue
        shape = rule.shape
        different = (("url", shape.url), ("method", shape.method != "POST"), ("headers", shape.headers))
        key = next((key for key, differs in different if differs), None)
        if key is not None:
            block = _blame(key, whole, own)
            problem = "does not work with batch, in which events share a request: remove one of the two, or the placeholders"
            block.fail(block.error(key, problem))
        elif shape.body is not None and not maker.members and cloudevents is None:
            block = _blame("body", whole, own)
            problem = "is not a JSON object with members, and batch adds webhook_id to each: write a block"
            block.fail(block.error("body", problem))


def cloud_events(block: Block, batch: BatchSettings | None) -> CloudEventsSettings | None:
    """Read the CloudEvents settings of a webhook's block."""
    wanted = block.choice("format", "nanomq", ("nanomq", "cloudevents")) == "cloudevents"
    mode = cast(Mode, block.choice("mode", "structured", get_args(Mode)))
    inner = block.block("cloudevents")
    source = inner.string("source", "")
    if source:
        try:
            check_source(source)
        except ConfigError as error:
            inner.fail(inner.error("source", f"{source[:80]!r} {error.message}"))
    host = gethostname()
    origin = inner.string("origin", host if _HOST.fullmatch(host) else "localhost")
    if not _HOST.fullmatch(origin):
        inner.fail(inner.error("origin", f"{origin[:80]!r} is not a host name, like broker.example"))
    settings = CloudEventsSettings(source, origin, mode, inner.boolean("handshake", default=False))
    inner.close()
    if not wanted:
        for key in ("mode", "cloudevents"):
            if key in block:
                block.warn(key, "applies only to format = cloudevents, and is ignored here")
        return None
    if batch is not None and mode != "batch":
        block.fail(block.error("mode", f"is {mode}, and with batch events share requests: write mode = batch, or remove batch"))
    if batch is not None and batch.format == "ndjson":
        block.fail(block.error("batch.format", "is ndjson, and a batch of CloudEvents is a JSON array: remove it"))
    return settings


def _nothing(_event: Any, _item: Any) -> bytes:
    return b"{}"


def _blame(key: str, whole: Parts, own: Parts) -> Block:
    """Return the block that sets a part of a rule's shape."""
    if key.startswith("headers."):
        own_names = [f"headers.{name}" for name, _ in own.headers]
        return own.block if key in own_names else whole.block
    return own.block if getattr(own, key) else whole.block


def _method(block: Block) -> str | None:
    if block.string("method", None) is None:
        return None
    return block.choice("method", "post", [method.lower() for method in get_args(Method)]).upper()


def _check_header(block: Block, name: str) -> None:
    if name.lower() in _AUTHENTICATION:
        told = "authenticates, and so is not stored with an event: set it for the whole webhook, without placeholders"
        block.fail(block.error(f"headers.{name}", told))


def _webhook_body(block: Block) -> str | None:
    value = block.tree("body")
    if isinstance(value, str) and not isinstance(value, Bare):
        return _template(value)
    if not isinstance(value, dict):
        return None
    template = _template({key: item for key, item in value.items() if key != "encoding"})
    # NanoMQ's block has the encoding and nothing else: other keys without a placeholder are mistakes.
    return template if PLACEHOLDER.search(template) else None


def _template(value: Any) -> str:
    """Write a body as JSON with placeholders in it; text is taken as it is."""
    return normal(str(value) if isinstance(value, str) else _json(value))


def _json(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(f'{_encode(str(key)).decode()}:{_json(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    if value is None:
        return "null"
    if isinstance(value, Bare) and as_json(value.encode()) is not None:
        return str(value)
    match = PLACEHOLDER.fullmatch(value)
    return str(value) if match else _encode(str(value)).decode()
