"""
Make the JSON bodies: NanoMQ's, byte for byte, and those in VerneMQ's own words.

- The fields of each Struct are in the order of NanoMQ's keys.
- Further members, such as those of ``details``, follow NanoMQ's keys, so a reader of NanoMQ's bodies can ignore them.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable
from typing import Any

import msgspec

from mqhooks.events import Event, failure_name, reason_name
from mqhooks.nanomq import base62
from mqhooks.nanomq.settings import BodySettings, Encoding

UNDEFINED = "undefined"
"""NanoMQ's placeholder for a missing username."""

BASE62_LIMIT = 128 << 10
"""Longest payload in base62, in bytes. Much longer ones would block everything else for seconds."""

_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(msgspec.Raw).decode

# First bytes of JSON. Checking them first avoids decoding errors, which would cost more than everything else.
_STARTS = b'{["-0123456789tfn \t\r\n'

Payload = str | msgspec.Raw | msgspec.UnsetType
"""A payload in a body: text, JSON as it came, or nothing."""


class _Connect(msgspec.Struct, gc=False):
    proto_ver: int | None
    keepalive: int | None
    username: str
    clientid: str
    ipaddress: str | None
    action: str = "client_connect"


class _Connack(msgspec.Struct, gc=False):
    proto_ver: int | None
    keepalive: int | None
    conn_ack: str
    username: str
    clientid: str
    action: str = "client_connack"


class _Connected(msgspec.Struct, gc=False):
    proto_ver: int | None
    keepalive: int | None
    connected_at: int
    username: str
    clientid: str
    ipaddress: str | None
    action: str = "client_connected"


class _Ended(msgspec.Struct, gc=False):
    reason: str
    username: str
    clientid: str
    action: str


class _SubscribeOptions(msgspec.Struct, gc=False):
    qos: int


class _Subscribed(msgspec.Struct, gc=False):
    topic: str
    opts: _SubscribeOptions
    username: str
    clientid: str
    action: str


class _Unsubscribed(msgspec.Struct, gc=False):
    topic: str
    username: str
    clientid: str
    action: str


class _Published(msgspec.Struct, gc=False):
    ts: int
    topic: str
    retain: bool
    qos: int
    action: str
    from_username: str
    from_client_id: str
    payload: Payload


class _Delivered(msgspec.Struct, gc=False):
    ts: int
    topic: str
    retain: bool
    qos: int
    action: str
    username: str
    clientid: str
    from_username: None
    from_client_id: None
    payload: Payload


class _ACL(msgspec.Struct, gc=False):
    name: str
    pattern: str


class _Further(msgspec.Struct, omit_defaults=True):
    """The members that follow NanoMQ's keys; empty values are left out."""

    ts: int | None = None
    mountpoint: str = ""
    session_id: str = ""
    ipaddress: str = ""
    port: int = 0
    matched_acl: _ACL | None = None
    user_properties: dict[str, str] = {}
    properties: dict[str, Any] | None = None
    connected_at: int | None = None
    duration: int | None = None
    payload_encoding: str | None = None


