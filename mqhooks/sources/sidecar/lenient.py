"""
Parsing messages whose strings are not UTF-8, which protobuf refuses.

Erlang has no string type, so VerneMQ may send any bytes as a client id or a topic. Such a message is parsed again, with a twin
that has ``bytes`` for every ``string``.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from mqhooks.errors import MalformedFrame
from mqhooks.sources.sidecar.twins import lenient_twin


def parse_lenient(message_class: type[Message], data: bytes | bytearray) -> Any:
    """
    Parse a message, replacing bytes in its strings that are not UTF-8 with U+FFFD.

    :returns: an instance of ``message_class``.
    :raises mqhooks.errors.MalformedFrame: when more than its strings is wrong.
    """
    try:
        twin = lenient_twin(message_class).FromString(data)
    except ProtobufError:
        raise MalformedFrame(f"not a {message_class.DESCRIPTOR.name}") from None
    message = message_class()
    _copy(twin, message)
    return message


def _copy(source: Any, target: Any) -> None:
    for field, value in source.ListFields():
        wanted = target.DESCRIPTOR.fields_by_name[field.name]
        if field.message_type is None:
            if field.is_repeated:
                getattr(target, field.name).extend(_text(item, wanted) for item in value)
            else:
                setattr(target, field.name, _text(value, wanted))
        elif wanted.message_type.GetOptions().map_entry:
            entries = getattr(target, field.name)
            for entry in value:
                entries[_text(entry.key)] = _text(entry.value)
        elif field.is_repeated:
            for item in value:
                _copy(item, getattr(target, field.name).add())
        else:
            getattr(target, field.name).SetInParent()
            _copy(value, getattr(target, field.name))


def _text(value: Any, wanted: FieldDescriptor | None = None) -> Any:
    if wanted is None or wanted.type == FieldDescriptor.TYPE_STRING:
        return value.decode("utf-8", "replace")
    return value
