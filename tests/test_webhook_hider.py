"""What an endpoint's answer repeats of the request's credentials is not kept."""

import json
from base64 import b64encode
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.app.sendtest import make_test
from mqhooks.delivery import Response
from mqhooks.http.limits import KEEP
from mqhooks.nanomq.settings import Rule
from mqhooks.shapes.settings import Shape
from mqhooks.webhook.hider import Hider
from mqhooks.webhook.settings import BasicSettings, BearerSettings
from tests.webhooks import SinkMixin, publish


def answer(text, status=400):
    """Return a response with the part of its body that a transport keeps."""
    body = text.encode()
    return Response(status, [], body[:KEEP], len(body), complete=True)


class AnswersTests(SinkMixin, SynchronousTestCase):
    def assert_hidden(self, text, *secrets, **settings):
        self.make(**settings)
        self.sink.receive([publish("c", 1)])
        self.transport.end(answer(text))
        (letter,) = self.outbox.dead_letters
        for kept in (letter.answer, self.sink.refusal.body, self.sink.counters.tried[-1].said):
            self.assertIn("…".encode(), kept)
            for secret in secrets:
                self.assertNotIn(secret.encode(), kept)

    def test_token_that_is_cut_or_longer_than_an_answer(self):
        for token in ("t0ken" * 20, "t0ken" * 1000):
            for before in (0, 5, KEEP - 50, KEEP - 4):
                self.assert_hidden("x" * before + token, "t0ke", auth=BearerSettings(token))

    def test_short_token(self):
        self.assert_hidden("no: t0k", "t0k", auth=BearerSettings("t0k"))

    def test_basic(self):
        auth = BasicSettings("me", 's3cret/"ö')
        for text in ('me:s3cret/"ö', 's3cret/"ö', b64encode('me:s3cret/"ö'.encode()).decode()):
            for write in (str, json.dumps, lambda text: quote(text, safe="")):
                self.assert_hidden(f"not {write(text)}", "s3cret", "czNjcmV0", auth=auth)

    def test_headers(self):
        shape = Shape(headers=(("X-Token", "rule5ecret"),))
        settings = {"headers": (("Authorization", "Token s3cret"),), "rules": (Rule("on_message_publish", shape=shape),)}
        self.assert_hidden('{"authorization":"Token s3cret","token":"s3cret"}', "s3cret", **settings)
        self.assert_hidden("rule5ecret", "rule5", **settings)

    def test_test_of_a_webhook(self):
        self.make(headers=(("X-Api-Key", "k3y/k3y"),))
        answered = self.sink.send_test(*make_test(self.sink.settings))
        self.transport.end(answer("x" * (KEEP - 4) + "k3y/k3y"))
        self.assertEqual(self.successResultOf(answered).said, b"x" * (KEEP - 4) + "…".encode())

    def test_what_is_no_secret_stays(self):
        hider = Hider(["s3cret", ""])
        for text in ("", "abc", "s3cre", "s3c"):
            response = answer(text)
            self.assertIs(hider.hide(response), response)
        long = answer("x" * KEEP + "s3cret")
        self.assertIs(hider.hide(long), long)
