"""
A model of MQTT sessions that generates the calls of VerneMQ's hooks without a broker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import accumulate
from random import Random
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

from mqhooks.events import (
    FAILURES,
    NO_PROPERTIES,
    REASONS,
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

Generation = Literal[2024, 2026]

DEFAULT_MIX: Mapping[str, float] = MappingProxyType(
    {
        "on_register": 3,
        "on_register_failed": 1,
        "on_publish": 40,
        "on_subscribe": 4,
        "on_unsubscribe": 2,
        "on_deliver": 30,
        "on_delivery_complete": 10,
        "on_offline_message": 3,
        "on_client_wakeup": 1,
        "on_client_offline": 2,
        "on_client_gone": 2,
        "on_session_expired": 1,
        "on_message_drop": 1,
    }
)
"""The default weight of each hook: a fleet that mostly publishes and receives."""

IN_FLIGHT = 20
"""The most unacknowledged deliveries of a client; further ones have QoS 0."""


class State(Enum):
    """The state of a client's session."""

    ABSENT = "absent"
    ONLINE = "online"
    OFFLINE = "offline"


class SessionModel:
    """
    Generates the events of a fleet of clients, without end.

    It picks a hook by its weight and a client at random. When the hook cannot happen to the client yet, the hooks that it
    requires happen first: a register before a publish, a subscribe before a delivery. So these occur even without a weight.

    Timestamps increase strictly. A payload is JSON padded with spaces: the client, ``seq`` (the number of the payload among the
    client's, from 1) and ``n`` (its number among all, from 1).

    :param random: the only source of variation: the same state gives the same events.
    :param now: returns the time of day, in nanoseconds since 1970.
    :param clients: number of clients.
    :param mix: weights by hook.
    :param payload_size: in bytes; a payload is longer where its JSON requires it.
    :param generation: year of VerneMQ's encoder. That of 2024 has no session ids, no username when a client leaves, and user
        properties only of registrations. For ``on_register_failed`` it sends an empty frame: the event's message is ``None``.
    """

    def __init__(
        self,
        random: Random,
        now: Callable[[], int],
        *,
        clients: int = 1000,
        mix: Mapping[str, float] = DEFAULT_MIX,
        payload_size: int = 100,
        generation: Generation = 2026,
    ) -> None:
        self._random = random
        self._now = now
        self._size = clients
        self._clients: dict[int, _Client] = {}
        self._hooks = list(mix)
        self._weights = list(accumulate(mix.values()))
        self._payload_size = payload_size
        self._old = generation == 2024
        self._aim: tuple[str, _Client] | None = None
        self._timestamp = 0
        self._payloads = 0
        self._makers: dict[str, Callable[[_Client, int, str], Any]] = {
            "on_register": self._register,
            "on_register_failed": self._fail,
            "on_publish": self._publish,
            "on_subscribe": self._subscribe,
            "on_unsubscribe": self._unsubscribe,
            "on_deliver": self._deliver,
            "on_delivery_complete": self._acknowledge,
            "on_offline_message": self._offline_message,
            "on_client_wakeup": self._wake_up,
            "on_client_offline": self._go_offline,
            "on_client_gone": self._go,
            "on_session_expired": self._expire,
            "on_message_drop": self._drop,
        }

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        aim, client = self._aim or self._choose()
        hook = _next_step(client, aim)
        self._aim = None if hook == aim else (aim, client)
        self._timestamp = timestamp = max(self._now(), self._timestamp + 1)
        message = self._makers[hook](client, timestamp, aim)
        return Event(hook, message, timestamp, "", client.id, getattr(message, "username", ""))

    def _choose(self) -> tuple[str, _Client]:
        hook = self._random.choices(self._hooks, cum_weights=self._weights)[0]
        index = int(self._random.random() * self._size)
        client = self._clients.get(index)
        if client is None:
            client = self._clients[index] = _Client(index)
            if self._old:
                client.marks = NO_PROPERTIES
        return hook, client

    def _payload(self, client: _Client) -> bytes:
        client.payloads += 1
        self._payloads += 1
        text = f'{{"client":"{client.id}","seq":{client.payloads},"n":{self._payloads}}}'
        return text.encode().ljust(self._payload_size)

    def _register(self, client: _Client, timestamp: int, aim: str) -> Register:
        resumable = client.state is State.OFFLINE
        clean = _CLEAN.get(aim)
        client.clean = clean if clean is not None else not resumable and self._random.random() < 0.5
        client.asleep = resumable and not client.clean
        if not client.asleep:
            client.subscriptions.clear()
        client.state = State.ONLINE
        client.session = "" if self._old else str(UUID(int=self._random.getrandbits(128), version=4))
        return Register(
            timestamp=timestamp,
            peer_addr=client.address,
            peer_port=self._port(),
            username=client.username,
            client_id=client.id,
            user_properties=client.properties,
            session_id=client.session,
        )

    def _fail(self, client: _Client, timestamp: int, _aim: str) -> RegisterFailed | None:
        if self._old:
            return None
        return RegisterFailed(
            timestamp=timestamp,
            client_id=client.id,
            peer_addr=client.address,
            peer_port=self._port(),
            username=client.username,
            clean_session=self._random.random() < 0.5,
            reason=self._random.choice(_FAILURES),
        )

    def _publish(self, client: _Client, timestamp: int, _aim: str) -> Publish:
        return Publish(
            timestamp=timestamp,
            username=client.username,
            client_id=client.id,
            qos=int(self._random.random() * 3),
            topic=client.topic,
            payload=self._payload(client),
            retain=self._random.random() < 0.1,
            matched_acl=_PUBLISH_ACL,
            session_id=client.session,
            user_properties=client.marks,
        )

    def _subscribe(self, client: _Client, timestamp: int, _aim: str) -> Subscribe:
        available = client.filters
        granted = self._random.sample(list(available), self._random.randint(1, len(available)))
        topics = []
        for name in granted:
            qos = int(self._random.random() * 3)
            client.subscriptions[name] = (available[name], qos)
            topics.append(TopicInfo(topic=name, qos=qos, matched_acl=_SUBSCRIBE_ACL))
        if self._random.random() < 0.1:
            topics.append(TopicInfo(topic="$SYS/#", qos=128, matched_acl=_NO_ACL))
        return Subscribe(
            timestamp=timestamp,
            client_id=client.id,
            username=client.username,
            topics=tuple(topics),
            session_id=client.session,
            user_properties=client.marks,
        )

    def _unsubscribe(self, client: _Client, timestamp: int, _aim: str) -> Unsubscribe:
        name = self._random.choice(list(client.subscriptions))
        del client.subscriptions[name]
        return Unsubscribe(
            timestamp=timestamp,
            username=client.username,
            client_id=client.id,
            topics=(name,),
            session_id=client.session,
            user_properties=client.marks,
        )

    def _deliver(self, client: _Client, timestamp: int, aim: str) -> Deliver:
        topic, qos = self._message(client)
        if aim == "on_delivery_complete":
            qos = max(qos, 1)
        elif len(client.unacknowledged) >= IN_FLIGHT:
            qos = 0
        if qos:
            client.unacknowledged.append((topic, qos))
        return Deliver(
            timestamp=timestamp,
            username=client.username,
            client_id=client.id,
            topic=topic,
            qos=qos,
            payload=self._payload(client),
            matched_acl=_SUBSCRIBE_ACL,
            persisted=not client.clean,
            session_id=client.session,
            user_properties=client.marks,
        )

    def _acknowledge(self, client: _Client, timestamp: int, _aim: str) -> DeliveryComplete:
        topic, qos = client.unacknowledged.popleft()
        return DeliveryComplete(
            timestamp=timestamp,
            username=client.username,
            client_id=client.id,
            topic=topic,
            qos=qos,
            payload=self._payload(client),
            matched_acl=_SUBSCRIBE_ACL,
            persisted=not client.clean,
            session_id=client.session,
            user_properties=client.marks,
        )

    def _offline_message(self, client: _Client, timestamp: int, _aim: str) -> OfflineMessage:
        topic, qos = self._message(client)
        return OfflineMessage(
            timestamp=timestamp,
            client_id=client.id,
            qos=qos,
            topic=topic,
            payload=self._payload(client),
            session_id=client.session,
        )

    def _drop(self, client: _Client, timestamp: int, _aim: str) -> MessageDrop:
        topic, qos = self._message(client)
        reasons = _DROPS_OFFLINE if client.state is State.OFFLINE else _DROPS
        return MessageDrop(
            timestamp=timestamp,
            client_id=client.id,
            qos=qos,
            topic=topic,
            payload=self._payload(client),
            reason=self._random.choice(reasons),
            matched_acl=_DROP_ACL,
            session_id=client.session,
        )

    def _wake_up(self, client: _Client, timestamp: int, _aim: str) -> ClientWakeUp:
        client.asleep = False
        return ClientWakeUp(timestamp=timestamp, client_id=client.id, session_id=client.session)

    def _go_offline(self, client: _Client, timestamp: int, _aim: str) -> ClientOffline:
        client.state = State.OFFLINE
        client.unacknowledged.clear()
        return ClientOffline(
            timestamp=timestamp,
            client_id=client.id,
            reason=self._random.choice(_REASONS),
            username="" if self._old else client.username,
            session_id=client.session,
        )

    def _go(self, client: _Client, timestamp: int, _aim: str) -> ClientGone:
        client.end()
        return ClientGone(
            timestamp=timestamp,
            client_id=client.id,
            reason=self._random.choice(_REASONS),
            username="" if self._old else client.username,
            session_id=client.session,
        )

    def _expire(self, client: _Client, timestamp: int, _aim: str) -> SessionExpired:
        client.end()
        return SessionExpired(timestamp=timestamp, client_id=client.id, session_id=client.session)

    def _message(self, client: _Client) -> tuple[str, int]:
        return self._random.choice(list(client.subscriptions.values()))

    def _port(self) -> int:
        return 32768 + int(self._random.random() * 28232)


