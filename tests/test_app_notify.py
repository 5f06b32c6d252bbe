"""A webhook about webhooks."""

import json
from time import time

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

import mqhooks
from mqhooks.admin.bridge import Bridge
from mqhooks.app import notify
from mqhooks.app.notify import Notifier
from mqhooks.app.settings import NotifySettings
from mqhooks.errors import ConnectFailed
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.support.signatures import verify
from mqhooks.webhook.sink import WebhookSink
from tests.test_reload import BridgeCase
from tests.waiting import until
from tests.webhooks import FakeTransport, SinkMixin, publish, respond

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DOWN = ConnectFailed("http://h/hook: connection refused")
ALL = NotifySettings().on
CHAT = "https://chat.example/hooks/S3cretTokenInPath"


class NotifierTests(SinkMixin, SynchronousTestCase):
    """With a clock that is turned by hand."""

    def start(self, *, url=CHAT, on=ALL, secret=(), **settings):
        self.make(**settings)
        self.chats = []
        self.bridge = Bridge(None, [], [self.sink], None)
        self.notifier = Notifier(
            self.clock, self.bridge, NotifySettings(url, on, secret), transport=self.connect, now=self.clock.seconds
        )
        self.notifier.startService()
        self.addCleanup(lambda: self.notifier.stopService() if self.notifier.running else None)

    def connect(self, _, settings):
        self.chats.append(FakeTransport())
        return self.chats[-1]

    @property
    def chat(self):
        return self.chats[-1]

    def told(self, result=204):
        """End what is on its way; gives what was told."""
        told = []
        while self.chat.in_flight:
            told.append(json.loads(self.chat.end(result).request.body))
        return told

    def kinds(self):
        return [each["event"] for each in self.told()]

    def break_down(self, clients=1):
        self.sink.receive([publish(f"c{n}", n) for n in range(clients)])
        while self.in_flight:
            self.transport.end(DOWN)

    def recover(self):
        while not self.in_flight:
            self.clock.advance(1)
        self.end_all()

    def test_down_and_up(self):
        self.start()
        self.break_down()
        self.clock.advance(1)
        (told,) = self.told()
        self.assertEqual((told["event"], told["webhook"], told["pending"]), ("down", "w", 1))
        self.assertEqual((told["since"], told["time"], told["version"]), (0, 1, mqhooks.__version__))
        self.assertEqual(told["reason"], "http://h/hook: connection refused")
        self.assertEqual(told["text"], f"mqhooks on {told['host']}: webhook w is down: {told['reason']}; 1 delivery waits")
        self.clock.pump([1] * 5)
        self.assertEqual(self.told(), [])
        self.recover()
        self.clock.advance(1)
        (told,) = self.told()
        self.assertEqual((told["event"], told["since"], told["reason"], told["pending"]), ("up", 0, "", 0))

    def test_what_changes_to_and_fro_is_told_as_it_is_in_the_end(self):
        self.start()
        for _ in range(3):
            self.break_down()
            self.clock.advance(1)
            self.recover()
            self.clock.advance(1)
        self.break_down()
        self.clock.pump([1] * 3)
        # The fourth time comes within the minute, and is told after it.
        self.assertEqual(self.kinds(), ["down", "up"])
        self.transport.at_once = lambda attempt: DOWN
        self.clock.pump([1] * 60)
        self.assertEqual(self.kinds(), ["down"])
        self.clock.pump([1] * 300)
        self.assertEqual(self.kinds(), [])

    def test_unexpected_error_is_logged_once_a_minute(self):
        self.start()

        def broken(_):
            raise ZeroDivisionError

        self.patch(MemoryOutbox, "counts", property(broken))
        self.clock.pump([1] * 100)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_held(self):
        self.start()
        self.transport.at_once = lambda attempt: respond(401)
        self.sink.receive([publish(f"c{n}", n) for n in range(12)])
        self.clock.advance(1)
        held = [each for each in self.told() if each["event"] != "dead"]
        self.assertEqual([(each["event"], each["reason"]) for each in held], [("held", "http://h/hook answered 401")])
        self.assertIn("wait until it accepts one", held[0]["text"])

    def test_dead_letters_of_a_burst_are_told_together(self):
        self.start()
        self.transport.at_once = lambda attempt: respond(422)
        self.sink.receive([publish(f"c{n}", n) for n in range(7)])
        self.clock.advance(1)
        (told,) = self.told()
        self.assertEqual((told["event"], told["count"], told["reason"]), ("dead", 7, "http://h/hook answered 422"))
        for _ in range(5):
            self.sink.receive([publish("c", 1)])
            self.clock.advance(1)
        self.assertEqual(self.told(), [])
        self.clock.advance(60)
        self.assertEqual([each["count"] for each in self.told()], [5])

    def test_forgotten(self):
        self.start()
        self.outbox.resize(1 << 20, 2)
        self.transport.at_once = lambda attempt: respond(422)
        self.sink.receive([publish(f"c{n}", n) for n in range(5)])
        self.clock.advance(1)
        told = self.told()
        self.assertEqual([(each["event"], each["count"]) for each in told], [("dead", 5), ("forgotten", 3)])
        self.assertIn("outbox.dead_max", told[1]["text"])

    def test_full(self):
        self.start()
        self.outbox.resize(10, 2)
        self.sink.receive([publish("c", 1)])
        self.clock.pump([1] * 3)
        (told,) = self.told()
        self.assertEqual((told["event"], told["pending"]), ("full", 1))
        self.assertIn("nothing more is read from VerneMQ (outbox.max_size)", told["text"])
        for _ in range(4):
            self.end_all()
            self.clock.advance(1)
            self.sink.receive([publish("c", 1)])
            self.clock.advance(1)
        self.assertEqual(self.told(), [])
        self.clock.advance(60)
        self.assertEqual(self.kinds(), ["full"])

    def test_only_what_was_asked_for(self):
        self.start(on=("up",))
        self.transport.at_once = lambda attempt: respond(422)
        self.sink.receive([publish("c", 1)])
        self.transport.at_once = None
        self.break_down()
        self.clock.advance(1)
        self.assertEqual(self.told(), [])
        self.recover()
        self.clock.advance(1)
        self.assertEqual(self.kinds(), ["up"])

    def test_a_replaced_sink_is_not_up_before_something_arrives(self):
        self.start()
        self.break_down()
        self.clock.advance(1)
        self.assertEqual(self.kinds(), ["down"])
        self.sink.retire()
        self.bridge.webhooks = [
            WebhookSink(self.clock, self.sink.settings, self.outbox, FakeTransport(), now=self.clock.seconds)
        ]
        self.clock.pump([1] * 3)
        self.assertEqual(self.told(), [])
        self.outbox.reclaim()
        self.outbox.acknowledge(self.outbox.claim(9, 1 << 20))
        self.clock.advance(1)
        self.assertEqual(self.kinds(), ["up"])

    def test_signed(self):
        self.start(secret=(SECRET,))
        self.break_down()
        self.clock.advance(1)
        request = self.chat.in_flight[0].request
        verify([SECRET], request.headers, request.body, now=self.clock.seconds())

    def test_tried_a_few_times_and_dropped_with_a_line(self):
        self.start()
        self.break_down()
        self.transport.at_once = lambda attempt: DOWN
        self.clock.advance(1)
        ids = set()
        for _ in range(notify.RETRY.max_attempts):
            while not self.chat.in_flight:
                self.clock.advance(1)
            ids.add(self.chat.end(ConnectFailed(f"{CHAT}: connection refused")).id)
        self.clock.pump([1] * 100)
        self.assertEqual(self.chat.in_flight, [])
        self.assertEqual(len(ids), 1)
        (line,) = [line for line in self.lines() if "could not send" in line]
        self.assertEqual(
            line,
            "notify: could not send the 'down' notification for webhook w: https://chat.example/hooks/…: connection refused",
        )

    def test_what_is_refused_is_not_tried_again(self):
        self.start()
        self.break_down()
        self.transport.at_once = lambda attempt: DOWN
        self.clock.advance(1)
        self.told(404)
        self.clock.pump([1] * 30)
        self.assertEqual(self.chat.in_flight, [])
        self.assertIn("https://chat.example/hooks/… answered 404", "".join(self.lines()))

    def test_few_are_on_their_way_to_a_dead_endpoint(self):
        self.patch(notify, "MOST", 3)
        self.start()
        self.transport.at_once = lambda attempt: respond(422)
        for _ in range(6):
            self.sink.receive([publish("c", 1)])
            self.clock.advance(61)
        self.assertEqual(len(self.chat.in_flight), 3)
        self.assertIn("3 other notifications are still being sent", "".join(self.lines()))
        self.assertEqual(self.successResultOf(self.notifier.stopService()), None)
        self.assertTrue(self.chat.closed)

    def test_a_reload_turns_it_on_and_off(self):
        self.start(url="")
        self.assertEqual(self.chats, [])
        self.transport.at_once = lambda attempt: respond(422)
        self.sink.receive([publish("c", 1)])
        self.clock.advance(1)
        self.notifier.change(NotifySettings(CHAT))
        self.clock.advance(1)
        # What was there before is not news.
        self.assertEqual(self.told(), [])
        self.sink.receive([publish("c", 1)])
        self.clock.advance(1)
        self.notifier.change(NotifySettings("http://other/"))
        self.assertTrue(self.chats[0].closed)
        self.chats[0].end(DOWN)
        self.clock.pump([1] * 70)
        self.assertEqual(self.chats[0].in_flight, [])
        self.notifier.change(NotifySettings())
        self.assertTrue(self.chats[1].closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class EndToEndTests(BridgeCase):
    """A bridge with its configuration, an endpoint, and a chat system."""

    async def begin(self, on="", outbox=None):
        self.chat, chat = self.endpoint()
        self.served, self.url = self.endpoint()
        self.ours = f'notify {{ url = "{chat}?token=s3cret", secret = "{SECRET}"{on} }}'
        self.write(("a", f'url = "{self.url}"'), ours=self.ours, outbox=outbox)
        await self.start()

    async def told(self, kind):
        def found():
            bodies = [json.loads(request.body) for request in self.chat.requests]
            return next((body for body in bodies if body["event"] == kind), None)

        return await until(found)

    async def test_down_and_up(self):
        await self.begin()
        port = self.served.port.getHost().port
        await self.served.stop(self.served.port)
        self.publish("c")
        told = await self.told("down")
        self.assertIn("refused", told["reason"])
        self.assertEqual((told["webhook"], told["pending"]), ("a", 1))
        self.assertLess(abs(told["time"] - time()), 60)
        request = self.chat.requests[0]
        self.assertEqual((request.method, request.path), ("POST", "/hook?token=s3cret"))
        verify([SECRET], request.headers, request.body, now=time())
        self.served.listen(self, reactor, port=port)
        await self.told("up")

    async def test_held_dead_and_forgotten(self):
        await self.begin(outbox=f"{self.outbox}, outbox.dead_max = 3")
        self.served.answer = lambda request: request.connection.reply(401)
        self.publish(*(f"c{n}" for n in range(12)))
        for kind in ("dead", "forgotten", "held"):
            await self.told(kind)

    async def test_full(self):
        await self.begin(outbox=f"{self.outbox}, outbox.max_size = 1MiB")
        self.served.answer = self.hold
        for _ in range(20):
            self.publish(*(f"c{n}" for n in range(1000)))
        await self.told("full")

    async def test_a_dead_chat_holds_nobody_up(self):
        await self.begin()
        self.chat.answer = lambda request: None
        self.served.answer = lambda request: request.connection.reply(422)
        self.publish("c")
        await until(lambda: self.chat.requests)
        self.served.answer = lambda request: request.connection.reply()
        self.publish(*"abcdef")
        await until(lambda: len(self.served.requests) == 7)
        before = reactor.seconds()
        await self.service.stopService()
        self.assertLess(reactor.seconds() - before, 5)

    async def test_reload(self):
        await self.begin(on=", on = [dead]")
        other, url = self.endpoint()
        self.write(("a", f'url = "{self.url}"'), ours=f'notify {{ url = "{url}", on = [up, dead] }}')
        (line,) = self.reload()
        self.assertEqual(line, "configuration reloaded: notify.url changed, notify.on changed, notify.secret changed")
        self.served.answer = lambda request: request.connection.reply(422)
        self.publish("c")
        await until(lambda: other.requests)
        self.assertEqual(self.chat.requests, [])
        self.write(("a", f'url = "{self.url}"'))
        self.reload()
        self.publish("d")
        await until(lambda: self.sink("a").outbox.counts.dead == 2)
