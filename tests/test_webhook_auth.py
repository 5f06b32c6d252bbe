"""Attempts carry what the webhook authenticates with, and wait while there is nothing."""

import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from mqhooks.app.webhooks import transport_for
from mqhooks.delivery import Head, Request
from mqhooks.errors import ConnectFailed, NotAuthenticated
from mqhooks.interfaces import ICallbackTransport
from mqhooks.webhook.auth import MAX_TOKEN, TokenFile
from mqhooks.webhook.settings import BasicSettings, BearerSettings, RetrySettings, WebhookSettings
from tests.endpoints import Endpoint
from tests.webhooks import SinkMixin, publish, respond


def authorization(attempt):
    """What the request of an attempt authenticates with."""
    return [value for name, value in attempt.request.head.headers if name == "authorization"]


class FileMixin:
    """A file with a token."""

    def token_file(self, content=None):
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder / "token"
        if content is not None:
            self.path.write_bytes(content)
        return str(self.path)


class WireTests(FileMixin, TestCase):
    """Over both transports, to a real endpoint."""

    timeout = 120

    async def headers(self, auth, transport):
        endpoint = Endpoint()
        settings = WebhookSettings("w", endpoint.listen(self, reactor), (), auth=auth, transport=transport)
        sender = transport_for(reactor, settings)
        head = Head("POST", settings.url, (("x-a", "b"),))
        for _ in range(2):
            response = await sender.send(Request(head, [("webhook-id", "msg_1")], b"{}"))
            self.assertEqual(response.status, 200)
        await sender.close()
        one, other = endpoint.requests
        self.assertEqual((one.header("x-a"), one.header("webhook-id"), one.body), ("b", "msg_1", b"{}"))
        self.assertEqual(one.headers, other.headers)
        self.assertEqual(len(endpoint.connections), 1)
        return one.header("authorization")

    async def test_both_transports(self):
        for transport in ("pooled", "treq"):
            for auth, expected in (
                (None, None),
                # The example of RFC 7617, and the one with a pound sign.
                (BasicSettings("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
                (BasicSettings("test", "123£"), "Basic dGVzdDoxMjPCow=="),
                (BearerSettings("mF_9.B5f-4.1JqM"), "Bearer mF_9.B5f-4.1JqM"),
                (BearerSettings(token_file=self.token_file(b" from.a-file=\r\n")), "Bearer from.a-file="),
            ):
                self.assertEqual(await self.headers(auth, transport), expected)

    async def test_interface(self):
        settings = WebhookSettings("w", "http://127.0.0.1:1/", (), auth=BearerSettings("t"))
        sender = transport_for(reactor, settings)
        verifyObject(ICallbackTransport, sender)
        await sender.close()
        results = []
        sender.submit(Request(Head("POST", settings.url, ()), [], b""), results.append)
        self.assertIsInstance(results[0], ConnectFailed)


class TokenFileTests(FileMixin, SynchronousTestCase):
    def value(self, credentials):
        values = []
        credentials.get(values.append)
        return values[0]

    def test_a_changed_file_is_read_again(self):
        clock = Clock()
        credentials = TokenFile(self.token_file(b"one"), clock.seconds)
        self.assertEqual(self.value(credentials), "Bearer one")
        other = self.path.with_name("other")
        other.write_bytes(b"two")
        os.replace(other, self.path)
        self.assertEqual(self.value(credentials), "Bearer one")
        clock.advance(1)
        self.assertEqual(self.value(credentials), "Bearer two")

    def test_what_is_no_token(self):
        clock = Clock()
        credentials = TokenFile(self.token_file(), clock.seconds)

        def problem():
            clock.advance(1)
            error = self.value(credentials)
            self.assertIsInstance(error, NotAuthenticated)
            self.assertNotIn("s3cret", str(error))
            return str(error).removeprefix(f"no token: {self.path} ")

        self.assertEqual(problem(), "cannot be read: No such file or directory")
        for content in (b"", b" \r\n"):
            self.path.write_bytes(content)
            self.assertEqual(problem(), "is empty: write the token into it")
        wrong = (b"Bearer s3cret", b"s3cret\ns3cret", b"s3cret\0", b"s3cret\xc3\xa9", b"s3cret" + b"x" * MAX_TOKEN)
        for content in wrong:
            self.path.write_bytes(content)
            expected = "does not hold a single token: write one into it, without spaces or anything before it"
            self.assertEqual(problem(), expected)
        self.path.unlink()
        os.mkfifo(self.path)
        self.assertEqual(problem(), "is empty: write the token into it")
        self.path.unlink()
        self.path.mkdir()
        self.assertEqual(problem(), "cannot be read: Is a directory")
        self.path.rmdir()
        self.path.write_bytes(b"x" * MAX_TOKEN)
        clock.advance(1)
        self.assertEqual(self.value(credentials), "Bearer " + "x" * MAX_TOKEN)


class WaitingTests(FileMixin, SinkMixin, SynchronousTestCase):
    def test_deliveries_wait_for_the_token(self):
        self.make(auth=BearerSettings(token_file=self.token_file()), retry=RetrySettings(jitter=0, max_attempts=1))
        self.sink.receive([publish("c", number) for number in range(3)])
        self.assertEqual(self.in_flight, [])
        why = f"no token: {self.path} cannot be read: No such file or directory"
        self.assertIn(f"webhook w: nothing can be sent: {why}", self.lines())
        self.assertIsNotNone(self.sink.down_since)
        self.assertEqual(self.sink.failure.reason, why)
        self.assertEqual(self.sink.counters.failures["auth"], self.sink.counters.failed)
        self.assertEqual(self.sink.counters.failures["connect"], 0)
        # However long it takes, no delivery is given up because of it.
        for _ in range(10):
            self.clock.advance(300)
        self.assertEqual((self.outbox.counts.dead, self.outbox.counts.pending), (0, 3))
        self.path.write_bytes(b"late")
        self.clock.advance(300)
        self.assertEqual(authorization(self.in_flight[0]), ["Bearer late"])
        self.end_all()
        self.assertEqual(self.outbox.counts.delivered, 3)
        self.assertIsNone(self.sink.down_since)
        self.assert_identities()

    def test_a_refused_token_is_read_again_at_once(self):
        self.make(auth=BearerSettings(token_file=self.token_file(b"old")))
        self.sink.receive([publish("c", 1)])
        self.path.write_bytes(b"new")
        self.assertEqual(authorization(self.transport.end(401)), ["Bearer old"])
        self.assertEqual(authorization(self.transport.end(200)), ["Bearer new"])
        self.assertEqual((self.outbox.counts.delivered, self.sink.counters.attempts), (1, 1))

    def test_a_refusal_of_what_does_not_change_is_one(self):
        path = self.token_file(b"same")
        for auth in (BearerSettings(token_file=path), BearerSettings("same"), BasicSettings("a", "b")):
            self.make(auth=auth)
            self.sink.receive([publish("c", 1)])
            self.transport.end(401)
            self.assertEqual((self.in_flight, self.outbox.counts.dead), ([], 1))

    def test_nothing_of_it_is_kept_with_the_delivery(self):
        for auth, secret in ((BearerSettings("s3cret"), "s3cret"), (BasicSettings("a", "s3cret"), "YTpzM2NyZXQ=")):
            self.make(auth=auth)
            self.sink.receive([publish("c", 1)])
            # An endpoint that says what it got.
            self.transport.end(respond(400, body=f"not from {secret}".encode()))
            (letter,) = self.outbox.dead_letters
            self.assertEqual((letter.answer, self.sink.refusal.body), (b"not from \xe2\x80\xa6",) * 2)
            for shown in (repr(letter), repr(self.sink.settings), *self.lines()):
                self.assertNotIn("s3cret", shown)
                self.assertNotIn(secret, shown)

    def test_others_count_no_such_failures(self):
        self.make()
        self.assertNotIn("auth", self.sink.counters.failures)
