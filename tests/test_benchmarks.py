"""That the benchmarks measure: the parts one by one, and one scenario with few events. No test looks at a time."""

import gzip
import shutil
import sys
from collections import deque
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from socket import socketpair
from xml.etree import ElementTree

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from benchmarks import load, pages, profiling, receiver, report, scenarios, subjects
from benchmarks.__main__ import main
from benchmarks.plot import chart
from benchmarks.processes import BenchmarkError
from benchmarks.profiling import Profile
from benchmarks.scenarios import Sample
from mqhooks.sources.sidecar.decode import decode
from tests.natscluster import program


def sample(**changed: object) -> Sample:
    values: dict = {"events": 100, "done": 100, "cpu": 0.002, "seconds": 0.5, "twice": 0, "late": 0, "peak": 70.0, "took": {}}
    return Sample(**{**values, **changed})


def cut(data: bytes) -> list[bytes]:
    frames = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        frames.append(data[4:end])
        data = data[end:]
    return frames


class Load(SynchronousTestCase):
    def test_events_are_numbered(self) -> None:
        frames = load.Frames(range(3, 1000, 400), 100)
        self.assertEqual(frames.capacity, 3)
        first = [decode(frame) for frame in cut(bytes(frames.write(5, 3, 0)))]
        second = [decode(frame) for frame in cut(bytes(frames.write(8, 2, 12345)))]
        events = first + second
        clients = ["000003", "000403", "000803", "000003", "000403"]
        self.assertEqual([event.client_id for event in events], [f"client-{client}" for client in clients])
        for number, (event, client) in enumerate(zip(events, clients, strict=True), 5):
            stamp = 0 if number < 8 else 12345
            self.assertEqual(event.message.payload, f"#{number:010}{client}{stamp:020}".encode().ljust(100, b"x"))
        self.assertEqual([event.timestamp for event in events], sorted({event.timestamp for event in events}))

    def test_large_payloads_take_little_memory(self) -> None:
        frames = load.Frames(range(100), 100 << 10)
        self.assertEqual(frames.capacity, 1)
        self.assertLess(len(frames.block), 104 << 10)


class Tallies(SynchronousTestCase):
    def take(self, *bodies: bytes) -> dict:
        tally = receiver.Tally(10)
        for body in bodies:
            tally.take(body, 5_000_000, compressed=False)
        self.assertFalse(tally.count(10))
        return tally.report()

    def event(self, number: int, client: int = 1, stamp: int = 0) -> bytes:
        return b'{"payload":"#%010d%06d%020dxxx"}' % (number, client, stamp)

    def test_what_comes_twice(self) -> None:
        found = self.take(self.event(1), self.event(2), self.event(1))
        self.assertEqual((found["requests"], found["distinct"], found["twice"], found["late"]), (3, 2, 1, 0))

    def test_what_comes_out_of_order(self) -> None:
        found = self.take(self.event(1, 1), self.event(3, 1), self.event(0, 2), self.event(2, 1))
        self.assertEqual((found["distinct"], found["twice"], found["late"]), (4, 0, 1))

    def test_batches(self) -> None:
        events = [self.event(number) for number in range(3)]
        found = self.take(b"[%b]" % b",".join(events), b"\n".join([self.event(5), self.event(6)]))
        self.assertEqual((found["requests"], found["distinct"]), (2, 5))

    def test_times(self) -> None:
        found = self.take(*[self.event(number, stamp=(number + 1) * 1_000_000) for number in range(4)])
        self.assertEqual(found["took"], {"p50": 3.0, "p99": 4.0, "p99.9": 4.0, "max": 4.0})
        self.assertEqual(self.take(self.event(1))["took"], {})

    def test_counted_later(self) -> None:
        self.patch(receiver, "KEPT", 3 * len(self.event(0)))
        tally = receiver.Tally(10)
        for number in range(5):
            tally.take(self.event(number), 1, compressed=False)
        self.assertEqual(tally.report()["distinct"], 2)
        self.assertTrue(tally.count(2))
        self.assertEqual(tally.report()["distinct"], 4)
        self.assertFalse(tally.count(2))
        self.assertEqual(tally.report()["distinct"], 5)