class Bodies:
    """
    Makes the bodies of NanoMQ's events.

    :param settings: the encoding of payloads, the values to report where the stream has none, and whether details follow.
    """

    def __init__(self, settings: BodySettings) -> None:
        self._text = payload_maker(settings.encoding)
        self._details = settings.details
        self._proto_ver = settings.proto_ver
        self._keepalive = settings.keepalive

    def client_connect(self, event: Event) -> bytes:
        """Make the body of ``on_client_connect`` from a registration or a refused one."""
        body = _Connect(
            self._version(event), self._keepalive, event.username or UNDEFINED, event.client_id, event.message.peer_addr or None
        )
        return self._finish(event, body)

    def client_connack(self, event: Event) -> bytes:
        """Make the body of ``on_client_connack`` from a registration or a refused one."""
        answer = failure_name(event.message.reason) if event.hook == "on_register_failed" else "success"
        body = _Connack(self._version(event), self._keepalive, answer, event.username or UNDEFINED, event.client_id)
        return self._finish(event, body)

    def client_connected(self, event: Event) -> bytes:
        """Make the body of ``on_client_connected`` from a registration."""
        body = _Connected(
            self._version(event),
            self._keepalive,
            event.timestamp // 1_000_000,
            event.username or UNDEFINED,
            event.client_id,
            event.message.peer_addr or None,
        )
        return self._finish(event, body)

    def client_disconnected(self, event: Event) -> bytes:
        """Make the body of ``on_client_disconnected`` from a connection's end."""
        body = _Ended(_reason(event), event.username or UNDEFINED, event.client_id, "client_disconnected")
        return self._finish(event, body)

    def session_terminated(self, event: Event) -> bytes:
        """Make the body of ``on_session_terminated`` from the end of a clean session's connection or an expired session."""
        reason = "expired" if event.hook == "on_session_expired" else _reason(event)
        body = _Ended(reason, event.username or UNDEFINED, event.client_id, "session_terminated")
        return self._finish(event, body)

    def client_subscribe(self, event: Event, info: Any) -> bytes:
        """Make the body of ``on_client_subscribe`` from one topic of a subscription."""
        return self._subscribed(event, info, "client_subscribe")

    def session_subscribed(self, event: Event, info: Any) -> bytes:
        """Make the body of ``on_session_subscribed`` from one topic of a subscription."""
        return self._subscribed(event, info, "session_subscribed")

    def client_unsubscribe(self, event: Event, topic: str) -> bytes:
        """Make the body of ``on_client_unsubscribe`` from one of the topics."""
        return self._finish(event, _Unsubscribed(topic, event.username or UNDEFINED, event.client_id, "client_unsubscribe"))

    def session_unsubscribed(self, event: Event, topic: str) -> bytes:
        """Make the body of ``on_session_unsubscribed`` from one of the topics."""
        return self._finish(event, _Unsubscribed(topic, event.username or UNDEFINED, event.client_id, "session_unsubscribed"))

    def message_publish(self, event: Event) -> bytes:
        """Make the body of ``on_message_publish``."""
        message = event.message
        payload, encoding = self._text(message.payload)
        body = _Published(
            event.timestamp // 1_000_000,
            message.topic,
            message.retain,
            message.qos,
            "message_publish",
            event.username or UNDEFINED,
            event.client_id,
            payload,
        )
        if encoding is None and not self._details:
            return _encode(body)
        return self._finish(event, body, encoding)

    def message_delivered(self, event: Event) -> bytes:
        """Make the body of ``on_message_delivered``."""
        return self._delivered(event, "message_delivered")

    def message_acked(self, event: Event) -> bytes:
        """Make the body of ``on_message_acked``."""
        return self._delivered(event, "message_acked")

    def _version(self, event: Event) -> int | None:
        # A refused registration has no user properties; elsewhere, having any proves MQTT 5.
        proven = event.mqtt5 or (event.hook == "on_register" and event.message.user_properties)
        return 5 if proven else self._proto_ver

    def _subscribed(self, event: Event, info: Any, action: str) -> bytes:
        body = _Subscribed(info.topic, _SubscribeOptions(info.qos), event.username or UNDEFINED, event.client_id, action)
        return self._finish(event, body, acl=info.matched_acl)

    def _delivered(self, event: Event, action: str) -> bytes:
        message = event.message
        payload, encoding = self._text(message.payload)
        body = _Delivered(
            event.timestamp // 1_000_000,
            message.topic,
            message.is_retain,
            message.qos,
            action,
            event.username or UNDEFINED,
            event.client_id,
            None,
            None,
            payload,
        )
        if encoding is None and not self._details:
            return _encode(body)
        return self._finish(event, body, encoding)

    def _finish(self, event: Event, body: msgspec.Struct, encoding: str | None = None, acl: Any = None) -> bytes:
        encoded: bytes = _encode(body)
        if not self._details and encoding is None:
            return encoded
        further = _Further(payload_encoding=encoding)
        if self._details:
            message, known = event.message, event.registration
            if acl is None:
                acl = getattr(message, "matched_acl", None)
            further = _Further(
                ts=None if hasattr(body, "ts") else event.timestamp // 1_000_000,
                mountpoint=event.mountpoint,
                session_id=getattr(message, "session_id", ""),
                ipaddress=""
                if hasattr(body, "ipaddress")
                else getattr(message, "peer_addr", "") or (known.peer_addr if known else ""),
                port=getattr(message, "peer_port", 0) or (known.peer_port if known else 0),
                matched_acl=_ACL(acl.name, acl.pattern) if acl is not None and (acl.name or acl.pattern) else None,
                user_properties=dict(sorted(getattr(message, "user_properties", {}).items())),
                properties=event.properties,
                connected_at=None if known is None else known.timestamp // 1_000_000,
                duration=None if known is None else (event.timestamp - known.timestamp) // 1_000_000,
                payload_encoding=encoding,
            )
        members = _encode(further)[1:-1]
        return b"%b,%b}" % (encoded[:-1], members) if members else encoded


