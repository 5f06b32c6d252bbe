"""
Turning the calls of all gRPC connections into events, and answering them once these are committed.

- VerneMQ makes no call twice, whatever the answer, and waits 500 ms for it. So status 0 means that the event is committed and
  nothing else, and an event that cannot be committed now is refused at once rather than left to wait.
- The events of all calls that end in one turn of the reactor are one batch.
- A call whose time is up is answered with an error. Its event may still be committed: nobody can take it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError as ProtobufError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.errors import MalformedFrame, UnknownType
from mqhooks.events import Event
from mqhooks.interfaces import IEventSink
from mqhooks.pb.event_request_pb2 import EventRequest
from mqhooks.sources.connections import SourceFactory
from mqhooks.sources.grpc.counters import GrpcCounters
from mqhooks.sources.grpc.protocol import CHECK, EVENT, Call, GrpcProtocol
from mqhooks.sources.grpc.status import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    NOT_FOUND,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
)
from mqhooks.sources.sessions import CONCERNED, SessionTable
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.pieces import MANY, UNDIVIDED, Divided, Pieces, divide
from mqhooks.support.printable import printable
from mqhooks.support.ratelimit import RateLimit

UNFINISHED = 64 << 20
"""Bytes of unfinished messages that all connections together may hold; always room for one of ``sidecar.max_frame``."""

UNSTORED = 4 << 20
"""Bytes of messages that may wait for their commit before further events are refused."""

DIVIDED = 32 << 20
"""Bytes of messages with very many topics that may wait before further ones are refused."""

ENDING_TIME = 10.0
"""Seconds from a call's headers to the end of its message."""

COMMIT_TIME = 5.0
"""Seconds that a commit may take. A caller that would wait longer gets an error then."""

SERVING, NOT_SERVING = b"\0\0\0\0\2\x08\1", b"\0\0\0\0\2\x08\2"
"""The answers to a health check."""

_NO_ROOM = "no room in the outbox"
_TOO_MUCH = "too many events are waiting to be committed"


