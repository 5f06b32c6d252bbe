"""What a disk that lies, or has no room, does to the outbox."""

import os
import resource
import sqlite3
from pathlib import Path
from random import Random

from mqhooks.errors import OutboxError
from mqhooks.outbox import salvage as salvage_module
from mqhooks.outbox.delivery import Delivery
from mqhooks.outbox.letters import Letters
from mqhooks.outbox.queue import LONGEST
from mqhooks.outbox.sqlite import REQUESTS, RETRY
from mqhooks.webhook.lanes import Lanes, Verdict
from tests.test_outbox_sqlite import StoreCase, deliveries

MIB = 1 << 20


class BrokenReader:
    """Fails where a disk would, and else is the reader."""

    def __init__(self, reader, word):
        self.reader, self.word = reader, word

    def execute(self, question, *values):
        if self.word in question:
            raise sqlite3.OperationalError("disk I/O error")
        return self.reader.execute(question, *values)

    def close(self):
        self.reader.close()


class DamagedCase(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open()

    def bury(self, count, size=0):
        self.append(count, size=size)
        for delivery in self.claim():
            self.outbox.bury(delivery, "http://h/", "refused", 413, b"", 5)
        self.turn()

    def change(self, *statements, anything=False):
        """
        Change the file behind the store's back.

        :param anything: whether columns take what their types forbid, as those of a damaged page do.
        """
        self.kill(self.store)
        for statement in statements:
            connection = sqlite3.connect(self.path)
            if anything:
                connection.execute("PRAGMA writable_schema = ON")
                loose = "replace(replace(sql, 'NOT NULL', ''), 'STRICT', '')"
                connection.execute(f"UPDATE sqlite_schema SET sql = {loose} WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
                connection.commit()
                connection.close()
                connection = sqlite3.connect(self.path)
            with connection:
                connection.execute(statement)
            connection.close()

    def zero(self, *marks):
        """Lose the pages in which these stand."""
        self.kill(self.store)
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        content = bytearray(Path(self.path).read_bytes())
        for mark in marks:
            page = content.rindex(mark) // 4096 * 4096
            content[page : page + 4096] = bytes(4096)
        Path(self.path).write_bytes(content)

    def start(self, **options):
        """Start until nothing is found damaged any more, and count how often."""
        for starts in range(1, 4):
            self.store = self.open(**options)
            stopped = []
            self.patch(self.clock, "stop", lambda stopped=stopped: stopped.append(1))
            claimed = self.claim()
            self.turn()
            self.clock.advance(1)
            if not stopped:
                return starts, claimed
            self.kill(self.store)
        return self.fail("it was never repaired")

    def mark(self):
        Path(f"{self.path}.lock").write_text("1\ndamaged\n")

    def assert_positive(self):
        outbox = self.outbox
        self.assert_identity()
        self.assertGreaterEqual(min(outbox.delivered, outbox.dead, outbox.dropped, outbox.pending, outbox.letters), 0)


class RowTests(DamagedCase):
    """Rows that are not as they were written."""

    def case(self, statement, mark):
        self.setUp()
        self.append(6)
        for delivery in self.claim()[:3]:
            self.outbox.bury(delivery, "http://h/", "refused", 413, b"", 5)
        self.turn()
        self.change(statement, anything=True)
        if mark:
            self.mark()
        _, claimed = self.start()
        self.assert_positive()
        self.assertEqual(len(claimed), self.outbox.pending)
        self.outbox.settle(*claimed)
        self.turn()
        self.assert_positive()
        self.assertEqual((self.outbox.pending, self.count("batch"), self.store.failing), (0, 0, None))
        return [delivery.id for delivery in claimed]

    def test_values_that_cannot_be_what_was_written(self):
        left, all_ = [f"msg_{number}" for number in range(3, 6)], [f"msg_{number}" for number in range(6)]
        expected = {
            "UPDATE batch SET count = NULL": left,
            "UPDATE batch SET count = 5": left,
            "UPDATE batch SET count = 100000": left,
            "UPDATE batch SET checksum = NULL": [],
            "UPDATE batch SET deliveries = NULL": [],
            "UPDATE batch SET deliveries = 7": [],
            "UPDATE batch SET checksum = 0, deliveries = x''": [],
            # To have them sent again is better than to lose them.
            "UPDATE progress SET settled = NULL": all_,
            "UPDATE progress SET settled = ''": all_,
            "UPDATE progress SET settled = x'07ff'": all_,
            "UPDATE progress SET settled = x'ff'": all_,
            "UPDATE progress SET settled = 'a'": all_,
            "UPDATE webhook SET accepted = NULL": left,
            "UPDATE webhook SET delivered = 'x'": left,
            "DROP TABLE progress": all_,
        }
        for statement, ids in expected.items():
            for mark in (False, True):
                self.assertEqual(self.case(statement, mark), ids, (statement, mark))

    def test_rows_that_are_gone(self):
        self.append(6)
        self.change("DELETE FROM batch")
        starts, claimed = self.start()
        self.assertEqual((starts, claimed), (2, []))
        self.assertIn("rows of batch cannot be found", "\n".join(self.lines()))
        self.assertEqual((self.outbox.accepted, self.outbox.dropped, self.outbox.pending), (6, 6, 0))

    def test_progress_that_is_gone(self):
        self.append(6)
        self.outbox.settle(*self.claim()[:2])
        self.turn()
        self.change("DELETE FROM progress")
        _, claimed = self.start()
        self.outbox.settle(*claimed)
        self.turn()
        self.clock.advance(1)
        self.assert_positive()
        self.assertEqual((self.outbox.accepted, self.outbox.delivered, self.outbox.pending), (8, 8, 0))
        self.assertIn("2 deliveries were sent once more", "\n".join(self.lines()))

    def test_a_name_that_is_no_text(self):
        self.append(3)
        self.change("UPDATE webhook SET name = CAST(x'ff77' AS TEXT)")
        self.store = self.open()
        lines = "\n".join(self.lines())
        self.assertIn("set aside", lines)
        self.assertIn("holds 3 deliveries of webhook webhook-1, which is not configured", lines)

    def test_an_invented_name_is_nobody_elses(self):
        self.append(3)
        store = self.store
        other = store.outbox("webhook-1")
        other.append(deliveries(2, 10))
        self.turn()
        self.change("UPDATE webhook SET name = CAST(x'ff77' AS TEXT) WHERE id = 1")
        self.store = self.open()
        self.assertEqual([delivery.id for delivery in self.store.outbox("webhook-1").claim(9)], ["msg_10", "msg_11"])
        self.assertIn("holds 3 deliveries of webhook webhook-1-lost", "\n".join(self.lines()))

    def test_bytes_that_no_row_has(self):
        self.append(3)
        self.change("UPDATE webhook SET bytes = 1 << 40")
        self.store = self.open()
        accepted = self.append(1, 3)
        self.outbox.settle(*self.claim())
        self.turn()
        self.assertNoResult(accepted)
        self.clock.advance(1)
        self.successResultOf(accepted)

    def test_rows_that_cannot_be_dropped(self):
        for start in range(0, 100, 10):
            self.append(10, start, size=1000)
        self.change("UPDATE batch SET count = NULL WHERE id % 16 = 4", anything=True)
        self.store = self.open(max_size=10_000, on_full="drop_oldest")
        self.append(10, 100, size=1000)
        connection = sqlite3.connect(self.path)
        ((pending, rows),) = connection.execute(
            "SELECT accepted - dropped, (SELECT sum(coalesce(count, 10)) FROM batch) FROM webhook"
        ).fetchall()
        connection.close()
        self.assertEqual(pending, rows)
        self.assertEqual(self.outbox.dropped, 30)

    def test_a_client_of_any_length(self):
        for length in (MIB, 3 * MIB):
            bodies = {"msg_a": b"short", "msg_b": b"x" * 70_000, "msg_c": b"x" * (MIB + 1)}
            self.outbox.append([Delivery(id_, "c" * length, 1, body) for id_, body in bodies.items()])
        self.turn()
        self.kill(self.store)
        self.open()
        claimed = self.claim()
        self.assertEqual([delivery.id for delivery in claimed], ["msg_a", "msg_b", "msg_c"] * 2)
        self.assertEqual({len(delivery.client) for delivery in claimed}, {MIB, 3 * MIB})
        self.assertEqual([len(delivery.body) for delivery in claimed], [5, 70_000, MIB + 1] * 2)

    def test_what_hurries_counts_what_it_writes(self):
        for number in range(20):
            self.outbox.append(deliveries(1, number, size=MIB))
            connection = sqlite3.connect(self.path)
            ((accepted, rows),) = connection.execute("SELECT accepted, (SELECT count(*) FROM batch) FROM webhook").fetchall()
            connection.close()
            self.assertEqual(accepted, rows)
        self.assertGreater(rows, 5)

    def test_what_is_between_two_places_that_cannot_be_read(self):
        for start in range(0, 6000, 100):
            self.append(100, start, size=200)
        # Each row has several pages; these are in the middle of two of them.
        self.zero(b"msg_1050\xa2", b"msg_4950\xa2")
        self.mark()
        _, claimed = self.start()
        found = {delivery.timestamp for delivery in claimed}
        self.assertEqual(set(range(6000)) - found, {*range(1000, 1100), *range(4900, 5000)})
        self.assertEqual(self.outbox.dropped, 200)

    def test_keys_in_any_order_end(self):
        class Shuffled:
            def execute(self, _, limits):
                return self

            def fetchone(self):
                return (7, b"")

        self.patch(salvage_module, "PROBES", 100)
        self.assertLess(len(list(salvage_module._rows(Shuffled(), "progress", "batch, settled"))), 101)


class LetterTests(DamagedCase):
    """Dead letters that are not as they were written."""

    def numbers(self, **options):
        return [letter.number for letter in self.store.dead_letters(**options)]

    def test_values_that_cannot_be_what_was_written(self):
        for column in ("url", "reason", "status", "answer", "died", "delivery"):
            self.setUp()
            self.bury(3)
            self.change(f"UPDATE dead SET {column} = NULL WHERE id = 2", anything=True)
            self.store = self.open()
            self.assertEqual([bool(letter.damage) for letter in self.store.dead_letters()], [False, True, False], column)
            self.assertRaises(OutboxError, self.store.replay, [2])
            self.assertEqual(self.store.purge([2]), 1)
            self.turn()
            self.assertEqual((self.numbers(), self.outbox.letters), ([1, 3], 2))

    def test_a_text_that_is_none(self):
        self.bury(3)
        self.change("UPDATE dead SET reason = CAST(x'ff77' AS TEXT) WHERE id = 2")
        self.store = self.open()
        self.assertEqual([letter.reason for letter in self.store.dead_letters()], ["refused", "\ufffdw", "refused"])
        self.assertEqual(self.store.replay([2]), 1)

    def test_a_page_that_is_lost_hides_no_other(self):
        self.bury(40, size=900)
        self.zero(b"msg_20\xa2")
        self.store = self.open()
        other = Letters(self.path)
        self.addCleanup(other.close)
        for letters in (self.store.dead_letters(), list(other)):
            damaged = [letter.number for letter in letters if letter.damage]
            self.assertEqual([letter.number for letter in letters], list(range(1, 41)))
            self.assertIn(21, damaged)
            self.assertLess(len(damaged), 9)
        self.assertEqual(self.numbers(webhook="other"), [])
        self.assertEqual(self.numbers(after=damaged[0], limit=2), [damaged[0] + 1, damaged[0] + 2])
        self.assertEqual(self.store.count_dead(None, "refused"), 40 - len(damaged))
        self.assertEqual(self.store.count_dead(None, "malformed"), len(damaged))
        self.store.purge(damaged)
        self.turn()
        # That finds the damage; the next start leaves out what cannot be read.
        self.kill(self.store)
        self.store = self.open()
        self.assertEqual(self.numbers(), sorted({*range(1, 41)} - {*damaged}))
        self.assertEqual(self.outbox.letters, 40 - len(damaged))

    def test_letters_that_may_be_gone_and_cannot_be_looked_for(self):
        self.kill(self.store)
        self.store = self.open(dead_max=1)
        self.bury(1)
        write = self.store._write

        def replay_and_write(plans):
            self.patch(self.store, "_write", write)
            self.store.replay([1])
            write(plans)
            self.store._reader = BrokenReader(self.store._reader, "FROM dead")

        self.append(1, 7)
        self.patch(self.store, "_write", replay_and_write)
        self.outbox.bury(*self.claim(), "http://h/", "refused", 413, b"", 5)
        accepted = self.outbox.append(deliveries(1, 8))
        self.turn()
        self.store._reader = self.store._reader.reader
        self.successResultOf(accepted)
        self.turn()
        self.assertEqual([delivery.id for delivery in self.claim()], ["msg_8", "msg_0"])

    def test_letters_whose_webhook_is_lost(self):
        self.bury(3)
        self.change("DELETE FROM webhook")
        self.mark()
        self.store = self.open()
        self.assertEqual((self.outbox.accepted, self.outbox.dead, self.outbox.letters), (3, 3, 3))
        self.store.replay([1, 2])
        self.turn()
        self.assert_positive()


class RepairTests(DamagedCase):
    """A repair that is interrupted."""

    def test_at_each_rename(self):
        for at in range(1, 6):
            self.setUp()
            self.append(3)
            self.kill(self.store)
            self.store = self.open()
            # These stand in the log of writes alone.
            self.append(3, 3)
            log = Path(f"{self.path}-wal").read_bytes()
            content = Path(self.path).read_bytes()
            self.kill(self.store)
            Path(self.path).write_bytes(content)
            Path(f"{self.path}-wal").write_bytes(log)
            self.mark()
            renamed, rename = [], os.rename

            def interrupted(old, new, at=at, renamed=renamed, rename=rename):
                renamed.append(old)
                if len(renamed) == at:
                    raise KeyboardInterrupt
                rename(old, new)

            self.patch(os, "rename", interrupted)
            try:
                self.store = self.open()
            except KeyboardInterrupt:
                self.patch(os, "rename", rename)
                self.kill(self.stores[-1])
                self.store = self.open()
            self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(6)), at)
            left = {path.name.partition(".")[2].partition("-")[0] for path in Path(self.path).parent.iterdir()}
            self.assertEqual(left, {"", "lock", "damaged"})
            logs = list(Path(self.path).parent.glob("*.damaged-*-wal"))
            self.assertEqual([path.read_bytes() for path in logs], [log])

    def test_one_without_room_leaves_nothing_that_is_taken_for_an_outbox(self):
        self.append(3)
        self.kill(self.store)
        self.mark()

        def fail(*_):
            raise sqlite3.OperationalError("database or disk is full")

        copy = salvage_module._copy
        self.patch(salvage_module, "_copy", fail)
        error = self.assertRaises(OutboxError, self.open)
        self.assertIn("cannot be repaired (database or disk is full); move it away", str(error))
        os.rename(self.path, f"{self.path}.mine")
        self.store = self.open()
        self.assertEqual(self.outbox.accepted, 0)
        self.kill(self.store)
        self.patch(salvage_module, "_copy", copy)
        lines = len(self.lines())
        self.open()
        self.assertEqual(self.lines()[lines:], [])

    def test_it_is_not_forgotten_that_it_is_damaged(self):
        self.append(3)
        self.store.damaged(sqlite3.DatabaseError("malformed"))
        self.kill(self.store)

        def fail(*_):
            raise sqlite3.OperationalError("database or disk is full")

        with_room = salvage_module._copy
        self.patch(salvage_module, "_copy", fail)
        self.assertRaises(OutboxError, self.open)
        self.patch(salvage_module, "_copy", with_room)
        self.store = self.open()
        self.assertIn("set aside", self.lines()[-1])
        self.kill(self.store)
        lines = len(self.lines())
        self.store = self.open()
        self.assertEqual(len(self.claim()), 3)
        self.assertEqual(self.lines()[lines:], [])


