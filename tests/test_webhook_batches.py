"""Several events in one request."""

import gzip
import json
from collections import defaultdict
from random import Random
from time import time

from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.delivery import Delivery
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.testing import make_event
from mqhooks.webhook.batches import BatchLanes
from mqhooks.webhook.lanes import Verdict
from mqhooks.webhook.settings import BatchSettings, RetrySettings, WebhookSettings
from mqhooks.webhook.signature import verify
from mqhooks.webhook.sink import WebhookSink
from tests.endpoints import Endpoint

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def delivery(client, number, size=10):
    return Delivery(f"{client}-{number}", client, 0, b"x" * size)


class LaneTests(SynchronousTestCase):
    """Batches that are ended as told."""

    def make(self, count=1, **values):
        self.clock = Clock()
        self.under_way = []
        self.lanes = BatchLanes(
            self.clock, BatchSettings(**{"size": 3} | values), count, self.send, lambda batch, result: result, self.recall
        )
        self.addCleanup(self.lanes.stop)
        return self.lanes

    def send(self, batch, done):
        self.under_way.append((list(batch), done))

    def recall(self, places):
        raise AssertionError("everything is in memory")

    def names(self):
        return [[one.id for one in batch] for batch, _ in self.under_way]

    def end(self, *verdicts, index=0):
        batch, done = self.under_way.pop(index)
        done(verdicts or [Verdict.DONE] * len(batch))

    def split(self):
        self.under_way.pop(0)[1](None)

    def test_a_full_batch_goes_at_once(self):
        self.make().push([delivery("a", number) for number in range(1, 4)])
        self.assertEqual(self.names(), [["a-1", "a-2", "a-3"]])

    def test_others_are_waited_for(self):
        lanes = self.make(linger=0.05)
        lanes.push([delivery("a", 1)])
        self.clock.advance(0.04)
        lanes.push([delivery("b", 1)])
        self.assertEqual(self.names(), [])
        self.clock.advance(0.01)
        self.assertEqual(self.names(), [["a-1", "b-1"]])
        self.assertEqual((lanes.load, lanes.size, lanes.under_way), (2, 20, 1))
        self.end()
        self.assertEqual((lanes.load, lanes.size, lanes.under_way), (0, 0, 0))

    def test_nothing_is_waited_for(self):
        lanes = self.make(linger=0)
        lanes.push([delivery("a", 1), delivery("a", 2)])
        self.assertEqual(self.names(), [["a-1", "a-2"]])
        lanes.push([delivery("a", 3)])
        self.end()
        self.assertEqual(self.names(), [["a-3"]])

    def test_a_batch_has_a_limit_of_bytes(self):
        lanes = self.make(max_bytes=25)
        lanes.push([delivery("a", 1), delivery("a", 2), delivery("a", 3), delivery("a", 4, size=1000)])
        self.assertEqual(self.names(), [["a-1", "a-2"]])
        self.end()
        self.clock.advance(1)
        self.end()
        self.clock.advance(1)
        self.assertEqual(self.names(), [["a-4"]])

    def test_a_batch_that_is_refused_is_tried_in_halves(self):
        lanes = self.make(size=4)
        lanes.push([delivery(client, 1) for client in "abcd"])
        lanes.push([delivery("e", 1)])
        self.split()
        self.assertEqual(self.names(), [["a-1", "b-1"]])
        self.split()
        self.assertEqual(self.names(), [["a-1"]])
        self.end()
        self.assertEqual(self.names(), [["b-1"]])
        self.end()
        self.assertEqual(self.names(), [["c-1", "d-1"]])
        self.end()
        self.clock.advance(1)
        self.assertEqual(self.names(), [["e-1"]])

    def test_a_client_that_is_parked_between_the_halves(self):
        lanes = self.make(size=4)
        lanes.push([delivery("a", 1), delivery("b", 1), delivery("a", 2), delivery("c", 1)])
        self.split()
        self.end(Verdict.PARK, Verdict.DONE)
        self.assertEqual(self.names(), [["c-1"]])
        self.end()
        self.assertEqual((lanes.clients, lanes.parked), (1, 2))
        lanes.unpark("a")
        self.clock.advance(1)
        self.assertEqual(self.names(), [["a-1"]])
        self.end()
        self.clock.advance(1)
        self.assertEqual(self.names(), [["a-2"]])
        self.end()
        self.assertEqual((lanes.clients, lanes.parked, lanes.load, lanes.size), (0, 0, 0, 0))

    def test_what_was_held_up_goes_again_in_the_same_parts(self):
        lanes = self.make(size=4)
        lanes.push([delivery(client, 1) for client in "abcd"])
        self.split()
        lanes.limit = 0
        self.end(Verdict.AGAIN, Verdict.AGAIN)
        self.assertEqual(self.names(), [])
        lanes.limit = 1
        lanes.admit()
        self.assertEqual(self.names(), [["a-1", "b-1"]])

    @settings(max_examples=200, deadline=None)
    @given(st.integers(1, 2), st.integers(1, 4), st.lists(st.integers(0, 3), max_size=30), st.data())
    def test_order_holds_whatever_fails(self, count, size, clients, data):
        lanes = self.make(count, size=size)
        numbers, arrived = defaultdict(int), defaultdict(list)
        waiting, parked = [], set()
        for client in clients:
            numbers[client] += 1
            waiting.append(delivery(str(client), numbers[client]))
        for _ in range(2000):
            step = data.draw(st.integers(0, 5))
            if step == 0 and waiting:
                lanes.push([waiting.pop(0)])
            elif step == 1 and parked:
                lanes.unpark(parked.pop())
            elif step == 2 and data.draw(st.booleans()):
                lanes.limit = data.draw(st.integers(0, count))
                lanes.admit()
            elif self.under_way:
                index = data.draw(st.integers(0, len(self.under_way) - 1))
                batch, done = self.under_way.pop(index)
                self.assertLessEqual(len(batch), size)
                self.assertFalse(parked & {one.client for one in batch})
                outcome = data.draw(st.sampled_from(["done", "done", "park", "again", "split"]))
                if outcome == "split" and len(batch) > 1:
                    done(None)
                    continue
                failed = {"park": Verdict.PARK, "again": Verdict.AGAIN}.get(outcome)
                verdicts = [failed if failed and data.draw(st.booleans()) else Verdict.DONE for _ in batch]
                # What failed together failed from there on: the endpoint takes a client's events in order, or none.
                held = set()
                for place, one in enumerate(batch):
                    if verdicts[place] is not Verdict.DONE:
                        held.add(one.client)
                    elif one.client in held:
                        verdicts[place] = failed
                    if verdicts[place] is Verdict.DONE:
                        arrived[one.client].append(one.id)
                if failed is Verdict.PARK:
                    parked |= held
                done(verdicts)
            elif waiting:
                lanes.push([waiting.pop(0)])
            elif parked:
                lanes.unpark(parked.pop())
            else:
                lanes.limit = count
                lanes.admit()
                self.clock.advance(1)
                if not self.under_way:
                    break
        for client, number in numbers.items():
            self.assertEqual(arrived[str(client)], [f"{client}-{index}" for index in range(1, number + 1)])
        self.assertEqual((lanes.load, lanes.size, lanes.under_way, lanes.clients, lanes.parked), (0, 0, 0, 0, 0))


