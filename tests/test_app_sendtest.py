"""``mqhooks send-test``, as a process."""

import json
import os
import sys
from pathlib import Path
from time import time

from twisted.internet import reactor
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair, PrivateCertificate
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from mqhooks.app.sendtest import make_request
from mqhooks.errors import MqhooksError
from mqhooks.nanomq.events import RULE_EVENTS
from mqhooks.nanomq.settings import Rule
from mqhooks.shapes.settings import Shape
from mqhooks.support.signatures import verify
from mqhooks.webhook.settings import BatchSettings, WebhookSettings
from tests.certificates import Authority, key_pem
from tests.endpoints import Endpoint

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class SendTestTests(TestCase):
    timeout = 120

    async def command(self, text, *arguments, status=0):
        path = Path(self.mktemp()).resolve()
        path.write_text(text)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        words = ["-m", "mqhooks", "send-test", "--config", str(path), *arguments]
        stdout, self.stderr, code = await getProcessOutputAndValue(sys.executable, words, env=environment)
        self.stderr = self.stderr.decode()
        self.assertEqual(code, status, self.stderr)
        self.assertNotIn("Traceback", self.stderr)
        self.assertEqual(self.stderr.count("\n"), status)
        return stdout.decode()

    def serve(self, answer=None, **options):
        self.endpoint = Endpoint(answer)
        return self.endpoint.listen(self, reactor, **options)

    async def test_what_arrives_and_what_is_shown(self):
        url = self.serve(lambda request: request.connection.reply(202, b"thanks\x1b[2J", [("x-trace", "t7")]))
        text = await self.command(
            f'webhook {{ url = "{url}", secret = "{SECRET}", headers.authorization = "Bearer s3cret", '
            "events = [{ event = on_client_connected }, { event = on_message_publish, topic = a/# }] }"
        )
        (request,) = self.endpoint.requests
        verify([SECRET], request.headers, request.body, now=time())
        self.assertEqual(json.loads(request.body)["action"], "message_publish")
        self.assertEqual(request.header("authorization"), "Bearer s3cret")
        for part in (
            "POST http://127.0.0.1",
            "webhook webhook, event on_message_publish",
            "  content-type: application/json",
            "  authorization: …",
            "202 after ",
            "x-trace: t7",
            "thanks\\x1b[2J",
        ):
            self.assertIn(part, text)
        self.assertIn(f"webhook-id: {request.header('webhook-id')}", text)
        self.assertNotIn("s3cret", text)
        self.assertFalse(Path("mqhooks-outbox").exists())

    async def test_what_is_not_2xx_is_a_failure(self):
        url = self.serve(lambda request: request.connection.reply(404, b"no such route " + b"x" * 5000))
        text = await self.command(
            f'webhook {{ url = "{url}?token=s3cret7777", events = [{{ event = on_session_terminated }}] }}', status=1
        )
        self.assertIn("404 after ", text)
        self.assertIn("no such route", text)
        self.assertLess(len(text), 2000)
        self.assertIn("answered 404, which is not 2xx", self.stderr)
        self.assertNotIn("s3cret", text + self.stderr)

    async def test_a_path_of_a_template_is_hidden(self):
        def answer(request):
            request.connection.reply(404, f"no {request.path}".encode(), [("x-path", request.path)])

        rule = '{ event = on_message_publish, url = "/x7Kq9zzz/{{clientid}}" }'
        text = await self.command(f'webhook {{ url = "{self.serve(answer)}", events = [{rule}] }}', status=1)
        self.assertIn("/x7Kq9zzz/mqhooks-test", self.endpoint.requests[0].path)
        self.assertNotIn("x7Kq9zzz", text + self.stderr)

    async def test_no_answer(self):
        url = self.serve(lambda request: None)
        text = await self.command(f'webhook {{ url = "{url}", cancel_timeout = 1s, events = [] }}', status=1)
        self.assertIn("event on_message_publish", text)
        self.assertIn("no answer after", self.stderr)
        await self.endpoint.stop(self.endpoint.port)
        await self.command(f'webhook {{ url = "{url}", transport = treq, events = [] }}', status=1)
        self.assertIn("refused", self.stderr)

    async def test_a_problem_with_tls_is_told_in_words(self):
        certificate, key = Authority().issue(dns=["localhost"], addresses=["127.0.0.1"])
        ours = PrivateCertificate.fromCertificateAndKeyPair(Certificate.loadPEM(certificate), KeyPair.load(key_pem(key), 1))
        made = CertificateOptions(privateKey=ours.privateKey.original, certificate=ours.original)
        url = self.serve(listen=lambda port, factory, **more: reactor.listenSSL(port, factory, made, **more))
        url = url.replace("http:", "https:")
        for transport in ("pooled", "treq"):
            await self.command(
                f'webhook {{ url = "{url.replace("http:", "https:")}", transport = {transport}, events = [] }}', status=1
            )
            self.assertIn("certificate", self.stderr)
            self.assertNotIn("[(", self.stderr)
        self.assertEqual(self.endpoint.requests, [])

    async def test_one_of_several_webhooks(self):
        url = self.serve()
        text = f'webhooks {{ a {{ url = "{url}", events = [] }}, b {{ url = "{url}", batch {{ }}, events = [] }} }}'
        await self.command(text, "--webhook", "b", "--event", "on_Subscribe")
        (request,) = self.endpoint.requests
        self.assertEqual(set(json.loads(request.body)[0]) & {"topics", "webhook_id"}, {"topics", "webhook_id"})
        await self.command(text, status=1)
        self.assertIn("to which webhook? Give --webhook with one of a, b", self.stderr)
        await self.command(text, "--webhook", "c", status=1)
        self.assertIn("has no webhook c; it has a, b", self.stderr)
        await self.command(text, "--webhook", "a", "--event", "on_publishh", status=1)
        self.assertIn("there is no event 'on_publishh'; did you mean 'on_publish'?", self.stderr)
        await self.command("webhook { url = nonsense }", status=1)
        self.assertIn("webhook.url", self.stderr)

    def test_every_event_can_be_sent(self):
        for batch in (None, BatchSettings()):
            settings = WebhookSettings("w", "http://h/", (), batch=batch)
            for event in RULE_EVENTS:
                self.assertTrue(json.loads(make_request(settings, Rule(event, "x/y")).body))

    def test_templates_shape_it(self):
        rule = Rule("on_message_publish", "x/y", Shape("PUT", "/{{clientid}}", (("x-a", "{{topic}}"),), '{"q":{{qos}}}'))
        settings = WebhookSettings("w", "http://h/", (rule,))
        request = make_request(settings, rule)
        self.assertEqual((request.method, request.path, request.body), ("PUT", "/mqhooks-test", b'{"q":1}'))
        missing = Rule("on_message_publish", None, Shape(url="/{{payload.a}}"))
        error = self.assertRaises(MqhooksError, make_request, WebhookSettings("w", "http://h/", (missing,)), missing)
        self.assertIn("cannot be sent: url: {{payload.a}} is missing", str(error))
