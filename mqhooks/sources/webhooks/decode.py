"""
Decoding the body of a request from VerneMQ's ``vmq_webhooks`` into an :class:`~mqhooks.events.Event`.

- The header ``vernemq-hook`` alone names the hook; keys are read by name, and unknown ones are ignored. VerneMQ's own bodies
  have neither time nor session; gojek's fork adds them.
- Only values that JSON can carry on to an endpoint get in: numbers of 64 bits at most, and no deep nesting.
"""

from __future__ import annotations

import re
from binascii import Error as BadBase64
from binascii import a2b_base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec.structs import replace

from mqhooks.errors import MalformedBody
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
    OfflineMessage,
    Properties,
    Publish,
    Register,
    RegisterFailed,
    SessionExpired,
    Subscribe,
    SubscriptionOptions,
    TopicInfo,
    Unsubscribe,
    UserProperties,
)
from mqhooks.sources.sidecar.pieces import MANY, NAMES, PIECE

QUESTIONS = (
    "auth_on_register",
    "auth_on_publish",
    "auth_on_subscribe",
    "auth_on_register_m5",
    "auth_on_publish_m5",
    "auth_on_subscribe_m5",
    "on_auth_m5",
)
"""The hooks that ask an authorizer. They are no events, and carry passwords, so their bodies are not read."""

OTHERS = 10_000
"""Most values in the properties other than user properties, including those in lists and objects."""

OTHERS_SIZE = 2 << 20
"""Most bytes of JSON in them; MQTT's properties have 64 KiB each."""

REFUSED = 128
"""The QoS of a topic that was refused; MQTT 5 has further numbers above it."""

DEPTH = 8
"""Most levels of nesting in a property."""

_UNSET = "undefined"
"""The fork's placeholder for a value that is not set."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", re.ASCII)

_QoS = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_NOTHING = msgspec.Raw(b"{}")


class _Body(msgspec.Struct, gc=False):
    client_id: str
    mountpoint: str = ""
    username: str | None = None
    timestamp: str | None = None
    session_id: str | None = None
    properties: msgspec.Raw = _NOTHING


class _Registration(_Body, gc=False):
    peer_addr: str = ""
    peer_port: _Port | str = 0
    user_properties: dict[str, str] = {}
    clean_session: bool = False
    reason: str | None = None


class _Message(_Body, kw_only=True, gc=False):
    topic: str
    qos: _QoS = 0
    payload: str = ""
    retain: bool = False


class _Topic(msgspec.Struct, gc=False):
    topic: str
    qos: _QoS = 0
    no_local: bool | None = None
    rap: bool = False
    retain_handling: str = ""


class _Subscription(_Body, kw_only=True, gc=False):
    topics: list[_Topic]


class _Unsubscription(_Body, kw_only=True, gc=False):
    topics: list[str]


class _End(_Body, gc=False):
    reason: str | None = None


class _Pair(msgspec.Struct, gc=False):
    key: str
    val: str


class _Said(NamedTuple):
    """
    A body's values that need decoding; the event takes the others as they are.

    :param properties: MQTT 5's properties without the user properties, by VerneMQ's names; ``None`` when there are none.
    """

    time: int
    payload: bytes
    user_properties: UserProperties
    properties: Properties | None
    mqtt5: bool


class _UserProperty(msgspec.Struct, gc=False):
    p_user_property: msgspec.Raw = msgspec.Raw(b"")


_user_property = msgspec.json.Decoder(_UserProperty).decode
_pairs = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_user = msgspec.json.Decoder(list[_Pair]).decode
_any = msgspec.json.Decoder().decode


class Hook(NamedTuple):
    """
    Reads one hook's requests.

    :param chain: whether VerneMQ treats the answer as a decision: anything except "next" would be one, or an error.
    :param body: parses the body's JSON.
    :param read: makes the event from the parsed body and its decoded values.
    :param mqtt5: whether its client speaks MQTT 5.
    """

    chain: bool
    body: Callable[[bytes], Any]
    read: Callable[[Any, _Said], Event]
    mqtt5: bool


def decode(hook: Hook, body: bytes, now: int, *, text: bool = False) -> Event:
    """
    Decode one request.

    :param body: its JSON.
    :param now: when it arrived, in nanoseconds since 1970: the event's time, unless the body has one.
    :param text: whether VerneMQ writes payloads as text. If not, a payload that is not base64 is still read as text.
    :raises mqhooks.errors.MalformedBody: when the hook does not send such a body; the message does not show its content.
    """
    try:
        read = hook.body(body)
        user, properties = (NO_PROPERTIES, None) if read.properties == _NOTHING else _properties(read.properties)
        payload = _payload(read.payload, text=text) if isinstance(read, _Message) else b""
        return hook.read(read, _Said(_time(read.timestamp, now), payload, user, properties, hook.mqtt5))
    except msgspec.ValidationError as error:
        raise MalformedBody(f"not what this hook sends: {error}") from None
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise MalformedBody("not readable JSON") from None


def divide(event: Event) -> Iterator[Event]:
    """
    Divide an event with very many topics into several, as the sidecar does with its frames; most events stay whole.

    The size of what each topic's body repeats counts too: client id, username and properties can be long.
    """
    topics = getattr(event.message, "topics", ())
    if len(topics) < 2:
        yield event
        return
    message = event.message
    names = len(event.client_id) + len(event.username) + len(event.mountpoint) + len(message.session_id)
    if message.user_properties or event.properties:
        names += len(msgspec.json.encode((message.user_properties, event.properties)))
    most = max(1, min(MANY, NAMES // (names + 1)))

    def part(start: int, end: int) -> Event:
        return replace(event, message=replace(message, topics=topics[start:end]), options=event.options[start:end])

    start = size = 0
    for at, topic in enumerate(topics):
        if at > start and (at - start >= most or size >= PIECE):
            yield part(start, at)
            start, size = at, 0
        size += len(topic if isinstance(topic, str) else topic.topic)
    yield part(start, len(topics)) if start else event


def _time(text: str | None, now: int) -> int:
    match = None if text is None else _TIME.fullmatch(text)
    if match is None:
        return now
    try:
        seconds = int((datetime.fromisoformat(match[1] + match[3]) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    except (ValueError, OverflowError):
        return now
    nanoseconds = seconds * 1_000_000_000 + int((match[2] or "0").ljust(9, "0"))
    # 64 bits, as in the sidecar's decoder.
    return min(max(nanoseconds, -0x8000_0000_0000_0000), 0x7FFF_FFFF_FFFF_FFFF)


def _payload(payload: str, *, text: bool) -> bytes:
    if not text:
        try:
            return a2b_base64(payload, strict_mode=True)
        except (BadBase64, ValueError):
            pass
    return payload.encode()


def _properties(raw: msgspec.Raw) -> tuple[UserProperties, Properties | None]:
    # Skipping costs next to nothing; decoding can take a hundred times the bytes, and seconds.
    if _size(raw) > OTHERS_SIZE and _size(raw) - _size(_user_property(raw).p_user_property) > OTHERS_SIZE:
        raise MalformedBody(f"not what this hook sends: its properties have more than {OTHERS_SIZE} bytes")
    properties = {}
    user = NO_PROPERTIES
    room = OTHERS
    for name, value in _pairs(raw).items():
        if name == "p_user_property":
            user = _first((_plain_text(pair.key), _plain_text(pair.val)) for pair in _user(value))
        else:
            text = bytes(value)
            room -= 1 if text.startswith(b'"') else 1 + text.count(b",")
            if room < 0:
                raise MalformedBody(f"not what this hook sends: its properties have more than {OTHERS} values")
            properties[name] = _frozen(_any(text), DEPTH)
    return user, Properties(properties) if properties else None


def _first(pairs: Iterable[tuple[str, str]]) -> UserProperties:
    """Keep the first user properties, up to the sidecar's limits."""
    kept: dict[str, str] = {}
    size = 0
    for key, value in islice(pairs, MANY):
        if size >= PIECE:
            break
        kept[key] = value
        size += len(key) + len(value)
    return UserProperties(kept)


