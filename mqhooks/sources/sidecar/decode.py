"""
Decoding a frame into an :class:`~mqhooks.events.Event`.

VerneMQ's envelope always begins with the type and ends with the value, so most are taken apart by looking at three bytes.
Everything else is left to protobuf, whose verdict counts.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from mqhooks.errors import MalformedFrame, UnknownType
from mqhooks.events import Event
from mqhooks.sources.sidecar.lenient import parse_lenient
from mqhooks.sources.sidecar.messages import MESSAGES

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
    :raises mqhooks.errors.MalformedFrame: the bytes are not a protobuf ``Any``, or not the message that it names.
    """
    try:
        end = frame[1] + 3
        size = len(frame) - end
        if frame[end] == size - 1 and size < 129:
            protobuf, parse, read = _BY_PREFIX[frame[:end]]
            value = frame[end + 1 :]
        elif frame[end] > 127 and frame[end + 1] < 128 and frame[end] - 128 + (frame[end + 1] << 7) == size - 2:
            protobuf, parse, read = _BY_PREFIX[frame[:end]]
            value = frame[end + 2 :]
        else:
            (protobuf, parse, read), value = _open(frame)
    except LookupError:
        (protobuf, parse, read), value = _open(frame)
    try:
        message = parse(value)
    except ProtobufError:
        message = parse_lenient(protobuf, value)
    # A long payload is in memory often enough: in the frame, in the message, and soon in the event.
    del value
    time = message.timestamp
    timestamp = time.seconds * 1_000_000_000 + time.nanos
    if not -0x8000_0000_0000_0000 <= timestamp <= 0x7FFF_FFFF_FFFF_FFFF:
        timestamp = 0x7FFF_FFFF_FFFF_FFFF if timestamp > 0 else -0x8000_0000_0000_0000
    return read(message, timestamp)


def open_frame(frame: bytes, wanted: Container[type[Message]]) -> tuple[type[Message], bytes] | None:
    """
    Take the envelope off a frame, if its message is of a wanted class.

    :returns: the class and the message's bytes; ``None`` for another message.
    :raises mqhooks.errors.UnknownType: as :func:`decode` does.
    :raises mqhooks.errors.MalformedFrame: when the bytes are not a protobuf ``Any``.
    """
    parser = _BY_PREFIX.get(frame[: frame[1] + 3])
    if parser is not None and parser[0] not in wanted:
        return None
    (protobuf, _, _), value = _open(frame)
    return (protobuf, value) if protobuf in wanted else None


def _open(frame: bytes) -> tuple[_Parser, bytes]:
    """Have protobuf take an envelope apart."""
    try:
        envelope = AnyMessage.FromString(frame)
    except ProtobufError:
        raise MalformedFrame("not a protobuf Any") from None
    name = envelope.type_url.rpartition("/")[2]
    known = _PARSERS.get(name)
    if known is None:
        raise UnknownType(name)
    return known, envelope.value


_Parser = tuple[type[Message], Callable[[bytes], Any], Callable[[Any, int], Event]]
_PARSERS: dict[str, _Parser] = {
    protobuf.DESCRIPTOR.full_name: (protobuf, protobuf.FromString, read) for _, protobuf, read in MESSAGES.values()
}
# Field 1 of google.protobuf.Any with its length and the type in it, and the tag of field 2.
_BY_PREFIX = {b"\x0a%c%b\x12" % (len(TYPE_URL + name), (TYPE_URL + name).encode()): parser for name, parser in _PARSERS.items()}
