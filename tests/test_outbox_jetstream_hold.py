"""While JetStream elects a leader, what comes is held in memory, and VerneMQ is read on."""

from pathlib import Path

from twisted.internet import reactor
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from mqhooks.app.group import WebhookGroup
from mqhooks.delivery import Delivery
from mqhooks.interfaces import IHolding
from mqhooks.nanomq.settings import Rule
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.outbox.jetstream import acceptor, outbox
from mqhooks.outbox.jetstream import store as stores
from mqhooks.outbox.jetstream.layout import partition_of
from mqhooks.sources.sidecar.protocol import UNACCEPTED_LIMIT, SidecarFactory
from mqhooks.testing import make_event
from mqhooks.webhook.settings import WebhookSettings
from tests.contract.outbox import make
from tests.frames import envelope, framed
from tests.jetstream import JetStreamMixin, Link
from tests.natscluster import leader
from tests.test_outbox_jetstream import Consumer
from tests.waiting import until

PAYLOAD = 2000
"""How many bytes each event's has."""

CLIENTS = 20


class HoldCase(JetStreamMixin, TestCase):
    def setUp(self):
        self.patch(stores, "TENDING", 0.05)
        self.path = str(Path(self.mktemp()).resolve())
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.arrived, self.sent = [], 0

    def lines(self):
        return [formatEvent(event) for event in self.logged]

    async def bridge(self, *names, spill=False, **options):
        """What reads VerneMQ's frames into outboxes that reach the server by a link; returns the store and the first outbox."""
        await self.begin()
        self.link = Link(self, self.nodes.clients[0])
        nats = NATSSettings((Server("127.0.0.1", self.link.port),))
        store, one = self.store(*names, nats=nats, file=self.path if spill else None, max_size=64 << 20, **options)
        self.read(store, names or ("w",))
        await self.ready(one)
        return store, one

    def read(self, store, names):
        """Have VerneMQ's frames read into outboxes of a store."""
        settings = [WebhookSettings(name, "http://127.0.0.1:9/", (Rule("on_message_publish"),)) for name in names]
        self.group = WebhookGroup(reactor, settings, store.outbox, drain_time=1.0, delivers=False)
        self.source = SidecarFactory(reactor, self.group)
        self.connection = self.source.buildProtocol(None)
        self.connection.makeConnection(StringTransport())
        self.addCleanup(self.connection.connectionLost)

    def consume(self, outbox):
        consumer = Consumer(outbox, self.arrived)
        self.addCleanup(setattr, consumer, "running", False)

    def send(self, count=50):
        """Send frames of all clients, unless nothing is read."""
        self.assertFalse(self.source.braked)
        frames = []
        for number in range(self.sent, self.sent + count):
            event = make_event("on_publish", client_id=f"c{number % CLIENTS}", payload=b"x" * PAYLOAD, timestamp=number)
            frames.append(framed(envelope(event.message)))
        self.sent += count
        self.connection.dataReceived(b"".join(frames))
        self.source.flush()

    async def all_arrived(self):
        """Wait until all have arrived, each client's in order."""
        await until(lambda: len(self.first) == self.sent)
        for client in range(CLIENTS):
            self.assertEqual(self.numbers(self.first, client), self.numbers(range(self.sent), client))

    @property
    def first(self):
        """What has arrived, in the order in which it did so for the first time."""
        return dict.fromkeys([number for _, number, _ in self.arrived])

    def numbers(self, numbers, client):
        return [number for number in numbers if number % CLIENTS == client]

    def send_until_braked(self):
        while not self.source.braked:
            self.send(10)

    async def send_while_late(self, size):
        """Have JetStream not answer; send so many bytes when it has become late."""
        self.link.mute = True
        self.send()
        await until(lambda: self.group.holds)
        while self.sent * PAYLOAD < size:
            self.send()


