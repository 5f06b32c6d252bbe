"""VerneMQ's gRPC calls over real sockets, made by grpcio."""

import json
import re
import socket
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import grpc
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from mqhooks.app.reload import merge
from mqhooks.app.settings import Settings, SourcesSettings
from mqhooks.app.tap import Options, makeService
from mqhooks.interfaces import IEventSource
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.sources.grpc.factory import GrpcFactory
from mqhooks.sources.grpc.listener import GrpcService
from mqhooks.sources.grpc.settings import GrpcSettings
from mqhooks.sources.grpc.status import CANCELLED, STATUSES
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.grpccalls import CHECK, StoringSink, Stub, golden_calls, request
from tests.ports import kept_port
from tests.processes import Twistd
from tests.programs import PROJECT
from tests.waiting import until


def publish(number, client="c", size=0, timestamp=None):
    message = OnPublish(client_id=client, topic="t", payload=str(number).encode() + b"x" * size)
    if timestamp is not None:
        message.timestamp.FromNanoseconds(timestamp)
    return message


class GrpcioTests(TestCase):
    timeout = 300

    def listen(self, *, listen=("tcp:0",), **bounds):
        self.sink = StoringSink()
        self.factory = GrpcFactory(reactor, self.sink, **bounds)
        self.service = GrpcService(reactor, GrpcSettings(listen), self.factory)
        self.service.privilegedStartService()
        self.service.startService()
        self.addCleanup(lambda: self.service.stopService() if self.service.running else None)
        self.port = self.service.addresses[0].port
        return Stub(self, self.port)

    async def test_recorded_calls(self):
        stub = self.listen()
        self.assertEqual(self.service.addresses[0].host, "127.0.0.1")
        # The time below is for the answer: the connection is there.
        self.assertEqual((await stub.call(b"", path=CHECK))[0], 0)
        for call in golden_calls():
            self.assertEqual(await stub.call(call.message[5:], timeout=0.5), (0, ""), call.type)
        self.assertEqual(self.factory.counters.events, 13)

    async def test_a_hundred_in_flight_on_several_connections(self):
        stubs = [self.listen()]
        stubs += [Stub(self, self.port, **{"grpc.use_local_subchannel_pool": 1}) for _ in range(3)]
        self.sink.holds = True
        calls = [stubs[number % 4].call(request(publish(number))) for number in range(100)]
        await until(lambda: len(self.sink.events) == 100)
        self.assertEqual(self.factory.counters.connections, 4)
        self.sink.commit()
        self.assertEqual(set(await gatherResults(calls)), {(0, "")})
        self.sink.holds = False
        many = [stubs[number % 4].call(request(publish(number)), timeout=30) for number in range(4000)]
        self.assertEqual(set(await gatherResults(many)), {(0, "")})
        self.assertEqual(self.factory.counters.calls[0], 4100)

    async def test_deadlines_and_cancellations(self):
        stub = self.listen()
        # The deadline is for the answer: the connection is there.
        self.assertEqual((await stub.call(b"", path=CHECK))[0], 0)
        self.sink.holds = True
        late = stub.call(request(publish(1)), timeout=1.0)
        self.assertEqual((await late)[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
        future = stub.future(request(publish(2)))
        await until(lambda: len(self.sink.events) == 2)
        future.cancel()
        await until(lambda: self.factory.counters.calls[1] + self.factory.counters.calls[4] == 2)
        self.sink.commit()
        self.sink.holds = False
        self.assertEqual(await stub.call(request(publish(3))), (0, ""))

    async def test_large_messages(self):
        stub = self.listen(max_frame=9 << 20)
        sizes = (100_000, 1 << 20, 8 << 20)
        calls = [stub.call(request(publish(1, size=size)), timeout=30) for size in sizes]
        self.assertEqual(await gatherResults(calls), [(0, "")] * 3)
        self.assertEqual(sorted(len(event.message.payload) - 1 for event in self.sink.events), sorted(sizes))
        status, words = await stub.call(request(publish(1, size=9 << 20)), timeout=30)
        self.assertEqual((status, words), (8, "the message exceeds sidecar.max_frame"))
        self.assertEqual(await stub.call(request(publish(2))), (0, ""))
        self.assertEqual(self.factory.counters.connections, 1)

    async def test_compression(self):
        stub = self.listen()
        packed = await stub.call(request(publish(1, size=5000)), compression=grpc.Compression.Gzip)
        self.assertEqual(packed[0], 12)
        self.assertIn("identity", packed[1])

    async def test_what_is_refused(self):
        stub = self.listen()
        self.assertEqual(await stub.call(b"\x0a\1x"), (3, "the message is not an event"))
        self.assertEqual((await stub.call(b"", path="/grpc.health.v1.Health/Watch"))[0], 12)
        self.sink.full = True
        self.assertEqual(await stub.call(request(publish(1))), (8, "no room in the outbox"))
        self.assertEqual((await stub.call(b"", path=CHECK))[0], 0)

    async def test_a_stop_answers_what_is_in_flight(self):
        stub = self.listen(listen=(f"tcp:{kept_port(self)}",))
        self.sink.holds = True
        calls = [stub.call(request(publish(number))) for number in range(20)]
        await until(lambda: len(self.sink.events) == 20)
        stopped = self.service.stopService()
        self.sink.commit()
        self.assertEqual(set(await gatherResults(calls)), {(0, "")})
        await stopped
        self.assertEqual(self.factory.counters.connections, 0)
        self.assertEqual((await stub.call(request(publish(1)), timeout=1))[0], 14)

    async def test_a_stop_does_not_wait_for_ever(self):
        stub = self.listen()
        self.sink.holds = True
        call = stub.call(request(publish(1)))
        await until(lambda: self.sink.events)
        await self.service.stopService()
        self.assertEqual((await call)[0], 14)
        self.sink.commit()

    async def test_http1(self):
        self.listen()
        lines = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)

        def get():
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                try:
                    return connection.recv(100)
                except ConnectionResetError:
                    return b""

        for _ in range(3):
            self.assertEqual(await deferToThread(get), b"")
        await until(lambda: not self.factory.connections)
        told = [line for line in map(formatEvent, lines) if "HTTP/1" in line]
        self.assertEqual(len(told), 1, told)
        self.assertIn("but this port is for gRPC only: connection closed", told[0])

    async def test_a_peer_that_reads_no_answers(self):
        stub = self.listen()
        flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
        with socket.create_connection(("127.0.0.1", self.port)) as deaf:
            deaf.sendall(flood)
            deaf.setblocking(False)
            ping = (b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8) * 1000

            def push():
                try:
                    deaf.send(ping)
                except BlockingIOError:
                    pass
                except (BrokenPipeError, ConnectionResetError):
                    return True
                return False

            await until(push)
            self.assertEqual(await stub.call(request(publish(1))), (0, ""))


class WholeTests(TestCase):
    """Twistd, from calls to webhooks."""

    timeout = 300

    def setUp(self):
        self.endpoint = Endpoint()
        url = self.endpoint.listen(self, reactor)
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.config = directory / "mqhooks.conf"
        self.config.write_text(
            f'webhook {{ url = "{url}", retry.initial = 50ms, events = [ {{ event = on_message_publish }} ] }}\n'
            f'mqhooks {{ outbox.path = "{directory / "outbox"}" }}',
            encoding="utf-8",
        )

    async def start(self):
        ports = ("--sidecar-port", "0", "--admin-port", "0", "--grpc-port", "0")
        self.bridge = Twistd(self, "mqhooks", *ports, "--config", str(self.config))
        match = await self.bridge.until(r"listening for VerneMQ's gRPC on 127\.0\.0\.1:(\d+)", anywhere=True)
        sidecar = await self.bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)", anywhere=True)
        self.sidecar = int(sidecar[1])
        return int(match[1])

    def arrived(self):
        return [json.loads(request.body)["payload"] for request in self.endpoint.requests]

    async def test_one_client_over_both_ways_is_in_order(self):
        self.config.write_text(self.config.read_text() + "mqhooks.merge_window = 5s\n")
        stub = Stub(self, await self.start())
        with socket.create_connection(("127.0.0.1", self.sidecar)) as stream:
            # Each is read before the one that happened before it, and all are read within the merge window.
            for number in range(1, 40, 2):
                stream.sendall(framed(envelope(publish(number, timestamp=10**18 + number))))
            for number in range(38, -1, -2):
                answer = await stub.call(request(publish(number, timestamp=10**18 + number)))
                self.assertEqual(answer, (0, ""))
            await until(lambda: len(self.arrived()) == 40)
        self.assertEqual(self.arrived(), [str(number) for number in range(40)])

    async def kill(self, seconds, enough):
        """Kill the bridge after a time, and not before there is enough."""
        await deferLater(reactor, seconds)
        await until(enough)
        await maybeDeferred(self.bridge.kill)

    async def test_what_is_answered_outlives_a_kill(self):
        acknowledged = set()
        number = 0
        for seconds, enough in ((0.0, 0), (0.05, 0), (0.2, 100)):
            stub = Stub(self, await self.start())
            self.assertEqual(await stub.call(request(publish("first"))), (0, ""))
            killed = Deferred.fromCoroutine(self.kill(seconds, lambda: len(acknowledged) >= enough))  # noqa: B023
            while not killed.called:
                numbers = range(number, number + 50)
                number += 50
                answers = await gatherResults([stub.call(request(publish(each, client=f"c{each % 7}"))) for each in numbers])
                acknowledged |= {str(each) for each, answer in zip(numbers, answers, strict=True) if answer[0] == 0}
            await killed
        await self.start()
        await until(lambda: acknowledged <= set(self.arrived()))
        self.assertLessEqual(set(self.arrived()), {str(each) for each in range(number)} | {"first"})


