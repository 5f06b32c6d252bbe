"""
Several bridges with an outbox in JetStream, three servers of NATS, and links between them that can be cut.

Each bridge has a producer of its own that posts events as VerneMQ's webhooks do: what was answered 200 is accepted.
"""

from __future__ import annotations

import signal
import subprocess
from collections import defaultdict
from contextlib import asynccontextmanager
from itertools import count, pairwise
from pathlib import Path

from twisted.internet.threads import deferToThread

from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import JetStream
from mqhooks.nats.settings import NATSSettings
from mqhooks.outbox.jetstream.layout import Names, partition_of
from mqhooks.outbox.stored import decode_handed
from mqhooks.tools.ports import free_port
from tests.campaign.endpoint import Recorder
from tests.campaign.link import Link
from tests.campaign.producer import Poster
from tests.campaign.stage import Ground, Row, out_of_order
from tests.metrics import broken_identities, read_metrics
from tests.natscluster import Cluster
from tests.ports import kept_port
from tests.processes import Twistd

PARTITIONS = 4
"""Each producer has clients in all of them."""

CONNECTIONS = 24
"""How many each producer has, with one client on each."""

NODES = 3

REFUSED = 97
"""Of so many events of a client one is refused for good, an early one."""

NETWORK = 'lame_duck_duration: "30s"\nlame_duck_grace_period: "1s"'

CONFIG = """
webhook {{
  url = "http://127.0.0.1:{endpoint}/webhook", pool_size = {pool}, cancel_timeout = 1s, request_timeout = 2s
  merge_window = 20ms, retry {{ initial = 50ms, max = 400ms }}, events = [ {{ event = on_message_publish }} ]
}}
mqhooks.outbox {{
  kind = jetstream, servers = [{servers}], partitions = {partitions}, max_size = 4MiB, sync = full
}}
"""

AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 3600\n"


def client(producer, connection):
    """Find a name for a connection's client: connections next to each other have clients in all partitions by turns."""
    names = (f"client-{producer}-{connection}-{number}" for number in count())
    return next(name for name in names if partition_of(name, PARTITIONS) == connection % PARTITIONS)


class Member:
    """
    A bridge: one process after the other, on the same ports.

    :param stage: where it plays.
    :param number: which one it is.
    :ivar links: to each server of NATS.
    """

    def __init__(self, stage, number):
        self.stage = stage
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
        """Write its configuration."""
        servers = ", ".join(f'"nats://127.0.0.1:{link.number}"' for link in self.links)
        settings = {"endpoint": self.stage.endpoint.number, "pool": self.pool, "servers": servers, "partitions": PARTITIONS}
        self.config.write_text(CONFIG.format(**settings), encoding="utf-8")

    async def start(self, before=""):
        """Start it, and wait until it accepts."""
        ports = ("--webhooks-port", str(self.port), "--admin-port", str(self.admin_port))
        self.process = Twistd(self.stage, "mqhooks", *ports, "--config", str(self.config), before=before)
        await self.process.until("listening for VerneMQ's webhooks on", anywhere=True)

    def signal(self, name):
        """Send it a signal."""
        if self.process.ended.called:
            self.stage.broken.append(f"a bridge has ended by itself: {self.output[-2000:]}")
        else:
            self.process.process.signalProcess(getattr(signal, f"SIG{name}"))

    async def kill(self):
        """End it with SIGKILL."""
        self.signal("KILL")
        await self.ended()

    async def terminate(self):
        """End it with SIGTERM, which has to be in order."""
        self.signal("TERM")
        if not await self.stage.until(lambda: self.process.ended.called, "the end in order", 20.0):
            await self.kill()
        elif "Server Shut Down." not in self.output:
            self.stage.broken.append("a bridge was not stopped in order")
        await self.ended()

    async def ended(self):
        """Wait for its end, and keep what it said."""
        await self.stage.until(lambda: self.process.ended.called, "the end")
        self.log += self.output

    @property
    def output(self):
        """What the process has said that runs."""
        return self.process.stdout + self.process.stderr