class HoldTests(HoldCase):
    """By one process, with one server."""

    async def test_much_is_held_and_arrives_in_order(self):
        _, one = await self.bridge()
        self.assertTrue(IHolding.providedBy(one))
        self.assertFalse(one.holds)
        self.consume(one)
        self.send()
        await self.all_arrived()
        await self.send_while_late(5 * UNACCEPTED_LIMIT)
        # What is held is not accepted.
        self.assertEqual(one.counts.accepted, 50)
        self.assertFalse(one.full)
        self.link.mute = False
        await self.all_arrived()
        self.assertEqual((self.source.counters.pauses, self.source.braked), (0, False))
        self.assertEqual(one.counts.accepted, self.sent)
        await until(lambda: one.waiting_since is None)
        self.assertFalse(one.holds)

    async def test_a_connection_that_is_gone_is_no_reason_to_stop(self):
        _, one = await self.bridge()
        self.link.break_off()
        await until(lambda: one.full)
        while self.sent * PAYLOAD < 3 * UNACCEPTED_LIMIT:
            self.send()
        self.link.cut = False
        self.consume(one)
        await self.all_arrived()

    async def test_an_outbox_that_is_only_slow_holds_nothing(self):
        # On a busy machine the test itself is slow.
        self.patch(acceptor, "LATE", 30.0)
        _, one = await self.bridge()
        self.send_until_braked()
        self.assertLess(self.sent * PAYLOAD, 2 * UNACCEPTED_LIMIT)
        self.consume(one)
        await self.all_arrived()

    async def test_no_more_than_the_bound(self):
        self.patch(outbox, "HELD", 4 << 20)
        _, one = await self.bridge("w", "v")
        await self.send_while_late(0)
        self.send_until_braked()
        # Both webhooks have the same, and each delivery takes more than its payload.
        self.assertGreater(self.sent * PAYLOAD, UNACCEPTED_LIMIT)
        self.assertLess(2 * self.sent * PAYLOAD, 4 << 20)
        await until(lambda: self.source.counters.paused)
        self.link.mute = False
        await until(lambda: not self.source.braked)
        self.send()
        self.consume(one)
        await self.all_arrived()

    async def test_with_a_file_it_takes_what_is_more_than_the_bound(self):
        self.patch(outbox, "HELD", 4 << 20)
        _, one = await self.bridge(spill=True)
        await self.send_while_late(0)
        self.send_until_braked()
        await until(lambda: not self.source.braked)
        self.send()
        await until(lambda: one.diverted == self.sent)
        self.assertIn(f"webhook w: JetStream is away: {self.path} takes deliveries until it is back", self.lines())
        self.link.mute = False
        self.consume(one)
        await self.all_arrived()

    async def test_after_an_elections_time_it_stops_without_a_file(self):
        _, one = await self.bridge()
        await self.send_while_late(2 * UNACCEPTED_LIMIT)
        self.patch(outbox, "ELECTION", 0.0)
        self.send(1)
        self.assertTrue(self.source.braked)
        told = "webhook w: JetStream is away, and there is no spill: nothing more is accepted until it is back"
        await until(lambda: told in self.lines())
        await until(lambda: self.source.counters.paused)
        self.link.mute = False
        self.consume(one)
        await self.all_arrived()
        await until(lambda: not self.source.counters.paused)

    async def test_what_cannot_be_stored_takes_no_memory_for_ever(self):
        self.patch(outbox, "HELD", 1 << 20)
        _, one = await self.bridge()
        for _ in range(3):
            await one.append([*make(1), Delivery("m", "c\udc80", 1, bytes(600_000), 1), *make(1, 1)])
            await one.append([Delivery("m", "c\udc80", 1, bytes(600_000), 1)])
        self.assertIsNone(one.waiting_since)
        await self.send_while_late(0)
        self.link.mute = False

    async def test_stopping_loses_nothing_with_a_file(self):
        self.patch(stores, "CLOSING_TIME", 1.0)
        store, _ = await self.bridge(spill=True)
        await self.send_while_late(3 * UNACCEPTED_LIMIT)
        await store.stopService()
        self.assertFalse([line for line in self.lines() if "lost" in line])
        _, one = self.store(file=self.path, max_size=64 << 20)
        self.consume(one)
        await self.all_arrived()

    async def test_stopping_tells_how_many_are_lost_without_a_file(self):
        self.patch(stores, "CLOSING_TIME", 0.2)
        store, _ = await self.bridge("w", "v")
        await self.send_while_late(2 * UNACCEPTED_LIMIT)
        await store.stopService()
        what = f"{2 * self.sent} deliveries that were not yet accepted are lost"
        self.assertIn(f"outbox: stopped before everything was stored; {what}", self.lines())


class ElectionTests(HoldCase):
    """With three servers, one of which stands still."""

    async def test_a_partition_without_a_leader_holds_up_no_other(self):
        self.patch(outbox, "ELECTION", 60.0)
        await self.begin(3)
        first, one = self.store(partitions=6)
        await self.ready(one)
        leaders = [await leader(self.js, one.names.stream(number)) for number in range(6)]
        await first.stopService()
        number = int(leaders[0].removeprefix("n"))
        others = [server for index, server in enumerate(self.nodes.servers) if index != number]
        store, one = self.store(partitions=6, nats=NATSSettings(tuple(others)), max_size=64 << 20)
        self.read(store, ["w"])
        await self.ready(one)
        self.consume(one)
        self.nodes.stop(number)
        self.send()
        await until(lambda: self.group.holds)
        while self.sent * PAYLOAD < 3 * UNACCEPTED_LIMIT:
            self.send()
        led = {client for client in range(CLIENTS) if leaders[partition_of(f"c{client}", 6)] != leaders[0]}
        self.assertTrue(led)
        due = sum(len(self.numbers(range(self.sent), client)) for client in led)
        await until(lambda: len(self.first) == due)
        self.assertFalse(self.source.braked)
        self.nodes.go_on(number)
        await self.all_arrived()
        self.assertEqual(self.source.counters.pauses, 0)
