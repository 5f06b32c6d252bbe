"""What systemd is told: a datagram socket in its place."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.admin.bridge import Bridge
from mqhooks.app.supervisor import EVERY, PATIENCE, Supervisor
from tests.processes import Twistd
from tests.waiting import until

CONFIG = """
webhook { url = "http://127.0.0.1:9/", events = [{ event = on_message_publish }] }
mqhooks { outbox { path = outbox } }
"""


@dataclass
class Engine:
    """An outbox on other machines."""

    failing: str | None = None


class Systemd:
    """Keeps what it is told."""

    def __init__(self, case, *, abstract=False):
        self.told = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        case.addCleanup(self.socket.close)
        self.socket.setblocking(False)
        if abstract:
            # The kernel chooses the name.
            self.socket.bind("")
            self.place = f"@{self.socket.getsockname()[1:].decode()}"
            return
        # A socket's path is short.
        directory = tempfile.TemporaryDirectory()
        case.addCleanup(directory.cleanup)
        self.place = str(Path(directory.name, "notify"))
        self.socket.bind(self.place)

    def read(self):
        """Read what has come; gives all that was told since the last time, by datagram."""
        datagrams = []
        while True:
            try:
                data = self.socket.recv(4096)
            except BlockingIOError:
                return datagrams
            datagrams.append(dict(line.split("=", 1) for line in data.decode().split("\n")))

    def heard(self, name):
        """The first datagram with this name, of those that came since the last one found; ``None`` as long as there is none."""
        self.told += self.read()
        for number, datagram in enumerate(self.told):
            if name in datagram:
                del self.told[: number + 1]
                return datagram
        return None


class ProcessTests(TestCase):
    timeout = 120

    def start(self, place, *, watchdog="400000"):
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        self.config = folder / "nanomq.conf"
        self.config.write_text(CONFIG)
        environment = {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": watchdog}
        return Twistd(
            self, "mqhooks", "--sidecar-port", "0", "--admin-port", "0", "--config", str(self.config), environment=environment
        )

    async def test_start_reload_and_stop(self):
        systemd = Systemd(self)
        twistd = self.start(systemd.place)
        ready = await until(lambda: systemd.heard("READY"))
        self.assertRegex(ready["STATUS"], r"^listening on 127\.0\.0\.1:\d+; 0 pending$")
        port = int(ready["STATUS"].partition(";")[0].rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        self.assertTrue((twistd.directory / "outbox").exists())
        self.assertEqual(await until(lambda: systemd.heard("WATCHDOG")), {"WATCHDOG": "1"})

        twistd.process.signalProcess("HUP")
        reloading = await until(lambda: systemd.heard("RELOADING"))
        self.assertEqual(reloading["RELOADING"], "1")
        self.assertGreater(int(reloading["MONOTONIC_USEC"]), 0)
        self.assertEqual((await until(lambda: systemd.heard("READY")))["STATUS"], ready["STATUS"])

        self.config.write_text("webhook { nonsense")
        twistd.process.signalProcess("HUP")
        await until(lambda: systemd.heard("RELOADING"))
        failed = await until(lambda: systemd.heard("READY"))
        self.assertEqual(failed["STATUS"], f"{ready['STATUS']}; the last reload failed: the log says why")

        self.config.write_text(CONFIG)
        twistd.process.signalProcess("HUP")
        await until(lambda: systemd.heard("RELOADING"))
        self.assertEqual((await until(lambda: systemd.heard("READY")))["STATUS"], ready["STATUS"])

        twistd.process.signalProcess("TERM")
        self.assertEqual((await until(lambda: systemd.heard("STOPPING")))["STOPPING"], "1")
        ended = await twistd.ended
        self.assertEqual(ended.signal, signal.SIGTERM)
        self.assertIsNone(systemd.heard("READY"))

    async def test_abstract_socket(self):
        systemd = Systemd(self, abstract=True)
        self.start(systemd.place)
        self.assertEqual((await until(lambda: systemd.heard("READY")))["READY"], "1")

    async def test_a_start_that_fails_is_not_ready(self):
        systemd = Systemd(self)
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        environment = {"NOTIFY_SOCKET": systemd.place}
        port = str(taken.getsockname()[1])
        twistd = Twistd(self, "mqhooks", "--sidecar-port", port, "--admin-port", "0", environment=environment)
        ended = await twistd.ended
        self.assertEqual(ended.exitCode, 1)
        self.assertIn("Address already in use", twistd.stderr)
        self.assertEqual(systemd.read(), [])

    async def test_nobody_listens(self):
        twistd = self.start("/nowhere/notify")
        await twistd.until(r"cannot notify the supervisor on /nowhere/notify.*: No such file or directory")
        await twistd.until("listening for VerneMQ")
        twistd.process.signalProcess("TERM")
        ended = await twistd.ended
        self.assertEqual(ended.signal, signal.SIGTERM)
        self.assertEqual(twistd.stdout.count("cannot notify the supervisor"), 1)
        self.assertNotIn("Traceback", twistd.stdout + twistd.stderr)


class ImportTests(SynchronousTestCase):
    def loaded(self, **environment):
        program = (
            "import sys; from mqhooks.app.build import build; from mqhooks.app.settings import Settings; "
            "from mqhooks.testing import RecordingSink; from twisted.internet import reactor; "
            "built = build(Settings(), reactor, sinks=[RecordingSink()]); "
            "print(built.supervisor is not None, 'mqhooks.app.supervisor' in sys.modules)"
        )
        environ = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        path = os.pathsep.join(path for path in sys.path if path)
        environ |= {"PYTHONPATH": path, **environment}
        return subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True).stdout

    def test_only_when_somebody_asks(self):
        self.assertEqual(self.loaded(), "False False\n")
        self.assertEqual(self.loaded(NOTIFY_SOCKET=""), "False False\n")
        self.assertEqual(self.loaded(NOTIFY_SOCKET="/run/systemd/notify"), "True True\n")


class SupervisorTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.systemd = Systemd(self)
        self.engine = Engine()

    def make(self, **environ):
        bridge = Bridge(None, [], [], None, engine=self.engine)
        supervisor = Supervisor(self.clock, bridge, {"NOTIFY_SOCKET": self.systemd.place, **environ})
        supervisor.startService()
        self.addCleanup(supervisor.stopService)
        return supervisor

    def told(self):
        return [name for datagram in self.systemd.read() for name in datagram if name != "STATUS"]

    def test_ready_once_the_reactor_runs(self):
        supervisor = self.make()
        self.clock.advance(100)
        supervisor.started()
        self.assertEqual(self.told(), [])
        self.clock.advance(0)
        self.assertEqual(self.told(), ["READY"])
        self.clock.advance(EVERY)
        self.assertEqual(self.systemd.read(), [])

    def test_ready_once_the_outbox_is_connected(self):
        supervisor = self.make()
        self.engine.failing = "not connected\nto NATS"
        supervisor.started()
        self.clock.advance(EVERY)
        (waiting,) = self.systemd.read()
        self.assertEqual(waiting, {"STATUS": "the outbox cannot be written: not connected to NATS"})
        supervisor.reloading()
        supervisor.reloaded(well=True)
        self.assertEqual(self.told(), [])
        self.engine.failing = None
        self.clock.advance(EVERY)
        self.assertEqual(self.told(), ["READY"])

    def test_does_not_wait_for_ever(self):
        supervisor = self.make()
        self.engine.failing = "not connected to NATS"
        supervisor.started()
        self.clock.pump([EVERY] * int(PATIENCE / EVERY - 1))
        self.assertEqual(self.told(), [])
        self.clock.advance(2 * EVERY)
        self.assertEqual(self.told(), ["READY"])

    def test_watchdog_hears_of_it_twice_in_its_time_until_all_has_stopped(self):
        supervisor = self.make(WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
        self.clock.advance(1.4)
        self.assertEqual(self.told(), [])
        self.clock.advance(0.2)
        self.assertEqual(self.told(), ["WATCHDOG"])
        supervisor.stopping()
        self.assertEqual(self.told(), ["STOPPING"])
        self.clock.advance(1.5)
        self.assertEqual(self.told(), ["WATCHDOG"])
        supervisor.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_watchdog(self):
        for environ in ({}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}):
            self.make(**environ)
        wrong = ("30 s", "9" * 400)
        with capturedLogs() as logged:
            for text in wrong:
                self.make(WATCHDOG_USEC=text)
        self.assertEqual(
            [formatEvent(event) for event in logged],
            [f"WATCHDOG_USEC is '{text}', not a number of microseconds: watchdog notifications are off" for text in wrong],
        )
        self.clock.advance(100)
        self.assertEqual(self.told(), [])

    def test_nothing_but_the_stop_is_told_while_stopping(self):
        supervisor = self.make()
        supervisor.started()
        supervisor.stopping()
        self.clock.advance(EVERY)
        supervisor.reloading()
        supervisor.reloaded(well=False)
        self.assertEqual(self.told(), ["STOPPING"])

    def test_what_does_not_arrive_is_told_again(self):
        supervisor = self.make()
        supervisor.started()
        self.clock.advance(0)
        with capturedLogs() as logged:
            # Nobody reads: the kernel keeps a dozen or some hundreds.
            for _ in range(2000):
                supervisor.reloading()
                supervisor.reloaded(well=True)
        (warning,) = logged
        self.assertIn("Resource temporarily unavailable", formatEvent(warning))
        self.systemd.read()
        self.clock.advance(EVERY)
        self.assertEqual(self.told(), ["READY"])

    def test_places_that_cannot_be(self):
        for place in ("relative/notify", f"/{'x' * 200}", "vsock:2:1234", "/a\0b"):
            self.systemd.place = place
            supervisor = self.make()
            with capturedLogs() as logged:
                supervisor.started()
                self.clock.advance(EVERY)
                supervisor.stopping()
            self.assertEqual(len(logged), 1, place)
            self.assertIn("which NOTIFY_SOCKET names", formatEvent(logged[0]))

    def test_starts_again_after_a_stop(self):
        supervisor = self.make()
        for _ in range(2):
            supervisor.started()
            self.clock.advance(0)
            supervisor.stopping()
            supervisor.stopService()
            self.assertEqual(self.told(), ["READY", "STOPPING"])
            supervisor.startService()
