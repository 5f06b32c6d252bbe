"""
Show the requests that a configuration makes, for ``--check --sample``: one for each rule, from an event that the rule wants.

Whatever may be secret is hidden, as everywhere: header values, and parts of a URL that are neither plain words nor the event's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import msgspec

from mqhooks.delivery import Delivery, Request, Variation
from mqhooks.events import HOOKS, Event, MatchedACL, TopicInfo, UserProperties
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import Rule
from mqhooks.shapes.fields import PLACEHOLDER, hooks_of
from mqhooks.shapes.rules import ShapedRules
from mqhooks.shapes.settings import Shape
from mqhooks.shapes.templates import placeholders
from mqhooks.support.printable import printable
from mqhooks.support.redact import hide_url
from mqhooks.support.signatures import ID
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.settings import WebhookSettings

TIMESTAMP = 1_767_225_600_123_000_000
"""Time of the events, in nanoseconds: 2026-01-01 00:00:00.123 UTC."""

SHOWN = frozenset({"content-type", "content-encoding", "user-agent", ID})
"""Headers whose values are shown, because they hold no secrets."""

HIDDEN = "…"
"""Placeholder for the values of other headers."""

_LONGEST = 4096
_WORD = re.compile(r"[a-z]{0,12}(?:[-_][a-z]{1,12}){0,2}|v[0-9]")
_STEP = re.compile(r"\.([^.\[]+)|\[([0-9]+)\]")


def sample(webhook: WebhookSettings) -> Iterator[str]:
    """
    Show a request for each rule of a webhook.

    :returns: lines for a terminal.
    """
    if webhook.batch is not None:
        webhook = replace(webhook, batch=replace(webhook.batch, compression="none"))
    for rule in webhook.rules:
        yield f"sample  of webhook {webhook.name}: {rule.event}" + (f" on {rule.topic}" if rule.topic is not None else "")
        yield from (f"        {line}" for line in _request(webhook, rule))


def _request(webhook: WebhookSettings, rule: Rule) -> Iterator[str]:
    shape = rule.shape if isinstance(rule.shape, Shape) else Shape()
    only = replace(webhook, rules=(rule,))
    id_ = "msg_0123456789abcdef011"
    event = _event(rule, shape)
    variation: Variation | None = None
    if webhook.shaped:
        _, body, variation = next(iter(ShapedRules(only.bodies, webhook.cloudevents, lambda: id_).requests(event)))
    else:
        body = next(iter(Rules(only.bodies).bodies(event)))
    if variation is not None and variation.problem is not None:
        yield f"cannot be sent: {variation.problem}"
        return
    request = RequestMaker(webhook, lambda: TIMESTAMP / 1e9).make([Delivery(id_, "", TIMESTAMP, body, variation=variation)])
    yield f"{request.method or request.head.method} {_url(webhook, shape, request)}"
    for name, value in (*request.head.headers, *request.headers):
        own = variation is not None and (name, value) in variation.headers and _from_event(shape, name)
        yield printable(f"{name}: {value if own or name.lower() in SHOWN else HIDDEN}", _LONGEST)
    yield printable(request.body.decode("utf-8", "backslashreplace"), _LONGEST)


def _from_event(shape: Shape, name: str) -> bool:
    return name.startswith("ce-") or any(name == own and PLACEHOLDER.search(value) for own, value in shape.headers)


def _url(webhook: WebhookSettings, shape: Shape, request: Request) -> str:
    if request.path is None or shape.url is None:
        return hide_url(webhook.url)
    scheme, _, rest = webhook.url.partition("://")
    host = hide_url(f"{scheme}://{re.split('[/?]', rest)[0]}")
    path, mark, query = request.path.partition("?")
    template, _, asked = shape.url.partition("?")
    shown = "/".join(_parts(path.split("/"), template.split("/")))
    return f"{host}{shown}{mark}{'&'.join(_parts(query.split('&'), asked.split('&')))}"


def _parts(parts: Sequence[str], templates: Sequence[str]) -> Iterator[str]:
    for part, template in zip_longest(parts, templates, fillvalue=""):
        # Text beside a placeholder is shown with it, unless it may be secret.
        fixed = PLACEHOLDER.split(template)[::2]
        yield part if all(_WORD.fullmatch(piece.strip("=.:-_")) for piece in fixed) else HIDDEN


def _event(rule: Rule, shape: Shape) -> Event:
    """Make an event with every field that the rule's templates ask for."""
    hook = hooks_of(rule.event)[0]
    names = placeholders("".join((shape.url or "", shape.body or "", *(value for _, value in shape.headers))))
    topic = _topic(rule.topic, names)
    properties = [re.sub(r"^user_properties\.", "", name) for name in names if name.startswith("user_properties.")]
    acl = MatchedACL("default", "#")
    values: dict[str, Any] = {
        "client_id": "client-1",
        "username": "user-1",
        "peer_addr": "192.0.2.1",
        "peer_port": 51883,
        "session_id": "session-1",
        "topic": topic,
        "topics": (TopicInfo(topic, 1, acl),) if hook == "on_subscribe" else (topic,),
        "qos": 1,
        "payload": _payload(names),
        "matched_acl": acl,
        "user_properties": UserProperties(dict.fromkeys(properties, "value")),
        "reason": "queue_full" if hook == "on_message_drop" else 2,
    }
    message = HOOKS[hook](
        **{name: value for name, value in values.items() if name in HOOKS[hook].__struct_fields__}, timestamp=TIMESTAMP
    )
    return Event(hook, message, TIMESTAMP, "", "client-1", "user-1")


def _topic(wanted: str | None, names: Sequence[str]) -> str:
    levels = ["a", "b"] if wanted is None else wanted.replace("+", "x").replace("#", "x").split("/")
    deepest = max((int(match[1]) for name in names if (match := re.fullmatch(r"topic\[([0-9]+)\]", name))), default=0)
    if wanted is None or wanted.endswith("#"):
        levels += ["x"] * min(deepest + 1 - len(levels), 100)
    return "/".join(levels)


def _payload(names: Sequence[str]) -> bytes:
    payload: Any = None
    for name in names:
        if name.startswith("payload") and name != "payload":
            payload = _with(payload, [int(index) if index else key for key, index in _STEP.findall(name)])
    return b'{"temperature":21.5}' if payload is None else msgspec.json.encode(payload)


def _with(value: Any, steps: Sequence[str | int]) -> Any:
    """Add the part that a placeholder names to a JSON value."""
    if not steps:
        return 21.5 if value is None else value
    step, *rest = steps
    if isinstance(step, str):
        members = value if isinstance(value, dict) else {}
        return members | {step: _with(members.get(step), rest)}
    items = value if isinstance(value, list) else []
    items += [None] * min(step + 1 - len(items), 100)
    if step < len(items):
        items[step] = _with(items[step], rest)
    return items
