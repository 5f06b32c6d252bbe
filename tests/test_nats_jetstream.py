"""JetStream's requests against real servers, and answers that no server would give."""

import json
from random import Random

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from mqhooks.errors import (
    JetStreamError,
    NATSDisconnected,
    NATSError,
    NATSMalformed,
    NATSNoResponders,
    NATSTimeout,
    NATSUnavailable,
)
from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import NO_STREAM, WRONG_LAST_SEQUENCE, JetStream
from mqhooks.nats.settings import NATSSettings
from tests.natscluster import Cluster, leader
from tests.waiting import until

ORDERS = {"name": "orders", "subjects": ["o.>"], "allow_direct": True, "allow_rollup_hdrs": True, "max_bytes": 1 << 20}


class JetStreamCase(TestCase):
    timeout = 300

    async def start(self, size=1, **options):
        self.nodes = await Cluster(self, size, **options).start()
        self.client = await self.connect(self.nodes.servers)
        self.stream = JetStream(self.client)
        return self.stream

    async def connect(self, servers):
        client = NATSClient(reactor, NATSSettings(servers), random=Random(3))
        self.addCleanup(client.close)
        client.start()
        await client.when_connected()
        return client

    async def refused(self, waiting, code, *err_codes):
        error = await self.assertFailure(waiting, JetStreamError)
        self.assertEqual(error.code, code)
        self.assertIn(error.err_code, err_codes)
        self.assertIn(error.description, str(error))
        self.assertTrue(str(error).isprintable())
        return error


class Streams(JetStreamCase):
    async def test_life_of_a_stream(self):
        js = await self.start(sync="always")
        self.assertEqual(await js.stream_names(), [])
        made = await js.create_stream(ORDERS)
        self.assertEqual((made["config"]["name"], made["state"]["messages"]), ("orders", 0))
        await js.create_stream(ORDERS)
        error = await self.refused(js.create_stream({**ORDERS, "max_bytes": 5}), 400, 10058)
        self.assertIn("JetStream refuses STREAM.CREATE.orders: ", str(error))
        changed = await js.update_stream({**ORDERS, "max_bytes": 2 << 20})
        self.assertEqual(changed["config"]["max_bytes"], 2 << 20)
        self.assertEqual((await js.stream_info("orders"))["config"]["max_bytes"], 2 << 20)
        await js.create_stream({"name": "others", "subjects": ["x"]})
        self.assertEqual(sorted(await js.stream_names()), ["orders", "others"])
        self.assertEqual(await js.stream_names("o.1"), ["orders"])
        await js.delete_stream("orders")
        await self.refused(js.stream_info("orders"), 404, NO_STREAM)
        account = await js.account_info()
        self.assertEqual((account["streams"], account["limits"]["max_storage"]), (1, -1))

    async def test_more_names_than_one_answer_holds(self):
        js = await self.start()
        for first in range(0, 1100, 100):
            await gatherResults([js.create_stream({"name": f"s{n}", "storage": "memory"}) for n in range(first, first + 100)])
        self.assertEqual(len(set(await js.stream_names())), 1100)

    async def test_names_that_cannot_be(self):
        js = JetStream(NATSClient(reactor, NATSSettings(Cluster(self).servers)))
        for name in ("", "a.b", "a b", "*", "a>", "a/b", "a\r\n", "x" * 256):
            self.assertRaises(ValueError, js.stream_info, name)
            self.assertRaises(ValueError, js.create_stream, {"name": name})
            self.assertRaises(ValueError, js.direct, name, 1)
        await self.assertFailure(js.stream_info("orders"), NATSUnavailable)

    async def test_without_jetstream(self):
        js = await self.start(sync=None)
        error = await self.assertFailure(js.stream_info("orders"), NATSNoResponders)
        self.assertIn("nobody answers STREAM.INFO.orders: ", str(error))
        error = await self.assertFailure(js.publish("o.1", b""), NATSNoResponders)
        self.assertIn("nobody answers to store a message of o.1: the stream does not exist", str(error))