class Requests(SynchronousTestCase):
    def setUp(self) -> None:
        self.client, server = socketpair()
        self.addCleanup(self.client.close)
        self.addCleanup(server.close)
        server.settimeout(0)
        self.tally = receiver.Tally(10)
        self.connection = receiver.Connection(server, self.tally)

    def request(self, body: bytes, *headers: bytes) -> bytes:
        return b"\r\n".join([b"POST /hook HTTP/1.1", *headers, b"Content-Length: %d" % len(body), b"", body])

    def test_in_pieces(self) -> None:
        data = b"".join(self.request(b"#%010d%06d%020d" % (number, 1, 0)) for number in range(3))
        for at in range(0, len(data), 17):
            self.client.sendall(data[at : at + 17])
            self.assertTrue(self.connection.readable())
        self.tally.count(3)
        self.assertEqual((self.tally.requests, self.tally.distinct), (3, 3))
        self.assertEqual(self.client.recv(1000), receiver.ANSWER * 3)

    def test_compressed(self) -> None:
        lines = b"\n".join(b'{"payload":"#%010d%06d%020d"}' % (number, number, 0) for number in range(10))
        self.client.sendall(self.request(gzip.compress(lines), b"Content-Encoding: gzip"))
        self.assertTrue(self.connection.readable())
        self.tally.count(1)
        self.assertEqual((self.tally.requests, self.tally.distinct), (1, 10))

    def test_answers_may_take_their_time(self) -> None:
        later: deque = deque()
        _, server = pair = socketpair()
        for end in pair:
            self.addCleanup(end.close)
        server.settimeout(0)
        pair[0].sendall(self.request(b"#%010d%06d%020d" % (1, 1, 0)))
        self.assertTrue(receiver.Connection(server, self.tally, 5_000_000, later).readable())
        ((due, sock),) = later
        self.assertIs(sock, server)
        self.assertGreater(due, 5_000_000)
        pair[0].settimeout(0)
        self.assertRaises(BlockingIOError, pair[0].recv, 1)

    def test_connection_ends_with_its_peer(self) -> None:
        self.client.close()
        self.assertFalse(self.connection.readable())


