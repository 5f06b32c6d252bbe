"""
Encoding an event's message into a frame, as VerneMQ does: for captures, the simulator and tests.

Only what decoding keeps is encoded, so that a capture replays as the same events.
"""

from __future__ import annotations

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from mqhooks.events import HOOKS, Message
from mqhooks.sources.sidecar.decode import TYPE_URL
from mqhooks.sources.sidecar.messages import MESSAGES


def encode(message: Message) -> bytes:
    """
    Encode one call of a hook.

    As in VerneMQ's frames, the timestamp and a matched ACL are always there, even when they are empty. What an event does not
    hold is lost: unknown fields, the order of user properties, and all but the last of those with the same key.

    :param message: of one of the classes in :data:`mqhooks.events.HOOKS`.
    :returns: a serialised ``google.protobuf.Any``, without the length before it.
    """
    head, protobuf = _ENCODERS[type(message)]
    values = msgspec.to_builtins(message, builtin_types=(bytes,))
    # Erlang's division truncates: before 1970 both parts are negative.
    seconds, nanos = divmod(abs(message.timestamp), 1_000_000_000)
    sign = -1 if message.timestamp < 0 else 1
    values["timestamp"] = {"seconds": sign * seconds, "nanos": sign * nanos}
    value = protobuf(**values).SerializeToString(deterministic=True)
    return head + varint(len(value)) + value


def hook_of(frame: bytes) -> str:
    """
    Return the name of a frame's hook without decoding its message.

    :returns: a key of :data:`mqhooks.events.HOOKS`, or ``""`` for anything else.
    """
    try:
        return _NAMES.get(AnyMessage.FromString(frame).type_url.rpartition("/")[2], "")
    except DecodeError:
        return ""


def varint(value: int) -> bytes:
    """Encode a number of 0 or more as a varint of protobuf's wire format."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _head(name: str) -> bytes:
    url = (TYPE_URL + name).encode()
    return b"\x0a" + varint(len(url)) + url + b"\x12"


_ENCODERS = {HOOKS[hook]: (_head(protobuf.DESCRIPTOR.full_name), protobuf) for hook, protobuf, _ in MESSAGES.values()}
_NAMES = {protobuf.DESCRIPTOR.full_name: hook for hook, protobuf, _ in MESSAGES.values()}
