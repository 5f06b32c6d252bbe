"""Calls like those of the gRPC channel of VerneMQ's fork."""

import json
import random
from base64 import b64decode
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, StreamEnded
from h2.settings import SettingCodes
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectionAborted
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import EventLoggingObserver, StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.pb.event_request_pb2 import EventRequest
from mqhooks.sources.grpc.factory import GrpcFactory
from mqhooks.sources.grpc.listener import GrpcService
from mqhooks.sources.grpc.settings import GrpcSettings
from mqhooks.sources.sidecar.encode import encode
from mqhooks.testing import RecordingSink, make_event
from mqhooks.tools.grpccalls import connections, message_of
from mqhooks.tools.pool import SenderPool
from tests.test_tools_calls import simulated

RECORDED = Path(__file__).parent / "data" / "grpc.jsonl"


class MessageTests(SynchronousTestCase):
    def test_messages_are_those_of_vernemq(self):
        for line in RECORDED.read_text(encoding="utf-8").splitlines():
            recorded = b64decode(json.loads(line)["message_b64"])
            frame = EventRequest.FromString(recorded[5:]).event.SerializeToString()
            self.assertEqual(message_of(frame), recorded)

    def test_what_the_encoder_does_not_know_is_not_called(self):
        self.assertIsNone(message_of(b""))


class Server(Protocol):
    """Answers calls, a few at most, and then says goodbye."""

    def __init__(self, most):
        self.most = most
        self.over = False

    def connectionMade(self):
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.transport.write(self.h2.data_to_send())

    def dataReceived(self, data):
        if self.over:
            return
        for event in self.h2.receive_data(data):
            if isinstance(event, DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded) and self.most:
                self.most -= 1
                self.answer(event.stream_id)
                if not self.most:
                    self.over = True
                    self.h2.close_connection()
                    break
        self.transport.write(self.h2.data_to_send())

    def answer(self, stream):
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        self.h2.send_data(stream, bytes(5))
        self.h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)


class ConnectionTests(SynchronousTestCase):
    """One connection, without a network."""

    MESSAGE = message_of(encode(make_event("on_publish").message))
    LONG = message_of(encode(make_event("on_publish", payload=bytes(100_000)).message))

    def setUp(self):
        self.clock = Clock()
        self.pool = SenderPool(self.clock, None, "it", 1, random.Random(1))
        self.connection = connections(self.clock, 1)(self.pool)
        self.transport, self.peer = StringTransport(), StringTransport()
        self.connection.makeConnection(self.transport)
        self.server = Server(0)
        self.server.makeConnection(self.peer)
        self.exchange()

    def exchange(self):
        """Let each read what the other has written."""
        while self.transport.value() or self.peer.value():
            written, answered = self.transport.value(), self.peer.value()
            self.transport.clear()
            self.peer.clear()
            if written:
                self.server.dataReceived(written)
            if answered:
                self.connection.dataReceived(answered)

    def tell(self):
        """Hand over what the server's h2 has made."""
        self.connection.dataReceived(self.server.h2.data_to_send())

    def send(self, *messages):
        for message in messages:
            self.connection.send(message)

    def assert_over(self, outcome, why="closed cleanly"):
        """It is aborted, makes no more calls whatever happens to it, counts those in flight, and the log says why."""
        observer = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.assertEqual((self.transport.disconnecting, self.pool.ready), (True, []))
        self.connection.resumeProducing()
        self.clock.advance(0.1)
        self.assertEqual(self.pool.ready, [])
        self.connection.connectionLost(Failure(ConnectionAborted()))
        (event,) = observer
        self.assertRegex(formatEvent(event), rf"no connection to it \(.*{why}.*\); retrying")
        self.assertEqual((self.pool.outcome, self.pool.ready), (f"connections lost: 1, {outcome}", []))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_call_after_goodbye(self):
        self.server.most = 1
        self.send(self.MESSAGE, self.MESSAGE, self.LONG)
        self.exchange()
        self.assert_over("connection lost: 2, status 0: 1")

    def test_no_part_of_a_call_after_goodbye(self):
        self.send(self.LONG)
        self.server.h2.close_connection()
        self.tell()
        self.clock.advance(1)
        self.assertEqual(self.pool.answers, {"deadline exceeded": 1})
        self.assert_over("deadline exceeded: 1")

    def test_an_answer_that_comes_with_the_goodbye_counts(self):
        self.send(self.LONG)
        self.server.dataReceived(self.transport.value())
        self.server.answer(1)
        self.server.h2.close_connection()
        self.tell()
        self.assert_over("status 0: 1")

    def test_what_is_not_http2_is_the_end(self):
        data, headers = b"\0\0\1\0\0\0\0\0\1x", b"\0\0\6\1\4\0\0\0\1\x88\0\1a\1\xff"
        for damaged, why in ((data, "before headers"), (headers, "decode")):
            with self.subTest(damaged=damaged):
                self.setUp()
                self.send(self.MESSAGE, self.LONG)
                self.connection.dataReceived(damaged)
                self.assert_over("connection lost: 2", why)

    def test_a_connection_that_is_lost_is_not_ready(self):
        woken = []
        self.send(*[self.MESSAGE] * 100)
        self.assertEqual(self.pool.ready, [])
        self.pool.wake = lambda: woken.append(self.pool.ready)
        self.connection.connectionLost(connectionDone)
        self.assertEqual((woken, self.pool.outcome), ([], "connections lost: 1, connection lost: 100"))

    def test_a_call_that_the_peer_resets_ends_no_other(self):
        self.send(self.LONG, self.MESSAGE)
        self.server.dataReceived(self.transport.value())
        self.server.h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
        self.tell()
        self.server.answer(3)
        self.tell()
        self.assertEqual((self.pool.outcome, self.transport.disconnecting), ("no status: 1, status 0: 1", False))

    def test_no_more_calls_than_the_peer_allows(self):
        self.server.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 2})
        self.tell()
        self.send(self.MESSAGE)
        self.assertEqual(self.pool.ready, [self.connection])
        self.send(self.MESSAGE)
        self.assertEqual(self.pool.ready, [])
        self.server.dataReceived(self.transport.value())
        self.server.answer(1)
        self.tell()
        self.assertEqual(self.pool.ready, [self.connection])

    def test_calls_given_up_use_up_the_connection_not_the_sender(self):
        self.server.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        self.tell()
        self.send(self.MESSAGE)
        self.clock.advance(1)
        self.assertEqual(self.pool.ready, [self.connection])
        self.send(self.MESSAGE)
        self.assert_over("deadline exceeded: 1, connection lost: 1", "Max outbound streams")


