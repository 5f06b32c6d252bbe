"""
Making twins of protobuf messages: classes that parse the same bytes by another definition.

Text, bytes, a nested message and an entry of a map look the same on the wire, and fields that a definition lacks are kept as
they are. So a twin can accept bytes that its original refuses, or skip a field that takes long to parse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mqhooks.errors import MalformedFrame

PROPERTIES = "user_properties"
"""The field of most messages that few clients fill."""


def lenient_twin(message_class: type[Message]) -> type[Any]:
    """Make a twin with bytes for text, so that it accepts what is not UTF-8, and repeated entries for maps."""
    return _twin(message_class.DESCRIPTOR, _loosen)


def summary_of(message_class: type[Message]) -> type[Any]:
    """
    Make a twin whose user properties are bytes: those of the last entry, and unset if there is no entry.

    Set, they may still be empty: encoders may leave out an empty key and an empty value.
    """
    return _twin(message_class.DESCRIPTOR, partial(_close, PROPERTIES))


def without(message_class: type[Message], field: str, data: bytes) -> bytes:
    """
    Remove every occurrence of a field from a message, without parsing what any field contains.

    :raises mqhooks.errors.MalformedFrame: when the bytes are not a protobuf message.
    """
    try:
        message = _only(message_class.DESCRIPTOR, field).FromString(data)
    except ProtobufError:
        raise MalformedFrame(f"not a {message_class.DESCRIPTOR.name}") from None
    message.ClearField(field)
    rest: bytes = message.SerializeToString()
    return rest


@cache
def _only(descriptor: Any, field: str) -> type[Any]:
    def keep(message: DescriptorProto) -> None:
        _close(field, message)
        for other in [other for other in message.field if other.name != field]:
            message.field.remove(other)

    return _twin(descriptor, keep)


def _close(name: str, message: DescriptorProto) -> None:
    for field in message.field:
        if field.name == name:
            field.type, field.label = FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.LABEL_OPTIONAL
            field.ClearField("type_name")
            # A field that proto3 calls optional is alone in a oneof.
            field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{name}")
    message.ClearField("nested_type")


def _loosen(message: DescriptorProto) -> None:
    # Without its option a map is a list of entries, as on the wire. When they are copied, the last of a key wins.
    message.options.ClearField("map_entry")
    for field in message.field:
        if field.type == FieldDescriptorProto.TYPE_STRING:
            field.type = FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        _loosen(nested)


@cache
def _twin(descriptor: Any, change: Callable[[DescriptorProto], object]) -> type[Any]:
    pool = DescriptorPool()
    _add(pool, descriptor.file, set(), change)
    return GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _add(pool: DescriptorPool, file: Any, added: set[str], change: Callable[[DescriptorProto], object]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added, change)
    definition = FileDescriptorProto()
    file.CopyToProto(definition)
    for message in definition.message_type:
        change(message)
    pool.AddSerializedFile(definition.SerializeToString())
