"""The API over real connections, and what its page in the documentation says."""

import json
import re
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from textwrap import dedent
from time import time

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.admin import deadletters as letters
from mqhooks.admin.bridge import Bridge
from mqhooks.admin.history import History
from mqhooks.admin.settings import AdminSettings
from mqhooks.admin.site import MAX_BODY, VARIES, routes
from mqhooks.admin.status import Status
from mqhooks.admin.stream import Stream
from mqhooks.app.settings import Settings
from mqhooks.errors import OutboxUnavailable
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox import deadletters as outbox_letters
from mqhooks.shapes.settings import Shape
from mqhooks.sinks import LogSink
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.sources.webhooks.factory import WebhooksFactory
from mqhooks.sources.webhooks.listener import WebhooksService
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.support.tls import TLSSettings
from mqhooks.testing import RecordingSink, make_event
from mqhooks.webhook.settings import RetrySettings
from tests.admin import ANYWHERE, TOKEN, AdminCase, Engine
from tests.frames import envelope
from tests.waiting import until

PAGE = (Path(__file__).parent.parent / "docs" / "api-http.rst").read_text()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def example(name):
    """What the documentation shows under a name."""
    found = re.search(rf"^ *\.\. code-block:: json\n +:name: {name}\n\n((?: +.*\n|\n)+)", PAGE, re.M)
    assert found is not None, name
    return json.loads(dedent(found[1]))


