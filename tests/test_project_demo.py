"""
The demo, as a process.
"""

import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

reactor: Any = installed_reactor


class Demo(ProcessProtocol):
    """A process, what it wrote, and something to do once it has written enough."""

    transport: Any

    def __init__(self, enough: Callable[[str], bool], then: Callable[["Demo"], None]) -> None:
        self.output = self.errors = ""
        self.ended: Deferred[int] = Deferred()
        self._enough = enough
        self._then: Callable[[Demo], None] | None = then

    def outReceived(self, data: bytes) -> None:
        self.output += data.decode()
        if self._then is not None and self._enough(self.output):
            then, self._then = self._then, None
            then(self)

    def errReceived(self, data: bytes) -> None:
        self.errors += data.decode()

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        value: Any = reason.value
        self.ended.callback(value.exitCode)


def webhooks(output: str) -> list[str]:
    return re.findall(r"^\d\d:\d\d:\d\d\.\d{3} POST /hook 200 .+$", output, re.M)


class DemoTests(TestCase):
    def start(self, then: Callable[[Demo], None], code: str = "", *args: str, path: str | None = None) -> Demo:
        demo = Demo(lambda output: len(webhooks(output)) >= 3, then)
        what = ["-c", code] if code else ["-m", "mqhooks.tools.demo", *args]
        reactor.spawnProcess(demo, sys.executable, [sys.executable, *what], env=None, path=path)
        self.addCleanup(self.kill, demo)
        return demo

    def kill(self, demo: Demo) -> Deferred[int] | None:
        if demo.ended.called:
            return None
        demo.transport.signalProcess("KILL")
        return demo.ended

    def assert_nothing_listens(self, output: str) -> None:
        ports = {int(port) for port in re.findall(r"(?:-port |:)(\d{4,5})\b", output)}
        self.assertEqual(len(ports), 3)
        for port in ports:
            with socket.socket() as client:
                self.assertNotEqual(client.connect_ex(("127.0.0.1", port)), 0)

    async def test_shows_webhooks_until_a_signal(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            demo = self.start(lambda demo, number=number: demo.transport.signalProcess(number))
            self.assertEqual(await demo.ended, 0, demo.output + demo.errors)
            found = re.search(r"sent (\d+) events, the endpoint received (\d+) webhooks", demo.output)
            assert found is not None
            self.assertGreater(int(found[1]), 0)
            self.assertEqual(int(found[2]), len(webhooks(demo.output)))
            self.assertEqual(demo.errors, "")
            self.assert_nothing_listens(demo.output)

    async def test_two_side_by_side_leave_nothing_behind(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        demos: list[Demo] = []

        def both_have_shown_some(_: Demo) -> None:
            if len(demos) == 2 and all(len(webhooks(demo.output)) >= 3 for demo in demos):
                for demo in demos:
                    demo.transport.signalProcess("TERM")

        demos += [self.start(both_have_shown_some, path=str(directory)) for _ in range(2)]
        for demo in demos:
            self.assertEqual(await demo.ended, 0, demo.output + demo.errors)
        self.assertEqual(list(directory.iterdir()), [])

    async def test_ends_when_nobody_watches_any_more(self) -> None:
        demo = self.start(lambda demo: demo.transport.closeStdout())
        self.assertEqual(await demo.ended, 0, demo.errors)
        self.assertEqual(demo.errors, "")
        self.assert_nothing_listens(demo.output)

    async def test_ends_after_some_seconds(self) -> None:
        demo = self.start(lambda _: None, "", "0.5")
        self.assertEqual(await demo.ended, 0, demo.errors)
        self.assertIn("It stops after 0.5 seconds", demo.output)
        self.assert_nothing_listens(demo.output)

    async def test_says_which_process_failed_and_stops_the_others(self) -> None:
        demo = self.start(
            lambda _: None,
            """if True:
            import asyncio, sys
            from mqhooks.tools.demo import Child, run
            good = Child("good", [sys.executable, "-c", "import time; time.sleep(1000)"])
            bad = Child("bad", [sys.executable, "-c", "print('this is why'); raise SystemExit(3)"])
            status = asyncio.run(run([good, bad], None))
            print(good._process.returncode)
            raise SystemExit(status)
            """,
        )
        self.assertEqual(await demo.ended, 1)
        self.assertIn("ended with status 3", demo.errors)
        self.assertTrue(demo.errors.endswith("\n    this is why\n"), demo.errors)
        self.assertEqual(demo.output, f"{-signal.SIGTERM.value}\n")

    async def test_refuses_what_is_no_number(self) -> None:
        demo = self.start(lambda _: None, "", "soon")
        self.assertEqual(await demo.ended, 2)
        self.assertEqual(demo.errors, "demo: 'soon' is not a number of seconds; write it like 10\n")
