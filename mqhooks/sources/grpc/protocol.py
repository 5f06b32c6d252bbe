"""
The connections of VerneMQ's gRPC client: HTTP/2 without TLS and without upgrade.

- ``h2`` implements the protocol; :mod:`~mqhooks.sources.grpc.frames` bounds what it does not. The work and memory that a peer
  can cause are bounded by frames a turn, calls a connection, and bytes of answers that it does not read.
- Every call is answered in gRPC, whatever is wrong with it: an HTTP error ends the process in VerneMQ that owns the connection,
  and with it all of its calls. Only a call that never ends is reset.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from typing import Protocol as Interface

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RemoteSettingsChanged, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.sources.grpc.frames import ENHANCE_YOUR_CALM, PREFACE, PROTOCOL_ERROR, Frames, Unacceptable, goaway
from mqhooks.sources.grpc.status import CANCELLED, INVALID_ARGUMENT, OK, RESOURCE_EXHAUSTED, UNIMPLEMENTED
from mqhooks.sources.listening import CLOSING_TIME
from mqhooks.support.listening import address_name

EVENT = b"/webhook.v1beta1.PluginService/Event"
CHECK = b"/grpc.health.v1.Health/Check"

CALLS = 1000
"""Most open calls of a connection; VerneMQ has 100 in flight over all connections."""

WINDOW = 1 << 20
"""Flow control window, in bytes, of a call and of a connection."""

IDLE = 2000
"""Frames that a connection may send at once beyond those of its calls."""

IDLE_RATE = 500
"""Such frames that it may send each second after that."""

WORTH = 8
"""Such frames that each answered call allows, for window updates and pings."""

PREFACE_TIME = 10.0
"""Seconds that a client has to send its preface."""

EMPTY = b"\0\0\0\0\0"
"""The empty message, which answers an event."""

_OK_HEADERS = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_OK_TRAILERS = [(b"grpc-status", b"0")]
_IDENTITY = (b"grpc-accept-encoding", b"identity")
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class _Connection(H2Connection):
    """
    An ``h2`` connection that remembers fewer ended calls: 65,536 for each of 100 connections take a gigabyte.
    """

    MAX_CLOSED_STREAMS = 1024


class Call:
    """
    One call that is not answered yet.

    :ivar connection: its connection.
    :ivar stream: its number there.
    :ivar path: the method that it calls.
    :ivar timeout: seconds that the caller waits; ``None`` when it does not say.
    :ivar began: when it began, in the reactor's seconds.
    :ivar content: the part of its message that has arrived.
    :ivar taken: bytes, including padding, for which its window has not been opened again.
    :ivar ended: whether the message is complete.
    :ivar refusal: status and words of its refusal, if it is refused.
    """

    __slots__ = ("began", "connection", "content", "ended", "path", "refusal", "stream", "taken", "timeout")

    def __init__(self, connection: GrpcProtocol, stream: int, began: float, headers: dict[bytes, bytes]) -> None:
        self.connection = connection
        self.stream = stream
        self.began = began
        self.path = headers.get(b":path", b"")
        self.timeout = timeout(headers.get(b"grpc-timeout"))
        self.content = bytearray()
        self.taken = 0
        self.ended = False
        self.refusal: tuple[int, str] | None = None
        if self.path not in (EVENT, CHECK) or headers.get(b":method") != b"POST":
            self.refusal = UNIMPLEMENTED, "there are only webhook.v1beta1.PluginService/Event and grpc.health.v1.Health/Check"
        elif not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self.refusal = INVALID_ARGUMENT, "the content-type is not application/grpc"


@lru_cache(256)
def timeout(value: bytes | None) -> float | None:
    """
    Read a ``grpc-timeout``.

    :returns: seconds; ``None`` when it is missing or cannot be read.
    """
    match = None if value is None else _TIMEOUT.fullmatch(value)
    return None if match is None else int(match[1]) * _UNITS[match[2]]


class GrpcOwner(Interface):
    """
    The interface of a factory that connections' protocols need.

    :ivar clock: tells the time; its ``callLater(0, …)`` ends a turn.
    """

    clock: IReactorTime

    def joined(self, protocol: GrpcProtocol) -> None:
        """Note a new connection."""

    def left(self, protocol: GrpcProtocol) -> None:
        """Note that a connection ended."""

    def began(self, call: Call) -> None:
        """Note a new call."""

    def brought(self, call: Call, size: int) -> None:
        """Note that more of a call's message has come; the call may be refused."""

    def ended(self, call: Call) -> None:
        """Take a complete call, and answer it now or later."""

    def answered(self, call: Call, status: int) -> None:
        """Count an answered call."""

    def orphaned(self, call: Call) -> None:
        """Count a call that never ended."""

    def complain(self, protocol: GrpcProtocol, kind: str, complaint: str) -> None:
        """Log what is wrong with a peer, at a limited rate."""


