"""
The hooks that VerneMQ's events sidecar reports, and the value that one of their calls becomes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from google.protobuf.message import Message

from mqhooks.pb.disconnect_reason_pb2 import Reason
from mqhooks.pb.on_client_gone_pb2 import OnClientGone
from mqhooks.pb.on_client_offline_pb2 import OnClientOffline
from mqhooks.pb.on_client_wakeup_pb2 import OnClientWakeUp
from mqhooks.pb.on_deliver_pb2 import OnDeliver
from mqhooks.pb.on_delivery_complete_pb2 import OnDeliveryComplete
from mqhooks.pb.on_message_drop_pb2 import OnMessageDrop
from mqhooks.pb.on_offline_message_pb2 import OnOfflineMessage
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.pb.on_register_failed_pb2 import OnRegisterFailed, RegistrationFailureReason
from mqhooks.pb.on_register_pb2 import OnRegister
from mqhooks.pb.on_session_expired_pb2 import OnSessionExpired
from mqhooks.pb.on_subscribe_pb2 import OnSubscribe
from mqhooks.pb.on_unsubscribe_pb2 import OnUnsubscribe

HOOKS: Mapping[str, type[Message]] = MappingProxyType(
    {
        "on_register": OnRegister,
        "on_register_failed": OnRegisterFailed,
        "on_publish": OnPublish,
        "on_subscribe": OnSubscribe,
        "on_unsubscribe": OnUnsubscribe,
        "on_deliver": OnDeliver,
        "on_delivery_complete": OnDeliveryComplete,
        "on_offline_message": OnOfflineMessage,
        "on_client_wakeup": OnClientWakeUp,
        "on_client_offline": OnClientOffline,
        "on_client_gone": OnClientGone,
        "on_session_expired": OnSessionExpired,
        "on_message_drop": OnMessageDrop,
    }
)
"""Each hook's message, by the hook's name."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """
    One call of one hook.

    :param hook: the hook's name, a key of :data:`HOOKS`.
    :param message: what VerneMQ sent, an instance of ``HOOKS[hook]``.
    :param timestamp: the time of the call in nanoseconds since 1970; negative before.
    :param mountpoint: ``""`` for the default one.
    :param client_id: the client that the event is about.
    :param username: ``""`` when neither the message nor the client's registration gives one.
    """

    hook: str
    message: Any
    timestamp: int
    mountpoint: str
    client_id: str
    username: str

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that the event carries: one for a message, any number for a subscription, else none."""
        message = self.message
        if self.hook == "on_subscribe":
            return tuple(info.topic for info in message.topics)
        if self.hook == "on_unsubscribe":
            return tuple(message.topics)
        topic = getattr(message, "topic", None)
        return () if topic is None else (topic,)

    def fields(self) -> Iterator[tuple[str, Any]]:
        """
        Every field of the message in VerneMQ's own words, in the order of their numbers.

        :returns: pairs of the proto file's name and a value: the timestamp in milliseconds, enums by :func:`reason_name` or
            :func:`failure_name`, a payload as bytes, other values as JSON has them. User properties are sorted by key.
        """
        message = self.message
        for field in message.DESCRIPTOR.fields:
            name = field.name
            value: Any
            if name == "timestamp":
                value = self.timestamp // 1_000_000
            elif name == "username":
                value = self.username
            elif name == "topics" and self.hook == "on_subscribe":
                value = [
                    {"topic": info.topic, "qos": info.qos, "matched_acl": _acl(info.matched_acl)} for info in message.topics
                ]
            elif name == "topics":
                value = list(message.topics)
            elif name == "matched_acl":
                value = _acl(message.matched_acl)
            elif name == "user_properties":
                value = dict(sorted(message.user_properties.items()))
            elif name == "reason" and field.enum_type is not None:
                value = failure_name(message.reason) if self.hook == "on_register_failed" else reason_name(message.reason)
            else:
                value = getattr(message, name)
            yield name, value


def reason_name(number: int) -> str:
    """
    Name a disconnect reason as VerneMQ does.

    :returns: the enum's name without ``REASON_`` in lower case; ``reason_99`` for a number outside the enum.
    """
    return _REASONS.get(number) or f"reason_{number}"


def failure_name(number: int) -> str:
    """
    Name the reason of a refused registration, as :func:`reason_name` does for a disconnect.
    """
    return _FAILURES.get(number) or f"reason_{number}"


def _names(values: Mapping[str, int], prefix: str) -> dict[int, str]:
    return {number: name.removeprefix(prefix).lower() for name, number in values.items()}


_REASONS = _names(dict(Reason.items()), "REASON_")
_FAILURES = _names(dict(RegistrationFailureReason.items()), "REGISTRATION_REASON_")


def _acl(acl: Any) -> dict[str, str]:
    return {"name": acl.name, "pattern": acl.pattern}