class RoomTests(DamagedCase):
    """Too little room."""

    def test_a_log_of_writes_that_cannot_grow(self):
        for start in range(0, 2000, 10):
            self.append(10, start, size=1000)
        claimed = self.claim()
        self.store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_400_000, old[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, old)
        failed = 0
        for start in range(0, 2000, 10):
            self.outbox.settle(*claimed[start : start + 10])
            self.append(10, 5000 + start, size=1000)
            failed += self.store.failing is not None
            self.clock.advance(RETRY)
            self.assertIsNone(self.store.failing, start)
        # Else nothing was tried here.
        self.assertGreater(failed, 0)

    def test_no_more_than_needed_is_shed(self):
        self.kill(self.store)
        self.open(max_size=1 << 20, on_full="drop_oldest")
        lanes = Lanes(8, lambda delivery, done: done("no"), lambda *_: Verdict.PARK, self.outbox.recall)
        self.outbox.overflow = lambda size: self.outbox.discard(*lanes.shed(size))
        self.outbox.more = lambda: [lanes.push(claimed) for claimed in iter(lambda: self.outbox.claim(4096), [])]
        fewest = LONGEST
        for start in range(0, 2400, 40):
            self.append(40, start, size=1000)
            self.clock.advance(1)
            if self.outbox.dropped:
                fewest = min(fewest, self.outbox.pending)
        self.assertGreater(self.outbox.dropped, 1000)
        self.assertGreater(fewest * 1020, (1 << 20) * 9 // 10)
        self.assertLess(self.outbox.bytes, (1 << 20) * 11 // 10)

    def test_what_is_shed_is_not_shed_again(self):
        self.kill(self.store)
        self.open(max_size=1 << 20, on_full="drop_oldest")
        lanes = Lanes(8, lambda delivery, done: done("no"), lambda *_: Verdict.PARK, self.outbox.recall)
        for start in range(0, 3000, 50):
            self.outbox.append([Delivery(f"msg_{n}", f"c{n % 50}", n, b"x" * 1000, 1) for n in range(start, start + 50)])
            self.turn()
            lanes.push(self.claim())
        self.outbox.overflow = lambda size: self.outbox.discard(*lanes.shed(size))
        for _ in range(9):
            self.clock.advance(1)
            self.assertGreater(self.outbox.pending * 1020, (1 << 20) * 9 // 10)
        self.assertLess(self.outbox.bytes, (1 << 20) * 11 // 10)


class ReadTests(DamagedCase):
    """Reads that fail for a while."""

    def test_recall(self):
        self.append(10)
        places = [delivery.place for delivery in self.claim()]
        reader, self.store._reader = self.store._reader, BrokenReader(self.store._reader, "FROM batch")
        self.assertRaises(OutboxError, self.outbox.recall, places)
        self.store._reader = reader
        self.assertEqual([delivery.place for delivery in self.outbox.recall(places)], places)
        self.assertEqual((self.outbox.dropped, self.outbox.pending), (0, 10))

    def test_recall_of_a_damaged_row(self):
        self.append(10)
        claimed = self.claim()
        self.store._writer.execute("UPDATE batch SET checksum = checksum + 1")
        self.assertEqual(self.outbox.recall([claimed[3].place, claimed[7].place]), [])
        self.assertIn("is damaged: 2 deliveries are lost", "\n".join(self.lines()))
        self.assertEqual((self.outbox.dropped, self.outbox.pending), (2, 8))
        self.outbox.settle(*[delivery for delivery in claimed if delivery not in (claimed[3], claimed[7])])
        self.turn()
        self.assertEqual((self.outbox.pending, self.count("batch"), self.store.failing), (0, 0, None))

    def test_a_request_is_not_forgotten(self):
        self.bury(1)
        self.clock.advance(1)
        other = Letters(self.path)
        self.addCleanup(other.close)
        other.ask("replay", [1])
        reader, self.store._reader = self.store._reader, BrokenReader(self.store._reader, "FROM request")
        self.clock.advance(1)
        self.store._reader = reader
        self.clock.advance(1)
        self.turn()
        self.assertEqual((self.outbox.pending, self.count("request")), (1, 0))

    def test_a_request_that_does_nothing_holds_no_other_up(self):
        self.bury(1)
        other = Letters(self.path)
        self.addCleanup(other.close)
        other.ask("purge", [77])
        write = self.store._write

        def slow(plans):
            # What a thread does takes a while.
            self.patch(self.store, "_write", write)
            self.store._take_up_requests()
            write(plans)

        self.patch(self.store, "_write", slow)
        self.append(1)
        other.ask("purge", [1])
        self.clock.pump([1, 0, 0])
        self.assertEqual((self.count("request"), self.outbox.letters), (0, 0))

    def test_many_requests_are_done_some_at_a_time(self):
        self.bury(4 * REQUESTS, size=1000)
        other = Letters(self.path)
        self.addCleanup(other.close)
        other.ask("replay", range(1, 4 * REQUESTS + 1))
        left, written = [], self.outbox.written

        def spy(plan):
            written(plan)
            left.append(self.outbox.letters)

        self.patch(self.outbox, "written", spy)
        self.clock.advance(1)
        self.clock.pump([0] * 20)
        self.assertEqual(left, [3 * REQUESTS, 2 * REQUESTS, REQUESTS, 0])
        self.assertEqual((self.count("request"), self.outbox.pending), (0, 4 * REQUESTS))

    def test_those_that_are_left_when_it_stops_are_done_by_the_next(self):
        self.bury(2 * REQUESTS)
        other = Letters(self.path)
        self.addCleanup(other.close)
        other.ask("purge", range(1, 2 * REQUESTS + 1))
        written, stopped = self.outbox.written, []

        def stop(plan):
            written(plan)
            if not stopped:
                stopped.append(self.store.stopService())

        self.patch(self.outbox, "written", stop)
        self.clock.advance(1)
        self.clock.pump([0] * 9)
        self.successResultOf(stopped[0])
        self.assertEqual((self.clock.getDelayedCalls(), self.count("request")), ([], REQUESTS))
        self.open()
        self.clock.advance(1)
        self.turn()
        self.assertEqual((self.count("request"), self.outbox.letters), (0, 0))

    def test_large_ones_are_fewer(self):
        self.bury(30, size=MIB)
        other = Letters(self.path)
        self.addCleanup(other.close)
        other.ask("replay", range(1, 31))
        sizes, plan = [], self.outbox.plan

        def spy():
            sizes.append(self.outbox.unwritten)
            return plan()

        self.patch(self.outbox, "plan", spy)
        self.clock.advance(1)
        self.clock.pump([0] * 20)
        self.assertEqual((self.count("request"), self.outbox.pending), (0, 30))
        self.assertLess(max(sizes), 10 << 20)
        self.assertGreater(max(sizes), 8 << 20)


class WaitTests(DamagedCase):
    """Who waits for a commit."""

    def test_what_comes_meanwhile_is_not_waited_for(self):
        seen, later, write = [], [], self.store._write

        def slow(plans):
            # What a thread does takes a while.
            seen.append([flushed.called, *[deferred.called for deferred in later]])
            if len(later) < 3:
                self.outbox.append(deliveries(1, 100 + len(later)))
                later.append(self.store.flushed())
            write(plans)

        self.outbox.append(deliveries(3))
        flushed = self.store.flushed()
        self.patch(self.store, "_write", slow)
        self.clock.advance(0)
        self.assertEqual(seen, [[False], [True, False], [True, True, False], [True, True, True, False]])
        self.assertTrue(later[2].called)

    def test_by_another_name(self):
        link = Path(self.path).parent / "link"
        link.symlink_to(self.path)
        path, self.path = self.path, str(link)
        error = self.assertRaises(OutboxError, self.open)
        self.assertIn(f"{path}: is in use by process", str(error))


class RandomTests(DamagedCase):
    def test_sectors_and_bits(self):
        """Whatever is damaged, in three starts at most it is repaired, and nothing is counted that cannot be."""
        for start in range(0, 240, 20):
            self.append(20, start, size=200)
        self.outbox.append([Delivery("msg_long", "c", 0, b"x" * (MIB + 5), 1)])
        self.turn()
        claimed = self.claim()
        for start in range(0, 120, 20):
            self.outbox.settle(*claimed[start + 3 : start + 9])
        for delivery in claimed[130:150:2]:
            self.outbox.bury(delivery, "http://h/", "refused", 413, b"", 5)
        self.turn()
        self.zero()
        content = Path(self.path).read_bytes()
        places = [place for place in range(0, len(content), 4096) if place < 120_000 or place > len(content) - 60_000]
        for seed in range(60):
            random = Random(seed)
            damaged = bytearray(content)
            for _ in range(random.choice((1, 1, 3))):
                page = random.choice(places)
                kind = random.choice(("zero", "bit", "page"))
                if kind == "zero":
                    sector = page + 512 * random.randrange(8)
                    damaged[sector : sector + 512] = bytes(512)
                elif kind == "bit":
                    damaged[page + random.randrange(4096)] ^= 1 << random.randrange(8)
                else:
                    other = random.choice(places)
                    damaged[page : page + 4096] = damaged[other : other + 4096]
            StoreCase.setUp(self)
            Path(self.path).write_bytes(damaged)
            Path(f"{self.path}.lock").write_text("1\n")
            try:
                _, claimed = self.start()
            except OutboxError as error:
                self.assertRegex(str(error), "is the database of another program|was written by a newer mqhooks|readonly")
                continue
            self.store.dead_letters()
            self.outbox.settle(*claimed)
            self.turn()
            self.assert_positive()
            self.kill(self.store)
