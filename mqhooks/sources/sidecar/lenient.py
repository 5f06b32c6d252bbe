"""
Parsing messages whose strings are not UTF-8, which protobuf refuses.

Erlang has no string type, so VerneMQ may send any bytes as a client id or a topic. On the wire ``string`` and ``bytes`` are
the same, so such a message is parsed once more, with a twin of its definition that has ``bytes`` for every ``string``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mqhooks.errors import MalformedFrame


def parse_lenient(message_class: type[Message], data: bytes | bytearray) -> Any:
    """
    Parse a message, replacing by U+FFFD what is not UTF-8 in its strings.

    :returns: an instance of ``message_class``.
    :raises mqhooks.errors.MalformedFrame: when more than the strings is wrong.
    """
    try:
        twin = _twin(message_class.DESCRIPTOR).FromString(data)
    except ProtobufError:
        raise MalformedFrame(f"not a {message_class.DESCRIPTOR.name}") from None
    message = message_class()
    _copy(twin, message)
    return message


def leave_out(message_class: type[Message], field: str, data: bytes) -> bytes:
    """
    Write a message again without one of its fields, which is not looked into, and without unknown ones.

    :raises mqhooks.errors.MalformedFrame: when it is not such a message.
    """
    try:
        message = _twin(message_class.DESCRIPTOR, field).FromString(data)
    except ProtobufError:
        raise MalformedFrame(f"not a {message_class.DESCRIPTOR.name}") from None
    message.DiscardUnknownFields()
    written: bytes = message.SerializeToString()
    return written


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


@cache
def _twin(descriptor: Descriptor, without: str = "") -> type[Any]:
    pool = DescriptorPool()
    _add(pool, descriptor.file, set(), without)
    return GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _add(pool: DescriptorPool, file: Any, added: set[str], without: str) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added, without)
    definition = FileDescriptorProto()
    file.CopyToProto(definition)
    for message in definition.message_type:
        _loosen(message)
        for field in [field for field in message.field if field.name == without]:
            message.field.remove(field)
    pool.AddSerializedFile(definition.SerializeToString())


def _loosen(message: DescriptorProto) -> None:
    # Without its option a map is the repeated entries that it is on the wire; the last of one key wins when they are copied.
    message.options.ClearField("map_entry")
    for field in message.field:
        if field.type == FieldDescriptorProto.TYPE_STRING:
            field.type = FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        _loosen(nested)
