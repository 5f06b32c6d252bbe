"""What who watches is told."""

import json
from base64 import b64decode

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.replies import AdminCall, Refused
from mqhooks.admin.status import Status
from mqhooks.admin.stream import EVENTS, INTERVAL, PAYLOAD, STALLED, TEXT, TOPICS, WATCHERS, Stream, describe
from mqhooks.app.settings import Settings
from mqhooks.events import HOOKS
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.testing import RecordingSink, make_event
from tests.admin import AdminCase, WatchedSidecar
from tests.waiting import until


class Channel:
    aborted = False

    def forceAbortClient(self):  # noqa: N802
        self.aborted = True


class Request(DummyRequest):
    """A request that does not get more than it reads."""

    producer = None

    def __init__(self, payload=False):
        super().__init__([b"api", b"stream"])
        self.channel = Channel()
        if payload:
            self.args = {b"payload": [b"1"]}

    def registerProducer(self, producer, streaming):
        assert streaming
        self.producer = producer

    def unregisterProducer(self):
        self.producer = None

    def heard(self, name):
        messages = b"".join(self.written).decode().split("\n\n")
        head = f"event: {name}\ndata: "
        return [json.loads(message.removeprefix(head)) for message in messages if message.startswith(head)]

    def leave(self):
        self.processingFailed(ConnectionAbortedError("gone"))


class StreamTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.sidecar = WatchedSidecar(self.clock, RecordingSink())
        self.bridge = Bridge(Settings(), [SidecarService(self.clock, [], self.sidecar)], [], None)
        self.stream = Stream(Status(self.bridge, self.clock, self.clock.seconds), self.clock)

    def join(self, **settings):
        request = Request(**settings)
        self.stream.join(AdminCall(request, ()))
        return request

    def pass_by(self, count, **fields):
        self.sidecar.accept([make_event("on_publish", client_id=f"c{index}", **fields) for index in range(count)], 1)
        self.sidecar.flush()

    def test_the_status_at_once_and_each_second(self):
        request = self.join()
        self.assertEqual(len(request.heard("status")), 1)
        self.clock.pump([INTERVAL] * 12)
        self.assertEqual(len(request.heard("status")), 4)
        self.assertEqual(request.heard("events"), [])
        self.assertEqual(request.heard("status")[0]["sidecar"]["connections"], 0)

    def test_at_most_20_events_a_second(self):
        request = self.join()
        for _ in range(4):
            self.pass_by(3)
            self.pass_by(1000)
            self.clock.advance(INTERVAL)
        shown = [event for events in request.heard("events") for event in events]
        self.assertEqual((len(shown), 4 * EVENTS), (20, 20))

    def test_the_newest_of_a_batch(self):
        request = self.join()
        self.pass_by(100)
        self.clock.advance(INTERVAL)
        (events,) = request.heard("events")
        self.assertEqual([event["client_id"] for event in events], ["c95", "c96", "c97", "c98", "c99"])

    def test_payloads_for_those_who_ask(self):
        plain, full = self.join(), self.join(payload=True)
        self.pass_by(1)
        self.clock.advance(INTERVAL)
        self.assertNotIn("payload", plain.heard("events")[0][0])
        self.assertEqual(full.heard("events")[0][0]["payload"], {"text": "hello", "truncated": False})
        self.assertNotIn("hello", b"".join(plain.written).decode())

    def test_nothing_is_looked_at_when_nobody_watches(self):
        self.assertIsNone(self.sidecar.watcher)
        one, other = self.join(), self.join()
        one.leave()
        self.assertIsNotNone(self.sidecar.watcher)
        other.leave()
        self.assertIsNone(self.sidecar.watcher)
        self.assertEqual((self.clock.getDelayedCalls(), len(self.stream)), ([], 0))
        self.pass_by(5)
        request = self.join()
        self.clock.advance(INTERVAL)
        self.assertEqual(request.heard("events"), [])

    def test_who_does_not_read_misses_what_is_new(self):
        slow, quick = self.join(), self.join()
        slow.producer.pauseProducing()
        for _ in range(8):
            self.pass_by(1)
            self.clock.advance(INTERVAL)
        self.assertEqual((len(slow.heard("events")), len(quick.heard("events"))), (0, 8))
        slow.producer.resumeProducing()
        self.pass_by(1)
        self.clock.advance(INTERVAL)
        self.assertEqual(len(slow.heard("events")), 1)
        self.assertFalse(slow.channel.aborted)

    def test_who_never_reads_is_cut_off(self):
        slow, quick = self.join(), self.join()
        slow.producer.pauseProducing()
        self.clock.pump([INTERVAL] * STALLED)
        self.assertFalse(slow.channel.aborted)
        self.clock.advance(INTERVAL)
        self.assertTrue(slow.channel.aborted)
        self.assertFalse(quick.channel.aborted)

    def test_so_many_and_no_more(self):
        for _ in range(WATCHERS):
            last = self.join()
        self.assertEqual(self.assertRaises(Refused, self.join).status, 503)
        last.leave()
        self.join()

    def test_closing_ends_all_streams(self):
        requests = [self.join(), self.join()]
        self.stream.close()
        self.assertEqual([request.finished for request in requests], [1, 1])
        self.assertEqual((self.clock.getDelayedCalls(), self.sidecar.watcher), ([], None))
        self.assertRaises(Refused, self.join)


