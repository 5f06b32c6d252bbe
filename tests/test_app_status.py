"""``mqhooks status``: the verdict on a bridge that runs, in the terminal."""

import json
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.admin.settings import AdminSettings
from mqhooks.admin.verdict import judge
from mqhooks.app.statusview import StatusReply, shown
from mqhooks.errors import OutboxNoRoom
from tests.admin import ANYWHERE, TOKEN, AdminCase
from tests.endpoints import Endpoint
from tests.processes import Mqhooks
from tests.test_project_docs import shown as example
from tests.waiting import until


class Dripping(Protocol):
    """Answers with a byte now and then, for ever."""

    def connectionMade(self):
        self.transport.write(b"H")
        self.later = reactor.callLater(0.02, self.connectionMade)

    def connectionLost(self, reason):
        self.later.cancel()
        self.factory.lost += 1


class StatusTests(AdminCase):
    async def status(self, *words, url=None, environment=()):
        """Run the command; gives its exit status, its lines, and what it told on standard error."""
        there = ["--url", url or self.origin] if url != "" else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **dict(environment)}
        command = ["-m", "mqhooks", "status", *there, *words]
        stdout, stderr, code = await getProcessOutputAndValue(sys.executable, command, env=environment)
        self.assertNotIn(b"Traceback", stderr)
        return code, stdout.decode().splitlines(), stderr.decode()

    async def refused_verdict(self, *words, **more):
        """Run the command where there is no verdict; gives the line."""
        code, lines, told = await self.status(*words, **more)
        self.assertEqual((code, lines, told.count("\n")), (2, [], 1), told)
        return told

    async def test_well_and_in_trouble(self):
        await self.start("billing", "audit")
        self.publish(3)
        await until(lambda: len(self.endpoint.requests) >= 6)
        code, lines, told = await self.status()
        self.assertEqual((code, told), (0, ""), lines)
        self.assertIn("All is well: mqhooks ", lines[0])
        self.assertRegex(lines[1], r"source  sidecar on 127\.0\.0\.1:\d+: 1 connection, 3 events")
        self.assertRegex("\n".join(lines), r"billing +up +0 +- +3 +0\n")
        self.endpoint.answer = lambda request: request.connection.reply(503)
        # An endpoint is down when this many clients' deliveries fail.
        self.publish(12)
        await until(lambda: all(sink.down_since for sink in self.sinks))
        code, lines, told = await self.status()
        self.assertEqual((code, told), (1, ""))
        self.assertIn("billing is failing, audit is failing: mqhooks", lines[0])
        self.assertRegex("\n".join(lines), r"billing +down +12 +\d+ s +3 +0\n")
        self.assertIn("answered 503", lines[-1])
        # A container that is ready is not to be restarted because of its endpoint.
        code, lines, _ = await self.status("--ready")
        self.assertEqual((code, lines[-1]), (0, "ready: events can be received and kept, and no endpoint refuses everything"))
        code, (line,), _ = await self.status("--json")
        whole = json.loads(line)
        self.assertEqual((code, whole["verdict"]["level"], whole["ready"]["status"]), (1, "bad", "ready"))
        self.assertEqual([webhook["name"] for webhook in whole["status"]["webhooks"]], ["billing", "audit"])

    async def test_not_ready_while_an_endpoint_refuses_everything(self):
        await self.start(answer=lambda request: request.connection.reply(401))
        self.publish(30)
        await until(lambda: self.sinks[0].refusing)
        code, lines, _ = await self.status("--ready")
        self.assertEqual(code, 1)
        self.assertRegex(lines[-1], "^not ready: webhook billing: the endpoint refuses everything: .* answered 401$")

    async def test_not_ready(self):
        await self.start()
        self.faults.always = OutboxNoRoom("disk full")
        self.publish()
        await until(lambda: self.store.failing)
        code, lines, _ = await self.status("--ready")
        self.assertEqual(code, 1)
        self.assertIn("The outbox cannot be written: mqhooks", lines[0])
        self.assertIn("not ready: outbox: cannot be written", lines[-1])

    async def test_with_a_token(self):
        await self.start(admin=AdminSettings(ANYWHERE, TOKEN))
        told = f"mqhooks: {self.origin}: the token is missing or wrong: give --config, or --token-file\n"
        self.assertEqual(await self.refused_verdict(), told)
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        (folder / "token").write_text(f"{TOKEN}\n")
        (folder / "bad").write_text("two words")
        (folder / "a.conf").write_text(
            f'webhook.secret = ${{MQHOOKS_UNSET}}\nmqhooks.admin {{ listen = "tcp:{self.port}", token = {TOKEN} }}'
        )
        self.assertEqual((await self.status("--token-file", str(folder / "token")))[0], 0)
        self.assertEqual((await self.status(environment={"MQHOOKS_ADMIN_TOKEN": TOKEN}.items()))[0], 0)
        self.assertEqual((await self.status("--config", str(folder / "a.conf"), url=""))[0], 0)
        told = await self.refused_verdict("--token-file", str(folder / "bad"))
        self.assertNotIn("two words", told)

    async def test_where_it_cannot_ask(self):
        await self.start()
        off, free = Path(self.mktemp()), Path(self.mktemp())
        off.write_text("mqhooks.admin.listen = off")
        free.write_text('mqhooks.admin.listen = "tcp:0"')
        for words, url, problem in (
            ([], "http://127.0.0.1:1", "http://127.0.0.1:1: Connection refused: is mqhooks running there?"),
            ([], "nonsense", "--url: 'nonsense' is not an address like http://127.0.0.1:8891"),
            (["--token-file=/nowhere"], None, "--token-file: /nowhere cannot be read: No such file or directory"),
            (["--config=/nowhere.conf"], "", "/nowhere.conf: cannot be read: No such file or directory"),
            (
                ["--config", off],
                "",
                f"{off}: mqhooks.admin.listen: is off, so there is no API to ask: set it to an address like",
            ),
            (["--config", free], "", f"{free}: mqhooks.admin.listen: tcp:0 has no fixed port: also give --url"),
            (["--cacertfile=/dev/null"], "https://localhost:1", "--cacertfile: /dev/null cannot be used: "),
        ):
            self.assertIn(problem, await self.refused_verdict(*words, url=url))

    async def test_an_address_that_is_given_goes_before_the_configuration(self):
        await self.start()
        for listen in ("off", '"tcp:0"', "${NOBODY_SETS_THIS}"):
            path = Path(self.mktemp())
            path.write_text(f"mqhooks.admin.listen = {listen}")
            problem = await self.refused_verdict("--config", path, url="http://127.0.0.1:1")
            self.assertIn("http://127.0.0.1:1: Connection refused", problem)

    async def test_what_hangs_is_given_up(self):
        for protocol in (Protocol, Dripping):
            factory = Factory.forProtocol(protocol)
            factory.lost = 0
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            self.addCleanup(port.stopListening)
            url = f"http://127.0.0.1:{port.getHost().port}"
            self.assertIn(f"{url}: no answer within 0.5 s", await self.refused_verdict("--timeout=0.5", url=url))

    async def test_watching_leaves_nothing_behind_at_what_hangs(self):
        factory = Factory.forProtocol(Dripping)
        factory.lost = 0
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}"
        watcher = Mqhooks(self, "status", "--watch=0.05", "--timeout=1", "--url", url)
        await until(lambda: factory.lost >= 2)
        self.assertTrue(watcher.process.pid)

    async def test_another_program_is_no_bridge(self):
        endpoint = Endpoint(lambda request: request.connection.reply(200, b'{"status": "ok"}'))
        url = re.match(r"http://[^/]+", endpoint.listen(self, reactor))[0]
        self.assertIn("the answer is not from mqhooks", await self.refused_verdict(url=url))

    async def test_over_a_socket_in_the_file_system(self):
        # The path of a socket has a hundred characters at most.
        folder = TemporaryDirectory(prefix="mqhooks-")
        self.addCleanup(folder.cleanup)
        socket = f"{folder.name}/socket"
        config = Path(folder.name) / "a.conf"
        config.write_text(f'mqhooks.admin.listen = "unix:{socket}:mode=600"')
        bridge = Mqhooks(self, "run", "--config", str(config), "--sidecar-port=0", "--sink=log:path=events")
        await until(lambda: os.path.exists(socket))
        code, lines, told = await self.status("--ready", "--config", str(config), url="")
        self.assertEqual((code, told), (0, ""))
        self.assertIn("VerneMQ is not connected", lines[0])
        bridge.process.signalProcess("TERM")
        await bridge.ended

    async def test_watching_survives_a_restart(self):
        await self.start()
        watcher = Mqhooks(self, "status", "--watch=0.05", "--url", self.origin)
        await watcher.until("All is well.*\n(?s:.*)All is well")
        await self.service.stopService()
        await watcher.until("mqhooks: http://127.*Connection refused")
        watcher.process.signalProcess("INT")
        self.assertEqual((await watcher.ended).exitCode, 130)
        self.assertNotIn("Traceback", watcher.stderr)


class VerdictTests(SynchronousTestCase):
    def setUp(self):
        self.plain = json.loads("\n".join(example("api-http.rst", "api-status")))

    def test_names_are_made_fit_for_a_terminal(self):
        self.plain["webhooks"][0]["name"] = "a\x1b[2Jb"
        self.plain["verdict"] = judge(self.plain)
        lines = list(shown(msgspec.convert(self.plain, StatusReply)))
        self.assertIn("a\\x1b[2Jb is failing", lines[0])
        self.assertNotIn("\x1b", "\n".join(lines))
