"""Tokens of an OAuth 2.0 server: got, used, renewed, and whatever a server may do instead."""

import json
from base64 import b64decode
from urllib.parse import parse_qs

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.ssl import Certificate, KeyPair, PrivateCertificate
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.app.webhooks import transport_for
from mqhooks.delivery import Head, Request, Response
from mqhooks.errors import ConnectFailed, DeliveryError, DeliveryTimeout, NotAuthenticated
from mqhooks.http.treqtransport import TreqTransport
from mqhooks.support.tls import TLSSettings
from mqhooks.webhook.auth import AuthenticatedTransport
from mqhooks.webhook.settings import OAuth2Settings, WebhookSettings
from mqhooks.webhook.tokens import BELIEVED, MAX_ANSWER, PAUSE, UNKNOWN_LIFE, Tokens, lifetime
from tests.certificates import Authority, key_pem, pem
from tests.endpoints import Endpoint
from tests.test_http_tls import FilesMixin
from tests.test_webhook_auth import authorization
from tests.waiting import until
from tests.webhooks import SinkMixin, publish, respond

SECRET = "cl13nt-s3cret"
AUTH = OAuth2Settings("https://idp.example/oauth/token", "bridge", SECRET)


def grant(token="t1", **more):
    """What a server answers."""
    answer = {"access_token": token, "token_type": "Bearer", "expires_in": 100} | more
    return json.dumps({key: value for key, value in answer.items() if value is not None}).encode()


class FakeServer:
    """Answers when told."""

    def __init__(self):
        self.asked = []
        self.closed = False

    def send(self, request):
        answered = Deferred()
        self.asked.append((request, answered))
        return answered

    @property
    def waiting(self):
        return [answered for _, answered in self.asked if not answered.called]

    def answer(self, result):
        """End the only request that is under way."""
        (answered,) = self.waiting
        if isinstance(result, Exception):
            answered.errback(result)
        elif isinstance(result, Response):
            answered.callback(result)
        else:
            answered.callback(respond(200, body=result))

    def close(self):
        self.closed = True
        for answered in self.waiting:
            answered.errback(ConnectFailed("closed"))
        return succeed(None)


