"""The ``mqhooks`` command."""

import json
import sqlite3
import sys
import tracemalloc
from contextlib import closing
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from time import time

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

import mqhooks
from mqhooks.__main__ import main
from mqhooks.app.configuration import outbox_path
from mqhooks.app.settings import DEFAULTS
from mqhooks.delivery import Delivery, Variation
from mqhooks.errors import ConfigError
from mqhooks.outbox.deadletters import ANY, Filter, Letters
from mqhooks.outbox.sqlite import SqliteStore
from tests.outboxes import PLENTY

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
            for delivery in outbox.claim(9, PLENTY):
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
        if store.running:
            store.stopService()
            self.clock.advance(1)

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

    def test_show_a_request_of_its_own(self):
        outbox = self.store.outbox("audit")
        variation = Variation("PUT", "/devices/T0K3N?a=1", (("x-a", "s3cret"),))
        outbox.append([Delivery("msg_own", "c", 0, b"{}", 1000, variation=variation)])
        self.clock.advance(0)
        (delivery,) = outbox.claim(9, PLENTY)
        outbox.bury(delivery, "http://h/hook", "http://h/hook answered 404", 404, b"no /devices/T0K3N?a=1", 2000)
        self.clock.advance(0)
        hidden = "\n".join(self.run_command("show", "6"))
        for part in ("PUT http://h/devices/…", "x-a: (hidden)", "no /devices/…"):
            self.assertIn(part, hidden)
        for secret in ("T0K3N", "s3cret"):
            self.assertNotIn(secret, hidden)
        shown = "\n".join(self.run_command("show", "--reveal", "6"))
        self.assertIn("PUT http://h/devices/T0K3N?a=1", shown)
        self.assertIn("x-a: s3cret", shown)

    def test_show_an_answer_without_a_body(self):
        self.bury("audit", ("c", 422, "answered 422", 5000))
        self.assertEqual(self.run_command("show", "6")[-1], "  answer    422")

    def test_secrets_of_a_url_are_hidden(self):
        url = "https://hooks.slack.com/services/T0/B0/s3cret7777"
        outbox = self.store.outbox("slack")
        outbox.append([Delivery("msg_slack", "c", 0, b"{}", 1000)])
        self.clock.advance(0)
        (delivery,) = outbox.claim(9, PLENTY)
        answer = b"Cannot POST /services/T0/B0/s3cret7777"
        outbox.bury(delivery, url, f"{url} answered 404: the endpoint refuses it", 404, answer, 2000)
        self.clock.advance(0)
        for arguments in (["list"], ["show", "6"]):
            text = "\n".join(self.run_command(*arguments))
            self.assertIn("https://hooks.slack.com/services/… answered 404", text)
            self.assertNotIn("s3cret7777", text)
            self.assertNotIn("T0/", text)
        text = "\n".join(self.run_command("show", "6", "--reveal"))
        for part in (f"POST {url}", f"{url} answered 404", answer.decode()):
            self.assertIn(part, text)

    def test_replay(self):
        self.assertIn("requested for 2", self.run_command("replay", "1", "3")[0])
        self.clock.advance(1)
        self.clock.advance(0)
        outbox = self.store.outbox("billing")
        self.assertEqual([delivery.id for delivery in outbox.claim(9, PLENTY)], ["msg_billing_0", "msg_billing_2"])
        self.assertEqual((outbox.counts.pending, outbox.counts.replayed, outbox.letters), (2, 2, 1))
        self.assertEqual(len(self.run_command("list")), 3)

    def test_replay_wakes_who_delivers(self):
        claim = self.store.outbox("billing").claim(9, PLENTY)
        self.run_command("replay", "1")
        self.clock.pump([1, 0])
        self.assertEqual(len(self.successResultOf(claim)), 1)

    def test_replay_is_done_once(self):
        self.run_command("replay", "1")
        self.run_command("replay", "1")
        self.clock.pump([1, 0, 1, 0, 1, 0])
        self.assertEqual(self.store.outbox("billing").counts.pending, 1)

    def test_purge_of_one_webhook(self):
        self.run_command("purge", "--all", "--webhook", "billing")
        self.clock.pump([1, 0])
        self.assertEqual(len(self.run_command("list")), 2)
        outbox = self.store.outbox("billing")
        self.assertEqual((outbox.counts.dead, outbox.letters, outbox.counts.pending), (3, 0, 0))

    def test_all_of_none(self):
        self.run_command("purge", "--all", "--webhook", "audit")
        self.clock.pump([1, 0])
        self.assertEqual(
            self.run_command("purge", "--all", "--webhook", "audit"), ["purge: there are no dead letters of webhook audit"]
        )
        self.run_command("purge", "--all")
        self.clock.pump([1, 0])
        self.assertEqual(self.run_command("purge", "--all"), ["purge: there are no dead letters"])
        self.assertEqual(self.run_command("replay", "--all"), ["replay: there are no dead letters that can be replayed"])

    def test_unknown_webhooks_are_an_error(self):
        for arguments in (["list"], ["replay", "--all"], ["purge", "--all"]):
            self.assertEqual(self.run_command(*arguments, "--webhook", "biling\n", status=1), [])
            self.assertEqual(self.errors, "mqhooks: the outbox has no webhook biling\\n; it has audit, billing\n")
        self.assertEqual(len(self.run_command("list", "--webhook", "audit")), 2)

    def test_while_nobody_uses_the_outbox(self):
        self.close(self.store)
        self.run_command("replay", "--all")
        self.open()
        self.clock.pump([1, 0])
        self.assertEqual(self.store.outbox("audit").counts.pending, 2)

    def bury(self, name, *letters):
        """Make dead letters of (client, status, reason, died)."""
        outbox = self.store.outbox(name)
        for client, status, reason, died in letters:
            outbox.append([Delivery("msg_x", client, 0, b"{}", 1000)])
            self.clock.advance(0)
            (delivery,) = outbox.claim(9, PLENTY)
            outbox.bury(delivery, "http://h/hook", reason, status, b"", died)
        self.clock.advance(0)

    def numbers(self, *arguments):
        return [json.loads(line)["number"] for line in self.run_command("list", "--json", *arguments)]

    def test_filters(self):
        hour = 3_600_000
        now = int(time() * 1000)
        self.bury(
            "audit",
            ("m\0c", 503, "answered 503: too old", now - 3 * hour),
            ("cé", 0, "timed out", now - hour),
            ("c", 500, "answered 500", now),
        )
        for arguments, numbers in (
            (["--status", "410"], [1, 2, 3, 4, 5]),
            (["--status", "5xx"], [6, 8]),
            (["--status", "0"], [7]),
            (["--since", "2h"], [7, 8]),
            (["--until", "2h", "--status", "5XX"], [6]),
            (["--since", "1970-01-01T00:00:02Z", "--until", "1970-01-01T00:00:03Z"], [1, 2, 3, 4, 5]),
            (["--until", "1970-01-01T00:00:02Z"], []),
            (["--client", "cé"], [7]),
            (["--client", "c"], [6, 8]),
            (["--client", "m/c"], [6]),
            (["--client", ""], []),
            (["--reason", "answered 50", "--webhook", "billing"], []),
            (["--reason", "answered 50", "--since", "1h"], [8]),
        ):
            self.assertEqual(self.numbers(*arguments), numbers, arguments)
        self.assertEqual(len([line for line in self.run_command("show", "--client", "c") if line.startswith("dead letter")]), 2)
        self.assertIn("requested for 2", self.run_command("replay", "--status", "5xx")[0])
        self.assertIn("requested for 1", self.run_command("purge", "--client", "cé", "--webhook", "audit")[0])
        self.clock.pump([1, 0])
        self.assertEqual((self.numbers(), self.store.outbox("audit").counts.replayed), ([1, 2, 3, 4, 5], 2))
        nothing = "purge: there are no dead letters of webhook audit like these"
        self.assertEqual(self.run_command("purge", "--status", "5xx", "--webhook", "audit"), [nothing])

    def test_filters_of_a_damaged_file(self):
        self.bury("audit", ("m\0c", 503, "answered 503", 5000))
        with closing(sqlite3.connect(self.path)) as connection, connection:
            (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'dead'").fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.close(self.store)
        only = Filter(client="m/c", status=(500, 599), since=5000, until=5001, reason="503")
        with closing(Letters(self.path)) as letters:
            self.assertEqual([letter.number for letter in letters.of(only)], [6])
        with open(self.path, "r+b") as file:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)
        with closing(Letters(self.path)) as letters:
            self.assertEqual([letter.number for letter in letters.of(Filter("audit", "malformed"))], [4, 5, 6])
            self.assertEqual(list(letters.of(only)), [])
            self.assertEqual(sum(group.letters for group in letters.groups(ANY)), 6)

    def test_groups(self):
        self.bury("audit", *(("c", 503, "answered 503: too old", 5000 + number) for number in range(4)))
        self.assertEqual(
            self.run_command("list", "--groups"),
            [
                "4  1970-01-01T00:00:05Z  audit  answered 503: too old",
                f"3  1970-01-01T00:00:02Z  billing  {REASON}",
                f"2  1970-01-01T00:00:02Z  audit  {REASON}",
            ],
        )
        (group,) = map(json.loads, self.run_command("list", "--groups", "--json", "--status", "503"))
        self.assertEqual((group["count"], group["status"], group["reason"]), (4, 503, "answered 503: too old"))

    def test_json_without_secrets(self):
        url = "https://hooks.slack.com/services/T0/B0/s3cret7777"
        outbox = self.store.outbox("slack")
        outbox.append([Delivery("msg_slack", "c", 0, b"{}", 1000)])
        self.clock.advance(0)
        (delivery,) = outbox.claim(9, PLENTY)
        outbox.bury(delivery, url, f"{url} answered 404", 404, b"Cannot POST /services/T0/B0/s3cret7777", 2000)
        self.clock.advance(0)
        for arguments in (["list", "--json"], ["list", "--groups", "--json"], ["show", "6", "--json"]):
            text = self.run_command(*arguments)[-1]
            self.assertIn("answered 404", text)
            self.assertNotIn("s3cret7777", text)
        (line,) = self.run_command("show", "6", "--json", "--reveal")
        self.assertEqual((json.loads(line)["url"], json.loads(line)["body"]), (url, "e30="))
        # For mending, all of it is needed.
        self.assertEqual(json.loads(self.run_command("export", "-", "--webhook", "slack")[0])["url"], url)

    def test_export_and_import(self):
        file = f"{self.path}.jsonl"
        self.assertEqual(self.run_command("export", file, "--webhook", "billing"), [f"export: 3 dead letters are in {file}"])
        self.assertEqual(Path(file).stat().st_mode & 0o777, 0o600)
        lines = self.run_command("export", "-", "--webhook", "billing")
        self.assertEqual(Path(file).read_text().splitlines(), lines)
        self.run_command("export", file, status=1)
        self.assertIn("already exists", self.errors)
        self.assertIn("import: 3 deliveries were handed over; done within a second", self.run_command("import", file)[0])
        self.clock.pump([1, 0])
        self.assertEqual(self.store.outbox("billing").counts.pending, 3)
        self.assertIn("nothing to do", self.run_command("import", file)[0])
        self.patch(sys, "stdin", TextIOWrapper(BytesIO("\n".join(lines[1:]).encode())))
        self.assertIn("import: 2 dead letters", self.run_command("import", "-", "--as-dead")[0])
        self.clock.pump([1, 0])
        self.assertEqual(self.store.outbox("billing").letters, 5)
        Path(file).write_text("{}\n[]\n")
        self.assertEqual(self.run_command("import", file, status=1), [])
        self.assertEqual(self.errors.count("\n"), 3)
        self.assertIn(f"mqhooks: {file}:2: ", self.errors)
        for arguments, problem in (
            (["import", self.path + "x"], "No such file"),
            (["export", "/nowhere/x"], "cannot be created"),
        ):
            self.run_command(*arguments, status=1)
            self.assertIn(problem, self.errors)
            self.assertEqual(self.errors.count("\n"), 1)

    def test_what_varies_of_a_request_is_hidden_too(self):
        variation = Variation("PUT", "/hook/S3cretToken?key=S3cret", (("authorization", "S3cret"),))
        outbox = self.store.outbox("slack")
        outbox.append([Delivery("msg_v", "c", 0, b"{}", 1000, variation=variation)])
        self.clock.advance(0)
        (delivery,) = outbox.claim(9, PLENTY)
        outbox.bury(delivery, "http://h/hook", "no", 404, b"", 2000)
        self.clock.advance(0)
        (line,) = self.run_command("list", "--json", "--webhook", "slack")
        self.assertNotIn("S3cret", line)
        self.assertEqual(
            json.loads(line)["variation"], {"method": "PUT", "path": "/hook/…?…", "headers": [["authorization", "(hidden)"]]}
        )
        self.assertEqual(self.run_command("show", "6", "--json", "--reveal")[0].count("S3cret"), 3)

    def test_damaged_ones_are_not_exported(self):
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE dead SET delivery = x'c1' WHERE id = 2")
        self.assertEqual(len(self.run_command("export", "-")), 4)
        self.assertIn("1 are damaged, or were stored without their bodies, and are left out: 2\n", self.errors)
        self.assertEqual(len(self.numbers()), 5)
        # One of those that fit hides no other; one that is asked for cannot be shown.
        self.assertEqual(len([line for line in self.run_command("show", "--webhook", "billing") if line.startswith("dead")]), 3)
        self.run_command("show", "2", status=1)
        self.assertIn("can only be purged", self.errors)

    def test_mistakes_in_filters(self):
        for arguments, problem in (
            (["list", "--since", "yesterday"], "'yesterday' is not a time like"),
            (["list", "--status", "99"], "'99' is not a status like 503 or 5xx"),
        ):
            self.patch(sys, "stderr", stderr := StringIO())
            self.assertEqual(self.assertRaises(SystemExit, main, ["dead", *arguments, "--outbox", self.path]).code, 2)
            self.assertIn(problem, stderr.getvalue())
        self.run_command("list", "--reason", "\udcff", status=1)
        self.assertEqual(self.errors, "mqhooks: --reason: is not UTF-8\n")
        self.run_command("replay", "1", "--status", "410", status=1)
        self.assertIn("give numbers or a filter such as --reason, not both", self.errors)

    def test_many_long_ones_take_little_memory(self):
        outbox = self.store.outbox("billing")
        for number in range(12):
            outbox.append([Delivery(f"msg_{number}", "c", 0, bytes(8 << 20), 1000)])
            self.clock.advance(0)
            (delivery,) = outbox.claim(9, PLENTY)
            outbox.bury(delivery, "http://h/hook", "no", 410, b"", 2000)
            self.clock.advance(0)
        for arguments in (["list"], ["purge", "--all"], ["replay", "--reason", "no"], ["export", f"{self.path}.jsonl"]):
            tracemalloc.start()
            try:
                self.run_command(*arguments)
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            self.assertLess(most, 64 << 20, arguments)

    def test_a_letter_from_another_age_is_listed(self):
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE dead SET died = 1 << 60 WHERE id = 1")
        self.assertIn("9999-12-31T23:59:59Z", self.run_command("list")[0])

    def test_mistakes(self):
        self.run_command("show", "99", status=1)
        self.assertEqual(self.errors, "mqhooks: there is no dead letter 99\n")
        self.run_command("purge", status=1)
        self.assertIn("which ones?", self.errors)
        self.run_command("replay", "--webhook", "billing", status=1)
        self.assertIn("which ones?", self.errors)
        for action in ("replay", "purge"):
            self.run_command(action, "--all", "1", status=1)
            self.assertEqual(self.errors, f"mqhooks: {action}: give --all or numbers, not both\n")
        self.close(self.store)
        for text, problem in (
            ("diary " * 100, "cannot be read (file is not a database); name the outbox with --outbox or"),
            ("", "is empty"),
        ):
            Path(self.path).write_text(text)
            self.run_command("list", status=1)
            self.assertIn(problem, self.errors)
            self.assertEqual(self.errors.count("\n"), 1)
        Path(self.path).unlink()
        self.run_command("list", status=1)
        self.assertIn("does not exist", self.errors)


