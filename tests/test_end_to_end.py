"""The whole way: the simulator and the bridge as processes, real frames and real requests between them."""

import json
from collections import Counter, defaultdict
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.trial.unittest import TestCase

from mqhooks.events import HOOKS
from mqhooks.tools.receiver import Behaviour, receiver_site
from tests.processes import Twistd
from tests.waiting import until

COUNT = 50_000


class EndToEndTests(TestCase):
    timeout = 900

    async def start(self, behaviour=None, more="", via="sidecar"):
        """Start an endpoint, and a bridge that sends it every hook in VerneMQ's own words: one delivery for each event."""
        site, self.tally = receiver_site(reactor, behaviour)
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site)
        self.addCleanup(site.close)
        self.addCleanup(port.stopListening)
        directory = Path(self.mktemp())
        directory.mkdir()
        rules = "\n".join(f"{{ event = {hook} }}" for hook in HOOKS)
        config = directory / "mqhooks.conf"
        url = f"http://127.0.0.1:{port.getHost().port}/hook"
        # What a busy machine answered late would come again.
        webhook = f'url = "{url}"\ncancel_timeout = 60s\nevents = [\n{rules}\n]\n{more}'
        config.write_text(f"webhook {{ {webhook} }}", encoding="utf-8")
        self.bridge = Twistd(self, "mqhooks", f"--{via}-port", "0", "--admin-port", "0", "--config", str(config.resolve()))
        match = await self.bridge.until(r"listening for VerneMQ.* on (127\.0\.0\.1:\d+)")
        self.target = f"tcp:{match[1]}" if via == "sidecar" else f"http://{match[1]}/vernemq"

    async def simulate(self, *options):
        simulator = Twistd(
            self, "mqhooks-simulate", "--target", self.target, "--rate", "0", "--count", str(COUNT), "--seed", "7", *options
        )
        match = await simulator.until(rf"sent {COUNT} events over 100 connections .*: (on_.*)")
        return {hook: int(count) for hook, count in (pair.split() for pair in match[1].split(", "))}

    async def arrived(self, count):
        await until(lambda: self.tally.distinct >= count, self.timeout)

    async def assert_all_arrived(self, sent):
        await self.arrived(COUNT)
        delivered = [received for received in self.tally.received if received.status == 200]
        self.assertEqual(len(delivered), COUNT)
        self.assertEqual(Counter("on_" + json.loads(received.body)["action"] for received in delivered), sent)
        self.assertEqual(set(sent), set(HOOKS))

    async def test_everything_arrives_exactly_once_by_vernemqs_own_webhooks(self):
        await self.start(via="webhooks")
        count = 3_000
        simulator = Twistd(
            self, "mqhooks-simulate", "--via=webhooks", "--target", self.target, "--rate=0", f"--count={count}", "--seed=7"
        )
        # Those of hooks that the plugin does not have are left out.
        match = await simulator.until(r"sent (\d+) events over .*, 200: \1: (on_.*)", anywhere=True)
        sent = {hook: int(number) for hook, number in (pair.split() for pair in match[2].split(", "))}
        total = sum(sent.values())
        await self.arrived(total)
        actions = Counter("on_" + json.loads(received.body)["action"] for received in self.tally.received)
        self.assertEqual(actions, sent)
        self.assertEqual(self.tally.requests, total)

    async def test_everything_arrives_exactly_once(self):
        await self.start()
        await self.assert_all_arrived(await self.simulate())
        self.assertEqual(self.tally.requests, COUNT)
        self.assertLessEqual(self.tally.most_open, 32)

    async def test_everything_arrives_from_an_endpoint_that_fails_and_drops(self):
        # With the stock waits a delivery that fails eight times in a row is still on its way after four minutes.
        await self.start(Behaviour(fail=0.2, drop=0.05), "retry { initial = 50ms, max = 500ms }")
        await self.assert_all_arrived(await self.simulate("--clients", "5000"))
        self.assertGreater(self.tally.requests, COUNT * 1.2)

    async def test_a_clients_messages_arrive_in_the_order_they_were_read(self):
        await self.start(Behaviour(fail=0.1, drop=0.02), "retry.initial = 50ms")
        # One connection: what is read is in the order of the events.
        await self.assert_in_order(5000, "--connections", "1", "--rate", "0", "--clients", "50")

    async def test_a_clients_messages_that_are_spread_over_connections_arrive_in_order(self):
        await self.start(more="merge_window = 1s")
        await self.assert_in_order(10_000, "--connections", "100", "--rate", "5000", "--clients", "20")

    async def assert_in_order(self, count, *options):
        simulator = Twistd(
            self,
            "mqhooks-simulate",
            "--target",
            self.target,
            "--count",
            str(count),
            "--mix",
            "on_publish=1",
            "--seed",
            "7",
            *options,
        )
        await simulator.until(f"sent {count} events")
        await self.arrived(count)
        order = defaultdict(list)
        for received in self.tally.received:
            body = json.loads(received.body)
            if received.status == 200 and body["action"] == "publish":
                order[body["client_id"]].append(json.loads(body["payload"])["seq"])
        self.assertGreater(len(order), 10)
        for client, numbers in order.items():
            self.assertEqual(numbers, sorted(numbers), client)