def hook_body(event: Event, encoding: Encoding = "plain", *, details: bool = False) -> bytes:
    """
    Make an event's body in VerneMQ's own words.

    :param encoding: the encoding of a payload. A plain one that is not UTF-8, and one too long for base62, is in base64
        instead, and the body ends with ``"payload_encoding":"base64"``.
    :param details: whether to add the fields that only some sources provide: the options of a subscription's topics, and
        ``properties``.
    :returns: a flat JSON object: ``action``, the hook's name without ``on_``, then the message's fields. Only a registration
        has ``user_properties`` when they are empty.
    """
    fields: dict[str, Any] = {"action": event.hook.removeprefix("on_"), **dict(event.fields())}
    if event.hook != "on_register" and not fields.get("user_properties"):
        fields.pop("user_properties", None)
    if details:
        for topic, options in zip(fields.get("topics", ()), event.options, strict=False):
            topic.update({} if options is None else msgspec.to_builtins(options))
        if event.properties is not None:
            fields["properties"] = event.properties
    if "payload" in fields:
        payload, other = _PAYLOADS[encoding](fields["payload"])
        if payload is msgspec.UNSET:
            del fields["payload"]
        else:
            fields["payload"] = payload
        if other is not None:
            fields["payload_encoding"] = other
    return _encode(fields)


def _reason(event: Event) -> str:
    name = reason_name(event.message.reason)
    return "normal" if name in ("normal_disconnect", "mqtt_client_disconnect") else name


def payload_maker(encoding: Encoding) -> Callable[[bytes], tuple[Payload, str | None]]:
    """
    Return the function that encodes a payload for a body.

    :returns: a function that returns the encoded payload, and the name of its encoding if that is not the one asked for.
    """
    if encoding == "base62":
        base62.prepare()
    return _PAYLOADS[encoding]


def as_json(payload: bytes) -> msgspec.Raw | None:
    """
    Return a payload as a JSON value for a body, if it is JSON; no number, key or escape in it changes.

    :returns: ``None`` when it is not JSON in UTF-8, or is nested deeper than Python can follow; see the docs.
    """
    if payload[:1] not in _STARTS:
        return None
    try:
        if not payload.isascii():
            payload.decode()
        return _check(payload)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None


def _json(payload: bytes) -> tuple[Payload, str | None]:
    value = as_json(payload)
    return _plain(payload) if value is None else (value, None)


def _omit(_payload: bytes) -> tuple[Payload, str | None]:
    return msgspec.UNSET, None


def _plain(payload: bytes) -> tuple[str, str | None]:
    try:
        return payload.decode(), None
    except UnicodeDecodeError:
        return _base64(payload)[0], "base64"


def _base64(payload: bytes) -> tuple[str, str | None]:
    return b2a_base64(payload, newline=False).decode("ascii"), None


def _base62(payload: bytes) -> tuple[str, str | None]:
    if len(payload) > BASE62_LIMIT:
        return _base64(payload)[0], "base64"
    return base62.encode(payload), None


_PAYLOADS: dict[Encoding, Callable[[bytes], tuple[Payload, str | None]]] = {
    "plain": _plain,
    "base64": _base64,
    "base62": _base62,
    "json": _json,
    "omit": _omit,
}
"""Functions that encode a payload, and name the encoding if it is not the configured one."""
