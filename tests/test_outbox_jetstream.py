"""The outbox in JetStream keeps what every outbox keeps, on one server and on three."""

import re

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from mqhooks.delivery import Delivery, Variation
from mqhooks.nats.auth import Auth
from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import JetStream
from mqhooks.nats.settings import NATSSettings
from mqhooks.outbox.jetstream.layout import Names
from mqhooks.outbox.jetstream.store import JetStreamSettings, JetStreamStore
from mqhooks.outbox.stored import decode_handed
from tests.contract.outbox import DurableContract, make
from tests.natscluster import Cluster
from tests.waiting import until


class OneServerTests(DurableContract, TestCase):
    """On one server."""

    timeout = 300
    size = 1

    async def open(self):
        self.nodes = await Cluster(self, self.size).start()
        return await self.reopen()

    async def reopen(self):
        if hasattr(self, "store"):
            await self.checkpoint()
            await self.store.abort()
        settings = JetStreamSettings(NATSSettings(self.nodes.servers), self.size, partitions=1, synced=True)
        self.store = JetStreamStore(reactor, settings, max_size=self.max_size, dead_max=10)
        outbox = self.outbox = self.store.outbox("w")
        self.store.startService()
        self.addCleanup(self.store.abort)
        await until(lambda: outbox.ready_to_claim)
        return outbox

    async def checkpoint(self):
        """Wait until all that was done before is in a checkpoint."""
        names = Names("MQ", "w")
        client = NATSClient(reactor, NATSSettings(self.nodes.servers))
        self.addCleanup(client.close)
        client.start()
        await client.when_connected()

        async def newest():
            return (await JetStream(client).last(names.stream(0), names.own(0))).sequence

        # One that is being written may be older.
        for _ in range(2):
            before = await newest()

            async def written(before=before):
                return await newest() > before

            await until(written)
        await client.close()

    async def settle(self):
        await deferLater(reactor, 0.15)
        await until(lambda: self.outbox.settled or self.outbox.full)


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

    timeout = 300
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
        await until(lambda: len(self.accepted) == self.made)
        await until(lambda: self.accepted <= {(client, number) for client, number, _ in self.arrived})
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
        await until(lambda: self.owned(two) == [0, 1, 2, 3])
        await self.all_arrived()
        # The last answers follow what has arrived.
        await until(lambda: two.counts.pending == 0)
        counts = two.counts
        self.assertEqual(counts.accepted, counts.delivered + counts.dead + counts.dropped + counts.handed)
        # Each was made of an event once, whoever had its partition at that time.
        self.assertEqual(one.counts.appended + counts.appended, self.made)
        self.assertEqual(two.used, 0)

    async def test_what_is_given_up_is_taken_at_once(self):
        await self.begin(1)
        _, two = self.store()
        took = []
        # Who has to look by himself looks twice a second, at each partition at another time.
        while len(took) < 4 and min(took, default=1.0) > 0.15:
            first, one = self.store()
            await until(lambda: len(self.owned(one)) == 2 and len(self.owned(two)) == 2)  # noqa: B023
            began = reactor.seconds()
            await first.stopService()
            await until(lambda: len(self.owned(two)) == 4)
            took.append(reactor.seconds() - began)
        self.assertLess(min(took), 0.15)

    async def test_bridges_know_of_each_other(self):
        await self.begin(1)
        first, one = self.store(consume=False)
        second, two = self.store(consume=False)
        await until(lambda: len(self.owned(one)) == 2 and len(self.owned(two)) == 2)
        self.produce(one, 40)
        for outbox in (one, two):
            await until(lambda: sum(share.pending for shares in outbox.there().values() for share in shares) == 40)  # noqa: B023
            there = outbox.there()
            self.assertEqual(sorted(there), sorted((first.me, second.me)))
            self.assertEqual(sorted(share.partition for shares in there.values() for share in shares), [0, 1, 2, 3])
            self.assertEqual(sorted(share.partition for share in there[first.me]), self.owned(one))
        # Who leads and who follows is asked for now and then.
        await until(lambda: all(share.replicas == 1 for shares in two.there().values() for share in shares))
        self.assertEqual([store.server for store in (first, second)], [str(self.nodes.servers[0])] * 2)
        await second.stopService()
        self.assertEqual(list(one.there()), [first.me])

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
        await until(lambda: self.owned(two) == [0, 1, 2, 3])
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
            await until(lambda before=before: len(self.arrived) > before + 1000)
            self.nodes.kill(number)
            before = len(self.arrived)
            await until(lambda before=before: len(self.arrived) > before + 1000)
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


