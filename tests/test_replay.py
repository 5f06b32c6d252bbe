"""
Sending a capture again.
"""

import os
import random
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.errors import ConfigError
from mqhooks.events import Event
from mqhooks.sources.sidecar.encode import encode
from mqhooks.support.options import speed
from mqhooks.support.recording import HEADER, Record, line
from mqhooks.testing import make_event
from mqhooks.tools.pool import SenderPool
from mqhooks.tools.replay import Capture, Replay
from mqhooks.tools.simulator import Options, from_options
from tests.frames import framed
from tests.processes import Twistd
from tests.test_tools_simulator import Peer, listen
from tests.waiting import until

reactor: Any = installed_reactor
SECOND = 10**9
START = 1_800_000_000 * SECOND


def recorded(*seconds: float) -> list[Record]:
    """A record at each of these times; its payload is its number."""
    return [
        Record(START + int(at * SECOND), encode(make_event("on_publish", payload=b"%d" % number).message))
        for number, at in enumerate(seconds)
    ]


def content(records: list[Record]) -> bytes:
    return HEADER + b"".join(map(line, records))


class CaptureTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def wrong(self, path: str, remedy: str) -> None:
        error = self.assertRaises(ConfigError, Capture, path)
        self.assertEqual(str(error), f"{path}: {remedy}")

    def test_what_it_holds(self) -> None:
        records = recorded(0, 5, 2.5)
        self.path.write_bytes(content(records))
        capture = Capture(str(self.path))
        self.assertEqual((capture.count, capture.span), (3, 5.0))
        self.assertEqual(list(capture.records()), records)

    def test_nothing(self) -> None:
        self.path.write_bytes(HEADER)
        capture = Capture(str(self.path))
        self.assertEqual((capture.count, capture.span, list(capture.records())), (0, 0.0, []))

    def test_what_is_appended_meanwhile_is_left_out(self) -> None:
        records = recorded(0, 1)
        self.path.write_bytes(content(records))
        capture = Capture(str(self.path))
        with self.path.open("ab") as file:
            file.write(line(Record(START, b"new")))
        self.assertEqual(list(capture.records()), records)

    def test_mistakes(self) -> None:
        self.wrong("/nowhere", "cannot be read: No such file or directory")
        self.wrong("/", "cannot be read: Is a directory")
        self.wrong("a\0b", "cannot be read: a path must not contain NUL")
        path = str(self.path)
        self.path.write_bytes(b"{}\n")
        self.wrong(path, "is not an mqhooks capture; give another file")
        self.path.write_bytes(b"mqhooks-capture 7\n")
        self.wrong(path, "is a capture of version 7, and this mqhooks reads version 1: use a newer mqhooks")
        good = content(recorded(0, 1))
        self.path.write_bytes(good + b"x" + line(Record(START, b"frame")))
        self.wrong(path, f"is damaged at byte {len(good)}; head -c {len(good)} keeps what comes before")


class PacingTests(SynchronousTestCase):
    def replay(self, records: list[Record], pace: float) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.done: list[None] = []
        pool = SenderPool(self.reactor, clientFromString(self.reactor, "tcp:h:1"), "peer", 1, random.Random(1))
        replay = Replay(
            self.reactor, pool, iter(records), random.Random(1), speed=pace, when_done=lambda: self.done.append(None)
        )
        replay.startService()
        protocol = self.reactor.tcpClients[0][2].buildProtocol(None)
        self.transport: Any = StringTransport()
        protocol.makeConnection(self.transport)
        self.reactor.advance(0)

    def came(self, records: list[Record]) -> int:
        """How many of the records have been sent; they have to be the first ones."""
        sent = self.transport.value()
        for count in range(len(records) + 1):
            if sent == b"".join(framed(record.frame) for record in records[:count]):
                return count
        raise AssertionError(sent)

    def test_as_far_apart_as_they_came(self) -> None:
        records = recorded(0, 0, 10, 15, 12, 15.5)
        for pace in (1.0, 10.0, 0.5):
            self.replay(records, pace)
            for at, count in ((0, 2), (9.9, 2), (10.1, 3), (14.9, 3), (15.1, 5), (15.4, 5), (15.6, 6)):
                self.reactor.advance(at / pace - self.reactor.seconds())
                self.assertEqual(self.came(records), count, (pace, at))
            self.assertTrue(self.transport.disconnecting)

    def test_as_fast_as_the_peer_reads(self) -> None:
        records = recorded(*range(0, 100_000, 50))
        self.replay(records, speed("--speed")("max"))
        for _ in range(10):
            self.reactor.advance(0)
        self.assertEqual(self.came(records), len(records))

    def test_a_peer_that_did_not_read_gets_what_is_due_at_once(self) -> None:
        records = recorded(0, 1, 2, 3, 100)
        self.replay(records, 1.0)
        self.transport.producer.pauseProducing()
        self.reactor.advance(50)
        self.assertEqual(self.came(records), 1)
        self.transport.producer.resumeProducing()
        self.reactor.advance(0)
        self.assertEqual(self.came(records), 4)
        self.reactor.advance(49)
        self.assertEqual(self.came(records), 4)
        self.reactor.advance(1)
        self.assertEqual(self.came(records), 5)

    def test_frames_of_no_hook_are_sent_too(self) -> None:
        records = [Record(START, b"\xff"), Record(START, b"")]
        self.replay(records, 1.0)
        self.assertEqual(self.came(records), 2)