class TokensTests(SynchronousTestCase):
    def setUp(self):
        self.clock, self.server = Clock(), FakeServer()
        self.tokens = Tokens(self.clock, AUTH, self.server, "w")
        self.values = []

    def get(self):
        self.tokens.get(self.values.append)

    def test_one_for_all(self):
        for _ in range(3):
            self.get()
        self.assertEqual((self.values, len(self.server.asked)), ([], 1))
        self.server.answer(grant())
        self.get()
        self.assertEqual((self.values, len(self.server.asked)), (["Bearer t1"] * 4, 1))

    def test_renewed_after_three_quarters_of_its_life(self):
        self.get()
        self.clock.advance(5)
        self.server.answer(grant())
        # Its life is counted from when it was asked for.
        self.clock.advance(69)
        self.get()
        self.assertEqual(len(self.server.asked), 1)
        self.clock.advance(1)
        for _ in range(3):
            self.get()
        self.assertEqual((self.values, len(self.server.asked)), (["Bearer t1"] * 5, 2))
        self.server.answer(grant("t2"))
        self.get()
        self.assertEqual(self.values[-1], "Bearer t2")

    def test_used_up_while_it_cannot_be_renewed(self):
        self.get()
        self.server.answer(grant())
        self.clock.advance(75)
        self.get()
        self.server.answer(respond(503))
        for _ in range(3):
            self.get()
        self.assertEqual((self.values, len(self.server.asked)), (["Bearer t1"] * 5, 2))
        self.clock.advance(PAUSE)
        self.get()
        self.assertEqual(len(self.server.asked), 3)
        self.clock.advance(15)
        self.get()
        self.assertEqual(len(self.values), 6)
        self.server.answer(respond(503))
        self.assertIsInstance(self.values[-1], NotAuthenticated)

    def test_every_answer_that_is_none(self):
        at = "https://idp.example/oauth/token"
        for answer, why in (
            (b"", f"the answer of {at} is not the JSON object that RFC 6749 demands"),
            (b"<html>" + SECRET.encode(), f"the answer of {at} is not the JSON object that RFC 6749 demands"),
            (b"[" * 100_000, f"the answer of {at} is not the JSON object that RFC 6749 demands"),
            (b'["t1"]', f"the answer of {at} is not the JSON object that RFC 6749 demands"),
            (b'{"access_token": "\xff"}', f"the answer of {at} is not the JSON object that RFC 6749 demands"),
            (grant(7), f"the answer of {at} is not the JSON object that RFC 6749 demands"),
            (grant(None), f"the answer of {at} has no access_token that a header can carry"),
            (grant(""), f"the answer of {at} has no access_token that a header can carry"),
            (grant("a\r\nx-evil: 1"), f"the answer of {at} has no access_token that a header can carry"),
            (grant("tök"), f"the answer of {at} has no access_token that a header can carry"),
            (grant(token_type="mac"), f"the token of {at} is not a Bearer token"),
            (grant(expires_in=0), f"the token of {at} had already expired on arrival: its expires_in is not above 0"),
            (grant(expires_in=-5), f"the token of {at} had already expired on arrival: its expires_in is not above 0"),
            (grant(expires_in="0"), f"the token of {at} had already expired on arrival: its expires_in is not above 0"),
            (Response(200, [], grant(), 9999, complete=False), f"the answer of {at} is too long, or is cut off"),
            (respond(302), f"{at} answered 302"),
            (respond(401, body=b'{"error": "invalid_client"}'), f"{at} answered 401 (invalid_client)"),
            (respond(401, body=f'{{"error": "{SECRET}"}}'.encode()), f"{at} answered 401"),
            (respond(401, body=b'{"error": "Not a word: <b>"}'), f"{at} answered 401"),
            (respond(400, body=b'{"error": 7}'), f"{at} answered 400"),
            (respond(503, body=b"\xff"), f"{at} answered 503"),
            (DeliveryTimeout("https://idp.example: no answer within 10 s"), "https://idp.example: no answer within 10 s"),
        ):
            self.get()
            self.server.answer(answer)
            error = self.values.pop()
            self.assertIsInstance(error, NotAuthenticated)
            self.assertEqual(str(error), f"no token: {why}")
        # And it is asked again whenever one is needed.
        self.get()
        self.server.answer(grant())
        self.assertEqual(self.values, ["Bearer t1"])

    def test_answers_that_are_one(self):
        for answer in (
            grant(token_type="bearer"),
            grant(token_type=None),
            grant(more={"scope": "x"}),
            grant(expires_in=None),
            respond(201, body=grant()),
        ):
            self.setUp()
            self.get()
            self.server.answer(answer)
            self.assertEqual(self.values, ["Bearer t1"])

    def test_lifetimes(self):
        for given_, life in (
            (3600, 3600),
            (0.5, 0.5),
            ("3599", 3599),
            (" 3599.5 ", 3599.5),
            (None, UNKNOWN_LIFE),
            ("soon", UNKNOWN_LIFE),
            ("", UNKNOWN_LIFE),
            (True, UNKNOWN_LIFE),
            ([1], UNKNOWN_LIFE),
            (float("nan"), UNKNOWN_LIFE),
            (float("inf"), UNKNOWN_LIFE),
            (10**400, UNKNOWN_LIFE),
            ("9" * 400, UNKNOWN_LIFE),
            (-1, -1),
        ):
            self.assertEqual(lifetime(given_), life, given_)

    @given(
        st.binary(max_size=200)
        | st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists).map(
            lambda value: json.dumps({"access_token": "t", "expires_in": value}).encode()
        )
    )
    def test_nothing_that_it_answers_is_a_surprise(self, body):
        self.setUp()
        self.get()
        self.server.answer(body)
        self.assertEqual(len(self.values), 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_closing_leaves_nobody_waiting(self):
        self.get()
        self.tokens.close()
        self.assertTrue(self.server.closed)
        self.assertIsInstance(self.values[0], NotAuthenticated)


class SinkTests(SinkMixin, SynchronousTestCase):
    """In a webhook."""

    def setUp(self):
        self.server = FakeServer()

    def authenticated(self, settings):
        return AuthenticatedTransport(self.transport, Tokens(self.clock, AUTH, self.server, "w"), settings)

    def test_the_first_requests_wait_for_it(self):
        self.make(auth=AUTH)
        self.sink.receive([publish("c", 1), publish("d", 2)])
        self.assertEqual((self.in_flight, len(self.server.asked)), ([], 1))
        self.server.answer(grant())
        self.assertEqual([authorization(attempt) for attempt in self.in_flight], [["Bearer t1"]] * 2)
        self.end_all()
        self.assertEqual((self.outbox.counts.delivered, self.sink.counters.failed), (2, 0))

    def test_without_one_everything_waits(self):
        self.make(auth=AUTH)
        self.sink.receive([publish(f"c{number}", number) for number in range(40)])
        self.server.answer(respond(401, body=b'{"error": "invalid_client"}'))
        why = "no token: https://idp.example/oauth/token answered 401 (invalid_client)"
        self.assertIn(f"webhook w: nothing can be sent: {why}", self.lines())
        self.assertEqual(self.sink.failure.reason, why)
        self.assertIsNotNone(self.sink.down_since)
        self.assertEqual(self.sink.counters.failures["auth"], self.sink.counters.failed)
        self.clock.pump([1] * 600)
        asked = len(self.server.asked)
        self.assertEqual((len(self.server.waiting), asked), (1, 2))
        self.server.answer(respond(503))
        for _ in range(300):
            self.clock.advance(1)
            if self.server.waiting:
                self.server.answer(respond(503))
        # As often as an endpoint that is down is probed.
        self.assertLess(len(self.server.asked) - asked, 10)
        self.assertEqual((self.in_flight, self.outbox.counts.pending), ([], 40))
        self.clock.advance(300)
        self.server.answer(grant())
        self.end_all()
        self.assertEqual(self.outbox.counts.delivered, 40)
        self.assertIsNone(self.sink.down_since)
        self.assert_identities()
        for shown in (*self.lines(), repr(self.sink.settings)):
            self.assertNotIn(SECRET, shown)
            self.assertNotIn("Bearer", shown)

    def test_a_refused_token_is_renewed_once(self):
        self.make(auth=AUTH)
        self.sink.receive([publish("c", 1), publish("d", 2), publish("e", 3)])
        self.server.answer(grant())
        for _ in range(3):
            self.transport.end(401)
        # One renewal for all three.
        self.assertEqual((len(self.server.asked), self.in_flight), (2, []))
        self.server.answer(grant("t2"))
        self.assertEqual([authorization(attempt) for attempt in self.in_flight], [["Bearer t2"]] * 3)
        self.transport.end(200)
        self.transport.end(401)
        self.assertEqual((self.outbox.counts.delivered, self.outbox.counts.dead, len(self.server.asked)), (1, 1, 2))
        self.transport.end(200)
        self.assertEqual((self.outbox.counts.delivered, self.sink.counters.attempts), (2, 3))
        # Something was accepted, so the next refusal renews it again.
        self.sink.receive([publish("c", 4)])
        self.transport.end(401)
        self.assertEqual(len(self.server.asked), 3)

    def test_an_endpoint_that_refuses_everything_does_not_flood_the_server(self):
        self.make(auth=AUTH)
        self.sink.receive([publish(f"c{number}", number) for number in range(100)])
        self.server.answer(grant("t0"))
        for _ in range(int(BELIEVED)):
            while self.in_flight or self.server.waiting:
                if self.server.waiting:
                    self.server.answer(grant(f"t{len(self.server.asked)}"))
                if self.in_flight:
                    self.transport.end(401)
            self.clock.advance(0.9)
        self.assertTrue(self.sink.refusing)
        self.assertEqual(len(self.server.asked), 2)

    def test_a_refused_token_that_cannot_be_renewed_buries_nothing(self):
        self.make(auth=AUTH)
        self.sink.receive([publish("c", 1)])
        self.server.answer(grant(expires_in=100_000))
        for _ in range(5):
            self.transport.end(401)
            self.server.answer(respond(503))
            self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending), (0, 1))
            self.clock.advance(300)
        self.transport.end(401)
        self.server.answer(grant("t2"))
        self.assertEqual(authorization(self.transport.end(200)), ["Bearer t2"])
        self.assertEqual(self.outbox.counts.delivered, 1)

    def test_the_same_token_again_is_not_tried_again(self):
        self.make(auth=AUTH)
        self.sink.receive([publish("c", 1)])
        self.server.answer(grant())
        self.transport.end(401)
        self.server.answer(grant())
        self.assertEqual((self.in_flight, self.outbox.counts.dead), ([], 1))

    def test_stopping_while_it_is_asked_for(self):
        self.make(auth=AUTH)
        self.sink.receive([publish("c", 1)])
        stopped = self.sink.stopService()
        self.clock.advance(10)
        self.successResultOf(stopped)
        self.assertEqual((self.server.closed, self.transport.closed), (True, True))

    def test_a_renewal_that_fails_is_told(self):
        self.make(auth=AUTH)
        self.sink.receive([publish("c", 1)])
        self.server.answer(grant())
        self.end_all()
        self.clock.advance(80)
        self.sink.receive([publish("c", 2)])
        self.server.answer(respond(500))
        line = "webhook w: the token could not be renewed: https://idp.example/oauth/token answered 500; "
        self.assertIn(line + "the old one is good for another 20 s", self.lines())
        self.assertEqual(authorization(self.in_flight[0]), ["Bearer t1"])


