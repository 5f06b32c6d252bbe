"""
Events as JSON lines.
"""

import json
import os
import resource
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS
from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.bodies import hook_body
from mqhooks.sinks import LogSink
from mqhooks.testing import make_event, verify_sink
from tests.waiting import until

HOLE = 1 << 28
"""Files are limited far beyond the size of any other that is written meanwhile, the tests' log among them."""


class StoppableClock(Clock):
    """A clock that can be stopped like a reactor."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1
        if self.stops > 1:
            raise ReactorNotRunning


class LogSinkTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = StoppableClock()
        self.logged = self.enterContext(capturedLogs())

    @property
    def said(self) -> list[str]:
        return [formatEvent(event) for event in self.logged]

    def started(self, destination: str | os.PathLike[str] | int) -> LogSink:
        sink = LogSink(self.clock, destination)
        sink.startService()
        self.addCleanup(sink.stopService)
        return sink


class FileTests(LogSinkTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())

    def lines(self) -> list[bytes]:
        content = self.path.read_bytes()
        self.assertTrue(content.endswith(b"\n") or not content)
        return content.splitlines()

    def test_contract(self) -> None:
        sink = self.started(self.path)
        verifyObject(IEventSink, sink)
        self.assertIsNone(self.successResultOf(verify_sink(sink)))

    def test_a_line_for_each_event(self) -> None:
        sink = self.started(self.path)
        events = [make_event(hook) for hook in HOOKS]
        sink.receive(events[:1])
        sink.receive([])
        sink.receive(events[1:])
        self.assertEqual(self.lines(), [hook_body(event) for event in events])
        self.assertEqual([json.loads(line)["action"] for line in self.lines()], [hook.removeprefix("on_") for hook in HOOKS])
        self.assertEqual((sink.written, sink.lost), (len(HOOKS), 0))

    def test_payload_with_line_ends_stays_one_line(self) -> None:
        sink = self.started(self.path)
        sink.receive([make_event("on_publish", payload=b"a\nb\r\n\x00\xff", topic="a\u2028\n")])
        self.assertEqual(len(self.path.read_bytes().split(b"\n")), 2)

    def test_appends(self) -> None:
        self.path.write_bytes(b"{}\n")
        self.started(self.path).receive([make_event("on_publish")])
        self.assertEqual(len(self.lines()), 2)

    def test_mode(self) -> None:
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.started(self.path)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o640)

    def test_nothing_is_opened_before_the_start(self) -> None:
        sink = LogSink(self.clock, self.path)
        self.assertFalse(self.path.exists())
        sink.receive([make_event("on_publish")])
        self.assertEqual((sink.written, sink.lost), (0, 1))

    def test_stopped_and_started_again(self) -> None:
        sink = self.started(self.path)
        sink.receive([make_event("on_publish")])
        sink.stopService()
        sink.receive([make_event("on_publish")])
        sink.reopen()
        sink.startService()
        sink.receive([make_event("on_publish")])
        self.assertEqual((len(self.lines()), sink.written, sink.lost), (2, 2, 1))

    def test_what_cannot_be_opened(self) -> None:
        self.path.mkdir()
        pipe = str(self.path / "pipe")
        os.mkfifo(pipe)
        for path, reason in [
            (str(self.path / "none" / "x"), "No such file or directory"),
            (str(self.path), "Is a directory"),
            ("a\0b", "a path must not contain NUL"),
        ]:
            error = self.assertRaises(ConfigError, LogSink(self.clock, path).startService)
            self.assertEqual(
                str(error),
                f"{path}: cannot be opened for appending ({reason}); create its directory and let this user write there",
            )
        error = self.assertRaises(ConfigError, LogSink(self.clock, pipe).startService)
        told = "is a FIFO that nothing reads, or a socket; start its reader first, or give another file"
        self.assertEqual(str(error), f"{pipe}: {told}")

    def test_a_fifo_with_a_reader(self) -> None:
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        LogSink(self.clock, self.path).look("")
        sink = self.started(self.path)
        sink.receive([make_event("on_publish")])
        self.assertTrue(os.read(reader, 1 << 16).endswith(b"\n"))

    def test_a_look_finds_what_the_start_would_and_makes_nothing(self) -> None:
        self.path.mkdir()
        (self.path / "file").touch()
        (self.path / "link").symlink_to("none/x")
        (self.path / "loop").symlink_to("loop")
        os.mkfifo(self.path / "fifo")
        (self.path / "to fifo").symlink_to("fifo")
        for name in ("none/x", "file/x", "link", "loop", ".", "a\0b", "x" * 300, "fifo", "to fifo"):
            path = str(self.path / name)
            told = [
                str(self.assertRaises(ConfigError, act))
                for act in (LogSink(self.clock, path).startService, partial(LogSink(self.clock, path).look, ""))
            ]
            self.assertEqual(*told)
        (self.path / "good").symlink_to("made")
        for good in ("new", "file", "good"):
            LogSink(self.clock, good).look(str(self.path))
        LogSink(self.clock, "/dev/null").look(str(self.path))
        LogSink(self.clock).look("")
        self.assertEqual({each.name for each in self.path.iterdir()}, {"file", "link", "loop", "good", "fifo", "to fifo"})

    def test_a_look_asks_for_permission(self) -> None:
        asked = []
        self.patch(os, "access", lambda path, mode: asked.append((path, mode)))
        self.path.touch()
        path = self.path.resolve()
        for there, what in ((path, (str(path), os.W_OK)), (path.parent / "new", (str(path.parent), os.W_OK | os.X_OK))):
            error = self.assertRaises(ConfigError, LogSink(self.clock, there).look, "")
            self.assertIn(f"{there}: cannot be opened for appending (Permission denied); ", str(error))
            self.assertEqual(asked.pop(), what)

    def test_reopened_after_a_rename(self) -> None:
        sink = self.started(self.path)
        sink.receive([make_event("on_publish", payload=b"1")])
        old = self.path.rename(f"{self.path}.1")
        sink.receive([make_event("on_publish", payload=b"2")])
        sink.reopen()
        sink.receive([make_event("on_publish", payload=b"3")])
        self.assertEqual([json.loads(line)["payload"] for line in old.read_bytes().splitlines()], ["1", "2"])
        self.assertEqual([json.loads(line)["payload"] for line in self.lines()], ["3"])

    def test_reopening_fails(self) -> None:
        sink = self.started(self.path)
        old = self.path.rename(f"{self.path}.1")
        self.path.mkdir()
        sink.reopen()
        sink.receive([make_event("on_publish")])
        self.assertEqual(len(old.read_bytes().splitlines()), 1)
        self.assertIn("Is a directory", self.said[-1])
        self.assertIn("still writing to the file that is open", self.said[-1])

    def test_full_disk(self) -> None:
        sink = self.started("/dev/full")
        for _ in range(3):
            sink.receive([make_event("on_publish"), make_event("on_deliver")])
        self.assertEqual((sink.written, sink.lost), (0, 6))
        self.assertEqual(self.said, ["/dev/full: cannot be written (No space left on device); 2 events lost so far"])
        self.clock.advance(60)
        sink.receive([make_event("on_publish")])
        self.assertIn("7 events lost so far", self.said[-1])
        self.assertEqual(self.clock.stops, 0)

    def limit_files(self, size: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    def lines_behind_the_hole(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(HOLE)
            return file.read().splitlines(keepends=True)

    def test_disk_that_fills_up_in_a_line(self) -> None:
        event = make_event("on_publish")
        line = hook_body(event) + b"\n"
        self.path.touch()
        os.truncate(self.path, HOLE)
        sink = self.started(self.path)
        sink.receive([event])
        self.limit_files(HOLE + len(line) * 3 + len(line) // 2)
        sink.receive([event] * 5)
        self.assertEqual(self.lines_behind_the_hole(), [line] * 3)
        self.assertEqual((sink.written, sink.lost), (3, 3))
        self.limit_files(HOLE * 2)
        sink.receive([event])
        self.assertEqual(self.lines_behind_the_hole(), [line] * 4)
        self.assertEqual((sink.written, sink.lost), (4, 3))
        self.assertEqual(self.said[-1], f"{self.path}: can be written again; 3 events were lost")

    def test_redirected_descriptor_that_fills_up_in_a_line(self) -> None:
        event = make_event("on_publish")
        line = hook_body(event) + b"\n"
        with self.path.open("wb", buffering=0) as file:
            file.seek(HOLE)
            sink = self.started(file.fileno())
            self.limit_files(HOLE + len(line) + len(line) // 2)
            sink.receive([event] * 2)
            self.limit_files(HOLE * 2)
            sink.receive([event])
            sink.stopService()
            file.write(b"still open\n")
        self.assertEqual(self.lines_behind_the_hole(), [line] * 2 + [b"still open\n"])
        self.assertEqual((sink.written, sink.lost), (2, 1))

    def test_end_that_belongs_to_another_process_is_not_cut(self) -> None:
        event = make_event("on_publish")
        line = hook_body(event) + b"\n"
        half = len(line) // 2
        with self.path.open("wb", buffering=0) as file:
            os.truncate(self.path, HOLE + len(line))
            file.seek(HOLE - half)
            sink = self.started(file.fileno())
            self.limit_files(HOLE)
            sink.receive([event])
        self.assertEqual(sink.lost, 1)
        self.assertEqual(self.path.stat().st_size, HOLE + len(line))


class DescriptorTests(LogSinkTestCase):
    def pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe()
        self.addCleanup(os.close, writer)
        return reader, writer

    def test_reader_is_gone(self) -> None:
        reader, writer = self.pipe()
        os.close(reader)
        sink = self.started(writer)
        for _ in range(3):
            sink.receive([make_event("on_publish")])
        self.assertEqual((sink.written, sink.lost, self.clock.stops), (0, 3, 1))
        self.assertEqual(self.said, [f"descriptor {writer}: its reader is gone, stopping"])

    def test_reader_is_gone_while_stopping(self) -> None:
        self.clock.stops = 1
        reader, writer = self.pipe()
        os.close(reader)
        self.started(writer).receive([make_event("on_publish")])
        self.assertEqual(self.clock.stops, 2)

    def test_slow_reader_of_a_descriptor_that_does_not_block(self) -> None:
        reader, writer = self.pipe()
        os.set_blocking(writer, False)
        sink = self.started(writer)
        got = bytearray()

        def read() -> None:
            while len(got) < expected and (data := os.read(reader, 65536)):
                got.extend(data)
            os.close(reader)

        batch = [make_event("on_publish", payload=b"x" * 1000)] * 1000
        expected = (len(hook_body(batch[0])) + 1) * len(batch)
        thread = threading.Thread(target=read)
        thread.start()
        sink.receive(batch)
        thread.join()
        self.assertEqual(bytes(got), (hook_body(batch[0]) + b"\n") * 1000)
        self.assertEqual((sink.written, sink.lost), (1000, 0))

    def test_standard_output_is_the_descriptor(self) -> None:
        program = (
            "import io, sys; from mqhooks.sinks import LogSink; from mqhooks.testing import make_event;"
            "from twisted.internet.task import Clock; sys.stdout = io.StringIO();"
            "sink = LogSink(Clock()); sink.startService(); sink.receive([make_event('on_publish')])"
        )
        with Popen([sys.executable, "-c", program], stdout=PIPE) as process:
            output, _ = process.communicate()
        self.assertEqual(output, hook_body(make_event("on_publish")) + b"\n")


class HangupTests(TestCase):
    def started(self, path: str) -> LogSink:
        sink = LogSink(reactor, path)
        sink.startService()
        self.addCleanup(sink.stopService)
        return sink

    def test_all_are_reopened(self) -> Deferred[None]:
        heard: list[int] = []
        before = signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        previous = signal.getsignal(signal.SIGHUP)

        async def scenario() -> None:
            paths = [self.mktemp(), self.mktemp()]
            sinks = [self.started(path) for path in paths]
            for path in paths:
                os.rename(path, f"{path}.1")
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: all(map(os.path.exists, paths)))
            self.assertEqual(heard, [signal.SIGHUP])
            sinks[0].stopService()
            os.rename(paths[1], f"{paths[1]}.2")
            os.remove(paths[0])
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: os.path.exists(paths[1]))
            self.assertFalse(os.path.exists(paths[0]))
            self.assertEqual(heard, [signal.SIGHUP] * 2)
            sinks[1].stopService()
            self.assertIs(signal.getsignal(signal.SIGHUP), previous)

        return Deferred.fromCoroutine(scenario())

    def test_handler_put_over_ours_stays(self) -> None:
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        sink = self.started(self.mktemp())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sink.stopService()
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    def test_no_handler_outside_the_main_thread(self) -> None:
        before = signal.getsignal(signal.SIGHUP)
        path = self.mktemp()
        thread = threading.Thread(target=self.started, args=(path,))
        thread.start()
        thread.join()
        self.assertTrue(os.path.exists(path))
        self.assertEqual(signal.getsignal(signal.SIGHUP), before)
