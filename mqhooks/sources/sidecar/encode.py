"""
An event's message becomes a frame's bytes, as VerneMQ's encoder makes them.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from mqhooks.sources.sidecar.decode import TYPE_URL
from mqhooks.sources.sidecar.events import HOOKS


def encode(message: Message) -> bytes:
    """
    Encode one call of a hook. Fields that we don't know are kept.

    :param message: of one of the classes in :data:`mqhooks.sources.sidecar.events.HOOKS`.
    :returns: a serialised ``google.protobuf.Any``, without the length before it.
    """
    value = message.SerializeToString()
    return _HEADS[type(message)] + varint(len(value)) + value


def hook_of(frame: bytes) -> str:
    """
    Tell the hook of a frame without decoding its message.

    :returns: a key of :data:`mqhooks.sources.sidecar.events.HOOKS`, or ``""`` when it is none of them.
    """
    try:
        return _NAMES.get(AnyMessage.FromString(frame).type_url.rpartition("/")[2], "")
    except DecodeError:
        return ""


def varint(value: int) -> bytes:
    """Write a number of 0 or more as protobuf's wire format has it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _head(message: type[Message]) -> bytes:
    url = (TYPE_URL + message.DESCRIPTOR.full_name).encode()
    return b"\x0a" + varint(len(url)) + url + b"\x12"


_HEADS = {message: _head(message) for message in HOOKS.values()}
_NAMES = {message.DESCRIPTOR.full_name: hook for hook, message in HOOKS.items()}
