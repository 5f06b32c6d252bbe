"""
Measures the cost of a restart, with mqhooks' own sockets and with sockets that systemd keeps open: the simulator sends on while
the bridge is restarted, and the missing events are counted at the end.

``python -m tests.campaign.restarts --table docs/restarts.inc`` takes two minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

from mqhooks.events import HOOKS
from mqhooks.tools.ports import free_port

RATE = 100
SECONDS = 16
RESTARTS = 3
TWISTD = "from twisted.scripts.twistd import run; run()"
WAYS = {"sidecar": "the sidecar's stream", "webhooks": "VerneMQ's own webhooks"}


class Run:
    """
    A bridge whose endpoint is down, so that all accepted deliveries stay pending, and a simulator.

    :param via: the way that events come: ``sidecar`` or ``webhooks``.
    :param kept: whether the socket stays open while the bridge is down.
    """

    def __init__(self, stack: ExitStack, via: str, *, kept: bool) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.via = via
        self.admin, port = free_port(), free_port()
        self.socket = None
        listen = f"tcp:{port}"
        if kept:
            self.socket = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=1024))
            listen = f"systemd:domain=INET:name={via}"
        path = "/vernemq" if via == "webhooks" else ""
        self.target = f"http://127.0.0.1:{port}{path}" if path else f"tcp:127.0.0.1:{port}"
        events = ", ".join(f"{{ event = {hook} }}" for hook in HOOKS)
        (self.folder / "nanomq.conf").write_text(
            f'webhook {{ url = "http://127.0.0.1:9/", events = [{events}] }}\n'
            f'mqhooks {{ sources.{via}.listen = "{listen}", admin.listen = "tcp:{self.admin}", outbox.path = outbox }}\n'
        )
        stack.callback(self.stop)
        self.start()

    def start(self) -> None:
        """Start the bridge, and wait until it answers."""
        before = ""
        pass_fds: tuple[int, ...] = ()
        if self.socket is not None:
            descriptor = self.socket.fileno()
            pass_fds = (descriptor,)
            names = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": self.via}
            before = f"import os; os.dup2({descriptor}, 3); os.environ |= {names!r} | {{'LISTEN_PID': str(os.getpid())}}\n"
        command = [sys.executable, "-c", before + TWISTD, "-n", "--pidfile=", "mqhooks", "--config", "nanomq.conf"]
        self.bridge = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, pass_fds=pass_fds)
        while True:
            try:
                self.pending()
                return
            except OSError:
                assert self.bridge.poll() is None, "the bridge has ended"
                time.sleep(0.01)

    def stop(self) -> None:
        """Stop the bridge in order."""
        self.bridge.send_signal(signal.SIGTERM)
        self.bridge.wait()

    def pending(self) -> int:
        """Return the number of accepted events."""
        with urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            found = re.search(rb"^mqhooks_outbox_pending\{[^}]*\} (\S+)$", answer.read(), re.M)
        assert found is not None
        return int(float(found[1]))

    def measure(self, restarts: int) -> tuple[float, int, list[float]]:
        """Send events and restart the bridge; return the seconds, the missing events, and the seconds of each restart."""
        count = RATE * SECONDS
        options = [
            "--via",
            self.via,
            "--target",
            self.target,
            "--rate",
            str(RATE),
            "--count",
            str(count),
            "--mix",
            "on_publish=1",
        ]
        command = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "mqhooks-simulate", "--connections", "20", *options]
        started = time.monotonic()
        simulator = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        took = []
        for _ in range(restarts):
            time.sleep(SECONDS / (RESTARTS + 2))
            began = time.monotonic()
            self.stop()
            self.start()
            took.append(time.monotonic() - began)
        simulator.wait()
        seconds = time.monotonic() - started
        accepted = -1
        while accepted != (accepted := self.pending()):
            time.sleep(1)
        return seconds, count - accepted, took


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description="Measure what a restart costs, with and without sockets that stay open.")
    parser.add_argument("--table", type=Path, help="write the table here")
    path = parser.parse_args().table
    os.environ["PYTHONPATH"] = os.getcwd()
    rows = []
    for via, name in WAYS.items():
        cost: dict[bool, str] = {}
        for kept in (False, True):
            with ExitStack() as stack:
                usual, missing, _ = Run(stack, via, kept=kept).measure(0)
                assert missing == 0, f"{missing} events are missing without a restart"
            with ExitStack() as stack:
                seconds, missing, took = Run(stack, via, kept=kept).measure(RESTARTS)
            # Without a connection, VerneMQ drops events that the simulator sends later. A client of its webhooks waits instead.
            waited = max(0.0, seconds - usual) * RATE if via == "sidecar" else 0.0
            cost[kept] = f"{round((missing + waited) / RESTARTS)} in {sum(took) / RESTARTS:.1f} s"
            lasted = ", ".join(f"{each:.1f} s" for each in took)
            print(f"{name}, {kept=}: {missing} missing, {waited:.0f} not sent, restarts of {lasted}")  # noqa: T201 - a program
        rows.append((name, cost[False], cost[True]))
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - events come by",
        "     - lost by a restart",
        "     - with a socket of systemd's",
        *(f"   * - {name}\n     - {without}\n     - {kept}" for name, without, kept in rows),
    ]
    table = "\n".join(lines) + "\n"
    if path is not None:
        path.write_text(table, encoding="utf-8")
    print(table)  # noqa: T201 - a program


if __name__ == "__main__":
    main()