class _Client:
    """
    An MQTT client and its session.

    :param index: its number from 0, which determines all of its constant attributes.
    """

    __slots__ = (
        "address",
        "asleep",
        "clean",
        "filters",
        "id",
        "marks",
        "payloads",
        "properties",
        "session",
        "state",
        "subscriptions",
        "topic",
        "unacknowledged",
        "username",
    )

    def __init__(self, index: int) -> None:
        self.id = name = f"device-{index:06d}"
        self.username = "" if index % 10 == 9 else f"user-{index:06d}"
        self.address = f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}"
        # A quarter speaks MQTT 5 and registers with user properties; half of these also send them later.
        self.properties = self.marks = NO_PROPERTIES
        if index % 4 == 1:
            self.properties = UserProperties({"firmware": f"1.{index % 7}", "site": f"site-{index % 5}"})
        if index % 8 == 1:
            self.marks = UserProperties({"trace": f"t-{index}"})
        self.topic = f"devices/{name}/telemetry"
        commands = f"devices/{name}/commands"
        self.filters = {commands: commands, "fleet/+/alerts": "fleet/north/alerts", "news/#": "news/today"}
        self.state = State.ABSENT
        self.clean = True
        self.asleep = False
        self.session = ""
        self.subscriptions: dict[str, tuple[str, int]] = {}
        self.unacknowledged: deque[tuple[str, int]] = deque()
        self.payloads = 0

    def end(self) -> None:
        """Forget the session."""
        self.state = State.ABSENT
        self.subscriptions.clear()
        self.unacknowledged.clear()


