"""``mqhooks dead``."""

import sys
from io import StringIO
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.__main__ import main
from mqhooks.outbox.delivery import Delivery
from mqhooks.outbox.sqlite import SqliteStore

REASON = "http://h/hook answered 410: the endpoint refuses it"


class DeadTests(SynchronousTestCase):
    def setUp(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.path = str(directory / "outbox")
        self.open()
        for name, count in (("billing", 3), ("audit", 2)):
            outbox = self.store.outbox(name)
            outbox.append(
                [Delivery(f"msg_{name}_{number}", "m\0c\x1b[2J", number, b'{"n":%d}' % number, 1000) for number in range(count)]
            )
            self.clock.advance(0)
            for delivery in outbox.claim(9):
                outbox.bury(
                    delivery, "http://h/hook", "http://h/hook answered 410: the endpoint refuses it", 410, b"gone\n", 2000
                )
        self.clock.advance(0)

    def open(self):
        self.clock = MemoryReactorClock()
        self.store = SqliteStore(self.clock, self.path, now=self.clock.seconds)
        self.store.startService()
        self.addCleanup(self.close, self.store)

    def close(self, store):
        store._close()
        store._lock.release()

    def run_command(self, *arguments, status=0):
        lines = []
        stderr = StringIO()
        self.patch(sys, "stderr", stderr)
        self.assertEqual(main(["dead", *arguments, "--outbox", self.path], lines.append), status, stderr.getvalue())
        self.errors = stderr.getvalue()
        return lines

    def test_list(self):
        lines = self.run_command("list")
        self.assertEqual(
            lines[0],
            f"1  1970-01-01T00:00:02Z  billing  msg_billing_0  m/c\\x1b[2J  {REASON}",
        )
        self.assertEqual(len(lines), 5)
        self.assertEqual(len(self.run_command("list", "--webhook", "audit")), 2)

    def test_show(self):
        text = "\n".join(self.run_command("show", "2"))
        for part in (
            "dead letter 2",
            "msg_billing_1",
            "POST http://h/hook",
            '{"n":1}',
            "410",
            "gone\\n",
            "1970-01-01T00:00:01Z",
        ):
            self.assertIn(part, text)
        self.assertNotIn("\x1b", text)

    def test_replay(self):
        self.assertIn("asked for 2", self.run_command("replay", "1", "3")[0])
        self.clock.advance(1)
        self.clock.advance(0)
        outbox = self.store.outbox("billing")
        self.assertEqual([delivery.id for delivery in outbox.claim(9)], ["msg_billing_0", "msg_billing_2"])
        self.assertEqual((outbox.pending, outbox.dead, outbox.accepted), (2, 1, 3))
        self.assertEqual(len(self.run_command("list")), 3)

    def test_replay_wakes_who_delivers(self):
        woken = []
        self.store.outbox("billing").more = lambda: woken.append(len(self.store.outbox("billing").claim(9)))
        self.run_command("replay", "1")
        self.clock.pump([1, 0])
        self.assertEqual(sum(woken), 1)

    def test_replay_is_done_once(self):
        self.run_command("replay", "1")
        self.run_command("replay", "1")
        self.clock.pump([1, 0, 1, 0, 1, 0])
        self.assertEqual(self.store.outbox("billing").pending, 1)

    def test_purge_of_one_webhook(self):
        self.run_command("purge", "--all", "--webhook", "billing")
        self.clock.pump([1, 0])
        self.assertEqual(len(self.run_command("list")), 2)
        outbox = self.store.outbox("billing")
        self.assertEqual((outbox.accepted, outbox.dead, outbox.pending), (3, 3, 0))

    def test_all_of_none(self):
        self.assertEqual(
            self.run_command("purge", "--all", "--webhook", "nix\n"), ["purge: there are no dead letters of webhook nix\\n"]
        )
        self.run_command("purge", "--all")
        self.clock.pump([1, 0])
        self.assertEqual(self.run_command("purge", "--all"), ["purge: there are no dead letters"])
        self.assertEqual(self.run_command("replay", "--all"), ["replay: there are no dead letters that can be replayed"])

    def test_while_nobody_uses_the_outbox(self):
        self.close(self.store)
        self.run_command("replay", "--all")
        self.open()
        self.clock.pump([1, 0])
        self.assertEqual(self.store.outbox("audit").pending, 2)

    def test_mistakes(self):
        self.run_command("show", "99", status=1)
        self.assertEqual(self.errors, "mqhooks: there is no dead letter 99\n")
        self.run_command("show", str(1 << 70), status=1)
        self.assertEqual(self.errors.count("\n"), 1)
        self.run_command("purge", status=1)
        self.assertIn("which ones?", self.errors)
        self.run_command("replay", "--webhook", "billing", status=1)
        self.assertIn("which ones?", self.errors)
        for action in ("replay", "purge"):
            self.run_command(action, "--all", "1", status=1)
            self.assertEqual(self.errors, f"mqhooks: {action}: all of them or these? Give --all or numbers, not both\n")
        self.close(self.store)
        for text, problem in (("diary " * 100, "cannot be read"), ("", "is empty")):
            Path(self.path).write_text(text)
            self.run_command("list", status=1)
            self.assertIn(problem, self.errors)
            self.assertEqual(self.errors.count("\n"), 1)
        Path(self.path).unlink()
        self.run_command("list", status=1)
        self.assertIn("does not exist", self.errors)