class DescribeTests(SynchronousTestCase):
    def test_every_hook(self):
        for hook in HOOKS:
            described = json.loads(json.dumps(describe(make_event(hook), payload=True)))
            self.assertEqual((described["hook"], described["client_id"]), (hook, "client-1"))
            self.assertEqual("payload" in described, described["size"] is not None)
        self.assertEqual(describe(make_event("on_subscribe"), payload=False)["topics"], ["a/b"])

    def test_long_ones_are_shortened(self):
        topics = ["t" * 999] * 99
        described = describe(
            make_event("on_unsubscribe", client_id="c" * 999, username="u" * 999, topics=topics), payload=False
        )
        self.assertEqual((described["client_id"], described["username"]), ("c" * TEXT, "u" * TEXT))
        self.assertEqual(described["topics"], ["t" * TEXT] * TOPICS)

    def payload(self, payload):
        described = describe(make_event("on_publish", payload=payload), payload=True)
        self.assertEqual(described["size"], len(payload))
        return described["payload"]

    def test_payloads_are_text_or_base64_and_cut_short(self):
        self.assertEqual(self.payload(b""), {"text": "", "truncated": False})
        self.assertEqual(self.payload("ü".encode()), {"text": "ü", "truncated": False})
        self.assertEqual(self.payload(b"\xff\x00"), {"base64": "/wA=", "truncated": False})
        self.assertEqual(self.payload(b"a" * PAYLOAD), {"text": "a" * PAYLOAD, "truncated": False})
        self.assertEqual(self.payload(b"a" * 99999), {"text": "a" * PAYLOAD, "truncated": True})

    def test_a_character_that_is_cut_in_two(self):
        for character in "ü€𝄞":
            for shift in range(4):
                payload = (b"a" * shift + character.encode() * PAYLOAD)[: PAYLOAD + 50]
                shown = self.payload(payload)
                self.assertTrue(payload.decode(errors="ignore").startswith(shown["text"]))
                self.assertGreater(len(shown["text"].encode()), PAYLOAD - 4)

    def test_what_is_no_text_at_its_end(self):
        self.assertEqual(self.payload(b"a" * (PAYLOAD - 1) + b"\xffa")["truncated"], True)
        self.assertEqual(len(b64decode(self.payload(b"a" * (PAYLOAD - 1) + b"\xffa")["base64"])), PAYLOAD)
        self.assertIn("base64", self.payload(b"\xc3"))


class ConnectionTests(AdminCase):
    async def test_watching_over_a_connection(self):
        await self.start()
        follower = await self.follow()
        await until(lambda: follower.heard("status"))
        self.assertIn(b"text/event-stream", follower.buffer)
        self.publish(3)
        await until(lambda: follower.heard("events"))
        await until(lambda: follower.heard("status")[-1]["sidecar"]["events"] == 3)
        follower.transport.abortConnection()
        await until(lambda: self.sidecar.watcher is None)

    async def test_stopping_ends_what_is_watched(self):
        await self.start()
        followers = [await self.follow(), await self.follow()]
        for follower in followers:
            await until(lambda follower=follower: follower.heard("status"))
        await self.stop()
        for follower in followers:
            await follower.closed
            self.assertTrue(follower.buffer.endswith(b"0\r\n\r\n"))

    async def test_hostile_names_are_but_text(self):
        await self.start()
        hostile = "</script>\n\ndata: x\r\n\r\nevent: status\u2028<img src=x onerror=alert(1)>"
        follower = await self.follow()
        await until(lambda: follower.heard("status"))
        self.publish(1, topic=hostile)
        await until(lambda: follower.heard("events"))
        self.assertEqual(follower.heard("events")[0][0]["topics"], [hostile])