class EngineTests(TestCase):
    """What the engine may be like."""

    timeout = 300

    async def start(self, **options):
        self.nodes = await Cluster(self, **options).start()
        self.client = NATSClient(reactor, NATSSettings(self.nodes.servers))
        self.addCleanup(self.client.close)
        self.client.start()
        await self.client.when_connected()
        self.js = JetStream(self.client)

    def store(self, max_size=1 << 20, nats=None, **options):
        nats = nats or NATSSettings(self.nodes.servers)
        settings = JetStreamSettings(nats, **{"replicas": 1, "partitions": 1, "synced": True, **options})
        store = JetStreamStore(reactor, settings, max_size=max_size, dead_max=10)
        outbox = store.outbox("w")
        store.startService()
        self.addCleanup(store.abort)
        return store, outbox

    async def refused(self, pattern, **options):
        store, outbox = self.store(**options)
        await until(lambda: re.search(pattern, store.failing or ""))
        self.assertTrue(store.failing.isprintable())
        self.assertTrue(outbox.full)
        accepted = outbox.append(make(1))
        await deferLater(reactor, 0.1)
        self.assertFalse(accepted.called)
        await store.abort()

    async def test_other_partitions(self):
        await self.start()
        _, outbox = self.store(partitions=2)
        await until(lambda: outbox.ready_to_claim)
        await self.refused("stream MQ_w_0 is not as configured: mqhooks-partitions is 2, not 4: ", partitions=4)

    async def test_other_settings(self):
        await self.start()
        await self.js.create_stream({"name": "MQ_w_0", "subjects": ["MQ.log.w.0"], "storage": "memory"})
        await self.refused("stream MQ_w_0 is not as configured: subjects is .*, storage is memory, not file, ")

    async def test_too_little_storage(self):
        await self.start()
        await self.refused("too little storage .*: raise max_file, or lower outbox.max_size", max_size=2 << 30)

    async def test_too_few_servers(self):
        await self.start()
        await self.refused("MQ_DEAD cannot be made.*replicas", replicas=3)

    async def test_no_jetstream(self):
        self.nodes = await Cluster(self, sync=None).start()
        await self.refused("JetStream is off|not enabled")

    async def test_user_who_may_not(self):
        more = 'authorization { users: [ { user: u, password: p, permissions: { publish: "nothing", subscribe: ">" } } ] }'
        self.nodes = await Cluster(self, more=more).start()
        nats = NATSSettings(self.nodes.servers, Auth("u", "p"))
        await self.refused("Permissions Violation.*check the permissions of its user", nats=nats)

    async def test_limits_grow(self):
        await self.start()
        store, outbox = self.store()
        await until(lambda: outbox.ready_to_claim)
        before = (await self.js.stream_info("MQ_w_0"))["config"]["max_bytes"]
        store.resize(5 << 20, 20)

        async def config(name, key):
            return (await self.js.stream_info(name))["config"][key]

        async def grown():
            return await config("MQ_w_0", "max_bytes") == before + (4 << 20)

        await until(grown)
        self.assertEqual(await config("MQ_DEAD", "max_msgs_per_subject"), 20)
        store.resize(1 << 20, 10)
        self.assertEqual(outbox.max_size, 1 << 20)

    async def test_full_to_the_last_byte_it_still_drains(self):
        await self.start()
        _, outbox = self.store()
        await until(lambda: outbox.ready_to_claim)
        accepted = outbox.append(make(200, body=b"x" * (100 << 10)))
        # It holds 1 MiB and the room that there is beyond, and no lease can be written any more.
        await until(lambda: outbox.full and outbox.counts.pending > 80)
        consumer = Consumer(outbox, [])
        await accepted
        await until(lambda: outbox.counts.delivered == 200)
        consumer.running = False
        self.assertEqual((outbox.counts.pending, outbox.used, outbox.full), (0, 0, False))

    async def test_settled_behind_a_parked_one_makes_room(self):
        await self.start()
        now = [0.0]
        settings = JetStreamSettings(NATSSettings(self.nodes.servers), 1, 1, synced=True)
        store = JetStreamStore(reactor, settings, max_size=1 << 20, clock=lambda: reactor.seconds() + now[0])
        outbox = store.outbox("w")
        store.startService()
        self.addCleanup(store.abort)
        await until(lambda: outbox.ready_to_claim)
        for number in range(3):
            await outbox.append(make(1, number))
        claimed = []
        while len(claimed) < 3:
            claimed += await maybeDeferred(outbox.claim, 10, 1 << 20)
        outbox.acknowledge(claimed[1:])
        now[0] = 20.0

        async def left():
            info = await self.js.call("STREAM.INFO.MQ_w_0", {"subjects_filter": "MQ.log.>"})
            return info["state"]["subjects"] == {"MQ.log.w.0": 1}

        await until(left)
        self.assertEqual(outbox.counts.pending, 1)

    async def test_parked_message_that_somebody_deleted_is_lost_loudly(self):
        await self.start()
        _, outbox = self.store()
        await until(lambda: outbox.ready_to_claim)
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        for number in range(2):
            await outbox.append(make(1, number))
        claimed = []
        while len(claimed) < 2:
            claimed += await maybeDeferred(outbox.claim, 10, 1 << 20)
        places = [each.place for each in claimed]
        outbox.shelve(places)
        gone = (await self.js.direct("MQ_w_0", 1, subject="MQ.log.w.0")).sequence
        await self.js.delete_message("MQ_w_0", gone)
        self.assertEqual([each.place for each in await maybeDeferred(outbox.recall, places)], places[1:])
        self.assertEqual((outbox.counts.dropped, outbox.counts.pending), (1, 1))
        lines = [formatEvent(each) for each in logged if each["log_level"] is LogLevel.critical]
        self.assertEqual(lines, [f"MQ_w_0: message {gone} is gone: a delivery of it is lost"])

    async def test_too_long_for_a_message_is_a_dead_letter(self):
        await self.start()
        _, outbox = self.store()
        await until(lambda: outbox.ready_to_claim)
        await outbox.append([*make(1, body=b"x" * (1 << 20)), *make(1, 1)])
        counts = outbox.counts
        self.assertEqual((counts.accepted, counts.dead, counts.pending, outbox.letters), (2, 1, 1, 1))
        letter = None

        async def stored():
            nonlocal letter
            letter = await self.js.last("MQ_DEAD", "MQ.dead.w")
            return letter

        await until(stored)
        self.assertIn("1048576 bytes", decode_handed("w", letter.payload).reason)

    async def test_what_is_long_besides_its_body(self):
        await self.start()
        _, outbox = self.store(max_size=64 << 20)
        await until(lambda: outbox.ready_to_claim)
        variation = Variation(None, "/", (("x", "y" * (40 << 10)),))
        too_long = Variation(None, "/", (("x", "y" * (1 << 20)),))
        await outbox.append([*make(100, variation=variation), *make(1, 100, variation=too_long), *make(1, 101)])
        await until(lambda: outbox.counts.pending == 101)
        claimed = []
        while len(claimed) < 101:
            claimed += await maybeDeferred(outbox.claim, 200, 1 << 30)
        self.assertEqual([each.timestamp for each in claimed], [*range(100), 101])
        self.assertEqual((outbox.counts.dead, outbox.counts.accepted), (1, 102))

    async def test_what_cannot_be_encoded_is_a_dead_letter(self):
        await self.start()
        _, outbox = self.store()
        await until(lambda: outbox.ready_to_claim)
        bad = Delivery("m", "c\udc80", 1, b"x", 1)
        await outbox.append([bad])
        await outbox.append([*make(2), Delivery("n", "c", 1, b"x", 1), bad])
        counts = outbox.counts
        self.assertEqual((counts.accepted, counts.dead, counts.pending), (5, 2, 3))

    async def test_power_failures_are_warned_of_unless_the_operator_has_declared_the_setting(self):
        await self.start()
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        for synced in (True, False):
            store, outbox = self.store(synced=synced)
            await until(lambda outbox=outbox: outbox.ready_to_claim)
            lines = [line for line in map(formatEvent, logged) if "sync_interval: always" in line]
            self.assertEqual(len(lines), 0 if synced else 1)
            await store.stopService()

    async def test_engine_that_comes_later(self):
        self.nodes = Cluster(self)
        _, outbox = self.store()
        accepted = outbox.append(make(2))
        await deferLater(reactor, 0.3)
        self.assertTrue(outbox.full)
        self.assertIsNotNone(outbox.waiting_since)
        await self.nodes.start()
        await accepted
        await until(lambda: outbox.counts.pending == 2)

    async def test_stop_without_an_engine_ends(self):
        await self.start()
        store, outbox = self.store()
        await until(lambda: outbox.ready_to_claim)
        self.nodes.kill(0)
        outbox.append(make(1))
        began = reactor.seconds()
        await store.stopService()
        self.assertLess(reactor.seconds() - began, 12)
