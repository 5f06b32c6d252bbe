"""The receiver: an endpoint that shows what arrives, counts it, and misbehaves when asked to."""

from __future__ import annotations

import gzip
import json
import os
import sys
from dataclasses import replace
from io import BytesIO
from random import Random

import treq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.endpoints import clientFromString, connectProtocol, serverFromString
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool, ResponseNeverReceived

from mqhooks.errors import ConfigError, ListenError
from mqhooks.support.printable import printable
from mqhooks.support.signatures import Signer, public_form
from mqhooks.tools.receiver import Behaviour, Console, Options, from_options, makeService, receiver_site
from mqhooks.tools.tally import UNPACK_LIMIT, Received, Tally
from tests.ports import kept_port
from tests.processes import Running, Twistd
from tests.waiting import until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def received(body=b"{}", *, status=200, webhook_id=None, path="/hook", method="POST"):
    headers = () if webhook_id is None else (("Webhook-Id", webhook_id),)
    return Received(0.0, method, path, headers, body, status)


class DescribeTests(SynchronousTestCase):
    def test_a_nanomq_body(self):
        body = b'{"ts":1,"topic":"a/b","action":"message_publish","from_username":"u","from_client_id":"c3","payload":"m"}'
        line = received(body, webhook_id="w1").describe()
        self.assertRegex(line[:13], r"\d\d:\d\d:\d\d\.\d{3} ")
        self.assertEqual(line[13:], f"POST /hook 200 message_publish client=c3 topic=a/b id=w1 {body.decode()}")

    def test_other_bodies(self):
        for body, summary in (
            (b'{"action":"client_connack","clientid":"c1"}', "client_connack client=c1 "),
            (b'{"action":"register","client_id":"c2"}', "register client=c2 "),
            (b'{"action":1,"clientid":[],"topic":null}', ""),
            (b'["action"]', ""),
            (b"not json", ""),
            (b"[" * 200, ""),
        ):
            self.assertEqual(received(body).describe()[13:], f"POST /hook 200 {summary}{body.decode()}")

    def test_a_body_that_nests_too_deep(self):
        self.assertTrue(received(b"[" * 100_000).describe().endswith("[... (100000 bytes)"))

    def test_dropped(self):
        self.assertEqual(received(status=None).describe()[13:], "POST /hook dropped {}")

    def test_not_signed(self):
        request = Received(0.0, "POST", "/hook", (), b"{}", 401, "0 webhook-id headers instead of one")
        self.assertEqual(request.describe()[13:], "POST /hook 401 (0 webhook-id headers instead of one) {}")
        tally = Tally()
        for answered in (request, received(status=401)):
            tally.arrived(answered)
            tally.answered(answered)
        self.assertEqual(tally.describe(), "2 requests over 0 connections, 2 answered 401, 1 with a wrong signature")

    def test_headers(self):
        lines = received(webhook_id="a\x1b[2J").describe(headers=True).split("\n")
        self.assertEqual(lines[1:], ["    Webhook-Id: a\\x1b[2J"])

    def test_long_bodies_are_shortened(self):
        line = received(b"x" * 5000).describe()
        self.assertLess(len(line), 300)
        self.assertTrue(line.endswith("xxx... (5000 bytes)"))

    def test_compressed_bodies_are_shown_unpacked(self):
        body = gzip.compress(b'{"action":"client_connack","clientid":"c1"}')
        headers = (("Content-Encoding", "GZIP"),)
        text = replace(received(body), headers=headers).describe()
        self.assertIn('client_connack client=c1 {"action":"client_connack","clientid":"c1"}', text)
        self.assertTrue(text.endswith(f" ({len(body)} bytes, gzip)"), text)
        for wrong, words in ((b"{}", "not the gzip that its header says"), (body[:-9], "gzip that ends too early")):
            text = replace(received(wrong), headers=headers).describe()
            self.assertTrue(text.endswith(f"({len(wrong)} bytes, {words})"), text)
        bomb = gzip.compress(bytes(100 * UNPACK_LIMIT))
        self.assertLess(len(replace(received(bomb), headers=headers).describe()), 2000)
        self.assertNotIn("gzip", received(body).describe())

    def test_hostile_values(self):
        body = json.dumps({"action": "a\nb", "clientid": "\x1b]0;evil\x07", "topic": "\u202etxt.exe\ud800"}).encode()
        self.assertIn(r"a\nb client=\x1b]0;evil\x07 topic=\u202etxt.exe\ud800", received(body).describe())

    @given(
        st.binary()
        | st.dictionaries(st.sampled_from(["action", "clientid", "topic"]), st.text()).map(lambda d: json.dumps(d).encode()),
        st.text(),
        st.text(),
        st.text(),
    )
    def test_always_one_printable_line(self, body, path, method, webhook_id):
        line = received(body, path=path, method=method, webhook_id=webhook_id).describe()
        self.assertTrue(line.isprintable(), line)

    def test_printable(self):
        self.assertEqual(printable("Straße 東京", 20), "Straße 東京")
        self.assertEqual(printable("abcdef", 3), "abc...")
        self.assertEqual(printable("a\x00\x7f\r\n", 9), r"a\x00\x7f\r\n")


