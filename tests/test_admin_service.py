"""Where the status page is, and whether it is at all."""

import builtins
import re
import socket
from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent

from mqhooks.admin import server, site
from mqhooks.admin.bridge import Bridge
from mqhooks.admin.history import STEP
from mqhooks.admin.server import AdminService
from mqhooks.admin.settings import ADMIN_LISTEN, AdminSettings
from mqhooks.app.configuration import load
from mqhooks.app.settings import Settings
from mqhooks.app.tap import Options, makeService
from mqhooks.errors import ConfigError, ListenError
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.testing import RecordingSink
from tests.admin import ANYWHERE, TOKEN, AdminCase
from tests.processes import Twistd
from tests.waiting import until


class SettingsTests(SynchronousTestCase):
    def load(self, text):
        path = Path(self.mktemp())
        path.write_text(text, encoding="utf-8")
        return load(str(path)).admin

    def test_what_can_be_said(self):
        self.assertEqual(self.load(""), AdminSettings(None, None, ()))
        text = (
            f'mqhooks.admin {{ listen = "tcp:1:interface=0.0.0.0", token = "{TOKEN}", hosts = [Mqhooks.example, "10.0.0.1"] }}'
        )
        expected = AdminSettings("tcp:1:interface=0.0.0.0", TOKEN, ("mqhooks.example", "10.0.0.1"))
        self.assertEqual(self.load(text), expected)
        self.assertEqual(self.load("mqhooks.admin.listen = off").listen, "off")
        self.assertNotIn(TOKEN, repr(expected))

    def test_hosts_are_written_as_they_are_asked_for(self):
        text = 'mqhooks.admin.hosts = ["Mqhooks.example.", "FD00:0::1", "[fd00::2]", a_b-c, "10.0.0.1"]'
        self.assertEqual(self.load(text).hosts, ("mqhooks.example", "fd00::1", "fd00::2", "a_b-c", "10.0.0.1"))

    def test_hosts_that_never_match(self):
        for host in ("mqhooks.example:8891", "10.0.0.1:80", "[fd00::1]:8891"):
            error = self.assertRaises(ConfigError, self.load, f'mqhooks.admin.hosts = ["{host}"]')
            self.assertEqual(error.message, f"'{host}' has a port: leave it out, since any port is accepted")
        for host in (".", "http://x/", "a b", "a:b", "*", "[x]", "é.example"):
            error = self.assertRaises(ConfigError, self.load, f'mqhooks.admin.hosts = ["{host}"]')
            self.assertEqual(error.message, f"'{host}' is not a host name, like mqhooks.example")

    def test_what_is_wrong(self):
        for line, key in (
            ("token = short", "token"),
            ('token = "has spaces in its middle"', "token"),
            ('token = "äöüäöüäöüäöüäöüäöü"', "token"),
            ("token = 123456789012345", "token"),
            ("hosts = [{}]", "hosts"),
            ('hosts = "http://x/"', "hosts"),
            ("listen = []", "listen"),
            ('listen = ""', "listen"),
        ):
            error = self.assertRaises(ConfigError, self.load, f"mqhooks.admin {{ {line} }}")
            self.assertEqual(error.key, f"mqhooks.admin.{key}")
            self.assertNotIn("spaces in its middle", str(error))


class StartTests(SynchronousTestCase):
    def make(self, *args, text=None):
        if text is not None:
            path = Path(self.mktemp())
            path.write_text(text + '\nwebhook { url = "http://h/", events = [] }', encoding="utf-8")
            args = ("--config", str(path), *args)
        options = Options()
        options.parseOptions([*args, "--check"])
        printed = []
        self.patch(builtins, "print", printed.append)
        try:
            makeService(options)
        except SystemExit as exit_:
            if exit_.code:
                raise
        found = re.search(r"^page +([^,\s]+)", printed[0], re.M)
        return found[1].removesuffix(":backlog=1024").removesuffix(":interface=127.0.0.1") if found else None

    def test_where_it_is(self):
        self.assertEqual(self.make(), ADMIN_LISTEN)
        self.assertEqual(self.make("--admin-port", "1"), "tcp:1")
        self.assertEqual(self.make(text='mqhooks.admin.listen = "tcp:2"'), "tcp:2")
        self.assertEqual(self.make("--admin-port", "1", text='mqhooks.admin.listen = "tcp:2"'), "tcp:1")
        self.assertIsNone(self.make("--admin-port", "0"))
        self.assertIsNone(self.make(text="mqhooks.admin.listen = off"))
        self.assertEqual(self.make("--admin-port", "1", text="mqhooks.admin.listen = off"), "tcp:1")

    def test_what_others_reach_needs_a_token(self):
        text = 'mqhooks.admin { listen = "tcp:8891:interface=0.0.0.0" }'
        exit_ = self.assertRaises(SystemExit, self.make, text=text)
        self.assertRegex(exit_.code, r"^mqhooks: .+: mqhooks\.admin\.listen: .+ set mqhooks\.admin\.token, or listen on .+$")
        self.assertNotIn("\n", exit_.code)
        self.assertEqual(self.make(text=f'{text}\nmqhooks.admin.token = "{TOKEN}"'), "tcp:8891:interface=0.0.0.0")

    def test_what_is_no_endpoint(self):
        exit_ = self.assertRaises(SystemExit, self.make, text="mqhooks.admin.listen = nonsense")
        self.assertIn("mqhooks.admin.listen: nonsense: not a listening endpoint", exit_.code)


