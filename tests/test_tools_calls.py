"""Calls like those of VerneMQ's webhooks plugin."""

import json
import random
import socket
from base64 import b64decode, b64encode
from collections import defaultdict
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.errors import ConfigError
from mqhooks.testing import make_event
from mqhooks.tools.calls import CallPool, call_of
from mqhooks.tools.simulator import Options, from_options
from tests.endpoints import Endpoint
from tests.waiting import until

RECORDED = Path(__file__).parent / "data" / "vernemq-webhooks.jsonl"


class RequestTests(SynchronousTestCase):
    def test_bodies_have_the_keys_that_vernemq_sends(self):
        recorded = defaultdict(list)
        for line in RECORDED.read_text(encoding="utf-8").splitlines():
            request = json.loads(line)
            if request["vernemq"].startswith("2."):
                keys = list(json.loads(b64decode(request["body_b64"])))
                recorded[request["hook"]].append(keys)
        made = set()
        for hook in ("on_register", "on_publish", "on_subscribe", "on_unsubscribe", "on_deliver", "on_offline_message"):
            for client in ("client-1", "client-2", "client-3", "client-4"):
                call = call_of(make_event(hook, client_id=client))
                made.add(call.hook)
                self.assertIn(list(json.loads(call.body)), recorded[call.hook], call)
        for hook in ("on_client_wakeup", "on_client_offline", "on_client_gone", "on_session_expired"):
            call = call_of(make_event(hook))
            self.assertEqual(call.hook, hook)
            self.assertIn(list(json.loads(call.body)), recorded[hook])
        self.assertLessEqual({"on_publish", "on_publish_m5", "on_offline_message"}, made)

    def test_values(self):
        publish = make_event("on_publish", client_id="client-3", payload=b"\xff\x00", topic="a/b", qos=1, username="")
        body = json.loads(call_of(publish).body)
        self.assertEqual((body["payload"], body["topic"], body["qos"], body["username"]), ("/wA=", "a/b", 1, None))

    def test_hooks_that_the_plugin_does_not_have(self):
        for hook in ("on_register_failed", "on_delivery_complete", "on_message_drop"):
            self.assertIsNone(call_of(make_event(hook)))


