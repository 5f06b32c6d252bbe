"""Dead letters as JSON lines, from one outbox into another."""

import json
import shutil
import sqlite3
import subprocess
import sys
import tracemalloc
from base64 import b64decode, b64encode
from contextlib import closing
from io import BytesIO
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, fields
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import DeadLetter, Delivery, Variation
from mqhooks.errors import OutboxError
from mqhooks.outbox import exchange
from mqhooks.outbox.exchange import ImportMistakes, exported, import_lines
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.outbox.stored import client_of, encode
from tests.outboxes import PLENTY

NOW = 1_767_225_600_000
URL = "https://hooks.slack.com/services/T0/B0/s3cret7777"
VARIATION = Variation("PUT", "/a?b=c", (("x-meter", "7\tä"),), "url: {{username}} is missing")
DELIVERY = Delivery("msg_1", "m\0größe", NOW * 10**6 + 123_456_789, b'{"n":1,"raw":"\xff"}', NOW, 3, variation=VARIATION)
LETTER = DeadLetter(7, "w", DELIVERY, URL, f"{URL} answered 422: no", 422, b"no such \xff meter", NOW + 7)


class ExchangeCase(SynchronousTestCase):
    def setUp(self):
        self.path = self.mktemp()
        self.clock = MemoryReactorClock()
        self.clock.advance(5)
        self.open()
        self.outbox = self.store.outbox("w")

    def open(self):
        self.store = SqliteStore(self.clock, self.path, now=self.clock.seconds)
        self.store.startService()
        self.addCleanup(self.close, self.store)

    def close(self, store):
        if store.running:
            store.stopService()
            self.clock.advance(1)

    def bring(self, lines, *, dead=False):
        return import_lines(BytesIO(lines), "letters.jsonl", self.path, NOW, dead=dead)

    def settle(self, seconds=3):
        self.clock.pump([1, 0, 0] * seconds)

    def claim(self):
        claimed = self.outbox.claim(1000, PLENTY)
        return list(claimed) if isinstance(claimed, list) else self.fail("nothing is pending")

    def mistakes(self, lines, *, dead=False):
        error = self.assertRaises(ImportMistakes, self.bring, lines, dead=dead)
        self.assertTrue(error.mistakes[-1].endswith("nothing was imported"), error.mistakes)
        self.settle()
        self.assertEqual((self.outbox.counts.pending, self.outbox.letters), (0, 0))
        for mistake in error.mistakes:
            self.assertNotIn("\n", mistake)
        return error.mistakes[:-1]


