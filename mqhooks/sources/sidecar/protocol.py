"""
The stream of one of VerneMQ's connections, and the factory that all of them share.

Each frame is a 4-byte big-endian length and that many bytes. Nothing is ever sent back.

- Short frames are cut by Twisted's own ``Int32StringReceiver``. It joins everything it holds with each piece that arrives,
  which takes time quadratic in a long frame's length, so long frames are collected separately, and a fresh receiver takes over
  after each.
- A bad frame costs only itself: closing a connection would cost everything that VerneMQ has queued for it. It is closed only
  for an impossible length, since then there is no telling where the next frame begins.
- Backpressure: while more than a mebibyte of frames waits to be accepted, no connection is read. The exception is a sink that
  holds events itself, as an outbox does while its servers elect a leader.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from mqhooks.errors import MalformedFrame, UnknownType
from mqhooks.events import Event
from mqhooks.interfaces import IEventSink
from mqhooks.sources.connections import SourceFactory, SourceProtocol
from mqhooks.sources.sessions import CONCERNED, SessionTable
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.longframes import COMMON, HELD, HELD_COMMON, LONG, LongFrames
from mqhooks.sources.sidecar.pieces import MANY, PIECE, UNDIVIDED, Divided, Pieces, divide
from mqhooks.support.printable import printable
from mqhooks.support.ratelimit import RateLimit

HARD_LIMIT = (256 << 20) + (1 << 20)
"""MQTT's largest payload and an envelope, in bytes. No frame is longer: a larger number is not a length."""

UNACCEPTED_LIMIT = 1 << 20
"""Bytes of frames that may wait for the sinks to accept them before the connections are paused."""

SHORT_LIMIT = 4 << 20
"""Bytes of short frames that may be divided, or wait behind divided ones, before the connections are paused."""

PATIENCE = 1.0
"""Seconds of backpressure before a warning: a batch that waits only for its commit is accepted sooner."""

GATHERED = 1 << 16
"""Bytes of frames beyond which a batch is handed over without waiting for the end of the reactor's turn."""

LOOK = 0.25
"""Seconds between two checks, until that warning, whether the sink now holds what it cannot accept."""


class _ShortFrames(Int32StringReceiver):
    """
    Twisted's receiver, unchanged, which cuts one connection's short frames.

    It cannot continue after a frame that is too long for it.

    :param connection: gets the frames, and the beginning of a long one.
    """

    def __init__(self, connection: SidecarProtocol) -> None:
        self._connection = connection
        self.limit(connection.factory.max_frame)

    def limit(self, max_frame: int) -> None:
        """Leave frames longer than this, or than :data:`LONG` bytes, to the connection."""
        self.MAX_LENGTH = min(max_frame, LONG)

    def stringReceived(self, string: bytes) -> None:
        """Hand a frame to the connection."""
        self._connection.stringReceived(string)

    def lengthLimitExceeded(self, length: int) -> None:
        """Leave a long frame to the connection."""
        self._connection.begin_long_frame(length, self.recvd[self.prefixLength :])


class _LongFrame:
    """
    An unfinished long frame.

    :param length: its bytes.
    :param kept: whether its bytes are kept; if not, the frame is skipped.
    :ivar missing: bytes still to come.
    """

    def __init__(self, length: int, *, kept: bool) -> None:
        self.length = self.missing = length
        self.kept = kept
        self._content = bytearray()

    def take(self, data: bytes) -> bytes:
        """
        Add the bytes that have arrived.

        :returns: the bytes that follow the frame.
        """
        piece, rest = data[: self.missing], data[self.missing :]
        self.missing -= len(piece)
        if self.kept:
            self._content += piece
        return rest

    def discard(self) -> None:
        """Skip the rest of the frame, and forget the bytes that have arrived."""
        self.kept = False
        self._content = bytearray()

    def join(self) -> bytes:
        """Return the whole frame, once."""
        content, self._content = self._content, bytearray()
        return bytes(content)