class ConfigurationTests(SynchronousTestCase):
    def file(self, text):
        path = Path(self.mktemp()).resolve()
        path.write_text('webhook { url = "http://h/", events = [ { event = on_message_publish } ] }\n' + text)
        return str(path)

    def made(self, *args):
        """What --check says, or a refusal."""
        options = Options()
        options.parseOptions([*args, "--check"])
        out = StringIO()
        with redirect_stdout(out):
            exit_ = self.assertRaises(SystemExit, makeService, options)
        return out.getvalue() if exit_.code == 0 else exit_.code

    def test_check(self):
        for arguments in (
            ("--grpc-port", "8893", "--url", "http://h/"),
            ("-c", self.file('mqhooks.sources.grpc.listen = "tcp:8893"')),
            ("-c", self.file('mqhooks { sources { grpc { listen = ["tcp:8893:interface=127.0.0.1"] } } }')),
        ):
            text = self.made(*arguments)
            self.assertRegex(text, r"(?m)^grpc    tcp:8893:interface=127\.0\.0\.1")
            for line in ("endpoint = 127.0.0.1", "port = 8893", "enabled = on", "percentage = 100"):
                self.assertIn(f"vmq_events_sidecar.grpc_{line}", text)
        self.assertNotIn("grpc", self.made("--url", "http://h/"))

    def test_what_is_for_vernemq_can_be_pasted(self):
        for listen in ('"tcp:8893"', '["tcp6:8893", "unix:/run/x"]'):
            text = self.made("--url", "http://h/", "-c", self.file(f"mqhooks.sources.grpc.listen = {listen}"))
            before, _, rest = text.partition("\npage ")
            lines = re.findall(r"\n {8}(.+)", before + rest[rest.index("\nhooks ") :])
            self.assertGreater(len(lines), 8)
            for line in lines:
                self.assertRegex(line, r"^(# .+|[a-z_.]+ = \S+)$")

    def test_quickstart_shows_what_is_printed(self):
        printed = self.made("--grpc-port", "8893", "--url", "http://h/").splitlines()
        quickstart = (PROJECT / "docs" / "quickstart.rst").read_text()
        (shown,) = re.findall(r"\n\n((?:   .+\n)*   vmq_events_sidecar\.grpc_port.+\n(?:   .+\n)*)", quickstart)
        self.assertIn("\n".join(f"     {line}" for line in shown.splitlines()), "\n".join(printed))

    def test_several_addresses_and_other_kinds(self):
        text = self.made("-c", self.file('mqhooks.sources.grpc.listen = ["tcp6:8893", "unix:/run/x", "tcp:0"]'))
        self.assertIn("grpc_endpoint = ::1", text)
        self.assertIn("VerneMQ cannot connect to it", text)
        self.assertIn("grpc_port = the port that the log names", text)

    def test_other_machines_only_if_allowed(self):
        for address in ("tcp:8893:interface=0.0.0.0", "tcp:8893:interface=10.0.0.1", "tcp6:8893:interface=\\\\:\\\\:"):
            path = self.file(f'mqhooks.sources.grpc.listen = "{address}"')
            line = self.made("-c", path)
            self.assertIn("mqhooks.sources.grpc.listen", line)
            self.assertIn("set mqhooks.sources.grpc.insecure = true, or listen on tcp:8893:interface=127.0.0.1", line)
            self.assertNotIn("\n", line)
            allowed = self.file(f'mqhooks.sources.grpc {{ listen = "{address}", insecure = true }}')
            self.assertIn("grpc_endpoint = the address of this machine", self.made("-c", allowed))

    def test_mistakes(self):
        for text, told in (
            ('listen = "nonsense"', "not a listening endpoint"),
            ("listen = 8893", "mqhooks.sources.grpc.listen"),
            ('listen = ""', "mqhooks.sources.grpc.listen"),
            ('listen = "tcp:99999"', "there is no port 99999"),
            ('insecure = "perhaps"', "mqhooks.sources.grpc.insecure"),
        ):
            line = self.made("-c", self.file(f"mqhooks.sources.grpc {{ {text} }}"))
            self.assertIn(told, line)
            self.assertNotIn("Traceback", line)
            self.assertEqual(line.count("\n"), 0, line)

    def test_without_the_library(self):
        for name in list(sys.modules):
            if name.startswith(("mqhooks.sources.grpc.", "h2")):
                self.patch_module(name)
        sys.modules["h2"] = None
        line = self.made("--grpc-port", "0", "--url", "http://h/")
        self.assertIn("gRPC needs h2, which is not installed: run pip install h2", line)
        self.assertNotIn("grpc", self.made("--url", "http://h/"))

    def patch_module(self, name):
        self.addCleanup(sys.modules.__setitem__, name, sys.modules.pop(name))

    def test_a_change_needs_a_restart(self):
        old = Settings()
        new, changes, fixed = merge(old, replace(old, sources=SourcesSettings(grpc=GrpcSettings(("tcp:1",)))))
        self.assertEqual((new.sources, changes, fixed), (old.sources, [], ["sources.grpc.listen"]))

    def test_the_interface(self):
        service = GrpcService(reactor, GrpcSettings(("tcp:0",)), GrpcFactory(reactor, StoringSink()))
        self.assertTrue(verifyObject(IEventSource, service))
        self.assertEqual((service.via, service.addresses), ("grpc", []))


class DocumentationTests(SynchronousTestCase):
    def test_every_status_is_told(self):
        text = (Path(__file__).parent.parent / "docs" / "delivery.rst").read_text()
        told = {int(number): name for number, name in re.findall(r"^   \* - (\d+) ``(\w+)``$", text, re.M)}
        self.assertEqual(told, {number: name for number, name in STATUSES.items() if number != CANCELLED})
