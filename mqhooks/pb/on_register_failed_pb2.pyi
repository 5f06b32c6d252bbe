import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegistrationFailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REGISTRATION_REASON_UNSPECIFIED: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_NO_MATCHING_HOOK_FOUND: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_INVALID_CREDENTIALS: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_NOT_AUTHORIZED: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_STALE_REQUEST: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_INVALID_SIGNATURE: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_USERNAME_RID_MISMATCH: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_MISSING_RID: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_RATE_LIMIT_EXCEEDED: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_WILL_NOT_AUTHORIZED: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_REGISTRATION_RETRY_EXHAUSTED: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_REGISTRATION_SYNC_FAILED: _ClassVar[RegistrationFailureReason]
    REGISTRATION_REASON_STATE_STORE_ERROR: _ClassVar[RegistrationFailureReason]
REGISTRATION_REASON_UNSPECIFIED: RegistrationFailureReason
REGISTRATION_REASON_NO_MATCHING_HOOK_FOUND: RegistrationFailureReason
REGISTRATION_REASON_INVALID_CREDENTIALS: RegistrationFailureReason
REGISTRATION_REASON_NOT_AUTHORIZED: RegistrationFailureReason
REGISTRATION_REASON_STALE_REQUEST: RegistrationFailureReason
REGISTRATION_REASON_INVALID_SIGNATURE: RegistrationFailureReason
REGISTRATION_REASON_USERNAME_RID_MISMATCH: RegistrationFailureReason
REGISTRATION_REASON_MISSING_RID: RegistrationFailureReason
REGISTRATION_REASON_RATE_LIMIT_EXCEEDED: RegistrationFailureReason
REGISTRATION_REASON_WILL_NOT_AUTHORIZED: RegistrationFailureReason
REGISTRATION_REASON_REGISTRATION_RETRY_EXHAUSTED: RegistrationFailureReason
REGISTRATION_REASON_REGISTRATION_SYNC_FAILED: RegistrationFailureReason
REGISTRATION_REASON_STATE_STORE_ERROR: RegistrationFailureReason

class OnRegisterFailed(_message.Message):
    __slots__ = ("timestamp", "mountpoint", "client_id", "peer_addr", "peer_port", "username", "clean_session", "reason")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    MOUNTPOINT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDR_FIELD_NUMBER: _ClassVar[int]
    PEER_PORT_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    CLEAN_SESSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    timestamp: _timestamp_pb2.Timestamp
    mountpoint: str
    client_id: str
    peer_addr: str
    peer_port: int
    username: str
    clean_session: bool
    reason: RegistrationFailureReason
    def __init__(self, timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., mountpoint: _Optional[str] = ..., client_id: _Optional[str] = ..., peer_addr: _Optional[str] = ..., peer_port: _Optional[int] = ..., username: _Optional[str] = ..., clean_session: bool = ..., reason: _Optional[_Union[RegistrationFailureReason, str]] = ...) -> None: ...
