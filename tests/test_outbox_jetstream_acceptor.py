"""Who writes the log of a partition, without a server: what becomes of deliveries in the local file."""

import sqlite3
from contextlib import closing
from types import SimpleNamespace

from twisted.internet.defer import Deferred, fail, succeed

from mqhooks.delivery import Delivery
from mqhooks.errors import NATSTimeout, NATSTooLong
from mqhooks.outbox.jetstream.acceptor import AGAIN, Acceptor, Held
from tests.outboxes import StoreCase, deliveries


class Stream:
    """
    Takes messages.

    :ivar longest: the longest message that it takes, in bytes.
    :ivar failing: the error of each attempt; ``None`` for none.
    :ivar slow: whether acknowledgements wait until :meth:`answer`.
    :ivar stored: the id of each message, with its number of deliveries.
    """

    longest = 1 << 20
    failing = None
    slow = False

    def __init__(self):
        self.stored = []
        self.unanswered = []

    def publish(self, subject, data, *, message_id, headers, timeout):
        if self.failing is not None:
            return fail(self.failing)
        if len(data) > self.longest:
            return fail(NATSTooLong("a message is too long"))
        self.stored.append((message_id, headers["Mqhooks-Count"]))
        ack = SimpleNamespace(seq=len(self.stored))
        if self.slow:
            self.unanswered.append((Deferred(), ack))
            return self.unanswered[-1][0]
        return succeed(ack)

    def answer(self):
        """Acknowledge all messages, also those that follow at once."""
        while self.unanswered:
            answer, ack = self.unanswered.pop(0)
            answer.callback(ack)


class Caller:
    """
    Waits for its deliveries to be accepted, once, and may append more at once.

    :ivar answered: how often it was told that they are.
    """

    def __init__(self, then=lambda: None):
        self.answered = 0
        self.then = then

    def landed(self):
        self.answered += 1
        self.then()


class AcceptorCase(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open()
        self.stream, self.refused = Stream(), []

    def acceptor(self, refused=None):
        """Return an acceptor, whose stream is there; ``refused`` notes what cannot be stored."""
        acceptor = Acceptor(
            self.clock,
            self.stream,
            "MQ.log.w.0",
            "a-x",
            lambda seq, whose: [each.landed() for each in whose],
            lambda error: None,
            refused or (lambda delivery, problem, stored: self.refused.append((delivery.id, stored))),
            self.last,
            Held(),
        )
        acceptor.begin()
        self.addCleanup(acceptor.stop)
        return acceptor

    def bad(self, number, client="c"):
        """Return a delivery that cannot be encoded."""
        return Delivery(f"msg_{number}", f"{client}\udc80", 1, b"x", 1)

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

    def test_who_is_told_of_what_cannot_be_stored_may_append_at_once(self):
        # Dead letters are not kept, so nobody waits for one.
        acceptor = self.acceptor(refused=lambda delivery, problem, stored: stored())
        self.stream.slow = True
        callers = [Caller() for _ in range(702)]
        callers[1].then = lambda: acceptor.put(deliveries(1, 1000), callers[701])
        for number, caller in enumerate(callers[:701]):
            acceptor.put([self.bad(number)] if number == 1 else deliveries(1, number), caller)
        self.stream.answer()
        for _ in range(5):
            self.clock.advance(1)
            self.stream.answer()
        # All but one, each once, in order, and one message after the other.
        self.assertEqual(
            self.stream.stored,
            [("a-x/msg_0", "1"), ("a-x/msg_256", "255"), ("a-x/msg_512", "256"), ("a-x/msg_1000", "189")],
        )
        self.assertEqual([caller.answered for caller in callers], [1] * 702)
        self.assertEqual((acceptor.busy, acceptor.since, acceptor.unstored), (False, None, 0))

    def test_who_is_told_of_what_cannot_be_stored_appends_to_the_end_of_the_file(self):
        acceptor = self.acceptor(refused=lambda delivery, problem, stored: stored())
        acceptor.attach(self.outbox)
        acceptor.held = True
        acceptor.put([self.bad(0)], Caller(lambda: acceptor.put(deliveries(1, 10), Caller())))
        for number in (1, 2):
            acceptor.put(deliveries(1, number), Caller())
        acceptor.divert()
        self.turn()
        self.assertEqual([delivery.id for delivery in self.claim()], ["msg_1", "msg_2", "msg_10"])

    def test_nobody_is_told_before_the_dead_letter_is_stored(self):
        for diverted in (False, True):
            for unstorable in range(3):
                acceptor = self.acceptor()
                if diverted:
                    acceptor.attach(self.outbox)
                    acceptor.spilling = True
                self.refused.clear()
                caller, given = Caller(), deliveries(3)
                given[unstorable] = self.bad(unstorable)
                acceptor.put(given, caller)
                self.turn()
                ((_, stored),) = self.refused
                self.assertEqual((acceptor.busy, caller.answered), (False, 0), (diverted, unstorable))
                stored()
                self.assertEqual(caller.answered, 1)

    def test_nobody_is_told_before_the_dead_letter_of_what_is_too_long_is_stored(self):
        acceptor, caller = self.acceptor(), Caller()
        self.stream.longest = 500
        acceptor.put([*deliveries(1), *deliveries(1, 1, size=1000), *deliveries(1, 2)], caller)
        self.clock.pump([AGAIN] * 5)
        self.assertEqual((self.stream.stored, caller.answered), ([("a-x/msg_0", "1"), ("a-x/msg_2", "1")], 0))
        ((_, stored),) = self.refused
        stored()
        self.assertEqual(caller.answered, 1)

    def test_nobody_waits_for_the_dead_letter_of_what_the_file_keeps(self):
        acceptor, caller = self.acceptor(), Caller()
        acceptor.attach(self.outbox)
        self.stream.longest = 500
        acceptor.put([*deliveries(1), *deliveries(1, 1, size=1000), *deliveries(1, 2)], caller)
        self.clock.pump([AGAIN] * 10)
        self.assertEqual((caller.answered, self.pending(), self.stream.stored), (1, 2, [("a-x/msg_0", "1")]))
        ((_, stored),) = self.refused
        stored()
        self.clock.pump([AGAIN] * 10)
        self.assertEqual((self.pending(), self.stream.stored), (0, [("a-x/msg_0", "1"), ("a-x/msg_2", "1")]))
        self.assertEqual((acceptor.spilling, acceptor.busy, caller.answered), (False, False, 1))