class PoolTests(TestCase):
    timeout = 120

    def pool(self, answer, size=10):
        endpoint = Endpoint(answer)
        pool = CallPool(reactor, endpoint.listen(self, reactor), size)
        self.addCleanup(pool.abort)
        return endpoint, pool

    def put(self, pool, client, number):
        pool.put(call_of(make_event("on_publish", client_id=client, payload=b"%d" % number)), random.Random(1))

    async def test_one_call_at_a_time_for_each_client_and_so_many_in_all(self):
        under_way, most = defaultdict(int), defaultdict(int)
        order = defaultdict(list)

        async def serve(request):
            body = json.loads(request.body)
            for key in (body["client_id"], "all"):
                under_way[key] += 1
                most[key] = max(most[key], under_way[key])
            order[body["client_id"]].append(int(b64decode(body["payload"])))
            await deferLater(reactor, 0.01)
            for key in (body["client_id"], "all"):
                under_way[key] -= 1
            request.connection.reply()

        _, pool = self.pool(lambda request: Deferred.fromCoroutine(serve(request)), size=3)
        for number in range(5):
            for client in "abcd":
                self.put(pool, client, number)
        await pool.close()
        self.assertEqual(pool.answers, {"200": 20})
        self.assertEqual(order, {client: list(range(5)) for client in "abcd"})
        self.assertEqual((max(most[client] for client in "abcd"), most["all"]), (1, 3))

    async def test_answers_are_counted(self):
        answers = iter([200, 503, 200])
        _, pool = self.pool(lambda request: request.connection.reply(next(answers)))
        for number in range(3):
            self.put(pool, "a", number)
        await pool.close()
        self.assertEqual(pool.outcome, "200: 2, 503: 1")

    async def test_aborting_ends_what_is_under_way(self):
        endpoint, pool = self.pool(lambda request: None)
        self.put(pool, "a", 1)
        self.put(pool, "a", 2)
        await until(lambda: endpoint.requests)
        closed = pool.close()
        pool.abort()
        await closed
        self.assertEqual((len(endpoint.requests), pool.outcome), (1, "no answer: 1"))

    async def test_no_call_is_made_twice(self):
        """VerneMQ makes none again, even if its connection was closed just then."""

        def answer(request):
            if len(endpoint.requests) == 1:
                request.connection.reply()
            else:
                request.connection.transport.abortConnection()

        endpoint, pool = self.pool(answer, size=1)
        for number in range(3):
            self.put(pool, "a", number)
        await pool.close()
        self.assertEqual(pool.answers, {"200": 1, "no answer": 2})
        self.assertEqual(len(endpoint.requests), 3)

    async def test_connections_are_kept(self):
        endpoint, pool = self.pool(lambda request: request.connection.reply(), size=5)
        for number in range(200):
            self.put(pool, f"client-{number}", number)
        await pool.close()
        self.assertEqual(pool.answers, {"200": 200})
        self.assertLessEqual(len(endpoint.connections), 5)

    async def test_the_request_is_vernemqs(self):
        endpoint, pool = self.pool(lambda request: request.connection.reply())
        pool.abort()
        pool = CallPool(reactor, f"http://me:p%40w@127.0.0.1:{endpoint.port.getHost().port}/vernemq?token=t", 2)
        self.put(pool, "client-3", 1)
        await pool.close()
        (request,) = endpoint.requests
        self.assertEqual((request.method, request.path), ("POST", "/vernemq?token=t"))
        self.assertEqual(
            {name: value for name, value in request.headers if name not in ("Host", "Content-Length")},
            {
                "Content-Type": "application/json",
                "User-Agent": "hackney/4.7.4",
                "Authorization": "Basic " + b64encode(b"me:p@w").decode(),
                "vernemq-hook": "on_publish_m5",
            },
        )

    async def test_the_log_has_no_secrets(self):
        lines = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            pool = CallPool(reactor, f"http://me:s3cret@127.0.0.1:{taken.getsockname()[1]}/vernemq?token=s3cret", 2)
            for number in range(3):
                self.put(pool, "a", number)
            await pool.close()
        self.assertEqual(pool.outcome, "no answer: 3")
        options = Options()
        options.parseOptions(["--via", "webhooks", "--target", "http://me:s3cret@h/vernemq?token=s3cret"])
        from_options(reactor, options)
        told = [line for line in map(formatEvent, lines) if "no answer" in line or "sending to http://h/vernemq?…" in line]
        self.assertEqual(len(told), 2, told)
        self.assertNotIn("s3cret", "".join(told))

    def test_a_target_that_is_none(self):
        for target in ("h/vernemq", "http://", "http:///x", "http://h:99999/", "http://h:0/", "http://[::1/", "http://h/a b"):
            options = Options()
            options.parseOptions(["--via", "webhooks", "--target", target])
            error = self.assertRaises(ConfigError, from_options, reactor, options)
            self.assertTrue(str(error).endswith("not a URL; write it like http://127.0.0.1:8892/vernemq"), str(error))
        options = Options()
        options.parseOptions(["--via", "webhooks", "--target", "http://me:s3cret@h:x/"])
        self.assertNotIn("s3cret", str(self.assertRaises(ConfigError, from_options, reactor, options)))

    async def test_simulator(self):
        endpoint = Endpoint()
        url = endpoint.listen(self, reactor)
        simulator = await simulated(self, "--via=webhooks", "--target", url, "--rate=0", "--count=500", "--seed=1")
        self.assertEqual(len(endpoint.requests), simulator.sent.total())
        self.assertGreater(len(endpoint.requests), 400)


async def simulated(case, *words):
    """Run a simulator with these options to its end, and return it."""
    options = Options()
    options.parseOptions(words)
    done = Deferred()
    simulator = from_options(Stopping(reactor, done), options)
    simulator.startService()
    case.addCleanup(simulator.stopService)
    await done
    return simulator


class Stopping:
    """The reactor, but for its end."""

    def __init__(self, reactor, done):
        self._reactor = reactor
        self._done = done

    def __getattr__(self, name):
        return getattr(self._reactor, name)

    def stop(self):
        self._done.callback(None)
