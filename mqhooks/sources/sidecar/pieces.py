"""
Dividing frames with very many topics or user properties, and working them off piece by piece.

- One SUBSCRIBE of 16 MiB can name millions of topics. As one event they would stop everything for ten seconds and take
  gigabytes. So it becomes many events with some of the topics each. Each is made once the one before it is accepted, in another
  turn of the reactor.
- User properties cannot be divided: they belong to their event. So only the first of them are kept.
- The same client's next frames wait behind its divided one, so that order is kept. Clients take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mqhooks.errors import MalformedFrame
from mqhooks.events import Event
from mqhooks.sources.sidecar.decode import TYPE_URL, decode, open_frame, type_of
from mqhooks.sources.sidecar.longframes import LONG
from mqhooks.sources.sidecar.messages import MESSAGES
from mqhooks.sources.sidecar.twins import PROPERTIES, without

MANY = 1000
"""Most topics in an event, and most user properties."""

UNDIVIDED = 2 * MANY
"""Longest frame, in bytes, that cannot carry more than :data:`MANY` of them."""

PIECE = 64 << 10
"""Approximate limit on the bytes of topics or user properties in an event; a single longer one still fits."""

NAMES = 1 << 20
"""
Approximate limit on the bytes of names that a piece repeats: each topic's body contains the client id and username, and perhaps
the user properties.
"""

OTHERS = 16 * MANY
"""Limit on a divided message's other fields. A hook sends a dozen, but walking over millions would stop everything."""

Client = tuple[str, str]
"""Mountpoint and client id."""

TOPICS = "topics"


def _having(name: str) -> dict[type[Message], int]:
    """Return the messages that have a field, with the field's number."""
    fields = {message.protobuf: message.protobuf.DESCRIPTOR.fields_by_name.get(name) for message in MESSAGES.values()}
    return {protobuf: field.number for protobuf, field in fields.items() if field is not None}


_WITH_PROPERTIES = _having(PROPERTIES)
_WITH_TOPICS = _having(TOPICS)


class Divided(NamedTuple):
    """
    A frame that carries more than one event may.

    :param events: its events, made one by one, each with its share of the frame in bytes. At a malformed piece they end in a
        :class:`~mqhooks.errors.MalformedFrame`.
    :param client: the client that they belong to.
    :param cut: whether they have only the first of the frame's user properties.
    """

    events: Iterator[tuple[Event, int]]
    client: Client
    cut: bool


