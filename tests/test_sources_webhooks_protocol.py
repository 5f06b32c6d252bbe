"""VerneMQ's requests over a connection, with a clock and a sink that do as they are told."""

import json
import re
from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mqhooks.interfaces import IBoundedSink
from mqhooks.sources.sidecar.longframes import COMMON, HELD_COMMON, LONG, STALLED
from mqhooks.sources.sidecar.pieces import MANY
from mqhooks.sources.webhooks.decode import QUESTIONS
from mqhooks.sources.webhooks.factory import ANSWER_TIME, CLOSING_TIME, DIVIDED, IDLE_TIME, REQUEST_TIME, WebhooksFactory
from mqhooks.sources.webhooks.protocol import MAX_HEAD, PIPELINED
from mqhooks.sources.webhooks.settings import WebhooksSettings
from tests.vernemq import NEXT, recorded, request

TOKEN = "t0k3n+with/16=more"


@implementer(IBoundedSink)
class StoringSink(Service):
    """Commits at once, or when told: then ``held`` is a list of what waits. ``waiting`` is a list of what waits for room."""

    def __init__(self):
        self.full = False
        self.held = None
        self.waiting = []
        self.batches = []

    def receive(self, events):
        stored = self.store(events)
        if not self.full:
            return stored
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def store(self, events):
        self.batches.append(list(events))
        if self.held is None:
            return None
        self.held.append(Deferred())
        return self.held[-1]

    @property
    def events(self):
        return [event for batch in self.batches for event in batch]

    @property
    def clients(self):
        return [event.client_id for event in self.events]


class SlowSink(StoringSink):
    """Takes some seconds to take a batch, or to come to it."""

    def __init__(self, clock, takes):
        super().__init__()
        self.clock = clock
        self.takes = takes

    def store(self, events):
        self.clock.rightNow += self.takes
        return super().store(events)


class Transport(StringTransportWithDisconnection):
    """Remembers whether it is aborted, and is never full."""

    aborted = False

    def abortConnection(self):  # noqa: N802
        self.aborted = True
        self.loseConnection()


@implementer(ITCPTransport)
class SocketTransport(Transport):
    """
    Has a socket beneath it.

    :ivar room: how many bytes the socket takes; negative for an error.
    :ivar took: what it took.
    """

    def __init__(self):
        super().__init__()
        self.room = 0
        self.took = b""

    def setTcpNoDelay(self, enabled):  # noqa: N802
        pass

    def setTcpKeepAlive(self, enabled):  # noqa: N802
        pass

    def getHandle(self):  # noqa: N802
        return self

    def setsockopt(self, *option):
        pass

    def send(self, data):
        if self.room < 0:
            raise ConnectionResetError
        if not self.room:
            raise BlockingIOError
        self.took += data[: self.room]
        count = min(len(data), self.room)
        self.room -= count
        return count


class WebhooksCase(SynchronousTestCase):
    def setUp(self):
        self.sink = StoringSink()
        self.clock = Clock()
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.make()

    def make(self, **settings):
        self.factory = WebhooksFactory(self.clock, self.sink, WebhooksSettings(**settings))
        self.factory.startFactory()
        self.counters = self.factory.counters

    def connect(self, transport=None):
        protocol = self.factory.buildProtocol(None)
        transport = transport or Transport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def feed(self, transport, data):
        """Have a connection read something, in a turn of the reactor of its own."""
        if transport.connected:
            transport.protocol.dataReceived(data)
        self.clock.advance(0)

    def ask(self, data, transport=None):
        """Send something, and get what comes back."""
        transport = transport or self.connect()
        transport.clear()
        self.feed(transport, data)
        return transport.value()

    def status(self, data):
        """Send a request over a connection of its own, and get the answer's status and JSON."""
        return self.parsed(self.ask(data))

    def parsed(self, answer):
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertIn(b"\r\ncontent-type: application/json", head)
        self.assertIn(b"\r\ncontent-length: %d" % len(body), head)
        return int(head.split()[1]), json.loads(body)

    def warnings(self):
        return [formatEvent(event) for event in self.logged if event["log_level"].name in ("warn", "error", "critical")]

    def subscribe(self, count, client="many"):
        topics = [{"topic": str(number), "qos": 1} for number in range(count)]
        return request("on_subscribe", json.dumps({"client_id": client, "topics": topics}).encode())