class ListenTests(AdminCase):
    async def test_stopping_closes_connections(self):
        await self.start()
        self.assertEqual(await self.json("/healthz"), {"status": "ok"})
        follower = await self.follow("/healthz")
        await until(lambda: follower.buffer)
        await self.admin.stopService()
        await follower.closed
        self.assertIsNone(self.admin.address)

    def test_samples_are_taken_while_it_runs(self):
        clock = MemoryReactorClock()
        service = AdminService(clock, bridge_of(clock), AdminSettings("tcp:8891:interface=127.0.0.1"))
        service.startService()
        for _ in range(3):
            (call,) = clock.getDelayedCalls()
            self.assertEqual(call.getTime() - clock.seconds(), STEP)
            clock.advance(STEP)
        service.stopService()
        self.assertEqual(clock.getDelayedCalls(), [])

    async def test_connections_are_limited(self):
        self.patch(site, "CONNECTIONS", 2)
        await self.start()
        followers = [await self.follow("/api/stream") for _ in range(2)]
        for follower in followers:
            await until(lambda follower=follower: follower.heard("status"))
        refused = await self.follow("/healthz")
        await refused.closed
        self.assertEqual(refused.buffer, b"")
        followers[0].transport.loseConnection()

        async def answered():
            follower = await self.follow("/healthz")
            await until(lambda: follower.buffer or follower.closed.called)
            return follower.buffer

        await until(answered)

    def test_only_the_usual_address_may_be_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"tcp:{taken.getsockname()[1]}"
            self.patch(server, "ADMIN_LISTEN", address)
            service = AdminService(reactor, bridge_of(reactor), AdminSettings())
            with capturedLogs() as logged:
                service.startService()
            self.addCleanup(service.stopService)
            self.assertIsNone(service.address)
            self.assertIn("continuing without the status page", formatEvent(logged[0]))
            asked_for = AdminService(reactor, bridge_of(reactor), AdminSettings(address))
            self.assertRaises(ListenError, asked_for.startService)


def bridge_of(clock):
    sidecar = SidecarFactory(clock, RecordingSink())
    return Bridge(Settings(), [SidecarService(clock, [], sidecar)], [], None)


class ProcessTests(TestCase):
    timeout = 300

    async def test_a_process_of_its_own(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir(parents=True)
        path = directory / "mqhooks.conf"
        path.write_text(f'mqhooks.admin.listen = "{ANYWHERE}"\nmqhooks.outbox.path = "{directory / "outbox"}"')
        bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--config", str(path), "--url", "http://127.0.0.1:1/")
        match = await bridge.until(r"the status page is on 127\.0\.0\.1:(\d+)")
        answer = await treq.get(f"http://127.0.0.1:{match[1]}/readyz", agent=Agent(reactor), reactor=reactor)
        self.assertEqual(answer.code, 200)
        self.assertEqual((await treq.json_content(answer))["status"], "ready")
        bridge.process.signalProcess("TERM")
        await bridge.ended
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)

    async def test_a_taken_port_that_was_asked_for_ends_the_start(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--admin-port", str(port))
            reason = await bridge.ended
        self.assertEqual(reason.exitCode, 1)
        lines = [line for line in (bridge.stdout + bridge.stderr).splitlines() if "#error" in line]
        self.assertEqual(len(lines), 1)
        self.assertIn(f"mqhooks: cannot listen on tcp:{port}: Address already in use", lines[0])
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)

    async def test_without_the_usual_port_it_goes_on(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            usual = f"tcp:{taken.getsockname()[1]}"
            before = f"import mqhooks.admin.settings; mqhooks.admin.settings.ADMIN_LISTEN = {usual!r}"
            bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", before=before)
            await bridge.until(r"listening for VerneMQ on", anywhere=True)
        lines = [line for line in (bridge.stdout + bridge.stderr).splitlines() if "#warn" in line]
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(f"cannot listen on {usual}: Address already in use", lines[0])
        self.assertIn("continuing without the status page", lines[0])
