"""Sockets that systemd has opened: connections wait in them while mqhooks is restarted."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.describe import describe
from mqhooks.app.settings import Settings, SourcesSettings
from mqhooks.errors import ConfigError, ListenError
from mqhooks.sources.grpc.settings import GrpcSettings
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.support.listening import Listener, can_be_reached, is_local
from mqhooks.testing import RecordingSink, make_event
from tests.admin import Follower
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.processes import Twistd
from tests.vernemq import request
from tests.waiting import until

GONE = "systemd has passed no such socket; start the socket unit, and have its FileDescriptorName= and this agree"

LOOK = """
import fcntl, json, os, sys
count, given = int(sys.argv[1]), list(map(int, sys.argv[2].split(",")))
high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in given]
# Nothing of what was inherited is where systemd has passed nothing.
for number in given:
    os.close(number)
for number, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + number)
os.environ["LISTEN_PID"] = str(os.getpid())
from twisted.internet.protocol import Factory
from twisted.internet import reactor
from mqhooks.errors import MqhooksError
from mqhooks.support.listening import *
from mqhooks.support.listening import can_be_reached, same_place
def listened(description):
    try:
        return address_name(Listener(reactor, description).listen(Factory()).getHost())
    except MqhooksError as error:
        return str(error)
found = {}
for description in sys.argv[3:]:
    before = [is_local(description), can_be_reached(description), *interface_of(description)]
    found[description] = [before, listened(description)]
    assert before == [is_local(description), can_be_reached(description), *interface_of(description)], "as at a reload"