class TallyTests(SynchronousTestCase):
    def test_ids_that_succeeded_count(self):
        tally = Tally()
        for webhook_id, status in (("a", 500), ("a", 200), ("a", 204), ("b", None), ("b", 429), (None, 200), ("c", 200)):
            request = received(webhook_id=webhook_id, status=status)
            tally.arrived(request)
            tally.answered(request)
        self.assertEqual((tally.requests, tally.distinct, tally.duplicates, tally.dropped), (7, 2, 1, 1))
        self.assertEqual(tally.answers, {200: 3, 204: 1, 429: 1, 500: 1})
        self.assertEqual(
            tally.describe(),
            "7 requests over 0 connections, 3 answered 200, 1 answered 204, 1 answered 429, 1 answered 500, 1 dropped, "
            "2 different webhook-ids, 1 repeated",
        )

    def test_memory_is_bounded(self):
        tally = Tally(keep=2, remember=3)
        for number in range(1000):
            request = received(webhook_id=str(number))
            tally.arrived(request)
            tally.answered(request)
        self.assertEqual([request.webhook_id for request in tally.received], ["998", "999"])
        self.assertEqual(tally.distinct, 1000)
        for number, distinct, duplicates in (("997", 1000, 1), ("996", 1001, 1)):
            request = received(webhook_id=number)
            tally.arrived(request)
            tally.answered(request)
            self.assertEqual((tally.distinct, tally.duplicates), (distinct, duplicates))

    def test_open_connections(self):
        tally = Tally()
        for step in (tally.connected, tally.connected, tally.disconnected, tally.connected):
            step()
        self.assertEqual((tally.connections, tally.open, tally.most_open), (3, 2, 2))


class BehaviourTests(SynchronousTestCase):
    @given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 2**32))
    def test_shares(self, fail, drop, seed):
        behaviour = Behaviour(fail=fail / 200, drop=drop / 200, fail_status=503, status=202)
        random = Random(seed)
        answers = [behaviour.answer(random.random()) for _ in range(400)]
        self.assertLess(abs(answers.count(503) - 2 * fail), 61)
        self.assertLess(abs(answers.count(None) - 2 * drop), 61)
        self.assertLessEqual(set(answers), {503, None, 202})

    def test_always_and_never(self):
        random = Random(1)
        for behaviour, answer in ((Behaviour(), 200), (Behaviour(fail=1.0), 500), (Behaviour(drop=1.0), None)):
            self.assertEqual({behaviour.answer(random.random()) for _ in range(100)}, {answer})


