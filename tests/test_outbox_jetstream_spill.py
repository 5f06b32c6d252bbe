"""While JetStream is away, a local file takes what comes: in order, under the same ids, once."""

from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from mqhooks.delivery import Delivery, Variation
from mqhooks.errors import OutboxError
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.outbox.jetstream import acceptor, outbox
from mqhooks.outbox.jetstream import store as stores
from mqhooks.outbox.sqlite import SqliteStore
from tests.contract.outbox import make
from tests.jetstream import JetStreamMixin, Link
from tests.test_outbox_jetstream import Consumer
from tests.waiting import until


class SpillTests(JetStreamMixin, TestCase):
    def setUp(self):
        # An election takes longer.
        self.patch(outbox, "ELECTION", 0.3)
        self.patch(stores, "TENDING", 0.05)
        self.path = str(Path(self.mktemp()).resolve())
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def lines(self):
        return [formatEvent(event) for event in self.logged]

    def spilling(self, **options):
        """A store with a file, which reaches the server by a link."""
        self.link = Link(self, self.nodes.clients[0])
        return self.store(nats=NATSSettings((Server("127.0.0.1", self.link.port),)), file=self.path, **options)

    def consume(self, outbox):
        self.arrived = []
        consumer = Consumer(outbox, self.arrived)
        self.addCleanup(setattr, consumer, "running", False)

    def watch(self, *outboxes):
        """Look at counts all the time: they add up, and none but what waits goes back."""
        before = {}
        wrong = []

        def look():
            for each in outboxes:
                counts = each.counts
                settled = counts.delivered + counts.dead + counts.dropped + counts.handed
                now = counts.appended, counts.resumed, counts.delivered, counts.handed
                if counts.accepted != settled + counts.pending or counts.pending < 0:
                    wrong.append(counts)
                if any(new < old for new, old in zip(now, before.get(each, now), strict=True)):
                    wrong.append((before[each], now))
                before[each] = now

        looking = LoopingCall(look)
        looking.start(0.001)
        self.addCleanup(lambda: self.assertEqual(wrong, []))
        self.addCleanup(looking.stop)

    async def accepted(self, count, *outboxes):
        """Wait until nothing is pending; checks that so many were accepted, each by one of these, and that none was lost."""
        await until(lambda: not any(each.counts.pending for each in outboxes))
        every = [each.counts for each in outboxes]
        self.assertEqual(sum(each.appended for each in every), count)
        self.assertEqual(sum(each.delivered for each in every), count)
        self.assertEqual(sum(each.handed for each in every), sum(each.resumed for each in every))
        self.assertEqual([(each.dropped, each.dead) for each in every], [(0, 0)] * len(every))

    async def in_order(self, count):
        """Wait until so many have arrived; checks that each came once, each client's in order."""
        await until(lambda: len(self.arrived) >= count)
        order = [number for _, number, _ in self.arrived]
        for client in range(3):
            self.assertEqual([number for number in order if number % 3 == client], list(range(client, count, 3)))

    async def test_what_comes_while_it_is_away_follows_when_it_is_back(self):
        await self.begin()
        store, one = self.spilling(partitions=2)
        self.watch(one)
        await self.ready(one)
        self.consume(one)
        await one.append(make(10))
        self.link.break_off()
        for start in range(10, 100, 10):
            await one.append(make(10, start))
        self.assertFalse(one.full)
        self.assertIsNone(store.failing)
        self.assertIn(f"webhook w: JetStream is away: {self.path} takes deliveries until it is back", self.lines())
        self.assertGreaterEqual(one.counts.pending, 90)
        self.link.cut = False
        await one.append(make(10, 100))
        await self.in_order(110)
        await until(lambda: "webhook w: everything kept locally is in JetStream now" in self.lines())
        await one.append(make(10, 110))
        await self.in_order(120)
        await self.accepted(120, one)
        self.assertEqual(one.counts.accepted, 120)

    async def test_who_accepts_counts_what_another_delivers(self):
        await self.begin()
        _, other = self.store(partitions=2, role="deliver")
        _, one = self.spilling(partitions=2, role="accept")
        self.watch(one, other)
        await self.ready(other)
        self.consume(other)
        await one.append(make(10))
        self.assertEqual((one.counts.appended, one.counts.handed), (10, 10))
        self.link.break_off()
        await one.append(make(50, 10))
        self.link.cut = False
        await self.in_order(60)
        await one.append(make(10, 60))
        await self.in_order(70)
        await self.accepted(70, one, other)

    async def test_too_long_for_a_message_it_is_counted_once(self):
        await self.begin(more="max_payload: 10000")
        _, one = self.spilling()
        await self.ready(one)
        self.consume(one)
        self.link.break_off()
        too_long = Variation(None, "/", (("x", "y" * 10_000),))
        await one.append([*make(1, 10, variation=too_long), *make(10)])
        self.link.cut = False
        await self.in_order(10)
        await until(lambda: one.counts.pending == 0)
        counts = one.counts
        self.assertEqual((counts.accepted, counts.appended, counts.delivered, counts.dead), (11, 11, 10, 1))

    async def test_what_is_long_stays_whole_while_there_is_no_connection(self):
        await self.begin(more="max_payload: 4194304")
        store, one = self.spilling()
        await self.ready(one)
        self.consume(one)
        self.link.break_off()
        await until(lambda: store.server is None)
        await one.append(make(1, body=b"x" * (2 << 20)))
        self.link.cut = False
        await self.accepted(1, one)

    async def test_restarts_while_it_is_away(self):
        await self.begin()
        store, one = self.spilling()
        await self.ready(one)
        self.link.break_off()
        await one.append(make(20))
        await store.abort()
        store, one = self.spilling()
        self.link.cut = True
        await one.append(make(20, 20))
        # What is not accepted yet is kept when it stops in good order.
        last = one.append(make(20, 40))
        await store.stopService()
        self.assertTrue(last.called)
        self.assertFalse(any("is lost" in line for line in self.lines()))
        _, one = self.spilling()
        self.consume(one)
        await self.in_order(60)

    async def unacknowledged(self, one):
        """Append some that are stored, although nobody learns of it; JetStream forgets their ids."""
        stream = one.names.stream(0)
        await one.append(make(5))
        self.link.mute = True
        accepted = one.append(make(5, 5))

        async def there():
            found = await self.js.last(stream, one.names.log(0))
            return found is not None and found.headers["Nats-Msg-Id"].endswith("/msg_9")

        await until(there)
        self.link.break_off()
        config = (await self.js.stream_info(stream))["config"]
        await self.js.update_stream({**config, "duplicate_window": 10**8})
        # After a restart a server knows only those within the window.
        self.nodes.kill(0)
        self.nodes.spawn(0)
        await self.nodes.ready()
        await self.client.when_connected()
        await self.js.update_stream(config)
        self.link.mute = False
        return accepted

    async def test_stored_without_an_acknowledgement_it_is_stored_once(self):
        await self.begin()
        _, one = self.spilling()
        await self.ready(one)
        await (await self.unacknowledged(one))
        await one.append(make(5, 10))
        self.link.cut = False
        self.consume(one)
        await self.in_order(15)
        self.assertEqual(one.counts.appended, 15)

    async def test_stored_without_an_acknowledgement_it_is_stored_once_after_a_restart(self):
        await self.begin()
        store, one = self.spilling()
        await self.ready(one)
        await (await self.unacknowledged(one))
        await one.append(make(5, 10))
        await store.abort()
        _, one = self.spilling()
        self.consume(one)
        await self.in_order(15)

    async def test_stored_without_an_acknowledgement_it_is_stored_once_from_memory_too(self):
        self.patch(acceptor, "REMEMBERED", 0.2)
        await self.begin()
        self.link = Link(self, self.nodes.clients[0])
        _, one = self.store(nats=NATSSettings((Server("127.0.0.1", self.link.port),)))
        await self.ready(one)
        accepted = await self.unacknowledged(one)
        self.consume(one)
        self.link.cut = False
        await accepted
        await one.append(make(5, 10))
        await self.in_order(15)

    async def test_stored_without_an_acknowledgement_it_is_counted_once_whatever_waits_behind_it(self):
        await self.begin()
        _, one = self.spilling()
        self.watch(one)
        await self.ready(one)
        await one.append(make(5))
        self.link.mute = True
        first = one.append(make(5, 5))

        async def there():
            return (await self.js.last(one.names.stream(0), one.names.log(0))).headers["Nats-Msg-Id"].endswith("/msg_9")

        await until(there)
        second = one.append(make(5, 10))
        self.link.break_off()
        self.link.mute = False
        await first
        await second
        self.link.cut = False
        self.consume(one)
        await self.in_order(15)
        await self.accepted(15, one)

    async def test_limits_are_raised_once_it_is_back(self):
        await self.begin()
        store, one = self.spilling()
        await self.ready(one)

        async def limit():
            return (await self.js.stream_info(one.names.stream(0)))["config"]["max_bytes"]

        before = await limit()
        self.link.break_off()
        await until(lambda: store.server is None)
        store.resize(16 << 20, 20)
        store.resize(24 << 20, 20)
        self.link.cut = False

        async def raised():
            return await limit() == before + (16 << 20)

        await until(raised)
        await one.append(make(1))
        told = [each for each in self.logged if each["log_level"].name in ("error", "critical") and "failure" in each]
        self.assertEqual(told, [])

    async def test_limits_that_change_while_the_streams_are_made_are_raised(self):
        await self.begin()

        def connected(event):
            if "outbox: connected to NATS server" in formatEvent(event):
                # By then the first stream is asked for.
                reactor.callLater(0, store.resize, 16 << 20, 20)

        globalLogPublisher.addObserver(connected)
        self.addCleanup(globalLogPublisher.removeObserver, connected)
        store, one = self.store(max_size=8 << 20, dead_max=10)
        await self.ready(one)

        async def raised():
            letters, log = [(await self.js.stream_info(name))["config"] for name in ("MQ_DEAD", "MQ_w_0")]
            return letters["max_msgs_per_subject"] == 20 and letters["max_bytes"] == 16 << 20 and log["max_bytes"] == 24 << 20

        await until(raised)

    async def test_without_a_file_nothing_more_is_accepted(self):
        await self.begin()
        self.link = Link(self, self.nodes.clients[0])
        _, one = self.store(nats=NATSSettings((Server("127.0.0.1", self.link.port),)))
        await self.ready(one)
        self.link.break_off()
        accepted = one.append(make(1))
        told = "webhook w: JetStream is away, and there is no spill: nothing more is accepted until it is back"
        await until(lambda: told in self.lines())
        self.assertTrue(one.full)
        self.assertFalse(accepted.called)
        self.link.cut = False
        await accepted

    async def test_a_file_that_cannot_be_used(self):
        await self.begin()
        other = SqliteStore(reactor, self.path)
        other.startService()
        self.addCleanup(other.stopService)
        _, one = self.spilling()
        self.assertTrue(any("no spill: " + self.path + ": is in use by process" in line for line in self.lines()))
        await self.ready(one)
        self.assertRaises(OutboxError, self.spilling, spill="sqlite")

    async def test_a_full_file_holds_up(self):
        await self.begin()
        _, one = self.spilling(max_size=1 << 20)
        await self.ready(one)
        self.link.break_off()
        big = [Delivery(f"m{n}", "c", n, b"x" * (300 << 10), 1) for n in range(5)]
        first = one.append(big)
        await until(lambda: one.full)
        self.assertFalse(first.called)
        self.link.cut = False
        self.consume(one)
        await first
        await until(lambda: len(self.arrived) == 5)
