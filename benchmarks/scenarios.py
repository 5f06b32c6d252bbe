"""
The scenarios that the sidecars run, and measuring a run.
"""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from benchmarks import certificates, subjects
from benchmarks.engine import Engine, shared
from benchmarks.processes import QUIET, BenchmarkError, Process, until, wait_for_port
from benchmarks.subjects import FLOOR, GRPC, PEERS, SHARED, WEBHOOKS, Via, Wiring
from mqhooks.tools.ports import free_port

GIVEN_UP = 20.0
"""Seconds without a delivery until the remaining events count as missing."""

LEASES = 0.01
"""Seconds of CPU that a bridge may use in :data:`benchmarks.processes.PAUSE` seconds while it only renews its leases."""

IDLE = 30
"""Seconds that an idle scenario lasts."""

SOON = {"retry": "{ initial = 200ms, max = 200ms }"}
"""Makes mqhooks check often whether the endpoint is back."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """
    A scenario: one line of the table for each sidecar that can run it.

    :param title: its description in the table.
    :param events: events for mqhooks; its peers get a share (:data:`benchmarks.subjects.SUBJECTS`) unless there is a rate.
    :param measures: ``relay`` counts from the first event to the last delivery, ``accept`` until all are committed while the
        endpoint is down, ``backlog`` from the moment when that endpoint comes back. ``idle`` counts for :data:`IDLE` seconds
        after the last delivery, each of which stands for an event; ``watched`` does so while the status page is open.
    :param peers: the sidecars that run it besides mqhooks.
    :param size: bytes of a payload.
    :param rate: events a second; 0 for as fast as they are read.
    :param webhook: keys of mqhooks' webhook block.
    :param signed: whether requests are signed.
    :param tls: whether the endpoint speaks TLS.
    :param via: how the events come; over gRPC with 100 calls in flight, over webhooks with 50 requests.
    :param runs: most runs, for scenarios that take long.
    :param delay: seconds that the endpoint takes to answer.
    :param clients: number of clients; the fewer, the longer the fullest lane still works after all others have finished.
    :param long: whether it runs only on request, because it takes very long.
    """

    title: str
    events: int
    measures: Literal["relay", "accept", "backlog", "idle", "watched"] = "relay"
    peers: tuple[str, ...] = ()
    size: int = 100
    rate: float = 0.0
    webhook: Mapping[str, str] = field(default_factory=dict)
    signed: bool = False
    tls: bool = False
    via: Via = "sidecar"
    runs: int = 99
    delay: float = 0.0
    clients: int = 1000
    long: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """
    The results of one run.

    :param events: events sent.
    :param done: events delivered; for ``accept``, events accepted.
    :param cpu: seconds of CPU.
    :param seconds: time from the first event to the last.
    :param twice: repeated deliveries.
    :param late: events that came after a later one of their client.
    :param peak: MB of memory.
    :param took: milliseconds by percentile; empty when there was no rate.
    :param engine: seconds of CPU of the servers that keep the outbox; 0 without servers.
    """

    events: int
    done: int
    cpu: float
    seconds: float
    twice: int
    late: int
    peak: float
    took: Mapping[str, float]
    engine: float = 0.0


def _batch(**keys: str) -> dict[str, str]:
    pairs = {"size": "100", "linger": "50ms", "max_bytes": "1MiB", **keys}
    return {"batch": f"{{ {', '.join(f'{key} = {value}' for key, value in pairs.items())} }}"}


STREAMED = tuple(name for name in PEERS if name not in (GRPC, WEBHOOKS))
WORKING = tuple(name for name in STREAMED if name != FLOOR)
COMPILED = ("Go", FLOOR)
NOW = {"merge_window": "0"}
SHARING = tuple(SHARED)[:1]


def _paced(rate: int, events: int) -> Scenario:
    return Scenario(f"{rate:,} events a second, ``merge_window = 0``", events, peers=COMPILED, rate=float(rate), webhook=NOW)


SCENARIOS = {
    "relay": Scenario("one POST for each event", 100_000, peers=STREAMED),
    "unmerged": Scenario("the same, ``merge_window = 0``", 100_000, peers=COMPILED, webhook=NOW),
    "signed": Scenario("the same, signed", 100_000, peers=WORKING, signed=True),
    "tls": Scenario("the same, TLS", 100_000, peers=WORKING, tls=True),
    "size-1k": Scenario("payloads of 1 KiB", 60_000, peers=STREAMED, size=1 << 10),
    "size-10k": Scenario("payloads of 10 KiB", 30_000, peers=STREAMED, size=10 << 10),
    "size-100k": Scenario("payloads of 100 KiB", 8_000, peers=STREAMED, size=100 << 10),
    "webhooks": Scenario("one POST for each webhook of VerneMQ's", 50_000, peers=(WEBHOOKS,), via="webhooks"),
    "grpc": Scenario("one POST for each gRPC call", 30_000, peers=(GRPC,), via="grpc"),
    "long": Scenario("payloads of 15 MiB", 40, size=15 << 20),
    "batch-array": Scenario("batches of 100, an array", 200_000, webhook=_batch(format="array")),
    "batch-ndjson": Scenario("batches of 100, lines", 200_000, webhook=_batch(format="ndjson")),
    "batch-gzip": Scenario("batches of 100, lines, gzip", 200_000, webhook=_batch(format="ndjson", compression="gzip")),
    "accept": Scenario("accepting while the endpoint is down", 200_000, "accept"),
    "backlog-10k": Scenario("a backlog of 10,000", 10_000, "backlog", webhook=SOON),
    "backlog-100k": Scenario("a backlog of 100,000", 100_000, "backlog", webhook=SOON),
    "backlog-1m": Scenario("a backlog of 1,000,000", 1_000_000, "backlog", webhook=SOON, runs=1),
    "backlog-10m": Scenario("a backlog of 10,000,000", 10_000_000, "backlog", webhook=SOON, runs=1, long=True),
    "rate-50": _paced(50, 500),
    "rate-200": _paced(200, 2_000),
    "rate-1k": _paced(1_000, 10_000),
    "rate-5k": _paced(5_000, 40_000),
    "rate-20k": _paced(20_000, 100_000),
    "shared-relay": Scenario(
        "an outbox on one disk or three servers, ``merge_window = 0``", 100_000, peers=SHARING, webhook=NOW
    ),
    "shared-20k": Scenario(
        "an outbox on one disk or three servers, 20,000 events a second", 200_000, peers=SHARING, rate=20_000.0, webhook=NOW
    ),
    "shared-1k": Scenario(
        "an outbox on one disk or three servers, 1,000 events a second", 10_000, peers=SHARING, rate=1_000.0, webhook=NOW
    ),
    "shared-endpoint": Scenario(
        "an endpoint that answers after 100 ms", 12_000, peers=tuple(SHARED), webhook=NOW, delay=0.1, clients=10_000
    ),
    "window": Scenario("5,000 events a second", 40_000, peers=COMPILED, rate=5000.0),
    "idle": Scenario("a second without events", 1_000, "idle", peers=("Go",), signed=True),
    "idle-watched": Scenario("the same, the status page open", 1_000, "watched", signed=True),
}
"""All scenarios, in the table's order. The names ``batch``, ``size``, ``backlog`` and ``rate`` choose all that begin so."""


