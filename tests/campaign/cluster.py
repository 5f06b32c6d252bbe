"""
Faults in a cluster: bridges that accept, bridges that deliver, an outbox in JetStream, three NATS servers, and links between
them.

Each acceptor has its own producer, which posts events as VerneMQ's webhooks do: an event answered with 200 is accepted.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections import defaultdict
from contextlib import asynccontextmanager
from functools import partial
from itertools import count, pairwise
from operator import attrgetter
from pathlib import Path
from tempfile import mkdtemp
from time import time

from twisted.internet.threads import deferToThread

from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import JetStream
from mqhooks.nats.settings import NATSSettings
from mqhooks.outbox.jetstream.layout import Names, partition_of
from mqhooks.outbox.stored import decode_handed
from mqhooks.tools.ports import free_port
from tests.campaign.clock import DayTime
from tests.campaign.endpoint import Recorder
from tests.campaign.link import Link
from tests.campaign.producer import Poster
from tests.campaign.stage import Ground, Row, out_of_order
from tests.metrics import broken_identities, read_metrics
from tests.natscluster import Cluster
from tests.ports import kept_port
from tests.processes import Twistd

PARTITIONS = 4
"""Partitions of the outbox. Each producer has clients in all of them."""

CONNECTIONS = 24
"""Connections of each producer, with one client on each."""

LIVES = 1_000_000
"""The numbers of a producer's connections begin at its own number times this."""

ROLES = ("accept", "accept", "deliver", "deliver")
"""The role of each bridge."""

NODES = 3

REFUSED = 97
"""
The endpoint refuses one of this many events of each client for good, each client's at a time of its own. If all clients waited
with such an event, nothing would tell the endpoint from one that refuses everything.
"""

NETWORK = 'lame_duck_duration: "30s"\nlame_duck_grace_period: "1s"'

CONFIG = """
webhook {{
  url = "http://127.0.0.1:{endpoint}/webhook", pool_size = {pool}, cancel_timeout = 1s, request_timeout = 2s
  merge_window = 20ms, retry {{ initial = 50ms, max = 400ms }}, events = [ {{ event = on_message_publish }} ]
}}
mqhooks.outbox {{
  kind = jetstream, role = {role}, path = "{path}", servers = [{servers}], partitions = {partitions}
  max_size = 4MiB, sync = full
}}
"""

RELOADED = "configuration reloaded: webhook webhook changed"
"""A bridge's answer to SIGHUP when its configuration has changed."""

HOUR = 3600.0


def client(producer, connection):
    """Find a name for a connection's client, so that successive connections have clients in successive partitions."""
    names = (f"client-{producer}-{connection}-{number}" for number in count())
    return next(name for name in names if partition_of(name, PARTITIONS) == connection % PARTITIONS)


