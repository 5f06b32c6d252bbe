"""
The stream of one of VerneMQ's connections, and the factory that all of them share.

Each frame is a 4-byte big-endian length and that many bytes. Nothing is ever sent back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from mqhooks.errors import MalformedFrame, UnknownType
from mqhooks.interfaces import IEventSink
from mqhooks.readiness import Reader, Readiness
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.events import Event
from mqhooks.sources.sidecar.longframes import LONG, LongFrames
from mqhooks.sources.sidecar.sessions import CONCERNED, SessionTable
from mqhooks.support.listening import address_name
from mqhooks.support.ratelimit import RateLimit

HARD_LIMIT = (256 << 20) + (1 << 20)
"""MQTT's largest payload and an envelope. A longer frame cannot be one: the bytes read as its length were something else."""

UNACCEPTED_LIMIT = 1 << 20
"""How many bytes of frames may wait for their sinks' acceptance before the connections stop being read."""

READ = 1 << 15
"""How many bytes of a connection are received in one turn of the reactor: few enough that all of them keep abreast."""

PATIENCE = 1.0
"""How many seconds the connections are not read before that is told: what waits for its commit only is soon accepted."""

GATHERED = 1 << 16
"""How many bytes of frames become one batch, about, when what several connections have sent can be read in one turn."""

Watcher = Callable[[Sequence[Event]], object]

_LENGTH = Struct("!I")


class SidecarProtocol(Int32StringReceiver):
    """
    Cuts a stream into frames and hands the events of one read to the factory.

    A frame in any number of pieces costs time linear in its length.
    """

    MAX_LENGTH = HARD_LIMIT
    factory: SidecarFactory

    def __init__(self) -> None:
        self.held = 0
        self.waiting = False
        self._partial = bytearray()
        self._needed = _LENGTH.size
        self._drain = 0
        self._lost = False
        self._events: list[Event] = []
        self._reader: Reader | None = None

    @property
    def peer(self) -> str:
        """Who is at the other end, for the log."""
        assert self.transport is not None
        return address_name(self.transport.getPeer())

    def connectionMade(self) -> None:
        """Join the factory's connections."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
            readiness = self.factory.readiness
            # Nothing but the socket itself: TLS, or a proxy's protocol, needs what comes before this does.
            if readiness is not None and isinstance(self.transport, Connection):
                source = self.transport.getHandle()
                self._reader = Reader(readiness, self.transport, source, self.dataReceived, READ, READ)
        self.factory.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the factory's connections; a frame that has begun is lost."""
        if self._reader is not None:
            self._reader.leave()
        if self._partial and not self._lost:
            self.factory.counters.frames += 1
            self.factory.counters.truncated += 1
        self._partial.clear()
        self._hold()
        self.factory.left(self)

    def dataReceived(self, data: bytes) -> None:
        """
        Take in what one read of the socket gave.
        """
        if self._lost:
            return
        if self._drain:
            drained = min(self._drain, len(data))
            self._drain -= drained
            data = data[drained:]
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                self._hold()
                return
            size = len(self._partial)
            data = self._join()
        else:
            size = len(data)
        frames: list[bytes] = []
        self._partial += data[self._split(data, frames) :]
        self._decode(frames)
        self._hold()
        if self._events:
            events, self._events = self._events, []
            self.factory.accept(events, size)

    def _join(self) -> bytes:
        """
        Take what has come of a frame, now that it is whole.

        :returns: the frame and what follows it; only the latter of a long one, which is decoded here: each copy counts.
        """
        partial, self._partial = self._partial, bytearray()
        if self._needed <= LONG:
            return bytes(partial)
        rest = bytes(memoryview(partial)[self._needed :])
        del partial[self._needed :], partial[: _LENGTH.size]
        self._needed = _LENGTH.size
        self.stringReceived(partial)
        return rest

    def _hold(self) -> None:
        held = len(self._partial) if self._needed > LONG else 0
        if held != self.held:
            self.factory.long_frames.note(self, held)

    def regulate(self) -> None:
        """Read the connection, unless the sinks have no room or others read long frames before it."""
        if self.waiting or self.factory.braked:
            self.pauseProducing()
        else:
            self.resumeProducing()

    def pauseProducing(self) -> None:
        """Do not read the connection."""
        if self._reader is None:
            super().pauseProducing()
        else:
            self._reader.pause()

    def resumeProducing(self) -> None:
        """Read the connection again."""
        if self._reader is None:
            super().resumeProducing()
        else:
            self._reader.resume()

    def stalled(self, seconds: float) -> None:
        """Give the connection up: others wait for the end of its frame, and it does not come."""
        silence = f"hardly anything of a frame of {self._needed} bytes has come for {seconds:g} s"
        self.factory.complain(self, "stalled", f"{silence}, and others wait for their turn: connection aborted")
        self.abort()

    def _split(self, data: bytes, frames: list[bytes]) -> int:
        """
        Cut off the whole frames at the front.

        :param frames: takes them.
        :returns: how many bytes they took; ``_needed`` says how many must be there before it is worth another look at the rest.
        """
        offset, end = 0, len(data)
        limit = self.factory.max_frame
        while end - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, offset)
            start = offset + _LENGTH.size
            offset = start + length
            if length > limit:
                if length > self.MAX_LENGTH:
                    self.lengthLimitExceeded(length)
                    return end
                self.factory.oversized(self, length)
                if offset >= end:
                    self._drain = offset - end
                    offset = end
            elif offset > end:
                self._needed = _LENGTH.size + length
                return start - _LENGTH.size
            else:
                frames.append(data[start:offset])
        self._needed = _LENGTH.size
        return offset

    def stringReceived(self, string: bytes | bytearray) -> None:
        """
        Decode one frame; a ``bytearray`` is used up.
        """
        self._decode((string,), len(string))

    def _decode(self, frames: Sequence[bytes | bytearray], size: int = 0) -> None:
        """
        Make events of frames.

        :param size: how many bytes the only one has, which decoding may use up.
        """
        factory, events = self.factory, self._events
        counters, sessions = factory.counters, factory.sessions
        counters.frames += len(frames)
        for frame in frames:
            if not frame:
                counters.empty += 1
                continue
            try:
                event = decode(frame)
            except UnknownType as error:
                counters.count_unknown(error.name)
                factory.complain(self, "unknown", str(error))
            except MalformedFrame as error:
                counters.undecodable += 1
                factory.complain(self, "undecodable", f"a frame of {size or len(frame)} bytes is {error}")
            else:
                hook = event.hook
                counters.hooks[hook] += 1
                events.append(sessions.see(event) if hook in CONCERNED else event)

    def lengthLimitExceeded(self, length: int) -> None:
        """
        Give the connection up: what was read as a length cannot be one, so nobody knows where the next frame begins.
        """
        self._lost = True
        self.factory.counters.frames += 1
        self.factory.counters.oversized += 1
        self.factory.complain(
            self, "framing", f"a frame announces {length} bytes, no event is that long: the framing is lost, connection aborted"
        )
        self.abort()

    def close(self) -> None:
        """Close the connection in order."""
        assert self.transport is not None
        if self._reader is not None:
            self._reader.leave()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._reader is not None:
            self._reader.leave()
        transport: Any = self.transport
        transport.abortConnection()