class DeliveryTests(TestCase):
    """Over real connections."""

    timeout = 60

    def make(self, respond, batch, **values):
        self.endpoint = Endpoint(respond)
        self.port = port = reactor.listenTCP(0, self.endpoint, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.outbox = MemoryOutbox()
        self.sink = WebhookSink(
            reactor,
            WebhookSettings(
                "w",
                f"http://127.0.0.1:{port.getHost().port}/hook",
                (Rule("on_message_publish"),),
                batch=batch,
                **{"merge_window": 0, "pool_size": 2, "retry": RetrySettings(initial=0.01, maximum=0.02)} | values,
            ),
            self.outbox,
            random=Random(1),
        )
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
        while self.outbox.pending:
            await deferLater(reactor, 0.01)

    def assert_identities(self):
        counters = self.sink.counters
        self.assertEqual(counters.accepted, counters.delivered + counters.dead + self.outbox.pending)
        self.assertEqual(counters.attempts, counters.delivered + counters.refused + counters.failed)

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
        number = self.port.getHost().port
        await self.port.stopListening()
        self.send(400, clients=50)
        while self.sink.counters.failed < 50:
            await deferLater(reactor, 0.01)
        port = reactor.listenTCP(number, self.endpoint, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        await self.drained()
        self.assertEqual((self.sink.counters.delivered, self.sink.counters.dead), (400, 0))
        self.assert_identities()

    async def test_nothing_goes_out_after_the_end(self):
        self.make(lambda request: request.connection.reply(200), BatchSettings(linger=60))
        self.outbox.durable = True
        self.send(3)
        await self.sink.stopService()
        self.assertEqual((self.endpoint.requests, self.outbox.pending), ([], 3))