class SidecarProtocol(SourceProtocol, Int32StringReceiver):
    """
    Decodes a stream's frames into events, and hands the events of each read to the factory.

    Each frame goes through :meth:`stringReceived`, except for those longer than ``sidecar.max_frame``, which are skipped. A
    frame in any number of pieces costs time linear in its length.

    :ivar held: bytes of an unfinished long frame that it holds.
    :ivar waiting: whether it is paused until other connections have finished their long frames.
    """

    MAX_LENGTH = HARD_LIMIT
    factory: SidecarFactory

    def __init__(self) -> None:
        self.held = 0
        self.waiting = False
        self._long: _LongFrame | None = None
        self._rest = b""
        self._lost = False
        self._events: list[Event] = []

    def connectionMade(self) -> None:
        """Join the factory's connections."""
        self._short = _ShortFrames(self)
        self._turns = self.factory.long_frames
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the factory's connections. An unfinished frame is lost."""
        unfinished = self._short.recvd if self._long is None else self._long.kept
        if unfinished and not self._lost:
            self.factory.counters.frames += 1
            self.factory.counters.truncated += 1
        self._long = None
        self._lost = True
        self._hold()
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """
        Take in one read of the socket.
        """
        size = self.held + len(data)
        while data and not self._lost:
            if self._long is None:
                self._short.dataReceived(data)
                data, self._rest = self._rest, b""
            else:
                data = self._long.take(data)
                if not self._long.missing:
                    self._end_long_frame(self._long)
        if self._events:
            events, self._events = self._events, []
            self.factory.accept(events, size)
        if self.held or self._long is not None:
            self._hold()

    def limit(self) -> None:
        """Apply the factory's ``max_frame`` to the frames to come."""
        self._short.limit(self.factory.max_frame)

    def begin_long_frame(self, length: int, rest: bytes) -> None:
        """
        Collect a frame that is too long for Twisted's receiver, or skip it.

        :param rest: the bytes that have arrived after its length.
        """
        if length > self.MAX_LENGTH:
            self.lengthLimitExceeded(length)
            return
        oversized = length > self.factory.max_frame
        if oversized:
            self.factory.oversized(self, length)
        self._long = _LongFrame(length, kept=not oversized)
        self._rest = rest

    def _end_long_frame(self, frame: _LongFrame) -> None:
        self._long = None
        self._short = _ShortFrames(self)
        if frame.kept:
            self.stringReceived(frame.join())

    def _hold(self) -> None:
        frame = self._long
        held = frame.length - frame.missing if frame is not None and frame.kept else 0
        turns = self.factory.common_frames if frame is None or frame.length <= COMMON else self.factory.long_frames
        if held and turns is not self._turns:
            if self.held:
                self._turns.note(self, 0)
            self._turns = turns
        if held != self.held:
            self._turns.note(self, held)

    def regulate(self) -> None:
        """Resume reading, or pause because of backpressure or because other connections have their turn."""
        if self.waiting or self.factory.braked:
            self.pauseProducing()
        else:
            self.resumeProducing()

    @property
    def length(self) -> int:
        """Length of the unfinished long frame, in bytes; 0 without one."""
        return 0 if self._long is None else self._long.length

    def give_up(self) -> None:
        """Skip an unfinished long frame: it arrives too slowly, and others wait for its room."""
        frame = self._long
        if frame is None or not frame.kept:
            return
        frame.discard()
        self.factory.counters.frames += 1
        self.factory.counters.truncated += 1
        self.factory.complain(
            self, "slow", f"a frame of {frame.length} bytes arrives too slowly while other long frames wait: skipped"
        )
        self._hold()

    def stringReceived(self, string: bytes) -> None:
        """
        Decode a frame into an event. A bad frame is counted and logged; nothing is raised.
        """
        factory = self.factory
        counters = factory.counters
        if not string:
            counters.frames += 1
            counters.empty += 1
            return
        try:
            divided = divide(string) if len(string) > UNDIVIDED else None
            if divided is not None:
                self._divide(divided, len(string))
                return
            event = decode(string)
            waiting = factory.pieces.clients
            if waiting and (event.mountpoint, event.client_id) in waiting:
                factory.pieces.add_behind(self, string, (event.mountpoint, event.client_id))
                return
            self._events.append(factory.sessions.see(event) if event.hook in CONCERNED else event)
            return
        except UnknownType as error:
            counters.count_unknown(error.name)
            factory.complain(self, "unknown", str(error))
        except MalformedFrame as error:
            counters.undecodable += 1
            factory.complain(self, "undecodable", f"a frame of {len(string)} bytes is {error}")
        except Exception:
            # If this escaped, Twisted's receiver would hand over the frames of this read twice.
            counters.undecodable += 1
            factory.log.failure("{peer}: a frame of {size} bytes cannot be decoded", peer=self.peer, size=len(string))
        counters.frames += 1

    def _divide(self, divided: Divided, size: int) -> None:
        if divided.cut:
            self.factory.complain(
                self,
                "properties",
                f"client {printable(divided.client[1], 64)} has more than {MANY} user properties, "
                f"or more than {PIECE >> 10} KiB of them: only the first ones are kept",
            )
        self.factory.pieces.add(self, divided, size)

    def lengthLimitExceeded(self, length: int) -> None:
        """
        Abort the connection: no frame has this length, so there is no telling where the next one begins.
        """
        self._lost = True
        self.factory.counters.frames += 1
        self.factory.counters.oversized += 1
        self.factory.complain(
            self, "framing", f"a frame length of {length} bytes is impossible: framing lost, connection aborted"
        )
        self.abort()