def _size(raw: msgspec.Raw) -> int:
    return memoryview(raw).nbytes


def _plain_text(encoded: str) -> str:
    return a2b_base64(encoded, strict_mode=True).decode("utf-8", "replace")


def _frozen(value: Any, depth: int) -> Any:
    """Make a value immutable, and refuse one that could not be encoded in a body."""
    if isinstance(value, list | dict):
        if not depth:
            raise ValueError("too deep")
        if isinstance(value, list):
            return tuple([_frozen(item, depth - 1) for item in value])
        return Properties({key: _frozen(item, depth - 1) for key, item in value.items()})
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise ValueError("too large")
    return value


def _set(text: str | None) -> str:
    return "" if text is None or text == _UNSET else text


def _event(hook: str, message: Any, body: _Body, said: _Said, user: str = "") -> Event:
    # Requests come in order, since a client has one at a time: no merge window needs the timestamps.
    return Event(hook, message, said.time, body.mountpoint, body.client_id, user, False, said.mqtt5, said.properties)  # noqa: FBT003


def _register(body: _Registration, said: _Said) -> Event:
    user = body.username or ""
    register = Register(
        said.time,
        _set(body.peer_addr),
        body.peer_port if isinstance(body.peer_port, int) else 0,
        user,
        body.mountpoint,
        body.client_id,
        _first(body.user_properties.items()) if body.user_properties else said.user_properties,
        _set(body.session_id),
    )
    return _event("on_register", register, body, said, user)


def _register_failed(body: _Registration, said: _Said) -> Event:
    user = body.username or ""
    port = body.peer_port if isinstance(body.peer_port, int) else 0
    failed = RegisterFailed(
        said.time,
        body.mountpoint,
        body.client_id,
        _set(body.peer_addr),
        port,
        user,
        body.clean_session,
        _number((body.reason or "").removeprefix("ERR "), FAILURES),
    )
    return _event("on_register_failed", failed, body, said, user)


