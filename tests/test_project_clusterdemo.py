"""
The demo of several machines, as a process.
"""

import os
import re
import subprocess
import sys

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.tools.clusterdemo import EventLedger
from tests.natscluster import program


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mqhooks.tools.clusterdemo", *args]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=100)


class ClusterDemoTests(TestCase):
    timeout = 120

    async def test_kills_some_and_loses_nothing(self) -> None:
        program()
        done = await deferToThread(run, "5")
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        for name in ("bridge-a", "nats-2", "receiver"):
            for what in ("was killed", "was started again"):
                self.assertIn(f"{name} {what}", done.stdout)
        found = re.search(
            r"(\d+) events were accepted, 0 of them are lost; \d+ deliveries came twice, 0 out of order", done.stdout
        )
        assert found is not None, done.stdout
        self.assertGreater(int(found[1]), 100)
        self.assertRegex(done.stdout, r"delivers \d+ partitions, waiting in each: \d")

    async def test_refuses_what_is_no_number(self) -> None:
        done = await deferToThread(run, "soon")
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stderr, "cluster-demo: 'soon' is not a number of seconds; write it like 20\n")


class LedgerTests(SynchronousTestCase):
    def test_what_is_lost_twice_or_out_of_order_is_seen(self) -> None:
        ledger = EventLedger()
        ledger.accepted |= {("a", 1), ("a", 2), ("a", 3), ("b", 1)}
        for number in (1, 3, 3, 2):
            ledger.read(f"12:00:00.000 POST /hook 200 message_publish client=a topic=demo/{number} id=msg_{number} {{}}")
        ledger.read("12:00:00.000 POST /hook 503 message_publish client=b topic=demo/1 id=msg_9 {}")
        ledger.read("something else")
        self.assertEqual((ledger.missing, ledger.twice, ledger.inverted, ledger.last), (1, 1, 1, "msg_2"))
