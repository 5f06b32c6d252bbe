"""
The receivers of the documentation, each run as a process that gets signed requests.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from time import time

from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SkipTest, TestCase

from mqhooks.delivery import Delivery, Head, Request
from mqhooks.http.pooled import PooledTransport
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.settings import WebhookSettings
from tests.ports import kept_port
from tests.processes import Running
from tests.programs import MODULES, missing_node, program
from tests.waiting import until

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples" / "receivers"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


class ReceiverContract:
    """Mix into a TestCase that has ``command()`` and ``events(process)``, the bodies that were handled."""

    timeout = 300

    async def start(self):
        self.port = kept_port(self)
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        environment = {**os.environ, "WEBHOOK_SECRET": SECRET, "PORT": str(self.port), **self.environment()}
        self.process = Running(self, self.command(), directory=self.folder, environment=environment)
        await until(self.listens)
        url = f"http://127.0.0.1:{self.port}/hook"
        self.head = Head("POST", url, (("content-type", "application/json"),))
        self.transport = PooledTransport(reactor, url, timeout=60.0)
        self.addCleanup(self.transport.close)

    def environment(self):
        return {}

    async def listens(self):
        self.assertFalse(self.process.ended.called, self.process.stderr)
        try:
            connection = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", self.port), Protocol())
        except ConnectError:
            return False
        connection.transport.abortConnection()
        return True

    def headers(self, id_, body, *secrets):
        maker = RequestMaker(WebhookSettings("docs", self.head.url, (), secrets=secrets or (SECRET,)), time)
        return list(maker.identify(Delivery(id_, "c", 0, body).id, body))

    async def post(self, headers, body):
        return (await self.transport.send(Request(self.head, headers, body))).status

    async def test_verifies_and_remembers(self):
        await self.start()
        first, second = ('{"action":"client_connack","clientid":"é"}'.encode(), b'{"action":"message_publish"}')
        self.assertEqual(await self.post(self.headers("msg_1", first), first), 204)
        self.assertEqual(await self.post(self.headers("msg_2", second), second), 204)
        # Again, as if the answer had been lost.
        self.assertEqual(await self.post(self.headers("msg_1", first), first), 204)
        # While the secret is changed.
        self.assertEqual(await self.post(self.headers("msg_3", first, OTHER, SECRET), first), 204)
        signed = self.headers("msg_4", first)
        for headers, body in (
            (signed, second),
            ([("webhook-id", "msg_4")], first),
            (self.headers("msg_4", first, OTHER), first),
            ([("webhook-id", "msg_5"), *signed[1:]], first),
            ([(name, "1" if name == "webhook-timestamp" else value) for name, value in signed], first),
        ):
            self.assertEqual(await self.post(headers, body), 401)
        await until(lambda: len(self.events()) >= 3)
        self.assertEqual([json.loads(event) for event in self.events()], [json.loads(body) for body in (first, second, first)])


class Flask(ReceiverContract, TestCase):
    def command(self):
        return [sys.executable, str(EXAMPLES / "flask_receiver.py")]

    def environment(self):
        return {"DATABASE": str((self.folder / "events.sqlite").absolute())}

    def events(self):
        connection = sqlite3.connect(self.folder / "events.sqlite")
        rows = connection.execute("SELECT body FROM events ORDER BY rowid").fetchall()
        connection.close()
        return [body for (body,) in rows]

    async def test_a_locked_database_is_answered_503(self):
        await self.start()
        connection = sqlite3.connect(self.folder / "events.sqlite", isolation_level=None)
        self.addCleanup(connection.close)
        connection.execute("BEGIN EXCLUSIVE")
        body = b'{"action":"client_connack"}'
        headers = self.headers("msg_1", body)
        self.assertEqual(await self.post(headers, body), 503)
        connection.execute("ROLLBACK")
        self.assertEqual(await self.post(headers, body), 204)
        self.assertEqual(self.events(), [body.decode()])


class Printing:
    """A receiver that prints the events."""

    def events(self):
        return self.process.stdout.splitlines()


class Express(Printing, ReceiverContract, TestCase):
    skip = missing_node()

    def command(self):
        return [program("node"), str(EXAMPLES / "express_receiver.js")]

    def environment(self):
        return {"NODE_PATH": str(MODULES)}


class Go(Printing, ReceiverContract, TestCase):
    def command(self):
        go = shutil.which("go")
        if go is None:
            raise SkipTest("there is no go")
        program = (self.folder / "receiver").absolute()
        build = [go, "build", "-o", str(program), str(EXAMPLES / "receiver.go")]
        subprocess.run(build, check=True, timeout=250)
        return [str(program)]
