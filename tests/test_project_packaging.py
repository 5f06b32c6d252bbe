"""
What is built and generated is what it should be.
"""

import filecmp
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import mqhooks

PROJECT = Path(__file__).parent.parent


class GeneratedCode(SynchronousTestCase):
    def test_is_what_proto_gives(self) -> None:
        spec = importlib.util.spec_from_file_location("generate_pb", PROJECT / "tools" / "generate_pb.py")
        assert spec is not None
        assert spec.loader is not None
        generate_pb: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(generate_pb)
        target = Path(self.mktemp())
        target.mkdir(parents=True)
        generate_pb.generate(target)

        committed = PROJECT / "mqhooks" / "pb"
        names = sorted(path.name for path in target.iterdir())
        self.assertEqual(names, sorted(path.name for path in committed.glob("*_pb2.py*")))
        _, different, unreadable = filecmp.cmpfiles(target, committed, names, shallow=False)
        self.assertEqual((different, unreadable), ([], []), "run make proto")


class Distribution(SynchronousTestCase):
    names: list[str]
    metadata: str
    wheel: Path
    sources: Path

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        source = folder / "source"
        source.mkdir(parents=True)
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile"):
            shutil.copy(PROJECT / name, source)
        # Other tests may be writing the cache of plugins.
        ignored = shutil.ignore_patterns("__pycache__", "_build", "*dropin.cache*")
        for name in ("mqhooks", "twisted", "tests", "docs", "tools", "packaging"):
            shutil.copytree(PROJECT / name, source / name, ignore=ignored)
        (source / "twisted" / "plugins" / "dropin.cache").write_bytes(b"left there by a developer's twistd")
        # As in the README, but in the environment that there is.
        environment = Path(sys.executable).parent.parent
        there = [f"--assume-old={environment / name}" for name in ("installed", "installed-dev")]
        make = ["make", "dist", f"VENV={environment}", *there]
        built = subprocess.run(make, cwd=source, capture_output=True, text=True)
        self.assertEqual(built.returncode, 0, built.stdout + built.stderr)
        (self.wheel,) = (source / "dist").glob("mqhooks-*.whl")
        (self.sources,) = (source / "dist").glob("mqhooks-*.tar.gz")
        with zipfile.ZipFile(self.wheel) as archive:
            self.names = archive.namelist()
            (metadata,) = (name for name in self.names if name.endswith("/METADATA"))
            self.metadata = archive.read(metadata).decode()

    def test_holds_the_project_and_nothing_else(self) -> None:
        (page,) = (name for name in self.names if name.endswith(".data/data/share/man/man1/mqhooks.1"))
        code = {name for name in self.names if ".dist-info/" not in name and name != page}
        self.assertEqual({name.split("/")[0] for name in code}, {"mqhooks", "twisted"})
        self.assertEqual(
            {name for name in code if name.startswith("twisted/")},
            {f"twisted/plugins/mqhooks_{name}.py" for name in ("bridge", "receive", "simulate", "sinks")},
        )
        modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "mqhooks").rglob("*.py")}
        self.assertEqual({name for name in code if name.endswith(".py") and name.startswith("mqhooks/")}, modules)
        self.assertIn("mqhooks/py.typed", code)
        static = {str(path.relative_to(PROJECT)) for path in (PROJECT / "mqhooks" / "admin" / "static").iterdir()}
        self.assertLessEqual(static | {"mqhooks/app/schema.json"}, code)
        self.assertIn("mqhooks/admin/static/page.html", static)
        self.assertIn("Name: mqhooks\n", self.metadata)
        self.assertTrue(any(name.endswith("/licenses/LICENSE") for name in self.names))

    def test_can_be_installed(self) -> None:
        target = Path(self.mktemp())
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
        # The second is what pip does in a checkout.
        for what in ([str(self.wheel)], ["--no-build-isolation", "--upgrade", str(self.sources)]):
            installed = subprocess.run([*install, *what], capture_output=True, text=True)
            self.assertEqual(installed.returncode, 0, installed.stdout + installed.stderr)
            self.assertTrue((target / "bin" / "mqhooks").exists())

    def test_no_page_installs_from_an_index(self) -> None:
        for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.rst")):
            self.assertNotRegex(page.read_text(), r"pip install (?:--upgrade )?mqhooks(?!-\*)", page.name)


class Version(SynchronousTestCase):
    def test_stands_in_one_place(self) -> None:
        text = (PROJECT / "setup.cfg").read_text()
        found = re.search(r"^version = (\S+)$", text, re.M)
        assert found is not None
        self.assertEqual(mqhooks.__version__, found[1])
        sources = [*(PROJECT / "mqhooks").rglob("*.py"), PROJECT / "pyproject.toml", PROJECT / "docs" / "conf.py"]
        quoted = f'"{found[1]}"'
        self.assertEqual([str(path) for path in sources if quoted in path.read_text()], [])


class LowestVersions(SynchronousTestCase):
    def test_are_those_that_setup_cfg_allows(self) -> None:
        setup = ConfigParser()
        setup.read(PROJECT / "setup.cfg")
        allowed = [
            re.fullmatch(r"([\w.]+)(?:\[tls\])? >= ([\d.]+)(?:, < .*)?", line)
            for line in setup["options"]["install_requires"].split("\n")[1:]
        ]
        tested = (PROJECT / "tests" / "lowest.txt").read_text()
        pinned = dict(re.findall(r"^([\w.]+) == ([\d.]+)$", tested, re.M))
        self.assertGreater(len(allowed), 9)
        for lowest in allowed:
            assert lowest is not None
            self.assertRegex(pinned.get(lowest[1], "none"), rf"^{re.escape(lowest[2])}(\.0)*$", lowest[1])