def _next_step(client: _Client, aim: str) -> str:
    """Find the next hook on the way to the one aimed at."""
    if aim == "on_register_failed":
        return aim
    subscribed = aim not in _NEEDS_SUBSCRIPTION or client.subscriptions
    if client.state is State.ONLINE:
        if client.asleep:
            return "on_client_wakeup"
        if client.clean is not _CLEAN.get(aim, client.clean) or (subscribed and aim in _WHILE_AWAY):
            return "on_client_gone" if client.clean else "on_client_offline"
        if not subscribed:
            return "on_subscribe"
        if aim == "on_delivery_complete" and not client.unacknowledged:
            return "on_deliver"
        return aim
    if client.state is State.OFFLINE and subscribed and aim in _WHILE_OFFLINE:
        return aim
    return "on_register"


_CLEAN = {
    "on_client_gone": True,
    "on_client_offline": False,
    "on_client_wakeup": False,
    "on_offline_message": False,
    "on_session_expired": False,
}
"""Whether a hook needs a clean session, which ends with its connection; other hooks happen to both."""

_NEEDS_SUBSCRIPTION = frozenset(
    {"on_unsubscribe", "on_deliver", "on_delivery_complete", "on_offline_message", "on_message_drop"}
)
"""Hooks that require a subscription."""

_WHILE_AWAY = frozenset({"on_register", "on_client_wakeup", "on_offline_message", "on_session_expired"})
"""Hooks that require the client to be disconnected first."""

_WHILE_OFFLINE = frozenset({"on_offline_message", "on_session_expired", "on_message_drop"})
"""Hooks that happen to a session whose client is not connected."""

_PUBLISH_ACL = MatchedACL(name="device-publish", pattern="devices/%c/#")
_SUBSCRIBE_ACL = MatchedACL(name="device-subscribe", pattern="#")
_DROP_ACL = MatchedACL(name="device-subscribe")
_NO_ACL = MatchedACL()

_REASONS = tuple(
    REASONS.index(name)
    for name in (
        "normal_disconnect",
        "mqtt_client_disconnect",
        "mqtt_client_disconnect",
        "disconnect_keep_alive",
        "session_taken_over",
        "administrative_action",
        "protocol_error",
        "tcp_closed",
        "tcp_closed",
    )
)
_FAILURES = tuple(
    FAILURES.index(name) for name in ("no_matching_hook_found", "invalid_credentials", "invalid_credentials", "not_authorized")
)
_DROPS = ("queue_full", "expired")
_DROPS_OFFLINE = (*_DROPS, "user_offline")
