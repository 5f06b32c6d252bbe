"""An outbox that is damaged: it is set aside, and what is left of it is handed over."""

import os
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from random import Random

from mqhooks.delivery import Delivery
from mqhooks.errors import OutboxError
from mqhooks.outbox import aside
from mqhooks.outbox.deadletters import Letters
from mqhooks.outbox.pages import PAGE_SIZE, Pages
from mqhooks.outbox.salvage import salvage
from mqhooks.outbox.sqlite import REQUESTS
from tests.outboxes import StoreCase


class DamagedCase(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = self.open()

    def bury(self, count, size=0, start=0):
        self.append(count, start, size=size)
        for delivery in self.claim():
            self.outbox.bury(delivery, "http://h/", "refused", 413, b"no", 5)
        self.turn()

    def content(self):
        """Stop, and get the file with all that was written to it."""
        self.kill(self.store)
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return bytearray(Path(self.path).read_bytes())

    def change(self, *statements, anything=False):
        """
        Change the file behind the store's back.

        :param anything: whether columns take what their types forbid, as those of a damaged page do.
        """
        self.kill(self.store)
        if anything:
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute("PRAGMA writable_schema = ON")
                loose = "replace(replace(sql, 'NOT NULL', ''), 'STRICT', '')"
                connection.execute(f"UPDATE sqlite_schema SET sql = {loose} WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        for statement in statements:
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute(statement)

    def start(self, **options):
        """Start until nothing is found damaged any more."""
        for _ in range(3):
            self.store = self.open(**options)
            claimed = self.claim()
            self.turn()
            self.second()
            if not self.clock.stopped:
                return claimed
            self.kill(self.store)
        return self.fail("it is found damaged again and again")

    def files(self):
        return sorted(path.name for path in Path(self.path).parent.iterdir() if path.suffix != ".reserve")


class SetAsideTests(DamagedCase):
    def check(self, content):
        Path(self.path).write_bytes(content)
        self.store = self.open()
        (line,) = [line for line in self.lines() if "set aside" in line]
        (damaged,) = self.store.damaged
        self.assertIn(f"set aside as {damaged}", line)
        self.assertEqual(Path(damaged).read_bytes(), content)
        self.assertEqual((self.outbox.counts.accepted, self.outbox.letters, self.claim()), (0, 0, []))
        self.successResultOf(self.append(3))
        self.assertEqual(len(self.claim()), 3)
        self.kill(self.store)
        for _ in range(2):
            before = len(self.lines())
            self.store = self.open()
            (line,) = self.lines()[before:]
            self.assertIn(f"damaged files have not been salvaged: {damaged}; run mqhooks outbox salvage", line)
            self.assertEqual((self.store.damaged, self.pending()), ([damaged], 3))
            self.kill(self.store)

    def test_header_that_is_none(self):
        self.append(5)
        content = self.content()
        content[:16] = b"not any more...."
        self.check(content)

    def test_first_page(self):
        self.append(5)
        content = self.content()
        content[:4096] = bytes(4096)
        self.check(content)

    def test_empty_though_it_was_used(self):
        self.append(5)
        self.content()
        self.check(b"")

    def test_kill_at_any_moment_of_the_very_first_start(self):
        self.kill(self.store)
        folder = Path(self.path).parent
        with closing(sqlite3.connect(folder / "new", isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            header = (folder / "new").read_bytes()
            connection.execute("CREATE TABLE t (x)")
            connection.execute("DROP TABLE t")
            log = (folder / "new-wal").read_bytes()
        self.assertEqual((len(header), len(log) > 0), (PAGE_SIZE, True))
        for beside in ({"": b""}, {"": header}, {"-wal": log}, {"": header, "-wal": b""}, {"": header, "-wal": log}, {}):
            for path in folder.iterdir():
                path.unlink()
            for suffix, content in beside.items():
                Path(f"{self.path}{suffix}").write_bytes(content)
            # The lock says nothing of use yet.
            Path(f"{self.path}.lock").write_text("1\n")
            self.store = self.open()
            self.successResultOf(self.append(3))
            self.assertEqual((self.lines(), self.store.damaged), ([], []), beside)
            self.kill(self.store)

    def test_damage_that_is_found_while_it_runs(self):
        self.append(6)
        self.change("DELETE FROM batch")
        self.assertEqual(self.start(), [])
        self.assertIn("is damaged (rows of table batch are missing); stopping, the next start sets it aside", self.log())
        self.assertIn("is damaged (found when it was read): it was set aside", self.log())
        self.assertEqual((self.pending(), len(self.store.damaged)), (0, 1))

    def test_rows_that_are_gone_when_they_are_acknowledged(self):
        self.append(10)
        claimed = self.claim()
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM batch")
        self.outbox.acknowledge(claimed)
        self.turn()
        self.assertEqual(self.clock.stopped, 1)
        # They are not counted as delivered: that is what the next start finds.
        self.assertEqual(self.query("SELECT accepted, delivered FROM webhook"), [(10, 0)])

    def test_interrupted_at_each_rename(self):
        for at in (1, 2, 3):
            self.kill_all()
            self.setUp()
            self.append(3)
            log, content = Path(f"{self.path}-wal").read_bytes(), Path(self.path).read_bytes()
            self.kill(self.store)
            Path(self.path).write_bytes(content)
            Path(f"{self.path}-wal").write_bytes(log)
            Path(f"{self.path}-shm").write_bytes(b"")
            Path(f"{self.path}.lock").write_text("1\nused\ndamaged\n")
            renamed, rename = [], os.rename

            def interrupted(old, new, at=at, renamed=renamed, rename=rename):
                renamed.append(old)
                if len(renamed) == at:
                    raise KeyboardInterrupt
                rename(old, new)

            self.patch(os, "rename", interrupted)
            self.assertRaises(KeyboardInterrupt, self.open)
            self.patch(os, "rename", rename)
            self.store = self.open()
            self.successResultOf(self.append(3))
            (damaged,) = self.store.damaged
            self.assertEqual(Path(f"{damaged}-wal").read_bytes(), log, at)

    def test_what_was_left_beside_a_file_that_somebody_moved_away(self):
        self.append(3)
        log = Path(f"{self.path}-wal").read_bytes()
        self.kill(self.store)
        os.rename(self.path, f"{self.path}.mine")
        Path(f"{self.path}-wal").write_bytes(log)
        self.store = self.open()
        self.assertEqual((self.pending(), self.store.damaged), (0, []))

    def test_one_that_cannot_be_set_aside(self):
        content = self.content()
        content[:16] = bytes(16)
        Path(self.path).write_bytes(content)

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        self.patch(os, "rename", refuse)
        error = self.assertRaises(OutboxError, self.open)
        self.assertIn("cannot be set aside", str(error))
        self.assertNotIn("\n", str(error))


class RowTests(DamagedCase):
    """Rows that are not as they were written, in a file that is sound."""

    def case(self, statement):
        self.kill_all()
        self.setUp()
        self.append(6)
        for delivery in self.claim(3):
            self.outbox.bury(delivery, "http://h/", "refused", 413, b"", 5)
        self.turn()
        self.change(statement, anything=True)
        claimed = self.start()
        self.check_counts()
        self.assertEqual(len(claimed), self.pending(), statement)
        self.outbox.acknowledge(claimed)
        self.turn()
        self.second()
        self.check_counts()
        self.assertEqual((self.pending(), self.count("batch"), self.store.failing), (0, 0, None))
        return [delivery.id for delivery in claimed]

    def test_values_that_cannot_be_what_was_written(self):
        left, all_ = [f"msg_{number}" for number in range(3, 6)], [f"msg_{number}" for number in range(6)]
        expected = {
            "UPDATE batch SET count = NULL": left,
            "UPDATE batch SET count = 5": left,
            "UPDATE batch SET count = 100000": left,
            "UPDATE batch SET version = 7": [],
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
            "DELETE FROM progress": all_,
            # These are found at the start, and everything is set aside.
            "UPDATE webhook SET accepted = NULL": [],
            "UPDATE webhook SET delivered = 'x'": [],
            "UPDATE webhook SET name = CAST(x'ff77' AS TEXT)": [],
            "DROP TABLE progress": [],
        }
        for statement, ids in expected.items():
            self.assertEqual(self.case(statement), ids, statement)

    def test_what_was_settled_and_is_forgotten_is_said(self):
        self.append(6)
        self.outbox.acknowledge(self.claim(2))
        self.turn()
        self.change("DELETE FROM progress")
        claimed = self.start()
        self.outbox.acknowledge(claimed)
        self.turn()
        self.second()
        self.check_counts()
        self.assertEqual((self.outbox.counts.delivered, self.pending()), (6, 0))
        self.assertIn("2 deliveries were sent again", self.log())

    def test_lost_bits_beside_a_thinned_row_cost_nothing(self):
        self.append(400, size=500)
        claimed = self.claim()
        self.outbox.acknowledge(claimed[50:])
        self.turn()
        self.second()
        self.change("DELETE FROM progress")
        again = self.start()
        self.assertEqual([delivery.id for delivery in again], [delivery.id for delivery in claimed[:50]])
        self.assertEqual(self.pending(), 50)

    def test_bytes_that_no_row_has(self):
        self.append(3)
        self.change("UPDATE webhook SET bytes = 1 << 40")
        self.store = self.open()
        accepted = self.append(1, 3)
        self.outbox.acknowledge(self.claim())
        self.turn()
        self.assertNoResult(accepted)
        self.second()
        self.successResultOf(accepted)


class LetterTests(DamagedCase):
    """Dead letters that are not as they were written."""

    def test_values_that_cannot_be_what_was_written(self):
        for column in ("url", "reason", "status", "answer", "died", "delivery", "checksum", "version", "damage"):
            self.kill_all()
            self.setUp()
            self.bury(3)
            self.change(f"UPDATE dead SET {column} = NULL WHERE id = 2", anything=True)
            self.store = self.open()
            self.assertEqual([bool(letter.damage) for letter in self.store.dead_letters()], [False, True, False], column)
            self.assertRaises(OutboxError, self.store.replay, [2])
            self.assertEqual(self.store.purge([2]), 1)
            self.turn()
            self.assertEqual([letter.number for letter in self.store.dead_letters()], [1, 3])

    def test_a_text_that_is_none(self):
        self.bury(3)
        self.change("UPDATE dead SET reason = CAST(x'ff77' AS TEXT) WHERE id = 2")
        self.store = self.open()
        self.assertEqual([letter.reason for letter in self.store.dead_letters()], ["refused", "\ufffdw", "refused"])
        self.assertEqual(self.store.replay([2]), 1)

    def test_page_that_is_lost_hides_no_other(self):
        self.bury(40, size=900)
        content = self.content()
        page = content.rindex(b"msg_20\xa2") // 4096 * 4096
        content[page : page + 4096] = bytes(4096)
        Path(self.path).write_bytes(content)
        self.store = self.open()
        with closing(Letters(self.path)) as other:
            for letters in (self.store.dead_letters(), list(other)):
                damaged = [letter.number for letter in letters if letter.damage]
                self.assertEqual([letter.number for letter in letters], list(range(1, 41)))
                self.assertIn(21, damaged)
                self.assertLess(len(damaged), 9)
        self.assertEqual(self.store.dead_letters(webhook="other"), [])
        self.assertEqual(self.store.count_dead(None, "refused"), 40 - len(damaged))


class RequestTests(DamagedCase):
    """What another process asks for."""

    def ask(self, action, numbers):
        with closing(Letters(self.path)) as other:
            other.ask(action, numbers)

    def test_many_are_done_some_at_a_time(self):
        self.bury(4 * REQUESTS, size=1000)
        self.ask("replay", range(1, 4 * REQUESTS + 1))
        before = len(self.faults.written)
        self.clock.advance(1)
        self.clock.pump([0] * 20)
        self.assertEqual(len(self.faults.written) - before, 4)
        self.assertEqual((self.count("request"), self.pending(), self.outbox.letters), (0, 4 * REQUESTS, 0))

    def test_many_are_one_line_of_the_log(self):
        self.bury(4 * REQUESTS)
        self.ask("replay", range(1, 3 * REQUESTS + 1))
        self.ask("purge", range(3 * REQUESTS + 1, 4 * REQUESTS + 1))
        self.clock.pump([1, *[0] * 20])
        self.assertEqual((self.count("request"), self.outbox.letters), (0, 0))
        lines = [line for line in self.log().splitlines() if "requested" in line]
        self.assertEqual(
            lines,
            [
                f"replay done as requested: {3 * REQUESTS} dead letters",
                f"purge done as requested: {REQUESTS} dead letters",
            ],
        )

    def test_many_that_cannot_be_done_are_one_line_too(self):
        self.bury(REQUESTS)
        self.change("UPDATE dead SET checksum = 0")
        self.store = self.open()
        self.ask("replay", range(1, REQUESTS + 1))
        self.clock.pump([1, *[0] * 20])
        self.assertEqual(self.log().count("replay was requested, but"), 1)
        self.assertEqual((self.count("request"), self.outbox.letters), (0, REQUESTS))

    def test_one_that_does_nothing_holds_no_other_up(self):
        self.bury(1)
        self.ask("purge", [77, 1])
        self.clock.pump([1, 0, 0])
        self.assertEqual((self.count("request"), self.outbox.letters), (0, 0))

    def test_those_that_are_left_when_it_stops_are_done_by_the_next(self):
        self.bury(2)
        self.ask("purge", [1])
        self.kill(self.store)
        self.ask("purge", [2])
        self.store = self.open()
        self.clock.pump([1, 0, 0])
        self.assertEqual((self.count("request"), self.outbox.letters), (0, 0))

    def test_one_of_a_letter_that_cannot_be_replayed(self):
        self.bury(1)
        self.change("UPDATE dead SET checksum = 0")
        self.store = self.open()
        self.ask("replay", [1])
        self.clock.pump([1, 0, 0])
        self.assertIn("replay was requested, but dead letter 1 cannot be replayed", self.log())
        self.assertEqual((self.count("request"), self.outbox.letters), (0, 1))


class SalvageTests(DamagedCase):
    def fill(self):
        """Make rows of all kinds; half of them have bits, and one is thinned."""
        for start in range(0, 400, 10):
            self.append(10, start, size=50)
        claimed = self.claim()
        for start in range(0, 200, 10):
            self.outbox.acknowledge(claimed[start + 3 : start + 7])
        for delivery in claimed[390:]:
            self.outbox.bury(delivery, "http://h/", "refused", 413, b"no", 5)
        self.turn()
        other = self.store.outbox("other")
        other.append([Delivery("msg_long", "c", 0, b"x" * 100_000, 1)])
        self.turn()
        settled = {number for start in range(0, 200, 10) for number in range(start + 3, start + 7)}
        return [number for number in range(390) if number not in settled]

    def damage(self, content):
        """Have a damaged file set aside, and another outbox in its place."""
        Path(self.path).write_bytes(content)
        Path(f"{self.path}.lock").write_text("1\nused\ndamaged\n")
        self.store = self.open()
        (damaged,) = self.store.damaged
        return damaged

    def take_over(self):
        for _ in range(20):
            self.clock.pump([1, 0, 0.005])

    def test_everything_is_handed_over_while_the_bridge_runs(self):
        left = self.fill()
        damaged = self.damage(self.content())
        self.append(2, 1000)
        line = salvage(damaged, self.path)
        self.assertEqual(
            line, f"{len(left) + 1} deliveries and 10 dead letters were handed over; the damaged file is now {damaged}.salvaged"
        )
        self.take_over()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], [1000, 1001, *left])
        counts = self.outbox.counts
        self.assertEqual((counts.appended, counts.resumed, counts.dropped, counts.pending), (2, len(left), 0, len(left) + 2))
        self.check_counts()
        (long,) = self.claim(outbox=self.store.outbox("other"))
        self.assertEqual((long.id, long.body, long.accepted), ("msg_long", b"x" * 100_000, 1))
        letters = self.store.dead_letters()
        self.assertEqual([letter.delivery.timestamp for letter in letters], list(range(390, 400)))
        self.assertEqual((letters[0].reason, letters[0].status, letters[0].answer), ("refused", 413, b"no"))
        self.assertEqual((self.outbox.letters, self.count("inbox"), self.store.damaged), (10, 0, []))
        self.assertEqual(self.store.replay([1]), 1)
        self.turn()
        self.kill(self.store)
        before = len(self.lines())
        self.store = self.open()
        self.assertEqual(
            (self.pending(), self.outbox.letters, self.lines()[before:]),
            (len(left) + 3, 9, [f"{self.path}: holds 1 deliveries of webhook other, which is not configured: they stay there"]),
        )

    def test_taken_over_at_the_next_start_when_no_process_runs(self):
        left = self.fill()
        damaged = self.damage(self.content())
        self.kill(self.store)
        salvage(damaged, self.path)
        self.store = self.open()
        self.take_over()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], left)

    def test_what_stands_in_the_log_of_writes_alone(self):
        self.append(20)
        log, content = Path(f"{self.path}-wal").read_bytes(), Path(self.path).read_bytes()
        self.kill(self.store)
        Path(f"{self.path}-wal").write_bytes(log)
        damaged = self.damage(content)
        salvage(damaged, self.path)
        self.take_over()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], list(range(20)))
        self.assertEqual([name for name in self.files() if "damaged" in name and "salvaged" not in name], [])

    def test_first_page_lost(self):
        left = self.fill()
        content = self.content()
        content[:4096] = bytes(4096)
        salvage(self.damage(content), self.path)
        self.take_over()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], left)

    def test_file_that_was_vacuumed(self):
        left = self.fill()
        self.kill(self.store)
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        salvage(self.damage(Path(self.path).read_bytes()), self.path)
        self.take_over()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], left)

    def test_names_lost(self):
        self.append(5)
        self.kill(self.store)
        content = self.content_with_names_lost()
        salvage(self.damage(content), self.path)
        self.take_over()
        outbox = self.store.outbox("webhook-1")
        self.assertEqual(len(self.claim(outbox=outbox)), 5)

    def content_with_names_lost(self):
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            roots = connection.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'webhook'").fetchall()
        content = bytearray(Path(self.path).read_bytes())
        for (root,) in roots:
            content[(root - 1) * PAGE_SIZE : root * PAGE_SIZE] = bytes(PAGE_SIZE)
        return content

    def test_fifo_in_place_of_a_file(self):
        self.kill(self.store)
        for path, call in (
            (self.path, self.open),
            (self.path, lambda: Letters(self.path)),
            (f"{self.path}.damaged-20260101T000000", lambda: salvage(f"{self.path}.damaged-20260101T000000", self.path)),
        ):
            if path == self.path:
                Path(path).unlink()
            os.mkfifo(path)
            error = self.assertRaises(OutboxError, call)
            self.assertTrue(str(error).startswith(f"{path}: is not a regular file; "), str(error))
            Path(path).unlink()
            self.kill(self.open())

    def test_interrupted_and_called_again(self):
        left = self.fill()
        damaged = self.damage(self.content())

        def fail(*_):
            raise OSError(28, "No space left on device")

        renamed = aside.note_salvaged
        self.patch(aside, "note_salvaged", fail)
        error = self.assertRaises(OutboxError, salvage, damaged, self.path)
        self.assertIn("No space left", str(error))
        self.take_over()
        self.patch(aside, "note_salvaged", renamed)
        self.assertTrue(salvage(damaged, self.path).startswith("0 deliveries and 0 dead letters"))
        self.take_over()
        self.assertEqual([delivery.timestamp for delivery in self.claim()], left)

    def test_what_is_no_damaged_file_of_the_outbox(self):
        for path in ("/etc/passwd", self.path, f"{self.path}.damaged-1"):
            error = self.assertRaises(OutboxError, salvage, path, self.path)
            self.assertIn("is not a damaged file of", str(error))
        self.assertTrue(Path("/etc/passwd").exists())

    def test_waits_in_the_inbox_while_the_outbox_is_full(self):
        self.fill()
        damaged = self.damage(self.content())
        self.kill(self.store)
        salvage(damaged, self.path)
        self.store = self.open(max_size=5000)
        self.take_over()
        self.assertLess(self.outbox.used, 15_000)
        waiting = self.count("inbox")
        self.assertGreater(waiting, 0)
        self.outbox.acknowledge(self.claim())
        self.take_over()
        self.assertLess(self.count("inbox"), waiting)

    def test_row_of_the_inbox_that_is_damaged(self):
        self.fill()
        damaged = self.damage(self.content())
        self.kill(self.store)
        salvage(damaged, self.path)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE inbox SET checksum = 0 WHERE id = 1")
        self.store = self.open()
        self.take_over()
        self.assertIn("row 1 of inbox is damaged and is lost", self.log())
        self.assertEqual((self.count("inbox"), self.claim()[0].timestamp), (0, 10))

    def test_lost_page_costs_what_was_on_it_and_no_more(self):
        # Enough rows for a tree of three levels, and many free pages with what has arrived.
        for start in range(0, 9000, 3):
            self.append(3, start, size=900)
        claimed = self.claim()
        self.outbox.acknowledge(claimed[1000:3000])
        self.turn()
        left = {delivery.timestamp for delivery in claimed[:1000] + claimed[3000:]}
        content = self.content()
        intact = f"{self.path}.intact"
        Path(intact).write_bytes(content)
        rows = self.where(intact)
        random = Random(7)
        for _ in range(12):
            lost = random.sample(range(2, len(content) // PAGE_SIZE + 1), random.choice([1, 2, 5, 20]))
            damaged = bytearray(content)
            for page in lost:
                garbage = random.choice([bytes(PAGE_SIZE), random.randbytes(PAGE_SIZE)])
                damaged[(page - 1) * PAGE_SIZE : page * PAGE_SIZE] = garbage
            self.kill_all()
            for path in Path(self.path).parent.iterdir():
                path.unlink()
            salvage(self.damage(damaged), self.path)
            self.take_over()
            found = []
            for name in self.webhooks():
                found += [delivery.timestamp for delivery in self.claim(outbox=self.store.outbox(name))]
            cost = {number for page in lost for number in rows[page]}
            self.assertEqual(len(found), len(set(found)))
            self.assertEqual(sorted(left - set(found)), sorted(cost & left), lost)
            self.assertEqual(sorted(set(found) - left), [], lost)

    def where(self, path):
        """Tell which deliveries stand on which pages."""
        rows = defaultdict(set)
        with closing(sqlite3.connect(path)) as connection:
            stored = connection.execute("SELECT id, deliveries FROM batch").fetchall()
        with closing(Pages(path)) as pages, closing(sqlite3.connect(path)) as connection:
            (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'batch'").fetchone()
            cells = {cell.id: cell.page for page in pages.tree(root, set()) for cell in pages.cells(page)}
        for id_, data in stored:
            rows[cells[id_]] |= {int(part.partition(b"\xa2")[0]) for part in data.split(b"msg_")[1:]}
        return rows

    def webhooks(self):
        return [name for (name,) in self.query("SELECT name FROM webhook")]


class RandomTests(DamagedCase):
    """Torn copies of an outbox in use, cut and flipped at random."""

    def copies(self):
        for start in range(0, 600, 20):
            self.append(20, start, size=200)
        claimed = self.claim()
        for start in range(0, 300, 20):
            self.outbox.acknowledge(claimed[start + 3 : start + 9])
        for delivery in claimed[330:350:2]:
            self.outbox.bury(delivery, "http://h/", "refused", 413, b"", 5)
        self.outbox.acknowledge(claimed[400:440])
        self.turn()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.append(20, 600, size=200)
        return Path(self.path).read_bytes(), Path(f"{self.path}-wal").read_bytes()

    def tear(self, data, random):
        data = bytearray(data)
        for _ in range(random.choice((0, 1, 1, 3))):
            page = random.randrange(max(len(data) // PAGE_SIZE, 1)) * PAGE_SIZE
            kind = random.choice(("zero", "bit", "page", "noise", "cut"))
            if kind == "zero":
                at = page + 512 * random.randrange(8)
                data[at : at + 512] = bytes(len(data[at : at + 512]))
            elif kind == "bit" and data:
                data[min(page + random.randrange(PAGE_SIZE), len(data) - 1)] ^= 1 << random.randrange(8)
            elif kind == "page":
                other = random.randrange(max(len(data) // PAGE_SIZE, 1)) * PAGE_SIZE
                data[page : page + PAGE_SIZE] = data[other : other + PAGE_SIZE]
            elif kind == "noise":
                data[page : page + 700] = random.randbytes(len(data[page : page + 700]))
            elif random.random() < 0.3:
                del data[random.randrange(len(data) + 1) :]
        return bytes(data)

    def test_whatever_is_torn_it_starts_adds_up_and_ends(self):
        content, log = self.copies()
        for seed in range(80):
            random = Random(seed)
            self.kill_all()
            StoreCase.setUp(self)
            Path(self.path).write_bytes(self.tear(content, random))
            Path(f"{self.path}-wal").write_bytes(self.tear(log, random))
            Path(f"{self.path}.lock").write_text("1\nused\n")
            try:
                claimed = self.start()
            except OutboxError as error:
                self.assertRegex(str(error), "is the database of another program|newer mqhooks|0.1.0|readonly")
                continue
            self.outbox.acknowledge(claimed)
            self.store.dead_letters()
            self.check_counts()
            for damaged in self.store.damaged:
                salvage(damaged, self.path)
            self.clock.pump([1, 0, 0.005] * 5)
            for name in [name for (name,) in self.query("SELECT name FROM webhook") if isinstance(name, str)]:
                outbox = self.store.outbox(name)
                claimed = self.claim(outbox=outbox)
                self.assertEqual(len({delivery.id for delivery in claimed}), len(claimed), seed)
                if not self.clock.stopped:
                    self.assertEqual(len(claimed), outbox.counts.pending, seed)
                outbox.acknowledge(claimed)
                self.check_counts(outbox)
            self.turn()
            self.second()
            if self.clock.stopped:
                # What is damaged was found by what was written: the next start sets it aside.
                continue
            self.assertEqual((self.count("batch"), self.count("inbox"), self.store.failing), (0, 0, None), seed)
            self.kill(self.store)
            self.store = self.open()
            self.assertEqual((self.pending(), self.claim()), (0, []), seed)
