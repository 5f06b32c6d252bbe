"""
A sink that somebody else ships: the package that the documentation shows, installed.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE, STDOUT, run

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = Path(__file__).parent / "data" / "thirdparty-sink"


class ThirdPartyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.site = self.folder / "site"
        source = self.folder / "source"
        shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
        shutil.copy(source / "test_mqhooks_statsd.py", self.folder)
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
        self.python("-m", "pip", "install", "--quiet", *options, "--target", str(self.site), str(source))

    def python(self, *arguments: str) -> str:
        done = run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(self.site), os.environ.get("PYTHONPATH", "")])},
            cwd=self.folder,
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_prefix_is_known_and_its_own_tests_pass(self) -> None:
        program = "from mqhooks.sinks import sinkFromString; print(sinkFromString(None, 'statsd:port=8125'))"
        self.assertIn("mqhooks_statsd.StatsDSink", self.python("-c", program))
        self.assertIn("PASSED (successes=3)", self.python("-m", "twisted.trial", "test_mqhooks_statsd"))
