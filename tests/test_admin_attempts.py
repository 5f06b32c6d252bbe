"""The last attempts of a webhook, tests of it, and pauses that end, over the API."""

from time import time

from twisted.internet.defer import Deferred

from mqhooks.nanomq.settings import Rule
from mqhooks.shapes.settings import Shape
from mqhooks.webhook.settings import BatchSettings
from tests.admin import AdminCase
from tests.waiting import until

WEBHOOK = "/api/webhooks/billing"


class AttemptsTests(AdminCase):
    async def test_what_came_of_each_the_newest_first(self):
        statuses = iter((200, 422))
        await self.start(answer=lambda request: request.connection.reply(next(statuses), b"said"))
        self.assertEqual(await self.json(f"{WEBHOOK}/attempts"), {"name": "billing", "attempts": []})
        for number in (1, 2):
            self.publish(1, topic=f"t{number}")
            await until(lambda count=number: len(self.sinks[0].counters.tried) == count)
        newest, oldest = (await self.json(f"{WEBHOOK}/attempts"))["attempts"]
        self.assertEqual((newest["status"], oldest["status"]), (422, 200))
        self.assertEqual((newest["said"], newest["client"], newest["together"]), ("said", "c0", 1))
        self.assertEqual(newest["id"], self.endpoint.requests[1].header("webhook-id"))
        self.assertLess(abs(newest["at"] - time()), 60)

    async def test_a_batch_is_one(self):
        await self.start(batch=BatchSettings(linger=0.2))
        self.publish(3)
        await until(lambda: self.sinks[0].outbox.counts.delivered == 3)
        attempts = (await self.json(f"{WEBHOOK}/attempts"))["attempts"]
        self.assertEqual(sum(attempt["together"] for attempt in attempts), 3)

    async def test_the_url_is_hidden_as_elsewhere(self):
        rule = Rule("on_message_publish", None, Shape(url="/x7Kq9zzz/{{clientid}}"))
        await self.start(
            query="?token=s3cret7777",
            rules=(rule,),
            answer=lambda request: request.connection.reply(404, f"no {request.path} s3cret7777".encode()),
        )
        self.publish(1)
        await until(lambda: self.sinks[0].counters.tried)
        for path, method in ((f"{WEBHOOK}/attempts", "GET"), (f"{WEBHOOK}/test", "POST"), ("/api/status", "GET"), ("/", "GET")):
            _, text = await self.ask(path, method)
            self.assertIn("404", text)
            self.assertNotIn("s3cret7777", text)
            self.assertNotIn("x7Kq9zzz", text)

    async def test_of_a_webhook_that_is_not_there(self):
        await self.start()
        self.assertIn("no webhook", await self.refused(404, "/api/webhooks/biling/attempts"))


class TestTests(AdminCase):
    async def test_one_is_sent_also_while_paused(self):
        await self.start(answer=lambda request: request.connection.reply(202, b"thanks"))
        await self.json(f"{WEBHOOK}/pause", "POST")
        attempt = (await self.json(f"{WEBHOOK}/test", "POST"))["attempt"]
        (request,) = self.endpoint.requests
        self.assertEqual((attempt["status"], attempt["said"], attempt["id"]), (202, "thanks", request.header("webhook-id")))
        self.assertTrue(attempt["id"].startswith("test_"))
        self.assertEqual((await self.json(f"{WEBHOOK}/attempts"))["attempts"], [attempt])
        (webhook,) = (await self.json("/api/status"))["webhooks"]
        self.assertEqual((webhook["state"], webhook["accepted"], webhook["attempts"]["delivered"]), ("paused", 0, 0))

    async def test_one_at_a_time_and_the_end_of_the_bridge(self):
        await self.start(answer=lambda request: None)
        first = Deferred.fromCoroutine(self.json(f"{WEBHOOK}/test", "POST"))
        await until(lambda: self.endpoint.requests)
        self.assertIn("is being tested", await self.refused(409, f"{WEBHOOK}/test", "POST"))
        self.assertEqual(len(self.endpoint.requests), 1)
        first.addErrback(lambda _: None)
        await self.stop()
        await first
        self.assertFalse(self.sinks[0].testing)
        self.assertEqual(self.sinks[0].counters.tried[-1].status, 0)

    async def test_endpoint_that_is_gone(self):
        await self.start()
        await self.endpoint.stop(self.endpoint.port)
        attempt = (await self.json(f"{WEBHOOK}/test", "POST"))["attempt"]
        self.assertEqual(attempt["status"], 0)
        self.assertIn("refused", attempt["said"])

    async def test_template_that_finds_nothing(self):
        await self.start(rules=(Rule("on_message_publish", None, Shape(url="/{{payload.a}}")),))
        self.assertIn("cannot be sent", await self.refused(409, f"{WEBHOOK}/test", "POST"))
        self.assertEqual(self.endpoint.requests, [])


class PauseUntilTests(AdminCase):
    async def paused_until(self):
        (webhook,) = (await self.json("/api/status"))["webhooks"]
        return webhook["paused_until"]

    async def test_it_is_resumed_by_itself(self):
        await self.start()
        answer = await self.json(f"{WEBHOOK}/pause", "POST", body={"until": time() + 3600})
        self.assertEqual(answer["until"], await self.paused_until())
        answer = await self.json(f"{WEBHOOK}/pause", "POST", body={"until": time() + 0.3})
        self.publish(1)
        await until(lambda: self.endpoint.requests)
        self.assertGreaterEqual(time(), answer["until"])
        self.assertIsNone(await self.paused_until())

    async def test_times_in_all_forms(self):
        await self.start()
        for asked, seconds in (
            ({"until": "2h"}, 7200),
            ({"until": f"{time() + 60:.0f}"}, 60),
            ({"until": None}, None),
            ({}, None),
        ):
            until = (await self.json(f"{WEBHOOK}/pause", "POST", body=asked))["until"]
            self.assertEqual(until is None, seconds is None)
            self.assertLess(0 if until is None else abs(until - time() - seconds), 30)
        self.assertIsNotNone((await self.json(f"{WEBHOOK}/pause?until=2h", "POST"))["until"])
        verdict = (await self.json("/api/status"))["verdict"]
        self.assertIn("Nothing is sent for another 2 h.", verdict["problems"][0]["text"])
        self.assertIsNone((await self.json(f"{WEBHOOK}/pause", "POST"))["until"])

    async def test_what_is_no_time_to_come(self):
        await self.start()
        for asked, why in (
            ({"until": "tomorrow"}, "is not a time like"),
            ({"until": True}, "is not a time"),
            ({"until": []}, "is not a time"),
            ({"until": -5}, "is not a time"),
            ({"until": 5}, "1970-01-01T00:00:05Z is over"),
            ({"until": round(time() * 1000)}, "is not a time|more than a year"),
            ({"until": "600d"}, "more than a year away"),
            ({"untill": "2h"}, "'untill' is unknown"),
        ):
            self.assertRegex(await self.refused(400, f"{WEBHOOK}/pause", "POST", body=asked), why)
        self.assertIn("not JSON", await self.refused(400, f"{WEBHOOK}/pause", "POST", body=b"{"))
        self.assertFalse(self.sinks[0].paused)
