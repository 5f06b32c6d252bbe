"""The programs of other people that tests talk to: pinned, and missed by nobody who cannot have them."""

import json
import re
import subprocess
from pathlib import Path
from shutil import which

from twisted.trial.unittest import SynchronousTestCase

PROJECT = Path(__file__).parent.parent
NODE = PROJECT / "tests" / "node"


class Pins(SynchronousTestCase):
    def test_npm_gets_the_same_everywhere(self):
        wanted = json.loads((NODE / "package.json").read_text())["dependencies"]
        packages = json.loads((NODE / "package-lock.json").read_text())["packages"]
        self.assertEqual(packages.pop("")["dependencies"], wanted)
        self.assertEqual({name: packages[f"node_modules/{name}"]["version"] for name in wanted}, wanted)
        for name, package in packages.items():
            self.assertTrue(re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", package["version"]), name)
            # What a package brings along is within its own.
            self.assertTrue(package.get("inBundle") or package["integrity"].startswith("sha512-"), name)
            # Whichever registry people use.
            self.assertNotIn("resolved", package, name)


class Installing(SynchronousTestCase):
    def install(self, *programs):
        """Install into a new folder where there is nothing but these programs."""
        place = self.place = Path(self.mktemp()).resolve()
        place.mkdir()
        for name in ("cmp", "cp", "dirname", "env", "grep", "mkdir", "mktemp", "rm", "tail"):
            (place / name).symlink_to(which(name))
        for name, text in programs:
            (place / name).write_text(f"#!/bin/sh\n{text}\n")
            (place / name).chmod(0o755)
        # /usr/sbin is always looked at.
        there = [name for name in ("nginx",) if which(name, path="/usr/sbin:/sbin")]
        command = ["/bin/sh", str(PROJECT / "tools" / "install_programs"), str(place / "python"), str(place / "into")]
        done = subprocess.run(command, env={"PATH": str(place)}, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0)
        return done.stderr.splitlines(), there

    def test_what_cannot_be_had_is_told_in_a_line(self):
        (debian, npm), there = self.install(("python", "echo No matching distribution; exit 1"))
        names = " ".join(name for name in ("chromium chromium-driver jq tinyproxy-bin", "nginx") if name not in there)
        end = ": the tests that want them will be skipped."
        self.assertEqual(debian, f"{names} cannot be installed, there is no apt-get{end}")
        why = "there is no Node.js of version 18 or newer with npm, and pip failed (No matching distribution)"
        self.assertEqual(npm, f"npm's packages cannot be installed, {why}{end}")

    def test_installers_that_fail(self):
        (*debian, npm), there = self.install(
            ("id", "echo 0"),
            ("apt-get", "echo No route to host; exit 100"),
            ("node", "exit 0"),
            ("npm", 'echo "npm error network"; exit 1'),
        )
        self.assertEqual(len(debian), 2 - len(there), debian)
        for line in debian:
            self.assertIn("failed (No route to host): the tests that want them will be skipped.", line)
        self.assertIn("npm ci failed (npm error network): the tests", npm)
        # So the next time it is tried again.
        self.assertFalse((self.place / "into" / "node" / "installed.json").exists())