class AnswerTests(WebhooksCase):
    def test_every_recorded_request_is_answered(self):
        for record in recorded():
            self.assertEqual(self.ask(record.request), NEXT, record)
        self.assertEqual(self.warnings(), [])
        questions = [record for record in recorded() if record.hook in QUESTIONS]
        self.assertEqual(sum(self.counters.questions.values()), len(questions))
        self.assertEqual(self.counters.events + len(questions), len(list(recorded())))
        self.assertEqual(len(self.sink.events), self.counters.events)

    def test_questions_are_not_read(self):
        seen = []
        self.factory.watch(seen.append)
        for hook in QUESTIONS:
            self.assertEqual(self.ask(request(hook, b'not JSON, but a "password"')), NEXT)
        self.assertEqual((self.sink.batches, seen, self.logged[1:]), ([], [], []))
        self.assertEqual(self.counters.questions, dict.fromkeys(QUESTIONS, 1))
        self.assertEqual((self.counters.events, self.counters.malformed), (0, 0))

    def test_answered_after_the_commit(self):
        self.sink.held = []
        transport = self.connect()
        self.assertEqual(self.ask(request(), transport), b"")
        self.sink.held.pop().callback(None)
        self.assertEqual(transport.value(), NEXT)

    def test_a_turn_is_a_batch(self):
        for number in range(5):
            self.connect().protocol.dataReceived(request(client_id=f"c{number}"))
        self.assertEqual(self.sink.batches, [])
        self.clock.advance(0)
        self.assertEqual([len(batch) for batch in self.sink.batches], [5])

    def test_pipelined_requests_are_answered_in_order(self):
        self.sink.held = []
        transport = self.connect()
        first, second = request(client_id="a"), request(client_id="b")
        self.feed(transport, first)
        self.feed(transport, request("auth_on_publish") + second + request(url="/wrong") + request(client_id="d"))
        self.assertEqual(transport.value(), b"")
        self.sink.held.pop().callback(None)
        self.assertEqual(transport.value(), b"")
        self.sink.held.pop().callback(None)
        statuses = re.findall(rb"HTTP/1.1 (\d+) ", transport.value())
        self.assertEqual(statuses, [b"200", b"200", b"200", b"404", b"200"])
        self.assertEqual(self.sink.clients, ["a", "b", "d"])

    def test_many_pipelined_requests_are_read_as_they_are_answered(self):
        self.sink.held = []
        transport = self.connect()
        self.feed(transport, request() * (PIPELINED + 1))
        self.assertEqual(transport.producerState, "paused")
        self.sink.held.pop().callback(None)
        self.assertEqual(transport.producerState, "producing")
        self.assertEqual(transport.value(), NEXT * (PIPELINED + 1))

    def test_answers_go_straight_to_a_socket_that_takes_them(self):
        transport = self.connect(SocketTransport())
        transport.room = 1 << 20
        self.assertEqual(self.ask(request() * 3, transport), b"")
        self.assertEqual(transport.took, NEXT * 3)

    def test_what_a_socket_does_not_take_goes_before_what_follows(self):
        for room in (0, -1, 10, len(NEXT), len(NEXT) + 1):
            transport = self.connect(SocketTransport())
            transport.room = room
            self.feed(transport, request())
            self.feed(transport, request())
            transport.room = 1 << 20
            self.feed(transport, request())
            self.assertEqual(transport.took + transport.value(), NEXT * 3)
            self.assertEqual(len(transport.took), max(room, 0))

    def test_a_peer_that_does_not_read_is_not_read(self):
        transport = self.connect()
        transport.producer.pauseProducing()
        self.assertEqual(transport.producerState, "paused")
        transport.producer.resumeProducing()
        self.assertEqual(transport.producerState, "producing")

    def test_any_split(self):
        data = request(client_id="a") + request("on_client_gone", b'{"client_id":"b"}', "transfer-encoding: chunked").replace(
            b'{"client_id":"b"}', b'5\r\n{"cli\r\nc\r\nent_id":"b"}\r\n0\r\n\r\n'
        )
        for step in (1, 2, 7, 100):
            transport = self.connect()
            self.sink.batches = []
            for start in range(0, len(data), step):
                self.feed(transport, data[start : start + step])
            self.assertEqual(transport.value(), NEXT + NEXT)
            self.assertEqual(self.sink.clients, ["a", "b"])

    def test_a_client_that_asks_first(self):
        transport = self.connect()
        data = request("on_publish", None, "Expect: 100-continue")
        head, _, body = data.partition(b"\r\n\r\n")
        self.assertEqual(self.ask(head + b"\r\n\r\n", transport), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(self.ask(body, transport), NEXT)
        answer = self.ask(request("on_publish", b"", "Expect: 100-continue", length=1 << 30))
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer)

    def test_old_clients(self):
        answer = self.ask(request(version="HTTP/1.0"))
        self.assertIn(b"\r\nconnection: close\r\n", answer)
        answer = self.ask(request("on_publish", None, "Connection: keep-alive", version="HTTP/1.0"))
        self.assertIn(b"\r\nconnection: keep-alive\r\n", answer)
        transport = self.connect()
        answer = self.ask(request("on_publish", None, "Connection: close"), transport)
        self.assertIn(b"\r\nconnection: close\r\n", answer)
        self.assertFalse(transport.connected)

    def test_connections_stay(self):
        transport = self.connect()
        for data in (
            request(),
            request(url="/x"),
            request(method="PUT"),
            request(None),
            request("on_publish", b"{"),
            request("x"),
        ):
            self.ask(data, transport)
            self.assertTrue(transport.connected)
            self.assertNotIn(b"connection:", transport.value())

    def test_the_client_leaves_before_the_answer(self):
        self.sink.held = []
        transport = self.connect()
        self.feed(transport, request(client_id="a"))
        transport.loseConnection()
        self.sink.held.pop().callback(None)
        self.assertEqual(self.sink.clients, ["a"])
        self.assertEqual((self.counters.events, self.counters.truncated), (1, 0))

    def test_many_topics_do_not_hold_up_others(self):
        self.sink.held = []
        topics = [{"topic": "t", "qos": 1}] * (3 * MANY)
        many, other = self.connect(), self.connect()
        many.protocol.dataReceived(request("on_subscribe", json.dumps({"client_id": "many", "topics": topics}).encode()))
        other.protocol.dataReceived(request(client_id="other"))
        self.clock.pump([0] * 5)
        self.assertEqual(self.sink.clients, ["other", "many"])
        piece, single = self.sink.held[1], self.sink.held[0]
        single.callback(None)
        self.assertEqual((many.value(), other.value()), (b"", NEXT))
        # Each piece is handed over once the one before it is committed.
        for count in (2, 3):
            piece.callback(None)
            self.assertEqual(many.value(), b"")
            self.clock.pump([0] * 3)
            self.assertEqual(self.sink.clients, ["other"] + ["many"] * count)
            piece = self.sink.held[-1]
        piece.callback(None)
        self.assertEqual(many.value(), NEXT)
        self.clock.pump([0] * 2)
        self.assertEqual(len(self.sink.batches), 4)

    def test_a_stalled_disk_piles_up_no_pieces(self):
        self.sink.held = []
        for number in range(5):
            self.connect().protocol.dataReceived(self.subscribe(9 * MANY, f"many-{number}"))
        behind = self.connect()
        behind.protocol.dataReceived(request(client_id="many-4"))
        self.clock.pump([0] * 30)
        self.assertEqual(self.sink.clients, ["many-0"])
        connections = [*self.factory.connections]
        self.clock.advance(ANSWER_TIME)
        self.assertEqual(self.counters.late, 6)
        for protocol in connections:
            self.assertTrue(protocol.transport.value().startswith(b"HTTP/1.1 503 "), protocol.transport.value())
        # What was answered with an error is stored nevertheless, in order, when the disk works again.
        self.sink.held.pop().callback(None)
        self.sink.held = None
        self.clock.pump([0] * 60)
        self.assertEqual(self.sink.clients.count("many-4"), 10)
        last = [event.hook for event in self.sink.events if event.client_id == "many-4"][-1]
        self.assertEqual((last, len(self.sink.events)), ("on_publish", 46))

    def test_pieces_wait_for_room(self):
        transport = self.connect()
        transport.protocol.dataReceived(self.subscribe(3 * MANY))
        self.sink.full = True
        for count in (1, 2):
            self.clock.pump([0] * 9)
            self.assertEqual((len(self.sink.events), transport.value()), (count, b""))
            self.sink.waiting.pop().callback(None)
        # For the answer, the last one's commit is enough.
        self.clock.pump([0] * 9)
        self.assertEqual((len(self.sink.events), transport.value(), self.sink.waiting), (3, NEXT, []))

    def test_pieces_that_the_sink_fails_to_take(self):
        self.sink.held = []
        transport = self.connect()
        transport.protocol.dataReceived(self.subscribe(3 * MANY))
        for _ in range(3):
            self.clock.pump([0] * 3)
            self.sink.held.pop().errback(ValueError("broken"))
        self.assertEqual(self.parsed(transport.value())[0], 503)
        self.assertEqual((self.counters.refused, len(self.sink.events)), (1, 3))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 3)

    def test_a_million_topics(self):
        # More pieces than Python nests generators.
        transport = self.connect()
        self.factory.max_body = 64 << 20
        transport.protocol.dataReceived(self.subscribe(1200 * MANY + 1))
        self.clock.pump([0] * 1210)
        self.assertEqual(transport.value(), NEXT)
        found = [int(info.topic) for event in self.sink.events for info in event.message.topics]
        self.assertEqual(found, list(range(1200 * MANY + 1)))

    def test_what_follows_many_topics_waits_for_them(self):
        first, second = self.connect(), self.connect()
        first.protocol.dataReceived(self.subscribe(3 * MANY))
        second.protocol.dataReceived(request(client_id="many"))
        second.protocol.dataReceived(request(client_id="other"))
        self.clock.pump([0] * 6)
        self.assertEqual((first.value(), second.value()), (NEXT, NEXT * 2))
        hooks = [event.hook for event in self.sink.events if event.client_id == "many"]
        self.assertEqual(hooks, ["on_subscribe"] * 3 + ["on_publish"])
        self.assertEqual(self.sink.clients[0], "other")

    def test_many_topics_are_answered_in_time(self):
        for takes, answer, late in ((ANSWER_TIME / 10, b"HTTP/1.1 200 ", 0), (ANSWER_TIME / 5, b"HTTP/1.1 503 ", 1)):
            self.sink = SlowSink(self.clock, takes)
            self.make()
            transport = self.connect()
            transport.protocol.dataReceived(self.subscribe(9 * MANY))
            self.clock.advance(0)
            self.assertTrue(transport.value().startswith(answer), transport.value())
            self.assertEqual((len(self.sink.events), self.counters.late), (9, late))

    def test_too_many_topics_at_once_are_refused(self):
        # Decoded they take ten times their bytes.
        self.factory.max_body = 64 << 20
        data = self.subscribe(2 * MANY)
        length = len(data.partition(b"\r\n\r\n")[2])
        padded = data.replace(b"content-length: %d" % length, b"content-length: %d" % (length + DIVIDED)) + b" " * DIVIDED
        first, second, other = self.connect(), self.connect(), self.connect()
        first.protocol.dataReceived(padded)
        second.protocol.dataReceived(self.subscribe(2 * MANY, "x"))
        self.assertTrue(second.value().startswith(b"HTTP/1.1 503 "), second.value())
        self.assertEqual(self.counters.refused, 1)
        self.assertIn("very many topics", self.warnings()[-1])
        other.protocol.dataReceived(request(client_id="other"))
        self.clock.pump([0] * 3)
        self.assertEqual((first.value(), other.value()), (NEXT, NEXT))
        second.protocol.dataReceived(self.subscribe(2 * MANY, "x"))
        self.clock.pump([0] * 3)
        self.assertTrue(second.value().endswith(NEXT), second.value())

    def test_usernames_are_remembered(self):
        self.ask(request("on_register", b'{"client_id":"c","username":"alice","peer_addr":"::1","peer_port":1}'))
        self.ask(request("on_client_gone", b'{"client_id":"c","mountpoint":""}'))
        self.assertEqual([event.username for event in self.sink.events], ["alice", "alice"])