class ClusterStage(Ground):
    """
    Bridges, servers and an endpoint.

    :param reactor: for everything.
    :param seed: of all chance.
    :param bridges: how many.
    :param rate: how many events each bridge gets in a second.
    :param hold: how many seconds most faults last.
    :param disk: a small file system of its own for the last server's files, or ``None``.
    :ivar faults: what was done, from when until when.
    :ivar mood: how the endpoint answers what it does not refuse for good.
    """

    def __init__(self, reactor, seed, *, bridges=2, rate=200, hold=3.0, disk=None):
        super().__init__(reactor, seed)
        self.home = Path(self.mktemp())
        self.disk = disk
        stores = [self.mktemp() for _ in range(NODES - 1)] + [disk or self.mktemp()]
        self.nodes = Cluster(self, NODES, sync="always", more=NETWORK, advertise=False, stores=stores)
        self.endpoint = Recorder(reactor, kept_port(self))
        self.endpoint.open()
        self.endpoint.behave = self._behave
        self.mood = self.endpoint.accept
        self.members = [Member(self, number) for number in range(bridges)]
        self.rate = rate
        self.hold = hold
        self.producers = []
        self.faults = []
        self._flowed = {}

    def _behave(self, arrival):
        self._flowed[partition_of(arrival.client, PARTITIONS)] = arrival.arrived
        if arrival.sequence % REFUSED == 5:
            self.endpoint.answer(arrival, 410)
        else:
            self.mood(arrival)

    async def clean(self):
        """End everything."""
        closed = [producer.stop() for producer in self.producers]
        await self.endpoint.close()
        await super().clean()
        for each in closed:
            # Without the bridges their connections end, whatever they wait for.
            await each

    async def start(self):
        """Start servers, bridges and producers; all partitions are owned, by all bridges."""
        await self.nodes.start()
        for member in self.members:
            await member.start()
        for member in self.members:
            await member.process.until(r"MQ_webhook_\d+: is ours now")
        for number, member in enumerate(self.members):
            producer = Poster(
                self.reactor,
                member.port,
                connections=CONNECTIONS,
                clients=1,
                rate=self.rate,
                name=lambda connection, _, number=number: client(number, connection),
                first=number * 1_000_000,
            )
            self.producers.append(producer)
        await self.flows()

    async def well(self):
        """Wait until all servers are well."""
        await self.nodes.ready(60)

    async def flows(self, what="deliveries of all partitions"):
        """Wait until what is accepted from now on arrives, of each partition."""
        now = self.reactor.seconds() + 0.3
        await self.until(lambda: all(self._flowed.get(number, 0) > now for number in range(PARTITIONS)), what)

    # The end.

    async def count(self):
        """Let the endpoint be away and nothing more come; what then counts as pending has to be what still arrives."""
        await self.endpoint.close()
        await self.wait(1.0)
        rates = [producer.each for producer in self.producers]
        for producer in self.producers:
            producer.each = 0.0
        await self.still(lambda: sum(producer.total for producer in self.producers), "no more events")
        pending = await self.still(self.pending, "the same deliveries pending")
        before = len(self.settled())
        self.endpoint.open()
        await self.drained()
        after = len(self.settled())
        if after - before != pending:
            self.broken.append(f"{pending} were pending, {after - before} arrived")
        for producer, rate in zip(self.producers, rates, strict=True):
            producer.each = rate

    async def still(self, look, what):
        """Wait until something stays the same for a second; returns what it is."""
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
        """What all bridges say is pending; notes what does not add up."""
        return sum([samples["mqhooks_outbox_pending", "webhook"] for samples in await self.metrics()])

    async def metrics(self):
        """The metrics of all bridges."""
        every = [await read_metrics(self.reactor, f"http://127.0.0.1:{member.admin_port}") for member in self.members]
        for samples in every:
            self.broken += broken_identities(samples)
        return every

    async def drained(self, seconds=60.0):
        """Wait until nothing is pending."""
        end = self.reactor.seconds() + seconds
        while await self.pending():
            if self.reactor.seconds() > end:
                self.broken.append(f"everything delivered: not within {seconds:g} s")
                return
            await self.wait(0.1)

    def settled(self):
        """The ids of what was answered for good."""
        return {one.id for one in self.endpoint.arrivals if one.whole and (200 <= one.status < 300 or one.status == 410)}

    async def finish(self, title):
        """Drain, look at everything, and say what it came to."""
        self.mood = self.endpoint.accept
        for producer in self.producers:
            await producer.stop()
        await self.drained()
        letters = await self.letters()
        pending = await self.pending()
        for member in self.members:
            await member.terminate()
        row = Row(title, broken=self.broken, sent=sum(producer.total for producer in self.producers), pending=int(pending))
        self._check(letters, row)
        log = "".join(member.log for member in self.members)
        for word in ("Traceback", "are lost", "not there any more"):
            if word in log:
                where = log.index(word)
                self.broken.append(f"the log says: {log[max(where - 300, 0) : where + 2000]}")
        self._silences(row)
        return row

    async def letters(self):
        """The ids of the dead letters in JetStream."""
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
            final = [index for index, one in enumerate(those) if one.whole and (200 <= one.status < 300 or one.status == 410)]
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
        """Find the longest silence of a partition in each kind of fault, while the endpoint was well."""
        times = defaultdict(list)
        seen = set()
        for arrival in self.endpoint.arrivals:
            if arrival.id not in seen:
                seen.add(arrival.id)
                times[partition_of(arrival.client, PARTITIONS)].append(arrival.arrived)
        for kind, most, began, ended, measured in self.faults:
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


