"""
Captures: the file's format, and the sink that writes it.
"""

import io
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, MatchedACL, Message, Subscribe, TopicInfo
from mqhooks.interfaces import IEventSink
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.sinks import CaptureSink, sinkFromString
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.encode import encode, hook_of
from mqhooks.support import recording as capture
from mqhooks.support.recording import HEADER, Record, line, read
from mqhooks.testing import make_event, verify_sink
from tests.frames import envelope, golden_frames

NOW = 1_800_000_000_000_000_000
HOLE = 1 << 28
"""Files are limited far beyond the size of any other that is written meanwhile, the tests' log among them."""

int32 = st.integers(-(1 << 31), (1 << 31) - 1)
topic_infos = st.builds(TopicInfo, qos=int32, matched_acl=st.from_type(MatchedACL))


def values_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    """What a frame can hold."""
    given: dict[str, Any] = {
        field.name: int32 if field.type is int else st.from_type(field.type) for field in msgspec.structs.fields(kind)
    }
    given["timestamp"] = st.integers(-(1 << 63), (1 << 63) - 1)
    if kind is Subscribe:
        given["topics"] = st.lists(topic_infos).map(tuple)
    return st.builds(kind, **given)


records = st.builds(Record, st.integers(0, 1 << 63), st.binary(max_size=100))


def parsed(content: bytes) -> list[Record]:
    return list(read(io.BytesIO(content), "x"))


class EncodeTests(SynchronousTestCase):
    def test_as_vernemq_does(self) -> None:
        seen = set()
        for golden in golden_frames():
            if golden.decoded is not None:
                event = decode(golden.frame)
                self.assertEqual(hook_of(golden.frame), golden.hook)
                self.assertEqual(decode(encode(event.message)), event, golden.case)
                if golden.case != "register_userprops_dup_empty_unicode":
                    self.assertEqual(encode(event.message), golden.frame, golden.case)
                seen.add(golden.hook)
        self.assertEqual(seen, set(HOOKS))

    @given(st.sampled_from(sorted(HOOKS)).flatmap(lambda hook: values_of(HOOKS[hook])))
    def test_any_values(self, message: Message) -> None:
        self.assertEqual(decode(encode(message)).message, message)

    def test_no_hook(self) -> None:
        self.assertEqual(hook_of(envelope(OnPublish(), "eventssidecar.v1.OnNothing")), "")
        self.assertEqual(hook_of(b"\xff"), "")


class FormatTests(SynchronousTestCase):
    @given(st.lists(records, max_size=5))
    def test_round_trip(self, written: list[Record]) -> None:
        self.assertEqual(parsed(HEADER + b"".join(map(line, written))), written)

    @given(st.lists(records, min_size=1, max_size=5), st.data())
    def test_a_cut_end_costs_the_last_record(self, written: list[Record], data: st.DataObject) -> None:
        lines = [HEADER, *map(line, written)]
        content = b"".join(lines)
        size = data.draw(st.integers(0, len(content)))
        whole = sum(len(b"".join(lines[: count + 1])) <= size for count in range(1, len(lines)))
        self.assertEqual(parsed(content[:size]), written[:whole])

    @given(st.lists(records, min_size=1, max_size=5), st.data())
    def test_a_changed_byte_is_found_where_it_is(self, written: list[Record], data: st.DataObject) -> None:
        content = bytearray(HEADER + b"".join(map(line, written)))
        place = data.draw(st.integers(len(HEADER), len(content) - 1))
        if content[place] == ord("\n"):
            return
        begin = content.rindex(b"\n", 0, place) + 1
        content[place] ^= 1
        error = self.assertRaises(ConfigError, parsed, bytes(content))
        self.assertEqual(str(error), f"x: is damaged at byte {begin}; head -c {begin} keeps what comes before")

    def test_the_format_is_what_is_told(self) -> None:
        self.assertEqual(HEADER + line(Record(NOW, b"frame")), b"mqhooks-capture 1\n83c65397 1800000000000000000 ZnJhbWU=\n")

    def test_two_files_in_one(self) -> None:
        one = HEADER + line(Record(1, b"a"))
        self.assertEqual(parsed(one + one), [Record(1, b"a")] * 2)

    def test_what_is_beyond_the_end_is_not_read(self) -> None:
        content = HEADER + line(Record(1, b"a"))
        self.assertEqual(list(read(io.BytesIO(content * 2), "x", len(content))), [Record(1, b"a")])

    def test_other_files(self) -> None:
        for content in (b"webhook {}\n", b"\x00" * 100, b"mqhooks-capture one\n", b"mqhooks-capture\n"):
            error = self.assertRaises(ConfigError, parsed, content)
            self.assertEqual(str(error), "x: is not an mqhooks capture; give another file")

    def test_a_newer_version(self) -> None:
        for content in (b"mqhooks-capture 2\n", HEADER + line(Record(1, b"a")) + b"mqhooks-capture 2\n"):
            error = self.assertRaises(ConfigError, parsed, content)
            self.assertEqual(str(error), "x: is a capture of version 2, and this mqhooks reads version 1: use a newer mqhooks")

    def test_a_line_without_end_is_not_read_into_memory(self) -> None:
        self.patch(capture, "LONGEST", 1000)
        error = self.assertRaises(ConfigError, parsed, HEADER + b"0" * 5000)
        self.assertIn(f"is damaged at byte {len(HEADER)};", str(error))


class SinkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path(self.mktemp())
        self.now = NOW
        self.logged = self.enterContext(capturedLogs())

    @property
    def said(self) -> list[str]:
        return [formatEvent(event) for event in self.logged]

    def started(self, path: Path | str | None = None, **options: int) -> CaptureSink:
        sink = CaptureSink(self.clock, path or self.path, encode, now=lambda: self.now, **options)
        sink.startService()
        self.addCleanup(sink.stopService)
        return sink

    def recorded(self) -> list[Record]:
        with self.path.open("rb") as file:
            return list(read(file, "x"))

    def test_contract(self) -> None:
        sink = self.started()
        verifyObject(IEventSink, sink)
        self.assertIsNone(self.successResultOf(verify_sink(sink)))

    def test_every_hook_with_its_time(self) -> None:
        sink = self.started()
        events = [make_event(hook) for hook in HOOKS]
        sink.receive(events[:3])
        sink.receive([])
        self.now += 5
        sink.receive(events[3:])
        recorded = self.recorded()
        self.assertEqual([record.time for record in recorded], [NOW] * 3 + [NOW + 5] * (len(HOOKS) - 3))
        self.assertEqual([decode(record.frame).message for record in recorded], [event.message for event in events])
        self.assertEqual((sink.written, sink.lost, sink.left_out), (len(HOOKS), 0, 0))

    def test_mode(self) -> None:
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.started()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o640)

    def test_goes_on_behind_whatever_was_cut_off(self) -> None:
        event = make_event("on_publish")
        first = HEADER + line(Record(1, b"a"))
        long = line(Record(2, b"x" * 200_000))
        for kept, torn in ((b"", b""), (b"", HEADER[:5]), (HEADER, b"\0" * 70_000), (first, b""), (first, long[:-1])):
            self.path.write_bytes(kept + torn)
            sink = self.started()
            sink.receive([event])
            sink.stopService()
            self.assertEqual(self.recorded(), [Record(1, b"a")] * (kept == first) + [Record(NOW, encode(event.message))])
            self.assertEqual(self.path.stat().st_size, len(kept or HEADER) + len(line(Record(NOW, encode(event.message)))))

    def test_reopened_after_a_rename(self) -> None:
        sink = self.started()
        sink.receive([make_event("on_publish")])
        old = self.path.rename(f"{self.path}.1")
        sink.reopen()
        sink.receive([make_event("on_publish")])
        self.assertEqual(len(self.recorded()), 1)
        self.assertEqual(self.path.read_bytes(), old.read_bytes())

    def test_another_file_is_not_touched(self) -> None:
        self.path.write_bytes(b"webhook {}\n")
        error = self.assertRaises(ConfigError, CaptureSink(self.clock, self.path, encode).startService)
        self.assertEqual(str(error), f"{self.path}: is not an mqhooks capture; give another file")
        self.assertEqual(self.path.read_bytes(), b"webhook {}\n")

    def test_reopening_finds_another_file(self) -> None:
        sink = self.started()
        old = self.path.rename(f"{self.path}.1")
        self.path.write_bytes(b"webhook {}\n")
        sink.reopen()
        sink.receive([make_event("on_publish")])
        self.assertIn("is not an mqhooks capture; give another file; still writing to", self.said[-1])
        self.assertEqual(old.read_bytes().count(b"\n"), 2)

    def test_what_cannot_be_opened(self) -> None:
        for path, reason in (
            ("/nowhere/x", "No such file or directory"),
            ("/dev/null", "is not a regular file"),
            ("/", "Is a dir"),
        ):
            descriptors = len(os.listdir("/proc/self/fd"))
            error = self.assertRaises(ConfigError, CaptureSink(self.clock, path, encode).startService)
            self.assertIn(reason, str(error))
            self.assertEqual(len(os.listdir("/proc/self/fd")), descriptors)

    def test_a_look_finds_what_the_start_would_and_makes_nothing(self) -> None:
        self.path.write_bytes(b"webhook {}\n")
        for path in ("/nowhere/x", "/dev/null", "/", str(self.path)):
            told = [
                str(self.assertRaises(ConfigError, act))
                for act in (
                    CaptureSink(self.clock, path, encode).startService,
                    partial(CaptureSink(self.clock, path, encode).look, ""),
                )
            ]
            self.assertEqual(*told)
        self.path.unlink()
        sink = CaptureSink(self.clock, self.path.name, encode)
        sink.look(str(self.path.parent))
        self.assertFalse(self.path.exists())
        for well in (b"", HEADER, HEADER[:5]):
            self.path.write_bytes(well)
            sink.look(str(self.path.parent))
            self.assertEqual(self.path.read_bytes(), well)

    def test_disk_that_fills_up_in_a_record(self) -> None:
        event = make_event("on_publish")
        size = len(line(Record(NOW, encode(event.message))))
        with self.path.open("wb") as file:
            # The hole is one line that a capture may not have; it is not read here.
            file.write(HEADER)
            file.seek(HOLE - 1)
            file.write(b"\n")
        sink = self.started()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (HOLE + size * 2 + size // 2, hard))
        for _ in range(3):
            sink.receive([event] * 3)
        self.assertEqual((sink.written, sink.lost), (2, 7))
        self.assertEqual(self.said, [f"{self.path}: cannot be written (File too large); 1 events lost so far"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (HOLE * 2, hard))
        sink.receive([event])
        with self.path.open("rb") as file:
            file.seek(HOLE)
            self.assertEqual(file.read(), line(Record(NOW, encode(event.message))) * 3)
        self.assertIn("can be written again; 7 events were lost", self.said[-1])

    def test_max_size(self) -> None:
        event = make_event("on_publish")
        size = len(line(Record(NOW, encode(event.message))))
        limit = len(HEADER) + 3 * size + size // 2
        sink = self.started(max_size=limit)
        sink.receive([event] * 2)
        sink.receive([event] * 2)
        sink.receive([event])
        self.assertEqual((sink.written, sink.lost, sink.left_out), (3, 0, 2))
        self.assertEqual(len(self.recorded()), 3)
        (said,) = self.said
        self.assertIn(f"max_size ({limit} bytes) is reached, recording stops", said)
        self.path.rename(f"{self.path}.1")
        sink.reopen()
        sink.receive([event])
        self.assertEqual((len(self.recorded()), sink.left_out), (1, 2))

    def test_max_size_counts_what_was_there(self) -> None:
        event = make_event("on_publish")
        self.started().receive([event] * 5)
        again = self.started(max_size=self.path.stat().st_size)
        again.receive([event])
        self.assertEqual((len(self.recorded()), again.left_out), (5, 1))

    def description(self, text: str) -> Callable[[], IEventSink]:
        return lambda: sinkFromString(self.clock, text)

    def test_descriptions(self) -> None:
        for text, left_out in ((f"capture:path={self.path}:max_size=1KiB", 1), (f"capture:{self.path}", 0)):
            sink = sinkFromString(self.clock, text)
            assert isinstance(sink, CaptureSink)
            sink.startService()
            self.addCleanup(sink.stopService)
            sink.receive([make_event("on_publish", payload=b"x" * 2000)])
            self.assertEqual((sink.written, sink.left_out), (1 - left_out, left_out))

    def test_wrong_descriptions(self) -> None:
        for text, expected in (
            ("capture", "missing a required argument: 'path'; write it like capture:path=FILE:max_size=1GiB"),
            ("capture:path=", "path: is empty; give a file"),
            ("capture:path=x:max_size=much", "max_size: 'much' is not a size of 1024 bytes or more, like 512KiB or 16MiB"),
        ):
            error = self.assertRaises(ConfigError, self.description(text))
            self.assertEqual(str(error), f"{text}: {expected}")