class RefusalTests(WebhooksCase):
    def test_other_addresses(self):
        status, told = self.status(request(url="/"))
        self.assertEqual(status, 404)
        self.assertIn("POST /vernemq", told["error"])
        for url in ("/vernemq?x=1", "/vernemq?", "/%76ernemq"):
            self.assertEqual(self.ask(request(url=url)), NEXT)
        status, told = self.status(request(method="GET"))
        self.assertEqual(status, 405)
        self.assertIn("POST /vernemq", told["error"])
        self.assertIn(b"\r\nallow: POST\r\n", self.ask(b"GET / HTTP/1.1\r\n\r\n"))
        answer = self.ask(b"HEAD / HTTP/1.1\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 405 ") and answer.endswith(b"\r\n\r\n"), answer)
        self.assertEqual(self.counters.invalid, 4)

    def test_no_hook(self):
        status, told = self.status(request(None))
        self.assertEqual(status, 400)
        self.assertIn("vernemq-hook", told["error"])

    def test_an_unknown_hook(self):
        self.assertEqual(self.ask(request("on_something_new")), NEXT)
        self.assertEqual((self.counters.unknown, self.counters.events), (1, 0))

    def test_malformed_bodies(self):
        status, told = self.status(request("on_publish", b'{"client_id":"secret"'))
        self.assertEqual(status, 400)
        self.assertEqual(told, {"error": "the body is not readable JSON"})
        self.ask(request("on_publish", b'{"client_id":"secret"'))
        (line,) = self.warnings()
        self.assertNotIn("secret", line)
        self.assertEqual(self.counters.undecodable, 2)

    def test_long_bodies(self):
        self.make(max_body=1000)
        transport = self.connect()
        status, _ = self.parsed(self.ask(request("on_publish", b"x" * 2000), transport))
        self.assertEqual(status, 413)
        chunked = request("on_publish", b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n", "transfer-encoding: chunked")
        status, told = self.parsed(self.ask(chunked, transport))
        self.assertEqual(status, 413)
        self.assertIn("max_body", told["error"])
        self.assertEqual(self.ask(request(), transport), NEXT)
        self.assertEqual(self.counters.oversized, 2)

    def test_long_heads(self):
        for data in (
            b"POST /" + b"a" * (3 * MAX_HEAD),
            b"POST /vernemq HTTP/1.1\r\nx: " + b"a" * (3 * MAX_HEAD),
            b"POST /vernemq HTTP/1.1\r\n" + b"x: y\r\n" * MAX_HEAD,
        ):
            for step in (1000, MAX_HEAD):
                transport = self.connect()
                for start in range(0, len(data), step):
                    self.feed(transport, data[start : start + step])
                self.assertTrue(transport.value().startswith(b"HTTP/1.1 431 "), transport.value())
                self.assertFalse(transport.connected)

    def test_long_trailers(self):
        data = request("on_publish", b"2\r\n{}\r\n0\r\nx: ", "transfer-encoding: chunked")
        transport = self.connect()
        self.feed(transport, data)
        for _ in range(4):
            self.feed(transport, b"a" * (MAX_HEAD // 3))
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 431 "), transport.value())

    def test_bodies_in_small_chunks(self):
        body = json.dumps({"client_id": "c", "topic": "t", "payload": "A" * 20_000}).encode()
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        for url, answer in (("/vernemq", NEXT), ("/", b"HTTP/1.1 404 ")):
            transport = self.connect()
            data = request("on_publish", chunks, "transfer-encoding: chunked", url=url)
            for start in range(0, len(data), 100):
                self.feed(transport, data[start : start + 100])
            self.assertTrue(transport.value().startswith(answer), transport.value())

    def test_heads_that_are_just_short_enough(self):
        data = request("on_publish", None, *[f"x-{number}: {'y' * 100}" for number in range(130)])
        for step in (500, 1 << 20):
            transport = self.connect()
            for start in range(0, 3 * len(data), step):
                self.feed(transport, (data * 3)[start : start + step])
            self.assertEqual(transport.value(), NEXT * 3)

    def test_what_is_no_http(self):
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT h:1 HTTP/1.1\r\n\r\n",
            request("on_publish", b"", "Connection: upgrade", "Upgrade: h2c"),
            request("on_publish", b"{}", "transfer-encoding: chunked", "content-length: 2"),
            request("on_publish", b"{}", "content-length: 1"),
            b"POST /vernemq HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        ):
            transport = self.connect()
            self.feed(transport, request(client_id="a"))
            self.feed(transport, data)
            self.assertTrue(transport.value().startswith(NEXT + b"HTTP/1.1 400 "), (data, transport.value()))
            self.assertEqual(len(re.findall(rb"HTTP/1.1 \d", transport.value())), 2, data)
            self.assertFalse(transport.connected)
        self.assertEqual(set(self.sink.clients), {"a"})

    def test_nothing_is_read_behind_it(self):
        transport = self.connect()
        self.feed(transport, b"nonsense\r\n\r\n" + request())
        self.feed(transport, request())
        self.assertEqual(self.sink.events, [])


class TokenTests(WebhooksCase):
    def basic(self, login):
        return f"Authorization: Basic {b64encode(login.encode()).decode()}"

    def allowed(self, data):
        answer = self.ask(data)
        return answer == NEXT or self.parsed(answer)[0] != 401

    def test_token(self):
        self.make(token=TOKEN)
        quoted = TOKEN.replace("+", "%2B").replace("=", "%3D")
        for data in (
            request(url=f"/vernemq?token={TOKEN}"),
            request(url=f"/vernemq?x=y&token={quoted}"),
            request("on_publish", None, f"Authorization: Bearer {TOKEN}"),
            request("on_publish", None, f"authorization: bearer {TOKEN}"),
            request("on_publish", None, self.basic(f"anybody:{TOKEN}")),
        ):
            self.assertTrue(self.allowed(data), data)
        for data in (
            request(),
            request(url=f"/vernemq?token={TOKEN}x"),
            request(url="/vernemq?token="),
            request(url=f"/vernemq?nottoken={TOKEN}"),
            request("on_publish", None, "Authorization: Bearer"),
            request("on_publish", None, f"Authorization: {TOKEN}"),
            request("on_publish", None, "Authorization: Basic %%%"),
            request("on_publish", None, "Authorization: Basic \xe4"),
            request("on_publish", None, self.basic(TOKEN)),
            request("auth_on_register"),
        ):
            status, _ = self.status(data)
            self.assertEqual(status, 401, data)
        self.assertEqual((self.counters.unauthorized, len(self.sink.events)), (10, 5))
        (line,) = self.warnings()
        self.assertNotIn(TOKEN, line)

    def test_user_and_password(self):
        self.make(user="vernemq", password="p:w ä")
        self.assertTrue(self.allowed(request("on_publish", None, self.basic("vernemq:p:w ä"))))
        for login in ("vernemq:x", "vernemq", "other:p:w ä", ""):
            self.assertFalse(self.allowed(request("on_publish", None, self.basic(login))), login)

    def test_another_token(self):
        self.make(token=TOKEN)
        self.factory.change(WebhooksSettings(token="0123456789abcdef", path="/other"))
        self.assertEqual(self.ask(request(url="/other?token=0123456789abcdef")), NEXT)
        self.assertFalse(self.allowed(request(url=f"/other?token={TOKEN}")))


class BackpressureTests(WebhooksCase):
    def test_full(self):
        self.sink.full = True
        status, _ = self.status(request("on_publish"))
        self.assertEqual(status, 503)
        for hook in ("on_deliver", "on_deliver_m5", "on_unsubscribe", "on_unsubscribe_m5", "on_delivery_complete", *QUESTIONS):
            self.assertEqual(self.ask(request(hook)), NEXT)
        self.assertEqual((self.counters.refused, self.counters.events, self.sink.events), (6, 0, []))
        self.assertEqual((self.counters.paused, self.warnings()), (False, []))
        self.clock.pump([0.5] * 6)
        self.assertEqual((self.counters.paused, self.counters.pauses, len(self.warnings())), (True, 1, 1))
        self.sink.full = False
        self.clock.advance(1)
        self.assertEqual((self.counters.paused, self.counters.pauses), (False, 1))
        self.assertEqual(formatEvent(self.logged[-1]), "backpressure is over: VerneMQ's events are accepted again")
        self.assertEqual(self.ask(request()), NEXT)

    def test_a_commit_that_does_not_come(self):
        self.sink.held = []
        publish, deliver = self.connect(), self.connect()
        publish.protocol.dataReceived(request("on_publish", client_id="a"))
        self.feed(deliver, request("on_deliver", client_id="b"))
        self.clock.advance(ANSWER_TIME - 0.1)
        self.assertEqual((publish.value(), deliver.value()), (b"", b""))
        self.clock.advance(0.1)
        self.assertEqual((self.parsed(publish.value())[0], deliver.value()), (503, NEXT))
        self.assertEqual(self.counters.late, 2)
        # Others are not made to wait as well.
        self.assertEqual(self.status(request())[0], 503)
        self.assertEqual((self.counters.refused, len(self.sink.batches)), (1, 1))
        self.clock.pump([0.5] * 4)
        self.assertTrue(self.counters.paused)
        self.sink.held.pop().callback(None)
        self.sink.held = None
        self.assertEqual((self.parsed(publish.value())[0], deliver.value()), (503, NEXT))
        self.assertEqual(self.ask(request(), publish), NEXT)
        self.clock.advance(1)
        self.assertFalse(self.counters.paused)

    def test_a_sink_that_fails(self):
        self.sink.held = []
        publish, deliver = self.connect(), self.connect()
        publish.protocol.dataReceived(request("on_publish"))
        self.feed(deliver, request("on_deliver"))
        self.sink.held.pop().errback(ValueError("broken"))
        self.assertEqual((self.parsed(publish.value())[0], deliver.value()), (503, NEXT))
        self.sink.batches = None
        self.assertEqual(self.parsed(self.ask(request(), publish))[0], 503)
        self.assertEqual(self.counters.refused, 3)
        self.assertEqual(len(self.flushLoggedErrors(ValueError, AttributeError)), 2)

    def test_too_much_is_not_committed(self):
        self.sink.held = []
        body = json.dumps({"client_id": "c", "topic": "t", "payload": "A" * (12 << 20)}).encode()
        answers = [self.ask(request("on_publish", body)) for _ in range(8)]
        self.assertEqual([bool(answer) for answer in answers], [False] * 6 + [True] * 2)
        self.assertEqual(self.counters.refused, 2)


class SlowTests(WebhooksCase):
    def test_requests_that_do_not_end(self):
        head, body, other = self.connect(), self.connect(), self.connect()
        self.feed(head, b"POST /vernemq HT")
        self.feed(body, request("on_publish", b"{", length=10))
        for _ in range(int(REQUEST_TIME) + 2):
            self.feed(head, b"x")
            self.assertEqual(self.ask(request(), other), NEXT)
            self.clock.advance(1)
        for transport in (head, body):
            self.assertFalse(transport.connected)
        self.assertTrue(body.value().startswith(b"HTTP/1.1 408 "))
        self.assertTrue(other.connected)
        self.assertEqual(self.counters.truncated + self.counters.invalid, 2)

    def test_idle_connections_are_kept(self):
        transport = self.connect()
        self.ask(request(), transport)
        self.clock.pump([1.0] * int(IDLE_TIME))
        self.assertTrue(transport.connected)
        self.clock.pump([1.0] * 2)
        self.assertFalse(transport.connected)
        self.assertGreater(IDLE_TIME, 75)
        self.assertEqual(self.warnings(), [])

    def test_unfinished_bodies_are_bounded(self):
        size = COMMON - 1000
        transports = [self.connect() for _ in range(60)]
        for transport in transports:
            self.feed(transport, request("on_publish", b"", length=size))
        rounds = 0
        while rounds * LONG < size - LONG:
            rounds += 1
            for transport in transports:
                if transport.producerState == "producing":
                    self.feed(transport, b" " * LONG)
        self.assertLess(self.factory.common_bodies.held, HELD_COMMON + COMMON + len(transports) * LONG)
        self.assertIn("paused", [transport.producerState for transport in transports])
        self.assertEqual(self.ask(request()), NEXT)
        for transport in transports:
            transport.loseConnection()
        self.assertEqual(self.factory.common_bodies.held, 0)

    def test_a_long_body_that_comes_too_slowly_while_others_wait(self):
        transports = [self.connect() for _ in range(4)]
        for transport in transports:
            self.feed(transport, request("on_publish", b"", length=4 << 20))
            for _ in range(2):
                self.feed(transport, b" " * (1 << 20))
        # The third has the turn, and does not use it.
        slow = transports.pop(2)
        self.assertEqual([transport.producerState for transport in transports], ["producing", "producing", "paused"])
        for _ in range(3):
            self.feed(slow, b" " * 10)
            self.clock.advance(STALLED)
        self.assertTrue(slow.value().startswith(b"HTTP/1.1 408 "), slow.value())
        self.assertFalse(slow.connected)
        for transport in transports:
            self.assertEqual(transport.producerState, "producing")
            self.feed(transport, b" " * (2 << 20))
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 400 "))
        self.assertEqual(self.factory.long_bodies.held, 0)

    def test_stopping_in_the_middle_of_many_topics(self):
        self.sink.held = []
        topics = [{"topic": "t", "qos": 1}] * (9 * MANY)
        transport = self.connect()
        transport.protocol.dataReceived(request("on_subscribe", json.dumps({"client_id": "many", "topics": topics}).encode()))
        self.factory.close()
        # The first part goes in the next turn, all others in turns that follow.
        self.clock.advance(CLOSING_TIME)
        self.assertLess(len(self.sink.batches), 5)
        self.assertIn("the rest of them is lost", self.warnings()[-1])
        self.assertEqual(transport.value(), b"")
        self.sink.held.pop().callback(None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_waits_for_the_events_of_a_client_that_has_left(self):
        for data, topics in ((request(), 0), (self.subscribe(3 * MANY), 3 * MANY)):
            self.sink.batches = []
            transport = self.connect()
            transport.protocol.dataReceived(data)
            transport.loseConnection()
            closed = self.factory.close()
            self.assertNoResult(closed)
            self.clock.pump([0] * 5)
            self.successResultOf(closed)
            self.assertEqual(sum(len(getattr(event.message, "topics", ())) for event in self.sink.events), topics)
            self.assertGreater(len(self.sink.events), 0)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping(self):
        self.sink.held = []
        idle, busy, unfinished = self.connect(), self.connect(), self.connect()
        self.feed(busy, request())
        self.feed(unfinished, request()[:-5])
        closed = []
        self.factory.close().addCallback(closed.append)
        self.assertFalse(idle.connected or unfinished.connected)
        self.assertEqual((busy.connected, closed), (True, []))
        self.sink.held.pop().callback(None)
        self.assertEqual((busy.value(), busy.connected, closed), (NEXT, False, [None]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_does_not_wait_for_ever(self):
        self.sink.held = []
        busy = self.connect()
        self.feed(busy, request())
        closed = []
        self.factory.close().addCallback(closed.append)
        self.clock.advance(CLOSING_TIME)
        self.assertEqual((busy.aborted, closed), (True, [None]))


class AnythingTests(WebhooksCase):
    requests = st.builds(
        lambda hook, client: request(hook, client_id=client),
        st.sampled_from(["on_publish", "on_deliver", "on_offline_message", "auth_on_publish", "on_client_gone"]),
        st.sampled_from("abc"),
    )

    @given(st.lists(st.binary(max_size=60) | requests | requests.map(lambda data: data[:-3]), max_size=6), st.integers(1, 400))
    def test_any_bytes(self, parts, step):
        self.setUp()
        transport, other = self.connect(), self.connect()
        data = b"".join(parts)
        for start in range(0, len(data), step):
            self.feed(transport, data[start : start + step])
        self.assertEqual(self.ask(request(client_id="other"), other), NEXT)
        answered = transport.value().count(b"HTTP/1.1 200 ")
        stored = [client for client in self.sink.clients if client != "other"]
        self.assertEqual(answered, len(stored) + sum(self.counters.questions.values()) + self.counters.unknown)
        self.assertFalse([line for line in self.logged if "log_failure" in line])

    @given(st.lists(requests, max_size=8), st.integers(1, 700))
    def test_any_split(self, parts, step):
        self.setUp()
        transport = self.connect()
        data = b"".join(parts)
        for start in range(0, len(data), step):
            self.feed(transport, data[start : start + step])
        self.assertEqual(transport.value(), NEXT * len(parts))