# What goes wrong.


async def bridge_killed(stage):
    member = stage.random.choice(stage.members)
    await member.kill()
    await stage.wait(stage.hold)
    await member.start()


async def bridge_still(stage):
    member = stage.random.choice(stage.members)
    member.signal("STOP")
    await stage.wait(stage.random.choice([1.0, 4.0]))
    member.signal("CONT")


async def bridge_restarted(stage):
    member = stage.random.choice(stage.members)
    await member.terminate()
    await member.start()


async def bridges_rolled(stage):
    for member in stage.members:
        await member.terminate()
        await member.start()
        await stage.flows()


async def reloaded(stage):
    for member in stage.members:
        member.pool = 12 - member.pool + 4
        member.configure()
        before = len(member.output)
        member.signal("HUP")
        await stage.until(lambda: "configuration reloaded" in member.output[before:], "a reload")  # noqa: B023


async def clock_ahead(stage):
    member = stage.random.choice(stage.members)
    await member.terminate()
    await member.start(before=AHEAD)


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


async def bridge_cut_off(stage):
    member = stage.random.choice(stage.members)
    for link in member.links:
        link.cut()
    await stage.wait(stage.hold)
    for link in member.links:
        link.mend()


async def bridge_unheard(stage):
    member = stage.random.choice(stage.members)
    for link in member.links:
        link.hold()
    await stage.wait(stage.hold)
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
"""How many seconds a partition may be silent at most."""

FAULTS = {
    "a bridge killed, 3 s": (bridge_killed, DELIVERER),
    "a bridge stands still, 1 or 4 s": (bridge_still, DELIVERER),
    "a bridge restarted in order": (bridge_restarted, PLANNED),
    "all bridges restarted, one after the other": (bridges_rolled, PLANNED),
    "a bridge started with its clock an hour ahead": (clock_ahead, PLANNED),
    "configurations reloaded": (reloaded, PLANNED),
    "a server of NATS killed, 3 s": (node_killed, NODE),
    "a server of NATS stands still, 4 s": (node_still, NODE),
    "a server of NATS restarted in order": (node_restarted, NODE),
    "all servers of NATS restarted, one after the other": (nodes_rolled, NODE),
    "the link of a bridge and a server cut, 3 s": (link_cut, DELIVERER),
    "all links of a bridge cut, 3 s": (bridge_cut_off, DELIVERER),
    "all links of a bridge hold everything back, 3 s": (bridge_unheard, DELIVERER),
    "all links slow, 100 ms each way, 3 s": (links_slow, DELIVERER),
    "the disk of a server of NATS full, 3 s": (disk_full, NODE),
    "the outbox full, the endpoint down": (outbox_full, None),
    "the endpoint down, 2 s": (endpoint_down, None),
    "the endpoint away; all that waits counted": (counted, None),
}
"""What goes wrong, and for how many seconds a partition may be silent then."""


def fill(path):
    """Leave no room on a file system."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass


@asynccontextmanager
async def small_disk(ground):
    """A file system of 64 MiB; ``None`` where none may be mounted."""
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


async def cluster(reactor, seed, *, times=40, kinds=tuple(FAULTS), rate=200, hold=3.0, tell=lambda what: None):
    """One fault after the other, of all kinds alike; in a third of them the endpoint is slow, or fails now and then."""
    ground = Ground(reactor, seed)
    try:
        async with small_disk(ground) as disk:
            kinds = [kind for kind in kinds if disk is not None or FAULTS[kind][0] is not disk_full]
            stage = ClusterStage(reactor, seed, rate=rate, hold=hold, disk=disk)
            try:
                await stage.start()
                await _play(stage, kinds, times, tell)
                return await stage.finish(f"two bridges and three servers of NATS, {times} faults")
            finally:
                await stage.clean()
    finally:
        await ground.clean()


async def _play(stage, kinds, times, tell):
    random, endpoint = stage.random, stage.endpoint
    bad = [endpoint.after(0.05), endpoint.shares(random, {500: 0.05, 503: 0.05}), endpoint.drip(0.001)]
    left = []
    for number in range(times):
        left = left or random.sample(kinds, len(kinds))
        kind = left.pop()
        fault, most = FAULTS[kind]
        unwell = most is None or random.random() < 1 / 3
        await stage.wait(random.uniform(0.2, 1.0))
        began = stage.reactor.seconds()
        if unwell:
            stage.mood = random.choice(bad)
        await fault(stage)
        stage.mood = endpoint.accept
        await stage.well()
        await stage.flows(f"deliveries of all partitions after: {kind}")
        ended = stage.reactor.seconds()
        stage.faults.append((kind, most, began, ended, not unwell))
        tell(f"{number + 1}: {kind}, {ended - began:.1f} s{', the endpoint not well' if unwell else ''}; {len(stage.broken)}")
