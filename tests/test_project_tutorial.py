"""
The tutorial's commands, run in their order.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from mqhooks.outbox.deadletters import Letters
from tests.ports import kept_port
from tests.processes import Twistd
from tests.waiting import until

DOCS = Path(__file__).parent.parent / "docs"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
RECEIVED = re.compile(r"POST /hook (\d+) \S+ client=(\S+) id=(\S+)")


class Tutorial(TestCase):
    timeout = 300

    def setUp(self):
        text = (DOCS / "tutorial.rst").read_text()
        self.commands = re.findall(r"^   \$ (.+)$", text, re.M)
        self.endpoint = str(kept_port(self))
        self.target = None
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        configuration = (DOCS / "tutorial.conf").read_text()
        (self.folder / "hooks.conf").write_text(configuration.replace(":8080", f":{self.endpoint}"))
        self.receiver = None
        self.received = []

    def next(self, *beginnings):
        """Take the next command, which has to begin so; returns its words."""
        command = self.commands.pop(0)
        self.assertTrue(command.startswith(beginnings), command)
        return shlex.split(command.replace("$WEBHOOK_SECRET", SECRET).replace(" 8080", f" {self.endpoint}"))

    def twistd(self, *more):
        words = self.next("twistd -n ")
        words = words[words.index("-n") + 1 :]
        return Twistd(
            self,
            *(word for word in words if word != "--pidfile="),
            *more,
            directory=self.folder,
            environment={"WEBHOOK_SECRET": SECRET},
        )

    async def receive(self):
        """Start the endpoint anew."""
        await self.stop_receiver()
        self.receiver = self.twistd()
        await self.receiver.until("listening for webhooks", anywhere=True)

    async def stop_receiver(self):
        if self.receiver is not None:
            self.receiver.process.signalProcess("TERM")
            await self.receiver.ended
            self.received += RECEIVED.findall(self.receiver.stdout)
            self.receiver = None

    async def simulate(self):
        process = self.twistd("--target", f"tcp:127.0.0.1:{self.target}", "--rate", "500")
        await process.ended
        sent = re.search(r"sent (\d+) events", process.stdout + process.stderr)
        self.assertIsNotNone(sent, process.stderr)

    def dead(self):
        words = self.next("mqhooks dead ")
        environment = {**os.environ, "WEBHOOK_SECRET": SECRET}
        ran = subprocess.run(
            [sys.executable, "-m", *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120
        )
        self.assertEqual((ran.returncode, ran.stderr), (0, ""), words)
        return ran.stdout

    def arrived(self):
        return RECEIVED.findall(self.receiver.stdout)

    async def test_ten_minutes(self):
        self.assertIn("openssl rand -base64 24", " ".join(self.next("export WEBHOOK_SECRET=")))
        self.next("echo ")
        check = self.twistd()
        await check.ended
        self.assertIn("The configuration is good.\n", check.stdout)

        await self.receive()
        bridge = self.twistd("--sidecar-port", "0", "--admin-port", "0")
        self.target = (await bridge.until(r"listening for VerneMQ on 127.0.0.1:(\d+)", anywhere=True))[1]
        await self.simulate()
        await until(lambda: len(self.arrived()) > 10)
        await self.stop_receiver()

        await self.simulate()
        await bridge.until("the endpoint is down", anywhere=True)
        before = len(self.received)
        await self.receive()
        await until(lambda: len(self.arrived()) > 5)
        await self.receive()
        self.assertGreater(len(self.received), before)
        self.assertEqual({status for status, _, _ in self.received}, {"200"})

        await self.simulate()
        await until(lambda: self.arrived())
        self.assertEqual({status for status, _, _ in self.arrived()}, {"422"})
        refused = {id_ for _, _, id_ in self.arrived()}
        # They are dead letters a moment later.
        letters = Letters(str(self.folder / "mqhooks-outbox"))
        self.addCleanup(letters.close)
        await until(lambda: refused <= {letter.delivery.id for letter in letters})
        listed = self.dead()
        self.assertIn("answered 422", listed)
        self.assertIn("answered 422", self.dead())
        await self.stop_receiver()
        # The page says: without --status.
        self.commands.insert(0, f'twistd -n mqhooks-receive --port 8080 --secret "{SECRET}"')
        await self.receive()
        self.assertIn("replay", self.dead())
        await until(lambda: refused <= {id_ for _, _, id_ in self.arrived()})
        self.assertEqual({status for status, _, _ in self.arrived()}, {"200"})
        self.assertEqual(self.commands, [])
