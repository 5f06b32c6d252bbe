"""
Events: the reports of VerneMQ's hooks, as plain values.

Every source makes these, and every sink receives them. They know nothing of a wire format; decoding is the source's business.
The messages have VerneMQ's fields in the order of their numbers and with protobuf's defaults, so an absent field is the empty
string, 0 or ``False``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec


class Properties(dict[str, Any]):
    """Properties of MQTT 5. Like the rest of an event they are immutable and hashable."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)

    def _refuse(self, *_args: Any, **_values: Any) -> NoReturn:
        raise TypeError("the properties of an event cannot be changed: make a dict of them")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse


class UserProperties(Properties):
    """User properties of MQTT 5: all of them are text."""


NO_PROPERTIES = UserProperties()
"""The properties of an event that came without user properties."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """Base class of every hook's message. The timestamp is in nanoseconds since 1970, negative before."""

    timestamp: int = 0


class MatchedACL(msgspec.Struct, frozen=True, gc=False):
    """The ACL that allowed a topic; name and pattern are empty when VerneMQ names none."""

    name: str = ""
    pattern: str = ""


class TopicInfo(msgspec.Struct, frozen=True, gc=False):
    """One topic of a subscription; ``qos`` is 128 when it was refused."""

    topic: str = ""
    qos: int = 0
    matched_acl: MatchedACL = MatchedACL()


class SubscriptionOptions(msgspec.Struct, frozen=True, gc=False):
    """An MQTT 5 client's options for a topic besides its QoS, by VerneMQ's names; ``rap`` is *retain as published*."""

    no_local: bool = False
    rap: bool = False
    retain_handling: str = ""


class Register(Message, frozen=True, gc=False):
    """A client has connected."""

    peer_addr: str = ""
    peer_port: int = 0
    username: str = ""
    mountpoint: str = ""
    client_id: str = ""
    user_properties: dict[str, str] = NO_PROPERTIES
    session_id: str = ""


class RegisterFailed(Message, frozen=True, gc=False):
    """A client was refused; :func:`failure_name` names the reason."""

    mountpoint: str = ""
    client_id: str = ""
    peer_addr: str = ""
    peer_port: int = 0
    username: str = ""
    clean_session: bool = False
    reason: int = 0


class Publish(Message, frozen=True, gc=False):
    """A client has published a message."""

    username: str = ""
    client_id: str = ""
    mountpoint: str = ""
    qos: int = 0
    topic: str = ""
    payload: bytes = b""
    retain: bool = False
    matched_acl: MatchedACL = MatchedACL()
    session_id: str = ""
    user_properties: dict[str, str] = NO_PROPERTIES


class Subscribe(Message, frozen=True, gc=False):
    """A client has subscribed to topics."""

    client_id: str = ""
    mountpoint: str = ""
    username: str = ""
    topics: tuple[TopicInfo, ...] = ()
    session_id: str = ""
    user_properties: dict[str, str] = NO_PROPERTIES


class Unsubscribe(Message, frozen=True, gc=False):
    """A client has unsubscribed from topics."""

    username: str = ""
    client_id: str = ""
    mountpoint: str = ""
    topics: tuple[str, ...] = ()
    session_id: str = ""
    user_properties: dict[str, str] = NO_PROPERTIES


class _ToSubscriber(Message, frozen=True, gc=False):
    username: str = ""
    client_id: str = ""
    mountpoint: str = ""
    topic: str = ""
    qos: int = 0
    is_retain: bool = False
    payload: bytes = b""
    matched_acl: MatchedACL = MatchedACL()
    persisted: bool = False
    session_id: str = ""
    user_properties: dict[str, str] = NO_PROPERTIES


class Deliver(_ToSubscriber, frozen=True, gc=False):
    """A message was sent to a client."""


class DeliveryComplete(_ToSubscriber, frozen=True, gc=False):
    """A client has acknowledged a message."""


class OfflineMessage(Message, frozen=True, gc=False):
    """A message was queued for a client that is offline."""

    client_id: str = ""
    mountpoint: str = ""
    qos: int = 0
    topic: str = ""
    payload: bytes = b""
    retain: bool = False
    session_id: str = ""


class ClientWakeUp(Message, frozen=True, gc=False):
    """A client has resumed its session."""

    client_id: str = ""
    mountpoint: str = ""
    session_id: str = ""


class _Disconnect(Message, frozen=True, gc=False):
    client_id: str = ""
    mountpoint: str = ""
    reason: int = 0
    username: str = ""
    session_id: str = ""


class ClientOffline(_Disconnect, frozen=True, gc=False):
    """A client has disconnected and its session remains; :func:`reason_name` names the reason."""


class ClientGone(_Disconnect, frozen=True, gc=False):
    """A client has disconnected, which ended its session; :func:`reason_name` names the reason."""


class SessionExpired(Message, frozen=True, gc=False):
    """The session of a client that stayed away has ended."""

    client_id: str = ""
    mountpoint: str = ""
    session_id: str = ""


class MessageDrop(Message, frozen=True, gc=False):
    """A message for a client was dropped; ``reason`` is VerneMQ's own word."""

    client_id: str = ""
    mountpoint: str = ""
    qos: int = 0
    topic: str = ""
    payload: bytes = b""
    reason: str = ""
    matched_acl: MatchedACL = MatchedACL()
    session_id: str = ""