def _publish(body: _Message, said: _Said) -> Event:
    user = body.username or ""
    publish = Publish(
        said.time,
        user,
        body.client_id,
        body.mountpoint,
        body.qos,
        body.topic,
        said.payload,
        body.retain,
        session_id=_set(body.session_id),
        user_properties=said.user_properties,
    )
    return _event("on_publish", publish, body, said, user)


def _subscribe(body: _Subscription, said: _Said) -> Event:
    user = body.username or ""
    topics = tuple([TopicInfo(topic.topic, min(topic.qos, REFUSED)) for topic in body.topics])
    session = _set(body.session_id)
    subscribe = Subscribe(said.time, body.client_id, body.mountpoint, user, topics, session, said.user_properties)
    event = _event("on_subscribe", subscribe, body, said, user)
    return replace(event, options=_options(body.topics)) if said.mqtt5 else event


def _options(topics: list[_Topic]) -> tuple[SubscriptionOptions | None, ...]:
    # There may be a million topics, but few different options.
    known: dict[tuple[bool, bool, str], SubscriptionOptions] = {}
    options: list[SubscriptionOptions | None] = []
    for topic in topics:
        if topic.no_local is None:
            options.append(None)
            continue
        asked = topic.no_local, topic.rap, topic.retain_handling
        options.append(known.setdefault(asked, SubscriptionOptions(*asked)))
    return tuple(options) if known else ()


def _unsubscribe(body: _Unsubscription, said: _Said) -> Event:
    user = body.username or ""
    topics, session = tuple(body.topics), _set(body.session_id)
    unsubscribe = Unsubscribe(said.time, user, body.client_id, body.mountpoint, topics, session, said.user_properties)
    return _event("on_unsubscribe", unsubscribe, body, said, user)


def _to_subscriber(type_: Any, hook: str) -> Callable[[_Message, _Said], Event]:
    def read(body: _Message, said: _Said) -> Event:
        user = body.username or ""
        message = type_(
            said.time,
            user,
            body.client_id,
            body.mountpoint,
            body.topic,
            body.qos,
            body.retain,
            said.payload,
            session_id=_set(body.session_id),
            user_properties=said.user_properties,
        )
        return _event(hook, message, body, said, user)

    return read


def _offline_message(body: _Message, said: _Said) -> Event:
    session = _set(body.session_id)
    offline = OfflineMessage(
        said.time, body.client_id, body.mountpoint, body.qos, body.topic, said.payload, body.retain, session
    )
    return _event("on_offline_message", offline, body, said)


def _wakeup(body: _Body, said: _Said) -> Event:
    message = ClientWakeUp(said.time, body.client_id, body.mountpoint, _set(body.session_id))
    return _event("on_client_wakeup", message, body, said)


def _expired(body: _Body, said: _Said) -> Event:
    message = SessionExpired(said.time, body.client_id, body.mountpoint, _set(body.session_id))
    return _event("on_session_expired", message, body, said)


def _end(type_: Any, hook: str) -> Callable[[_End, _Said], Event]:
    def read(body: _End, said: _Said) -> Event:
        user = _set(body.username)
        reason = _number((body.reason or "").removeprefix("REASON_"), REASONS)
        message = type_(said.time, body.client_id, body.mountpoint, reason, user, _set(body.session_id))
        return _event(hook, message, body, said, user)

    return read


def _number(name: str, names: tuple[str, ...]) -> int:
    name = name.lower()
    return names.index(name) if name in names else 0


def _hooks() -> Iterator[tuple[bytes, Hook]]:
    reads: tuple[tuple[str, bool, bool, Any, Callable[[Any, _Said], Event]], ...] = (
        # Name, whether there is a variant for MQTT 5, whether the answer is a decision, the body's type, the event's maker.
        ("on_register", True, False, _Registration, _register),
        ("on_register_failed", True, False, _Registration, _register_failed),
        ("on_publish", True, False, _Message, _publish),
        ("on_subscribe", True, False, _Subscription, _subscribe),
        ("on_unsubscribe", True, True, _Unsubscription, _unsubscribe),
        ("on_deliver", True, True, _Message, _to_subscriber(Deliver, "on_deliver")),
        ("on_delivery_complete", True, True, _Message, _to_subscriber(DeliveryComplete, "on_delivery_complete")),
        ("on_offline_message", False, False, _Message, _offline_message),
        ("on_client_wakeup", False, False, _Body, _wakeup),
        ("on_client_offline", False, False, _End, _end(ClientOffline, "on_client_offline")),
        ("on_client_gone", False, False, _End, _end(ClientGone, "on_client_gone")),
        ("on_session_expired", False, False, _Body, _expired),
    )
    for name, both, chain, body, read in reads:
        hook = Hook(chain, msgspec.json.Decoder(body).decode, read, mqtt5=False)
        yield name.encode(), hook
        if both:
            yield f"{name}_m5".encode(), hook._replace(mqtt5=True)


HOOKS: Mapping[bytes, Hook] = MappingProxyType(dict(_hooks()))
"""The reader of each hook's requests, by the value of the header ``vernemq-hook``."""
