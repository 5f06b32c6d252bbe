"""
Making calls as VerneMQ's gRPC client does: without a network, byte by byte, or with grpcio over a socket.
"""

import json
from base64 import b64decode
from typing import NamedTuple

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from twisted.application.service import Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from mqhooks.interfaces import IBoundedSink
from mqhooks.sources.grpc.factory import GrpcFactory
from mqhooks.sources.sidecar.encode import varint
from tests.frames import DATA, envelope

EVENT = "/webhook.v1beta1.PluginService/Event"
CHECK = "/grpc.health.v1.Health/Check"


class Golden(NamedTuple):
    """A recorded call."""

    type: str
    headers: list[tuple[str, str]]
    message: bytes
    decoded: dict


def golden_calls():
    """Yield every recorded call, its message with the five bytes before it."""
    with (DATA / "grpc.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            headers = [tuple(header) for header in record["headers"]]
            yield Golden(record["type"], headers, b64decode(record["message_b64"]), record["decoded"])


HEADERS = next(golden_calls()).headers


def request(message) -> bytes:
    """Make an ``EventRequest`` with a message of ``mqhooks.pb``, or with the bytes of an ``Any``."""
    frame = message if isinstance(message, bytes) else envelope(message)
    return b"\x0a" + varint(len(frame)) + frame


def prefixed(message: bytes, flag=0) -> bytes:
    """Put the five bytes before a message."""
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


@implementer(IBoundedSink)
class StoringSink(Service):
    """
    Commits at once, or when the test says so.

    :ivar events: the events that it was given.
    :ivar waiting: the deferreds that :meth:`commit` fires, if it holds, or has no room.
    """

    name = None

    def __init__(self):
        self.batches = []
        self.waiting = []
        self.holds = self.full = False
        self.error = None

    @property
    def events(self):
        return [event for batch in self.batches for event in batch]

    def receive(self, events):
        stored = self.store(events)
        if not self.full:
            return stored
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def store(self, events):
        if self.error is not None:
            raise self.error
        self.batches.append(list(events))
        if not self.holds:
            return None
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def commit(self):
        waiting, self.waiting = self.waiting, []
        for deferred in waiting:
            deferred.callback(None)


class Answer(NamedTuple):
    """The answer to a call."""

    status: int | None
    words: str
    message: bytes
    headers: dict[str, str]
    reset: int | None


class Client:
    """
    An HTTP/2 client over a transport in memory.

    :ivar h2: makes the bytes that :meth:`send` hands over.
    :ivar closed: whether the server has closed the connection.
    :ivar gone: the error code of its GOAWAY.
    """

    def __init__(self, factory, clock, *, begin=True):
        self.clock = clock
        self.protocol = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)
        self.h2 = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
        self.gone = None
        self._parts = {}
        if begin:
            self.h2.initiate_connection()
            self.send()

    @property
    def closed(self):
        return self.transport.disconnecting

    def call(self, message, *, path=EVENT, end=True, flush=True, data=None, **changed):
        """Make a call, and return its number."""
        headers = dict(HEADERS) | {":path": path} | {name.replace("_", "-"): value for name, value in changed.items()}
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [header for header in headers.items() if header[1] is not None])
        if message is not None:
            content = prefixed(message) if data is None else data
            for start in range(0, max(1, len(content)), 16_384):
                piece = content[start : start + 16_384]
                self.h2.send_data(stream, piece, end_stream=end and start + len(piece) >= len(content))
        if flush:
            self.send()
        return stream

    def send(self, data=None):
        """Hand over bytes, by default those of ``h2``, and let the server have its turn."""
        self.protocol.dataReceived(self.h2.data_to_send() if data is None else data)
        self.turn()

    def turn(self, seconds=0.0):
        """Let time pass, and read the bytes that have come."""
        for _ in range(100):
            self.clock.advance(0)
            self.read()
        self.clock.advance(seconds)
        self.read()

    def read(self):
        data = self.transport.value()
        self.transport.clear()
        for event in self.h2.receive_data(data) if data else ():
            if isinstance(event, ConnectionTerminated):
                self.gone = int(event.error_code)
            elif isinstance(event, (ResponseReceived, TrailersReceived)):
                self._parts.setdefault(event.stream_id, {}).update({"headers": {}} | self._parts.get(event.stream_id, {}))
                self._parts[event.stream_id]["headers"] |= {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, DataReceived):
                self._parts[event.stream_id]["message"] = self._parts[event.stream_id].get("message", b"") + event.data
            elif isinstance(event, StreamEnded):
                self._parts[event.stream_id]["ended"] = True
            elif isinstance(event, StreamReset):
                self._parts.setdefault(event.stream_id, {})["reset"] = int(event.error_code)

    def answer(self, stream):
        """Return the answer to a call; ``None`` while there is none."""
        parts = self._parts.get(stream)
        if parts is None or not ({"ended", "reset"} & parts.keys()):
            return None
        headers = parts.get("headers", {})
        status = int(headers["grpc-status"]) if "grpc-status" in headers else None
        return Answer(status, headers.get("grpc-message", ""), parts.get("message", b""), headers, parts.get("reset"))


class CallsMixin:
    """Makes a factory with a clock and a sink that the test controls."""

    def make(self, **settings):
        self.clock = Clock()
        self.sink = StoringSink()
        self.factory = GrpcFactory(self.clock, self.sink, **settings)
        self.counters = self.factory.counters
        return Client(self.factory, self.clock)

    def status(self, client, stream):
        answer = client.answer(stream)
        return None if answer is None else answer.status


class Stub:
    """
    VerneMQ's calls through grpcio, as deferreds.

    :param case: the test case; it closes the channel.
    """

    def __init__(self, case, port, **options):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[*options.items(), ("grpc.enable_retries", 0)])
        case.addCleanup(self.channel.close)

    def future(self, message, *, timeout=10.0, path=EVENT, **options):
        return self.channel.unary_unary(path).future(message, timeout=timeout, **options)

    def call(self, message, **options):
        """Make a call; returns a ``Deferred`` that fires with the status as a number, and the message or the error's text."""
        done = Deferred()

        def tell(future):
            result = (1, "") if future.cancelled() else (future.code().value[0], future.details() or "")
            reactor.callFromThread(done.callback, result)

        self.future(message, **options).add_done_callback(tell)
        return done