class ConfigurationTests(SynchronousTestCase):
    """What the command reads of a configuration."""

    def path(self, text):
        path = Path(self.mktemp()).resolve()
        path.write_text(text, encoding="utf-8")
        return outbox_path(str(path))

    def test_variables_of_secrets_need_not_be_set(self):
        text = """
            webhook { url = "http://h/", headers.authorization = "Bearer "${MQHOOKS_UNSET}, secret = ${MQHOOKS_UNSET} }
            mqhooks { admin.token = ${MQHOOKS_UNSET}, outbox.path = /var/lib/mqhooks/outbox }
        """
        self.assertEqual(self.path(text), "/var/lib/mqhooks/outbox")

    def test_the_path_needs_its_variables(self):
        error = self.assertRaises(ConfigError, self.path, 'mqhooks.outbox.path = ${MQHOOKS_UNSET}"/outbox"')
        self.assertIn(
            "mqhooks.outbox.path: ${MQHOOKS_UNSET}/outbox: set the environment variable that it refers to", str(error)
        )

    def test_in_memory_there_is_none(self):
        error = self.assertRaises(ConfigError, self.path, "mqhooks.outbox.kind = MEMORY")
        self.assertIn("mqhooks.outbox.kind: is memory: such an outbox has no file", str(error))

    def test_without_a_path(self):
        for text in ("", "webhook { secret = ${MQHOOKS_UNSET} }", "mqhooks.outbox.path = ${?MQHOOKS_UNSET}"):
            self.assertEqual(self.path(text), DEFAULTS.outbox.path)