class WireTests(TestCase):
    """Over both transports, with a server and an endpoint on loopback."""

    timeout = 120

    def serve(self, answer=None):
        self.server = Endpoint(answer or (lambda request: request.connection.reply(200, grant("x" * 5000))))
        return self.server.listen(self, reactor).replace("/hook", "/token?tenant=a")

    async def deliver(self, auth, transport="pooled"):
        endpoint = Endpoint()
        settings = WebhookSettings("w", endpoint.listen(self, reactor), (), auth=auth, transport=transport)
        sender = transport_for(reactor, settings)
        self.addCleanup(sender.close)
        head = Head("POST", settings.url, ())
        try:
            for _ in range(2):
                await sender.send(Request(head, [("webhook-id", "msg_1")], b"{}"))
        except DeliveryError as error:
            return error
        await sender.close()
        return [request.header("authorization") for request in endpoint.requests]

    async def test_what_the_server_gets(self):
        for transport in ("pooled", "treq"):
            auth = OAuth2Settings(self.serve(), "a b:ü", "s%/=+&", scope="one two", audience="https://api.example/")
            self.assertEqual(await self.deliver(auth, transport), ["Bearer " + "x" * 5000] * 2)
            (asked,) = self.server.requests
            self.assertEqual((asked.method, asked.path), ("POST", "/token?tenant=a"))
            self.assertEqual(asked.header("content-type"), "application/x-www-form-urlencoded")
            # RFC 6749, section 2.3.1: encoded like a form's fields.
            pair = b64decode(asked.header("authorization").removeprefix("Basic ")).decode()
            self.assertEqual(pair, "a+b%3A%C3%BC:s%25%2F%3D%2B%26")
            fields = {"grant_type": ["client_credentials"], "scope": ["one two"], "audience": ["https://api.example/"]}
            self.assertEqual(parse_qs(asked.body.decode(), strict_parsing=True), fields)
            await until(lambda: not self.server.open)

    async def test_credentials_in_the_body(self):
        self.assertEqual(len(await self.deliver(OAuth2Settings(self.serve(), "bridge", SECRET, credentials="body"))), 2)
        (asked,) = self.server.requests
        self.assertIsNone(asked.header("authorization"))
        fields = {"grant_type": ["client_credentials"], "client_id": ["bridge"], "client_secret": [SECRET]}
        self.assertEqual(parse_qs(asked.body.decode(), strict_parsing=True), fields)

    async def test_servers_that_misbehave(self):
        def raw(data, *, end=False):
            def answer(request):
                request.connection.send(data)
                if end:
                    request.connection.transport.loseConnection()

            return answer

        for answer in (
            raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", end=True),
            raw(b"", end=True),
            raw(b"HTTP/1.1 307 No\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"),
            lambda request: request.connection.reply(200, b" " * MAX_ANSWER + grant()),
        ):
            error = await self.deliver(OAuth2Settings(self.serve(answer), "bridge", SECRET))
            self.assertIsInstance(error, NotAuthenticated)
            self.assertNotIn(SECRET, str(error))
            self.assertNotIn("tenant", str(error))
            self.assertEqual(len(self.server.requests), 1)

    async def test_a_server_that_does_not_answer(self):
        for answer in (lambda request: None, lambda request: request.connection.send(b"HTTP/1.1 200 OK\r\n\r\n{")):
            url = self.serve(answer)
            tokens = Tokens(reactor, OAuth2Settings(url, "a", "b"), TreqTransport(reactor, url, timeout=0.2), "w")
            self.addCleanup(tokens.close)
            values = []
            tokens.get(values.append)
            await until(lambda values=values: values)
            self.assertIsInstance(values[0], NotAuthenticated)

    async def test_a_server_that_is_not_there(self):
        url = self.serve()
        await self.server.port.stopListening()
        error = await self.deliver(OAuth2Settings(url, "bridge", SECRET))
        self.assertIsInstance(error, NotAuthenticated)
        self.assertIn("refused", str(error))


