"""Who writes the log of a partition, without a server: what becomes of deliveries in the local file."""

import sqlite3
from contextlib import closing
from types import SimpleNamespace

from twisted.internet.defer import fail, succeed

from mqhooks.errors import NATSTimeout, NATSTooLong
from mqhooks.outbox.jetstream.acceptor import AGAIN, Acceptor, Held
from tests.outboxes import StoreCase, deliveries


class Stream:
    """
    Takes messages.

    :ivar longest: the longest message that it takes, in bytes.
    :ivar failing: the error of each attempt; ``None`` for none.
    :ivar stored: the id of each message, with its number of deliveries.
    """

    longest = 1 << 20
    failing = None

    def __init__(self):
        self.stored = []

    def publish(self, subject, data, *, message_id, headers, timeout):
        if self.failing is not None:
            return fail(self.failing)
        if len(data) > self.longest:
            return fail(NATSTooLong("a message is too long"))
        self.stored.append((message_id, headers["Mqhooks-Count"]))
        return succeed(SimpleNamespace(seq=len(self.stored)))


class AcceptorCase(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open()
        self.stream, self.refused = Stream(), []

    def acceptor(self):
        """Return an acceptor, whose stream is there."""
        acceptor = Acceptor(
            self.clock,
            self.stream,
            "MQ.log.w.0",
            "a-x",
            lambda seq, whose: [each.landed() for each in whose],
            lambda error: None,
            lambda delivery, problem, stored: self.refused.append((delivery.id, stored)),
            self.last,
            Held(),
        )
        acceptor.begin()
        self.addCleanup(acceptor.stop)
        return acceptor

    async def last(self, name):
        """Name a delivery that was never in the file."""
        return "msg_before"


class FileTests(AcceptorCase):
    def drain(self):
        """Have an acceptor store what is in the file."""
        acceptor = self.acceptor()
        acceptor.attach(self.outbox)
        acceptor.drain()
        self.clock.pump([AGAIN] * 5)
        return acceptor

    def damage(self, index):
        """Start again with a file one of whose rows cannot be read."""
        self.kill(self.store)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            row = "SELECT id FROM batch ORDER BY id LIMIT 1 OFFSET ?"
            connection.execute(f"UPDATE batch SET checksum = 0 WHERE id = ({row})", (index,))
        self.store = self.open()

    def test_too_long_for_a_message_it_stays_until_its_dead_letter_is_stored(self):
        self.append(1, size=1000)
        self.append(1, 1)
        self.stream.longest = 500
        acceptor = self.drain()
        ((refused, stored),) = self.refused
        self.assertEqual((refused, self.pending(), self.stream.stored), ("msg_0", 2, []))
        stored()
        self.clock.pump([AGAIN] * 5)
        self.assertEqual((acceptor.spilling, self.pending(), self.stream.stored), (False, 0, [("a-x/msg_1", "1")]))

    def test_nobody_waits_for_what_cannot_be_read(self):
        for damaged in range(3):
            for number in range(3):
                self.append(1, number)
            self.damage(damaged)
            acceptor = self.drain()
            self.assertEqual((acceptor.spilling, self.pending()), (False, 0), damaged)
            last = 1 if damaged == 2 else 2
            self.assertEqual(self.stream.stored, [(f"a-x/msg_{last}", "2")])
            self.kill_all()
            self.setUp()


class MemoryTests(AcceptorCase):
    def test_sent_in_vain_it_may_turn_out_to_be_too_long(self):
        self.stream.failing = NATSTimeout("no answer")
        acceptor = self.acceptor()
        landed = []
        acceptor.put(deliveries(2, size=400), SimpleNamespace(landed=lambda: landed.append(True)))
        self.clock.pump([1.0] * 10)
        # By now we are connected to a server that takes less, and the log does not have it.
        self.stream.failing, self.stream.longest = None, 800
        self.clock.pump([AGAIN] * 5)
        self.assertEqual((self.stream.stored, landed), ([("a-x/msg_0", "1"), ("a-x/msg_1", "1")], [True]))