def divide(frame: bytes) -> Divided | None:
    """
    Divide a frame.

    :returns: ``None`` for a frame that becomes one event.
    :raises mqhooks.errors.UnknownType: as :func:`~mqhooks.sources.sidecar.decode.decode` does.
    :raises mqhooks.errors.MalformedFrame: likewise.
    """
    protobuf = type_of(frame)
    if protobuf in _WITH_PROPERTIES and protobuf not in _WITH_TOPICS and _has_few(frame, _WITH_PROPERTIES[protobuf]):
        return None
    opened = open_frame(frame, _WITH_PROPERTIES)
    if opened is None:
        return None
    protobuf, value = opened
    rest = without(protobuf, TOPICS, value) if protobuf in _WITH_TOPICS else value
    properties, cut = _first(rest, _WITH_PROPERTIES[protobuf])
    if cut:
        rest = without(protobuf, PROPERTIES, rest) + properties
    elif protobuf not in _WITH_TOPICS:
        return None
    first = decode(_envelope(protobuf, rest))
    client = (first.mountpoint, first.client_id)
    if protobuf not in _WITH_TOPICS:
        return Divided(iter([(first, len(rest))]), client, cut)
    if cut:
        value = without(protobuf, PROPERTIES, value)
    names = len(first.client_id) + len(first.username) + len(first.mountpoint) + len(first.message.session_id) + len(properties)
    pieces = _pieces(value, _WITH_TOPICS[protobuf], max(1, min(MANY, NAMES // (names + 1))))
    start, second = next(pieces, b""), next(pieces, None)
    if second is None and not cut:
        return None

    def event(piece: bytes) -> tuple[Event, int]:
        topics = decode(_envelope(protobuf, piece)).message.topics
        return replace(first, message=replace(first.message, topics=topics)), len(piece)

    return Divided(map(event, chain((start,) if second is None else (start, second), pieces)), client, cut)


def _envelope(protobuf: type[Message], value: bytes) -> bytes:
    return AnyMessage(type_url=TYPE_URL + protobuf.DESCRIPTOR.full_name, value=value).SerializeToString()


def _has_few(frame: bytes, number: int) -> bool:
    """
    Return whether a frame surely has no more than :data:`MANY` fields of a number. Fast for most frames.

    :param frame: a frame with VerneMQ's envelope; it may still be malformed.
    """
    if len(frame) <= 4 * UNDIVIDED and frame.count(number << 3 | 2) <= MANY:
        return True
    # One field, such as a payload, may leave no room for many others.
    try:
        _, at = _varint(frame, frame[1] + 3)
        for _, start, end in islice(_fields(frame, at), 2 * len(MESSAGES)):
            if end - start >= len(frame) - UNDIVIDED:
                return True
    except MalformedFrame:
        pass
    return False


def _first(value: bytes, number: int) -> tuple[bytes, bool]:
    """
    Gather the first fields of a number, up to :data:`MANY` of them or :data:`PIECE` bytes.

    :returns: the fields, and whether there are more.
    """
    kept: list[bytes] = []
    size = 0
    for start, end in _fields_of(value, number):
        if len(kept) >= MANY or size >= PIECE:
            return b"".join(kept), True
        kept.append(value[start:end])
        size += end - start
    return b"".join(kept), False


def _pieces(value: bytes, number: int, most: int) -> Iterator[bytes]:
    """
    Cut a message into pieces, each with a limited number of a repeated field.

    :param number: the field's number.
    :param most: most occurrences of the field in a piece.
    """
    begin = count = 0
    for start, _ in _fields_of(value, number):
        if count and (count >= most or start - begin >= PIECE):
            yield value[begin:start]
            begin, count = start, 0
        count += 1
    if count:
        yield value[begin:]


def _fields_of(value: bytes, number: int) -> Iterator[tuple[int, int]]:
    """
    Find a message's fields of a number, and yield where each begins and ends.

    :raises mqhooks.errors.MalformedFrame: when it is no message, or has more than :data:`OTHERS` other fields.
    """
    others = 0
    for tag, start, end in _fields(value, 0):
        if tag == number << 3 | 2:
            yield start, end
        elif others == OTHERS:
            raise MalformedFrame("not a message that a hook sends: it repeats its fields thousands of times")
        else:
            others += 1


def _fields(value: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """
    Walk over a message's fields.

    :param at: offset of the first one.
    :returns: the tag, begin and end of each.
    :raises mqhooks.errors.MalformedFrame: at bytes that are not a field.
    """
    end = len(value)
    while at < end:
        start = at
        tag, at = _varint(value, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(value, at)
            at += length
        elif kind == 0:
            _, at = _varint(value, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise MalformedFrame("not a message that a hook sends: it has a group")
        yield tag, start, at


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """Read a varint; return it and the offset behind it."""
    number = 0
    for shift, byte in zip(range(0, 70, 7), value[at : at + 10], strict=False):
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise MalformedFrame("not a protobuf message")


class _Item:
    """
    A frame that waits for its turn.

    :param owner: the connection that brought it.
    :param events: its events, each with its share of the frame in bytes.
    :param client: the client that they belong to.
    :param size: bytes of the frame.
    :param alone: whether each of the events has its own turn.
    :ivar begun: whether one of them was handed over.
    """

    __slots__ = ("alone", "begun", "client", "events", "owner", "size")

    def __init__(self, owner: Any, events: Iterator[tuple[Event, int]], client: Client, size: int, *, alone: bool) -> None:
        self.owner = owner
        self.events = events
        self.client = client
        self.size = size
        self.alone = alone
        self.begun = False


class Pieces:
    """
    Works off divided frames, and their clients' next frames, each client's in the order in which they were read.

    :param clock: its ``callLater(0, …)`` ends a turn.
    :param hand_over: called with events, their bytes, and the number of frames that begin with them. Returns a ``Deferred``
        that fires when they are accepted; ``None`` when they are already.
    :param failed: called with a connection, the error, and 0 if events of the frame were handed over before it, else 1.
    :param changed: called when the number of waiting bytes changes.
    :ivar short: bytes of short frames that wait.
    :ivar clients: the waiting frames of each client.
    """

    def __init__(
        self,
        clock: IReactorTime,
        hand_over: Callable[[list[Event], int, int], Deferred[None] | None],
        failed: Callable[[Any, MalformedFrame, int], object],
        changed: Callable[[], object],
    ) -> None:
        self.short = self._long = 0
        self._clock = clock
        self._hand_over = hand_over
        self._failed = failed
        self._changed = changed
        self.clients: dict[Client, deque[_Item]] = {}
        self._working = False

    @property
    def behind(self) -> int:
        """Bytes of long frames that wait behind the one that is being worked off."""
        first = next((items[0].size for items in self.clients.values() if items), 0)
        return self._long - (first if first > LONG else 0)

    def add(self, owner: Any, divided: Divided, size: int) -> None:
        """Work off a divided frame of ``size`` bytes."""
        self._add(_Item(owner, divided.events, divided.client, size, alone=True))

    def add_behind(self, owner: Any, frame: bytes, client: Client) -> None:
        """Have a frame wait behind its client's divided one. It waits as bytes, which take the least memory."""
        self._add(_Item(owner, map(_decoded, (frame,)), client, len(frame), alone=False))

    def drop(self) -> int:
        """
        Forget all frames.

        :returns: how many frames were forgotten.
        """
        items = [item for waiting in self.clients.values() for item in waiting]
        self.clients.clear()
        for item in items:
            self._count(item, -1)
        return len(items)

    def _add(self, item: _Item) -> None:
        self.clients.setdefault(item.client, deque()).append(item)
        self._count(item, 1)
        self._go_on()

    def _count(self, item: _Item, sign: int) -> None:
        if item.size > LONG:
            self._long += sign * item.size
        else:
            self.short += sign * item.size
        self._changed()

    def _go_on(self) -> None:
        if self.clients and not self._working:
            self._working = True
            self._clock.callLater(0, self._work)

    def _work(self) -> None:
        """Hand over the next piece of a client, or its next few short frames."""
        events: list[Event] = []
        size = frames = 0
        client = next(iter(self.clients), None)
        # The client goes to the end: others have their turn. It stays until its events are accepted.
        items = self.clients.pop(client) if client is not None else deque[_Item]()
        if client is not None:
            self.clients[client] = items
        while items and size < PIECE:
            item = items[0]
            try:
                event, length = next(item.events)
            except StopIteration:
                self._end(items)
                continue
            except MalformedFrame as error:
                self._failed(item.owner, error, not item.begun)
                self._end(items)
                continue
            events.append(event)
            size += length
            frames += not item.begun
            item.begun = True
            if item.alone:
                break
        accepted = self._hand_over(events, size, frames) if events else None
        if accepted is None:
            self._accepted(None, client)
        else:
            accepted.addCallback(self._accepted, client)

    def _accepted(self, _: None, client: Client | None) -> None:
        self._working = False
        if client is not None and client in self.clients and not self.clients[client]:
            del self.clients[client]
            self._changed()
        self._go_on()

    def _end(self, items: deque[_Item]) -> None:
        self._count(items.popleft(), -1)


def _decoded(frame: bytes) -> tuple[Event, int]:
    return decode(frame), len(frame)
