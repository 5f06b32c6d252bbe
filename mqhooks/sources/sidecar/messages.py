"""
Turning each hook's protobuf message into an event.

Reading a field of a protobuf message costs as much as everything that Python does around it. So each field is read only once,
and each hook has its own function, which builds the value from positional arguments. These functions don't read user
properties: most messages have none, and an empty map costs more than any other field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from google.protobuf.message import Message as ProtobufMessage

from mqhooks.events import (
    NO_PROPERTIES,
    ClientGone,
    ClientOffline,
    ClientWakeUp,
    Deliver,
    DeliveryComplete,
    Event,
    MatchedACL,
    MessageDrop,
    OfflineMessage,
    Publish,
    Register,
    RegisterFailed,
    SessionExpired,
    Subscribe,
    TopicInfo,
    Unsubscribe,
    UserProperties,
)
from mqhooks.pb.on_client_gone_pb2 import OnClientGone
from mqhooks.pb.on_client_offline_pb2 import OnClientOffline
from mqhooks.pb.on_client_wakeup_pb2 import OnClientWakeUp
from mqhooks.pb.on_deliver_pb2 import OnDeliver
from mqhooks.pb.on_delivery_complete_pb2 import OnDeliveryComplete
from mqhooks.pb.on_message_drop_pb2 import OnMessageDrop
from mqhooks.pb.on_offline_message_pb2 import OnOfflineMessage
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.pb.on_register_failed_pb2 import OnRegisterFailed
from mqhooks.pb.on_register_pb2 import OnRegister
from mqhooks.pb.on_session_expired_pb2 import OnSessionExpired
from mqhooks.pb.on_subscribe_pb2 import OnSubscribe
from mqhooks.pb.on_unsubscribe_pb2 import OnUnsubscribe


class MessageType(NamedTuple):
    """
    One hook's message on the wire.

    :param hook: a key of :data:`mqhooks.events.HOOKS`.
    :param protobuf: the generated class.
    :param read: turns a parsed message, its timestamp in nanoseconds, and its user properties, if there are any, into an event.
    """

    hook: str
    protobuf: type[ProtobufMessage]
    read: Callable[..., Event]


def _register(message: Any, time: int, properties: UserProperties = NO_PROPERTIES) -> Event:
    mountpoint, client, user = message.mountpoint, message.client_id, message.username
    register = Register(
        time,
        message.peer_addr,
        message.peer_port,
        user,
        mountpoint,
        client,
        properties,
        message.session_id,
    )
    return Event("on_register", register, time, mountpoint, client, user)


def _register_failed(message: Any, time: int) -> Event:
    mountpoint, client, user = message.mountpoint, message.client_id, message.username
    failed = RegisterFailed(
        time, mountpoint, client, message.peer_addr, message.peer_port, user, message.clean_session, message.reason
    )
    return Event("on_register_failed", failed, time, mountpoint, client, user)


def _publish(message: Any, time: int, properties: UserProperties = NO_PROPERTIES) -> Event:
    mountpoint, client, user, acl = message.mountpoint, message.client_id, message.username, message.matched_acl
    publish = Publish(
        time,
        user,
        client,
        mountpoint,
        message.qos,
        message.topic,
        message.payload,
        message.retain,
        MatchedACL(acl.name, acl.pattern),
        message.session_id,
        properties,
    )
    return Event("on_publish", publish, time, mountpoint, client, user)


def _subscribe(message: Any, time: int, properties: UserProperties = NO_PROPERTIES) -> Event:
    mountpoint, client, user = message.mountpoint, message.client_id, message.username
    topics = []
    for info in message.topics:
        acl = info.matched_acl
        topics.append(TopicInfo(info.topic, info.qos, MatchedACL(acl.name, acl.pattern)))
    subscribe = Subscribe(time, client, mountpoint, user, tuple(topics), message.session_id, properties)
    return Event("on_subscribe", subscribe, time, mountpoint, client, user)


def _unsubscribe(message: Any, time: int, properties: UserProperties = NO_PROPERTIES) -> Event:
    mountpoint, client, user = message.mountpoint, message.client_id, message.username
    unsubscribe = Unsubscribe(time, user, client, mountpoint, tuple(message.topics), message.session_id, properties)
    return Event("on_unsubscribe", unsubscribe, time, mountpoint, client, user)


def _to_subscriber(hook: str, values: Callable[..., Any]) -> Callable[..., Event]:
    def read(message: Any, time: int, properties: UserProperties = NO_PROPERTIES) -> Event:
        mountpoint, client, user, acl = message.mountpoint, message.client_id, message.username, message.matched_acl
        delivered = values(
            time,
            user,
            client,
            mountpoint,
            message.topic,
            message.qos,
            message.is_retain,
            message.payload,
            MatchedACL(acl.name, acl.pattern),
            message.persisted,
            message.session_id,
            properties,
        )
        return Event(hook, delivered, time, mountpoint, client, user)

    return read


def _offline_message(message: Any, time: int) -> Event:
    mountpoint, client = message.mountpoint, message.client_id
    offline = OfflineMessage(
        time, client, mountpoint, message.qos, message.topic, message.payload, message.retain, message.session_id
    )
    return Event("on_offline_message", offline, time, mountpoint, client, "")


def _client_wakeup(message: Any, time: int) -> Event:
    mountpoint, client = message.mountpoint, message.client_id
    return Event("on_client_wakeup", ClientWakeUp(time, client, mountpoint, message.session_id), time, mountpoint, client, "")


def _client_offline(message: Any, time: int) -> Event:
    mountpoint, client, user = message.mountpoint, message.client_id, message.username
    offline = ClientOffline(time, client, mountpoint, message.reason, user, message.session_id)
    return Event("on_client_offline", offline, time, mountpoint, client, user)


def _client_gone(message: Any, time: int) -> Event:
    mountpoint, client, user = message.mountpoint, message.client_id, message.username
    gone = ClientGone(time, client, mountpoint, message.reason, user, message.session_id)
    return Event("on_client_gone", gone, time, mountpoint, client, user)


def _session_expired(message: Any, time: int) -> Event:
    mountpoint, client = message.mountpoint, message.client_id
    expired = SessionExpired(time, client, mountpoint, message.session_id)
    return Event("on_session_expired", expired, time, mountpoint, client, "")


def _message_drop(message: Any, time: int) -> Event:
    mountpoint, client, acl = message.mountpoint, message.client_id, message.matched_acl
    drop = MessageDrop(
        time,
        client,
        mountpoint,
        message.qos,
        message.topic,
        message.payload,
        message.reason,
        MatchedACL(acl.name, acl.pattern),
        message.session_id,
    )
    return Event("on_message_drop", drop, time, mountpoint, client, "")


MESSAGES: Mapping[str, MessageType] = MappingProxyType(
    {
        message.hook: message
        for message in (
            MessageType("on_register", OnRegister, _register),
            MessageType("on_register_failed", OnRegisterFailed, _register_failed),
            MessageType("on_publish", OnPublish, _publish),
            MessageType("on_subscribe", OnSubscribe, _subscribe),
            MessageType("on_unsubscribe", OnUnsubscribe, _unsubscribe),
            MessageType("on_deliver", OnDeliver, _to_subscriber("on_deliver", Deliver)),
            MessageType("on_delivery_complete", OnDeliveryComplete, _to_subscriber("on_delivery_complete", DeliveryComplete)),
            MessageType("on_offline_message", OnOfflineMessage, _offline_message),
            MessageType("on_client_wakeup", OnClientWakeUp, _client_wakeup),
            MessageType("on_client_offline", OnClientOffline, _client_offline),
            MessageType("on_client_gone", OnClientGone, _client_gone),
            MessageType("on_session_expired", OnSessionExpired, _session_expired),
            MessageType("on_message_drop", OnMessageDrop, _message_drop),
        )
    }
)
"""Each hook's message, by the hook's name."""
