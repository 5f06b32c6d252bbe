"""
The examples, each run as a process that gets real frames.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mqhooks.events import HOOKS, Event
from mqhooks.nanomq.bodies import hook_body
from mqhooks.sinks import SampleSink
from mqhooks.testing import RecordingSink, make_event
from tests.endpoints import Endpoint
from tests.frames import envelope, framed

reactor: Any = installed_reactor
EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
TWISTD = "from twisted.scripts.twistd import run; run()"


class Running(ProcessProtocol):
    """A process and what it printed."""

    transport: Any

    def __init__(self) -> None:
        self.output = b""
        self.errors = b""
        self.ended: Deferred[Any] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        self.ended.callback(reason.value)


class ExampleTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.socket = str(self.folder / "sidecar")

    def start(self, example: str, **environment: str) -> Running:
        process = Running()
        arguments = [sys.executable, "-c", TWISTD, "--pidfile=", "-ny", str(EXAMPLES / example)]
        transport = reactor.spawnProcess(
            process,
            sys.executable,
            arguments,
            env=os.environ | {"MQHOOKS_LISTEN": f"unix:{self.socket}", "MQHOOKS_ADMIN": "off"} | environment,
            path=str(self.folder),
        )

        def kill() -> Deferred[Any] | None:
            if process.ended.called:
                return None
            transport.signalProcess("KILL")
            return process.ended

        self.addCleanup(kill)
        return process

    async def until(self, process: Running, condition: Callable[[], bool]) -> None:
        while not condition():
            self.assertFalse(process.ended.called, process.errors.decode() + process.output.decode())
            await deferLater(reactor, 0.01)

    async def listening(self, process: Running) -> None:
        # The socket's file is there a moment before the socket listens.
        await self.until(process, lambda: b"listening for VerneMQ" in process.errors + process.output)

    async def send(self, process: Running, events: Sequence[Event]) -> None:
        await self.listening(process)
        protocol: Any = await connectProtocol(UNIXClientEndpoint(reactor, self.socket), Protocol())
        protocol.transport.write(b"".join(framed(envelope(event.message)) for event in events))
        protocol.transport.loseConnection()

    async def stop(self, process: Running) -> None:
        process.transport.signalProcess("TERM")
        # twistd stops in order, then ends itself by the signal it got.
        self.assertEqual((await process.ended).signal, signal.SIGTERM, process.errors.decode() + process.output.decode())
        self.assertNotIn("Traceback", process.errors.decode() + process.output.decode())

    async def test_log(self) -> None:
        events = [make_event(hook) for hook in HOOKS]
        process = self.start("log.tac")
        await self.send(process, events)
        await self.until(process, lambda: process.output.count(b"\n") >= len(events))
        await self.stop(process)
        self.assertEqual(process.output.splitlines(), [hook_body(event) for event in events])
        self.assertIn(b"first sidecar connection, from", process.errors)

    async def test_log_to_a_file_that_is_rotated(self) -> None:
        path, old = self.folder / "events.jsonl", self.folder / "events.jsonl.1"
        process = self.start("log.tac", MQHOOKS_LOG=str(path))
        await self.send(process, [make_event("on_register")])
        await self.until(process, lambda: path.exists() and path.stat().st_size > 0)
        path.rename(old)
        process.transport.signalProcess(signal.SIGHUP)
        await self.until(process, path.exists)
        await self.send(process, [make_event("on_client_gone")])
        await self.until(process, lambda: path.stat().st_size > 0)
        await self.stop(process)
        self.assertEqual(old.read_bytes(), hook_body(make_event("on_register")) + b"\n")
        self.assertEqual(path.read_bytes(), hook_body(make_event("on_client_gone")) + b"\n")
        self.assertEqual(process.output, b"")

    async def test_log_that_nobody_reads_any_more(self) -> None:
        process = self.start("log.tac")
        await self.listening(process)
        process.transport.closeStdout()
        await self.send(process, [make_event("on_publish")])
        self.assertEqual((await process.ended).exitCode, 0, process.errors.decode())
        self.assertIn(b"standard output: its reader is gone, stopping", process.errors)
        self.assertNotIn(b"Traceback", process.errors)

    async def test_log_to_a_file_that_cannot_be_opened(self) -> None:
        process = self.start("log.tac", MQHOOKS_LOG="no/such/folder/events.jsonl")
        self.assertEqual((await process.ended).exitCode, 1)
        said = process.errors + process.output
        self.assertIn(
            b"mqhooks: no/such/folder/events.jsonl: cannot be opened for appending (No such file or directory); ", said
        )
        self.assertNotIn(b"Traceback", said)

    async def test_fanout(self) -> None:
        endpoint = Endpoint()
        url = endpoint.listen(self, reactor)
        events = [make_event(hook) for hook in ("on_register", "on_publish", "on_client_gone")]
        path = self.folder / "events.jsonl"
        process = self.start("fanout.tac", MQHOOKS_URL=url)
        await self.send(process, events)
        await self.until(process, lambda: len(endpoint.requests) >= 2 and path.read_bytes().count(b"\n") >= 3)
        await self.stop(process)
        self.assertEqual(
            [json.loads(request.body)["action"] for request in endpoint.requests], ["client_connack", "client_disconnected"]
        )
        self.assertEqual(path.read_bytes().splitlines(), [hook_body(event) for event in events])

    async def test_fanout_delivers_after_a_restart(self) -> None:
        await self.restarted("fanout.tac", make_event("on_client_gone"))
        self.assertTrue((self.folder / "mqhooks-outbox").exists())

    async def test_sampled_delivers_after_a_restart(self) -> None:
        await self.restarted("sampled.tac", make_event("on_publish", topic="sensors/a"))
        self.assertTrue((self.folder / "mqhooks-outbox-samples").exists())

    async def restarted(self, example: str, event: Event) -> None:
        refused, endpoint = Endpoint(lambda request: request.connection.reply(503)), Endpoint()
        process = self.start(example, MQHOOKS_URL=refused.listen(self, reactor), MQHOOKS_SHARE="1")
        await self.send(process, [event])
        await self.until(process, lambda: bool(refused.requests))
        await self.stop(process)
        process = self.start(example, MQHOOKS_URL=endpoint.listen(self, reactor), MQHOOKS_SHARE="1")
        await self.until(process, lambda: bool(endpoint.requests))
        await self.stop(process)
        self.assertEqual(endpoint.requests[0].header("webhook-id"), refused.requests[0].header("webhook-id"))

    async def test_urls_that_are_none(self) -> None:
        for example, name in (("fanout.tac", "presence"), ("sampled.tac", "samples")):
            process = self.start(example, MQHOOKS_URL="ftp://h/")
            self.assertEqual((await process.ended).exitCode, 1)
            mistake = f"MQHOOKS_URL: webhook {name}: url: 'ftp://h/' is not a URL like http://host:8080/path"
            self.assertEqual((process.errors + process.output).decode().count(mistake), 1)
            self.assertNotIn(b"Traceback", process.errors + process.output)

    async def test_sampled(self) -> None:
        endpoint = Endpoint()
        url = endpoint.listen(self, reactor)
        events = [
            make_event(hook, client_id=f"client-{number}", topic=topic)
            for number in range(50)
            for hook, topic in [("on_publish", "sensors/a"), ("on_publish", "other"), ("on_deliver", "sensors/a")]
        ]
        sample = RecordingSink()
        SampleSink(sample, 0.5).receive(
            [event for event in events if event.hook == "on_publish" and "sensors/a" in event.topics]
        )
        expected = {event.client_id for event in sample.events}
        process = self.start("sampled.tac", MQHOOKS_URL=url, MQHOOKS_SHARE="0.5")
        await self.send(process, events)
        await self.until(process, lambda: len(endpoint.requests) >= len(expected))
        await self.stop(process)
        bodies = [json.loads(request.body) for request in endpoint.requests]
        self.assertEqual(
            {(body["topic"], body["from_client_id"]) for body in bodies}, {("sensors/a", name) for name in expected}
        )
        self.assertEqual(len(bodies), len(expected))

    async def test_custom_sink(self) -> None:
        events = [
            make_event("on_register", client_id="one"),
            make_event("on_register", client_id="one", mountpoint="other"),
            make_event("on_publish", client_id="one"),
            make_event("on_client_gone", client_id="one"),
        ]
        process = self.start("custom_sink.tac")
        await self.send(process, events)
        await self.until(process, lambda: b"on_client_gone 'one': 1 online" in process.output)
        await self.stop(process)
        self.assertIn(b"on_register 'one': 2 online", process.output)
        self.assertNotIn(b"on_publish", process.output)

    async def test_custom_source(self) -> None:
        endpoint = Endpoint()
        process = self.start("custom_source.tac", MQHOOKS_URL=endpoint.listen(self, reactor))
        await self.until(process, lambda: b"listening for lines" in process.errors + process.output)
        protocol: Any = await connectProtocol(UNIXClientEndpoint(reactor, self.socket), Protocol())
        told = [{"client": f"c{number % 3}", "topic": "t", "payload": str(number)} for number in range(300)]
        text = b"".join(json.dumps(line).encode() + b"\n" for line in told)
        protocol.transport.write(b'{"client": 1}\n[]\nnull\n\xff\n' + text[:1000])
        protocol.transport.write(text[1000:])
        await self.until(process, lambda: len(endpoint.requests) == len(told))
        await self.stop(process)
        bodies = [json.loads(request.body) for request in endpoint.requests]
        for client in ("c0", "c1", "c2"):
            arrived = [body["payload"] for body in bodies if body["from_client_id"] == client]
            self.assertEqual(arrived, [line["payload"] for line in told if line["client"] == client])

    async def test_custom_outbox(self) -> None:
        refusing = Endpoint(lambda request: request.connection.reply(503))
        url = refusing.listen(self, reactor)
        environment = {"MQHOOKS_KEY": Fernet.generate_key().decode(), "MQHOOKS_URL": url}
        process = self.start("custom_outbox.tac", **environment)
        await self.send(process, [make_event("on_publish", payload=b"a secret of the boiler")])
        await self.until(process, lambda: bool(refusing.requests))
        await self.stop(process)
        kept = b"".join(path.read_bytes() for path in self.folder.glob("encrypted-outbox*"))
        self.assertNotIn(b"boiler", kept)
        taking = Endpoint()
        url = taking.listen(self, reactor)
        process = self.start("custom_outbox.tac", **environment | {"MQHOOKS_URL": url})
        await self.until(process, lambda: bool(taking.requests))
        self.assertEqual(json.loads(taking.requests[0].body)["payload"], "a secret of the boiler")
        await self.stop(process)

    def test_every_example_is_run(self) -> None:
        source = Path(__file__).read_text(encoding="utf-8")
        for example in EXAMPLES.glob("*.tac"):
            self.assertIn(f'self.start("{example.name}"', source)
