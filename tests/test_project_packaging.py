"""
What is built and generated is what it should be.
"""

import filecmp
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

import mqhooks

PROJECT = Path(__file__).parent.parent
EPOCH = {"SOURCE_DATE_EPOCH": "1767225600"}


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


def build(source: Path) -> list[Path]:
    """Copy the project, and run ``make dist`` there; gives the source distribution and the wheel."""
    source.mkdir(parents=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile", "SECURITY.md"):
        shutil.copyfile(PROJECT / name, source / name)
    for name in ("mqhooks", "twisted", "tests", "docs", "tools", "packaging"):
        ignore = shutil.ignore_patterns("__pycache__", "_build")
        shutil.copytree(PROJECT / name, source / name, ignore=ignore, copy_function=shutil.copyfile)
    (source / "twisted" / "plugins" / "dropin.cache").write_bytes(b"left there by a developer's twistd")
    # As in the README, but in the environment that there is.
    environment = Path(sys.executable).parent.parent
    there = [f"--assume-old={environment / name}" for name in ("installed", "installed-dev")]
    make = ["make", "dist", f"VENV={environment}", *there]
    built = subprocess.run(make, cwd=source, env={**os.environ, **EPOCH}, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return sorted((source / "dist").iterdir(), reverse=True, key=lambda path: path.suffix == ".gz")


@cache
def distributions(folder: Path) -> list[Path]:
    """Build once for all tests."""
    return build(folder / "source")


class Distribution(SynchronousTestCase):
    names: list[str]
    metadata: str
    wheel: Path
    sources: Path

    def setUp(self) -> None:
        # Beside the folders of the tests, since it outlives this one.
        self.sources, self.wheel = distributions(Path("distributions").absolute())
        with zipfile.ZipFile(self.wheel) as archive:
            self.names = archive.namelist()
            (metadata,) = (name for name in self.names if name.endswith("/METADATA"))
            self.metadata = archive.read(metadata).decode()

    def test_the_same_sources_give_the_same_bytes(self) -> None:
        before = os.umask(0o077)
        try:
            again = build(Path(self.mktemp()) / "elsewhere")
        finally:
            os.umask(before)
        for one, other in zip((self.sources, self.wheel), again, strict=True):
            self.assertEqual(one.name, other.name)
            self.assertEqual(one.read_bytes(), other.read_bytes(), one.name)
        with zipfile.ZipFile(self.wheel) as archive:
            self.assertEqual({info.date_time for info in archive.infolist()}, {(2026, 1, 1, 0, 0, 0)})

    def test_metadata_and_contents_pass_the_checks_of_the_index(self) -> None:
        for command in (
            [sys.executable, "-m", "twine", "check", "--strict", str(self.wheel), str(self.sources)],
            [sys.executable, "-m", "check_wheel_contents", "--config", str(PROJECT / "pyproject.toml"), str(self.wheel)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(
            "License-Expression: MIT\nLicense-File: LICENSE\n", re.sub(r"^(?!License).*\n", "", self.metadata, flags=re.M)
        )
        description = self.metadata.partition("\n\n")[2]
        self.assertIn("# mqhooks", description)
        links = re.findall(r"\]\(([^)]+)\)", description)
        self.assertGreater(len(links), 2)
        # Where an index shows it, there are no files beside it.
        self.assertEqual([link for link in links if not link.startswith("https://")], [])
        with tarfile.open(self.sources) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        self.assertLessEqual(set(re.findall(r"`(\w[\w/]*\.(?:md|rst))`", description)), names)

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


class Version(SynchronousTestCase):
    def test_no_page_installs_from_an_index(self) -> None:
        for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.rst")):
            self.assertNotRegex(page.read_text(), r"pip install (?:--upgrade )?mqhooks(?!-\*)", page.name)

    def test_stands_in_one_place(self) -> None:
        text = (PROJECT / "setup.cfg").read_text()
        found = re.search(r"^version = (\S+)$", text, re.M)
        assert found is not None
        self.assertEqual(mqhooks.__version__, found[1])
        sources = [*(PROJECT / "mqhooks").rglob("*.py"), PROJECT / "pyproject.toml", PROJECT / "docs" / "conf.py"]
        shown = "\n".join(path.read_text() for path in (PROJECT / "docs").rglob("*.*") if path.suffix in (".rst", ".yaml"))
        examples = re.findall(r'(?:mqhooks[ :/]|"version": ")(\d+\.\d+\.\d+)\b', shown)
        self.assertGreater(len(examples), 3)
        self.assertEqual(set(examples), {found[1]})
        quoted = f'"{found[1]}"'
        self.assertEqual([str(path) for path in sources if quoted in path.read_text()], [])


class Workflows(SynchronousTestCase):
    def setUp(self) -> None:
        folder = PROJECT / ".github" / "workflows"
        # YAML 1.1 takes "on" for true.
        self.ci, self.release = (yaml.safe_load((folder / f"{name}.yml").read_text()) for name in ("ci", "release"))

    def test_every_python_that_is_named_is_tried(self) -> None:
        classified = re.findall(r"Python :: (3\.\d+)$", (PROJECT / "setup.cfg").read_text(), re.M)
        job = self.ci["jobs"]["run"]
        self.assertEqual(job["strategy"]["matrix"]["python"], classified)
        self.assertIn(".ci/run", [step.get("run") for step in job["steps"]])

    def test_a_release_is_what_was_tested(self) -> None:
        jobs = self.release["jobs"]
        self.assertEqual(jobs["test"]["uses"], "./.github/workflows/ci.yml")
        self.assertIn("workflow_call", self.ci[True])
        self.assertEqual((jobs["build"]["needs"], jobs["publish"]["needs"]), ("test", "build"))
        self.assertIn("make dist", [step.get("run") for step in jobs["build"]["steps"]])

    def test_who_may_what(self) -> None:
        for workflow in (self.ci, self.release):
            self.assertEqual(workflow["permissions"], {"contents": "read"})
        jobs = self.release["jobs"]
        # The one that can publish runs nothing of the repository's.
        self.assertEqual(jobs["publish"]["permissions"], {"id-token": "write"})
        self.assertEqual([step for step in jobs["publish"]["steps"] if "run" in step or "checkout" in step["uses"]], [])
        self.assertNotIn("secrets.", (PROJECT / ".github" / "workflows" / "release.yml").read_text())

    def test_the_version_and_its_changelog_are_asked_for(self) -> None:
        (asked,) = (step["run"] for step in self.release["jobs"]["build"]["steps"] if "GITHUB_REF_NAME" in step.get("run", ""))
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        shutil.copyfile(PROJECT / "setup.cfg", folder / "setup.cfg")
        version = mqhooks.__version__
        for tag, changes, status in (
            (f"v{version}", f"## {version} (2026-12-01)\n", 0),
            ("v9.9.9", f"## {version} (2026-12-01)\n", 1),
            (f"v{version}", "## 0.0.9 (2026-01-01)\n", 1),
        ):
            (folder / "CHANGELOG.md").write_text(changes)
            environment = {**os.environ, "GITHUB_REF_NAME": tag}
            done = subprocess.run(["bash", "-e", "-c", asked], cwd=folder, env=environment, capture_output=True)
            self.assertEqual(done.returncode, status, (tag, changes))


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


class News(SynchronousTestCase):
    def test_the_changelog_can_be_built(self) -> None:
        fragments = {path.name for path in (PROJECT / "newsfragments").iterdir()} - {".gitignore"}
        for name in fragments:
            self.assertRegex(name, r"^\+[a-z0-9-]+\.(feature|bugfix|removal)\.md$")
        command = [
            sys.executable,
            "-m",
            "towncrier",
            "build",
            "--draft",
            "--version",
            mqhooks.__version__,
            "--dir",
            str(PROJECT),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"## {mqhooks.__version__} (", done.stdout)
        drafted = re.sub(r"\s+", " ", done.stdout)
        for name in sorted(fragments):
            words = (PROJECT / "newsfragments" / name).read_text().split()
            self.assertIn(" ".join(words[:8]), drafted, name)
