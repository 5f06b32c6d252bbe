"""An error in the middle of something: nothing is left half done, done twice or counted twice."""

import sqlite3
from contextlib import closing
from threading import Timer

from mqhooks.delivery import DeadLetter
from mqhooks.errors import OutboxDamaged, OutboxNoRoom, OutboxUnavailable
from mqhooks.outbox import deadletters, schema
from mqhooks.outbox.deadletters import Filter, Letters
from mqhooks.outbox.file import WEBHOOKS, Changes, NewRow, OutboxFile
from mqhooks.outbox.handed import PIECE, Handed, hand_over, pieces, progress
from mqhooks.outbox.sqlite import REQUESTS
from mqhooks.outbox.store import UNWRITTEN
from mqhooks.outbox.stored import encode, encode_handed
from tests.outboxes import StoreCase, deliveries


def letter(delivery, status=410, webhook="w"):
    return DeadLetter(0, webhook, delivery, "http://h/", "refused", status, b"", 5)


class HandedCase(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open()

    def hand(self, *handed):
        """Hand over lists of deliveries, and dead letters, each for a webhook."""
        with closing(schema.connect(self.path)) as target:
            progress(target, "source")
            for number, (webhook, what) in enumerate(handed, 1):
                dead = isinstance(what, DeadLetter)
                content = encode_handed(what) if dead else encode(what)
                hand_over(target, "source", "dead" if dead else "batch", [Handed(number, webhook, int(dead), content, 1)])

    def ask(self, action, number):
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("INSERT INTO request (action, dead) VALUES (?, ?)", (action, number))

    def settle(self):
        self.clock.pump([1, 0, 0.005, 0] * 5)


class HandedTests(HandedCase):
    def test_what_was_taken_over_before_an_error_does_not_come_again(self):
        self.append(1)
        self.outbox.bury(*self.claim(), "http://h/", "refused", 410, b"", 5)
        self.turn()
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("INSERT INTO webhook (id, name) VALUES (?, 'last')", (WEBHOOKS - 1,))
        self.ask("purge", 1)
        self.hand(("w", deliveries(3, 1)), ("one too many", deliveries(3, 4)), ("w", deliveries(3, 7)))
        self.settle()
        self.assertIn("cannot add webhook one too many", self.log())
        # The rows behind it do not wait for it.
        self.assertEqual((self.pending(), self.count("inbox"), self.count("request")), (6, 1, 0))
        self.kill(self.store)
        self.store = self.open()
        self.settle()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], [1, 2, 3, 7, 8, 9])

    def test_what_waits_for_a_place_gets_it(self):
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("INSERT INTO webhook (id, name) VALUES (?, 'last')", (WEBHOOKS - 1,))
        # More than are tried at once.
        others = [(f"new {number}", deliveries(1)) for number in range(REQUESTS + 10)]
        new = [("new", deliveries(2, 1)), ("new", letter(*deliveries(1))), ("new", deliveries(2, 3))]
        self.hand(*others, *new, ("w", deliveries(1)))
        self.settle()
        self.assertEqual((self.count("inbox"), self.pending()), (REQUESTS + 13, 1))
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM webhook WHERE name = 'last'")
        self.settle()
        self.assertEqual((self.count("inbox"), self.store.count_dead("new")), (0, 1))
        self.assertEqual([delivery.timestamp for delivery in self.claim(outbox=self.store.outbox("new"))], [1, 2, 3, 4])

    def test_full_webhook_holds_up_no_other(self):
        self.store.resize(2000, "pause", 1000)
        # More rows than one transaction takes up.
        rows = [("gone", deliveries(1, number, size=300)) for number in range(3 * REQUESTS)]
        self.hand(*rows, ("w", deliveries(3)), ("gone", letter(*deliveries(1))))
        self.settle()
        gone = self.store.outbox("gone")
        self.assertEqual(([delivery.timestamp for delivery in self.claim()], gone.letters), ([0, 1, 2], 1))
        self.assertLess(gone.used, 3000)
        self.assertIn("what was handed over for webhook gone waits: it has no room (outbox.max_size)", self.log())
        # A restart changes nothing.
        self.kill(self.store)
        self.store = self.open(max_size=2000)
        gone = self.store.outbox("gone")
        came = []
        for _ in range(60):
            claimed = self.claim(outbox=gone)
            came += [delivery.timestamp for delivery in claimed]
            gone.acknowledge(claimed)
            self.clock.pump([1, 0, 0.005, 0])
        self.assertEqual((came, self.count("inbox")), ([*range(3 * REQUESTS)], 0))

    def test_webhook_that_cannot_be_added_yet_is_added_later(self):
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            self.hand(("new", deliveries(2, 1)), ("w", deliveries(2, 3)))
            connection.execute("BEGIN IMMEDIATE")
            self.clock.advance(1)
            connection.execute("ROLLBACK")
        self.settle()
        self.assertEqual((self.count("inbox"), self.pending()), (0, 2))
        self.assertEqual([delivery.timestamp for delivery in self.claim(outbox=self.store.outbox("new"))], [1, 2])

    def test_damaged_row_adds_no_webhook(self):
        self.hand(("new", deliveries(1)), ("newer", letter(*deliveries(1))))
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE inbox SET content = x'00'")
        self.settle()
        self.assertEqual((self.count("inbox"), self.query("SELECT name FROM webhook")), (0, [("w",)]))
        self.assertIn("row 2 of inbox is damaged and is lost", self.log())

    def test_dead_letter_that_the_file_refuses_and_then_has_no_room_is_kept_once(self):
        self.hand(("w", letter(*deliveries(1), status=1 << 63)))
        self.faults.writes = [None, OutboxNoRoom("full")]
        self.settle()
        self.assertEqual(self.faults.writes, [])
        self.assertEqual((self.count("dead"), self.outbox.letters, self.store.failing), (1, 1, None))
        self.assertEqual(self.query("SELECT accepted, dead FROM webhook"), [(1, 1)])

    def test_long_dead_letters_are_taken_over_some_at_a_time(self):
        self.hand(*[("w", letter(delivery)) for delivery in deliveries(40, size=1 << 20)])
        self.settle()
        self.assertEqual((self.outbox.letters, self.count("inbox")), (40, 0))
        for written in self.faults.written:
            sizes = [len(each.delivery.body) for changes in written for each in changes.letters]
            self.assertLessEqual(sum(sizes), UNWRITTEN + (2 << 20))

    def test_pieces_are_bounded_by_bytes_and_by_number(self):
        rows = [Handed(number, "w", 1, bytes(size), 1) for number, size in enumerate([PIECE // 2, PIECE // 2, *[9] * 5])]
        self.assertEqual([len(piece) for piece in pieces(rows, 3)], [2, 3, 2])

    def test_request_of_an_unknown_kind_purges_nothing(self):
        self.append(1)
        self.outbox.bury(*self.claim(), "http://h/", "refused", 410, b"", 5)
        self.turn()
        self.ask("reroute", 1)
        self.settle()
        self.assertEqual((self.outbox.letters, self.count("dead"), self.count("request")), (1, 1, 0))
        self.assertIn("reroute was requested, but this mqhooks does not know it", self.log())


class ThinnedTests(StoreCase):
    def test_what_has_arrived_is_noted_though_the_disk_has_no_room_to_thin(self):
        store = self.open()
        self.append(400, size=500)
        self.append(10, 400)
        claimed = self.claim()
        self.outbox.acknowledge(claimed[:390])
        self.turn()
        used = self.outbox.used
        self.faults.room = 2000
        self.clock.advance(1)
        self.outbox.acknowledge(claimed[390:395])
        accepted = self.outbox.append(deliveries(1, 410))
        self.clock.pump([1, 0.005] * 10)
        self.successResultOf(accepted)
        self.assertEqual((store.failing, self.outbox.counts.delivered), (None, 395))
        self.assertEqual(self.query("SELECT bytes FROM webhook"), self.query("SELECT sum(length(deliveries)) FROM batch"))
        self.assertGreater(self.outbox.used, used)
        self.faults.room = None
        self.clock.pump([1, 0.005] * 70)
        self.assertLess(self.outbox.used, used / 10)
        self.assertEqual(self.query("SELECT bytes FROM webhook"), self.query("SELECT sum(length(deliveries)) FROM batch"))
        self.kill(store)
        self.open()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(395, 411)))


class FileTests(StoreCase):
    def test_nothing_was_forgotten_by_a_transaction_that_was_rolled_back(self):
        schema.prepare(self.path)
        file = OutboxFile(self.path)
        self.addCleanup(file.close)
        kept = file.load("w")
        changes = Changes(kept.key, "w", letters=[letter(*deliveries(1))])
        bad = Changes(kept.key, "w", finished=[77])
        self.assertRaises(OutboxDamaged, file.write, [changes, bad])
        changes.letters = []
        changes.rows = [NewRow(1, deliveries(1), encode(deliveries(1)))]
        file.write([changes])
        self.assertEqual(changes.forgotten, 0)


class LettersTests(HandedCase):
    """What another process does with dead letters while the owner of the outbox is busy."""

    def bury(self, count):
        self.append(count)
        for number, delivery in enumerate(self.claim()):
            self.outbox.bury(delivery, "http://h/", f"refused {number}", 410, b"", 5)
        self.turn()

    def busy(self):
        """Be in the middle of a transaction."""
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.addCleanup(connection.close)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def test_requests_wait_for_the_owner(self):
        self.bury(1)
        connection = self.busy()
        end = Timer(0.4, connection.rollback)
        end.start()
        self.addCleanup(end.join)
        with closing(Letters(self.path)) as other:
            self.assertEqual(other.ask("purge", [1]), 1)

    def test_owner_that_never_ends_is_named(self):
        self.patch(deadletters, "PATIENCE", 0.0)
        self.busy()
        with closing(Letters(self.path)) as other:
            error = self.assertRaises(OutboxUnavailable, other.ask, "purge", [1])
        self.assertEqual(str(error), f"{self.path}: cannot be used now (database is locked); try again")

    def test_paused_list_of_groups_does_not_keep_the_log(self):
        self.bury(3)
        with closing(Letters(self.path)) as other:
            groups = other.groups(Filter())
            first = next(groups)
            self.append(1)
            self.assertEqual(self.query("PRAGMA wal_checkpoint(TRUNCATE)"), [(0, 0, 0)])
            self.assertEqual([group.reason for group in (first, *groups)], ["refused 0", "refused 1", "refused 2"])
