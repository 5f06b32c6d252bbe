"""The stage of a scenario: producer, bridge and endpoint, and the checks at the end."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater

from mqhooks.tools.ports import free_port
from tests.campaign.endpoint import Recorder
from tests.campaign.producer import Poster, Producer
from tests.metrics import broken_identities, read_metrics
from tests.ports import kept_port
from tests.processes import Twistd

UNDER_WAY = 0.1
"""Seconds before a kill within which an answer may have been given and not noted. Usually a hundredth is enough."""

POOL = 8
"""Connections of a webhook. Each may bring an answer that a killed bridge had not read."""

COUNTERS = ("accepted", "delivered", "dead", "dropped")


@dataclass
class Row:
    """
    The result of a scenario.

    :param title: the scenario, in words.
    :param sent: events written to a socket, including those that a process had not read when it ended.
    :param requests: requests that came.
    :param twice: requests that came again after a final answer.
    :param broken: the promises that were broken.
    :param silences: for each kind of fault its number, the longest silence of a partition in seconds, and the longest allowed.
    :param late: silences that were longer than allowed.
    """

    title: str
    sent: int = 0
    accepted: int = 0
    delivered: int = 0
    dead: int = 0
    dropped: int = 0
    pending: int = 0
    requests: int = 0
    twice: int = 0
    broken: list[str] = field(default_factory=list)
    silences: dict[str, tuple[int, float | None, float | None]] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)


class Ground:
    """
    Base of every stage: temporary directories, cleaning up, and waiting.

    :param reactor: for everything.
    :param seed: for all random choices.
    :ivar broken: the promises that were broken.
    """

    def __init__(self, reactor, seed):
        self.reactor = reactor
        self.random = Random(seed)
        self.broken = []
        self._cleanups = []

    # The methods of a test case that Twistd needs.

    def mktemp(self):
        """Make a new directory."""
        directory = tempfile.mkdtemp(prefix="mqhooks-campaign-")
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def addCleanup(self, function, *args, **kwargs):  # noqa: N802
        """Call a function at the end."""
        self._cleanups.append((function, args, kwargs))

    async def clean(self):
        """Stop everything."""
        while self._cleanups:
            function, args, kwargs = self._cleanups.pop()
            await maybeDeferred(function, *args, **kwargs)

    def wait(self, seconds):
        """Return a ``Deferred`` that fires after some seconds."""
        return deferLater(self.reactor, seconds)

    async def until(self, condition, what, seconds=30.0):
        """Wait for a condition to become true, or note a broken promise."""
        end = self.reactor.seconds() + seconds
        while not condition():
            if self.reactor.seconds() > end:
                self.broken.append(f"{what}: not within {seconds:g} s")
                return False
            await self.wait(0.05)
        return True


class Stage(Ground):
    """
    One bridge after the other on the same outbox.

    :param reactor: for everything.
    :param seed: for all random choices.
    :param directory: the outbox's directory; a new one by default.
    :param webhooks: the webhooks' names.
    :param outbox: more settings for the outbox.
    :param before: Python that the bridge runs before anything else.
    :param via: the way that events come: ``sidecar`` or ``webhooks``.
    :param producer: settings of the producer.
    :ivar log: the output of bridges that have ended.
    :ivar forgotten: arrived deliveries that a damaged outbox no longer counts.
    :ivar gone: pending deliveries that were lost with a damaged outbox.
    :ivar anew: whether the outbox was set aside, and another has taken its place.
    """

    def __init__(self, reactor, seed, *, directory=None, webhooks=("hook",), outbox="", before="", via="sidecar", **producer):
        super().__init__(reactor, seed)
        self.before = before
        self.via = via
        self.webhooks = webhooks
        self._producer = producer
        self.home = Path(self.mktemp())
        self.directory = Path(directory or self.home)
        self.outbox = self.directory / "outbox"
        self.endpoints = {name: Recorder(reactor, kept_port(self)) for name in webhooks}
        for endpoint in self.endpoints.values():
            endpoint.open()
        self.endpoint = self.endpoints[webhooks[0]]
        self.port = free_port()
        self.admin_port = free_port()
        blocks = "\n".join(
            f'{name} {{ url = "http://127.0.0.1:{endpoint.number}/{name}", pool_size = {POOL}, cancel_timeout = 1s, '
            "merge_window = 20ms, retry { initial = 50ms, max = 400ms }, events = [ { event = on_message_publish } ] }"
            for name, endpoint in self.endpoints.items()
        )
        self.config = self.home / "mqhooks.conf"
        self.config.write_text(
            f'webhooks {{ {blocks} }}\nmqhooks {{ outbox {{ kind = sqlite, path = "{self.outbox}"\n{outbox} }} }}',
            encoding="utf-8",
        )
        self.runs = []
        self._noted = {}
        self.forgotten = self.gone = 0
        self.anew = False
        self.log = ""
        self.bridge = None
        self.producer = None

    async def clean(self):
        """Stop everything."""
        closed = None if self.producer is None else self.producer.stop()
        for endpoint in self.endpoints.values():
            await endpoint.close()
        await super().clean()
        if closed is not None:
            # The bridge is gone, so the producer's connections end, whatever they wait for.
            await closed

    @property
    def refused(self):
        """The number of events answered with another status than 200; they may still have been accepted."""
        return len(self.producer.refused) if self.via == "webhooks" else 0

    # The play.

    async def keeps_up(self, name, most, what):
        """
        Wait until an endpoint is at most ``most`` deliveries behind the events that were sent. More are sent all the time, so
        an endpoint that is held up never catches up; one on a busy machine does.
        """

        def behind():
            return self.producer.total - len({arrival.id for arrival in self.endpoints[name].arrivals})

        if not await self.until(lambda: behind() <= most, what, 5.0):
            self.broken.append(f"{what}: it is {behind()} deliveries behind")

    async def start(self, *, produce=True):
        """Start a bridge, and the producer if there is none yet."""
        run = len(self.runs)
        for endpoint in self.endpoints.values():
            endpoint.run = run
        self.bridge = Twistd(
            self,
            "mqhooks",
            f"--{self.via}-port",
            str(self.port),
            "--admin-port",
            str(self.admin_port),
            "--config",
            str(self.config),
            before=self.before,
        )
        self.runs.append(self.bridge)
        await self.bridge.until(r"listening for VerneMQ('s webhooks)? on", anywhere=True)
        if produce and self.producer is None:
            self.produce()

    def says(self, text):
        """Return whether the current bridge has logged this."""
        return text in self.bridge.stdout + self.bridge.stderr

    def produce(self, **settings):
        """Start a producer."""
        producer = Poster if self.via == "webhooks" else Producer
        self.producer = producer(self.reactor, self.port, **{**self._producer, **settings})

    def unnoted(self):
        """Note that the bridge may be unable to record answers from now on."""
        self._noted.setdefault(len(self.runs) - 1, self.reactor.seconds())

    async def kill(self):
        """End the bridge with SIGKILL."""
        self.unnoted()
        if self.bridge.ended.called:
            self.broken.append(f"run {len(self.runs) - 1} had ended by itself")
        await maybeDeferred(self.bridge.kill)
        await self._ended()

    async def terminate(self):
        """Check the bridge's metrics, and end it with SIGTERM; it has to stop in order."""
        if not self.bridge.ended.called:
            await self._check_metrics()
        if not self.bridge.ended.called:
            self.bridge.process.signalProcess("TERM")
        await self.ended()

    async def _check_metrics(self):
        run = len(self.runs) - 1
        try:
            samples = await read_metrics(self.reactor, f"http://127.0.0.1:{self.admin_port}")
        except Exception as error:
            if not self.bridge.ended.called:
                self.broken.append(f"run {run}: no metrics: {error!r}")
        else:
            self.broken += [f"run {run}: {what}" for what in broken_identities(samples)]

    async def ended(self):
        """Wait for the bridge to end in order."""
        if not await self.until(lambda: self.bridge.ended.called, "the end in order", 20.0):
            await self.kill()
            return
        # twistd ends itself with the signal that it got, after it has stopped everything.
        if "Server Shut Down." not in self.bridge.stdout + self.bridge.stderr:
            self.broken.append(f"run {len(self.runs) - 1}: not stopped in order")
        await self._ended()

    async def _ended(self):
        await self.until(
            lambda: not any(endpoint.connections for endpoint in self.endpoints.values()), "the end of its connections"
        )
        log = self.bridge.stdout + self.bridge.stderr
        if "Traceback" in log:
            self.broken.append("a traceback: " + log[log.index("Traceback") :][:2000])
        self.log += log

    async def drain(self, seconds=60.0):
        """Send nothing more, and wait until all events that were read have arrived."""
        if self.producer is not None:
            await self.producer.stop()
        await self.until(self._settled, "everything delivered", seconds)

    def _settled(self):
        counters = self.counters()
        if self.handed_over() or any(pending for *_, pending in counters.values()):
            return False
        whole = self.producer.whole
        expected = sum(self.producer.sent[life] for life in whole) - self.refused
        for name, (*_, dropped, _) in counters.items():
            seen = {(one.life, one.number) for one in self.endpoints[name].arrivals if one.life in whole}
            if len(seen) + dropped < expected:
                return False
        return True

    async def finish(self, title, said=""):
        """
        Drain, stop, check, and return the result.

        :param said: text that the log has to contain.
        """
        await self.drain()
        await self.terminate()
        if said not in self.log:
            self.broken.append(f"the log does not say {said!r}")
        row = Row(title, broken=self.broken)
        counters = self.audit()
        for name in self.webhooks:
            self._check(name, counters.get(name, (0,) * 5), row)
        row.sent = self.producer.total
        return row

    def set_aside(self, *, delivered, pending, handed):
        """Note that the outbox was set aside, and how many of its deliveries were salvaged."""
        self.anew = True
        self.forgotten = delivered
        self.gone = max(pending - handed, 0)

    # The outbox's numbers.

    def counters(self):
        """Return each webhook's counters as last committed, with the number of pending deliveries."""
        with closing(sqlite3.connect(f"file:{self.outbox}?mode=ro", uri=True)) as connection:
            return _counters(connection)

    def handed_over(self):
        """Return how many rows from another process the bridge has not taken in yet."""
        with closing(sqlite3.connect(f"file:{self.outbox}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM inbox").fetchone()[0]

    def free_pages(self):
        """Return the number of free pages in the file."""
        with closing(sqlite3.connect(f"file:{self.outbox}?mode=ro", uri=True)) as connection:
            return connection.execute("PRAGMA freelist_count").fetchone()[0]

    def audit(self):
        """Compare the counters of a file that is not in use with its rows, in a copy, and return the counters."""
        with tempfile.TemporaryDirectory() as directory:
            copy = os.path.join(directory, "outbox")
            for suffix in ("", "-wal"):
                if os.path.exists(f"{self.outbox}{suffix}"):
                    shutil.copyfile(f"{self.outbox}{suffix}", f"{copy}{suffix}")
            with closing(sqlite3.connect(copy)) as connection:
                counters = _counters(connection)
                if not counters:
                    return counters
                pending, sizes = defaultdict(int), defaultdict(int)
                progress = dict(connection.execute("SELECT batch, settled FROM progress").fetchall())
                for number, count, size in connection.execute("SELECT id, count, length(deliveries) FROM batch").fetchall():
                    pending[number >> 40] += count - sum(byte.bit_count() for byte in progress.pop(number, b""))
                    sizes[number >> 40] += size
                if progress:
                    self.broken.append(f"{len(progress)} marks of rows that are not there")
                for key, name, size in connection.execute("SELECT id, name, bytes FROM webhook").fetchall():
                    if pending[key] != counters[name][-1]:
                        self.broken.append(f"{name}: {pending[key]} pending in the rows, {counters[name]} counted")
                    if sizes[key] != size:
                        self.broken.append(f"{name}: {sizes[key]} bytes in the rows, {size} counted")
                    (dead,) = connection.execute("SELECT count(*) FROM dead WHERE webhook = ?", (name,)).fetchone()
                    if dead != counters[name][2]:
                        self.broken.append(f"{name}: {dead} dead letters, {counters[name][2]} counted")
                return counters

    # The endpoint's view.

    def _check(self, name, counters, row):
        accepted, delivered, dead, dropped, pending = counters
        for key, value in zip((*COUNTERS, "pending"), counters, strict=True):
            setattr(row, key, getattr(row, key) + value)
        arrivals = self.endpoints[name].arrivals
        row.requests += len(arrivals)
        attempts = defaultdict(list)
        for arrival in arrivals:
            attempts[arrival.id].append(arrival)
        arrived = {id_ for id_, those in attempts.items() if any(200 <= one.status < 300 for one in those)}
        refused = {id_ for id_, those in attempts.items() if those[-1].status == 410}
        expect = self.broken.append
        if pending:
            expect(f"{name}: {pending} pending after draining")
        # Deliveries in flight when the file was damaged may be lost, or come twice.
        unsure = POOL + self.gone if self.anew else 0
        if abs(accepted + self.forgotten - len(attempts) - dropped) > unsure:
            expect(f"{name}: {accepted} accepted, {len(attempts)} ever sent, {dropped} dropped")
        if abs(delivered + self.forgotten - len(arrived - refused)) > unsure:
            expect(f"{name}: {delivered} delivered, {len(arrived - refused)} answered with success")
        if dead != len(refused):
            expect(f"{name}: {dead} dead letters, {len(refused)} refused")
        self._check_stream(name, attempts, dropped, row)
        if not self.anew:
            self.broken += [f"{name}: {what}" for what in out_of_order(arrivals)]
        unread = defaultdict(list)
        for id_, those in attempts.items():
            self._check_attempts(id_, those, row, unread)
        for complaints in unread.values():
            if len(complaints) > POOL:
                self.broken += complaints

    def _check_stream(self, name, attempts, dropped, row):
        """Check that each connection was read without gaps: to its end if it was closed in order."""
        ids = {}
        read = defaultdict(set)
        for id_, those in attempts.items():
            place = those[0].life, those[0].number
            if ids.setdefault(place, id_) != id_ or any((one.life, one.number) != place for one in those):
                self.broken.append(f"{name}: event {place} has several ids")
            read[those[0].life].add(those[0].number)
        if self.via == "webhooks":
            lost = [place for place in self.producer.answered if place not in ids]
            if lost:
                self.broken.append(f"{name}: {len(lost)} answered 200 and lost")
        gaps = 0
        for life, sent in self.producer.sent.items():
            numbers = read[life]
            end = sent if life in self.producer.whole else max(numbers, default=-1) + 1
            gaps += end - len(numbers)
        if gaps > dropped + self.gone + self.refused:
            self.broken.append(f"{name}: {gaps} events are missing, {dropped} counted as dropped")

    def _check_attempts(self, id_, attempts, row, unread):
        if len({attempt.body for attempt in attempts}) > 1:
            self.broken.append(f"{id_}: the body changed")
        for one, other in pairwise(attempts):
            if one.whole and one.retry_after and one.run == other.run and other.arrived < one.ended + one.retry_after - 0.02:
                self.broken.append(f"{id_}: again {other.arrived - one.ended:.2f} s after Retry-After: {one.retry_after}")
            if not one.settled:
                continue
            row.twice += 1
            kill = self._noted.get(one.run)
            complaint = f"{id_}: came again in run {other.run}, answered in run {one.run}"
            if kill is None or other.run == one.run:
                self.broken.append(complaint)
            elif one.ended < kill - UNDER_WAY:
                unread[one.run].append(f"{complaint}, {kill - one.ended:.3f} s before the kill")


def out_of_order(arrivals):
    """Return at most one line about deliveries whose first attempts or successes were out of their client's order."""
    tried, delivered = {}, {}
    seen, done = set(), set()
    wrong = []
    for arrival in arrivals:
        if arrival.status == 410:
            # Refused for good. If a kill undoes that, the delivery comes again, and late.
            done.add(arrival.id)
        for last, known, counts in ((tried, seen, True), (delivered, done, 200 <= arrival.status < 300)):
            if counts and arrival.id not in known:
                known.add(arrival.id)
                if arrival.sequence <= last.get(arrival.client, 0):
                    wrong.append(f"{arrival.client}: {arrival.sequence} after {last[arrival.client]} in run {arrival.run}")
                last[arrival.client] = arrival.sequence
    return [f"{len(wrong)} out of order, first {wrong[0]}"] if wrong else []


def _counters(connection):
    if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'webhook'").fetchone()[0]:
        # The first bridge was killed before it had made the tables. Should they stay missing, the final checks notice.
        return {}
    rows = connection.execute(f"SELECT name, {', '.join(COUNTERS)} FROM webhook").fetchall()
    return {name: (*numbers, numbers[0] - sum(numbers[1:])) for name, *numbers in rows}