class SidecarFactory(SourceFactory):
    """
    Holds what the connections share: the sink, the counters, the session table, and backpressure.

    :param reactor: a clock, whose ``callLater(0, …)`` ends a turn.
    :param sink: gets the events. The factory neither starts nor stops it.
    :param max_frame: bytes; a longer frame is skipped and counted.
    :param sessions: remembers usernames; ``None`` for a table of its own.
    :param gather: seconds for which events are gathered into a batch; 0: until the end of the reactor's turn.
    :ivar braked: whether backpressure pauses all connections.
    :ivar pieces: works off divided frames.
    :ivar long_frames: decides which connections are read while unfinished frames take too much memory.
    :ivar common_frames: likewise, for frames of up to a MiB.
    """

    protocol: Any = SidecarProtocol
    counters: SidecarCounters
    connections: set[SidecarProtocol]
    log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        sink: IEventSink,
        *,
        max_frame: int = 16 << 20,
        sessions: SessionTable | None = None,
        gather: float = 0.0,
    ) -> None:
        super().__init__(sink, SidecarCounters())
        self.max_frame = min(max_frame, HARD_LIMIT)
        self.long_frames = LongFrames(reactor, HELD)
        self.common_frames = LongFrames(reactor, HELD_COMMON)
        self.sessions = SessionTable() if sessions is None else sessions
        self._complaints = RateLimit(reactor)
        self.braked = False
        self.pieces = Pieces(reactor, self._hand_over_piece, self._undecodable, self._pieces_changed)
        self._clock = reactor
        self._pause_warning: IDelayedCall | None = None
        self._warn_at = 0.0
        self._unaccepted = 0
        self._gathered: list[Event] = []
        self._gathered_size = 0
        self._gather = gather
        self._next = 0.0
        self._flushing: IDelayedCall | None = None

    def limit(self, *, max_frame: int, gather: float) -> None:
        """Replace the limits; the class describes them."""
        self.max_frame = min(max_frame, HARD_LIMIT)
        for protocol in self.connections:
            protocol.limit()
        self._gather = gather

    def joined(self, protocol: SidecarProtocol) -> None:
        """Note a new connection."""
        super().joined(protocol)
        if self.braked:
            protocol.regulate()
            self._schedule_pause_warning()
        if len(self.connections) == 1:
            self.log.info("first sidecar connection, from {peer}", peer=protocol.peer)

    def left(self, protocol: SidecarProtocol) -> None:
        """Note that a connection ended."""
        self.flush()
        super().left(protocol)
        if not self.connections:
            self.log.warn(
                "the last sidecar connection, from {peer}, is gone: VerneMQ drops its events until it reconnects",
                peer=protocol.peer,
            )
            self._cancel_pause_warning()

    @property
    def empty(self) -> bool:
        """Whether no connection is open and no piece waits."""
        return not self.connections and not self.pieces.clients

    def give_up(self) -> None:
        """Abort all connections, and forget events that are not yet handed over."""
        lost = self.pieces.drop()
        if lost:
            self.log.error("stopped in the middle of {count} frames with many topics: the rest of them is lost", count=lost)
        super().give_up()

    def accept(self, events: list[Event], size: int) -> None:
        """
        Add events to the batch that all connections share. It goes to the sink at the end of the turn, or after ``gather``
        seconds.

        A batch costs the sink and the outbox as much as several events: at 5,000 events a second over 100 connections, one
        batch for each connection costs a sixth more than one for each turn, and one for each 5 ms a third less.

        :param size: bytes of the events' frames.
        """
        self._gathered += events
        self._gathered_size += size
        if self._gathered_size > GATHERED:
            self.flush()
        elif self._flushing is None:
            wait = self._next - self._clock.seconds() if self._gather else 0.0
            self._flushing = self._clock.callLater(max(wait, 0.0), self.flush)

    def flush(self) -> None:
        """Hand over the gathered events as one batch."""
        if self._flushing is not None and self._flushing.active():
            self._flushing.cancel()
        self._flushing = None
        events, self._gathered = self._gathered, []
        size, self._gathered_size = self._gathered_size, 0
        if events:
            if self._gather:
                self._next = self._clock.seconds() + self._gather
            self._hand_over(events, size, len(events))

    def _hand_over_piece(self, events: list[Event], size: int, frames: int) -> Deferred[None] | None:
        # Events that were read before go first.
        self.flush()
        seen = [self.sessions.see(event) if event.hook in CONCERNED else event for event in events]
        return self._hand_over(seen, size, frames)

    def _hand_over(self, events: list[Event], size: int, frames: int) -> Deferred[None] | None:
        """
        Hand a batch to the sink. While more than :data:`UNACCEPTED_LIMIT` bytes are neither accepted nor held, pause all
        connections.

        Events are counted here rather than when they are read, so that these counters and the sinks' always agree.

        :param frames: number of frames that begin with these events.
        :returns: fires when the batch is accepted; ``None`` when it is.
        """
        self.counters.frames += frames
        accepted = self.handover.receive(events)
        if accepted is None:
            return None
        self._unaccepted += size
        accepted.addCallback(self._accepted, size)
        self._regulate()
        return accepted

    def _accepted(self, _: None, size: int) -> None:
        self._unaccepted -= size
        self._regulate()

    def _undecodable(self, protocol: SidecarProtocol, error: MalformedFrame, frames: int) -> None:
        self.counters.frames += frames
        self.counters.undecodable += 1
        self.complain(protocol, "undecodable", f"a part of a frame with many topics is {error}: skipped from there on")

    def _pieces_changed(self) -> None:
        for frames in (self.common_frames, self.long_frames):
            frames.wait_for(self.pieces.behind)
        self._regulate()
        self.tell_empty()

    def _regulate(self) -> None:
        """Pause or resume all connections."""
        pieces, unaccepted = self.pieces, self._unaccepted
        unbearable = unaccepted > UNACCEPTED_LIMIT and not self.handover.holds
        if not self.braked and (unbearable or pieces.short > SHORT_LIMIT):
            self._schedule_pause_warning()
            self._brake(braked=True)
        elif self.braked and unaccepted <= UNACCEPTED_LIMIT // 2 and pieces.short <= SHORT_LIMIT // 2:
            self._cancel_pause_warning()
            if self.counters.paused:
                self.counters.paused = False
                self.log.info("backpressure is over: VerneMQ is being read again")
            self._brake(braked=False)

    def _brake(self, *, braked: bool) -> None:
        self.braked = braked
        for frames in (self.common_frames, self.long_frames):
            frames.brake(braked=braked)
        for protocol in list(self.connections):
            protocol.regulate()

    def _schedule_pause_warning(self) -> None:
        if self._pause_warning is None and not self.counters.paused:
            self._warn_at = self._clock.seconds() + PATIENCE
            self._pause_warning = self._clock.callLater(LOOK, self._look_at_pause)

    def _cancel_pause_warning(self) -> None:
        if self._pause_warning is not None:
            self._pause_warning.cancel()
            self._pause_warning = None

    def _look_at_pause(self) -> None:
        self._pause_warning = None
        if self.pieces.short <= SHORT_LIMIT and self.handover.holds:
            self._brake(braked=False)
        elif self._clock.seconds() < self._warn_at:
            self._pause_warning = self._clock.callLater(LOOK, self._look_at_pause)
        else:
            self._warn_of_pause()

    def _warn_of_pause(self) -> None:
        self.counters.pauses += 1
        self.counters.paused = True
        self.log.warn("backpressure: VerneMQ is not being read, the sinks are full")

    def oversized(self, protocol: SidecarProtocol, length: int) -> None:
        """Count a frame that is longer than ``max_frame``."""
        self.counters.frames += 1
        self.counters.oversized += 1
        self.complain(protocol, "oversized", f"a frame of {length} bytes exceeds sidecar.max_frame ({self.max_frame}): skipped")

    def complain(self, protocol: SidecarProtocol, kind: str, complaint: str) -> None:
        """Log what is wrong with a peer's frames, once a minute for each host and kind."""
        peer = protocol.peer
        held = self._complaints.allow((peer.rpartition(":")[0], kind))
        if held is not None:
            more = f" ({held} more like it since the last line)" if held else ""
            self.log.warn("{peer}: {complaint}{more}", peer=peer, complaint=complaint, more=more)