class Reports(SynchronousTestCase):
    def test_medians_and_sums(self) -> None:
        fast, slow, lossy = sample(), sample(cpu=0.004, twice=1), sample(cpu=0.009, done=90, late=2)
        mine, other = report.rows(
            "relay", "relaying", {"mqhooks": [fast, lossy, slow], "Agent": [sample(cpu=0.02)], "treq": []}
        )
        self.assertEqual((mine.cost, mine.missing, mine.twice, mine.late, mine.rate), (40.0, 10, 1, 2, 200.0))
        self.assertEqual((mine.ratio, other.sidecar, other.ratio), (1.0, "Agent", 5.0))

    def test_the_servers_that_keep_an_outbox_have_a_row_of_their_own(self) -> None:
        table = report.rows("shared", "sharing", {"mqhooks": [sample()], "shared": [sample(cpu=0.003, engine=0.001)] * 3})
        self.assertEqual([row.sidecar for row in table], ["mqhooks", "shared", "NATS of shared"])
        self.assertEqual(
            [(round(row.cost, 9), row.ratio, row.runs) for row in table], [(20.0, 1.0, 1), (30.0, 1.5, 3), (10.0, 0.5, 3)]
        )

    def test_nothing_to_compare_with(self) -> None:
        (row,) = report.rows("relay", "relaying", {"mqhooks": [], "Agent": [sample()]})
        self.assertIsNone(row.ratio)
        self.assertIn(report.NOTHING, report.plain([row]))

    def test_what_is_written_for_the_documentation(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        table = [
            *report.rows("relay", "relaying", {"mqhooks": [sample()] * 2, "treq": [sample(cpu=0.2)] * 2}),
            *report.rows("backlog-10k", "backlog", {"mqhooks": [sample(events=10_000, done=10_000)]}),
            *report.rows("rate-5k", "pacing", {"mqhooks": [sample(took={"p50": 1.0, "p99": 2.0, "max": 3.25})]}),
        ]
        pages.write(folder, table, Profile({"SQLite": 1.0}, [("commit", 0.5, 1.0)]))
        written = (folder / "benchmarks.inc").read_text()
        page = (Path(__file__).parent.parent / "docs" / "benchmarks.rst").read_text()
        for section in ("machine", "costs", "times", "parts", "functions"):
            for end in ("begin", "end"):
                self.assertEqual(written.count(f".. {end}-{section}\n"), 1)
                self.assertIn(f".. {end}-{section}\n", page)
        self.assertIn("Runs: 2; backlog: 1; pacing: 1.\n", written)
        self.assertIn("- 3.2", written.partition("begin-times")[2].partition("end-times")[0])
        for name in ("backlog", "size", "rate"):
            self.assertIn(f"benchmarks-{name}.svg", page)
            ElementTree.parse(folder / f"benchmarks-{name}.svg")

    def test_charts(self) -> None:
        drawn = chart("a < b", "x", "y", {"one": [(10, 20), (100, 25)], "two": [(10, 21)]}, log=True)
        texts = [element.text for element in ElementTree.fromstring(drawn) if element.tag.endswith("text")]
        self.assertLessEqual({"a < b", "x", "y", "one", "two", "10", "100"}, set(texts))


class Profiles(SynchronousTestCase):
    def test_time_goes_to_the_rooms(self) -> None:
        room = ("/x/mqhooks/outbox/sqlite.py", 1, "commit")
        stats = {
            room: (10, 10, 1.0, 5.0, {}),
            ("~", 0, "<method 'execute' of 'sqlite3.Connection' objects>"): (10, 10, 2.0, 2.0, {room: (10, 10, 2.0, 2.0)}),
            ("~", 0, "<built-in method builtins.len>"): (30, 30, 1.0, 1.0, {room: (30, 30, 1.0, 1.0)}),
            ("~", 0, "<method 'poll' of 'select.epoll' objects>"): (5, 5, 9.0, 9.0, {}),
        }
        found = profiling.summarise(stats, 10, 2)
        self.assertEqual(found.parts, {"mqhooks/outbox": 0.5, "SQLite": 0.5})
        self.assertEqual(found.functions[0], ("method execute of sqlite3.Connection objects", 1.0, 0.5))


class Choice(SynchronousTestCase):
    def test_by_the_beginning_of_a_name(self) -> None:
        self.assertEqual(list(scenarios.chosen(["size"], long=False)), ["size-1k", "size-10k", "size-100k"])
        self.assertNotIn("backlog-10m", scenarios.chosen([], long=False))
        self.assertIn("backlog-10m", scenarios.chosen([], long=True))
        self.assertEqual(list(scenarios.chosen(["backlog-10m"], long=False)), ["backlog-10m"])
        self.assertRaises(BenchmarkError, scenarios.chosen, ["nothing"], long=False)

    def test_who_cannot_run_is_left_out(self) -> None:
        self.patch(subjects, "find_spec", lambda _: None)
        self.patch(shutil, "which", lambda _: None)
        absent = subjects.absent()
        self.assertEqual(sorted(absent), ["C, no work", "Go", "aiohttp's server", "asyncio + aiohttp", "grpcio + aiohttp"])
        self.assertIn("apt install golang-go", absent["Go"])
        self.assertIn("pip install", absent["asyncio + aiohttp"])

    def test_what_mqhooks_does_not_know_is_not_measured(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        wiring = subjects.Wiring(folder, 1, "http://127.0.0.1:2/", webhook={"pool_sise": "3"})
        error = self.assertRaises(BenchmarkError, subjects.bridge, wiring)
        self.assertIn("pool_sise", str(error))


class Whole(TestCase):
    timeout = 300

    def setUp(self) -> None:
        if not sys.platform.startswith("linux"):
            raise SkipTest("CPU is counted with Linux's /proc")

    def run_main(self, *arguments: str) -> Deferred:
        """Run the command line in a thread; fires with its exit status, output and errors."""

        def run() -> tuple[int, str, str]:
            out, err = StringIO(), StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                status = main([*arguments, "--runs", "1", "--directory", self.folder])
            return status, out.getvalue(), err.getvalue()

        path = Path(self.mktemp()).absolute()
        path.mkdir(parents=True)
        self.folder = str(path)
        return deferToThread(run)

    def check(self, out: str, names: list[str], events: str) -> None:
        head, *lines = out.splitlines()
        for column in report.COLUMNS | report.TIMES:
            self.assertIn(column, head)
        self.assertEqual(len(lines), len(names))
        for line, name in zip(lines, names, strict=True):
            cells = line.partition(f"  {name}  ")[2].split()
            self.assertEqual(cells[0], events)
            self.assertGreater(float(cells[1].replace(",", "")), 0)
            self.assertEqual(cells[4:6], ["0", "0"], line)
        self.assertEqual(list(Path(self.folder).iterdir()), [])

    async def test_relay(self) -> None:
        status, out, err = await self.run_main("relay", "--events", "2000")
        self.assertEqual(status, 0, err)
        names = [name for name in subjects.SUBJECTS if name not in {*subjects.absent(), subjects.GRPC, subjects.WEBHOOKS}]
        self.check(out, names, "2,000")

    async def test_an_outbox_that_two_bridges_share(self) -> None:
        program()
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        *_, name = subjects.SHARED
        run = scenarios.Run(scenarios.SCENARIOS["shared-endpoint"], name, folder, 1000)
        found = await deferToThread(run.measure)
        self.assertEqual((found.events, found.done, found.twice, found.late), (1000, 1000, 0, 0))
        self.assertGreater(found.cpu, 0)
        self.assertGreater(found.engine, 0)

    async def test_tls(self) -> None:
        status, out, err = await self.run_main("tls", "--events", "300")
        self.assertEqual(status, 0, err)
        names = [
            name
            for name in subjects.SUBJECTS
            if name not in {*subjects.absent(), subjects.FLOOR, subjects.GRPC, subjects.WEBHOOKS}
        ]
        self.check(out, names, "300")

    async def test_backlog_and_accepting(self) -> None:
        status, out, err = await self.run_main("accept", "backlog-10k", "--events", "2000")
        self.assertEqual(status, 0, err)
        self.check(out, ["mqhooks", "mqhooks"], "2,000")

    async def test_paced(self) -> None:
        status, out, err = await self.run_main("rate-5k", "--events", "1000", "--peers")
        self.assertEqual(status, 0, err)
        self.check(out, ["mqhooks"], "1,000")
        self.assertEqual([cell for cell in out.splitlines()[1].split()[-3:] if cell == report.NOTHING], [])

    async def test_profile(self) -> None:
        status, out, err = await self.run_main("--profile", "--events", "2000")
        self.assertEqual(status, 0, err)
        self.assertIn("mqhooks/webhook", out)
        self.assertIn("SQLite", out)