class Messages(JetStreamCase):
    async def start(self, size=1, **options):
        js = await super().start(size, **options)
        await js.create_stream({**ORDERS, "num_replicas": size})
        return js

    async def test_publish(self):
        js = await self.start()
        acks = [await js.publish("o.1", b"a", message_id=name) for name in ("one", "two", "one")]
        found = [(ack.stream, ack.seq, ack.duplicate) for ack in acks]
        self.assertEqual(found, [("orders", 1, False), ("orders", 2, False), ("orders", 1, True)])
        await js.publish("o.2", b"b", headers={"A": "b"}, expected_last=0)
        await js.publish("o.2", b"c", expected_last=3)
        for expected in (0, 3, 99):
            await self.refused(js.publish("o.2", b"d", expected_last=expected), 400, *WRONG_LAST_SEQUENCE)
        await js.publish("o.1", b"rest", rollup="sub", expected_last=2)
        self.assertEqual((await js.stream_info("orders"))["state"]["messages"], 3)
        await js.publish("o.3", b"all", rollup="all")
        self.assertEqual((await js.stream_info("orders"))["state"]["messages"], 1)

    async def test_stream_that_is_full(self):
        js = await self.start()
        await js.update_stream({**ORDERS, "discard": "new", "max_bytes": 3000})
        error = await self.refused(gather_first([js.publish("o.1", bytes(900)) for _ in range(4)]), 503, 10077)
        self.assertIn("maximum bytes exceeded", str(error))

    async def test_reading(self):
        js = await self.start()
        for number in range(1, 11):
            await js.publish(f"o.{number % 2}", b"%d" % number, headers={"N": f"{number}"})
        for read in (js.get, js.direct):
            found = await read("orders", 3)
            self.assertEqual((found.sequence, found.subject, found.payload, found.headers["N"]), (3, "o.1", b"3", "3"))
            self.assertRegex(found.time, r"^2\d\d\d-\d\d-\d\dT.*Z$")
            self.assertEqual((await read("orders", 3, subject="o.0")).sequence, 4)
            self.assertIsNone(await read("orders", 11))
            self.assertIsNone(await read("orders", 1, subject="o.9"))
        for last in (js.last, js.direct_last):
            self.assertEqual((await last("orders", "o.1")).sequence, 9)
            self.assertIsNone(await last("orders", "o.9"))
        await js.delete_message("orders", 5)
        await js.delete_message("orders", 7, erase=True)
        self.assertEqual((await js.direct("orders", 4, subject="o.1")).sequence, 9)
        self.assertIsNone(await js.direct("orders", 7))
        error = await self.assertFailure(js.delete_message("orders", 5), JetStreamError)
        self.assertIn("JetStream refuses STREAM.MSG.DELETE.orders: ", str(error))

    async def test_batches(self):
        js = await self.start()
        for number in range(1, 11):
            await js.publish(f"o.{number % 2}", bytes(1000))
        batch = await js.direct_batch("orders", 2, "o.>", limit=3)
        self.assertEqual([message.sequence for message in batch.messages], [2, 3, 4])
        self.assertEqual(batch.pending, 6)
        batch = await js.direct_batch("orders", 3, "o.1")
        self.assertEqual(([message.sequence for message in batch.messages], batch.pending), ([3, 5, 7, 9], 0))
        batch = await js.direct_batch("orders", 1, "o.>", max_bytes=2500)
        self.assertTrue(0 < len(batch.messages) < 4, batch)
        self.assertEqual((await js.direct_batch("orders", 11, "o.>")).messages, [])
        self.assertEqual((await js.direct_batch("orders", 1, "o.9")).messages, [])
        batch = await js.direct_lasts("orders", ["o.*"])
        self.assertEqual([message.sequence for message in batch.messages], [9, 10])
        error = await self.assertFailure(js.direct_batch("no", 1, "o.>"), NATSNoResponders)
        self.assertIn("nobody answers DIRECT.GET.no: the stream does not exist", str(error))

    async def test_purge(self):
        js = await self.start()
        for number in range(1, 11):
            await js.publish(f"o.{number % 2}", b"")
        self.assertEqual(await js.purge("orders", subject="o.1", below=4), 2)
        self.assertEqual(await js.purge("orders", subject="o.0", keep=1), 4)
        self.assertEqual(await js.purge("orders", below=8), 2)
        self.assertEqual(await js.purge("orders"), 2)


def gather_first(waiting):
    """All of several; fails with what the first fails with."""
    return gatherResults(waiting, consumeErrors=True).addErrback(lambda failure: failure.value.subFailure)


class OverLeaders(JetStreamCase):
    """What a leader's end does to what was published."""

    async def leader(self, js):
        return int((await leader(js, "orders"))[1:])

    async def test_leader_killed(self):
        """Each message is repeated under its id until it is acknowledged, and is stored once."""
        await self.start(3)
        js = JetStream(self.client, timeout=1.0)
        await js.create_stream({**ORDERS, "num_replicas": 3})
        leader = await self.leader(js)
        outcomes, acks = set(), []

        async def publish(number):
            while True:
                try:
                    return await js.publish("o.1", b"%d" % number, message_id=f"run.{number}")
                except NATSUnavailable:
                    await self.client.when_connected()
                except NATSError as error:
                    outcomes.add(type(error))

        for number in range(200):
            if number == 50:
                repeated = js.publish("o.1", b"50", message_id="run.50")
                self.nodes.kill(leader)
                await repeated.addErrback(lambda failure: outcomes.add(failure.type))
            acks.append(await publish(number))
        self.assertTrue(outcomes)
        self.assertLessEqual(outcomes, {NATSTimeout, NATSDisconnected, NATSNoResponders, JetStreamError})
        self.nodes.spawn(leader)
        await self.nodes.ready()
        batch = await js.direct_batch("orders", 1, "o.1", limit=1000)
        self.assertEqual([message.payload for message in batch.messages], [b"%d" % number for number in range(200)])
        self.assertEqual([ack.seq for ack in acks], [message.sequence for message in batch.messages])

    async def test_replica_that_stands_still(self):
        """A request that one node does not answer fails in time; a direct get finds another."""
        await self.start(3)
        js = JetStream(self.client, timeout=0.3)
        await JetStream(self.client).create_stream({**ORDERS, "num_replicas": 3})
        await JetStream(self.client).publish("o.1", b"x")
        ours = [str(server) for server in self.nodes.servers].index(self.client.server)
        still = next(number for number in range(3) if number != ours)
        self.nodes.stop(still)
        self.addCleanup(self.nodes.go_on, still)
        found = []

        async def read():
            try:
                found.append(await js.direct_batch("orders", 1, "o.1"))
            except NATSTimeout:
                return False
            return True

        await until(read)
        self.assertEqual(found[0].messages[0].payload, b"x")


