"""``mqhooks outbox move`` from a file to a file, when something goes wrong on the way."""

import os
import signal
import sqlite3
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from mqhooks.__main__ import main
from mqhooks.app import move
from mqhooks.errors import OutboxUnavailable
from mqhooks.outbox import schema, sqlite
from mqhooks.outbox.file import OutboxFile
from mqhooks.outbox.handed import Handed, hand_over, progress
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.outbox.stored import encode
from tests.outboxes import PLENTY, Faults, deliveries
from tests.processes import Running

WAITS = """
from mqhooks.app.engine import waited
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

async def work(reactor):
    try:
        print("begun", flush=True)
        await Deferred()
    finally:
        await deferLater(reactor, 0.01)
        print("cleaned up", flush=True)

try:
    waited(work)
except KeyboardInterrupt:
    print("interrupted")
"""


class FilesTests(TestCase):
    timeout = 120

    async def move(self, status=0, more=""):
        lines, stderr = [], StringIO()
        self.patch(sys, "stderr", stderr)
        got = await deferToThread(main, ["outbox", "move", self.config("old"), self.config("new", more)], lines.append)
        self.errors = stderr.getvalue()
        self.assertEqual(got, status, self.errors)
        return lines

    def setUp(self):
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()

    def config(self, name, more=""):
        path = self.directory / f"{name}.conf"
        path.write_text(f'mqhooks.outbox {{ kind = sqlite, path = "{self.directory}/{name}" {more} }}')
        return str(path)

    def opened(self, name):
        store = SqliteStore(reactor, str(self.directory / name))
        store.startService()
        self.addCleanup(lambda: store.stopService() if store.running else None)
        return store

    async def fill(self):
        store = self.opened("old")
        outbox = store.outbox("w")
        await outbox.append(deliveries(10))
        outbox.bury(outbox.claim(1, PLENTY)[0], "http://h/", "refused", 410, b"", 5)
        await store.stopService()

    async def test_everything(self):
        await self.fill()
        self.assertEqual(await self.move(), ["move: webhook w: 9 deliveries, 1 dead letters", "move: done"])
        self.assertEqual(await self.move(), ["move: there was nothing to move"])

    async def test_what_was_handed_over_since_mqhooks_stopped(self):
        await self.fill()
        with closing(schema.connect(str(self.directory / "old"))) as target:
            progress(target, "source")
            hand_over(target, "source", "batch", [Handed(1, "handed", 0, encode(deliveries(3)), 3)])
            target.execute("INSERT INTO request (action, dead) VALUES ('purge', 1)")
        moved = ["move: webhook handed: 3 deliveries, 0 dead letters", "move: webhook w: 9 deliveries, 0 dead letters"]
        self.assertEqual(await self.move(), [*moved, "move: done"])

    async def test_dead_letters_that_the_new_outbox_would_discard_stay(self):
        store = self.opened("old")
        outbox = store.outbox("w")
        await outbox.append(deliveries(2))
        for delivery in outbox.claim(2, PLENTY):
            outbox.bury(delivery, "http://h/", "refused", 410, b"", 5)
        await store.stopService()
        self.assertEqual(await self.move(status=1, more=", dead_max = 1"), [])
        problem = "move: webhook w: the new outbox keeps at most 1 dead letters (outbox.dead_max)"
        self.assertEqual(self.errors, f"mqhooks: {problem}: raise that, or purge some, and run this again for the rest\n")
        self.assertEqual(await self.move(), ["move: webhook w: 0 deliveries, 2 dead letters", "move: done"])

    async def test_old_outbox_that_cannot_forget_is_told(self):
        await self.fill()
        faults = Faults()

        class Failing(SqliteStore):
            def __init__(self, reactor, path, **options):
                super().__init__(reactor, path, open_file=faults.open if path.endswith("old") else OutboxFile, **options)

        self.patch(move, "SqliteStore", Failing)
        self.patch(move, "PATIENCE", 1.0)
        self.patch(sqlite, "CLOSING_TIME", 0.1)
        faults.always = OutboxUnavailable("disk I/O error")
        self.assertEqual(await self.move(status=1), [])
        self.assertEqual(self.errors, f"mqhooks: move: {self.directory}/old: disk I/O error; run this again for the rest\n")

    async def test_damage_found_on_the_way_ends_in_one_line(self):
        await self.fill()
        with closing(sqlite3.connect(self.directory / "old")) as connection, connection:
            connection.execute("DELETE FROM batch")
        self.assertEqual(await self.move(status=1), [])
        told = "stopped before the end: an outbox is damaged; run this again, and salvage what it sets aside"
        self.assertEqual(self.errors, f"mqhooks: {told}\n")
        store = self.opened("old")
        self.assertEqual(len(store.damaged), 1)

    async def test_interrupted_command_cleans_up_and_says_nothing(self):
        running = Running(
            self, [sys.executable, "-c", WAITS], environment={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        )
        await running.until("begun")
        running.process.signalProcess(signal.SIGINT)
        await running.ended
        self.assertEqual((running.stdout, running.stderr), ("begun\ncleaned up\ninterrupted\n", ""))