class CommandTests(SynchronousTestCase):
    def setUp(self):
        self.stdout, self.stderr = StringIO(), StringIO()
        self.patch(sys, "stdout", self.stdout)
        self.patch(sys, "stderr", self.stderr)

    def test_version(self):
        self.assertEqual(self.assertRaises(SystemExit, main, ["--version"]).code, 0)
        self.assertEqual(self.stdout.getvalue(), f"mqhooks {mqhooks.__version__}\n")

    def test_salvage(self):
        path = Path(self.mktemp()).resolve()
        outbox_with(path, deliveries=3)
        damaged = path.rename(f"{path}.damaged-20260131T120000")
        outbox_with(path, deliveries=0)
        lines = []
        self.assertEqual(main(["outbox", "salvage", str(damaged)], lines.append), 0, self.stderr.getvalue())
        self.assertEqual(len(lines), 1)
        self.assertIn("salvage: 3 deliveries and 0 dead letters were handed over", lines[0])
        self.assertFalse(damaged.exists())
        self.assertEqual(main(["outbox", "salvage", str(damaged), "--outbox", str(path)], lines.append), 1)
        self.assertIn("is not a damaged file of", self.stderr.getvalue())
        self.assertEqual(self.stderr.getvalue().count("\n"), 1)


def outbox_with(path, deliveries):
    """Make an outbox file."""
    clock = MemoryReactorClock()
    store = SqliteStore(clock, str(path), now=clock.seconds)
    store.startService()
    store.outbox("billing").append([Delivery(f"msg_{number}", "c", number, b"{}", 1000) for number in range(deliveries)])
    clock.advance(0)
    store.stopService()
    clock.advance(1)
