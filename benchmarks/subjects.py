"""
Starting the sidecars that are compared: mqhooks as operators run it, and its peers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from benchmarks.processes import BenchmarkError, Process
from mqhooks.app.configuration import load
from mqhooks.errors import ConfigError
from mqhooks.tools.ports import free_port

Via = Literal["sidecar", "grpc", "webhooks"]

SECRET = "whsec_YmVuY2htYXJrLWJlbmNobWFyay1iZW5jaG1hcms="

TWISTD = "from twisted.scripts.twistd import run; run()"


@dataclass(frozen=True, slots=True)
class Wiring:
    """
    A sidecar's settings.

    :param directory: its directory.
    :param port: the port on which it listens for VerneMQ.
    :param url: the endpoint's URL.
    :param signed: whether requests are signed.
    :param authority: a PEM file with the certificate that the endpoint's is checked against; ``None`` without TLS.
    :param webhook: more keys of mqhooks' webhook block.
    :param page: the port of mqhooks' status page.
    :param via: how VerneMQ sends its events.
    :param servers: the NATS servers that keep the outbox; if empty, the outbox is a file.
    """

    directory: Path
    port: int
    url: str
    signed: bool = False
    authority: Path | None = None
    webhook: Mapping[str, str] = field(default_factory=dict)
    page: int = field(default_factory=free_port)
    via: Via = "sidecar"
    servers: Sequence[str] = ()


def bridge(wiring: Wiring, *, profile: Path | None = None) -> Process:
    """
    Start mqhooks, with an outbox in its directory or on the servers.

    :param profile: file for cProfile's figures, written when it ends. Profiling costs a lot of time.
    :raises BenchmarkError: when mqhooks refuses the configuration, or does not know one of its keys.
    """
    keys = {"url": json.dumps(wiring.url), **wiring.webhook}
    if wiring.signed:
        keys["secret"] = json.dumps(SECRET)
    if wiring.authority is not None:
        keys["tls"] = f"{{ cacertfile = {json.dumps(str(wiring.authority))} }}"
    keys["events"] = "[{ event = on_message_publish }]"
    block = "\n".join(f"  {key} = {value}" for key, value in keys.items())
    if wiring.servers:
        outbox = f"kind = jetstream, servers = {json.dumps([*wiring.servers])}, max_size = 4GiB, sync = full"
    else:
        outbox = f"path = {json.dumps(str(wiring.directory / 'outbox'))}, max_size = 64GiB"
    path = wiring.directory / f"mqhooks-{wiring.port}.conf"
    path.write_text(f"webhook {{\n{block}\n}}\nmqhooks {{ outbox {{ {outbox} }} }}\n", encoding="utf-8")
    try:
        warnings = load(str(path)).warnings
    except ConfigError as error:
        raise BenchmarkError(f"mqhooks refuses its configuration: {error}") from None
    if warnings:
        raise BenchmarkError(f"mqhooks does not know a key of its configuration: {warnings[0]}")
    command = ["-c", TWISTD, "-n", "--pidfile="]
    if profile is not None:
        command += [f"--profile={profile}", "--profiler=cprofile", "--savestats"]
    command += ["mqhooks", "--config", str(path), "--admin-port", str(wiring.page), f"--{wiring.via}-port", str(wiring.port)]
    if wiring.via != "sidecar":
        command += ["--sidecar-port", str(free_port())]
    return Process("mqhooks", command, wiring.directory)


def _python(name: str, wiring: Wiring, module: str, *more: str) -> Process:
    return Process(name, ["-m", f"benchmarks.{module}", *_arguments(wiring), *more], wiring.directory)


def _built(name: str, wiring: Wiring, *build: str) -> Process:
    program = wiring.directory / f"peer_{name}"
    command = [part.replace("PROGRAM", str(program)) for part in build]
    built = subprocess.run(command, cwd=Path(__file__).parent / program.name, capture_output=True, text=True, check=False)
    if built.returncode:
        raise BenchmarkError(f"{' '.join(build[:2])} fails: {' '.join(built.stderr.split()) or built.returncode}")
    return Process(name, _arguments(wiring), wiring.directory, program=str(program))


def _arguments(wiring: Wiring) -> list[str]:
    arguments = ["--port", str(wiring.port), "--url", wiring.url]
    if wiring.signed:
        arguments += ["--secret", SECRET]
    if wiring.authority is not None:
        arguments += ["--authority", str(wiring.authority)]
    return arguments


def start(name: str, wiring: Wiring) -> Process:
    """
    Start one of :data:`SUBJECTS`.

    :raises BenchmarkError: when it cannot be built, or refuses its settings.
    """
    if name == "mqhooks" or name in SHARED:
        return bridge(wiring)
    if name == "Go":
        return _built("go", wiring, "go", "build", "-buildvcs=false", "-o", "PROGRAM", ".")
    if name == FLOOR:
        return _built("c", wiring, "cc", "-O2", "-o", "PROGRAM", "main.c")
    if name == GRPC:
        return _python("grpc", wiring, "peer_grpc")
    if name == WEBHOOKS:
        return _python("webhooks", wiring, "peer_webhooks")
    if name == "asyncio + aiohttp":
        return _python("aiohttp", wiring, "peer_aiohttp")
    return _python(name, wiring, "peer_twisted", "--client", name.lower())


def absent() -> dict[str, str]:
    """Return the peers that cannot run here, and what each lacks."""
    missing = {}
    if find_spec("aiohttp") is None:
        missing["asyncio + aiohttp"] = missing[WEBHOOKS] = "aiohttp is not installed: pip install -e '.[bench]'"
    if find_spec("aiohttp") is None or find_spec("grpc") is None:
        missing[GRPC] = "grpcio or aiohttp is not installed: pip install -e '.[bench]'"
    if shutil.which("go") is None:
        missing["Go"] = "there is no go, 1.19 or newer: on Debian and Ubuntu apt install golang-go"
    if shutil.which("cc") is None:
        missing[FLOOR] = "there is no C compiler: on Debian and Ubuntu apt install gcc libc6-dev"
    return missing


FLOOR = "C, no work"
"""The floor: a loop around epoll that only takes frames and sends requests. It can neither sign nor use TLS."""

GRPC = "grpcio + aiohttp"
"""The peer that takes gRPC calls, and nothing else."""

WEBHOOKS = "aiohttp's server"
"""The peer that takes VerneMQ's own webhooks, and nothing else."""

SUBJECTS = {
    "mqhooks": 1.0,
    "treq": 0.1,
    "Agent": 0.2,
    "asyncio + aiohttp": 0.3,
    "Go": 1.0,
    FLOOR: 1.0,
    GRPC: 1.0,
    WEBHOOKS: 1.0,
}
"""All names, mqhooks first, with the share of a scenario's events that each gets: a slow one needs fewer for the same time."""

SHARED = {"mqhooks, JetStream": 1, "mqhooks, JetStream, 2 bridges": 2}
"""mqhooks again, with an outbox in JetStream, and the number of bridges that share it."""

PEERS = tuple(SUBJECTS)[1:]
