"""
Resolve placeholders.

A placeholder names a field of an event, ``{{clientid}}``, or a part of one: ``{{topic[2]}}``, ``{{payload.a.b[0]}}``. It is
resolved once for each rule; an event then costs a call.

- Values in a payload stay JSON: only the path to them is parsed, and no number changes.
- A missing value is ``None``. So is a text that VerneMQ leaves empty because it does not know it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, M5_HOOKS, Event, MatchedACL, failure_name, reason_name
from mqhooks.nanomq.block import suggest
from mqhooks.nanomq.bodies import Payload, as_json, payload_maker
from mqhooks.nanomq.events import CAUSES
from mqhooks.nanomq.settings import Encoding

PLACEHOLDER = re.compile(r"\{\{([^{}]*)\}\}")

_PARTS = re.compile(r'([A-Za-z_]\w*)((?:\.[^\s.\[\]{}"\\\x00-\x1f]+|\[[0-9]{1,9}\])*)', re.ASCII)
_STEP = re.compile(r"\.([^.\[]+)|\[([0-9]+)\]")
_ALIASES = {"client_id": "clientid", "timestamp": "ts", "is_retain": "retain"}
_TOPICWISE = frozenset(name for hook in ("on_subscribe", "on_unsubscribe") for name in CAUSES[hook])
_TEXTS = frozenset({"clientid", "username", "mountpoint", "topic", "event", "session_id", "peer_addr"})
_KEPT = frozenset({"topic", "payload"})
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encode = msgspec.json.Encoder().encode
_decode_text = msgspec.json.Decoder(str).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode

Get = Callable[[Event, Any], Any]
"""Takes an event and, for an event of a subscription, its topic; returns a value for JSON, or ``None``."""


class Field(NamedTuple):
    """
    A resolved placeholder.

    :param name: its name as written, without the braces.
    :param value: gets its value.
    :param text: gets its value as text.
    """

    name: str
    value: Get
    text: Get


def hooks_of(event: str) -> tuple[str, ...]:
    """List the hooks that cause a rule's event."""
    return (event,) if event in HOOKS else tuple(hook for hook, events in CAUSES.items() if event in events)


def names_of(event: str) -> list[str]:
    """List the names that placeholders may use in the templates of a rule's event."""
    names = {_ALIASES.get(name, name): None for hook in hooks_of(event) for name in HOOKS[hook].__struct_fields__}
    more = ("topic", "qos", "matched_acl") if event in CAUSES["on_subscribe"] else ("topic",) if event in _TOPICWISE else ()
    if any(hook in M5_HOOKS for hook in hooks_of(event)):
        names["properties"] = None
    return list(dict.fromkeys(("clientid", "username", "mountpoint", "ts", "event", *more, *names)))


def field(name: str, event: str, encoding: Encoding = "json") -> Field:
    """
    Resolve a placeholder.

    :param name: its name as written, without the braces.
    :param event: the event of the rule.
    :param encoding: the encoding of a whole payload.
    :raises mqhooks.errors.ConfigError: when the event never has such a field; only the message is set.
    """
    match = _PARTS.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{_shown(name)} is not a placeholder: write it like {{{{clientid}}}}, {{{{topic[0]}}}} or {{{{payload.a.b[0]}}}}"
        )
    root = _ALIASES.get(match[1], match[1])
    steps = [int(index) if index else key for key, index in _STEP.findall(match[2])]
    known = names_of(event)
    if root not in known:
        raise ConfigError(f"{_shown(name)} is not a field of {event}; its fields are {', '.join(known)}{suggest(root, known)}")
    if root == "payload":
        return _payload(name, steps, encoding)
    get = _getter(root, event)
    if root == "topic" and steps:
        if len(steps) > 1 or isinstance(steps[0], str):
            raise ConfigError(f"{_shown(name)}: a level of the topic is written {{{{topic[0]}}}}")
        get = _level(get, steps[0])
    elif steps:
        if root not in ("topics", "matched_acl", "user_properties", "properties"):
            raise ConfigError(f"{_shown(name)}: {match[1]} has no parts: write {{{{{match[1]}}}}}")
        get = _part(get, steps, or_none=root == "matched_acl")
    return Field(name, get, get if root in _TEXTS else lambda event, item: text(get(event, item)))


def text(value: Any) -> str | None:
    """Return a value as text: strings as they are, anything else as JSON."""
    if type(value) is str or value is None:
        return value
    if isinstance(value, msgspec.Raw):
        data = bytes(value)
        if data.startswith(b'"'):
            return _decode_text(data)
        return None if data == b"null" else data.decode()
    return _encode(value).decode()