class Run:
    """
    One run of one sidecar, between the load and the endpoint.

    :param directory: a new directory on a disk.
    :param events: number of events to send.
    :param profile: file for the profile of mqhooks; ``None`` for none.
    """

    def __init__(self, scenario: Scenario, name: str, directory: Path, events: int, profile: Path | None = None) -> None:
        self._scenario = scenario
        self._directory = directory
        self._events = events
        self._stack = ExitStack()
        authority: Path | None
        self._certificate: Path | None
        self._certificate, authority = certificates.write(directory) if scenario.tls else (None, None)
        self._endpoint_port = free_port()
        url = f"{'https' if scenario.tls else 'http'}://127.0.0.1:{self._endpoint_port}/hook"
        self._wiring = Wiring(directory, free_port(), url, scenario.signed, authority, scenario.webhook, via=scenario.via)
        self._name = name
        self._profile = profile
        # The bridges that share the outbox with the one that gets the events.
        self._others: list[Process] = []

    def measure(self) -> Sample:
        """
        Run and measure.

        :raises BenchmarkError: when the run cannot be measured.
        """
        with self._stack:
            down = self._scenario.measures in ("accept", "backlog")
            if not down:
                receiver = self._receiver()
            engine = self._share() if self._name in SHARED else None
            if self._profile is None:
                sidecar = subjects.start(self._name, self._wiring)
            else:
                sidecar = subjects.bridge(self._wiring, profile=self._profile)
            self._stack.enter_context(sidecar)
            wait_for_port(sidecar, self._wiring.port)
            if engine is not None:
                until(lambda: shared(self._pages), sidecar, lambda: None, "does not share the partitions")
            before = self._rest(sidecar)
            worked = engine.cpu() if engine is not None else 0.0
            load = self._load()
            if down:
                self._accepted(sidecar)
                accepted = time.monotonic_ns()
                began = load.answer()["began"]
                if self._scenario.measures == "accept":
                    cpu = sidecar.cpu() - before
                    return Sample(self._events, self._count(), cpu, (accepted - began) / 1e9, 0, 0, sidecar.peak(), {})
                before = sidecar.cpu()
                receiver = self._receiver()
                began = None
            self._delivered(sidecar, receiver)
            if self._scenario.measures in ("idle", "watched"):
                return self._idle(sidecar)
            if not down:
                began = load.answer()["began"]
            cpu = self._rest(sidecar) - before
            report = receiver.ask()
            if not report["distinct"]:
                raise sidecar.error("has delivered nothing")
            sample = Sample(
                events=self._events,
                done=report["distinct"],
                cpu=cpu,
                seconds=max(1, report["last"] - (began or report["first"])) / 1e9,
                twice=report["twice"],
                late=report["late"],
                peak=sidecar.peak(),
                took=report["took"],
                engine=engine.cpu() - worked if engine is not None else 0.0,
            )
            if self._profile is not None:
                sidecar.stop()
            return sample

    def _share(self) -> Engine:
        """Start the NATS servers, and the bridges that get no events."""
        engine = self._stack.enter_context(Engine(self._directory))
        self._wiring = replace(self._wiring, servers=engine.urls)
        self._pages = [self._wiring.page]
        for _ in range(SHARED[self._name] - 1):
            wiring = replace(self._wiring, port=free_port(), page=free_port())
            self._pages.append(wiring.page)
            self._others.append(self._stack.enter_context(subjects.start(self._name, wiring)))
        return engine

    def _rest(self, sidecar: Process) -> float:
        """Wait until all bridges only renew leases, and return the seconds of CPU that they have used."""
        quiet = LEASES if self._name in SHARED else QUIET
        return sum(each.settle(quiet) for each in (sidecar, *self._others))

    def _idle(self, sidecar: Process) -> Sample:
        if self._scenario.measures == "watched":
            watcher = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._wiring.page)))
            watcher.sendall(b"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            Thread(target=_read, args=(watcher,), daemon=True).start()
        before = sidecar.settle()
        time.sleep(IDLE)
        return Sample(IDLE, IDLE, sidecar.cpu() - before, float(IDLE), 0, 0, sidecar.peak(), {})

    def _receiver(self) -> Process:
        arguments = ["-m", "benchmarks.receiver", "--port", str(self._endpoint_port), "--events", str(self._events)]
        if self._scenario.delay:
            arguments += ["--delay", str(self._scenario.delay)]
        if self._certificate is not None:
            arguments += ["--certificate", str(self._certificate)]
        receiver = self._stack.enter_context(Process("receiver", arguments, self._directory, talks=True))
        receiver.answer()
        return receiver

    def _load(self) -> Process:
        settings: dict[str, float] = {"port": self._wiring.port, "events": self._events, "size": self._scenario.size}
        via = self._scenario.via
        if via == "sidecar":
            settings["rate"] = self._scenario.rate
            settings["clients"] = self._scenario.clients
        module = "benchmarks.load" if via == "sidecar" else f"benchmarks.load_{via}"
        arguments = ["-m", module, *(f"--{key}={value}" for key, value in settings.items())]
        return self._stack.enter_context(Process("load", arguments, self._directory, talks=True))

    def _accepted(self, sidecar: Process) -> None:
        """Wait until all events are committed."""
        until(lambda: self._count() == self._events, sidecar, self._count, f"has not accepted {self._events} events")

    def _count(self) -> int:
        # Any process may read at any time. A connection that stays open would let the write-ahead log grow.
        with closing(sqlite3.connect(f"file:{self._directory}/outbox?mode=ro", uri=True, timeout=5)) as connection:
            ((count,),) = connection.execute("SELECT coalesce(sum(accepted), 0) FROM webhook")
        return int(count)

    def _delivered(self, sidecar: Process, receiver: Process) -> None:
        """Wait until all events have come, or no more come."""
        seen, end = (-1, 0), 0.0
        while seen[0] < self._events:
            sidecar.check()
            report: dict[str, Any] = receiver.ask()
            # While requests keep coming, the events in them are not counted.
            now = report["distinct"], report["came"]
            if now != seen:
                seen, end = now, time.monotonic() + GIVEN_UP
            elif time.monotonic() > end:
                return
            time.sleep(0.05)


def _read(watcher: socket.socket) -> None:
    """Read until the end of the connection; an error means the end of the run."""
    with suppress(OSError):
        while watcher.recv(1 << 16):
            pass


def chosen(names: list[str], *, long: bool) -> dict[str, Scenario]:
    """
    Find scenarios by their names, or by the beginnings of these.

    :param names: empty for all.
    :param long: whether to include those that take very long.
    :raises BenchmarkError: when no scenario has a name.
    """
    for name in names:
        if not any(_called(key, name) for key in SCENARIOS):
            raise BenchmarkError(f"there is no scenario {name}; there are {', '.join(SCENARIOS)}")
    return {
        key: scenario
        for key, scenario in SCENARIOS.items()
        if key in names or ((long or not scenario.long) and (not names or any(_called(key, name) for name in names)))
    }


def _called(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}-")
