"""
A sink that somebody else ships: the package that the documentation shows, installed.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE, STDOUT, run

from twisted.trial.unittest import SynchronousTestCase

CACHE = Path(__file__).parent.parent / ".mypy_cache"
PAGE = Path(__file__).parent.parent / "docs" / "writing-a-sink.rst"
PACKAGE = Path(__file__).parent / "data" / "thirdparty-sink"


class ThirdPartyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.site = self.folder / "site"
        self.source = source = self.folder / "source"
        shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
        self.python("-m", "pip", "install", "--quiet", *options, "--target", str(self.site), str(source))

    def python(self, *arguments: str) -> str:
        return self.run_in(self.folder, sys.executable, *arguments)

    def run_in(self, folder: Path, *command: str) -> str:
        done = run(
            command,
            # An empty entry would be the current directory, which a user's Python does not search.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))},
            cwd=folder,
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
        found = re.search(r"^Run it with ``python (-m \S+ \S+)``\.", PAGE.read_text(), re.M)
        assert found is not None
        self.assertIn("PASSED (successes=4)", self.run_in(self.source, sys.executable, *found[1].split()))

    def test_types_are_right(self) -> None:
        files = ["mqhooks_statsd.py", "test_mqhooks_statsd.py", "twisted/plugins/mqhooks_statsd_sink.py"]
        said = self.run_in(self.source, sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(CACHE), *files)
        self.assertIn("Success: no issues found in 3 source files", said)