HOOKS: Mapping[str, type[Message]] = MappingProxyType(
    {
        "on_register": Register,
        "on_register_failed": RegisterFailed,
        "on_publish": Publish,
        "on_subscribe": Subscribe,
        "on_unsubscribe": Unsubscribe,
        "on_deliver": Deliver,
        "on_delivery_complete": DeliveryComplete,
        "on_offline_message": OfflineMessage,
        "on_client_wakeup": ClientWakeUp,
        "on_client_offline": ClientOffline,
        "on_client_gone": ClientGone,
        "on_session_expired": SessionExpired,
        "on_message_drop": MessageDrop,
    }
)
"""Each hook's message, by the hook's name."""

M5_HOOKS = tuple(hook for hook, message in HOOKS.items() if "user_properties" in message.__struct_fields__)
"""
The hooks that newer versions of VerneMQ's fork also have for clients of MQTT 5, with ``_m5`` after the name. Their messages are
the same, with user properties.
"""

REASONS = (
    "unspecified",
    "not_authorized",
    "normal_disconnect",
    "session_taken_over",
    "administrative_action",
    "disconnect_keep_alive",
    "disconnect_migration",
    "bad_authentication_method",
    "remote_session_taken_over",
    "mqtt_client_disconnect",
    "receive_max_exceeded",
    "protocol_error",
    "publish_auth_error",
    "invalid_pubrec_error",
    "invalid_pubcomp_error",
    "unexpected_frame_type",
    "exit_signal_received",
    "tcp_closed",
)
"""Why a client disconnected, by number: VerneMQ's ``Reason`` without ``REASON_``."""

FAILURES = (
    "unspecified",
    "no_matching_hook_found",
    "invalid_credentials",
    "not_authorized",
    "stale_request",
    "invalid_signature",
    "username_rid_mismatch",
    "missing_rid",
    "rate_limit_exceeded",
    "will_not_authorized",
    "registration_retry_exhausted",
    "registration_sync_failed",
    "state_store_error",
)
"""Why a registration was refused, by number: VerneMQ's ``RegistrationFailureReason`` without ``REASON_``."""


class Registration(msgspec.Struct, frozen=True, gc=False):
    """
    A client's registration, as remembered when its connection ends.

    :param timestamp: when it registered, in nanoseconds since 1970.
    :param peer_addr: the client's address.
    :param peer_port: the client's port.
    """

    timestamp: int
    peer_addr: str
    peer_port: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """
    One call of one hook.

    :param hook: the hook's name, a key of :data:`HOOKS`.
    :param message: VerneMQ's message, an instance of ``HOOKS[hook]``.
    :param timestamp: the time of the call in nanoseconds since 1970; negative before.
    :param mountpoint: ``""`` for the default one.
    :param client_id: the client that the event is about.
    :param username: ``""`` when neither the message nor the client's registration names one.
    :param window: whether it waits in the merge window, because its source may mix up the order.
    :param mqtt5: whether its source says that the client speaks MQTT 5.
    :param properties: properties of MQTT 5 other than the user properties, by VerneMQ's names; ``None`` when there are none.
    :param registration: for the end of a connection, its registration, if a rule needs it and it is known.
    :param options: for a subscription, the options of each of its topics, if its source has them; ``None`` for a topic without.
    """

    hook: str
    message: Any
    timestamp: int
    mountpoint: str
    client_id: str
    username: str
    window: bool = True
    mqtt5: bool = False
    properties: Properties | None = None
    registration: Registration | None = None
    options: tuple[SubscriptionOptions | None, ...] = ()

    @property
    def topics(self) -> tuple[str, ...]:
        """The event's topics: one for a message, any number for a subscription, otherwise none."""
        message = self.message
        if isinstance(message, Subscribe):
            return tuple(info.topic for info in message.topics)
        if isinstance(message, Unsubscribe):
            return message.topics
        topic = getattr(message, "topic", None)
        return () if topic is None else (topic,)

    def fields(self) -> Iterator[tuple[str, Any]]:
        """
        List every field of the message in VerneMQ's own words, in the order of their numbers.

        :returns: pairs of the proto file's name and a value: the timestamp in milliseconds, enums by :func:`reason_name` or
            :func:`failure_name`, a payload as bytes, other values as in JSON. User properties are sorted by key.
        """
        message = self.message
        for name in message.__struct_fields__:
            value = getattr(message, name)
            if name == "timestamp":
                value = self.timestamp // 1_000_000
            elif name == "username":
                value = self.username
            elif name in ("topics", "matched_acl"):
                value = msgspec.to_builtins(value)
            elif name == "user_properties":
                value = dict(sorted(value.items()))
            elif name == "reason" and not isinstance(value, str):
                value = failure_name(value) if self.hook == "on_register_failed" else reason_name(value)
            yield name, value


def reason_name(number: int) -> str:
    """
    Name a disconnect reason as VerneMQ does.

    :returns: the enum's name without ``REASON_`` in lower case; ``reason_99`` for a number outside the enum.
    """
    return _name(REASONS, number)


def failure_name(number: int) -> str:
    """Name the reason of a refused registration, as :func:`reason_name` does for a disconnect."""
    return _name(FAILURES, number)


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"reason_{number}"