class PoolTests(TestCase):
    timeout = 120

    async def open(self, port, size):
        pool = SenderPool(
            reactor,
            clientFromString(reactor, f"tcp:127.0.0.1:{port}"),
            "it",
            size,
            random.Random(1),
            connections(reactor, size),
        )
        await pool.open()
        await deferLater(reactor, 0)
        return pool

    def listen(self):
        self.sink = RecordingSink()
        service = GrpcService(reactor, GrpcSettings(("tcp:0",)), GrpcFactory(reactor, self.sink))
        service.startService()
        self.addCleanup(service.stopService)
        return service.addresses[0].port

    async def test_calls_are_answered_and_counted_however_long_they_are(self):
        pool = await self.open(self.listen(), 3)
        for number in range(30):
            event = make_event("on_publish", payload=b"x" * (300_000 if number == 7 else 10))
            pool.put(message_of(encode(event.message)), random.Random(number))
        await pool.close()
        self.assertEqual((pool.outcome, len(self.sink.events)), ("status 0: 30", 30))

    async def test_who_does_not_answer_is_given_up(self):
        silent = Factory.forProtocol(Protocol)
        port = reactor.listenTCP(0, silent, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        pool = await self.open(port.getHost().port, 1)
        self.addCleanup(pool.abort)
        pool.put(message_of(encode(make_event("on_publish").message)), random.Random(1))
        await pool.close()
        self.assertEqual(pool.outcome, "deadline exceeded: 1")

    async def test_it_goes_on_when_each_connection_is_ended_after_a_few_calls(self):
        factory = Factory.forProtocol(lambda: Server(10))
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        target = f"tcp:127.0.0.1:{port.getHost().port}"
        simulator = await simulated(self, "--via=grpc", "--target", target, "--rate=0", "--count=220", "--connections=4")
        self.assertEqual(simulator.sent.total(), 220)

    async def test_simulator(self):
        target = f"tcp:127.0.0.1:{self.listen()}"
        await simulated(self, "--via=grpc", "--target", target, "--rate=0", "--count=500", "--connections=5")
        self.assertEqual(len(self.sink.events), 500)