class Member:
    """
    A bridge: one process after the other, on the same ports.

    :param stage: its stage.
    :param number: its number.
    :param role: ``accept``, ``deliver``, or ``both``.
    :ivar links: a link to each NATS server.
    :ivar daytime: its time of day.
    :ivar producer: the producer that posts to it; ``None`` for none.
    :ivar first_life: number of the producer's first connection to the current process.
    """

    def __init__(self, stage, number, role):
        self.stage = stage
        self.role = role
        self.accepts, self.delivers = role != "deliver", role != "accept"
        self.daytime = DayTime(stage.mktemp())
        self.producer = None
        self.first_life = 0
        self.links = [Link(stage.reactor, port) for port in stage.nodes.clients]
        for link in self.links:
            stage.addCleanup(link.close)
        self.port, self.admin_port = free_port(), free_port()
        self.config = stage.home / f"bridge-{number}.conf"
        self.pool = 8
        self.configure()
        self.log = ""
        self.process = None

    def configure(self):
        """Write the bridge's configuration."""
        servers = ", ".join(f'"nats://127.0.0.1:{link.number}"' for link in self.links)
        settings = {"endpoint": self.stage.endpoint.number, "pool": self.pool, "servers": servers, "partitions": PARTITIONS}
        path = self.config.with_suffix("")
        self.config.write_text(CONFIG.format(**settings, role=self.role, path=path), encoding="utf-8")

    async def start(self):
        """Start the bridge, and wait until it accepts events, or serves its status page if it only delivers."""
        if self.producer is not None:
            self.first_life = self.producer.next_life
        ports = ("--webhooks-port", str(self.port), "--admin-port", str(self.admin_port))
        self.process = Twistd(self.stage, "mqhooks", *ports, "--config", str(self.config), before=self.daytime.before)
        what = "listening for VerneMQ's webhooks on" if self.accepts else "the status page is on"
        await self.process.until(what, anywhere=True)

    async def owns(self):
        """Wait until the bridge owns a partition."""
        await self.process.until(r"MQ_webhook_\d+: now delivered here", anywhere=True)

    def signal(self, name):
        """Send the process a signal."""
        if self.process.ended.called:
            self.stage.broken.append(f"a bridge has ended by itself: {self.output[-2000:]}")
        else:
            self.process.process.signalProcess(getattr(signal, f"SIG{name}"))

    @property
    def lives(self):
        """The numbers of the producer's connections to the current process."""
        return range(0) if self.producer is None else range(self.first_life, self.producer.next_life)

    def ahead(self):
        """Return the seconds by which its clock was ahead when it accepted the newest of its events that have arrived."""
        newest = next(one for one in reversed(self.stage.endpoint.arrivals) if one.life in self.lives)
        return json.loads(newest.body)["ts"] / 1000 - time()

    async def kill(self):
        """End the process with SIGKILL."""
        self.signal("KILL")
        await self.ended()

    async def terminate(self):
        """End the process with SIGTERM; it has to stop in order."""
        self.signal("TERM")
        if not await self.stage.until(lambda: self.process.ended.called, "the end in order", 20.0):
            await self.kill()
            return
        if "Server Shut Down." not in self.output:
            self.stage.broken.append("a bridge was not stopped in order")
        await self.ended()

    async def ended(self):
        """Wait for the process to end, and keep its output."""
        await self.stage.until(lambda: self.process.ended.called, "the end")
        self.log += self.output

    @property
    def output(self):
        """The output of the current process."""
        return self.process.stdout + self.process.stderr


