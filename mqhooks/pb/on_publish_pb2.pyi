import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from mqhooks.pb import matched_acl_pb2 as _matched_acl_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnPublish(_message.Message):
    __slots__ = ("timestamp", "username", "client_id", "mountpoint", "qos", "topic", "payload", "retain", "matched_acl", "session_id", "user_properties")
    class UserPropertiesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    MOUNTPOINT_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RETAIN_FIELD_NUMBER: _ClassVar[int]
    MATCHED_ACL_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    timestamp: _timestamp_pb2.Timestamp
    username: str
    client_id: str
    mountpoint: str
    qos: int
    topic: str
    payload: bytes
    retain: bool
    matched_acl: _matched_acl_pb2.MatchedACL
    session_id: str
    user_properties: _containers.ScalarMap[str, str]
    def __init__(self, timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., username: _Optional[str] = ..., client_id: _Optional[str] = ..., mountpoint: _Optional[str] = ..., qos: _Optional[int] = ..., topic: _Optional[str] = ..., payload: _Optional[bytes] = ..., retain: bool = ..., matched_acl: _Optional[_Union[_matched_acl_pb2.MatchedACL, _Mapping]] = ..., session_id: _Optional[str] = ..., user_properties: _Optional[_Mapping[str, str]] = ...) -> None: ...
