"""
CloudEvents 1.0: turn an event's attributes and its data into a request.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md, with its JSON format
and HTTP binding.

The id is the delivery's, so it is the same in every attempt. An attribute without a value is left out.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, UnsetType

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, Event
from mqhooks.shapes.settings import CloudEventsSettings

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
JSON = "application/json"

_encode = msgspec.json.Encoder().encode
_SOURCE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
# The HTTP binding, section 3.1.3.2, encodes space, quotation marks, percent signs and whatever is not printable ASCII.
_plain = re.compile(r"[!#$&-~]+").fullmatch
_encoded = re.compile(r'[^!-~]|["%]').sub


def check_source(source: str) -> None:
    """
    Check the ``source`` of events.

    :raises mqhooks.errors.ConfigError: when it is not a URI reference; only the message is set.
    """
    if not _SOURCE.fullmatch(source):
        raise ConfigError(
            "is not a URI or a part of one, like //broker.example/mqtt or urn:vernemq:1: percent-encode what it cannot have"
        )


class _Envelope(msgspec.Struct, gc=False):
    source: str
    id: str
    type: str
    datacontenttype: str
    subject: str | UnsetType
    time: str | UnsetType
    partitionkey: str | UnsetType
    mountpoint: str | UnsetType
    data: Raw
    specversion: str = "1.0"


class CloudEvents:
    """
    Turns a rule's events into CloudEvents.

    :param settings: the webhook's settings.
    :param event: the rule's event.
    :param content_type: the data's content type.
    :param is_json: whether the data is JSON; other text becomes a string within JSON.
    """

    def __init__(self, settings: CloudEventsSettings, event: str, content_type: str, *, is_json: bool) -> None:
        self._settings = settings
        self._type = f"io.vernemq.{event}" if event in HOOKS else f"io.nanomq.{event}"
        self._content_type = content_type
        self._is_json = is_json
        self._source = _source(settings, "")
        self._sources = lru_cache(64)(partial(_source, settings))
        self._headers = lru_cache(64)(self._fixed_headers)

    def structured(self, event: Event, item: Any, id_: str, data: bytes) -> bytes:
        """
        Write an event as one JSON object.

        :param item: the topic, for an event of a subscription.
        :param id_: the delivery's id.
        """
        client, mountpoint = event.client_id, event.mountpoint
        source = self._sources(mountpoint) if mountpoint else self._source
        if not self._is_json:
            data = _encode(data.decode())
        # Positional arguments take half the time of keyword arguments.
        envelope = _Envelope(
            source,
            id_,
            self._type,
            self._content_type,
            _topic(event, item) or client or UNSET,
            _time(event.timestamp) or UNSET,
            client or UNSET,
            mountpoint or UNSET,
            Raw(data),
        )
        return _encode(envelope)

    def binary(self, event: Event, item: Any, id_: str) -> tuple[tuple[str, str], ...]:
        """Make the headers of a request whose body is an event's data."""
        client, time = event.client_id, _time(event.timestamp)
        subject = _topic(event, item) or client
        headers = [*self._headers(event.mountpoint), ("ce-id", id_)]
        if time:
            headers.append(("ce-time", time))
        if subject:
            headers.append(("ce-subject", percent(subject)))
        if client:
            headers.append(("ce-partitionkey", percent(client)))
        return tuple(headers)

    def _fixed(self, mountpoint: str) -> dict[str, str]:
        fixed = {"specversion": "1.0", "type": self._type, "source": _source(self._settings, mountpoint)}
        return fixed | ({"mountpoint": mountpoint} if mountpoint else {})

    def _fixed_headers(self, mountpoint: str) -> tuple[tuple[str, str], ...]:
        return tuple((f"ce-{name}", percent(value)) for name, value in self._fixed(mountpoint).items())


def percent(value: str) -> str:
    """Percent-encode an attribute's value for a header."""
    return value if _plain(value) else _encoded(_percent, value)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "replace"))


def _source(settings: CloudEventsSettings, mountpoint: str) -> str:
    if settings.source:
        return settings.source
    path = f"/{quote(mountpoint, safe='', errors='replace')}" if mountpoint else ""
    return f"//{settings.origin}{path}"


def _topic(event: Event, item: Any) -> str:
    if item is not None:
        return item if isinstance(item, str) else str(item.topic)
    return getattr(event.message, "topic", "")


def _time(timestamp: int) -> str:
    """Format a time in nanoseconds by RFC 3339, to the microsecond; empty if it cannot be written like that."""
    digits = str(timestamp)
    if len(digits) == 19 and timestamp > 0:
        return f"{_second(digits[:10])}.{digits[10:16]}Z"
    seconds, rest = divmod(timestamp, 1_000_000_000)
    second = _second(str(seconds))
    return f"{second}.{rest // 1000:06d}Z" if second else ""


@lru_cache(16)
def _second(seconds: str) -> str:
    try:
        return datetime.fromtimestamp(int(seconds), UTC).isoformat()[:19]
    except (ValueError, OverflowError, OSError):
        return ""
