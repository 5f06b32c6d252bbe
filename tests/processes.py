"""
Running ``twistd``, ``mqhooks`` and other programs as processes.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol


class Running(ProcessProtocol):
    """
    A process, killed when the test case ends.

    :param case: the test case.
    :param command: the program's path and its arguments.
    :param directory: its working directory; a new one by default.
    :param environment: variables besides those of this process.
    :param descriptors: descriptors of this process that it gets besides the standard three, by their numbers there.
    :ivar directory: its working directory.
    """

    def __init__(self, case, command, *, directory=None, environment=None, descriptors=None):
        self.stdout = ""
        self.stderr = ""
        self._sought = []
        self.ended = Deferred()
        self.directory = directory = Path(directory or case.mktemp())
        directory.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **(environment or {})}
        descriptors = {0: "w", 1: "r", 2: "r", **(descriptors or {})}
        self.process = reactor.spawnProcess(
            self, command[0], command, env=environment, path=str(directory), childFDs=descriptors
        )
        case.addCleanup(self.kill)

    def until(self, pattern, *, anywhere=False):
        """Return a ``Deferred`` that fires with the match when standard output (``anywhere``: or error) matches a pattern."""
        found = Deferred()
        self._sought.append((re.compile(pattern), found, anywhere))
        self._seek()
        return found

    def kill(self):
        """End the process if it still runs, and wait for it."""
        if self.process.pid:
            self.process.signalProcess("KILL")
        return None if self.ended.called else self.ended

    def outReceived(self, data):
        self.stdout += data.decode("utf-8", "backslashreplace")
        self._seek()

    def errReceived(self, data):
        self.stderr += data.decode("utf-8", "backslashreplace")
        self._seek()

    def processEnded(self, reason):  # noqa: N802
        self.ended.callback(reason.value)
        for _, found, _ in self._sought:
            found.errback(AssertionError(f"ended with {reason.value}\n{self.stdout}{self.stderr}"))

    def _seek(self):
        for sought in list(self._sought):
            pattern, found, anywhere = sought
            match = pattern.search(self.stdout) or (pattern.search(self.stderr) if anywhere else None)
            if match:
                self._sought.remove(sought)
                found.callback(match)


class Twistd(Running):
    """
    A ``twistd -n`` process.

    :param args: the arguments after ``twistd -n``.
    :param before: Python that it runs before anything else.
    :param sockets: listening sockets by their names, passed as systemd passes them.
    :param more: see :class:`Running`.
    """

    program = "from twisted.scripts.twistd import run; run()"
    first = ("-n", "--pidfile=")

    def __init__(self, case, *args, before="", environment=None, sockets=None, **more):
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **(environment or {})}
        if sockets is not None:
            environment |= {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": ":".join(sockets)}
            before = f"import os; os.environ['LISTEN_PID'] = str(os.getpid())\n{before}"
            more["descriptors"] = {3 + number: each.fileno() for number, each in enumerate(sockets.values())}
        command = [sys.executable, "-c", f"{before}\n{self.program}", *self.first, *args]
        super().__init__(case, command, environment=environment, **more)


class Mqhooks(Twistd):
    """An ``mqhooks`` process; ``args`` follow ``mqhooks``."""

    program = "import sys; from mqhooks.app.command import main; sys.exit(main())"
    first = ()