class ClusterStage(Ground):
    """
    Bridges, servers and an endpoint.

    :param reactor: for everything.
    :param seed: for all random choices.
    :param roles: the role of each bridge.
    :param rate: events a second for each bridge that accepts.
    :param hold: duration of most faults, in seconds.
    :param disk: a small file system for the last server's files, or ``None``.
    :ivar faults: each fault's kind, the longest silence allowed, begin and end, and whether it counts for the silences.
    :ivar mood: answers the requests that the endpoint does not refuse for good.
    :ivar acceptors: the bridges that accept; likewise ``deliverers``.
    """

    def __init__(self, reactor, seed, *, roles=ROLES, rate=200, hold=3.0, disk=None):
        super().__init__(reactor, seed)
        self.home = Path(self.mktemp())
        self.disk = disk
        stores = [self.mktemp() for _ in range(NODES - 1)] + [disk or self.mktemp()]
        self.nodes = Cluster(self, NODES, sync="always", more=NETWORK, advertise=False, stores=stores)
        self.endpoint = Recorder(reactor, kept_port(self))
        self.endpoint.open()
        self.endpoint.behave = self._behave
        self.mood = self.endpoint.accept
        self.members = [Member(self, number, role) for number, role in enumerate(roles)]
        self.acceptors = [member for member in self.members if member.accepts]
        self.deliverers = [member for member in self.members if member.delivers]
        self.rate = rate
        self.hold = hold
        self.producers = []
        self.faults = []
        self._flowed = {}

    def _behave(self, arrival):
        self._flowed[arrival.life // LIVES, partition_of(arrival.client, PARTITIONS)] = arrival.arrived
        if (arrival.sequence + 7 * arrival.life) % REFUSED == 5:
            self.endpoint.answer(arrival, 410)
        else:
            self.mood(arrival)

    async def clean(self):
        """Stop everything."""
        closed = [producer.stop() for producer in self.producers]
        await self.endpoint.close()
        await super().clean()
        for each in closed:
            # The bridges are gone, so the connections end, whatever they wait for.
            await each

    async def start(self):
        """Start servers, bridges and producers, and wait until each deliverer owns a partition and deliveries arrive."""
        await self.nodes.start()
        for member in self.members:
            await member.start()
        for member in self.deliverers:
            await member.owns()
        for number, member in enumerate(self.acceptors):
            member.first_life = number * LIVES
            member.producer = Poster(
                self.reactor,
                member.port,
                connections=CONNECTIONS,
                clients=1,
                rate=self.rate,
                name=lambda connection, _, number=number: client(number, connection),
                first=member.first_life,
            )
        self.producers = [member.producer for member in self.acceptors]
        await self.flows()

    async def well(self):
        """Wait until all servers are healthy, or note what they report."""
        try:
            await self.nodes.ready(60)
        except AssertionError:
            ailments = await deferToThread(self.nodes.ailments)
            self.broken.append(f"all servers of NATS well: not within 60 s: {'; '.join(ailments)}")

    async def flows(self, what="deliveries of all partitions"):
        """Wait until events accepted from now on arrive, for each producer and each partition."""
        now = self.reactor.seconds() + 0.3
        all_ = [(producer, partition) for producer in range(len(self.producers)) for partition in range(PARTITIONS)]
        await self.until(lambda: all(self._flowed.get(each, 0) > now for each in all_), what)

    # Checks.

    async def count(self):
        """Close the endpoint, send nothing more, and check that exactly the pending deliveries arrive when it is back."""
        await self.endpoint.close()
        await self.wait(1.0)
        rates = [producer.each for producer in self.producers]
        for producer in self.producers:
            producer.each = 0.0
        await self.still(lambda: sum(producer.total for producer in self.producers), "no more events")
        pending = await self.still(self.pending, "the same deliveries pending")
        before = len(self.endpoint.arrivals)
        self.endpoint.open()
        await self.drained()
        # Deliveries that a partition's former owner made in its last moments arrive again.
        arrived = {one.id for one in self.endpoint.arrivals[before:] if one.settled}
        if len(arrived) != pending:
            self.broken.append(f"{pending:g} were pending, {len(arrived)} arrived")
        await self.accounts()
        for producer, rate in zip(self.producers, rates, strict=True):
            producer.each = rate

    async def still(self, look, what):
        """Wait until a value stays the same for a second, and return it."""
        seen, since = None, 0.0
        for _ in range(300):
            value = look()
            if hasattr(value, "__await__"):
                value = await value
            if value != seen:
                seen, since = value, self.reactor.seconds()
            elif self.reactor.seconds() - since > 1.0:
                return seen
            await self.wait(0.1)
        self.broken.append(f"{what}: not within 30 s")
        return seen

    async def pending(self):
        """Return the number of pending deliveries that all bridges report."""
        return sum([samples["mqhooks_outbox_pending", "webhook"] for samples in await self.metrics()])

    async def metrics(self):
        """Return the metrics of all bridges, and note identities that do not hold."""
        every = [await read_metrics(self.reactor, f"http://127.0.0.1:{member.admin_port}") for member in self.members]
        for samples in every:
            self.broken += broken_identities(samples)
        return every

    async def accounts(self):
        """
        Compare the events that each bridge has accepted since its start, by its metrics, with those that have arrived. Call it
        when nothing is pending.

        The metrics leave out events that an earlier process accepted. Fewer events may have been answered with 200 than were
        accepted: an answer may be lost.
        """
        for member, samples in zip(self.members, await self.metrics(), strict=True):
            accepted = samples["mqhooks_deliveries_accepted_total", "events", "webhook"]
            lives = member.lives
            arrived = {(one.life, one.number) for one in self.endpoint.arrivals if one.life in lives}
            answered = [life for producer in self.producers for life, _ in producer.answered if life in lives]
            if not len(answered) <= accepted == len(arrived):
                what = f"{accepted:g} accepted, {len(answered)} answered 200, {len(arrived)} arrived"
                self.broken.append(f"a bridge, role = {member.role}: {what}")

    async def drained(self, seconds=60.0):
        """Wait until nothing is pending."""
        end = self.reactor.seconds() + seconds
        while await self.pending():
            if self.reactor.seconds() > end:
                self.broken.append(f"everything delivered: not within {seconds:g} s")
                return
            await self.wait(0.1)

    async def finish(self, title):
        """Drain, check everything, and return the result."""
        self.mood = self.endpoint.accept
        for producer in self.producers:
            await producer.stop()
        await self.drained()
        await self.accounts()
        letters = await self.letters()
        pending = await self.pending()
        for member in self.members:
            await member.terminate()
        row = Row(title, broken=self.broken, sent=sum(producer.total for producer in self.producers), pending=int(pending))
        self._check(letters, row)
        log = "".join(member.log for member in self.members)
        for word in ("Traceback", "are lost", "a delivery of it is lost"):
            if word in log:
                where = log.index(word)
                self.broken.append(f"the log says: {log[max(where - 300, 0) : where + 2000]}")
        self._silences(row)
        if self.broken:
            self._keep_logs()
        return row

    def _keep_logs(self):
        kept = Path(mkdtemp(prefix="mqhooks-campaign-logs-"))
        for number, member in enumerate(self.members):
            (kept / f"bridge-{number}.log").write_text(member.log, encoding="utf-8")
        self.broken.append(f"the bridges' logs are in {kept}")

    async def letters(self):
        """Return the ids of the dead letters in JetStream."""
        client = NATSClient(self.reactor, NATSSettings(self.nodes.servers))
        client.start()
        try:
            await client.when_connected()
            names, js, found, start = Names("MQ", "webhook"), JetStream(client), [], 1
            while True:
                batch = await js.direct_batch(names.letters, start, names.dead)
                if not batch.messages:
                    return found
                found += [decode_handed("webhook", message.payload).delivery.id for message in batch.messages]
                start = batch.messages[-1].sequence + 1
        finally:
            await client.close()

    def _check(self, letters, row):
        expect = self.broken.append
        arrivals = self.endpoint.arrivals
        row.requests = len(arrivals)
        attempts = defaultdict(list)
        for arrival in arrivals:
            attempts[arrival.id].append(arrival)
        places = {}
        for id_, those in attempts.items():
            place = those[0].life, those[0].number
            if places.setdefault(place, id_) != id_ or any((one.life, one.number) != place for one in those):
                expect(f"event {place} has several ids")
            if len({one.body for one in those}) > 1:
                expect(f"{id_}: the body changed")
            final = [index for index, one in enumerate(those) if one.settled]
            row.twice += len(those) - 1 - final[0] if final else 0
        answered = {place for producer in self.producers for place in producer.answered}
        lost = sorted(answered - set(places))
        if lost:
            expect(f"{len(lost)} answered 200 and lost, first {lost[:5]}")
        self.broken += out_of_order(arrivals)
        arrived = {id_ for id_, those in attempts.items() if any(200 <= one.status < 300 for one in those)}
        refused = {id_ for id_, those in attempts.items() if any(one.status == 410 for one in those)}
        row.accepted, row.delivered, row.dead = len(attempts), len(arrived), len(set(letters))
        if set(letters) != refused:
            expect(f"{len(set(letters))} dead letters, {len(refused)} refused")
        if row.accepted != row.delivered + row.dead + row.pending:
            expect(f"{row.accepted} accepted, {row.delivered} delivered, {row.dead} dead, {row.pending} pending")

    def _silences(self, row):
        """Find the longest silence of a partition in each kind of fault, while the endpoint was healthy."""
        times = defaultdict(list)
        seen = set()
        for arrival in self.endpoint.arrivals:
            if arrival.id not in seen:
                seen.add(arrival.id)
                times[partition_of(arrival.client, PARTITIONS)].append(arrival.arrived)
        for kind, most, began, ended, measured in sorted(self.faults, key=lambda fault: list(FAULTS).index(fault[0])):
            gaps = [
                after - before
                for moments in times.values()
                for before, after in pairwise(moments)
                if before < ended and after > began
            ]
            number, longest, _ = row.silences.get(kind, (0, None, None))
            silence = max(gaps, default=0.0) if measured else None
            if silence is not None and most is not None and silence > most:
                row.late.append(f"{kind}: a partition was silent for {silence:.2f} s")
            longest = silence if longest is None else longest if silence is None else max(longest, silence)
            row.silences[kind] = number + 1, longest, most


# The faults.


async def killed(stage, members):
    member = stage.random.choice(members(stage))
    await member.kill()
    await stage.wait(stage.hold)
    await member.start()


async def still(stage, members):
    member = stage.random.choice(members(stage))
    member.signal("STOP")
    await stage.wait(stage.random.choice([1.0, 4.0]))
    member.signal("CONT")


async def restarted(stage, members):
    member = stage.random.choice(members(stage))
    await member.terminate()
    await member.start()


async def bridges_rolled(stage):
    for member in stage.members:
        await member.terminate()
        await member.start()
        if member.delivers:
            await member.owns()
        await stage.flows()


async def reloaded(stage):
    for member in stage.members:
        # 8 and 12 in turn.
        member.pool = 20 - member.pool
        member.configure()
        before = len(member.output)
        member.signal("HUP")
        await stage.until(lambda: RELOADED in member.output[before:], "a reload")  # noqa: B023


async def clock_jumps(stage, members):
    member = stage.random.choice(members(stage))
    for offset in (stage.random.choice([-HOUR, HOUR]), 0.0):
        member.daytime.set(offset)
        if member.accepts:
            await stage.until(lambda: abs(member.ahead() - offset) < 60.0, "events of the time that it is now")  # noqa: B023
        await stage.flows("deliveries of all partitions after the clock has jumped")
        await stage.wait(stage.hold / 2)


async def clock_ahead(stage):
    member = stage.random.choice(stage.members)
    await member.terminate()
    member.daytime.set(HOUR)
    await member.start()
    await stage.flows()
    member.daytime.set(0.0)


async def node_killed(stage):
    number = stage.random.randrange(NODES)
    stage.nodes.kill(number)
    await stage.wait(stage.hold)
    stage.nodes.spawn(number)


async def node_still(stage):
    number = stage.random.randrange(NODES)
    stage.nodes.stop(number)
    await stage.wait(4.0)
    stage.nodes.go_on(number)


async def node_restarted(stage, number=None):
    number = stage.random.randrange(NODES) if number is None else number
    process = stage.nodes.processes[number]
    process.send_signal(signal.SIGUSR2)  # nats-server's lame duck mode
    await stage.until(lambda: process.poll() is not None, "a server's end")
    stage.nodes.spawn(number)


async def nodes_rolled(stage):
    for number in range(NODES):
        await node_restarted(stage, number)
        await stage.well()
        await stage.flows()


async def link_cut(stage):
    link = stage.random.choice(stage.random.choice(stage.members).links)
    link.cut()
    await stage.wait(stage.hold)
    link.mend()


async def cut_off(stage, members):
    member = stage.random.choice(members(stage))
    for link in member.links:
        link.cut()
    await stage.wait(stage.hold)
    for link in member.links:
        link.mend()


async def unheard(stage, members):
    member = stage.random.choice(members(stage))
    for link in member.links:
        link.hold()
    await stage.wait(stage.hold)
    for link in member.links:
        link.mend()


async def spilled(stage):
    """Cut an acceptor off until it accepts into its file; half of the time, also kill it."""
    member = stage.random.choice(stage.acceptors)
    for link in member.links:
        link.cut()
    answered = len(member.producer.answered)
    await stage.until(lambda: len(member.producer.answered) > answered + 2 * CONNECTIONS, "the file takes what comes")
    if stage.random.random() < 0.5:
        await member.kill()
        await member.start()
        await stage.wait(1.0)
    for link in member.links:
        link.mend()


async def links_slow(stage):
    for member in stage.members:
        for link in member.links:
            link.slow(0.1)
    await stage.wait(stage.hold)
    for member in stage.members:
        for link in member.links:
            link.mend()


async def disk_full(stage):
    filler = Path(stage.disk, "filler")
    await deferToThread(fill, filler)
    await stage.wait(stage.hold)
    filler.unlink()
    stage.nodes.kill(NODES - 1)
    stage.nodes.spawn(NODES - 1)


async def outbox_full(stage):
    await stage.endpoint.close()
    for producer in stage.producers:
        producer.padding = "x" * 20_000
    before = sum(len(producer.refused) for producer in stage.producers)
    await stage.until(lambda: sum(len(producer.refused) for producer in stage.producers) > before, "no more room", 60.0)
    for producer in stage.producers:
        producer.padding = ""
    await stage.wait(1.0)
    stage.endpoint.open()


async def endpoint_down(stage):
    await stage.endpoint.close()
    await stage.wait(2.0)
    stage.endpoint.open()


async def counted(stage):
    await stage.count()


DELIVERER, NODE, PLANNED = 5.0, 10.0, 1.0
"""Seconds that a partition may be silent after a fault of a deliverer, a server, or without one. An acceptor holds up nobody
except its own producer."""

ACCEPTORS, DELIVERERS = attrgetter("acceptors"), attrgetter("deliverers")

FAULTS = {
    "an acceptor killed, 3 s": (partial(killed, members=ACCEPTORS), PLANNED),
    "a deliverer killed, 3 s": (partial(killed, members=DELIVERERS), DELIVERER),
    "an acceptor stands still, 1 or 4 s": (partial(still, members=ACCEPTORS), PLANNED),
    "a deliverer stands still, 1 or 4 s": (partial(still, members=DELIVERERS), DELIVERER),
    "an acceptor restarted in order": (partial(restarted, members=ACCEPTORS), PLANNED),
    "a deliverer restarted in order": (partial(restarted, members=DELIVERERS), PLANNED),
    "all bridges restarted, one after the other": (bridges_rolled, PLANNED),
    "the clock of an acceptor jumps by an hour, and back": (partial(clock_jumps, members=ACCEPTORS), PLANNED),
    "the clock of a deliverer jumps by an hour, and back": (partial(clock_jumps, members=DELIVERERS), PLANNED),
    "a bridge restarted with its clock an hour ahead; it is put right": (clock_ahead, PLANNED),
    "configurations reloaded": (reloaded, PLANNED),
    "a server of NATS killed, 3 s": (node_killed, NODE),
    "a server of NATS stands still, 4 s": (node_still, NODE),
    "a server of NATS restarted in order": (node_restarted, NODE),
    "all servers of NATS restarted, one after the other": (nodes_rolled, NODE),
    "the link of a bridge and a server cut, 3 s": (link_cut, DELIVERER),
    "all links of an acceptor cut, 3 s": (partial(cut_off, members=ACCEPTORS), PLANNED),
    "all links of a deliverer cut, 3 s": (partial(cut_off, members=DELIVERERS), DELIVERER),
    "all links of an acceptor cut, until its file takes what comes": (spilled, PLANNED),
    "all links of an acceptor hold everything back, 3 s": (partial(unheard, members=ACCEPTORS), PLANNED),
    "all links of a deliverer hold everything back, 3 s": (partial(unheard, members=DELIVERERS), DELIVERER),
    "all links slow, 100 ms each way, 3 s": (links_slow, DELIVERER),
    "the disk of a server of NATS full, 3 s": (disk_full, NODE),
    "the outbox full, the endpoint down": (outbox_full, None),
    "the endpoint down, 2 s": (endpoint_down, None),
    "the endpoint away; all that waits counted": (counted, None),
}
"""The faults, and for each the seconds that a partition may be silent; ``None`` for no limit."""


def fill(path):
    """Fill a file system by writing a file."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass


@asynccontextmanager
async def small_disk(ground):
    """Mount a file system of 64 MiB for the ``with``; give ``None`` where that is not allowed."""
    directory = ground.mktemp()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", directory]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield directory if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", directory], check=True)


async def cluster(reactor, seed, *, times=40, kinds=tuple(FAULTS), roles=ROLES, rate=200, hold=3.0, tell=lambda what: None):
    """Cause faults one after the other, all kinds equally often; at each third the endpoint is slow, failing or down."""
    ground = Ground(reactor, seed)
    try:
        async with small_disk(ground) as disk:
            kinds = [kind for kind in kinds if disk is not None or FAULTS[kind][0] is not disk_full]
            if "both" in roles:
                # All bridges that accept also deliver.
                kinds = [kind for kind in kinds if "an acceptor" not in kind]
            stage = ClusterStage(reactor, seed, roles=roles, rate=rate, hold=hold, disk=disk)
            try:
                await stage.start()
                await _play(stage, kinds, times, tell)
                return await stage.finish(f"{_named(roles)} and three servers of NATS, {times} faults")
            finally:
                await stage.clean()
    finally:
        await ground.clean()


def _named(roles):
    return "two bridges that accept, two that deliver," if roles == ROLES else f"{len(roles)} bridges"


async def _play(stage, kinds, times, tell):
    random, endpoint = stage.random, stage.endpoint
    bad = [endpoint.after(0.05), endpoint.shares(random, {500: 0.05, 503: 0.05}), endpoint.drip(0.001)]
    left = []
    for number in range(times):
        left = left or random.sample(kinds, len(kinds))
        kind = left.pop()
        fault, most = FAULTS[kind]
        # In turn, so that each kind is also measured with a healthy endpoint.
        unwell = most is None or (number // len(kinds) + kinds.index(kind)) % 3 == 0
        await stage.wait(random.uniform(0.2, 1.0))
        began = stage.reactor.seconds()
        down = None
        if unwell:
            stage.mood = random.choice(bad)
            if most is not None and random.random() < 1 / 4:
                await endpoint.close()
                down = stage.wait(2.0).addCallback(lambda _: endpoint.open())
        await fault(stage)
        if down is not None:
            await down
        stage.mood = endpoint.accept
        await stage.well()
        await stage.flows(f"deliveries of all partitions after: {kind}")
        ended = stage.reactor.seconds()
        stage.faults.append((kind, most, began, ended, not unwell))
        tell(f"{number + 1}: {kind}, {ended - began:.1f} s{', the endpoint not well' if unwell else ''}; {len(stage.broken)}")
