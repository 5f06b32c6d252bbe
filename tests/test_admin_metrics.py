"""The metrics, and what the documentation says of them."""

import json
import re
from itertools import pairwise
from pathlib import Path

from twisted.internet import reactor

from mqhooks.admin.server import AdminService
from mqhooks.admin.settings import AdminSettings
from mqhooks.events import HOOKS
from mqhooks.testing import make_event
from tests.admin import AdminCase, Engine
from tests.frames import envelope
from tests.metrics import broken_identities, read_metrics
from tests.waiting import until

DOCS = Path(__file__).parent.parent / "docs"


class MetricsTests(AdminCase):
    async def read(self):
        samples = await read_metrics(reactor, self.origin)
        self.assertEqual(broken_identities(samples), [])
        return samples

    async def test_what_is_counted(self):
        await self.start("billing", "audit")
        self.publish(4)
        self.send(
            b"",
            b"\xff",
            envelope(make_event("on_register").message, "vmq.Unheard"),
            envelope(make_event("on_client_gone").message),
        )
        await until(lambda: all(sink.outbox.counts.delivered == 4 for sink in self.sinks))
        samples = await self.read()
        expected = {
            ("mqhooks_frames_total",): 8,
            ("mqhooks_frames_empty_total",): 1,
            ("mqhooks_frames_malformed_total",): 1,
            ("mqhooks_frames_unknown_total",): 1,
            ("mqhooks_events_received_total", "on_publish"): 4,
            ("mqhooks_events_received_total", "on_client_gone"): 1,
            ("mqhooks_events_received_total", "on_register"): 0,
            ("mqhooks_sidecar_connections",): 1,
            ("mqhooks_events_filtered_total", "audit"): 1,
            ("mqhooks_events_matched_total", "audit"): 4,
            ("mqhooks_deliveries_accepted_total", "events", "audit"): 4,
            ("mqhooks_deliveries_delivered_total", "billing"): 4,
            ("mqhooks_delivery_attempts_total", "delivered", "billing"): 4,
            ("mqhooks_answer_seconds_count", "billing"): 4,
            ("mqhooks_outbox_pending", "billing"): 0,
            ("mqhooks_outbox_oldest_seconds", "billing"): 0,
            ("mqhooks_webhook_up", "billing"): 1,
            ("mqhooks_outbox_writable",): 1,
            ("mqhooks_events_late_total",): 0,
        }
        self.assertEqual({key: samples.get(key) for key in expected}, expected)
        self.assertGreater(samples["process_resident_memory_bytes",], 1e6)
        hooks = {key[1] for key in samples if key[0] == "mqhooks_events_received_total"}
        self.assertEqual(hooks, set(HOOKS))

    async def test_what_fails(self):
        await self.start()
        await self.bury(3)
        self.endpoint.answer = lambda request: request.connection.reply(503)
        self.publish(12)
        await until(lambda: self.sinks[0].down_since is not None)
        await self.json("/api/webhooks/billing/pause", "POST")
        samples = await self.read()
        self.assertEqual(samples["mqhooks_deliveries_dead_total", "billing"], 3)
        self.assertEqual(samples["mqhooks_dead_letters", "billing"], 3)
        self.assertEqual(samples["mqhooks_delivery_attempts_total", "refused", "billing"], 3)
        self.assertGreaterEqual(samples["mqhooks_delivery_attempts_total", "status", "billing"], 10)
        self.assertEqual(samples["mqhooks_outbox_pending", "billing"], 12)
        self.assertGreater(samples["mqhooks_outbox_oldest_seconds", "billing"], 0)
        self.assertGreater(samples["mqhooks_outbox_bytes",], 0)
        self.assertTrue(0 < samples["mqhooks_outbox_used_ratio", "billing"] < 0.01)
        self.assertEqual((samples["mqhooks_webhook_up", "billing"], samples["mqhooks_webhook_paused", "billing"]), (0, 1))

    async def test_counters_only_grow(self):
        await self.start()
        seen = [await self.read()]
        await self.bury(3)
        seen.append(await self.read())
        await self.json("/api/dead-letters/1/replay", "POST")
        await until(lambda: self.sinks[0].outbox.counts.delivered == 1)
        seen.append(await self.read())
        await self.json("/api/dead-letters/purge", "POST", body={"all": True})
        seen.append(await self.read())
        for before, after in pairwise(seen):
            counters = {key: value for key, value in before.items() if re.search("_(total|count|bucket|sum)$", key[0])}
            self.assertEqual({key: after[key] for key in counters if after[key] < counters[key]}, {})
        self.assertEqual(seen[-1]["mqhooks_deliveries_accepted_total", "replayed", "billing"], 1)
        self.assertEqual(seen[-1]["mqhooks_dead_letters", "billing"], 0)

    async def test_what_was_left_is_resumed(self):
        await self.start()
        await self.json("/api/webhooks/billing/pause", "POST")
        self.publish(5)
        await until(lambda: self.sinks[0].outbox.counts.accepted == 5)
        await self.stop()
        await self.start(path=self.path)
        await until(lambda: self.sinks[0].outbox.counts.delivered == 5)
        samples = await self.read()
        self.assertEqual(samples["mqhooks_deliveries_accepted_total", "resumed", "billing"], 5)
        self.assertEqual(samples["mqhooks_deliveries_accepted_total", "events", "billing"], 0)
        self.assertEqual(samples["mqhooks_deliveries_delivered_total", "billing"], 5)

    async def test_an_outbox_in_memory(self):
        await self.start(memory=True)
        self.publish(3)
        await until(lambda: self.sinks[0].outbox.counts.delivered == 3)
        samples = await self.read()
        self.assertEqual(samples["mqhooks_deliveries_delivered_total", "billing"], 3)

    async def test_names_are_escaped(self):
        await self.start('a"b\\c\nd')
        samples = await self.read()
        self.assertIn(("mqhooks_outbox_pending", 'a"b\\c\nd'), samples)

    async def test_openmetrics_when_it_is_asked_for(self):
        await self.start()
        _, text = await self.ask("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        self.assertIn("application/openmetrics-text", self.headers["content-type"])
        self.assertTrue(text.endswith("# EOF\n"))
        _, text = await self.ask("/metrics")
        self.assertIn("text/plain", self.headers["content-type"])

    async def test_two_bridges_in_one_process_are_apart(self):
        await self.start()
        other = AdminService(reactor, self.bridge, AdminSettings("tcp:0"))
        other.startService()
        self.addCleanup(other.stopService)
        await read_metrics(reactor, f"http://127.0.0.1:{other.address.port}")
        await self.read()


class ClusterTests(AdminCase):
    async def test_every_bridge_tells_of_all(self):
        await self.start()
        samples = await read_metrics(reactor, self.origin)
        self.assertNotIn(("mqhooks_cluster_pending", "billing"), samples)
        self.bridge.engine = Engine()
        samples = await read_metrics(reactor, self.origin)
        expected = {
            ("mqhooks_cluster_members",): 2,
            ("mqhooks_cluster_connected",): 1,
            ("mqhooks_cluster_pending", "billing"): 31,
            ("mqhooks_cluster_partitions_unowned", "billing"): 1,
            ("mqhooks_cluster_replicas_missing", "billing"): 1,
            ("mqhooks_cluster_partition_owned", "0", "billing"): 1,
            ("mqhooks_cluster_partition_owned", "2", "billing"): 0,
            ("mqhooks_cluster_partition_pending", "0", "billing"): 30,
            ("mqhooks_cluster_partition_oldest_seconds", "2", "billing"): 0,
        }
        self.assertEqual({key: samples[key] for key in expected}, expected)
        self.assertGreater(samples["mqhooks_cluster_oldest_seconds", "billing"], 1e6)

    async def test_nobody_knows_how_many_replicas_there_are(self):
        await self.start()
        self.bridge.engine = Engine(node_1=[])
        self.bridge.engine.server = None
        samples = await read_metrics(reactor, self.origin)
        self.assertNotIn(("mqhooks_cluster_replicas_missing", "billing"), samples)
        self.assertEqual(samples["mqhooks_cluster_partitions_unowned", "billing"], 3)
        self.assertEqual(samples["mqhooks_cluster_connected",], 0)


class DocumentationTests(AdminCase):
    async def exposed(self):
        await self.start()
        self.bridge.engine = Engine()
        _, text = await self.ask("/metrics")
        return text

    async def test_every_metric_is_told_with_its_labels(self):
        text = await self.exposed()
        told = dict(re.findall(r"^   \* - ``(mqhooks_\w+)(\{.+?\})?``$", (DOCS / "metrics.rst").read_text(), re.M))
        known = {}
        for name, type_ in re.findall(r"^# TYPE (mqhooks_\w+) (\w+)$", text, re.M):
            sample = re.search(rf"^{name}(?:_bucket)?(\{{.*?\}})? ", text, re.M)
            labels = set(re.findall(r'(\w+)="', sample[1] or "")) - {"le"}
            self.assertIn(type_, ("counter", "gauge", "histogram"))
            known[name] = labels
        known.pop("mqhooks_info")
        self.assertEqual({name: set(re.findall(r"\w+", labels)) for name, labels in told.items()}, known)

    async def test_dashboard_and_alerts_use_what_there_is(self):
        text = await self.exposed()
        names = set(re.findall(r"^(\w+)(?:\{.*\})? ", text, re.M))
        dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        variables = [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
        alerts = (DOCS / "alerts.yml").read_text()
        rules = re.findall(r"^ +expr: (.+)$", alerts, re.M)
        names_of_alerts = re.findall(r"^      - alert: (\w+)$", alerts, re.M)
        self.assertEqual(len(rules), len(names_of_alerts))
        runbooks = re.findall(r"runbook_url: runbooks.html#(\w+)", alerts)
        self.assertEqual(runbooks, [name.lower() for name in names_of_alerts])
        sections = re.findall(r"^(\w+)\n-+$", (DOCS / "runbooks.rst").read_text(), re.M)
        self.assertEqual(sections, names_of_alerts)
        self.assertGreater(len(rules), 5)
        self.assertGreater(len(queries), 15)
        for query in (*queries, *variables, *rules):
            used = set(re.findall(r"\b(?:mqhooks|process)_\w+", query))
            self.assertLessEqual(used, names, query)
            self.assertTrue(used or query.startswith("up{"), query)
            self.assertEqual(query.count("("), query.count(")"), query)
            for label in re.findall(r'(\w+)(?:=|!=|=~)"', query):
                self.assertIn(label, ("job", "webhook", "source", "outcome", "via"), query)
        outcomes = set(re.findall(r'mqhooks_delivery_attempts_total\{outcome="(\w+)"', text))
        told = re.search(r"mqhooks_delivery_attempts_total.+?\n +- (.+?)\n   \*", (DOCS / "metrics.rst").read_text(), re.S)
        self.assertEqual(set(re.findall(r"``(\w+)``", told[1])), outcomes)
