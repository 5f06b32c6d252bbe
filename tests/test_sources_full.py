"""What the sources that answer say while the outbox is full, from the broker's client to the endpoint and back."""

import json
from base64 import b64encode
from collections import defaultdict
from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool

from mqhooks.pb.on_publish_pb2 import OnPublish
from tests import grpccalls, vernemq
from tests.endpoints import Endpoint
from tests.processes import Twistd
from tests.waiting import until

CLIENTS = ("a", "b", "c", "d")
SIZE = 8000
"""Bytes of a payload: some 130 fill the smallest outbox."""


class FullOutboxTests(TestCase):
    timeout = 120

    async def start(self, listening, *options):
        """Start a bridge whose endpoint is down; returns the port of a source."""
        self.down = True
        self.arrived = defaultdict(list)
        self.ids = set()
        url = Endpoint(self.answer).listen(self, reactor)
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        config = directory / "mqhooks.conf"
        retry = "retry { initial = 20ms, max = 50ms }"
        config.write_text(
            f'webhook {{ url = "{url}", {retry}, events = [ {{ event = on_message_publish }} ] }}\n'
            f'mqhooks {{ outbox {{ path = "{directory / "outbox"}", max_size = 1MiB }} }}',
            encoding="utf-8",
        )
        self.bridge = Twistd(self, "mqhooks", "--admin-port", "0", *options, "--config", str(config))
        return int((await self.bridge.until(listening + r" on 127\.0\.0\.1:(\d+)", anywhere=True))[1])

    def answer(self, request):
        if self.down:
            request.connection.reply(503)
            return
        body = json.loads(request.body)
        self.arrived[body["from_client_id"]].append(int(body["payload"].rstrip("x")))
        self.ids.add(request.header("webhook-id"))
        request.connection.reply()

    async def offer(self, call, accepted, answered, client, enough):
        """Send a client's events, one after the other, until so many in a row got this answer; returns all answers."""
        answers = []
        while answers[-enough:] != [answered] * enough:
            number = len(accepted[client]) + len(self.refused[client])
            self.assertLess(number, 1000)
            answers.append(await call(client, number))
            (accepted if answers[-1] == self.taken else self.refused)[client].append(number)
        return set(answers)

    async def fill_and_drain(self, call, taken, refused):
        self.taken = taken
        accepted, self.refused = defaultdict(list), defaultdict(list)

        async def offer(answered, enough):
            offers = [self.offer(call, accepted, answered, client, enough) for client in CLIENTS]
            return set().union(*await gatherResults([Deferred.fromCoroutine(each) for each in offers]))

        self.assertEqual(await offer(refused, 5), {taken, refused})
        self.assertGreater(sum(map(len, accepted.values())), 50)
        self.assertEqual(self.arrived, {})
        self.down = False
        self.assertLessEqual(await offer(taken, 5), {taken, refused})
        await until(lambda: sum(map(len, self.arrived.values())) >= sum(map(len, accepted.values())))
        self.assertEqual(self.arrived, accepted)
        self.assertEqual(len(self.ids), sum(map(len, accepted.values())))

    async def test_grpc(self):
        port = await self.start("listening for VerneMQ's gRPC", "--sidecar-port", "0", "--grpc-port", "0")
        stub = grpccalls.Stub(self, port)
        times = iter(range(10**18, 2 * 10**18))

        def call(client, number):
            message = OnPublish(client_id=client, topic="t", payload=b"%d" % number + b"x" * SIZE)
            message.timestamp.FromNanoseconds(next(times))
            return stub.call(grpccalls.request(message))

        await self.fill_and_drain(call, (0, ""), (8, "no room in the outbox"))

    async def test_webhooks(self):
        port = await self.start("listening for VerneMQ's webhooks", "--webhooks-port", "0")
        pool = HTTPConnectionPool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        client_of_http = treq.client.HTTPClient(Agent(reactor, pool=pool))

        async def call(client, number):
            made = vernemq.request(client_id=client, payload=b64encode(b"%d" % number + b"x" * SIZE).decode())
            head, _, body = made.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if "content-length" not in line)
            response = await client_of_http.post(f"http://127.0.0.1:{port}/vernemq", headers=headers, data=body)
            return response.code, await response.text()

        refused = '{"error":"the outbox has no room for more events"}'
        await self.fill_and_drain(call, (200, '{"result":"next"}'), (503, refused))
