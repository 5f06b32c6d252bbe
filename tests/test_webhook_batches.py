"""Several events in one request, over real connections."""

import gzip
import json
from collections import defaultdict
from random import Random
from time import time

from standardwebhooks import Webhook
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mqhooks.app.webhooks import transport_for
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.support.signatures import verify
from mqhooks.testing import make_event
from mqhooks.webhook.settings import BatchSettings, RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.endpoints import Endpoint

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class DeliveryTests(TestCase):
    """Over real connections."""

    timeout = 120

    def make(self, respond, batch, **values):
        self.endpoint = Endpoint(respond)
        url = self.endpoint.listen(self, reactor)
        self.outbox = MemoryOutbox()
        settings = WebhookSettings(
            "w",
            url,
            (Rule("on_message_publish"),),
            batch=batch,
            **{"merge_window": 0, "pool_size": 2, "retry": RetrySettings(initial=0.01, maximum=0.02)} | values,
        )
        self.sink = WebhookSink(reactor, settings, self.outbox, transport_for(reactor, settings), random=Random(1))
        self.sink.startService()
        self.addCleanup(self.sink.stopService)
        return self.sink

    def send(self, count, clients=7):
        self.sink.receive(
            [
                make_event("on_publish", client_id=f"c{number % clients}", payload=str(number).encode(), topic="t")
                for number in range(count)
            ]
        )

    async def drained(self):
        while self.outbox.counts.pending:
            await deferLater(reactor, 0.01)

    def assert_identities(self):
        counters, counts = self.sink.counters, self.outbox.counts
        self.assertEqual(counts.accepted, counts.delivered + counts.dead + counts.pending)
        self.assertEqual(counters.attempts, counts.delivered + counters.refused + counters.failed)

    def assert_in_order(self, numbers, clients=7):
        last = {}
        for number in numbers:
            self.assertLess(last.get(number % clients, -1), number)
            last[number % clients] = number

    async def test_an_array(self):
        self.make(lambda request: request.connection.reply(200), BatchSettings(size=50), secrets=(SECRET,))
        self.send(500)
        await self.drained()
        numbers, ids = [], []
        for request in self.endpoint.requests:
            self.assertEqual(request.header("content-type"), "application/json")
            Webhook(SECRET).verify(request.body, {name.lower(): value for name, value in request.headers})
            events = json.loads(request.body)
            self.assertLessEqual(len(events), 50)
            numbers += [int(event["payload"]) for event in events]
            ids += [event["webhook_id"] for event in events]
            self.assertEqual(list(events[0])[:2], ["ts", "topic"])
        self.assertEqual(sorted(numbers), list(range(500)))
        self.assertEqual(len(set(ids)), 500)
        self.assertLess(len(self.endpoint.requests), 40)
        self.assert_in_order(numbers)
        self.assert_identities()

    async def test_lines_compressed(self):
        batch = BatchSettings(size=20, format="ndjson", compression="gzip")
        self.make(lambda request: request.connection.reply(204), batch, secrets=(SECRET,))
        self.send(100)
        await self.drained()
        numbers = []
        for request in self.endpoint.requests:
            self.assertEqual(request.header("content-encoding"), "gzip")
            self.assertEqual(request.header("content-type"), "application/x-ndjson")
            body = gzip.decompress(request.body)
            # What is signed is the body before it is compressed.
            verify([SECRET], request.headers, body, time())
            self.assertTrue(body.endswith(b"\n"))
            numbers += [int(json.loads(line)["payload"]) for line in body.splitlines()]
        self.assertEqual(sorted(numbers), list(range(100)))

    async def test_the_one_at_fault_is_found(self):
        bad = {13, 14, 77}
        delivered = []

        def respond(request):
            numbers = [int(event["payload"]) for event in json.loads(request.body)]
            refused = bad & set(numbers)
            if not refused:
                delivered.extend(numbers)
            request.connection.reply(400 if refused else 200)

        self.make(respond, BatchSettings(size=25))
        self.send(100)
        await self.drained()
        self.assertEqual(sorted(delivered), sorted(set(range(100)) - bad))
        dead = {int(json.loads(letter.delivery.body)["payload"]) for letter in self.outbox.dead_letters}
        self.assertEqual(dead, bad)
        self.assert_in_order(delivered)
        self.assert_identities()

    async def test_failures_are_tried_again_with_the_same_ids(self):
        random = Random(2)
        attempts, delivered = defaultdict(set), []

        def respond(request):
            events = json.loads(request.body)
            for event in events:
                attempts[int(event["payload"])].add(event["webhook_id"])
            luck = random.random()
            if luck < 0.2:
                request.connection.reply(503)
            elif luck < 0.3:
                request.connection.transport.abortConnection()
            else:
                delivered.extend(int(event["payload"]) for event in events)
                request.connection.reply(200)

        self.make(respond, BatchSettings(size=10, linger=0.01))
        self.send(300)
        await self.drained()
        self.assertEqual(sorted(delivered), list(range(300)))
        self.assertEqual({len(ids) for ids in attempts.values()}, {1})
        self.assertGreater(self.sink.counters.failed, 0)
        self.assert_in_order(delivered)
        self.assert_identities()

    async def test_an_endpoint_that_is_down_spends_no_attempts(self):
        self.make(
            lambda request: request.connection.reply(200),
            BatchSettings(size=10, linger=0),
            retry=RetrySettings(initial=0.01, maximum=0.02, max_attempts=1),
        )
        number = self.endpoint.port.getHost().port
        await self.endpoint.stop(self.endpoint.port)
        self.send(400, clients=50)
        while self.sink.counters.failed < 50:
            await deferLater(reactor, 0.01)
        self.endpoint.listen(self, reactor, number)
        await self.drained()
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.dead), (400, 0))
        self.assert_identities()

    async def test_nothing_goes_out_after_the_end(self):
        self.make(lambda request: request.connection.reply(200), BatchSettings(linger=60))
        self.outbox.durable = True
        self.send(3)
        await self.sink.stopService()
        self.assertEqual((self.endpoint.requests, self.outbox.counts.pending), ([], 3))