def _shown(name: str) -> str:
    return f"{{{{{name[:80]}}}}}"


def _getter(root: str, event: str) -> Get:
    if root in _TOPICWISE_GETTERS and event in _TOPICWISE:
        return _TOPICWISE_GETTERS[root]
    if root == "event":
        return lambda _event, _item: event
    return _GETTERS.get(root) or _plain(root)


def _plain(root: str) -> Get:
    def get(event: Event, _item: Any) -> Any:
        value = getattr(event.message, root, None)
        return None if value == "" and root not in _KEPT else value

    return get


def _reason(event: Event, _item: Any) -> Any:
    reason = getattr(event.message, "reason", None)
    if not isinstance(reason, int):
        return reason or None
    return failure_name(reason) if event.hook == "on_register_failed" else reason_name(reason)


def _acl(acl: MatchedACL | None) -> Any:
    return None if acl is None or not (acl.name or acl.pattern) else msgspec.to_builtins(acl)


_GETTERS: Mapping[str, Get] = {
    "clientid": lambda event, _: event.client_id,
    "username": lambda event, _: event.username or None,
    "mountpoint": lambda event, _: event.mountpoint,
    "ts": lambda event, _: event.timestamp // 1_000_000,
    "retain": lambda event, _: getattr(event.message, "retain", getattr(event.message, "is_retain", None)),
    "reason": _reason,
    "topics": lambda event, _: msgspec.to_builtins(event.message.topics),
    "matched_acl": lambda event, _: _acl(getattr(event.message, "matched_acl", None)),
    "properties": lambda event, _: event.properties or None,
    "user_properties": lambda event, _: dict(sorted(getattr(event.message, "user_properties", {}).items())),
}
_TOPICWISE_GETTERS: Mapping[str, Get] = {
    "topic": lambda _, item: item if isinstance(item, str) else item.topic,
    "qos": lambda _, item: item.qos,
    "matched_acl": lambda _, item: _acl(item.matched_acl),
}


def _level(get: Get, index: int) -> Get:
    def level(event: Event, item: Any) -> str | None:
        levels = get(event, item).split("/")
        return levels[index] if index < len(levels) else None

    return level


def _part(get: Get, steps: list[str | int], *, or_none: bool) -> Get:
    def part(event: Event, item: Any) -> Any:
        value = get(event, item)
        try:
            for step in steps:
                # Text has an index, too, but no parts.
                value = None if isinstance(value, str) else value[step]
        except (LookupError, TypeError):
            return None
        return (value or None) if or_none else value

    return part


def _payload(name: str, steps: list[str | int], encoding: Encoding) -> Field:
    if steps:
        get = _payload_part([_step(step) for step in steps])
        return Field(name, get, lambda event, item: text(get(event, item)))
    as_text: Callable[[bytes], tuple[Payload, str | None]] = payload_maker(
        "plain" if encoding in ("json", "omit") else encoding
    )

    def whole(event: Event, _item: Any) -> Any:
        return as_text(event.message.payload)[0]

    def value(event: Event, _item: Any) -> Any:
        payload = event.message.payload
        found = as_json(payload)
        return as_text(payload)[0] if found is None else found

    return Field(name, value if encoding in ("json", "omit") else whole, whole)


def _step(step: str | int) -> Callable[[msgspec.Raw | bytes], msgspec.Raw | None]:
    if isinstance(step, int):
        index = step

        def element(data: msgspec.Raw | bytes) -> msgspec.Raw | None:
            elements = _decode_list(data)
            return elements[index] if index < len(elements) else None

        return element
    # A Struct parses one member and skips the others, which takes half the time of a dict.
    member = msgspec.defstruct("Member", [("value", msgspec.Raw, msgspec.field(default=msgspec.Raw(b""), name=step))], gc=False)
    decode = msgspec.json.Decoder(member).decode

    def named(data: msgspec.Raw | bytes) -> msgspec.Raw | None:
        value: msgspec.Raw = decode(data).value  # type: ignore[attr-defined] # it has one
        return value if bytes(value) else None

    return named


def _payload_part(steps: list[Callable[[msgspec.Raw | bytes], msgspec.Raw | None]]) -> Get:
    def part(event: Event, _item: Any) -> msgspec.Raw | None:
        value: Any = event.message.payload
        try:
            for step in steps:
                value = step(value)
                if value is None:
                    return None
            data = bytes(value)
            if not data.isascii():
                data.decode()
        except _UNDECODABLE:
            return None
        return value if data != b"null" else None

    return part
