"""The recipes of docs/shapes.rst: what arrives at an endpoint."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from mqhooks.app.configuration import load
from mqhooks.app.webhooks import transport_for
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.shapes.settings import CloudEventsSettings
from mqhooks.testing import make_event
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.endpoints import Endpoint
from tests.waiting import until

DOCS = Path(__file__).parent.parent / "docs"


def publish(topic, payload, **fields):
    return make_event("on_publish", topic=topic, payload=payload, **fields)


class RecipeTests(TestCase):
    transport = "pooled"

    async def arrived(self, name, events, count, webhook=None):
        """Send events by a recipe; returns the requests in the order of their webhooks."""
        endpoint = Endpoint()
        here = urlsplit(endpoint.listen(self, reactor))
        for settings in load(str(DOCS / f"shapes-{name}.conf")).webhooks:
            if webhook in (None, settings.name):
                origin = "/".join(settings.url.split("/")[:3])
                url = settings.url.replace(origin, f"http://{here.netloc}")
                settings = replace(settings, url=url, transport=self.transport, merge_window=0, pool_size=1)
                outbox = MemoryOutbox()
                sink = WebhookSink(reactor, settings, outbox, transport_for(reactor, settings))
                sink.startService()
                self.addCleanup(sink.stopService)
                sink.receive(events)
                self.outbox = outbox
        await until(lambda: len(endpoint.requests) >= count)
        self.assertEqual(len(endpoint.requests), count)
        return endpoint.requests

    async def test_thingsboard(self):
        events = [
            publish("v1/devices/me/telemetry", b'{"temperature": 21.50}', username="A1_TOKEN"),
            publish("v1/devices/me/attributes", b'{"fw": "1.2"}', username="A1_TOKEN"),
            publish("v1/devices/me/telemetry", b'{"temperature": 1}', username="", client_id="nameless"),
            publish("v1/devices/me/telemetry", b'{"temperature": 1}', username="..", client_id="hostile"),
            publish("v1/devices/me/telemetry", b'{"temperature": 1}', username="a/b?c", client_id="odd"),
        ]
        requests = await self.arrived("thingsboard", events, 3)
        self.assertEqual(
            [(request.method, request.path, request.body) for request in requests],
            [
                ("POST", "/api/v1/A1_TOKEN/telemetry", b'{"temperature": 21.50}'),
                ("POST", "/api/v1/A1_TOKEN/attributes", b'{"fw": "1.2"}'),
                ("POST", "/api/v1/a%2Fb%3Fc/telemetry", b'{"temperature": 1}'),
            ],
        )
        self.assertEqual(
            [letter.reason for letter in self.outbox.dead_letters],
            [
                "it cannot be sent: url: {{username}} is missing",
                "it cannot be sent: url: a segment of the path would be . or .., which leads elsewhere",
            ],
        )

    async def test_node_red(self):
        (request,) = await self.arrived("automation", [publish("sensors/1", b'{"t": 1.10}')], 1, "node-red")
        self.assertEqual(request.path, "/mqtt")
        self.assertTrue(request.body.endswith(b'"payload":{"t": 1.10}}'))

    async def test_n8n(self):
        (request,) = await self.arrived("automation", [publish("sensors/1", b"on")], 1, "n8n")
        expected = {"device": "client-1", "topic": "sensors/1", "at": 1767225600123, "data": "on"}
        self.assertEqual((request.path, json.loads(request.body)), ("/webhook/mqtt", expected))

    async def test_home_assistant(self):
        events = [publish("sensors/attic", b'{"temperature": 21.5}'), publish("sensors/attic", b"broken")]
        found = [json.loads(request.body) for request in await self.arrived("automation", events, 2, "home-assistant")]
        self.assertEqual(found, [{"sensor": "attic", "temperature": 21.5}, {"sensor": "attic", "temperature": None}])

    async def test_event_grid(self):
        events = [make_event("on_register"), publish("sensors/1", b'{"t": 1}')]
        (request,) = await self.arrived("eventgrid", events, 1)
        self.assertEqual(request.header("content-type"), "application/cloudevents-batch+json")
        self.assertEqual(request.path, "/api/events?api-version=2018-01-01")
        one, two = json.loads(request.body)
        self.assertEqual((one["type"], one["subject"]), ("io.nanomq.on_client_connected", "client-1"))
        self.assertEqual(
            (two["type"], two["subject"], two["data"]["payload"]), ("io.nanomq.on_message_publish", "sensors/1", {"t": 1})
        )
        self.assertEqual({each["source"] for each in (one, two)}, {"//broker.example/vernemq"})

    async def test_slack(self):
        (request,) = await self.arrived("slack", [make_event("on_client_offline", client_id='"x"')], 1)
        self.assertEqual(json.loads(request.body), {"text": '"x" is offline: tcp_closed'})
        self.assertEqual(request.path, "/services/T0/B0/x7Kq")

    async def test_a_handshake(self):
        def answer(request):
            allowed = [("WebHook-Allowed-Origin", request.header("WebHook-Request-Origin") or "")]
            request.connection.reply(200, headers=allowed if request.method == "OPTIONS" else ())

        endpoint = Endpoint(answer)
        cloudevents = CloudEventsSettings(origin="broker.example", handshake=True)
        rules = (Rule("on_publish"),)
        settings = WebhookSettings(
            "w", endpoint.listen(self, reactor), rules, merge_window=0, cloudevents=cloudevents, transport=self.transport
        )
        sink = WebhookSink(reactor, settings, MemoryOutbox(), transport_for(reactor, settings))
        sink.startService()
        self.addCleanup(sink.stopService)
        sink.receive([make_event("on_publish")])
        await until(lambda: len(endpoint.requests) >= 2)
        first, second = endpoint.requests
        self.assertEqual((first.method, first.path, first.body), ("OPTIONS", "/hook", b""))
        self.assertEqual(first.header("webhook-request-origin"), "broker.example")
        self.assertEqual((second.method, json.loads(second.body)["type"]), ("POST", "io.vernemq.on_publish"))


class TreqTests(RecipeTests):
    """The same with the other transport."""

    transport = "treq"