class _Awaited:
    """
    Calls that wait for one commit.

    :param clock: tells the time.
    :param calls: the calls; each has its caller's timeout.
    """

    def __init__(self, clock: IReactorTime, calls: list[Call]) -> None:
        self._clock = clock
        # The first to give up come first: with thousands of calls, searching them all for each one takes seconds.
        self._calls = deque(sorted(calls, key=_limit))
        self._timer: IDelayedCall | None = None
        self._schedule()

    def end(self, status: int, words: str = "") -> None:
        """Answer those that still wait."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        calls, self._calls = list(self._calls), deque()
        answer(calls, status, words)

    def _schedule(self) -> None:
        now = self._clock.seconds()
        self._timer = self._clock.callLater(max(0.0, _limit(self._calls[0]) - now), self._look)

    def _look(self) -> None:
        now = self._clock.seconds()
        hurried: list[Call] = []
        others: list[Call] = []
        while self._calls and _limit(self._calls[0]) <= now:
            call = self._calls.popleft()
            (hurried if call.timeout is not None and call.timeout <= COMMIT_TIME else others).append(call)
        answer(hurried, DEADLINE_EXCEEDED, "not committed in time; it may still be")
        answer(others, UNAVAILABLE, f"not committed in {COMMIT_TIME:g} s; it may still be")
        if self._calls:
            self._schedule()


def _limit(call: Call) -> float:
    return call.began + (COMMIT_TIME if call.timeout is None else min(call.timeout, COMMIT_TIME))


def answer(calls: list[Call], status: int, words: str = "") -> None:
    """Answer calls of any connections, with one write to each connection."""
    connections = dict.fromkeys(call.connection for call in calls)
    for call in calls:
        call.connection.answer(call, status, words)
    for connection in connections:
        connection.flush()


class GrpcFactory(SourceFactory):
    """
    Holds what the connections share: the sink, the counters, the session table, and the limits.

    :param clock: tells the time; its ``callLater(0, …)`` ends a turn.
    :param sink: gets the events. The factory neither starts nor stops it.
    :param max_frame: bytes; a longer message is refused.
    :param sessions: remembers usernames; ``None`` for a table of its own.
    :ivar clock: the same.
    """

    protocol: Any = GrpcProtocol
    counters: GrpcCounters
    connections: set[GrpcProtocol]
    log = Logger()

    def __init__(
        self, clock: IReactorTime, sink: IEventSink, *, max_frame: int = 16 << 20, sessions: SessionTable | None = None
    ) -> None:
        super().__init__(sink, GrpcCounters())
        self.clock = clock
        # Connections that have made an event's call. Those for health checks come and go, and are not worth a line.
        self._callers: set[GrpcProtocol] = set()
        self._sessions = SessionTable() if sessions is None else sessions
        self._max_frame = max_frame
        self._complaints = RateLimit(clock)
        self._unfinished: dict[Call, None] = {}
        self._unfinished_size = 0
        self._sweeper: IDelayedCall | None = None
        self._calls: list[Call] = []
        self._events: list[Event] = []
        self._size = 0
        self._unstored = 0
        self._flushing: IDelayedCall | None = None
        self._pieces = Pieces(clock, self._store_piece, self._undecodable_piece, self.tell_empty)
        self._divided = 0
        self._current: _Awaited | None = None

    def limit(self, *, max_frame: int) -> None:
        """Replace the limit for a message's length."""
        self._max_frame = max_frame

    def left(self, protocol: GrpcProtocol) -> None:
        """Note that a connection ended."""
        self._flush()
        super().left(protocol)
        if protocol in self._callers:
            self._callers.discard(protocol)
            if not self._callers:
                self.log.warn(
                    "the last gRPC connection, from {peer}, is gone: VerneMQ drops its events until it reconnects",
                    peer=protocol.peer,
                )
        if not self.connections and self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # Unfinished calls.

    def began(self, call: Call) -> None:
        """Note a new call."""
        self._unfinished[call] = None
        if call.path == EVENT and call.connection not in self._callers:
            self._callers.add(call.connection)
            if len(self._callers) == 1:
                self.log.info("first gRPC connection, from {peer}", peer=call.connection.peer)
        if self._sweeper is None:
            self._sweeper = self.clock.callLater(ENDING_TIME, self._sweep)

    def brought(self, call: Call, size: int) -> None:
        """Note that more of a call's message has come, and refuse the call if it is too long or all take too much."""
        content = call.content
        self._unfinished_size += size
        if len(content) >= 5 and int.from_bytes(content[1:5], "big") > self._max_frame:
            self._refuse_long(call)
        elif self._unfinished_size > max(UNFINISHED, self._max_frame + 5):
            longest = max(self._unfinished, key=lambda other: len(other.content))
            self._forget(longest)
            self.counters.refused += 1
            self.complain(longest.connection, "unfinished", f"unfinished messages take more than {UNFINISHED >> 20} MiB")
            longest.connection.refuse(longest, RESOURCE_EXHAUSTED, "unfinished messages take too much memory")

    def _refuse_long(self, call: Call) -> None:
        size = int.from_bytes(call.content[1:5], "big")
        self._forget(call)
        self.counters.undecodable += 1
        self.complain(call.connection, "oversized", f"a message of {size} bytes exceeds sidecar.max_frame ({self._max_frame})")
        call.connection.refuse(call, RESOURCE_EXHAUSTED, "the message exceeds sidecar.max_frame")

    def answered(self, call: Call, status: int) -> None:
        """Count an answered call."""
        self._forget(call)
        if call.path != CHECK:
            self.counters.calls[status] += 1

    def orphaned(self, call: Call) -> None:
        """Count a call that never ended."""
        self._forget(call)
        self.counters.orphaned += 1

    def _forget(self, call: Call) -> None:
        if call in self._unfinished:
            del self._unfinished[call]
            self._unfinished_size -= len(call.content)

    def _sweep(self) -> None:
        """Reset the calls that did not end in time."""
        self._sweeper = None
        now = self.clock.seconds()
        connections: dict[GrpcProtocol, None] = {}
        for call in list(self._unfinished):
            if call.began + ENDING_TIME > now:
                self._sweeper = self.clock.callLater(call.began + ENDING_TIME - now, self._sweep)
                break
            connections[call.connection] = None
            call.connection.orphan(call)
        for connection in connections:
            connection.flush()

    # Finished calls.

    def ended(self, call: Call) -> None:
        """Turn a call whose message is complete into an event, even if its caller has left meanwhile."""
        self._forget(call)
        if call.refusal is not None:
            return
        content, call.content = bytes(call.content), bytearray()
        try:
            if call.path == CHECK:
                self._check(call, _message(content))
            else:
                self._accept(call, _frame(_message(content)))
        except _Compressed:
            call.connection.answer(call, UNIMPLEMENTED, "messages must not be compressed: grpc-encoding identity")
        except UnknownType as error:
            self.counters.unknown += 1
            self.complain(call.connection, "unknown", str(error))
            call.connection.answer(call, UNIMPLEMENTED, "no hook sends messages of this type")
        except MalformedFrame as error:
            self._undecodable(call, f"a message of {len(content)} bytes is {error}")
        except Exception:
            self.log.failure(
                "{peer}: a message of {size} bytes cannot be decoded", peer=call.connection.peer, size=len(content)
            )
            self._undecodable(call, "a message cannot be decoded")

    def _undecodable(self, call: Call, complaint: str) -> None:
        self.counters.undecodable += 1
        self.complain(call.connection, "undecodable", complaint)
        call.connection.answer(call, INVALID_ARGUMENT, "the message is not an event")

    def _check(self, call: Call, message: bytes) -> None:
        """Answer a health check."""
        if message not in (b"", b"\x0a\0", b"\x0a\x1dwebhook.v1beta1.PluginService"):
            call.connection.answer(call, NOT_FOUND, "there is no such service")
        else:
            call.connection.answer(call, OK, message=NOT_SERVING if self.handover.full else SERVING)

    def _accept(self, call: Call, frame: bytes) -> None:
        size = len(frame)
        divided = divide(frame) if size > UNDIVIDED else None
        if divided is None:
            event = decode(frame)
            client = (event.mountpoint, event.client_id)
            if client not in self._pieces.clients:
                self._calls.append(call)
                self._events.append(self._sessions.see(event) if event.hook in CONCERNED else event)
                self._size += size
                if self._flushing is None:
                    self._flushing = self.clock.callLater(0, self._flush)
                return
            # To keep the client's order, its next events wait behind the pieces; as bytes they take the least memory.
            divided = Divided(((decode(waiting), size) for waiting in (frame,)), client, cut=False)
        elif divided.cut:
            who = printable(divided.client[1], 64)
            self.complain(
                call.connection,
                "properties",
                f"client {who} has more than {MANY} user properties: only {MANY} of them are kept",
            )
        if self.handover.full or self._divided > DIVIDED:
            self._refuse([call], _NO_ROOM if self.handover.full else _TOO_MUCH)
            return
        self._divided += size
        awaited = _Awaited(self.clock, [call])
        self._pieces.add(awaited, divided._replace(events=self._worked_off(divided.events, awaited, size)), size)

    def _worked_off(self, events: Iterator[tuple[Event, int]], awaited: _Awaited, size: int) -> Iterator[tuple[Event, int]]:
        """Pass events on, each asked for once the one before is committed, and answer the call at the end."""
        try:
            for event in events:
                self._current = awaited
                yield event
            awaited.end(OK)
        finally:
            self._divided -= size

    def _store_piece(self, events: list[Event], size: int, frames: int) -> Deferred[None] | None:
        self._flush()
        awaited = self._current
        seen = [self._sessions.see(event) if event.hook in CONCERNED else event for event in events]
        # Between pieces there is time to wait for room.
        stored = self.handover.store(seen, room=True)
        return None if stored is None else stored.addErrback(self._not_stored, awaited)

    def _undecodable_piece(self, awaited: _Awaited, error: MalformedFrame, frames: int) -> None:
        self.counters.undecodable += 1
        awaited.end(INVALID_ARGUMENT, "a part of the message is not an event")

    def _flush(self) -> None:
        """Hand over the events of this turn's calls as one batch."""
        if self._flushing is not None and self._flushing.active():
            self._flushing.cancel()
        self._flushing = None
        calls, self._calls = self._calls, []
        events, self._events = self._events, []
        size, self._size = self._size, 0
        if not calls:
            return
        if self.handover.full:
            self._refuse(calls, _NO_ROOM)
        elif self._unstored > UNSTORED:
            self._refuse(calls, _TOO_MUCH)
        else:
            self._hand_over(calls, events, size)

    def _hand_over(self, calls: list[Call], events: list[Event], size: int) -> None:
        stored = self.handover.store(events)
        if stored is None:
            answer(calls, OK)
            return
        self._unstored += size
        awaited = _Awaited(self.clock, calls)

        def done(result: object) -> object:
            self._unstored -= size
            return result

        stored.addBoth(done)
        stored.addCallbacks(lambda _: awaited.end(OK), self._not_stored, errbackArgs=(awaited,))

    def _not_stored(self, failure: Failure, awaited: _Awaited | None) -> None:
        # The handover has logged it.
        if awaited is not None:
            awaited.end(UNAVAILABLE, "the event could not be committed")

    def _refuse(self, calls: list[Call], words: str) -> None:
        self.counters.refused += len(calls)
        self.complain(calls[0].connection, "full", f"events are refused: {words}")
        answer(calls, RESOURCE_EXHAUSTED, words)

    # Stopping.

    @property
    def empty(self) -> bool:
        """Whether no connection is open and no piece waits; a call's caller may leave before its last piece."""
        return not self.connections and not self._pieces.clients

    def give_up(self) -> None:
        """Abort all connections, and forget events that are not yet handed over."""
        lost = self._pieces.drop()
        if lost:
            self.log.error("stopped in the middle of {count} calls with many topics: the rest of them is lost", count=lost)
        super().give_up()

    def complain(self, protocol: GrpcProtocol, kind: str, complaint: str) -> None:
        """Log what is wrong with a peer, once a minute for each host and kind."""
        peer = protocol.peer
        held = self._complaints.allow((peer.rpartition(":")[0], kind))
        if held is not None:
            more = f" ({held} more like it since the last line)" if held else ""
            self.log.warn("{peer}: {complaint}{more}", peer=peer, complaint=complaint, more=more)


class _Compressed(Exception):
    """Raised for a compressed message."""


def _message(content: bytes) -> bytes:
    """
    Remove the five bytes before a message.

    :raises mqhooks.errors.MalformedFrame: when the content is not exactly one message.
    """
    if len(content) < 5 or content[0] > 1 or int.from_bytes(content[1:5], "big") != len(content) - 5:
        raise MalformedFrame("not one gRPC message")
    if content[0]:
        raise _Compressed
    return content[5:]


def _frame(message: bytes) -> bytes:
    """
    Extract the event from an ``EventRequest``: the bytes that a frame of the TCP stream has.

    :raises mqhooks.errors.MalformedFrame: when the message is not an ``EventRequest``, or has no event.
    """
    if message[:1] == b"\x0a":
        at, length, shift = 1, 0, 0
        while at < len(message) and at < 6:
            length |= (message[at] & 127) << shift
            shift += 7
            at += 1
            if message[at - 1] < 128:
                break
        if length and at + length == len(message):
            return message[at:]
    try:
        request = EventRequest.FromString(message)
    except ProtobufError:
        raise MalformedFrame("not an EventRequest") from None
    frame: bytes = request.event.SerializeToString()
    if not frame:
        raise MalformedFrame("an EventRequest without an event")
    return frame
