"""The outbox in JetStream keeps what every outbox keeps, on one server and on three."""

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.trial.unittest import TestCase

from mqhooks.delivery import Delivery
from mqhooks.nats.settings import NATSSettings
from mqhooks.outbox.jetstream.store import JetStreamSettings, JetStreamStore
from tests.contract.outbox import DurableContract
from tests.natscluster import Cluster
from tests.waiting import until


class OneServerTests(DurableContract, TestCase):
    """On one server."""

    timeout = 60
    size = 1

    async def open(self):
        self.nodes = await Cluster(self, self.size).start()
        return await self.reopen()

    async def reopen(self):
        if hasattr(self, "store"):
            # A checkpoint is written each half second.
            await deferLater(reactor, 1.1)
            await self.store.abort()
        settings = JetStreamSettings(NATSSettings(self.nodes.servers), self.size, partitions=1, synced=True)
        self.store = JetStreamStore(reactor, settings, max_size=self.max_size, dead_max=10)
        outbox = self.outbox = self.store.outbox("w")
        self.store.startService()
        self.addCleanup(self.store.abort)
        await until(lambda: outbox.ready_to_claim)
        return outbox

    async def settle(self):
        await deferLater(reactor, 0.15)


class ThreeServersTests(OneServerTests):
    """On three servers."""

    size = 3


class Consumer:
    """Claims, sends and acknowledges as a sink does, one request at a time for each client."""

    def __init__(self, outbox, arrived):
        self.outbox = outbox
        self.arrived = arrived
        self.running = True
        self.waiting = {}
        self.claim()

    def claim(self):
        claimed = self.outbox.claim(100, 1 << 20)
        if isinstance(claimed, Deferred):
            claimed.addCallbacks(self.take, lambda failure: failure.trap(CancelledError))
        else:
            reactor.callLater(0, self.take, claimed)

    def take(self, claimed):
        if not self.running:
            return
        for delivery in claimed:
            queue = self.waiting.setdefault(delivery.client, [])
            queue.append(delivery)
            if len(queue) == 1:
                reactor.callLater(0, self.send, delivery.client)
        self.claim()

    def send(self, client):
        queue = self.waiting[client]
        while queue and self.running:
            entered = self.outbox.gate.enter(queue[:1])
            if entered:
                self.arrived.append((entered[0].client, entered[0].timestamp, self.outbox))
                reactor.callLater(0.001, self.answered, client, entered)
                return
            queue.pop(0)

    def answered(self, client, sent):
        if self.running:
            self.outbox.acknowledge(sent)
            self.outbox.gate.leave(sent)
            self.waiting[client].pop(0)
            self.send(client)


