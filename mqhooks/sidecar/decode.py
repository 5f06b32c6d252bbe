"""
A frame's bytes become an :class:`~mqhooks.sidecar.events.Event`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError as ProtobufError

from mqhooks.errors import MalformedFrame, UnknownType
from mqhooks.sidecar.events import HOOKS, Event
from mqhooks.sidecar.lenient import parse_lenient

TYPE_URL = "type.googleapis.com/"
"""What VerneMQ's encoder puts before a type's full name."""


def decode(frame: bytes) -> Event:
    """
    Decode one frame.

    A string that is not UTF-8, for which protobuf would refuse the whole message, costs only its bad bytes: they become U+FFFD.
    A timestamp that 64 bits of nanoseconds cannot hold (before 1677, after 2262) becomes the nearest that they can.

    :param frame: a serialised ``google.protobuf.Any`` without the length before it. Unknown fields are ignored.
    :returns: the event; its username is what the message says.
    :raises mqhooks.errors.UnknownType: no hook sends messages of this type, or the frame names none.
    :raises mqhooks.errors.MalformedFrame: the bytes are not what they should be.
    """
    try:
        envelope = AnyMessage.FromString(frame)
    except ProtobufError:
        raise MalformedFrame("not a protobuf Any") from None
    url = envelope.type_url
    known = _PARSERS.get(url) or _PARSERS.get(TYPE_URL + url.rpartition("/")[2])
    if known is None:
        raise UnknownType(url.rpartition("/")[2])
    hook, parse, has_username = known
    try:
        message = parse(envelope.value)
    except ProtobufError:
        message = parse_lenient(HOOKS[hook], envelope.value)
    timestamp = message.timestamp.seconds * 1_000_000_000 + message.timestamp.nanos
    if not _EARLIEST <= timestamp <= _LATEST:
        timestamp = _LATEST if timestamp > 0 else _EARLIEST
    return Event(hook, message, timestamp, message.mountpoint, message.client_id, message.username if has_username else "")


_EARLIEST, _LATEST = -(1 << 63), (1 << 63) - 1
_PARSERS: dict[str, tuple[str, Callable[[bytes], Any], bool]] = {
    TYPE_URL + message.DESCRIPTOR.full_name: (hook, message.FromString, "username" in message.DESCRIPTOR.fields_by_name)
    for hook, message in HOOKS.items()
}
