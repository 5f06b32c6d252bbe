"""
A demo of bridge, receiver and simulator, as three processes: ``python -m mqhooks.tools.demo [SECONDS]``.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mqhooks.errors import MqhooksError
from mqhooks.support.output import put
from mqhooks.tools.ports import free_port

LAST_LINES = 15
"""Last lines of a process that are shown when it fails."""

STOPPING_TIME = 20.0
"""Seconds that a process gets to stop; the bridge itself takes up to 10 to deliver what is pending."""

LINE_LIMIT = 1 << 20
"""The longest line of a process, in bytes."""

_WEBHOOK = re.compile(r"\d\d:\d\d:\d\d\.\d{3} ")
_SENT = re.compile(r"\bsent (\d+) events\b")


class Child:
    """
    One of the processes. It has its own process group: Ctrl-C reaches only the demo, which stops the processes in order.

    :param title: its description, for the reader.
    :param command: the program and its arguments.
    """

    def __init__(self, title: str, command: Sequence[str]) -> None:
        self.title = title
        self.command = command
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._process: Process
        self._ended: asyncio.Task[int]

    async def start(self) -> asyncio.Task[int]:
        """
        Start the process.

        :returns: a task that ends with the process; its result is the exit status.
        :raises OSError: when the program does not exist.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self.command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, process_group=0, limit=LINE_LIMIT
        )
        self._ended = asyncio.create_task(self._read())
        return self._ended

    async def stop(self) -> None:
        """Terminate the process, and kill it if it does not stop in time."""
        if not self._ended.done():
            self._process.terminate()
            if not (await asyncio.wait([self._ended], timeout=STOPPING_TIME))[0]:
                self._process.kill()
                await asyncio.wait([self._ended])

    def kill(self) -> None:
        """End the process at once, if it runs."""
        if not self._ended.done():
            self._process.kill()

    def line_received(self, line: str) -> None:
        """React to a line that the process wrote."""

    async def _read(self) -> int:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode("utf-8", "backslashreplace").rstrip()
            self.last.append(text)
            self.line_received(text)
        return await self._process.wait()


class ReceiverProcess(Child):
    """
    The receiver. The webhooks that it prints are printed again.

    :ivar arrived: webhooks printed.
    """

    arrived = 0

    def line_received(self, line: str) -> None:
        """Print a webhook."""
        if _WEBHOOK.match(line):
            self.arrived += 1
            say(line)


class SimulatorProcess(Child):
    """
    The simulator.

    :ivar sent: events sent, from its summary.
    """

    sent = 0

    def line_received(self, line: str) -> None:
        """Read its summary."""
        if found := _SENT.search(line):
            self.sent = int(found[1])


async def demonstrate(seconds: float | None) -> int:
    """
    Run the three processes and print the webhooks that arrive.

    :param seconds: duration; ``None`` for no limit.
    :returns: the exit status.
    :raises OSError: when a process cannot be started.
    """
    webhooks, events, page = (free_port() for _ in range(3))
    url = f"http://127.0.0.1:{webhooks}/hook"
    twistd = [_shortest(Path(sysconfig.get_path("scripts"), "twistd")), "-n", "--pidfile="]
    receiver = ReceiverProcess("an endpoint that shows what arrives", [*twistd, "mqhooks-receive", "--port", str(webhooks)])
    # The bridge creates its outbox in the directory where it runs.
    directory = TemporaryDirectory(prefix="mqhooks-demo-")
    bridge = Child(
        "the bridge",
        [
            *twistd,
            f"--rundir={directory.name}",
            "mqhooks",
            "--sidecar-port",
            str(events),
            "--admin-port",
            str(page),
            "--url",
            url,
        ],
    )
    simulator = SimulatorProcess(
        "a stand-in for VerneMQ",
        [*twistd, "mqhooks-simulate", f"--target=tcp:127.0.0.1:{events}", "--clients=5", "--rate=2", "--payload-size=0"],
    )
    say("Three processes, in the order in which events pass through them:\n")
    for child in (simulator, bridge, receiver):
        say(f"  {child.title}:\n    {shlex.join(child.command)}")
    say(f"\nThe bridge's status page: http://127.0.0.1:{page}/")
    say(f"Each line below is a webhook received at {url}")
    say("Press Ctrl-C to stop.\n" if seconds is None else f"It stops after {seconds:g} seconds, or with Ctrl-C.\n")
    with directory:
        status = await run([receiver, bridge, simulator], seconds)
    if status == 0:
        say(f"\nThe simulator sent {simulator.sent} events, the endpoint received {receiver.arrived} webhooks.")
        say("An event makes none, one or several webhooks: see docs/events.rst. All three processes have stopped.")
    return status


async def run(children: Sequence[Child], seconds: float | None) -> int:
    """
    Run processes until a signal comes, the time is up, or one of them ends; then stop the others.

    :param children: started in this order, and stopped in reverse order, one after the other.
    :param seconds: ``None`` for no limit.
    :returns: 0 when all of them ran until they were stopped, else 1, after printing what failed.
    :raises OSError: when a process cannot be started.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    stop = asyncio.create_task(stopped.wait())
    ended = {child: await child.start() for child in children}
    await asyncio.wait([stop, *ended.values()], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    failed = [child for child in children if ended[child].done()]
    for child in reversed(children):
        await child.stop()
    for child in failed:
        complain(f"\n{shlex.join(child.command)} ended with status {ended[child].result()}. Its last lines:", *child.last)
    return 1 if failed else 0


def _shortest(path: Path) -> str:
    return min(str(path), os.path.relpath(path), key=len)


def say(line: str) -> None:
    """Write a line to standard output."""
    try:
        put(lambda: print(line, flush=True))  # noqa: T201 - its purpose
    except (BrokenPipeError, MqhooksError) as error:
        if isinstance(error, MqhooksError):
            complain(str(error))
        # Stop as with Ctrl-C.
        os.kill(os.getpid(), signal.SIGTERM)


def complain(*lines: str) -> None:
    """Write lines to standard error, all but the first indented."""
    print(*lines, sep="\n    ", file=sys.stderr)  # noqa: T201


def main(name: str, demonstrate: Callable[[float | None], Coroutine[Any, Any, int]], *, example: int = 10) -> int:
    """
    Run a demo with the command line's argument: the number of seconds, without which it runs until Ctrl-C.

    :param name: its name in messages.
    :param demonstrate: runs the demo, and returns the exit status.
    :param example: a good number of seconds, for the message about a wrong argument.
    :returns: the exit status.
    """
    try:
        (seconds,) = (float(text) for text in sys.argv[1:]) if sys.argv[1:] else (None,)
    except ValueError:
        complain(f"{name}: {' '.join(sys.argv[1:])!r} is not a number of seconds; write it like {example}")
        return 2
    try:
        return asyncio.run(demonstrate(seconds))
    except OSError as error:
        complain(f"{name}: cannot start: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main("demo", demonstrate))