class OptionsTests(SynchronousTestCase):
    def test_speed(self) -> None:
        parse = speed("--speed")
        self.assertEqual([parse(text) for text in ("10x", "0.5x", "3", "max")], [10.0, 0.5, 3.0, float("inf")])
        for text in ("", "0", "0x", "x", "-1", "fast", "1xx", "nan"):
            error = self.assertRaises(UsageError, parse, text)
            self.assertEqual(str(error), f"--speed: {text!r} is not a speed; write it like 10x, 0.5x or max")

    def test_speed_of_nothing(self) -> None:
        error = self.assertRaises(UsageError, Options().parseOptions, ["--speed", "10x"])
        self.assertEqual(str(error), "--speed goes with --replay FILE; for made-up events use --rate")

    def test_mistakes_come_before_anything_is_sent(self) -> None:
        options = Options()
        options.parseOptions(["--replay", "/nowhere"])
        clock = MemoryReactorClock()
        self.assertRaises(ConfigError, from_options, clock, options)
        self.assertEqual(clock.tcpClients, [])


class ProcessTests(TestCase):
    timeout = 120

    def write(self, data: bytes) -> str:
        path = Path(self.mktemp()).resolve()
        path.write_bytes(data)
        return str(path)

    def payloads(self, events: list[Event]) -> list[bytes]:
        return [event.message.payload for event in events]

    async def test_in_order_over_one_connection(self) -> None:
        records = recorded(*[number * 100 for number in range(300)])
        peer = Peer()
        target = await listen(self, peer)
        path = self.write(content(records) + b"torn")
        twistd = Twistd(self, "mqhooks-simulate", f"--target={target}", "--connections=1", f"--replay={path}", "--speed=max")
        result = await twistd.ended
        self.assertEqual((result.exitCode, twistd.stderr), (0, ""))
        await peer.all_ended
        self.assertEqual([encode(event.message) for event in peer.events], [record.frame for record in records])
        self.assertIn(f"replaying 300 frames over 29900.0 s from {path} to {target}, as fast as the peer reads", twistd.stdout)
        self.assertIn("sent 300 events over 1 connections", twistd.stdout)
        self.assertIn(": on_publish 300", twistd.stdout)

    async def test_over_a_pool_at_a_pace(self) -> None:
        peer = Peer()
        path = self.write(content(recorded(0, 10, 20, 30, 1000)))
        twistd = Twistd(
            self,
            "mqhooks-simulate",
            f"--target={await listen(self, peer)}",
            "--connections=5",
            f"--replay={path}",
            "--speed=100x",
            "--count=4",
        )
        await twistd.ended
        await peer.all_ended
        self.assertEqual(sorted(self.payloads(peer.events)), [b"0", b"1", b"2", b"3"])
        self.assertEqual(len(peer.readers), 5)
        self.assertIn("at 100x", twistd.stdout)

    async def test_a_bridge_s_capture_is_replayed(self) -> None:
        path = Path(self.mktemp()).resolve()
        bridge = Twistd(self, "mqhooks", "--sidecar-port=0", "--admin-port=0", f"--sink=capture:path={path}")
        match = await bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        simulator = Twistd(
            self, "mqhooks-simulate", f"--target=tcp:127.0.0.1:{match[1]}", "--count=500", "--rate=0", "--connections=10"
        )
        sent = await simulator.until(r"sent 500 events .*: (on_.*)")
        await until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 501)
        peer = Peer()
        replay = Twistd(
            self,
            "mqhooks-simulate",
            f"--target={await listen(self, peer)}",
            f"--replay={path}",
            "--speed=max",
            "--connections=1",
        )
        again = await replay.until(r"sent 500 events .*: (on_.*)")
        self.assertEqual(again[1], sent[1])
        await peer.all_ended
        with path.open("rb") as file:
            next(file)
            self.assertEqual(len(peer.events), sum(1 for _ in file))

    def test_a_fifo_is_not_read(self) -> None:
        path = self.mktemp()
        os.mkfifo(path)
        error = self.assertRaises(ConfigError, Capture, path)
        self.assertEqual(str(error), f"{path}: is not a regular file; give a capture")

    async def test_a_mistake_is_one_line(self) -> None:
        path = self.write(content(recorded(0)) + b"?\n")
        twistd = Twistd(self, "mqhooks-simulate", f"--replay={path}")
        result = await twistd.ended
        self.assertEqual(result.exitCode, 1)
        self.assertRegex(twistd.stderr, rf"^mqhooks-simulate: --replay: {path}: is damaged at byte \d+; .*\n$")
        self.assertEqual(twistd.stdout, "")
