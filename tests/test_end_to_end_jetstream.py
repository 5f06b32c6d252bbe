"""The whole way with an outbox in JetStream: bridges as processes, real frames, real requests, a real cluster."""

import json
import signal
from collections import defaultdict
from pathlib import Path
from urllib.request import urlopen

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from mqhooks.tools.ports import free_port
from mqhooks.tools.receiver import Behaviour, receiver_site
from tests.metrics import read_metrics
from tests.natscluster import Cluster
from tests.ports import kept_port
from tests.processes import Twistd
from tests.waiting import until

CLIENTS = 50
"""Each registers first, which the webhook does not want."""


class Away:
    """How an endpoint answers that is away until its status is another."""

    status = 503
    delay = 0.0
    secrets = ()

    def answer(self, luck):
        """Choose an answer."""
        return self.status


class EndToEndTests(TestCase):
    timeout = 300

    async def start(self, behaviour=None, size=3, role="both", page=0):
        self.nodes = await Cluster(self, size, sync="always").start()
        site, self.tally = receiver_site(reactor, behaviour)
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site)
        self.addCleanup(site.close)
        self.addCleanup(port.stopListening)
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        servers = ", ".join(f'"nats://{server}"' for server in self.nodes.servers)
        self.config = directory / "mqhooks.conf"
        self.config.write_text(
            f"""
            webhook {{
              url = "http://127.0.0.1:{port.getHost().port}/hook", events = [ {{ event = on_publish }} ]
              retry {{ initial = 50ms, max = 500ms }}
            }}
            mqhooks.outbox {{
              kind = jetstream, servers = [{servers}], replicas = {size}, partitions = 4, max_size = 64MiB, sync = full
            }}
            """
        )
        self.play(role)
        return await self.bridge(page)

    def play(self, role):
        """Have the next bridges play a role."""
        text = self.config.read_text().replace("sync = full", f"sync = full, role = {role}")
        self.config = self.config.with_name(f"{role}.conf")
        self.config.write_text(text)

    async def bridge(self, page=0):
        bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--admin-port", str(page), "--config", str(self.config))
        match = await bridge.until(r"listening for VerneMQ on (127\.0\.0\.1:\d+)")
        return bridge, f"tcp:{match[1]}"

    def simulate(self, target, count, rate=0, size=100):
        options = ("--mix", "on_publish=1", "--connections", "1", "--clients", str(CLIENTS), "--seed", "7")
        options += ("--rate", str(rate), "--count", str(count), "--payload-size", str(size))
        simulator = Twistd(self, "mqhooks-simulate", "--target", target, *options)
        return simulator.until(f"sent {count} events")

    def check_order(self, count):
        order = defaultdict(list)
        for received in self.tally.received:
            if received.status == 200:
                body = json.loads(received.body)
                order[body["client_id"]].append(json.loads(body["payload"])["seq"])
        for client, numbers in order.items():
            first = list(dict.fromkeys(numbers))
            self.assertEqual(first, sorted(first), client)
        self.assertEqual(sum(len(set(numbers)) for numbers in order.values()), count)

    async def test_through_failures_of_endpoint_engine_and_bridge(self):
        bridge, target = await self.start(Behaviour(fail=0.05, drop=0.02))
        other, _ = await self.bridge()
        for each in (bridge, other):
            await each.until(r"MQ_webhook_\d: now delivered here")
        sent = self.simulate(target, 8000, rate=1000)
        await until(lambda: self.tally.distinct >= 2000)
        self.nodes.kill(0)
        await until(lambda: self.tally.distinct >= 4000)
        await other.kill()
        await sent
        await until(lambda: self.tally.distinct >= 8000 - CLIENTS)
        self.check_order(8000 - CLIENTS)
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr + other.stdout + other.stderr)

    async def test_without_a_majority_for_some_seconds_vernemq_is_read(self):
        page = kept_port(self)
        bridge, target = await self.start(page=page)
        await bridge.until(r"(?s)(MQ_webhook_\d: now delivered here.*){4,}")
        sent = self.simulate(target, 8000, rate=1000, size=2000)
        await until(lambda: self.tally.distinct >= 500)

        async def sidecar(name):
            return (await read_metrics(reactor, f"http://127.0.0.1:{page}"))[f"mqhooks_source_{name}_total", "sidecar"]

        before = await sidecar("pauses")
        for number in (0, 1):
            self.nodes.stop(number)
        # That is six times as much as may wait otherwise.
        enough = await sidecar("events") + 3000

        async def read():
            return await sidecar("events") >= enough

        await until(read)
        self.assertEqual(await sidecar("pauses"), before)
        for number in (0, 1):
            self.nodes.go_on(number)
        await sent
        await until(lambda: self.tally.distinct >= 8000 - CLIENTS)
        self.check_order(8000 - CLIENTS)
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)

    async def test_restart_resumes_what_is_pending_in_order(self):
        behaviour = Away()
        page = kept_port(self)
        bridge, target = await self.start(behaviour, size=1, page=page)
        await self.simulate(target, 3000)
        await until(lambda: self.tally.requests > 5)

        async def pending():
            return (await read_metrics(reactor, f"http://127.0.0.1:{page}"))["mqhooks_outbox_pending", "webhook"]

        # What the bridge has not read when it ends is lost.
        while await pending() < 3000 - CLIENTS:
            await deferLater(reactor, 0.05)
        bridge.process.signalProcess("TERM")
        await bridge.ended
        self.assertIn("given up", bridge.stdout)
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)
        behaviour.status = 200
        await self.bridge()
        await until(lambda: sum(received.status == 200 for received in self.tally.received) >= 3000 - CLIENTS)
        self.check_order(3000 - CLIENTS)

    async def test_bridge_that_stands_still_keeps_the_order(self):
        bridge, target = await self.start()
        other, _ = await self.bridge()
        for each in (bridge, other):
            await each.until(r"MQ_webhook_\d: now delivered here")
        sent = self.simulate(target, 8000, rate=1000)
        await until(lambda: self.tally.distinct >= 1000)
        other.process.signalProcess(signal.SIGSTOP)
        await bridge.until(r"(?s)(MQ_webhook_\d: now delivered here.*){4,}")
        await until(lambda: self.tally.distinct >= 4000)
        other.process.signalProcess(signal.SIGCONT)
        await sent
        await until(lambda: self.tally.distinct >= 8000 - CLIENTS)
        self.check_order(8000 - CLIENTS)
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr + other.stdout + other.stderr)
        self.assertRegex(other.stdout, r"MQ_webhook_\d: now delivered by \S+")

    async def test_webhooks_come_and_go_with_a_reload(self):
        bridge, target = await self.start(size=1)
        other, _ = await self.bridge()
        for each in (bridge, other):
            await each.until(r"MQ_webhook_\d: now delivered here")
        before = self.config.read_text()
        self.config.write_text(before.replace("webhook {", "webhooks.audit {"))
        bridge.process.signalProcess(signal.SIGHUP)
        await bridge.until(r"MQ_audit_3: now delivered here")
        # Who does not have the webhook any more leaves it to who does.
        await other.until(r"(?s)(MQ_webhook_\d: now delivered here.*){4,}")
        await self.simulate(target, 500)
        await until(lambda: self.tally.distinct >= 500 - CLIENTS)
        self.config.write_text(before)
        bridge.process.signalProcess(signal.SIGHUP)
        await bridge.until("configuration reloaded: webhook webhook added, webhook audit removed")
        await other.until(r"MQ_webhook_\d: given up")
        bridge.process.signalProcess("TERM")
        await bridge.ended
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr + other.stdout + other.stderr)

    async def test_one_accepts_what_another_delivers(self):
        accepting, target = await self.start(size=1, role="accept")
        await accepting.until("webhook webhook: no bridge delivers: start one with outbox.role = deliver or both")
        await self.simulate(target, 500)
        self.config = self.config.with_name("both.conf")
        self.config.write_text(self.config.with_name("accept.conf").read_text().replace("role = accept", "role = deliver"))
        admin = free_port()
        delivering = Twistd(self, "mqhooks", "--admin-port", str(admin), "--sidecar-port", "0", "--config", str(self.config))
        await delivering.until(r"(?s)(MQ_webhook_\d: now delivered here.*){4,}")
        await until(lambda: self.tally.distinct >= 500 - CLIENTS)
        self.check_order(500 - CLIENTS)
        ready = await deferToThread(lambda: json.load(urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5)))
        self.assertEqual(ready["checks"]["listening"], {"ok": True, "reason": "not for VerneMQ: outbox.role is deliver"})
        self.assertNotIn("listening for VerneMQ", delivering.stdout)
        self.assertNotIn("now delivered here", accepting.stdout)
        for bridge in (accepting, delivering):
            bridge.process.signalProcess("TERM")
            await bridge.ended
            self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)