class Answers(JetStreamCase):
    """What comes from somebody else who listens on JetStream's subjects."""

    async def fake(self, *answers):
        nodes = await Cluster(self, sync=None).start()
        self.client = await self.connect(nodes.servers)

        def answer(message):
            for payload, headers in answers:
                self.client.publish(message.reply, payload, headers=headers)

        for subject in ("$JS.API.>", "o.>"):
            self.client.subscribe(subject, answer)
        return JetStream(self.client, timeout=20)

    async def test_answers_that_cannot_be_read(self):
        for payload in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b'{"error":5}',
            b'{"error":{"code":"x"}}',
            b'{"message":5}',
            b'{"message":{"subject":"a","seq":1,"time":"","data":"\xc3\xa9"}}',
            b'{"message":{"subject":"a","seq":1,"time":"","data":"YQ"}}',
            b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        ):
            js = await self.fake((payload, None))
            error = await self.assertFailure(js.get("orders", 1), NATSMalformed)
            self.assertIn("JetStream's answer to STREAM.MSG.GET.orders cannot be read", str(error))
            self.assertTrue(str(error).isprintable())
            await self.assertFailure(js.publish("o.1"), NATSMalformed)
            await self.assertFailure(js.direct("orders", 1), NATSMalformed)
            await self.client.close()
        for payload in (b'{"total":"x"}', b'{"total":5,"streams":[5]}', b'{"purged":"x"}'):
            js = await self.fake((payload, None))
            await self.assertFailure(js.stream_names(), NATSMalformed)
            await self.assertFailure(js.purge("orders"), NATSMalformed)
            await self.client.close()

    async def test_names_that_never_end(self):
        js = await self.fake((json.dumps({"total": 5, "streams": None}).encode(), None))
        self.assertEqual(await js.stream_names(), [])

    def message(self, sequence, before):
        return b"%d" % sequence, {
            "Nats-Subject": "o.1",
            "Nats-Sequence": f"{sequence}",
            "Nats-Time-Stamp": "2026-01-01T00:00:00Z",
            "Nats-Num-Pending": f"{9 - sequence}",
            "Nats-Last-Sequence": f"{before}",
        }

    async def test_batch_with_a_hole_ends_there(self):
        js = await self.fake(self.message(1, 0), self.message(3, 1), self.message(5, 4), self.message(6, 5))
        batch = await js.direct_batch("orders", 1, "o.1")
        self.assertEqual([message.sequence for message in batch.messages], [1, 3])

    async def test_batch_without_its_first_message_is_empty(self):
        js = await self.fake(self.message(3, 1), self.message(5, 3))
        batch = await js.direct_batch("orders", 1, "o.1")
        self.assertEqual(batch.messages, [])

    async def test_batch_that_stops_ends_there(self):
        js = await self.fake(self.message(1, 0), self.message(3, 1))
        batch = await js.direct_batch("orders", 1, "o.1", timeout=1.0)
        self.assertEqual(([message.sequence for message in batch.messages], batch.pending), ([1, 3], 6))

    async def test_batch_that_comes_slowly_is_waited_for(self):
        await self.fake()
        js = JetStream(self.client)

        def answer(message):
            for number in range(1, 7):
                payload, headers = self.message(number, number - 1)
                reactor.callLater(0.25 * number, self.client.publish, message.reply, payload, headers=headers)

        self.client.subscribe("$JS.API.DIRECT.GET.slow", answer)
        batch = await js.direct_batch("slow", 1, "o.1", timeout=1.0)
        self.assertEqual([message.sequence for message in batch.messages], [1, 2, 3, 4, 5, 6])

    async def test_batch_that_does_not_come(self):
        js = await self.fake()
        await self.assertFailure(js.direct_batch("orders", 1, "o.1", timeout=0.1), NATSTimeout)