class SharingTests(TestCase):
    """Several processes, which are stores here, share the partitions."""

    timeout = 120
    partitions = 4

    async def begin(self, size=3):
        self.nodes = await Cluster(self, size).start()
        self.size = size
        self.arrived, self.accepted, self.made = [], set(), 0
        self.consumers = {}

    def store(self, consume=True):
        settings = JetStreamSettings(NATSSettings(self.nodes.servers), self.size, partitions=self.partitions, synced=True)
        store = JetStreamStore(reactor, settings, max_size=64 << 20, dead_max=10)
        outbox = store.outbox("w")
        store.startService()
        self.addCleanup(self.kill, store)
        if consume:
            self.consumers[store] = Consumer(outbox, self.arrived)
        return store, outbox

    def kill(self, store):
        if store in self.consumers:
            self.consumers.pop(store).running = False
        return store.abort()

    def produce(self, outbox, count):
        """Append for 20 clients."""
        deliveries = [Delivery(f"m{n}", f"c{n % 20}", n // 20, b"x", 1000 + n) for n in range(self.made, self.made + count)]
        self.made += count
        names = [(each.client, each.timestamp) for each in deliveries]
        outbox.append(deliveries, room=False).addCallback(lambda _: self.accepted.update(names))

    def owned(self, outbox):
        return sorted(partition.number for partition in outbox.partitions if partition.mine)

    def check(self):
        """Whether everything accepted has arrived, each client's for the first time in order."""
        following = {}
        for client, number, _ in self.arrived:
            due = following.get(client, 0)
            self.assertLessEqual(number, due, f"{client}: {number} came before {due}")
            following[client] = max(due, number + 1)
        self.assertLessEqual(self.accepted, {(client, number) for client, number, _ in self.arrived})

    async def all_arrived(self):
        await until(lambda: len(self.accepted) == self.made, 30)
        await until(lambda: self.accepted <= {(client, number) for client, number, _ in self.arrived}, 30)
        self.check()

    async def test_partitions_are_shared_out_and_handed_over(self):
        await self.begin()
        first, one = self.store()
        await until(lambda: self.owned(one) == [0, 1, 2, 3])
        feed = LoopingCall(lambda: self.produce(one, 40))
        self.addCleanup(lambda: feed.stop() if feed.running else None)
        feed.start(0.02)
        _, two = self.store()
        await until(lambda: len(self.owned(one)) == 2 and len(self.owned(two)) == 2)
        before = len([None for *_, outbox in self.arrived if outbox is two])
        await until(lambda: len([None for *_, outbox in self.arrived if outbox is two]) > before + 100)
        self.consumers.pop(first).running = False
        feed.stop()
        await until(lambda: len(self.accepted) == self.made)
        await first.stopService()
        await until(lambda: self.owned(two) == [0, 1, 2, 3], 5)
        await self.all_arrived()
        counts = two.counts
        self.assertEqual(counts.accepted, counts.delivered + counts.dead + counts.dropped + counts.handed + counts.pending)
        self.assertEqual((counts.pending, two.used), (0, 0))

    async def test_killed_owner_is_taken_over(self):
        await self.begin()
        first, one = self.store()
        _, two = self.store()
        await until(lambda: len(self.owned(one)) == 2 and len(self.owned(two)) == 2)
        feed = LoopingCall(lambda: self.produce(two, 40))
        self.addCleanup(lambda: feed.stop() if feed.running else None)
        feed.start(0.02)
        await until(lambda: len(self.arrived) > 1000)
        self.kill(first)
        await until(lambda: self.owned(two) == [0, 1, 2, 3], 5)
        feed.stop()
        await self.all_arrived()

    async def test_node_of_the_engine_is_killed(self):
        await self.begin()
        _, one = self.store()
        _, two = self.store()
        await until(lambda: len(self.owned(one)) == 2 and len(self.owned(two)) == 2)
        feed = LoopingCall(lambda: self.produce(two, 40))
        self.addCleanup(lambda: feed.stop() if feed.running else None)
        feed.start(0.02)
        for number in range(3):
            before = len(self.arrived)
            await until(lambda before=before: len(self.arrived) > before + 1000, 30)
            self.nodes.kill(number)
            before = len(self.arrived)
            await until(lambda before=before: len(self.arrived) > before + 1000, 30)
            self.nodes.spawn(number)
            await self.nodes.ready()
        feed.stop()
        await self.all_arrived()

    async def test_owner_that_stood_still_sends_nothing_more(self):
        self.partitions = 1
        await self.begin()
        _, one = self.store(consume=False)
        await until(lambda: self.owned(one) == [0])
        self.produce(one, 40)
        claimed = []
        while len(claimed) < 40:
            claimed += await maybeDeferred(one.claim, 40, 1 << 20)
        self.assertEqual(one.gate.enter(claimed[:1]), claimed[:1])
        one.gate.leave(claimed[:1])
        for number in range(3):
            self.nodes.stop(number)
        await until(lambda: not one.gate.enter(claimed[:1]), 5)
        for number in range(3):
            self.nodes.go_on(number)
        # They are handed out anew once the lease is renewed; what was claimed before may not be sent.
        again = [*await maybeDeferred(one.claim, 40, 1 << 20)]
        self.assertEqual(one.gate.enter(claimed), [])
        while len(again) < 40:
            again += await maybeDeferred(one.claim, 40, 1 << 20)
        self.assertEqual(sorted(each.id for each in again), sorted(f"m{n}" for n in range(40)))
        self.assertEqual(one.gate.enter(again), again)
        # An answer that comes late still counts.
        one.acknowledge(claimed[:1])
        same = [each for each in again if each.id == claimed[0].id]
        self.assertEqual(one.gate.enter(same), [])
        self.assertEqual((one.counts.delivered, one.counts.pending), (1, 39))
