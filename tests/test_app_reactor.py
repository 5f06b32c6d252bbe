"""The reactor whose timers ignore changes of the system clock."""

import os
import signal
import sys

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.processes import Twistd

CLOCK_IS_SET = """
import signal, time
signal.alarm(20)
offset, real = [0.0], time.time
time.time = lambda: real() + offset[0]
from mqhooks.app.reactor import install
reactor = install()
from twisted.internet import reactor as installed
assert installed is reactor is install(), installed
expired = []
reactor.callLater(0.1, offset.__setitem__, 0, -3600.0)
reactor.callLater(0.3, expired.append, "soon")
reactor.callLater(0.4, offset.__setitem__, 0, 7200.0)
reactor.callLater(3600, expired.append, "in an hour")
reactor.callLater(0.6, reactor.stop)
reactor.run()
print(expired)
"""


class ReactorTests(TestCase):
    timeout = 120

    async def python(self, program):
        """Run a program; gives its standard output."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        out, err, status = await getProcessOutputAndValue(sys.executable, ["-c", program], environment)
        self.assertEqual((status, err), (0, b""))
        return out.decode().strip()

    async def test_timers_ignore_changes_of_the_clock(self):
        self.assertEqual(await self.python(CLOCK_IS_SET), "['soon']")

    async def test_an_installed_reactor_stays(self):
        program = "from twisted.internet import reactor; from mqhooks.app.reactor import install; print(install() is reactor)"
        self.assertEqual(await self.python(program), "True")


class TwistdTests(TestCase):
    timeout = 120

    async def start(self, *twistd):
        bridge = Twistd(self, *twistd, "mqhooks", "--sidecar-port=0", "--admin-port=0", "--url=http://127.0.0.1:1/")
        await bridge.until(r"listening for VerneMQ on ")
        bridge.process.signalProcess("TERM")
        self.assertIn((await bridge.ended).signal, (signal.SIGTERM, None))
        return bridge.stdout

    async def test_twistd_runs_on_it(self):
        log = await self.start()
        self.assertIn("reactor class: mqhooks.app.reactor.MonotonicReactor.", log)
        self.assertNotIn("wall clock", log)

    async def test_another_one_is_the_operator_s_choice(self):
        log = await self.start("--reactor=select")
        self.assertIn("reactor class: twisted.internet.selectreactor.SelectReactor.", log)
        line = "with twisted.internet.selectreactor.SelectReactor, timers follow the wall clock: "
        self.assertEqual(log.count(line), 1)
