"""Rows that are written and read piece by piece."""

import sqlite3
import sys
from io import StringIO
from random import Random
from zlib import crc32

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.__main__ import main
from mqhooks.errors import OutboxError
from mqhooks.outbox import longrows, schema
from mqhooks.outbox.delivery import LONG_BODY, Delivery, beginning, whole
from mqhooks.outbox.letters import Letters
from mqhooks.outbox.longrows import PIECE, LongRow
from tests.test_outbox_sqlite import RETRY, StoreCase, deliveries

CLIENTS = st.builds(lambda text, times: text * times, st.text(max_size=20), st.sampled_from([0, 1, 10, 20_000]))


class Made:
    """A body that is made anew whenever it is needed."""

    def __init__(self, seed, count=3):
        self.parts = [Random(f"{seed}-{number}").randbytes(LONG_BODY // 2 + number) for number in range(count)]

    def __len__(self):
        return sum(map(len, self.parts))

    def pieces(self):
        return iter(self.parts)


def long_delivery(number, count=3, client="c"):
    return Delivery(f"msg_{number}", client, number, Made(number, count), 1000 + number)


class FormatTests(SynchronousTestCase):
    @given(st.text(max_size=300), CLIENTS, st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1))
    def test_the_same_bytes_and_back(self, id_, client, timestamp, accepted):
        body = bytes(70_000)
        delivery = Delivery(id_, client, timestamp, body, accepted)
        encode = msgspec.msgpack.Encoder().encode
        for table, expected in (("batch", encode([delivery])), ("dead", encode(delivery))):
            row = LongRow(delivery, table)
            self.assertEqual((b"".join(row._all(None)), row.size), (expected, len(expected)))
            end = len(row._head) - 5
            start = 2 if table == "batch" else 1
            at = start
            for _ in range(3):
                at = longrows._skip(expected[at : at + 5], at)
            self.assertEqual(at, end)

    def test_what_is_no_row(self):
        self.assertRaises(msgspec.DecodeError, longrows._skip, b"\xc4\x01", 0)
        self.assertRaises(msgspec.DecodeError, longrows._skip, b"", 0)

    def test_the_beginning(self):
        body = Made(1)
        self.assertEqual(beginning(body, 7), whole(body)[:7])
        self.assertEqual(beginning(body, LONG_BODY), whole(body)[:LONG_BODY])
        self.assertEqual(beginning(body, 10 * LONG_BODY), whole(body))
        self.assertEqual(beginning(b"abc", 2), b"ab")


class LongRowTests(StoreCase):
    def test_bodies_stay_in_the_file(self):
        store = self.open()
        appended = [*deliveries(2), long_delivery(2), long_delivery(3, 9), *deliveries(1, 4)]
        expected = [whole(delivery.body) for delivery in appended]
        self.outbox.append(appended)
        self.turn()
        for _ in range(2):
            claimed = self.claim()
            self.assertEqual([whole(delivery.body) for delivery in claimed], expected)
            self.assertEqual([len(delivery.body) for delivery in claimed], [len(body) for body in expected])
            self.assertEqual([isinstance(delivery.body, bytes) for delivery in claimed], [True, True, False, False, True])
            self.assertEqual([delivery.id for delivery in claimed], [f"msg_{number}" for number in range(5)])
            self.assertLessEqual(max(map(len, claimed[3].body.pieces())), PIECE)
            self.kill(store)
            store = self.open()
        (recalled,) = self.outbox.recall([claimed[2].place]) if self.claim() else ()
        self.assertEqual(whole(recalled.body), expected[2])
        self.outbox.settle(*claimed)
        self.turn()
        self.assertEqual((self.outbox.pending, self.count("batch"), self.outbox.bytes), (0, 0, 0))

    def bury(self, number=1):
        self.outbox.append([long_delivery(number)])
        self.turn()
        (delivery,) = self.claim()
        self.outbox.bury(delivery, "http://h/", "refused", 413, b"too long", 5)
        self.turn()
        self.assertEqual((self.count("batch"), self.count("dead")), (0, number))

    def test_dead_letters(self):
        store = self.open()
        self.bury()
        (letter,) = store.dead_letters()
        self.assertNotIsInstance(letter.delivery.body, bytes)
        self.assertEqual(whole(letter.delivery.body), whole(Made(1)))
        self.assertEqual(
            (letter.delivery.id, letter.reason, letter.status, letter.answer), ("msg_1", "refused", 413, b"too long")
        )
        other = Letters(self.path)
        self.addCleanup(other.close)
        self.assertEqual(whole(other.get(letter.number).delivery.body), whole(Made(1)))
        self.assertEqual(store.replay([letter.number]), 1)
        self.turn()
        (again,) = self.claim()
        self.assertEqual((again.id, whole(again.body)), ("msg_1", whole(Made(1))))
        self.assertEqual((self.count("batch"), self.count("dead")), (1, 0))

    def test_a_dead_letter_that_is_damaged(self):
        store = self.open()
        self.bury()
        (letter,) = store.dead_letters()
        self.bury(2)
        with store._writer.blobopen("dead", "delivery", letter.number) as blob:
            blob.seek(1)
            blob.write(b"\xc1")
        damaged = f"dead letter {letter.number} is damaged"
        bad, good = store.dead_letters()
        self.assertEqual((bad.number, bad.delivery.id, len(bad.delivery.body)), (letter.number, "", 0))
        self.assertRegex(bad.reason, r"^refused \(its row is damaged: .+\)$")
        self.assertEqual((good.delivery.id, good.damage), ("msg_2", ""))
        self.assertIn(damaged, str(self.assertRaises(OutboxError, store.replay, [letter.number])))
        self.patch(sys, "stderr", StringIO())
        self.assertEqual(main(["dead", "show", "--outbox", self.path, str(letter.number)]), 1)
        self.assertRegex(sys.stderr.getvalue(), f"^mqhooks: {damaged} .*\n$")
        other = Letters(self.path)
        self.addCleanup(other.close)
        other.ask("replay", [letter.number])
        self.clock.advance(1)
        self.turn()
        self.assertIn(f"replay was asked for, but {damaged}", "\n".join(self.lines()))
        self.assertEqual((self.count("request"), self.count("dead"), store.failing), (0, 2, None))
        self.assertEqual(main(["dead", "replay", "--outbox", self.path, str(letter.number)]), 1)
        self.patch(sys, "stdout", StringIO())
        self.assertEqual(main(["dead", "replay", "--outbox", self.path, "--all"]), 0)
        self.assertIn("asked for 1", sys.stdout.getvalue())
        self.assertEqual(main(["dead", "purge", "--outbox", self.path, str(letter.number)]), 0)
        self.clock.advance(1)
        self.turn()
        self.assertEqual((self.count("request"), self.count("dead"), self.count("batch")), (0, 0, 1))
        self.assertEqual((self.outbox.letters, self.outbox.dead, self.outbox.pending), (0, 1, 1))

    def test_a_dead_letter_with_any_wrong_byte_is_listed(self):
        store = self.open()
        self.bury()
        self.outbox.append([Delivery("msg_2", "c", 1, b"{}")])
        self.turn()
        self.outbox.bury(*self.claim(), "http://h/", "refused", 413, b"", 5)
        self.turn()
        damaged = 0
        for number in (1, 2):
            for place in range(20):
                with store._writer.blobopen("dead", "delivery", number) as blob:
                    blob.seek(place)
                    right = blob.read(1)
                    blob.seek(place)
                    blob.write(b"\xff")
                    damaged += sum(bool(letter.damage) for letter in store.dead_letters())
                    blob.seek(place)
                    blob.write(right)
        self.assertGreater(damaged, 20)
        self.assertEqual([letter.damage for letter in store.dead_letters()], ["", ""])

    def test_one_that_makes_room_while_it_is_replayed(self):
        store = self.open(dead_max=1)
        self.bury()
        (letter,) = store.dead_letters()
        self.outbox.append([long_delivery(2)])
        self.turn()
        (delivery,) = self.claim()
        write = store._write

        def replay_and_write(plans):
            # What a thread does takes a while.
            self.patch(store, "_write", write)
            self.assertEqual(store.replay([letter.number]), 1)
            write(plans)

        self.patch(store, "_write", replay_and_write)
        self.outbox.bury(delivery, "http://h/", "refused", 413, b"", 6)
        self.turn()
        self.turn()
        self.assertIsNone(store.failing)
        self.assertEqual([letter.delivery.id for letter in store.dead_letters()], ["msg_2"])
        self.assertEqual((self.outbox.letters, self.outbox.dropped, self.outbox.pending, self.claim()), (1, 1, 0, []))

    def test_what_was_written_at_once_is_read_too(self):
        store = self.open()
        row = msgspec.msgpack.encode([Delivery("old", "c", 7, bytes(2 * LONG_BODY), 9)])
        letter = msgspec.msgpack.encode(Delivery("dead", "c", 7, bytes(3 * LONG_BODY), 9))
        number = (self.outbox.key << 40) + 1
        self.kill(store)
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute("INSERT INTO batch VALUES (?, 1, ?, ?)", (number, crc32(row), row))
            connection.execute("UPDATE webhook SET accepted = 1, last = ?", (number,))
            columns = "webhook, url, reason, status, answer, died, delivery"
            connection.execute(f"INSERT INTO dead ({columns}) VALUES ('w', '', '', 0, x'', 0, ?)", (letter,))
        connection.close()
        store = self.open()
        (delivery,) = self.claim()
        self.assertEqual((delivery.id, whole(delivery.body)), ("old", bytes(2 * LONG_BODY)))
        (found,) = store.dead_letters()
        self.assertEqual((found.delivery.id, whole(found.delivery.body)), ("dead", bytes(3 * LONG_BODY)))

    def test_one_that_is_damaged_is_lost_alone(self):
        store = self.open()
        self.outbox.append([long_delivery(1), long_delivery(2)])
        self.turn()
        self.kill(store)
        connection = schema.connect(self.path)
        first = connection.execute("SELECT min(id) FROM batch").fetchone()[0]
        with connection.blobopen("batch", "deliveries", first) as blob:
            blob.seek(LONG_BODY)
            blob.write(b"damage")
        connection.close()
        self.open()
        self.assertEqual([delivery.id for delivery in self.claim()], ["msg_2"])
        self.assertEqual((self.outbox.dropped, self.outbox.pending), (1, 1))
        self.assertIn("is damaged: 1 deliveries are lost", "\n".join(self.lines()))

    def test_one_that_cannot_be_read_any_more(self):
        store = self.open()
        self.outbox.append([long_delivery(1)])
        self.turn()
        (delivery,) = self.claim()
        store._writer.execute("DELETE FROM batch")
        error = self.assertRaises(OutboxError, whole, delivery.body)
        self.assertIn("of batch cannot be read", str(error))
        self.assertIn("cannot be read", "\n".join(self.lines()))

    def test_no_room(self):
        store = self.open()
        store._writer.execute("PRAGMA max_page_count = 100")
        accepted = self.outbox.append([long_delivery(1)])
        self.turn()
        self.assertNoResult(accepted)
        store._writer.execute("PRAGMA max_page_count = 10000")
        self.clock.advance(RETRY)
        self.successResultOf(accepted)
        self.assertEqual([whole(delivery.body) for delivery in self.claim()], [whole(Made(1))])
