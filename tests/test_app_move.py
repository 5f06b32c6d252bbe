"""``mqhooks outbox move``: from a file to JetStream, and back."""

import os
import sqlite3
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from mqhooks.__main__ import main
from mqhooks.app import move
from mqhooks.delivery import Variation
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.outbox.store import TOO_FULL
from tests.contract.outbox import make
from tests.jetstream import JetStreamMixin
from tests.waiting import until


class MoveTests(JetStreamMixin, TestCase):
    async def move(self, source, target, status=0):
        lines, stderr = [], StringIO()
        self.patch(sys, "stderr", stderr)
        got = await deferToThread(main, ["outbox", "move", source, target], lines.append)
        self.errors = stderr.getvalue()
        self.assertEqual(got, status, self.errors)
        return lines

    def config(self, name, text):
        path = self.directory / f"{name}.conf"
        path.write_text(
            f'webhook {{ url = ${{MQHOOKS_UNSET}} }}\nmqhooks.outbox {{ {text}, path = "{self.directory}/outbox" }}'
        )
        return str(path)

    async def begin(self):
        await super().begin()
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        server = self.nodes.servers[0]
        self.file = self.config("file", "kind = sqlite")
        self.engine = self.config(
            "engine", f'kind = jetstream, servers = "nats://{server}", replicas = 1, partitions = 2, max_size = 8MiB'
        )

    def opened(self):
        store = SqliteStore(reactor, str(self.directory / "outbox"))
        store.startService()
        self.addCleanup(lambda: store.stopService() if store.running else None)
        return store

    async def filled(self):
        """Have the file hold 3,000 deliveries of two webhooks, some of which are settled, and two dead letters."""
        store = self.opened()
        variation = Variation("PUT", "/other", (("x-a", "b"),))
        for name in ("billing", "größe.x"):
            outbox = store.outbox(name)
            await outbox.append([*make(1500), *make(1, 1500, variation=variation)])
            claimed = [*await maybeDeferred(outbox.claim, 3, 1 << 30)]
            outbox.acknowledge(claimed[:2])
            outbox.bury(claimed[2], "http://h/", "answered 410", 410, b"gone", 7)
        await store.stopService()

    def check(self, deliveries):
        for client in range(3):
            its = [each.timestamp for each in deliveries if each.client == f"client-{client}"]
            self.assertEqual(its, [number for number in range(3, 1501) if number % 3 == client])
        self.assertEqual({each.id for each in deliveries}, {f"msg_{number}" for number in range(3, 1501)})
        last = next(each for each in deliveries if each.timestamp == 1500)
        self.assertEqual((last.accepted, last.variation.path, last.body), (2500, "/other", b"{}"))

    async def test_there_and_back(self):
        await self.begin()
        await self.filled()
        moved = [f"move: webhook {name}: 1498 deliveries, 1 dead letters" for name in ("billing", "größe.x")]
        self.assertEqual(await self.move(self.file, self.engine), [*moved, "move: done"])
        self.assertEqual(await self.move(self.file, self.engine), ["move: there was nothing to move"])
        store, outbox = self.store("billing", "größe.x", partitions=2)
        for name in ("billing", "größe.x"):
            outbox = store.outbox(name)
            await until(lambda outbox=outbox: outbox.caught_up)
            self.check(await self.claim(outbox, 1498))
            self.assertEqual(outbox.letters, 1)
        # What was claimed and not settled goes back.
        await self.move(self.engine, self.file, status=1)
        self.assertIn("another mqhooks is using the outbox in JetStream: stop all of them first", self.errors)
        await store.stopService()
        self.assertEqual(await self.move(self.engine, self.file), [*moved, "move: done"])
        file = self.opened()
        for name in ("billing", "größe.x"):
            outbox = file.outbox(name)
            self.assertEqual(outbox.counts.pending, 1498)
            self.check(await self.claim(outbox, 1498))
            (letter,) = file.dead_letters(name)
            self.assertEqual((letter.delivery.id, letter.reason, letter.answer), ("msg_2", "answered 410", b"gone"))

    async def test_damaged_dead_letters_stay(self):
        await self.begin()
        await self.filled()
        with closing(sqlite3.connect(self.directory / "outbox")) as connection, connection:
            connection.execute("UPDATE dead SET delivery = x'c1' WHERE id = 1")
        (*_, done) = await self.move(self.file, self.engine)
        told = "1 dead letters are damaged, or were stored without their bodies, and stay where they are: 1"
        self.assertEqual((done, self.errors), ("move: done", f"mqhooks: move: {told}\n"))
        self.assertEqual([letter.number for letter in self.opened().dead_letters()], [1])

    async def test_dead_letters_stay_while_the_disk_is_full(self):
        await self.begin()
        store = self.opened()
        outbox = store.outbox("w")
        await outbox.append(make(2))
        for delivery in [*await maybeDeferred(outbox.claim, 2, 1 << 30)]:
            outbox.bury(delivery, "http://h/", "answered 410", 410, b"gone", 7)
        await store.stopService()
        moved = ["move: webhook w: 0 deliveries, 2 dead letters", "move: done"]
        self.assertEqual(await self.move(self.file, self.engine), moved)
        self.patch(move, "PATIENCE", 2.0)
        full = self.patch(os, "statvfs", lambda _: SimpleNamespace(f_frsize=1, f_bavail=0))
        await self.move(self.engine, self.file, status=1)
        self.assertIn(TOO_FULL, self.errors)
        full.restore()
        self.assertEqual(await self.move(self.engine, self.file), moved)

    async def test_what_is_too_long_stays(self):
        await self.begin()
        store = self.opened()
        await store.outbox("w").append([*make(1), *make(1, 1, body=b"x" * (1 << 20)), *make(1, 2)])
        await self.move(self.file, self.engine, status=1)
        self.assertIn("is in use by process", self.errors)
        await store.stopService()
        await self.move(self.file, self.engine, status=1)
        self.assertRegex(self.errors, "^mqhooks: move: delivery msg_1 has a body of 1048576 bytes, which is too long.*\n$")
        store = self.opened()
        # What is before it may have been moved.
        self.assertGreaterEqual(store.outbox("w").counts.pending, 2)

    async def test_mistakes(self):
        await self.begin()
        await self.move(self.engine, self.engine, status=1)
        self.assertIn("name the same outbox", self.errors)
        memory = self.config("memory", "kind = memory")
        await self.move(memory, self.engine, status=1)
        self.assertIn("mqhooks.outbox.kind: is memory", self.errors)