class Raw(Protocol):
    """Speaks to the receiver by the byte."""

    def __init__(self):
        self.data = b""
        self.closed = Deferred()
        self._waiting = None

    def dataReceived(self, data):
        self.data += data
        if self._waiting is not None and self._waiting[0] in self.data:
            (_, found), self._waiting = self._waiting, None
            found.callback(self.data)

    def until(self, text):
        if text in self.data:
            return succeed(self.data)
        self._waiting = (text, Deferred())
        return self._waiting[1]

    def connectionLost(self, reason):
        self.closed.callback(None)


class SiteTests(TestCase):
    timeout = 120

    async def start(self, behaviour=None, clock=reactor, **options):
        self.factory, self.tally = receiver_site(clock, behaviour, **options)
        self.port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(self.factory)
        self.addCleanup(self.finish)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/hook"
        self.pool = HTTPConnectionPool(reactor)
        self.client = treq.client.HTTPClient(Agent(reactor, self.pool))

    async def finish(self):
        await maybeDeferred(self.port.stopListening)
        await self.pool.closeCachedConnections()
        await self.factory.close()

    async def post(self, body=b"{}", webhook_id="w", method="POST", path=""):
        response = await self.client.request(
            method, self.url + path, data=body, headers={"webhook-id": webhook_id}, unbuffered=True
        )
        await response.content()
        return response

    async def raw(self, data):
        protocol = await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{self.port.getHost().port}"), Raw())
        protocol.transport.write(data)
        return protocol

    async def test_it_keeps_what_it_gets(self):
        shown = []
        await self.start(show=shown.append)
        for number in range(3):
            response = await self.post(b'{"n":%d}' % number, f"w{number}", path="/x?y=z")
            self.assertEqual((response.code, response.length), (200, 0))
        self.assertEqual(shown, list(self.tally.received))
        self.assertEqual([r.body for r in shown], [b'{"n":0}', b'{"n":1}', b'{"n":2}'])
        self.assertEqual({(r.method, r.path, r.status) for r in shown}, {("POST", "/hook/x?y=z", 200)})
        self.assertEqual([r.webhook_id for r in shown], ["w0", "w1", "w2"])
        self.assertEqual((self.tally.requests, self.tally.distinct, self.tally.duplicates), (3, 3, 0))

    async def test_every_method_and_path(self):
        await self.start()
        for method in ("GET", "PUT", "DELETE", "HEAD", "PURGE"):
            self.assertEqual((await self.post(method=method, path="/../" + method)).code, 200)
        self.assertEqual([r.method for r in self.tally.received], ["GET", "PUT", "DELETE", "HEAD", "PURGE"])

    async def test_status_on_a_persistent_connection(self):
        for status in (200, 202, 204, 410, 599):
            await self.start(Behaviour(status=status))
            protocol = await self.raw(b"")
            for _ in range(2):
                protocol.data = b""
                protocol.transport.write(b"POST / HTTP/1.1\r\nHost: h\r\nwebhook-id: a\r\nContent-Length: 2\r\n\r\n{}")
                answer = await protocol.until(b"\r\n\r\n")
                self.assertTrue(answer.startswith(b"HTTP/1.1 %d " % status))
                self.assertTrue(answer.endswith(b"\r\n\r\n"))
                self.assertEqual(b"\r\nContent-Length: 0\r\n" in answer, status != 204)
                self.assertNotIn(b"Connection", answer)
            self.assertEqual((self.tally.answers, self.tally.connections), ({status: 2}, 1))
            self.assertEqual(self.tally.duplicates, 1 if status < 300 else 0)
            await self.finish()

    async def test_a_share_of_requests_fails(self):
        await self.start(Behaviour(fail=0.5, fail_status=503), random=Random(1))
        codes = [(await self.post(webhook_id=str(n))).code for n in range(60)]
        self.assertEqual(set(codes), {200, 503})
        self.assertEqual(self.tally.distinct, codes.count(200))
        self.assertEqual([r.status for r in self.tally.received], codes)
        expected = Random(1)
        self.assertEqual(codes, [503 if expected.random() < 0.5 else 200 for _ in codes])

    async def test_dropped_requests_are_not_answered(self):
        await self.start(Behaviour(drop=1.0))
        protocol = await self.raw(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
        await protocol.closed
        self.assertEqual(protocol.data, b"")
        await self.assertFailure(Deferred.fromCoroutine(self.post()), ResponseNeverReceived)
        self.assertEqual((self.tally.dropped, self.tally.distinct, self.tally.answers), (2, 0, {}))

    async def test_answers_are_delayed(self):
        clock = Clock()
        await self.start(Behaviour(delay=0.05), clock)
        answer = Deferred.fromCoroutine(self.post())
        await until(lambda: self.tally.requests)
        clock.advance(0.049)
        self.assertEqual(self.tally.answers, {})
        self.assertNoResult(answer)
        clock.advance(0.002)
        self.assertEqual((await answer).code, 200)
        self.assertEqual(self.tally.answers, {200: 1})

    async def test_unsigned_requests_are_refused(self):
        clock = Clock()
        clock.advance(1_700_000_000)
        await self.start(Behaviour(secrets=(SECRET,)), clock)
        for headers, code in (
            ({"webhook-signature": Signer([SECRET]).sign("w", 1_700_000_000, b"{}")}, 200),
            ({"webhook-signature": Signer(["whsec_" + "QUJD" * 8]).sign("w", 1_700_000_000, b"{}")}, 401),
            ({}, 401),
        ):
            sent = {"webhook-id": "w", "webhook-timestamp": "1700000000", **headers}
            response = await self.client.post(self.url, data=b"{}", headers=sent, unbuffered=True)
            await response.content()
            self.assertEqual(response.code, code)
        self.assertEqual((self.tally.forged, self.tally.distinct, self.tally.answers), (2, 1, {200: 1, 401: 2}))
        self.assertEqual(self.tally.received[-1].problem, "0 webhook-signature headers instead of one")

    async def test_requests_signed_with_another_private_key_are_refused(self):
        clock = Clock()
        clock.advance(1_700_000_000)
        ours, other = (f"whsk_{letters * 10}QUI=" for letters in ("QUJD", "QUJE"))
        await self.start(Behaviour(secrets=(public_form(ours),)), clock)
        for secret, code in ((ours, 200), (other, 401), (SECRET, 401)):
            signature = Signer([secret]).sign("w", 1_700_000_000, b"{}")
            sent = {"webhook-id": "w", "webhook-timestamp": "1700000000", "webhook-signature": signature}
            response = await self.client.post(self.url, data=b"{}", headers=sent, unbuffered=True)
            await response.content()
            self.assertEqual(response.code, code)
        self.assertEqual(self.tally.received[-1].problem, "no webhook-signature matches this key and this body")

    async def test_a_client_that_does_not_wait(self):
        clock = Clock()
        await self.start(Behaviour(delay=10.0), clock)
        protocol = await self.raw(b"POST / HTTP/1.1\r\nHost: h\r\nwebhook-id: a\r\nContent-Length: 2\r\n\r\n{}")
        await until(lambda: self.tally.requests)
        protocol.transport.abortConnection()
        await until(lambda: not self.tally.open)
        clock.advance(11)
        self.assertEqual((self.tally.abandoned, self.tally.answers, self.tally.distinct), (1, {}, 0))

    async def test_pipelined_requests_are_answered_in_order(self):
        await self.start()
        protocol = await self.raw(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        await protocol.closed
        self.assertEqual(protocol.data.count(b"HTTP/1.1 200 OK"), 2)
        self.assertEqual([r.path for r in self.tally.received], ["/1", "/2"])

    async def test_what_is_not_http(self):
        await self.start()
        protocol = await self.raw(b"\x00\x00\x00\x05hello\r\n\r\n")
        await protocol.closed
        self.assertIn(b"400", protocol.data)
        self.assertEqual(self.tally.requests, 0)

    async def test_open_connections(self):
        await self.start()
        protocols = [await self.raw(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") for _ in range(5)]
        await gatherResults([protocol.until(b"\r\n\r\n") for protocol in protocols])
        self.assertEqual((self.tally.connections, self.tally.open, self.tally.most_open), (5, 5, 5))
        closed = self.factory.close()
        await gatherResults([protocol.closed for protocol in protocols])
        await closed
        self.assertEqual((self.tally.connections, self.tally.open, self.tally.most_open), (5, 0, 5))

    async def test_closing_has_a_bound(self):
        clock = Clock()
        factory, tally = receiver_site(clock)
        protocol, transport = factory.buildProtocol(None), StringTransport()
        protocol.makeConnection(transport)
        closed = factory.close()
        clock.advance(1.9)
        self.assertEqual((transport.disconnecting, transport.disconnected), (True, False))
        clock.advance(0.2)
        self.assertTrue(transport.disconnected)
        protocol.connectionLost(None)
        await closed
        self.assertEqual(tally.open, 0)


class OptionTests(SynchronousTestCase):
    def parse(self, *args):
        options = Options()
        options.parseOptions(args)
        return options

    def test_values(self):
        options = self.parse("--fail=10%:503", "--drop=1%", "--delay=50ms", "--status=204", "--port=0")
        self.assertEqual((options["fail"], options["drop"], options["delay"]), ((0.1, 503), 0.01, 0.05))
        self.assertEqual((options["status"], options["port"]), (204, 0))
        self.assertEqual(self.parse("--fail=20%")["fail"], (0.2, 500))
        self.assertEqual((self.parse("--delay=1s")["delay"], self.parse("--delay=50")["delay"]), (1.0, 0.05))

    def test_mistakes_are_one_line_that_names_the_option(self):
        for args, message in {
            ("--status=99",): "--status: '99' is not a whole number from 200 to 599",
            ("--fail=often",): "--fail: 'often' is not a share from 0% to 100%, like 10%",
            ("--fail=10%:ok",): "--fail: 'ok' is not a whole number from 200 to 599",
            ("--drop=2",): "--drop: '2' is not a share from 0% to 100%, like 10%",
            ("--delay=soon",): "--delay: 'soon' is not a duration; write it like 50ms or 1s",
            ("--port=65536",): "--port: '65536' is not a whole number from 0 to 65535",
            ("--port=1", "--listen=tcp:2"): "--listen and --port both say where to listen; give one of them",
            ("--fail=60%", "--drop=60%"): "--fail and --drop add up to more than 100%",
            ("--secret=whsec_QUJD",): "--secret: is the base64 of 3 bytes: it has to be 24 to 64, random"
            "; make one with echo whsec_$(openssl rand -base64 24)",
            ("--secret=whpk_QUJD",): "--secret: is the base64 of 3 bytes: an ed25519 public key has 32",
            ("--secret=whsk_QUJD",): "--secret: is a private key, which only the sender has: give the public one, whpk_…",
            ("--quiet", "--verbose"): "--quiet and --verbose contradict each other; give one of them",
        }.items():
            self.assertEqual(str(self.assertRaises(UsageError, self.parse, *args)), message)

    def test_where_it_listens(self):
        for args, port in (((), 8080), (("--port=81",), 81), (("--listen=tcp:82",), 82)):
            reactor = MemoryReactorClock()
            from_options(reactor, self.parse(*args), BytesIO()).startService()
            self.assertEqual([(server[0], server[3]) for server in reactor.tcpServers], [(port, "127.0.0.1")])

    def test_an_address_that_is_none(self):
        error = self.assertRaises(ConfigError, from_options, MemoryReactorClock(), self.parse("--listen=tpc:1"), BytesIO())
        self.assertEqual(
            str(error),
            "tpc:1: not a listening endpoint (Unknown endpoint type: 'tpc'); write it like tcp:8890 or unix:/run/mqhooks.sock",
        )
        ended = self.assertRaises(SystemExit, makeService, self.parse("--listen=tpc:1"))
        self.assertEqual(str(ended), f"mqhooks-receive: {error}")


class ReceiverTests(TestCase):
    timeout = 120

    def build(self, *args, reactor=reactor):
        options = Options()
        options.parseOptions(["--port=0", *args])
        self.stream = BytesIO()
        return from_options(reactor, options, self.stream)

    async def post(self, receiver, body):
        response = await treq.post(
            f"http://127.0.0.1:{receiver.address.port}/", body, headers={"webhook-id": "w"}, persistent=False
        )
        await response.content()
        return response.code

    def lines(self):
        return self.stream.getvalue().decode().splitlines()

    async def test_requests_are_shown_and_counted(self):
        receiver = self.build()
        receiver.startService()
        self.assertEqual(await self.post(receiver, '{"action":"é"}'.encode()), 200)
        await receiver.stopService()
        self.assertEqual([line[13:] for line in self.lines()[:1]], ['POST / 200 é id=w {"action":"é"}'])
        self.assertEqual(
            self.lines()[1:], ["1 requests over 1 connections, 1 answered 200, 1 different webhook-ids, 0 repeated"]
        )

    async def test_verbose(self):
        receiver = self.build("--verbose")
        receiver.startService()
        await self.post(receiver, b"{}")
        await receiver.stopService()
        self.assertIn("    Webhook-Id: w", self.lines())

    async def test_secret(self):
        receiver = self.build(f"--secret={SECRET}")
        receiver.startService()
        self.assertEqual(await self.post(receiver, b"{}"), 401)
        await receiver.stopService()
        self.assertIn(" POST / 401 (0 webhook-timestamp headers instead of one) id=w {}", self.lines()[0])

    async def test_seed(self):
        codes = []
        for _ in range(2):
            receiver = self.build("--fail=50%:429", "--seed=s")
            receiver.startService()
            codes.append([await self.post(receiver, b"{}") for _ in range(20)])
            await receiver.stopService()
        self.assertEqual(codes[0], codes[1])
        self.assertEqual(set(codes[0]), {200, 429})

    def test_quiet(self):
        clock = MemoryReactorClock()
        receiver = self.build("--quiet", reactor=clock)
        receiver.startService()
        clock.advance(1)
        self.assertEqual(self.lines(), [])
        protocol = clock.tcpServers[0][1].buildProtocol(None)
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual(self.lines(), [])
        clock.pump([1, 1, 1])
        self.assertEqual(self.lines(), ["1 requests over 1 connections, 1 answered 200"])

    async def test_a_taken_address(self):
        receiver = self.build()
        receiver.startService()
        options = Options()
        options.parseOptions([f"--port={receiver.address.port}"])
        error = self.assertRaises(ListenError, from_options(reactor, options, BytesIO()).startService)
        self.assertEqual(
            str(error),
            f"cannot listen on tcp:{receiver.address.port}:interface=127.0.0.1: Address already in use; "
            "stop what uses the address or give another one",
        )
        await receiver.stopService()

    async def test_unix(self):
        path = self.mktemp()[-80:]
        options = Options()
        options.parseOptions([f"--listen=unix:{os.path.basename(path)}"])
        receiver = from_options(reactor, options, BytesIO())
        receiver.startService()
        await receiver.stopService()


class ConsoleTests(SynchronousTestCase):
    def test_what_cannot_be_encoded(self):
        stream = BytesIO()
        Console(stream, self.fail).write("ä \ud800")
        self.assertEqual(stream.getvalue(), "ä \\ud800\n".encode())

    def test_a_pipe_that_nobody_reads(self):
        reading, writing = os.pipe()
        os.close(reading)
        closed = []
        with os.fdopen(writing, "wb", buffering=0) as stream:
            console = Console(stream, lambda: closed.append(True))
            console.write("x")
            console.write("y")
        self.assertEqual(closed, [True])

    def test_a_full_disk(self):
        told = []
        with open("/dev/full", "wb", buffering=0) as stream:
            console = Console(stream, lambda: told.append("closed"), told.append)
            console.write("x")
            console.write("y")
        self.assertEqual(told, ["mqhooks: standard output cannot be written: No space left on device", "closed"])


class PluginTests(TestCase):
    timeout = 120

    async def receive(self, where):
        """Start a receiver with standard output somewhere, and have it receive a request."""
        port = kept_port(self)
        command = ["/bin/sh", "-c", f'exec "$@" {where}', "sh", sys.executable, "-m", "mqhooks", "receive", f"--port={port}"]
        running = Running(self, command, environment={"PYTHONUNBUFFERED": "", "PYTHONPATH": os.pathsep.join(sys.path)})

        async def post():
            response = await treq.post(f"http://127.0.0.1:{port}/", b"x", persistent=False)
            await response.content()
            return response.code

        async def posted():
            try:
                return await post()
            except ConnectError:
                return None

        await until(posted)
        return running, post

    async def test_standard_output_on_a_full_disk(self):
        receiver, _ = await self.receive(">/dev/full")
        await receiver.ended
        self.assertEqual(receiver.stderr, "mqhooks: standard output cannot be written: No space left on device\n")

    async def test_standard_output_that_is_closed(self):
        # Otherwise another file or connection would have its descriptor, and get what is written.
        receiver, post = await self.receive(">&-")
        self.assertEqual([await post() for _ in range(3)], [200] * 3)
        receiver.process.signalProcess("TERM")
        await receiver.ended
        self.assertEqual(receiver.stderr, "")

    def test_twistd_lists_it(self):
        twistd = Twistd(self, "--help")
        return twistd.until(r"mqhooks-receive +Receive webhooks").addCallback(lambda _: twistd.ended)

    async def test_it_shows_what_arrives_until_it_is_told_to_stop(self):
        twistd = Twistd(self, "mqhooks-receive", "--port=0", "--status=202")
        url = "http://" + (await twistd.until(r"listening for webhooks on (127\.0\.0\.1:\d+)\n")).group(1)
        response = await treq.post(url + "/hook", b'{"action":"client_connack","clientid":"c"}', persistent=False)
        await response.content()
        self.assertEqual(response.code, 202)
        await twistd.until(
            r'\n\d\d:\d\d:\d\d\.\d{3} POST /hook 202 client_connack client=c \{"action":"client_connack","clientid":"c"\}\n'
        )
        twistd.process.signalProcess("INT")
        await twistd.ended
        self.assertIn("\n1 requests over 1 connections, 1 answered 202\n", twistd.stdout)
        self.assertNotIn("Traceback", twistd.stdout + twistd.stderr)

    async def test_it_ends_when_nobody_reads_what_it_shows(self):
        twistd = Twistd(self, "mqhooks-receive", "--port=0")
        url = "http://" + (await twistd.until(r"listening for webhooks on (127\.0\.0\.1:\d+)\n")).group(1)
        twistd.process.closeStdout()
        await treq.post(url, b"{}", persistent=False)
        await twistd.ended

    async def test_a_taken_port_is_one_line_and_status_1(self):
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(receiver_site(reactor)[0])
        self.addCleanup(port.stopListening)
        twistd = Twistd(self, "mqhooks-receive", f"--port={port.getHost().port}")
        result = await twistd.ended
        self.assertEqual(result.exitCode, 1)
        self.assertIn(f"cannot listen on tcp:{port.getHost().port}:interface=127.0.0.1: Address already in use", twistd.stdout)
        self.assertNotIn("Traceback", twistd.stdout + twistd.stderr)

    async def test_a_bad_option(self):
        twistd = Twistd(self, "mqhooks-receive", "--fail=1")
        result = await twistd.ended
        self.assertEqual(result.exitCode, 1)
        self.assertEqual(twistd.stderr, "mqhooks-receive: --fail: '1' is not a share from 0% to 100%, like 10%\n")