@implementer(IPushProducer)
class GrpcProtocol(Protocol):
    """
    Takes calls, and answers them when the factory says so.

    :ivar calls: the unanswered calls, by number, in the order in which they began.
    """

    factory: GrpcOwner

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self._frames = Frames()
        self._preface = b""
        self._begun = False
        self._h2 = _Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                # A fault in one call must not end the others.
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                # More than we keep, because h2 ends the connection at one call beyond it.
                SettingCodes.MAX_CONCURRENT_STREAMS: 2 * CALLS,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 14,
            },
        )
        self._h2.decoder.max_header_list_size = 1 << 14
        self._early: list[Call] = []
        self._taken = 0
        self._blocked: dict[int, bytes] = {}
        self._taking = False
        self._working = False
        self._unread = False
        self._closing = False
        self._lost = False
        self._calmed = 0.0
        self._awaiting: IDelayedCall | None = None

    @property
    def peer(self) -> str:
        """The peer's address, for the log."""
        assert self.transport is not None
        return address_name(self.transport.getPeer())

    def connectionMade(self) -> None:
        """Join the factory's connections, and wait for the client to begin."""
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpKeepAlive(True)
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, streaming=True)
        self._calmed = self.factory.clock.seconds()
        self._awaiting = self.factory.clock.callLater(PREFACE_TIME, self.abort)
        self.factory.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the factory's connections. Events of complete calls are kept; unfinished calls are lost."""
        self._lost = self._closing = True
        self._began()
        self._blocked.clear()
        for call in list(self.calls.values()):
            self._cancelled(call)
        self.factory.left(self)

    # Reading.

    def dataReceived(self, data: bytes) -> None:
        """Take in one read of the socket. Raise nothing."""
        if self._lost:
            return
        if not self._begun:
            self._preface += data
            if not self._preface.startswith(PREFACE):
                if not PREFACE.startswith(self._preface):
                    self._misplaced(self._preface)
                return
            data, self._preface = self._preface[len(PREFACE) :], b""
            self._begun = True
            self._began()
            self._h2.initiate_connection()
            self._h2.increment_flow_control_window(WINDOW - 65_535)
            self._h2.receive_data(PREFACE)
        self._frames.add(data)
        if not self._working:
            self._work()

    def _began(self) -> None:
        if self._awaiting is not None and self._awaiting.active():
            self._awaiting.cancel()
        self._awaiting = None

    def _misplaced(self, begin: bytes) -> None:
        if begin.startswith(b"\x16\x03"):
            speaks = "TLS, which this port does not take"
        elif begin.startswith(b"\0"):
            speaks = "VerneMQ's TCP stream, which belongs to the sidecar port"
        elif re.match(rb"[A-Z]+ ", begin):
            speaks = "HTTP/1, but this port is for gRPC only"
        else:
            speaks = "no HTTP/2"
        self.factory.complain(self, "preface", f"the peer speaks {speaks}: connection closed")
        self.abort()

    def _work(self) -> None:
        """Work off some frames, and leave the rest for the next turn, so that other connections have theirs."""
        self._working = False
        if self._lost:
            return
        try:
            frames, more = self._frames.cut()
            self._take(self._receive(frames))
            self._calm()
        except Unacceptable as error:
            self._end(error.code, str(error))
            return
        except ProtocolError as error:
            self._end(int(error.error_code), f"a call cannot be answered ({error})")
            return
        self.flush()
        if more and not self._lost:
            self._working = True
            self.factory.clock.callLater(0, self._work)
        self._regulate()

    def _receive(self, frames: bytes) -> list[Any]:
        try:
            return self._h2.receive_data(frames)
        except ProtocolError as error:
            raise Unacceptable(int(error.error_code), f"invalid HTTP/2 ({error})") from None
        except Exception as error:
            # Damaged bytes can make h2 and the libraries below it raise anything.
            name = type(error).__name__
            raise Unacceptable(PROTOCOL_ERROR, f"invalid HTTP/2 ({name}: {error})") from None

    def _calm(self) -> None:
        """Raise :exc:`Unacceptable` if the peer sends far more frames than its calls need."""
        frames = self._frames
        if frames.idle > IDLE:
            now = self.factory.clock.seconds()
            frames.idle -= min(frames.idle, int((now - self._calmed) * IDLE_RATE))
            self._calmed = now
            if frames.idle > IDLE:
                raise Unacceptable(ENHANCE_YOUR_CALM, "a flood of frames that belong to no calls")

    def _take(self, events: list[Any]) -> None:
        # ``h2`` has seen all of these events, so a call may be over already: look at them all before sending anything.
        ended: list[Call] = []
        opened = False
        taken = 0
        self._taking = True
        for event in events:
            if isinstance(event, DataReceived):
                size = event.flow_controlled_length
                taken += size
                call = self.calls.get(event.stream_id)
                if call is not None and call.refusal is None:
                    call.taken += size
                    call.content += event.data
                    self.factory.brought(call, len(event.data))
            elif isinstance(event, StreamEnded):
                call = self.calls.get(event.stream_id)
                if call is not None:
                    call.ended = True
                    ended.append(call)
            elif isinstance(event, RequestReceived):
                self._begin(event)
            elif isinstance(event, StreamReset):
                self._blocked.pop(event.stream_id, None)
                call = self.calls.get(event.stream_id)
                if call is not None:
                    self._cancelled(call)
            elif isinstance(event, (WindowUpdated, RemoteSettingsChanged)):
                opened = True
        self._taking = False
        self._make_room(taken)
        self._refuse_early()
        for call in ended:
            self.factory.ended(call)
        if opened and self._blocked:
            blocked, self._blocked = self._blocked, {}
            for stream, message in blocked.items():
                self._send(stream, message)

    def _make_room(self, taken: int) -> None:
        """
        Let the peer send more once half of the window is used. ``h2`` itself would look at each call.

        :param taken: bytes that came.
        """
        self._taken += taken
        if self._taken >= WINDOW // 2:
            self._h2.increment_flow_control_window(self._taken)
            self._taken = 0
            for call in self.calls.values():
                if not call.ended and call.taken:
                    self._h2.increment_flow_control_window(call.taken, call.stream)
                    call.taken = 0

    def _begin(self, event: RequestReceived) -> None:
        stream = event.stream_id
        if self._closing:
            self._reset(stream, ErrorCodes.REFUSED_STREAM)
            return
        call = Call(self, stream, self.factory.clock.seconds(), dict(event.headers))
        if len(self.calls) >= CALLS:
            orphan = next((other for other in self.calls.values() if not other.ended), None)
            if orphan is not None:
                self.orphan(orphan)
            else:
                call.refusal = RESOURCE_EXHAUSTED, f"more than {CALLS} calls of this connection wait for an answer"
        self.calls[stream] = call
        self.factory.began(call)
        if call.refusal is not None:
            self._early.append(call)

    # Answering.

    def answer(self, call: Call, status: int, words: str = "", message: bytes = EMPTY) -> None:
        """
        Answer a call, unless it is answered or its caller has left. :meth:`flush` sends the answer.

        :param words: the reason, in plain ASCII. Use only a few fixed texts, since the peer keeps them in its header table.
        :param message: the message for status 0, with the five bytes before it.
        """
        if self.calls.pop(call.stream, None) is None:
            return
        self.factory.answered(call, status)
        self._frames.idle = max(0, self._frames.idle - WORTH)
        try:
            if status == OK:
                self._send(call.stream, message)
            else:
                self._decline(call, status, words)
        except ProtocolError as error:
            self._end(int(error.error_code), f"a call cannot be answered ({error})")

    def _decline(self, call: Call, status: int, words: str) -> None:
        headers = [*_OK_HEADERS, (b"grpc-status", b"%d" % status), (b"grpc-message", words.encode("ascii", "replace"))]
        self._h2.send_headers(call.stream, [*headers, _IDENTITY] if status == UNIMPLEMENTED else headers, end_stream=True)
        if not call.ended:
            self._reset(call.stream, ErrorCodes.NO_ERROR)

    def refuse(self, call: Call, status: int, words: str) -> None:
        """Refuse a call that has not ended, and forget the part that has arrived."""
        call.refusal = status, words
        call.content = bytearray()
        self._early.append(call)
        if not self._taking:
            self._refuse_early()
            self.flush()

    def _refuse_early(self) -> None:
        early, self._early = self._early, []
        for call in early:
            if call.refusal is not None:
                self.answer(call, *call.refusal)

    def orphan(self, call: Call) -> None:
        """Reset a call that does not end, and count it."""
        if self.calls.pop(call.stream, None) is not None:
            self.factory.orphaned(call)
            self._reset(call.stream, ErrorCodes.CANCEL)

    def flush(self) -> None:
        """Write the bytes that are ready to be sent."""
        data = self._h2.data_to_send()
        if data and not self._lost:
            assert self.transport is not None
            self.transport.write(data)
        self._close_if_done()

    def _send(self, stream: int, message: bytes) -> None:
        if self._h2.local_flow_control_window(stream) < len(message):
            # The peer has no room for five bytes. If it never has, MAX_CONCURRENT_STREAMS bounds what is kept here.
            self._blocked[stream] = message
            return
        self._h2.send_headers(stream, _OK_HEADERS)
        self._h2.send_data(stream, message)
        self._h2.send_headers(stream, _OK_TRAILERS, end_stream=True)

    def _reset(self, stream: int, code: ErrorCodes) -> None:
        try:
            self._h2.reset_stream(stream, code)
        except ProtocolError:
            # The peer has reset the call itself.
            pass

    def _cancelled(self, call: Call) -> None:
        del self.calls[call.stream]
        self.factory.answered(call, CANCELLED)

    # Pausing and ending.

    def pauseProducing(self) -> None:
        """Stop reading, because the peer does not read its answers."""
        self._unread = True
        self._regulate()

    def resumeProducing(self) -> None:
        """Resume reading."""
        self._unread = False
        self._regulate()

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost, and :meth:`connectionLost` follows."""

    def _regulate(self) -> None:
        transport: Any = self.transport
        if self._lost:
            return
        if self._working or self._unread:
            transport.pauseProducing()
        else:
            transport.resumeProducing()

    def close(self) -> None:
        """Take no further calls, answer those that have arrived, and close the connection."""
        if not self._closing:
            self._closing = True
            if self._begun and self.transport is not None:
                self.flush()
                self.transport.write(goaway(self._h2.highest_inbound_stream_id))
            self._close_if_done()

    def _close_if_done(self) -> None:
        if (self._closing or self._frames.leaving) and not (self._lost or self.calls or self._blocked or self._working):
            self._lose()

    def _end(self, code: int, why: str) -> None:
        """Close the connection because of a fault of the peer."""
        if self._lost:
            return
        self.factory.complain(self, "protocol", f"{why}: connection closed")
        assert self.transport is not None
        self.transport.write(self._h2.data_to_send() + goaway(self._h2.highest_inbound_stream_id, code))
        self._lose()

    def _lose(self) -> None:
        transport: Any = self.transport
        self._lost = True
        for call in list(self.calls.values()):
            self._cancelled(call)
        self._began()
        transport.unregisterProducer()
        transport.loseConnection()
        self._awaiting = self.factory.clock.callLater(CLOSING_TIME, transport.abortConnection)

    def abort(self) -> None:
        """Close the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()