def shape(value):
    """The keys of what JSON has, and of what is in it; hooks may be named in part."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items() if not key.startswith("on_")}
    return [shape(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else "value"


def unreadable(*args, **kwargs):
    raise OutboxUnavailable("disk I/O error")


class DocumentedTests(AdminCase):
    """Each call that the documentation has is made, and answered as it says."""

    def test_every_call_is_there(self):
        told = set(re.findall(r"^(GET|POST|DELETE) (/\S+)\n~+$", PAGE, re.M))
        status = Status.__new__(Status)
        status.bridge = None
        table = routes(status, Stream(status, Clock()), Clock())
        static = {"", *(route.path[0] for route in table if route.path[0].endswith((".html", ".css", ".js")))}
        known = {(route.method, "/" + "/".join(route.path)) for route in table if route.path[0] not in static}
        self.assertEqual({(method, re.sub("<[a-z]+>", re.escape(VARIES)[1:], path)) for method, path in told}, known)

    async def assert_shape(self, name, path, method="GET", **options):
        answer = await self.json(path, method, **options)
        self.assertEqual(shape(answer), shape(example(name)), name)
        return answer

    async def test_state_has_the_documented_shape(self):
        await self.start()
        await self.bury(1)
        status = await self.assert_shape("api-status", "/api/status")
        self.assertEqual(len(status["sidecar"]["hooks"]), 13)
        self.assertEqual(set(status["sidecar"]["hooks"]), set(status["sidecar"]["rates"]))
        await self.assert_shape("api-healthz", "/healthz")
        await self.assert_shape("api-readyz", "/readyz")
        self.assertIn("webhooks", await self.json("/api/config"))
        code, text = await self.ask("/metrics")
        self.assertEqual((code, "mqhooks_frames_total" in text), (200, True))
        error = await self.json("/api/webhooks/biling/pause", "POST", status=404)
        self.assertEqual(error, example("api-error"))

    async def test_stream_has_the_documented_shape(self):
        await self.start()
        follower = await self.follow("/api/stream?payload=1")
        await until(lambda: follower.heard("status"))
        self.publish(1)
        await until(lambda: follower.heard("events"))
        (events,) = follower.heard("events")
        self.assertEqual(shape(events), shape(example("api-events")))
        self.assertEqual(events[0]["payload"], example("api-events")[0]["payload"])
        told = shape(example("api-status"))
        for part in ("last_error", "last_answer"):
            told["webhooks"][0][part] = "value"
        told["verdict"]["problems"] = "value"
        self.assertEqual(shape(follower.heard("status")[0]), told)

    async def test_webhook_calls_have_the_documented_shape(self):
        await self.start()
        self.assertEqual(await self.json("/api/webhooks/billing/pause", "POST"), example("api-pause"))
        self.assertEqual(await self.json("/api/webhooks/billing/resume", "POST"), example("api-resume"))
        await self.assert_shape("api-try", "/api/webhooks/billing/try", "POST")
        await self.assert_shape("api-test", "/api/webhooks/billing/test", "POST")
        await self.assert_shape("api-attempts", "/api/webhooks/billing/attempts")

    async def test_dead_letter_calls_have_the_documented_shape(self):
        await self.start()
        await self.bury(4)
        found = await self.assert_shape("api-letters", "/api/dead-letters?limit=1")
        self.assertEqual((len(found["letters"]), found["total"], found["next"]), (1, 4, 1))
        await self.assert_shape("api-letter", "/api/dead-letters/1")
        self.assertEqual(await self.json("/api/dead-letters/1/replay", "POST"), example("api-replay"))
        self.assertEqual(await self.json("/api/dead-letters/2/purge", "POST"), {"count": 1})
        self.assertEqual(await self.json("/api/dead-letters/3", "DELETE"), {"count": 1})
        for verb in ("replay", "purge"):
            self.assertEqual(await self.json(f"/api/dead-letters/{verb}", "POST", body=example("api-filter")), {"count": 0})
        self.assertEqual(await self.json("/api/dead-letters/purge", "POST", body=example("api-ids")), {"count": 0})
        self.assertEqual(await self.json("/api/dead-letters/purge", "POST", body={"all": True}), {"count": 1})

    async def test_sinks_have_the_documented_shape(self):
        await self.start()
        log = LogSink(reactor, self.mktemp())
        self.bridge.sinks = {"log": log}
        (shown,) = (await self.json("/api/status"))["sinks"]
        self.assertEqual(shape([shown]), shape(example("api-sinks")))
        self.assertIs(shown["running"], False)

    async def test_cluster_has_the_documented_shape(self):
        await self.start()
        self.assertIsNone((await self.json("/api/status"))["cluster"])
        self.bridge.engine = Engine()
        cluster = (await self.json("/api/status"))["cluster"]
        self.assertEqual(shape(cluster), shape(example("api-cluster")))
        self.assertEqual((cluster["name"], cluster["pending"]), ("node-1", 31))
        self.assertEqual([(one["name"], one["pending"]) for one in cluster["members"]], [("node-1", 30), ("node-2", 1)])
        (webhook,) = cluster["webhooks"]
        self.assertEqual((webhook["unowned"], webhook["replicas"]), (1, 2))
        self.assertEqual([one["owner"] for one in webhook["partitions"]], ["node-1", "node-2"])


class StatusTests(AdminCase):
    async def test_numbers_follow_the_events(self):
        await self.start("billing", "audit", answer=lambda request: request.connection.reply(204))
        self.publish(5)
        self.send(b"", envelope(make_event("on_client_gone").message))
        await until(lambda: sum(sink.outbox.counts.delivered for sink in self.sinks) == 10)
        status = await self.json("/api/status")
        sidecar = status["sidecar"]
        self.assertEqual((sidecar["connections"], sidecar["frames"], sidecar["events"], sidecar["empty"]), (1, 7, 6, 1))
        self.assertEqual((sidecar["hooks"]["on_publish"], sidecar["hooks"]["on_client_gone"]), (5, 1))
        for webhook in status["webhooks"]:
            self.assertEqual((webhook["filtered"], webhook["matched"], webhook["accepted"]), (1, 5, 5))
            self.assertEqual((webhook["delivered"], webhook["pending"], webhook["attempts"]["delivered"]), (5, 0, 5))
            self.assertEqual((webhook["state"], webhook["oldest_seconds"]), ("up", None))
        self.assertEqual([webhook["name"] for webhook in status["webhooks"]], ["billing", "audit"])
        self.assertApproximates(status["now"], time(), 60)

    async def test_the_next_attempt_is_made_now(self):
        accepts = []
        answer = lambda request: request.connection.reply(200 if accepts else 503)  # noqa: E731
        await self.start(answer=answer, retry=RetrySettings(initial=3600, maximum=3600))
        self.publish(20)
        await until(lambda: self.sinks[0].down_since is not None and self.sinks[0].next_probe)
        (webhook,) = (await self.json("/api/status"))["webhooks"]
        self.assertGreater(webhook["retrying"], 0)
        attempts = self.sinks[0].counters.attempts
        await self.refused(403, "/api/webhooks/billing/try", "POST", change=False)
        await self.refused(404, "/api/webhooks/biling/try", "POST")
        await self.refused(405, "/api/webhooks/billing/try")
        await self.json("/api/webhooks/billing/pause", "POST")
        self.assertIn("paused", await self.refused(409, "/api/webhooks/billing/try", "POST"))
        await self.json("/api/webhooks/billing/resume", "POST")
        self.assertEqual(self.sinks[0].counters.attempts, attempts)
        accepts.append(True)
        self.assertEqual(await self.json("/api/webhooks/billing/try", "POST"), {"name": "billing", "trying": True})
        await until(lambda: self.sinks[0].outbox.counts.delivered == 20)
        self.assertEqual(await self.json("/api/webhooks/billing/try", "POST"), {"name": "billing", "trying": False})

    async def test_an_endpoint_that_is_down(self):
        await self.start(answer=lambda request: request.connection.reply(503, b"come back on <b>Monday</b>"))
        began = time()
        self.publish(20)
        await until(lambda: self.sinks[0].down_since is not None)
        (webhook,) = (await self.json("/api/status"))["webhooks"]
        self.assertEqual((webhook["state"], webhook["pending"]), ("down", 20))
        self.assertTrue(began <= webhook["down_since"] <= time())
        self.assertEqual(webhook["last_answer"]["body"], "come back on <b>Monday</b>")
        self.assertEqual(webhook["last_answer"]["status"], 503)
        self.assertIn("answered 503", webhook["last_error"]["reason"])
        self.assertGreater(webhook["oldest_seconds"], 0)
        self.assertEqual(webhook["attempts"]["failed"], webhook["failures"]["status"])
        self.endpoint.answer = lambda request: request.connection.reply()
        await until(lambda: self.sinks[0].outbox.counts.delivered == 20)
        (webhook,) = (await self.json("/api/status"))["webhooks"]
        self.assertEqual((webhook["state"], webhook["down_since"], webhook["next_attempt"]), ("up", None, None))
        self.assertEqual(webhook["last_answer"]["status"], 503)

    async def test_paused_webhook_sends_nothing_until_resumed(self):
        await self.start()
        await self.json("/api/webhooks/billing/pause", "POST")
        self.publish(3)
        await until(lambda: self.sinks[0].outbox.counts.accepted == 3)
        (webhook,) = (await self.json("/api/status"))["webhooks"]
        self.assertEqual((webhook["state"], webhook["pending"], webhook["delivered"]), ("paused", 3, 0))
        self.assertEqual(self.endpoint.requests, [])
        await self.json("/api/webhooks/billing/resume", "POST")
        await until(lambda: len(self.endpoint.requests) == 3)

    async def test_webhooks_may_come_and_go(self):
        await self.start("billing", "audit")
        gone = self.bridge.webhooks.pop()
        self.assertEqual([webhook["name"] for webhook in (await self.json("/api/status"))["webhooks"]], ["billing"])
        await self.refused(404, "/api/webhooks/audit/pause", "POST")
        self.bridge.webhooks.append(gone)
        await self.json("/api/webhooks/audit/pause", "POST")

    async def test_names_of_all_kinds(self):
        await self.start("a b/c?ü")
        await self.json("/api/webhooks/a%20b%2Fc%3F%C3%BC/pause", "POST")
        self.assertTrue(self.sinks[0].paused)

    async def test_a_configuration_without_its_secrets(self):
        admin = AdminSettings(ANYWHERE, TOKEN)
        await self.start(admin=admin, secrets=(SECRET,), headers=(("authorization", "Bearer s3cret"),))
        settings = self.bridge.settings
        webhook = settings.webhooks[0]
        tls = TLSSettings(certfile="c.pem", keyfile="k.pem", key_password="pa55word", where="mqhooks.conf", path="webhook.tls")
        changed = {"url": "https://host:1/hook?key=s3cret", "tls": tls}
        fields = {name: getattr(webhook, name) for name in webhook.__dataclass_fields__} | changed
        self.bridge.settings = type(settings)(
            **{
                **{name: getattr(settings, name) for name in settings.__dataclass_fields__},
                "webhooks": (type(webhook)(**fields),),
            }
        )
        code, text = await self.ask("/api/config", headers={"Authorization": f"Bearer {TOKEN}"})
        self.assertEqual(code, 200)
        for secret in ("s3cret", TOKEN, SECRET, "pa55word"):
            self.assertNotIn(secret, text)
        (shown,) = json.loads(text)["webhooks"]
        self.assertEqual((shown["url"], shown["headers"]), ("https://host:1/hook?…", [["authorization", "(hidden)"]]))
        self.assertEqual(
            (shown["secrets"], shown["tls"]),
            ("(hidden)", {"cacertfile": None, "certfile": "c.pem", "keyfile": "k.pem", "key_password": "(hidden)"}),
        )
        self.assertEqual(json.loads(text)["admin"]["token"], "(hidden)")

    async def test_the_query_of_an_url_is_nowhere(self):
        await self.start(query="?key=s3cret")
        await self.bury(1)
        for path in ("/api/status", "/api/dead-letters", "/api/dead-letters/1", "/api/stream"):
            if path == "/api/stream":
                follower = await self.follow(path)
                await until(lambda follower=follower: follower.heard("status"))
                text = follower.buffer.decode()
            else:
                _, text = await self.ask(path)
            self.assertIn("/hook?…", text)
            self.assertNotIn("s3cret", text)

    async def test_a_token_in_the_path_is_nowhere(self):
        token = "/T0K3N/s3cret77"
        echo = f"Cannot POST /hook{token}".encode()
        await self.start(answer=lambda request: request.connection.reply(422, echo), query=token)
        self.publish(1)
        await until(lambda: self.sinks[0].outbox.letters == 1)
        await self.store.flushed()
        for path in ("/api/status", "/api/config", "/api/dead-letters", "/api/dead-letters/1", "/metrics", "/readyz"):
            _, text = await self.ask(path)
            for secret in ("T0K3N", "s3cret77"):
                self.assertNotIn(secret, text, path)
        full = await self.json("/api/dead-letters/1")
        self.assertTrue(full["url"].endswith("/hook/…"), full["url"])
        self.assertEqual(full["answer"]["body"], "Cannot POST /hook/…")


class HistoryTests(AdminCase):
    async def test_a_quarter_of_an_hour(self):
        await self.start()
        clock = Clock()
        history = History(self.bridge, clock)
        self.publish(3)
        await until(lambda: self.sinks[0].outbox.counts.delivered == 3)
        clock.advance(5)
        history.sample()
        self.assertEqual(history.rates()["on_publish"], 0.6)
        clock.advance(1)
        past = history.of("billing", 100.0)
        self.assertEqual((past["step"], past["end"]), (5.0, 99.0))
        self.assertEqual((past["accepted"], past["delivered"], past["failed"], past["waiting"]), ([3], [3], [0], [0]))
        for _ in range(200):
            clock.advance(5)
            history.sample()
        past = history.of("billing", 100.0)
        self.assertEqual((past["accepted"], past["waiting"]), ([0] * 180, [0] * 180))
        self.assertEqual(history.rates()["on_publish"], 0)
        self.assertEqual(history.of("unknown", 0.0)["accepted"], [])


class SourcesTests(SynchronousTestCase):
    def setUp(self):
        self.clock, sink = Clock(), RecordingSink()
        self.sidecar, self.requests = SidecarFactory(self.clock, sink), WebhooksFactory(self.clock, sink, WebhooksSettings())
        self.sources = [
            SidecarService(self.clock, [], self.sidecar),
            WebhooksService(self.clock, WebhooksSettings(), self.requests),
        ]

    def told(self, sources):
        """What the status says of ten seconds in which both sources brought something."""
        status = Status(Bridge(Settings(), sources, [], None), self.clock)
        self.sidecar.counters.hooks["on_publish"] += 10
        self.requests.counters.hooks["on_publish"] += 40
        self.requests.counters.hooks["on_deliver"] += 20
        self.clock.advance(10)
        return status.snapshot()

    def assert_came(self, part, publish, deliver):
        self.assertEqual(len(part["hooks"]), 13)
        self.assertEqual((part["hooks"]["on_publish"], part["hooks"]["on_deliver"]), (publish, deliver))
        rates = publish / 10, deliver / 10
        self.assertEqual((part["rates"]["on_publish"], part["rates"]["on_deliver"], part["rate"]), (*rates, sum(rates)))

    def test_each_has_counts_and_rates_of_its_own(self):
        told = self.told(self.sources)
        sidecar, requests = told["sources"]
        self.assertEqual((sidecar["via"], requests["via"]), ("sidecar", "webhooks"))
        self.assert_came(sidecar, 10, 0)
        self.assert_came(told["sidecar"], 10, 0)
        self.assert_came(requests, 40, 20)
        self.assert_came(told, 50, 20)

    def test_without_a_sidecar(self):
        told = self.told(self.sources[1:])
        (requests,) = told["sources"]
        self.assert_came(told["sidecar"], 0, 0)
        self.assert_came(requests, 40, 20)
        self.assert_came(told, 40, 20)


class LetterTests(AdminCase):
    async def test_one_is_replayed_and_arrives(self):
        await self.start()
        await self.bury(1)
        (letter,) = (await self.json("/api/dead-letters"))["letters"]
        self.assertEqual((letter["webhook"], letter["client"], letter["status"], letter["attempts"]), ("billing", "c0", 422, 1))
        full = await self.json(f"/api/dead-letters/{letter['id']}")
        self.assertEqual(full["answer"], {"status": 422, "body": "no such meter"})
        self.assertEqual(full["request"]["body"].encode(), self.endpoint.requests[0].body)
        first = self.endpoint.requests[0]
        self.assertIn(["webhook-id", first.header("webhook-id")], full["request"]["headers"])
        await self.json(f"/api/dead-letters/{letter['id']}/replay", "POST")
        await until(lambda: len(self.endpoint.requests) == 2)
        again = self.endpoint.requests[1]
        self.assertEqual((again.body, again.header("webhook-id")), (first.body, first.header("webhook-id")))
        await until(lambda: self.sinks[0].outbox.counts.delivered == 1)
        self.assertEqual((await self.json("/api/dead-letters"))["letters"], [])
        await self.refused(404, f"/api/dead-letters/{letter['id']}/replay", "POST")

    async def test_a_request_of_its_own(self):
        shape = Shape("PUT", "/devices/{{clientid}}", (("X-A", "s3cret"), ("content-type", "{{topic}}")))
        await self.start(rules=(Rule("on_message_publish", None, shape),))
        await self.bury(1)
        _, text = await self.ask("/api/dead-letters/1")
        full = json.loads(text)
        self.assertEqual((full["request"]["method"], full["url"].endswith("/devices/…")), ("PUT", True))
        self.assertNotIn("s3cret", text)
        names = [name.lower() for name, _ in full["request"]["headers"]]
        self.assertEqual((names.count("x-a"), names.count("content-type")), (1, 1))

    async def test_headers_of_the_operator_are_hidden(self):
        await self.start(headers=(("authorization", "Bearer s3cret"),), secrets=(SECRET,))
        await self.bury(1)
        _, text = await self.ask("/api/dead-letters/1")
        self.assertNotIn("s3cret", text)
        self.assertIn(["authorization", "(hidden)"], json.loads(text)["request"]["headers"])

    async def test_filters(self):
        await self.start("billing", "audit")
        await self.bury(2)
        await self.bury(1, status=410)
        found = await self.json("/api/dead-letters?webhook=audit")
        self.assertEqual((found["total"], {letter["webhook"] for letter in found["letters"]}), (3, {"audit"}))
        found = await self.json("/api/dead-letters?webhook=audit&reason=answered%20410")
        self.assertEqual((found["total"], len(found["letters"])), (1, 1))
        seen = []
        after = 0
        while after is not None:
            found = await self.json(f"/api/dead-letters?limit=4&after={after}")
            seen += [letter["id"] for letter in found["letters"]]
            after = found["next"]
        self.assertEqual(seen, sorted(seen))
        self.assertEqual(len(seen), 6)
        purge = "/api/dead-letters/purge"
        self.assertEqual(await self.json(purge, "POST", body={"webhook": "audit", "reason": "answered 410"}), {"count": 1})
        self.assertEqual(await self.json(purge, "POST", body={"reason": "answered 422"}), {"count": 4})
        (left,) = (await self.json("/api/dead-letters"))["letters"]
        self.assertEqual((left["webhook"], left["status"]), ("billing", 410))
        self.assertEqual(await self.json(purge, "POST", body={"all": True}), {"count": 1})
        self.assertEqual((await self.json("/api/dead-letters"))["total"], 0)

    async def test_filters_by_client_status_and_time(self):
        await self.start()
        await self.bury(3)
        await self.bury(1, status=410)
        for query, ids in (
            ("client=c0", [1, 4]),
            ("client=c0&status=410", [4]),
            ("status=4xx&client=c2", [3]),
            ("status=0", []),
            ("since=1h", [1, 2, 3, 4]),
            ("until=1h", []),
            (f"since={time() - 3600:.3f}&until=2999-01-01T00:00:00%2B02:00&status=410", [4]),
        ):
            found = await self.json(f"/api/dead-letters?{query}")
            self.assertEqual(([letter["id"] for letter in found["letters"]], found["total"]), (ids, len(ids)), query)
        for query in ("status=x", "until=yesterday", "since=2026-01-01T00:00:00+02:00", "status=410&status=422"):
            await self.refused(400, f"/api/dead-letters?{query}")
        purge, replay = "/api/dead-letters/purge", "/api/dead-letters/replay"
        self.assertEqual(await self.json(f"{purge}?client=c9", "POST", body={"all": True}), {"count": 0})
        self.assertEqual(await self.json(purge, "POST", body={"status": 410, "since": time() - 60}), {"count": 1})
        self.assertEqual(await self.json(f"{replay}?client=c0", "POST", body={"status": "422"}), {"count": 1})
        mistakes = ({"status": [410]}, {"since": None, "until": "x"}, {"client": 7}, {"status": True}, {"status": ""})
        for body in (*mistakes, {"since": 10**400}, {"until": -1e300}):
            await self.refused(400, purge, "POST", body=body)
        for until_when in (10**400, 1e300):
            await self.refused(400, "/api/webhooks/billing/pause", "POST", body={"until": until_when})
        await self.refused(400, f"{purge}?status=410", "POST", body={"status": 422})
        await self.refused(400, f"{purge}?status=410", "POST", body={"ids": [2]})
        self.assertEqual((await self.json("/api/dead-letters"))["total"], 2)

    async def test_long_ones_are_read_a_few_at_a_time(self):
        self.patch(outbox_letters, "CHUNK_BYTES", 1)
        await self.start()
        await self.bury(9)
        found = await self.json("/api/dead-letters?limit=7&status=422")
        self.assertEqual((len(found["letters"]), found["total"]), (7, 9))
        self.assertEqual(await self.json("/api/dead-letters/purge", "POST", body={"reason": "422"}), {"count": 9})

    async def test_a_filter_that_fits_few_of_many_holds_nothing_up(self):
        self.patch(outbox_letters, "STRETCH", 10)
        await self.start("billing", "audit")
        await self.bury(30)
        looked = []
        for name in ("dead_letters", "count_dead"):
            method = getattr(self.store, name)
            self.patch(self.store, name, lambda *args, method=method, **more: looked.append(more) or method(*args, **more))
        found = await self.json("/api/dead-letters?reason=nothing+like+it")
        self.assertEqual((found["letters"], found["total"], found["next"]), ([], 0, None))
        for body, count in (({"reason": "nothing like it"}, 0), ({"webhook": "audit", "reason": "422"}, 30)):
            self.assertEqual(await self.json("/api/dead-letters/purge", "POST", body=body), {"count": count})
        found = await self.json("/api/dead-letters?reason=answered+422&limit=20")
        self.assertEqual((len(found["letters"]), found["total"]), (20, 30))
        found = await self.json(f"/api/dead-letters?reason=answered+422&limit=20&after={found['next']}")
        self.assertEqual((len(found["letters"]), found["next"]), (10, None))
        self.assertGreater(len(looked), 20)
        # Counting without a filter looks at nothing, and one letter is found by its number.
        for more in (more for more in looked if more and more.get("limit") != 1):
            self.assertLessEqual((more["upto"] or more["after"]) - more["after"], 40)

    async def test_some_are_chosen_by_their_numbers(self):
        self.patch(letters, "CHUNK", 7)
        await self.start()
        await self.bury(40)
        purge, replay = "/api/dead-letters/purge", "/api/dead-letters/replay"
        self.assertEqual(await self.json(purge, "POST", body={"ids": [*range(1, 21), 3, 99, 0]}), {"count": 20})
        self.assertEqual(await self.json(replay, "POST", body={"ids": list(range(20, 41, 2))}), {"count": 10})
        await until(lambda: self.sinks[0].outbox.counts.delivered == 10)
        self.assertEqual(await self.json(replay, "POST", body={"ids": []}), {"count": 0})
        left = (await self.json("/api/dead-letters"))["letters"]
        self.assertEqual([letter["id"] for letter in left], list(range(21, 41, 2)))
        for ids in ("x", 1, [True], [1.5], [-1], ["1"], [1 << 70], [None], list(range(1001))):
            await self.refused(400, purge, "POST", body={"ids": ids})
        for more in ({"all": True}, {"webhook": "billing"}):
            await self.refused(400, purge, "POST", body={"ids": [21]} | more)
        self.assertEqual((await self.json("/api/dead-letters"))["total"], 10)

    async def test_many_are_replayed_bit_by_bit(self):
        self.patch(letters, "CHUNK", 7)
        await self.start()
        await self.bury(100)
        turns = []
        replay = self.store.replay
        self.patch(self.store, "replay", lambda numbers: turns.append(len(numbers)) or replay(numbers))
        self.assertEqual(await self.json("/api/dead-letters/replay", "POST", body={"all": True}), {"count": 100})
        self.assertEqual((sum(turns), max(turns)), (100, 7))
        await until(lambda: self.sinks[0].outbox.counts.delivered == 100)
        self.assertEqual(self.sinks[0].outbox.letters, 0)

    async def test_one_that_is_damaged(self):
        await self.start()
        await self.bury(3)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE dead SET delivery = x'c1' WHERE id = 2")
        found = (await self.json("/api/dead-letters"))["letters"]
        self.assertEqual([(letter["id"], letter["client"]) for letter in found], [(1, "c0"), (2, ""), (3, "c2")])
        self.assertIn("its row is damaged", found[1]["reason"])
        await self.refused(409, "/api/dead-letters/2")
        await self.refused(409, "/api/dead-letters/2/replay", "POST")
        self.assertEqual(await self.json("/api/dead-letters/replay", "POST", body={"ids": [2]}), {"count": 0})
        self.assertEqual(await self.json("/api/dead-letters/replay", "POST", body={"all": True}), {"count": 2})
        self.assertEqual(await self.json("/api/dead-letters/purge", "POST", body={"ids": [2]}), {"count": 1})
        await until(lambda: self.sinks[0].outbox.counts.delivered == 2)
        self.assertEqual((await self.json("/api/dead-letters"))["total"], 0)

    async def test_what_dies_again_is_not_replayed_again(self):
        self.patch(letters, "CHUNK", 2)
        await self.start()
        await self.bury(5)
        self.endpoint.answer = lambda request: request.connection.reply(422)
        self.assertEqual(await self.json("/api/dead-letters/replay", "POST", body={"all": True}), {"count": 5})
        await until(lambda: self.sinks[0].outbox.letters == 5)
        self.assertEqual(self.sinks[0].outbox.counts.dead, 10)

    async def test_which_ones_has_to_be_said(self):
        await self.start()
        await self.bury(1)
        for path in ("/api/dead-letters/purge", "/api/dead-letters/replay"):
            for body in (
                b"",
                b"{",
                b"[]",
                b"\xff",
                b'{"webhok": "x"}',
                b'{"webhook": 1}',
                b"{}",
                b'{"all": 1}',
                b'{"all": false}',
                b"[" * 9999,
            ):
                await self.refused(400, path, "POST", body=body)
        self.assertEqual((await self.json("/api/dead-letters"))["total"], 1)

    async def test_numbers_of_no_letter_are_refused(self):
        await self.start()
        for number in ("0", "1", "x", "-1", "1e3", "9" * 18, "9" * 19, "%C2%B2", "%ff", ""):
            await self.refused(404, f"/api/dead-letters/{number}")
        for query in ("after=x", "limit=-1", "limit=1&limit=2", "after=" + "9" * 30, "webhook=%ff"):
            await self.refused(400, f"/api/dead-letters?{query}")

    async def test_of_an_outbox_in_memory_there_are_none(self):
        await self.start(memory=True)
        self.endpoint.answer = lambda request: request.connection.reply(410)
        self.publish(1)
        await until(lambda: self.sinks[0].outbox.counts.dead == 1)
        self.assertEqual(await self.json("/api/dead-letters"), {"letters": [], "total": 0, "next": None})
        await self.refused(404, "/api/dead-letters/1")
        await self.refused(404, "/api/dead-letters/1/replay", "POST")
        self.assertEqual(await self.json("/api/dead-letters/purge", "POST", body={"all": True}), {"count": 0})

    async def test_an_outbox_that_cannot_be_written(self):
        await self.start()
        await self.bury(1)
        self.faults.always = OutboxUnavailable("no space left")
        self.publish(1)
        await until(lambda: self.store.failing)
        reason = await self.refused(503, "/api/dead-letters/purge", "POST", body={"all": True})
        self.assertIn("no space left", reason)
        checks = (await self.json("/readyz", status=503))["checks"]
        self.assertEqual(checks["outbox"], {"ok": False, "reason": "cannot be written: no space left"})
        self.assertEqual((await self.json("/api/status"))["outbox"]["failing"], "no space left")
        self.faults.always = None
        await until(lambda: self.store.failing is None)
        self.assertEqual(await self.json("/api/dead-letters/purge", "POST", body={"all": True}), {"count": 1})

    async def test_an_outbox_that_cannot_be_read(self):
        await self.start()
        self.patch(self.store, "dead_letters", unreadable)
        reason = await self.refused(503, "/api/dead-letters")
        self.assertIn("disk I/O error", reason)

    async def test_a_caller_who_goes_away_has_asked_nevertheless(self):
        self.patch(letters, "CHUNK", 1)
        await self.start()
        await self.bury(20)
        follower = await self.follow("/healthz")
        body = b'{"all": true}'
        head = (
            f"POST /api/dead-letters/purge HTTP/1.1\r\nHost: localhost\r\nX-Mqhooks: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        follower.transport.write(head.encode() + body)
        await until(lambda: self.sinks[0].outbox.letters < 20)
        follower.transport.abortConnection()
        await until(lambda: self.sinks[0].outbox.letters == 0)


class RequestTests(AdminCase):
    async def test_what_is_not_there(self):
        await self.start()
        for path in (
            "/nothing",
            "/api",
            "/api/status/",
            "/api/webhooks/billing",
            "/%ff",
            "//",
            "/api/../page.html",
            "/page.html",
        ):
            await self.refused(404, path)

    async def test_wrong_method_is_refused_with_those_allowed(self):
        await self.start()
        await self.refused(405, "/api/status", "POST")
        self.assertEqual(self.headers["allow"], "GET")
        await self.refused(405, "/api/dead-letters/1", "PUT")
        self.assertEqual(self.headers["allow"], "DELETE, GET")
        code, text = await self.ask("/api/status", "HEAD", change=False)
        self.assertEqual((code, text), (200, ""))
        self.assertGreater(int(self.headers["content-length"]), 100)
        await self.refused(405, "/api/stream", "POST")
        self.assertEqual((await self.ask("/api/stream", "HEAD", change=False))[0], 405)

    async def test_a_body_has_a_limit(self):
        await self.start()
        await self.refused(413, "/api/dead-letters/purge", "POST", body=b" " * (MAX_BODY + 1))
        await self.refused(400, "/api/dead-letters/purge", "POST", body=b" " * MAX_BODY)

    async def test_a_fault_of_ours_is_no_traceback_to_the_caller(self):
        await self.start()
        self.bridge.webhooks.append(None)
        reason = await self.refused(500, "/api/status")
        self.bridge.webhooks.pop()
        self.assertEqual(reason, "the request failed; the log has the reason")
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    async def test_the_page_and_its_parts(self):
        await self.start()
        code, text = await self.ask("/")
        self.assertEqual((code, self.headers["content-type"]), (200, "text/html; charset=utf-8"))
        parts = re.findall(r'(?:href|src)="([^":]+\.(?:css|js))"', text)
        self.assertGreater(len(parts), 1)
        for part in parts:
            code, text = await self.ask(f"/{part}")
            type_ = {"css": "text/css", "js": "text/javascript"}[part.rpartition(".")[2]]
            self.assertEqual((code, self.headers["content-type"]), (200, f"{type_}; charset=utf-8"))
            self.assertGreater(len(text), 100)

    async def test_the_page_is_small_and_asks_nobody_else(self):
        await self.start("billing", "audit", answer=lambda request: request.connection.reply(503, b"come back on Monday"))
        await self.bury(2)
        self.publish(30)
        await until(lambda: all(sink.down_since for sink in self.sinks))
        static = [file for file in files("mqhooks.admin").joinpath("static").iterdir() if file.is_file()]
        size = 0
        for file in static:
            code, text = await self.ask("/" if file.name == "page.html" else f"/{file.name}")
            self.assertEqual(code, 200)
            self.assertEqual(
                re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+/", text.replace("http://www.w3.org/2000/svg", "")), []
            )
            size += len(text.encode())
        self.assertGreater(len(static), 5)
        self.assertLess(size, 61_440)

    async def test_not_ready_while_an_endpoint_refuses_everything(self):
        accepts = []
        await self.start(answer=lambda request: request.connection.reply(200 if accepts else 401))
        self.publish(30)
        await until(lambda: self.sinks[0].refusing)
        check = (await self.json("/readyz", status=503))["checks"]["webhook billing"]
        self.assertEqual(check["ok"], False)
        self.assertRegex(check["reason"], "^the endpoint refuses everything: .* answered 401$")
        (webhook,) = (await self.json("/api/status"))["webhooks"]
        self.assertEqual((webhook["state"], webhook["refusing"], webhook["dead"], webhook["pending"]), ("down", True, 9, 21))
        accepts.append(True)
        await until(lambda: self.sinks[0].outbox.counts.pending == 0)
        self.assertEqual((await self.json("/readyz"))["status"], "ready")

    async def test_ready_only_while_listening(self):
        await self.start()
        answer = await self.json("/readyz")
        self.assertEqual(answer["status"], "ready")
        port = self.bridge.sources[0].addresses[0].port
        self.assertEqual(answer["checks"]["listening"]["reason"], f"for VerneMQ on 127.0.0.1:{port}")
        await self.bridge.sources[0].stopService()
        answer = await self.json("/readyz", status=503)
        self.assertEqual((answer["status"], answer["checks"]["listening"]["ok"]), ("not ready", False))
        self.assertEqual(await self.json("/healthz"), {"status": "ok"})
        self.assertTrue(reactor.running)
