"""
Running the processes of a benchmark, and measuring their CPU and memory. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 60.0
"""Seconds that a process may take to start, and seconds without progress before a run is given up."""

QUIET = 0.001
"""Seconds of CPU that an idle process may use in :data:`PAUSE` seconds."""

PAUSE = 0.1


class BenchmarkError(Exception):
    """A run cannot be measured; the message says why, in one line."""


class Process:
    """
    A process, killed at the end of a ``with``.

    :param name: for messages.
    :param arguments: the arguments after the program.
    :param directory: its working directory, which gets its log.
    :param talks: whether it reads commands, one a line, and answers with lines of JSON.
    :param program: the program; this Python by default.
    """

    def __init__(
        self, name: str, arguments: list[str], directory: Path, *, talks: bool = False, program: str = sys.executable
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, *arguments],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """End the process at once, if it still runs."""
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        """
        Stop the process in order.

        :raises BenchmarkError: when it does not end in time.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise self.error("does not end") from None

    def ask(self, command: str = "report") -> dict[str, Any]:
        """
        Send a command, and wait for the answer.

        :raises BenchmarkError: when it ends instead.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.error("has ended") from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """
        Wait for a line of JSON.

        :raises BenchmarkError: when it ends instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self.error("has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def check(self) -> None:
        """
        Check that the process runs.

        :raises BenchmarkError: when it has ended.
        """
        if self._process.poll() is not None:
            raise self.error("has ended")

    def error(self, what: str) -> BenchmarkError:
        """Make an error from what happened, with the last line that the process has logged."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return BenchmarkError(f"{self.name} {what}" + (f"; its last words: {lines[-1].strip()}" if lines else ""))

    def cpu(self) -> float:
        """Return the seconds of CPU that it, its threads and its children have used, including those that have ended."""
        return _cpu(self._process.pid)

    def peak(self) -> float:
        """Return its peak memory, in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6

    def settle(self, quiet: float = QUIET) -> float:
        """
        Wait until the process is idle.

        :param quiet: seconds of CPU in :data:`PAUSE` seconds below which it counts as idle.
        :returns: :meth:`cpu`.
        """
        end = time.monotonic() + PATIENCE
        before = self.cpu()
        while time.monotonic() < end:
            time.sleep(PAUSE)
            self.check()
            after = self.cpu()
            if after - before < quiet:
                return after
            before = after
        raise self.error("does not become idle")


def _cpu(pid: int) -> float:
    # The clock of another process, as clock_getcpuclockid(3) names it: to the nanosecond, with all threads.
    seconds = time.clock_gettime(~pid << 3 | 2)
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    seconds += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text(encoding="ascii").split()
        except OSError:
            # The thread has just ended, and its children are another thread's now.
            continue
        seconds += sum(_cpu(int(child)) for child in children)
    return seconds


def wait_for_port(process: Process, port: int) -> None:
    """
    Wait until a process listens.

    :raises BenchmarkError: when it ends first, or takes too long.
    """

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    until(listens, process, lambda: None, "does not listen")


def until(condition: Callable[[], bool], process: Process, progress: Callable[[], object], what: str) -> bool:
    """
    Wait until a condition holds.

    :param process: the process that it depends on.
    :param progress: returns a value that changes as long as there is progress.
    :raises BenchmarkError: when the process ends, or makes no progress for :data:`PATIENCE` seconds.
    """
    seen, end = progress(), time.monotonic() + PATIENCE
    while not condition():
        process.check()
        now = progress()
        if now != seen:
            seen, end = now, time.monotonic() + PATIENCE
        elif time.monotonic() > end:
            raise process.error(f"{what} within {PATIENCE:.0f} s")
        time.sleep(0.05)
    return True
