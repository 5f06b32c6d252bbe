"""
Decoding a frame into an :class:`~mqhooks.events.Event`.

- VerneMQ's envelope always begins with the type and ends with the value, so three bytes are enough to take most of them apart.
  Protobuf takes the rest apart and has the last word.
- Reading a map takes a twentieth of the decoding time even when it is empty, as the map of user properties mostly is. So a
  message is parsed with a twin that has a field of bytes in the map's place, and parsed again only when that field is set.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from mqhooks.errors import MalformedFrame, UnknownType
from mqhooks.events import Event, UserProperties
from mqhooks.sources.sidecar.lenient import parse_lenient
from mqhooks.sources.sidecar.messages import MESSAGES
from mqhooks.sources.sidecar.twins import PROPERTIES, summary_of

TYPE_URL = "type.googleapis.com/"
"""The prefix that VerneMQ's encoder puts before a type's full name."""


def decode(frame: bytes) -> Event:
    """
    Decode one frame.

    Protobuf would refuse a whole message for a string that is not UTF-8. Here it costs only the bad bytes: they become U+FFFD.
    A timestamp that 64 bits of nanoseconds cannot hold (before 1677, after 2262) becomes the nearest that they can.

    :param frame: a serialised ``google.protobuf.Any`` without the length before it. Unknown fields are ignored.
    :returns: the event, with the username that the message names.
    :raises mqhooks.errors.UnknownType: when no hook sends messages of this type, or the frame names no type.
    :raises mqhooks.errors.MalformedFrame: when the bytes are not a protobuf ``Any``, or not the message that it names.
    """
    try:
        end = frame[1] + 3
        size = len(frame) - end
        length = frame[end]
        if length == size - 1 and length < 128:
            protobuf, parse, full, read = _BY_PREFIX[frame[:end]]
            value = frame[end + 1 :]
        elif length > 127 and (more := frame[end + 1]) < 128 and length - 128 + (more << 7) == size - 2:
            protobuf, parse, full, read = _BY_PREFIX[frame[:end]]
            value = frame[end + 2 :]
        else:
            (protobuf, parse, full, read), value = _open(frame)
    except LookupError:
        (protobuf, parse, full, read), value = _open(frame)
    properties: Any = None
    try:
        message = parse(value)
        if full is not None and message.HasField(PROPERTIES):
            properties = full(value).user_properties
    except ProtobufError:
        message = parse_lenient(protobuf, value)
        if full is not None:
            properties = message.user_properties
    # A long payload is in memory often enough: in the frame, in the message, and soon in the event.
    del value
    time = message.timestamp
    timestamp = time.seconds * 1_000_000_000 + time.nanos
    if not -0x8000_0000_0000_0000 <= timestamp <= 0x7FFF_FFFF_FFFF_FFFF:
        timestamp = 0x7FFF_FFFF_FFFF_FFFF if timestamp > 0 else -0x8000_0000_0000_0000
    return read(message, timestamp, UserProperties(properties.items())) if properties else read(message, timestamp)


def type_of(frame: bytes) -> type[Message] | None:
    """
    Return the class of a frame's message, if its envelope has VerneMQ's form.

    :param frame: two bytes or more.
    """
    parser = _BY_PREFIX.get(frame[: frame[1] + 3])
    return None if parser is None else parser[0]


def open_frame(frame: bytes, wanted: Container[type[Message]]) -> tuple[type[Message], bytes] | None:
    """
    Take the envelope off a frame, if its message is of a wanted class.

    :returns: the class and the message's bytes; ``None`` for another message.
    :raises mqhooks.errors.UnknownType: as :func:`decode` does.
    :raises mqhooks.errors.MalformedFrame: when the bytes are not a protobuf ``Any``.
    """
    protobuf = type_of(frame)
    if protobuf is not None and protobuf not in wanted:
        return None
    (protobuf, *_), value = _open(frame)
    return (protobuf, value) if protobuf in wanted else None


def _open(frame: bytes) -> tuple[_Parser, bytes]:
    """Take an envelope apart with protobuf."""
    try:
        envelope = AnyMessage.FromString(frame)
    except ProtobufError:
        raise MalformedFrame("not a protobuf Any") from None
    name = envelope.type_url.rpartition("/")[2]
    known = _PARSERS.get(name)
    if known is None:
        raise UnknownType(name)
    return known, envelope.value


def _parser(protobuf: type[Message], read: Callable[..., Event]) -> _Parser:
    if PROPERTIES not in protobuf.DESCRIPTOR.fields_by_name:
        return protobuf, protobuf.FromString, None, read
    return protobuf, summary_of(protobuf).FromString, protobuf.FromString, read


# The class; its parser, or its twin's, which tells only whether there are user properties; then the parser that reads those;
# the function that makes the event.
_Parser = tuple[type[Message], Callable[[bytes], Any], Callable[[bytes], Any] | None, Callable[..., Event]]
_PARSERS: dict[str, _Parser] = {
    protobuf.DESCRIPTOR.full_name: _parser(protobuf, read) for _, protobuf, read in MESSAGES.values()
}
# Field 1 of google.protobuf.Any, with its length and the type, and the tag of field 2.
_BY_PREFIX = {b"\x0a%c%b\x12" % (len(TYPE_URL + name), (TYPE_URL + name).encode()): parser for name, parser in _PARSERS.items()}
