"""
A frame's bytes become an :class:`~mqhooks.sources.sidecar.events.Event`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError as ProtobufError

from mqhooks.errors import MalformedFrame, UnknownType
from mqhooks.sources.sidecar.events import HOOKS, Event
from mqhooks.sources.sidecar.lenient import parse_lenient

TYPE_URL = "type.googleapis.com/"
"""What VerneMQ's encoder puts before a type's full name."""


def decode(frame: bytes | bytearray) -> Event:
    """
    Decode one frame.

    A string that is not UTF-8, for which protobuf would refuse the whole message, costs only its bad bytes: they become U+FFFD.
    A timestamp that 64 bits of nanoseconds cannot hold (before 1677, after 2262) becomes the nearest that they can.

    :param frame: a serialised ``google.protobuf.Any`` without the length before it. Unknown fields are ignored. A ``bytearray``
        is used up: a long frame has no need to be there twice.
    :returns: the event; its username is what the message says.
    :raises mqhooks.errors.UnknownType: no hook sends messages of this type, or the frame names none.
    :raises mqhooks.errors.MalformedFrame: the bytes are not what they should be.
    """
    # VerneMQ's envelope begins with the type and ends with the value, whose length mostly takes a byte or two.
    known = None
    value: bytes | bytearray
    if isinstance(frame, bytes):
        try:
            end = frame[1] + 3
            length, start = frame[end], end + 1
            if length > 127 and frame[start] < 128:
                length += (frame[start] - 1) << 7
                start += 1
            if start + length == len(frame):
                known, value = _BY_PREFIX.get(frame[:end]), frame[start:]
        except IndexError:
            pass
    if known is None:
        known, value = _open(frame)
    hook, parse, has_username = known
    try:
        message = parse(value)
    except ProtobufError:
        message = parse_lenient(HOOKS[hook], value)
    time = message.timestamp
    timestamp = time.seconds * 1_000_000_000 + time.nanos
    if not _EARLIEST <= timestamp <= _LATEST:
        timestamp = _LATEST if timestamp > 0 else _EARLIEST
    return Event(hook, message, timestamp, message.mountpoint, message.client_id, message.username if has_username else "")


def _open(frame: bytes | bytearray) -> tuple[_Parser, bytes | bytearray]:
    """Take any envelope apart."""
    if isinstance(frame, bytearray):
        end = int.from_bytes(frame[1:2]) + 3
        known = _BY_PREFIX.get(bytes(frame[:end]))
        length = 0
        for count, byte in enumerate(frame[end : end + 5]):
            length |= (byte & 0x7F) << 7 * count
            start = end + 1 + count
            if known is not None and byte < 128 and start + length == len(frame):
                del frame[:start]
                return known, frame
    try:
        envelope = AnyMessage.FromString(bytes(frame))
    except ProtobufError:
        raise MalformedFrame("not a protobuf Any") from None
    name = envelope.type_url.rpartition("/")[2]
    known = _PARSERS.get(name)
    if known is None:
        raise UnknownType(name)
    return known, envelope.value


_Parser = tuple[str, Callable[..., Any], bool]
_EARLIEST, _LATEST = -(1 << 63), (1 << 63) - 1
_PARSERS: dict[str, _Parser] = {
    message.DESCRIPTOR.full_name: (hook, message.FromString, "username" in message.DESCRIPTOR.fields_by_name)
    for hook, message in HOOKS.items()
}
# Field 1 of google.protobuf.Any with its length and the type in it, and the tag of field 2.
_BY_PREFIX = {b"\x0a%c%b\x12" % (len(TYPE_URL + name), (TYPE_URL + name).encode()): parser for name, parser in _PARSERS.items()}