found["same"] = [[one, other] for one in sys.argv[3:] for other in sys.argv[3:] if one < other and same_place(one, other)]
print(json.dumps(found))
"""


def by_name(name, domain="INET"):
    return f"systemd:domain={domain}:name={name}"


class LookTests(SynchronousTestCase):
    """A process that systemd has passed sockets to."""

    def look(self, sockets, descriptions, *, more=0):
        numbers = [each.fileno() for each in sockets.values()]
        names = [*sockets, *(f"gone{number}" for number in range(more))]
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "LISTEN_FDS": str(len(names)),
            "LISTEN_FDNAMES": ":".join(names),
        }
        command = [sys.executable, "-c", LOOK, str(len(names)), ",".join(map(str, numbers)), *descriptions]
        done = subprocess.run(command, env=environ, pass_fds=numbers, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def listening(self, family, address):
        made = socket.socket(family, socket.SOCK_STREAM)
        self.addCleanup(made.close)
        made.bind(address)
        made.listen()
        return made

    def test_what_they_are(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = f"{directory.name}/s"
        loopback = self.listening(socket.AF_INET, ("127.0.0.1", 0))
        everywhere = self.listening(socket.AF_INET, ("0.0.0.0", 0))
        # systemd's ListenStream=8890 is one for both families.
        both = self.listening(socket.AF_INET6, ("::", 0))
        six = self.listening(socket.AF_INET6, ("::1", 0))
        unix = self.listening(socket.AF_UNIX, path)
        os.chmod(path, 0o600)
        before = os.stat(path)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound = socket.socket()
        for each in (datagrams, bound):
            self.addCleanup(each.close)
            each.bind(("127.0.0.1", 0))
        sockets = {
            "loopback": loopback,
            "everywhere": everywhere,
            "both": both,
            "six": six,
            "unix": unix,
            "datagrams": datagrams,
            "bound": bound,
        }
        names = [*map(by_name, (*sockets, "gone0", "other")), "systemd:index=0:domain=INET6"]
        found = self.look(sockets, names, more=1)
        port, other, third, fourth = (each.getsockname()[1] for each in (loopback, everywhere, both, six))
        self.assertEqual(found[by_name("loopback")], [[True, False, "tcp", "127.0.0.1", port], f"127.0.0.1:{port}"])
        self.assertEqual(found[by_name("everywhere")], [[False, True, "tcp", "0.0.0.0", other], f"0.0.0.0:{other}"])
        self.assertEqual(found[by_name("both")], [[False, True, "tcp6", "::", third], f"[::]:{third}"])
        self.assertEqual(found[by_name("six")], [[True, False, "tcp6", "::1", fourth], f"[::1]:{fourth}"])
        self.assertEqual(found["systemd:index=0:domain=INET6"], found[by_name("loopback")])
        for name in ("unix", "datagrams", "bound"):
            self.assertIn("is not a TCP socket that listens; the socket unit needs ListenStream=", found[by_name(name)][1])
        self.assertEqual(os.stat(path), before)
        for name in ("gone0", "other"):
            self.assertEqual(
                found[by_name(name)],
                [
                    [False, False, "systemd", "", None],
                    f"cannot listen on {by_name(name)}: {GONE}",
                ],
            )
        same = {frozenset(pair) for pair in found["same"]}
        self.assertEqual(same, {frozenset((by_name("loopback"), "systemd:index=0:domain=INET6"))})


class NothingPassedTests(SynchronousTestCase):
    """``--check`` runs where systemd passes no sockets."""

    def test_check_takes_what_is_well_formed(self):
        sources = SourcesSettings(
            webhooks=WebhooksSettings(listen=(by_name("webhooks"),)), grpc=GrpcSettings((by_name("grpc", "INET6"),))
        )
        settings = Settings(sources=sources, admin=AdminSettings(by_name("admin")))
        sidecar = "systemd:domain=INET:index=0"
        build(settings, MemoryReactorClock(), sidecars=[sidecar], sinks=[RecordingSink()])
        lines = describe(settings, [sidecar], ["log:path=x"])
        self.assertIn(f"listen  {by_name('webhooks')}, for vmq_webhooks", lines)
        self.assertIn("vmq_events_sidecar.grpc_endpoint = the address of this machine", lines)
        self.assertIn("vmq_events_sidecar.grpc_port = that of the socket unit", lines)
        self.assertIn("endpoint = http://HOST:PORT/vernemq", lines)

    def test_form(self):
        for description in (
            "systemd:",
            "systemd:INET:0",
            "systemd:domain=INET",
            "systemd:domain=INET:index=-1",
            "systemd:domain=INET:index=one",
            "systemd:domain=INET:name=",
            "systemd:domain=INET:index=0:name=x",
            "systemd:domain=inet:index=0",
            "systemd:domain=UNIX:index=0",
            "systemd:domain=INET:index=0:index=1",
            "systemd:domain=INET:index=0:backlog=5",
        ):
            error = self.assertRaises(ConfigError, Listener, MemoryReactorClock(), description)
            self.assertIn(f"{description}: not a listening endpoint; write it like systemd:domain=INET:name=NAME", str(error))
            self.assertFalse(is_local(description))
            self.assertFalse(can_be_reached(description))

    def test_nothing_is_listened_on(self):
        service = build(Settings(), MemoryReactorClock(), sidecars=[by_name("sidecar")], sinks=[RecordingSink()])
        error = self.assertRaises(SystemExit, service.privilegedStartService)
        self.assertIn("systemd has passed no such socket", str(error))
        self.assertRaises(ListenError, Listener(MemoryReactorClock(), by_name("x")).listen, None)

    def test_two_want_the_same(self):
        settings = Settings(sources=SourcesSettings(webhooks=WebhooksSettings(listen=(by_name("mqhooks"),))))
        for place in (by_name("mqhooks"), "unix:/run/mqhooks/s"):
            two = Settings(sources=SourcesSettings(webhooks=WebhooksSettings(listen=(place,))), admin=AdminSettings(place))
            error = self.assertRaises(ConfigError, build, two, MemoryReactorClock(), sinks=[RecordingSink()])
            self.assertIn(f"{place}: mqhooks.admin.listen already uses this port", str(error))
        build(settings, MemoryReactorClock(), sinks=[RecordingSink()])


class RestartTests(TestCase):
    timeout = 120

    def start(self):
        return Twistd(self, "mqhooks", "--config", str(self.config), sockets=self.sockets)

    async def connect(self, name):
        host, port = self.sockets[name].getsockname()[:2]
        follower = await connectProtocol(HostnameEndpoint(reactor, host, port), Follower())
        self.addCleanup(follower.transport.abortConnection)
        return follower

    async def stop(self, twistd):
        twistd.process.signalProcess("TERM")
        self.assertEqual((await twistd.ended).signal, signal.SIGTERM)

    async def test_connections_wait(self):
        self.sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("sidecar", "webhooks", "grpc", "admin")}
        for each in self.sockets.values():
            self.addCleanup(each.close)
        endpoint = Endpoint()
        url = endpoint.listen(self, reactor)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        self.config = folder / "nanomq.conf"
        listen = {name: f'listen = "{by_name(name)}"' for name in self.sockets}
        self.config.write_text(
            f'webhook {{ url = "{url}", events = [{{ event = on_publish }}] }}\n'
            f"mqhooks {{ sources {{ sidecar {{ {listen['sidecar']} }}, webhooks {{ {listen['webhooks']} }}, "
            f'grpc {{ {listen["grpc"]} }} }}, admin {{ {listen["admin"]} }}, outbox.path = "{folder / "outbox"}" }}\n'
        )
        twistd = self.start()
        await twistd.until(r"listening for VerneMQ on 127\.0\.0\.1")
        # A reload looks again at who can connect.
        twistd.process.signalProcess("HUP")
        await twistd.until("configuration reloaded: nothing changed")
        await self.stop(twistd)

        frames = await self.connect("sidecar")
        frames.transport.write(framed(envelope(make_event("on_publish", client_id="frame").message)))
        posts = await self.connect("webhooks")
        posts.transport.write(request("on_publish", client_id="post"))
        calls = await self.connect("grpc")
        calls.transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        page = await self.connect("admin")
        page.transport.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertEqual([each.buffer for each in (posts, calls, page)], [b"", b"", b""])

        twistd = self.start()
        await until(lambda: len(endpoint.requests) == 2)
        clients = {json.loads(each.body)["client_id"] for each in endpoint.requests}
        self.assertEqual(clients, {"frame", "post"})
        await until(lambda: posts.buffer.startswith(b"HTTP/1.1 200 ") and page.buffer.startswith(b"HTTP/1.1 200 "))
        await until(lambda: calls.buffer[3:4] == b"\4")
        await self.stop(twistd)

    async def test_others_can_connect(self):
        everywhere = socket.create_server(("", 0))
        self.addCleanup(everywhere.close)
        self.sockets = {"webhooks": everywhere}
        self.config = Path(self.mktemp()).absolute()
        self.config.write_text(
            'webhook { url = "http://127.0.0.1:9/", events = [{ event = on_publish }] }\n'
            f'mqhooks {{ outbox.kind = memory, sources.webhooks.listen = "{by_name("webhooks")}", admin.listen = off }}'
        )
        twistd = self.start()
        self.assertEqual((await twistd.ended).exitCode, 1)
        self.assertRegex(
            twistd.stderr,
            r"^mqhooks: .*: mqhooks\.sources\.webhooks\.listen: other machines can reach .*"
            r", and anybody could post events.*\n$",
        )
