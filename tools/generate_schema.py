"""
Generates mqhooks/app/schema.json, the JSON Schema of the configuration: make schema.

What is read, its type, its limits and its default come from reading a configuration that has every block; the words come from
docs/configuration.rst. A test compares what is committed with what this gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from mqhooks.app.configuration import compose
from mqhooks.app.settings import Kind
from mqhooks.nanomq.block import Block
from mqhooks.nanomq.events import RULE_EVENTS

PROJECT = Path(__file__).parent.parent
TARGET = PROJECT / "mqhooks" / "app" / "schema.json"

EVERY_BLOCK: dict[str, Any] = {
    "webhook": {
        "url": "https://localhost/",
        "headers": {},
        "method": "POST",
        "events": [{"event": "on_publish", "headers": {}, "method": "POST"}],
        "tls": {},
        "batch": {},
        "limit": {"rate": "1/s"},
    },
    "mqhooks": {},
}
_UNITS = "ns|us|ms|s|m|h|d|w|nano|micro|milli|(nano|micro|milli)?seconds?|minutes?|hours?|days?|weeks?"
_DURATION = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": rf"^\s*[0-9]*\.?[0-9]+\s*({_UNITS})?\s*$"}]
}
_SIZE = {"type": "string", "pattern": r"^\s*[0-9]*\.?[0-9]+\s*(bytes?|[bB]|[kKmMgGtT]([iI]?[bB]?))?\s*$"}
_SCALAR = {"type": ["string", "number", "boolean"]}
_ADDRESS = {"type": "string", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://[^/]"}
_SECRET = {"type": "string", "pattern": "^wh(sec|sk)_"}
_ENDPOINT = {"type": "string", "pattern": "^(off|[A-Za-z0-9]+:.+)$"}
_STATUS = {"type": "integer", "minimum": 300, "maximum": 599}
# What the text of a string has to look like is not said where it is read.
_TEXTS: Mapping[str, Any] = {
    "webhook.url": _ADDRESS,
    "webhook.secret": {"anyOf": [_SECRET, {"type": "array", "items": _SECRET, "minItems": 1}]},
    "webhook.limit.rate": {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*/\s*(s|min|m|h|d)\s*$"},
    "webhook.auth.oauth2.token_url": _ADDRESS,
    "webhook.events[].event": {"enum": list(RULE_EVENTS)},
    "webhook.retry.on": {"items": {"anyOf": [_STATUS, {"type": "string", "pattern": "^[345]([0-9][0-9]|xx)$"}]}},
    "mqhooks.notify.url": _ADDRESS,
    "mqhooks.notify.on": {"items": {"enum": list(get_args(Kind))}},
    "mqhooks.notify.secret": {"anyOf": [_SECRET, {"type": "array", "items": _SECRET, "minItems": 1}]},
    "mqhooks.admin.listen": _ENDPOINT,
    "mqhooks.sources.sidecar.listen": {"items": _ENDPOINT},
    "mqhooks.sources.webhooks.listen": {"items": _ENDPOINT},
    "mqhooks.sources.grpc.listen": {"items": _ENDPOINT},
}


class Recorder(Block):
    """A block that notes how each of its keys is read, in a JSON Schema of an object."""

    def __init__(self, values: Mapping[str, Any], path: str, schema: dict[str, Any]) -> None:
        super().__init__(values, "", path, [])
        self.properties: dict[str, Any] = {}
        self.schema = schema
        schema |= {"type": "object", "properties": self.properties, "additionalProperties": False}

    def string(self, key: str, default: Any) -> Any:
        return self._noted(key, {"type": "string"}, super().string(key, default), default)

    def file(self, key: str, default: Any) -> Any:
        return self._noted(key, {"type": "string", "minLength": 1}, super().file(key, default), default)

    def tree(self, key: str) -> Any:
        self.properties.setdefault(key, {})
        return super().tree(key)

    def boolean(self, key: str, *, default: bool) -> bool:
        known = {"enum": [True, False, "true", "false", "on", "off", "yes", "no"]}
        return self._noted(key, known, super().boolean(key, default=default), default)

    def integer(self, key: str, default: Any, *, least: int, most: int | None = None) -> Any:
        value = super().integer(key, default, least=least, most=most)
        return self._noted(key, _limits("integer", least, most), value, default)

    def number(self, key: str, default: float, *, least: float, most: float) -> float:
        value = super().number(key, default, least=least, most=most)
        return self._noted(key, _limits("number", least, most), value, default)

    def duration(self, key: str, default: float, *, unit: str, zero: bool = False, plain: float = 0) -> float:
        value = super().duration(key, default, unit=unit, zero=zero, plain=plain)
        return self._noted(key, dict(_DURATION), value, _span(default) if default >= 0 else None)

    def size(self, key: str, default: int, *, least: int, most: int | None = None) -> int:
        value = super().size(key, default, least=least, most=most)
        return self._noted(key, {"anyOf": [_limits("integer", least, most), _SIZE]}, value, default)

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        value = super().choice(key, default, choices)
        known = {"enum": [spelling for choice in choices for spelling in dict.fromkeys((choice, choice.upper()))]}
        return self._noted(key, known, value, default)

    def entries(self, key: str) -> list[Any] | None:
        single = _text_of(self.path(key)).get("items", _SCALAR)
        return self._noted(key, {"anyOf": [single, {"type": "array", "items": single}]}, super().entries(key))

    def secret(self, key: str) -> str | None:
        return self._noted(key, {"type": "string"}, super().secret(key))

    def secrets(self, key: str) -> list[Any] | None:
        return self._noted(key, {}, super().secrets(key))

    def members(self) -> Any:
        self.schema["additionalProperties"] = _SCALAR
        return super().members()

    def block(self, key: str, remedy: str = "") -> Block:
        values = super().tree(key)
        schema: dict[str, Any] = {}
        # What was read otherwise before may be a text that stands for the block.
        self.properties[key] = {"anyOf": [{"type": "string"}, schema]} if key in self.properties else schema
        return Recorder(values if isinstance(values, dict) else {}, self.path(key), schema)

    def blocks(self, key: str, example: str) -> list[Block]:
        items: dict[str, Any] = {}
        self.properties[key] = {"anyOf": [{"type": "array", "items": items}, {"type": "object", "additionalProperties": items}]}
        return [Recorder(value, f"{self.path(key)}[]", items) for value in super().tree(key)]

    def _noted(self, key: str, schema: dict[str, Any], value: Any, default: Any = None) -> Any:
        told = _text_of(self.path(key))
        schema |= {} if "items" in told else told
        if default not in (None, "") and self.path(key) != "webhook.cloudevents.origin":
            schema["default"] = default
        self.properties[key] = schema
        return value


def _text_of(path: str) -> Mapping[str, Any]:
    return _TEXTS.get(path) or _TEXTS.get(path.replace("mqhooks.", "webhook.", 1), {})


def _limits(kind: str, least: float, most: float | None) -> dict[str, Any]:
    return {"type": kind, "minimum": least} | ({} if most is None else {"maximum": most})


def _span(seconds: float) -> str:
    for unit, length in (("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= length and not seconds % length:
            return f"{seconds / length:g}{unit}"
    return f"{seconds * 1000:g}ms"


def generate() -> str:
    """Make the schema, as text."""
    root: dict[str, Any] = {}
    compose(Recorder(EVERY_BLOCK, "", root))
    keys = root["properties"]
    webhook = keys["webhook"]
    webhook["required"] = ["url"]
    webhook["properties"]["ssl"]["description"] = "Another name of tls."
    webhook["properties"]["body"]["anyOf"][1]["additionalProperties"] = True
    for rule in webhook["properties"]["events"]["anyOf"]:
        (rule.get("items") or rule["additionalProperties"])["required"] = ["event"]
    _describe(keys, _told())
    keys["webhook"] = {"$ref": "#/$defs/webhook"}
    disabled = {"properties": {"enable": {"enum": [False, "false", "off", "no"]}}, "required": ["enable"]}
    keys["webhooks"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/webhook"}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mqhooks",
        "description": "The configuration of mqhooks; other keys are ignored. A duration without a unit is in milliseconds.",
        "type": "object",
        "properties": keys,
        "$defs": {"webhook": {"anyOf": [disabled, webhook]}},
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _told() -> dict[str, str]:
    """Read what docs/configuration.rst says of each key."""
    text = (PROJECT / "docs" / "configuration.rst").read_text()
    told = {}
    for key, options, words in re.findall(r"^\.\. confval:: (\S+)\n((?:   :.*\n)*)\n((?:   .*\n)+)", text, re.M):
        plain = " ".join(line.strip() for line in words.splitlines())
        plain = re.sub(r":\w+:`(?:([^`<]+) <[^`>]+>|([^`]+))`", lambda match: match[1] or match[2], plain)
        fields = dict(re.findall(r":(type|default): (.*)", options))
        told[key] = f"{plain} Type: {fields['type']}. Default: {fields['default']}.".replace("``", "").replace("**", "")
    return told


def _describe(properties: dict[str, Any], told: Mapping[str, str], within: str = "") -> None:
    for key, schema in properties.items():
        path = f"{within}{key}"
        words = told.get(path) or told.get(re.sub(r".*\.(tls|ssl)\.", "webhook.tls.", path))
        if words:
            schema.setdefault("description", words)
        for each in (schema, *schema.get("anyOf", ())):
            _describe(each.get("properties", {}), told, f"{path}.")
            items = each.get("items")
            if isinstance(items, dict):
                _describe(items.get("properties", {}), told, f"{path}[].")


if __name__ == "__main__":
    TARGET.write_text(generate(), "utf-8")
