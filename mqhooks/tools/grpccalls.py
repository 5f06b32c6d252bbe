"""
Making calls like the gRPC channel of VerneMQ's fork: over many connections, many at once, and in no order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mqhooks.pb.event_request_pb2 import EventRequest
from mqhooks.tools.pool import PoolConnection, SenderPool

CALLS = 100
"""Most calls in flight over all connections: VerneMQ's ``grpc_worker_pool_size``."""

TIMEOUT = 0.5
"""Seconds before a call is given up: VerneMQ's ``grpc_timeout``."""

_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/webhook.v1beta1.PluginService/Event"),
    (":authority", "mqhooks"),
    ("content-type", "application/grpc+proto"),
    ("user-agent", "grpc-erlang/0.1.0"),
    ("grpc-encoding", "identity"),
    ("grpc-message-type", "webhook.v1beta1.EventRequest"),
    ("te", "trailers"),
    ("grpc-timeout", "500m"),
    ("user-type", "customer"),
]
_PREFIX = Struct("!BI")


def message_of(frame: bytes) -> bytes | None:
    """
    Make the message of a call.

    :param frame: the frame that the sidecar would send, without its length.
    :returns: the message with gRPC's prefix; ``None`` for an empty frame, for which there is no call.
    """
    if not frame:
        return None
    request = EventRequest()
    request.event.ParseFromString(frame)
    message = request.SerializeToString()
    return _PREFIX.pack(0, len(message)) + message


class GrpcConnection(PoolConnection):
    """
    A connection that makes calls; the pool counts the answers.

    :param pool: the pool.
    :param clock: for the calls' timeouts.
    :param limit: most calls in flight.
    """

    def __init__(self, pool: SenderPool, clock: IReactorTime, limit: int) -> None:
        super().__init__(pool)
        self._clock = clock
        self._limit = limit
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._calls: dict[int, IDelayedCall] = {}
        self._waiting: dict[int, bytes] = {}
        self._choked = False
        self._over = False
        self._why: Failure | None = None
        self._idle: list[Deferred[None]] = []

    def connectionMade(self) -> None:
        """Begin with HTTP/2's preface."""
        self._h2.initiate_connection()
        self.transport.write(self._h2.data_to_send())
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note that calls in flight get no answer any more."""
        self._leave()
        for stream in list(self._calls):
            self._answered(stream, "connection lost")
        super().connectionLost(self._why or reason)

    def send(self, item: bytes) -> None:
        """Make a call."""
        try:
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, _HEADERS)
        except ProtocolError:
            # No number is left for a call, or those given up use up what the peer allows. A new connection helps with both.
            self._pool.answers["connection lost"] += 1
            self._why = Failure()
            self.abort()
            return
        self._calls[stream] = self._clock.callLater(TIMEOUT, self._answered, stream, "deadline exceeded")
        self._waiting[stream] = item
        self._write()
        self._regulate()

    def _write(self) -> None:
        """Send as much of the messages as the peer has room for."""
        for stream, rest in list(self._waiting.items()):
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            while rest and room > 0:
                piece, rest = rest[:room], rest[room:]
                self._h2.send_data(stream, piece, end_stream=not rest)
                room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if rest:
                self._waiting[stream] = rest
            else:
                del self._waiting[stream]
        self.transport.write(self._h2.data_to_send())

    def dataReceived(self, data: bytes) -> None:
        """Take in answers."""
        try:
            events = self._h2.receive_data(data)
        except Exception:
            # Damaged bytes can make h2 and the libraries below it raise anything.
            self._why = Failure()
            self.abort()
            return
        # ``h2`` has seen all of these events, so calls or the connection may be over already.
        for event in events:
            if isinstance(event, StreamReset):
                self._waiting.pop(event.stream_id or 0, None)
            elif isinstance(event, ConnectionTerminated):
                self._why = connectionDone
                self._leave()
        for event in events:
            self._happened(event)
        self._write()
        self._regulate()
        if self._over:
            self.abort()

    def abort(self) -> None:
        """Abort the connection; calls in flight get no answer."""
        self._leave()
        super().abort()

    def _leave(self) -> None:
        """Make no more calls, and send no more of their messages: ``h2`` would raise an error."""
        self._over = True
        self._waiting.clear()
        self._regulate()

    def _happened(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            headers: dict[Any, Any] = dict(event.headers or ())
            status = headers.get("grpc-status")
            if status is not None or headers.get(":status", "200") != "200":
                self._answered(event.stream_id, f"status {status}" if status is not None else f"HTTP {headers[':status']}")
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, StreamEnded | StreamReset):
            self._answered(event.stream_id, "no status")

    def _answered(self, stream: int | None, answer: str) -> None:
        timer = self._calls.pop(stream, None) if stream is not None else None
        if timer is None:
            return
        if timer.active():
            timer.cancel()
        if stream in self._waiting:
            del self._waiting[stream]
            self._h2.reset_stream(stream)
        self._pool.answers[answer] += 1
        self._regulate()
        if not self._calls:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)

    def _regulate(self) -> None:
        limit = min(self._limit, self._h2.remote_settings.max_concurrent_streams)
        (self._pool.busy if self._over or self._choked or len(self._calls) >= limit else self._pool.free)(self)

    def pauseProducing(self) -> None:
        """Stop making calls: the buffer is full."""
        self._choked = True
        self._regulate()

    def resumeProducing(self) -> None:
        """Make calls again."""
        self._choked = False
        self._regulate()

    def close(self) -> Deferred[None]:
        """
        Wait for all answers, and close the connection.

        :returns: a ``Deferred`` that fires when it is closed.
        """
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        closed = idle.addCallback(lambda _: PoolConnection.close(self))
        if not self._calls:
            self._idle.remove(idle)
            idle.callback(None)
        return closed


def connections(clock: IReactorTime, size: int) -> Callable[[SenderPool], GrpcConnection]:
    """Return the function that makes a pool's connections."""
    return partial(GrpcConnection, clock=clock, limit=max(CALLS // size, 1))
