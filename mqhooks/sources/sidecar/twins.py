"""
Twins of protobuf messages: classes that parse the same bytes by another definition.

On the wire text, bytes, a nested message and an entry of a map look the same, and fields that a definition lacks are kept as
they are. So a twin can take in what its original refuses, or pass over what takes long.
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
"""The field that most messages of the hooks have and few clients fill."""


def lenient_twin(message_class: type[Message]) -> type[Any]:
    """Make a twin with bytes for text, which takes what is not UTF-8, and repeated entries for maps."""
    return _twin(message_class.DESCRIPTOR, _loosen)


def summary_of(message_class: type[Message]) -> type[Any]:
    """
    Make a twin whose user properties are bytes, which it has if there is an entry: those of the last one.

    They may be empty: encoders may leave out an empty key and an empty value.
    """
    return _twin(message_class.DESCRIPTOR, partial(_close, PROPERTIES))


def without(message_class: type[Message], field: str, data: bytes) -> bytes:
    """
    Take a field out of a message, however often it is in there. Neither it nor anything else is looked into.

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
            # What proto3 calls optional is alone in a oneof.
            field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{name}")
    message.ClearField("nested_type")


def _loosen(message: DescriptorProto) -> None:
    # Without its option a map is the repeated entries that it is on the wire; the last of one key wins when they are copied.
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