class ExchangeTests(ExchangeCase):
    def test_a_line_holds_everything(self):
        line = json.loads(exported(LETTER))
        self.assertEqual(
            {name for name in Delivery.__struct_fields__ if name not in ("place", "window")}
            | {name for name in DeadLetter.__struct_fields__ if name not in ("delivery", "damage")}
            | {"mountpoint"},
            set(line),
        )
        self.assertEqual({field.name for field in fields(Variation)}, set(line["variation"]))
        self.assertEqual(b64decode(line["body"]), DELIVERY.body)
        self.assertEqual((line["client"], line["mountpoint"], line["number"]), ("größe", "m", 7))
        self.assertEqual(line["timestamp"], "2026-01-01T00:00:00.123456789Z")

    def test_dead_letters_come_back_as_they_were(self):
        self.assertEqual(self.bring(exported(LETTER) + b"\n", dead=True), 1)
        self.settle()
        (letter,) = self.store.dead_letters()
        delivery = asdict(DELIVERY) | {"accepted": NOW, "attempts": 0}
        self.assertEqual(asdict(letter.delivery), delivery)
        for name in ("webhook", "url", "reason", "status", "answer", "died", "damage"):
            self.assertEqual(getattr(letter, name), getattr(LETTER, name), name)
        self.assertEqual(self.outbox.counts.pending, 0)
        self.store.replay([letter.number])
        self.settle()
        self.assertEqual([delivery.body for delivery in self.claim()], [DELIVERY.body])

    def test_deliveries_are_as_new_with_the_id_they_had(self):
        self.assertEqual(self.bring(exported(LETTER)), 1)
        self.settle()
        (delivery,) = self.claim()
        self.assertEqual((delivery.id, delivery.client, delivery.body), ("msg_1", "m\0größe", DELIVERY.body))
        self.assertEqual((delivery.timestamp, delivery.variation), (DELIVERY.timestamp, VARIATION))
        self.assertEqual((delivery.accepted, delivery.attempts), (NOW, 0))
        self.assertEqual(self.outbox.letters, 0)

    def test_nobody_needs_to_use_the_outbox(self):
        self.close(self.store)
        self.bring(exported(LETTER))
        self.open()
        self.outbox = self.store.outbox("w")
        self.settle()
        self.assertEqual(len(self.claim()), 1)

    def test_the_same_lines_are_imported_once(self):
        lines = b"".join(exported(LETTER) + b"\n" for _ in range(3))
        self.assertEqual(self.bring(lines), 3)
        self.settle()
        self.assertEqual(self.bring(lines.replace(b"\n", b"\r\n") + b"\n \n"), 0)
        self.settle()
        self.assertEqual(self.outbox.counts.pending, 3)
        self.assertEqual(self.bring(lines, dead=True), 3)
        self.assertEqual(self.bring(lines, dead=True), 0)
        self.settle()
        self.assertEqual((self.outbox.counts.pending, self.outbox.letters), (3, 3))
        self.assertEqual(self.bring(b""), 0)

    def test_an_import_that_was_interrupted_goes_on(self):
        for dead in (False, True):
            before = self.outbox.counts.pending + self.outbox.letters
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute(
                    "CREATE TRIGGER full BEFORE INSERT ON inbox WHEN (SELECT count(*) FROM inbox) > 1 "
                    "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
                )
            letters = [
                LETTER.__class__(**asdict(LETTER) | {"delivery": Delivery(f"msg_{n}", "c", n, b"x" * (1 << 20))})
                for n in range(15)
            ]
            lines = b"\n".join(map(exported, letters))
            self.patch(exchange, "ROW_BYTES", 1 << 20)
            error = self.assertRaises(OutboxError, self.bring, lines, dead=dead)
            self.assertIn("import again", str(error))
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute("DROP TRIGGER full")
            self.bring(lines, dead=dead)
            self.settle()
            self.assertEqual(self.outbox.counts.pending + self.outbox.letters - before, 15)

    def test_each_mistake_is_told_with_its_line(self):
        good = json.loads(exported(LETTER))
        bad = [
            b"{",
            b'"text"',
            b"\xff",
            b"[" * 100_000,
            json.dumps(good | {"webhook": "x\n"}).encode(),
            json.dumps(good | {"id": "a b"}).encode(),
            json.dumps(good | {"id": ""}).encode(),
            json.dumps(good | {"body": "%"}).encode(),
            json.dumps(good | {"client": "a\0b"}).encode(),
            json.dumps(good | {"mountpoint": "ä" * 40_000}).encode(),
            json.dumps(good | {"timestamp": "yesterday"}).encode(),
            json.dumps(good | {"died": "3000-01-01T00:00:00Z"}).encode(),
            json.dumps(good | {"accepted": 7}).encode(),
            json.dumps(good | {"status": 7}).encode(),
            json.dumps(good | {"attempts": -1}).encode(),
            json.dumps(good | {"boddy": ""}).encode(),
            json.dumps({key: value for key, value in good.items() if key != "body"}).encode(),
            json.dumps(good | {"variation": {"method": "A B"}}).encode(),
            json.dumps(good | {"variation": {"path": "a"}}).encode(),
            json.dumps(good | {"variation": {"headers": [["x", "a\r\nb: c"]]}}).encode(),
            json.dumps(good | {"variation": {"headers": [["x y", ""]]}}).encode(),
        ]
        lines = b"\n".join(line for each in bad for line in (exported(LETTER), each))
        for dead in (False, True):
            told = self.mistakes(lines, dead=dead)
            self.assertEqual([mistake.split(":")[1] for mistake in told], [str(2 * n) for n in range(1, len(bad) + 1)])
        both = json.dumps(good | {"id": "", "webhook": "x"}).encode()
        self.assertEqual(len(self.mistakes(both)), 2)
        self.assertEqual(len(self.mistakes(b"{\n" * 1000)), exchange.MISTAKES)

    def test_a_line_without_end_is_a_mistake(self):
        self.patch(exchange, "LINE", 1000)
        (told,) = self.mistakes(exported(LETTER) + b"\n" + b" " * 100 + b"{" * 5000)
        self.assertIn("letters.jsonl:2: is longer", told)

    @settings(max_examples=50, deadline=None)
    @given(
        st.binary(max_size=200)
        | st.recursive(
            st.none() | st.text(max_size=5) | st.integers(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(sorted(json.loads(exported(LETTER)))), inner, max_size=5)
            ),
        ).map(lambda value: json.dumps(value).encode())
    )
    def test_whatever_comes_is_told(self, line):
        try:
            self.bring(line.replace(b"\n", b""))
        except ImportMistakes as error:
            self.assertEqual(len(error.mistakes[0].splitlines()), 1)

    def test_memory_does_not_grow_with_the_number(self):
        letter = DeadLetter(0, "w", Delivery("msg_1", "c", 1, b"x" * (8 << 20)), URL, "no", 422, b"", NOW)
        path = Path(self.mktemp())
        with path.open("wb") as file:
            for _ in range(12):
                file.write(exported(letter) + b"\n")
        tracemalloc.start()
        try:
            with path.open("rb") as file:
                import_lines(file, "f", self.path, NOW, dead=False)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertLess(most, 80 << 20)
        self.settle(20)
        self.assertEqual(self.outbox.counts.pending, 12)


