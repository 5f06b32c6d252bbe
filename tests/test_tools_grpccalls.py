"""Calls like those of the gRPC channel of VerneMQ's fork."""

import json
import random
from base64 import b64decode
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.pb.event_request_pb2 import EventRequest
from mqhooks.sources.grpc.factory import GrpcFactory
from mqhooks.sources.grpc.listener import GrpcService
from mqhooks.sources.grpc.settings import GrpcSettings
from mqhooks.sources.sidecar.encode import encode
from mqhooks.testing import RecordingSink, make_event
from mqhooks.tools.grpccalls import connections, message_of
from mqhooks.tools.pool import SenderPool
from mqhooks.tools.simulator import Options, from_options
from tests.test_tools_calls import Stopping

RECORDED = Path(__file__).parent / "data" / "grpc.jsonl"


class MessageTests(SynchronousTestCase):
    def test_messages_are_those_of_vernemq(self):
        for line in RECORDED.read_text(encoding="utf-8").splitlines():
            recorded = b64decode(json.loads(line)["message_b64"])
            frame = EventRequest.FromString(recorded[5:]).event.SerializeToString()
            self.assertEqual(message_of(frame), recorded)

    def test_what_the_encoder_does_not_know_is_not_called(self):
        self.assertIsNone(message_of(b""))


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

    async def test_simulator(self):
        options = Options()
        target = f"tcp:127.0.0.1:{self.listen()}"
        options.parseOptions(["--via", "grpc", "--target", target, "--rate", "0", "--count", "500", "--connections", "5"])
        done = Deferred()
        simulator = from_options(Stopping(reactor, done), options)
        simulator.startService()
        self.addCleanup(simulator.stopService)
        await done
        self.assertEqual(len(self.sink.events), 500)