class SidecarFactory(ServerFactory):
    """
    What the connections share: the sink, the counters, the session table, and the brake.

    :param reactor: tells the time.
    :param sink: where the events go. It is not started or stopped here.
    :param max_frame: bytes; a longer frame is drained and counted.
    :param max_sessions: how many clients' usernames are remembered.
    :ivar braked: whether no connection is read, because of what the sinks have not accepted.
    :ivar long_frames: says which connections may read on while they hold much of frames that are not whole.
    :ivar readiness: watches the connections' sockets; ``None`` when the reactor itself is to do it.
    """

    noisy = False
    log = Logger()

    def __init__(
        self, reactor: IReactorTime, sink: IEventSink, *, max_frame: int = 16 << 20, max_sessions: int = 1_000_000
    ) -> None:
        self.max_frame = min(max_frame, HARD_LIMIT)
        self.counters = SidecarCounters()
        self.long_frames = LongFrames(reactor)
        self.readiness = Readiness(reactor, "sidecar", 1) if Readiness.possible(reactor) else None
        self.sessions = SessionTable(max_sessions)
        self.connections: set[SidecarProtocol] = set()
        self._sink = sink
        self._complaints = RateLimit(reactor)
        self.braked = False
        self._clock = reactor
        self._telling: IDelayedCall | None = None
        self._unaccepted = 0
        self._gathered: list[Event] = []
        self._gathered_size = 0
        self._emptied: list[Deferred[None]] = []
        self._watcher: Watcher | None = None

    def limit(self, max_frame: int, max_sessions: int) -> None:
        """Have other limits from now on; they are those that it was made with."""
        self.max_frame = min(max_frame, HARD_LIMIT)
        self.sessions.limit(max_sessions)

    def watch(self, watcher: Watcher | None) -> None:
        """
        Show each batch to somebody before the sink gets it.

        :param watcher: called with the batch, which it must not change; it must not raise. It takes the place of the one
            before. ``None`` for nobody.
        """
        self._watcher = watcher

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make the protocol of one connection."""
        protocol = SidecarProtocol()
        protocol.factory = self
        return protocol

    def joined(self, protocol: SidecarProtocol) -> None:
        """Note a new connection."""
        self.connections.add(protocol)
        self.counters.connections = len(self.connections)
        if self.braked:
            protocol.regulate()
            self._tell_soon()
        if len(self.connections) == 1:
            self.log.info("{peer}: the first sidecar connection is here", peer=protocol.peer)

    def left(self, protocol: SidecarProtocol) -> None:
        """Note that a connection ended."""
        self.connections.discard(protocol)
        self.counters.connections = len(self.connections)
        if not self.connections:
            self.log.info("{peer}: the last sidecar connection is gone", peer=protocol.peer)
            self._forget_to_tell()
            waiting, self._emptied = self._emptied, []
            for deferred in waiting:
                deferred.callback(None)

    def when_empty(self) -> Deferred[None]:
        """
        Wait for the connections' end.

        :returns: a ``Deferred`` that fires when no connection is open.
        """
        deferred: Deferred[None] = Deferred()
        if self.connections:
            self._emptied.append(deferred)
        else:
            deferred.callback(None)
        return deferred

    def accept(self, events: list[Event], size: int) -> None:
        """
        Hand events to the sink; stop reading all connections while more than :data:`UNACCEPTED_LIMIT` bytes are unaccepted.

        Those of all connections that can be read in this turn of the reactor go together: a batch costs the sink and the outbox
        as much as a dozen events.

        :param size: how many bytes the events' frames took.
        """
        readiness = self.readiness
        if readiness is None or not readiness.reading:
            self._hand_over(events, size)
            return
        if not self._gathered:
            readiness.afterwards(self._hand_over_gathered)
        self._gathered += events
        self._gathered_size += size
        if self._gathered_size > GATHERED:
            self._hand_over_gathered()

    def _hand_over_gathered(self) -> None:
        events, self._gathered = self._gathered, []
        size, self._gathered_size = self._gathered_size, 0
        if events:
            self._hand_over(events, size)

    def _hand_over(self, events: list[Event], size: int) -> None:
        if self._watcher is not None:
            self._watcher(events)
        try:
            accepted = self._sink.receive(events)
        except Exception:
            self.log.failure("the sink refused {count} events", count=len(events))
            return
        if accepted is None:
            return
        self._unaccepted += size
        count = len(events)
        accepted.addErrback(lambda failure: self.log.failure("the sink lost {count} events", failure, count=count))
        accepted.addCallback(self._accepted, size)
        if self._unaccepted > UNACCEPTED_LIMIT and not self.braked:
            self._tell_soon()
            self._brake(braked=True)

    def _accepted(self, _: None, size: int) -> None:
        self._unaccepted -= size
        if self.braked and self._unaccepted <= UNACCEPTED_LIMIT // 2:
            self._forget_to_tell()
            if self.counters.paused:
                self.counters.paused = False
                self.log.info("the sinks have room: VerneMQ's connections are read again")
            self._brake(braked=False)

    def _brake(self, *, braked: bool) -> None:
        self.braked = braked
        self.long_frames.brake(braked=braked)
        for protocol in list(self.connections):
            protocol.regulate()

    def _tell_soon(self) -> None:
        if self._telling is None and not self.counters.paused:
            self._telling = self._clock.callLater(PATIENCE, self._tell)

    def _forget_to_tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None

    def _tell(self) -> None:
        self._telling = None
        self.counters.pauses += 1
        self.counters.paused = True
        self.log.warn("the sinks cannot take more: VerneMQ's connections are not read until they can")

    def oversized(self, protocol: SidecarProtocol, length: int) -> None:
        """Count a frame that is too long to be held in memory."""
        self.counters.frames += 1
        self.counters.oversized += 1
        self.complain(
            protocol, "oversized", f"a frame of {length} bytes is longer than sidecar.max_frame ({self.max_frame}): left out"
        )

    def complain(self, protocol: SidecarProtocol, kind: str, complaint: str) -> None:
        """Say what is wrong with a peer's frames, once a minute for each host and kind."""
        peer = protocol.peer
        held = self._complaints.allow((peer.rpartition(":")[0], kind))
        if held is not None:
            more = f" ({held} more like it since the last time)" if held else ""
            self.log.warn("{peer}: {complaint}{more}", peer=peer, complaint=complaint, more=more)