class JqTests(ExchangeCase):
    """What is exported, mended by another program, and imported."""

    def test_round_trip(self):
        letters = [LETTER, DeadLetter(8, "w", Delivery("msg_2", "c", 1, b'{"n":2}'), URL, "no", 0, b"", NOW)]
        lines = b"".join(exported(letter) + b"\n" for letter in letters)
        if shutil.which("jq") is None:
            found = [json.loads(line) for line in lines.splitlines()]
            same = "".join(json.dumps(line) + "\n" for line in found).encode()
            found[1]["body"] = b64encode(json.dumps(json.loads(b64decode(found[1]["body"])) | {"ok": True}).encode()).decode()
            mended = json.dumps(found[1]).encode()
        else:
            same = self.jq(".", lines)
            mended = self.jq('select(.id == "msg_2") | .body |= (@base64d | fromjson | .ok = true | tojson | @base64)', lines)
        self.bring(same, dead=True)
        self.settle()
        found = self.store.dead_letters()
        self.assertEqual([letter.delivery.body for letter in found], [letter.delivery.body for letter in letters])
        self.assertEqual([letter.delivery.timestamp for letter in found], [letter.delivery.timestamp for letter in letters])
        self.assertEqual([letter.answer for letter in found], [letter.answer for letter in letters])
        self.bring(mended)
        self.settle()
        (delivery,) = self.claim()
        self.assertEqual((delivery.id, json.loads(delivery.body)), ("msg_2", {"n": 2, "ok": True}))

    def jq(self, program, lines):
        return subprocess.run(["jq", "-c", program], input=lines, stdout=subprocess.PIPE, stderr=sys.stderr, check=True).stdout


class ClientTests(SynchronousTestCase):
    @given(st.text(max_size=300), st.text(max_size=40_000), st.integers(0, 200))
    @settings(max_examples=50, deadline=None)
    def test_a_client_is_found_without_the_rest(self, id_, client, cut):
        data = encode(Delivery(id_, client, 1, b"x" * 300))
        self.assertEqual(client_of(data), client)
        self.assertEqual(client_of(data[:-200]), client)
        self.assertIn(client_of(data[:cut]), (None, client))
