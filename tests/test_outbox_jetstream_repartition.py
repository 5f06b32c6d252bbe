"""A webhook is divided anew while bridges run: nothing is lost, each client's deliveries stay in order."""

import sys
from io import StringIO
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from mqhooks.__main__ import main
from mqhooks.outbox.jetstream import outbox
from mqhooks.outbox.jetstream import store as stores
from tests.contract.outbox import make
from tests.jetstream import JetStreamMixin
from tests.test_outbox_jetstream import Consumer
from tests.waiting import until


class RepartitionTests(JetStreamMixin, TestCase):
    def setUp(self):
        self.patch(outbox, "ELECTION", 0.3)
        self.patch(stores, "TENDING", 0.1)
        self.patch(stores, "AGAIN", 0.3)
        self.patch(outbox, "GONE", 0.3)
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.arrived = []

    async def repartition(self, partitions, status=0, kind="jetstream"):
        path = Path(self.mktemp()).resolve()
        server = self.nodes.servers[0]
        path.write_text(
            f'mqhooks.outbox {{ kind = {kind}, servers = "nats://{server}", replicas = 1'
            f", partitions = {partitions}, max_size = 8MiB }}"
        )
        lines, stderr = [], StringIO()
        self.patch(sys, "stderr", stderr)
        command = ["outbox", "repartition", "--config", str(path)]
        self.assertEqual(await deferToThread(main, command, lines.append), status, stderr.getvalue())
        self.errors = stderr.getvalue()
        return lines

    def consume(self, outbox):
        consumer = Consumer(outbox, self.arrived)
        self.addCleanup(setattr, consumer, "running", False)
        return consumer

    def told(self, what):
        return any(what in line for line in map(formatEvent, self.logged))

    async def in_order(self, count):
        await until(lambda: len({number for _, number, _ in self.arrived}) >= count, 30)
        order = list(dict.fromkeys(number for _, number, _ in self.arrived))
        for client in range(3):
            self.assertEqual([number for number in order if number % 3 == client], list(range(client, count, 3)))

    async def test_the_next_generation_begins_when_the_former_one_is_empty(self):
        await self.begin()
        file = str(Path(self.mktemp()).resolve())
        old, one = self.store(partitions=2, file=file)
        await self.ready(one)
        await one.append(make(30))
        # A bridge with the new number waits to be told.
        other, two = self.store(partitions=3)
        await until(lambda: other.failing is not None and "run mqhooks outbox repartition" in other.failing)
        self.assertEqual(await self.repartition(3), ["repartition: webhook w has 3 partitions in place of 2"])
        await until(lambda: two.started)
        self.consume(two)
        # What comes is accepted by the new one at once, and by the old one's file.
        await two.append(make(30, 30))
        await one.append(make(30, 60))
        await until(lambda: self.told("webhook w: now has a different number of partitions, and these take no more deliveries"))
        # The two share what was there before; what came later waits until none of that is left.
        self.assertEqual([number for _, number, _ in self.arrived if number >= 30], [])
        self.assertFalse(any(partition.mine for partition in two.partitions))
        consumer = self.consume(one)
        await self.in_order(60)
        consumer.running = False
        await old.stopService()
        # Its file has what was divided otherwise.
        _, again = self.store(partitions=3, file=file)
        self.consume(again)
        await self.in_order(90)

        async def deleted():
            return sorted(await self.js.stream_names()) == ["MQ_DEAD", *(f"MQ_w=g2_{number}" for number in range(3))]

        await until(deleted)
        self.assertEqual(await self.repartition(3), ["repartition: webhook w has 3 partitions already"])
        counts = [each.counts for each in (one, two, again)]
        for each in counts:
            self.assertEqual(each.accepted, each.delivered + each.dead + each.dropped + each.handed + each.pending)
        self.assertEqual(sum(each.dropped + each.dead for each in counts), 0)
        # Also what went through the file was made of an event once.
        self.assertEqual(sum(each.appended for each in counts), 90)

    async def test_a_restart_while_the_former_one_is_not_empty(self):
        await self.begin()
        store, one = self.store(partitions=1)
        await self.ready(one)
        await one.append(make(10))
        await store.stopService()
        await self.repartition(2)
        store, one = self.store(partitions=2)
        await one.append(make(10, 10))
        self.assertEqual([each.id for each in await self.claim(one, 10)], [f"msg_{number}" for number in range(10)])
        await store.stopService()
        _, one = self.store(partitions=2)
        self.consume(one)
        await self.in_order(20)

    async def test_mistakes(self):
        await self.begin()
        self.assertEqual(await self.repartition(2), ["repartition: no webhook has streams in JetStream"])
        await self.repartition(2, status=1, kind="sqlite")
        self.assertIn("mqhooks.outbox.kind: is not jetstream", self.errors)
        _, one = self.store(partitions=1)
        await self.ready(one)
        await self.js.create_stream({"name": "large", "subjects": ["large"], "max_bytes": 1000 << 20})
        await self.repartition(2, status=1)
        self.assertIn("too little storage", self.errors)
        self.assertEqual(self.errors.count("\n"), 1)
        await one.append(make(1))