class TLSTests(FilesMixin, TestCase):
    """The server's certificate."""

    timeout = 120

    async def ask(self, port, **tls):
        url = f"https://localhost:{port}/token"
        auth = OAuth2Settings(url, "a", SECRET, tls=TLSSettings(**tls))
        settings = WebhookSettings("w", "http://127.0.0.1:1/", (), auth=auth)
        sender = transport_for(reactor, settings)
        self.addCleanup(sender.close)
        try:
            return await sender.send(Request(Head("POST", settings.url, ()), [("webhook-id", "m")], b"{}"))
        except DeliveryError as error:
            return error

    async def test_it_is_verified_before_anything_is_sent(self):
        authority = Authority()
        certificate, key = authority.issue(dns=["localhost"])
        ours = PrivateCertificate.fromCertificateAndKeyPair(Certificate.loadPEM(certificate), KeyPair.load(key_pem(key), 1))
        server = Endpoint(lambda request: request.connection.reply(200, grant()))

        def listen(port, factory, **more):
            return reactor.listenSSL(port, factory, ours.options(), **more)

        server.listen(self, reactor, listen=listen)
        port = server.port.getHost().port
        error = await self.ask(port)
        self.assertIsInstance(error, NotAuthenticated)
        self.assertIn("unknown authority", str(error))
        self.assertEqual(server.requests, [])
        # With the right authority there is a token, and the webhook's endpoint is not there.
        error = await self.ask(port, cacertfile=self.file("ca.pem", pem(authority.certificate)))
        self.assertNotIsInstance(error, NotAuthenticated)
        self.assertEqual(len(server.requests), 1)
