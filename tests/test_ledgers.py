"""One ledger: /metrics, the API, the page's stream and the minute's summary tell the same numbers."""

import json
from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.settings import OutboxSettings, Settings
from mqhooks.nanomq.settings import Rule
from mqhooks.testing import make_event
from mqhooks.webhook.settings import RetrySettings, WebhookSettings
from tests.admin import ANYWHERE, Follower
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.metrics import broken_identities, read_metrics

MAX_SIZE = 40_000


class LedgerTests(TestCase):
    timeout = 120

    def setUp(self):
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.held = []

    def answer(self, request):
        """Accept most, refuse those of one client, and answer the rest when the test is over."""
        body = json.loads(request.body)
        if body["from_client_id"] == "refused":
            request.connection.reply(422)
        elif body["from_client_id"] == "held":
            self.held.append(request)
        else:
            request.connection.reply()

    async def start(self):
        endpoint = Endpoint(self.answer)
        url = endpoint.listen(self, reactor)
        rules = (Rule("on_message_publish"),)
        settings = Settings(
            webhooks=(WebhookSettings("billing", url, rules, merge_window=0, retry=RetrySettings(), cancel_timeout=60.0),),
            outbox=OutboxSettings(path=str(Path(self.mktemp()).resolve()), max_size=MAX_SIZE, on_full="drop_oldest"),
            admin=AdminSettings(ANYWHERE),
            shutdown_timeout=0.1,
        )
        self.service = build(settings, reactor, sidecars=[ANYWHERE])
        self.service.startService()
        self.addCleanup(self.stop)
        port = self.service.bridge.sources[0].addresses[0].port
        self.broker = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), Protocol())
        self.addCleanup(self.broker.transport.abortConnection)
        self.port = self.service.admin.address.port

    def stop(self):
        return self.service.stopService() if self.service.running else None

    def publish(self, client, count, payload=b"1"):
        message = make_event("on_publish", client_id=client, topic="t", payload=payload).message
        self.broker.transport.write(framed(envelope(message)) * count)

    async def until(self, condition):
        while not condition():
            await deferLater(reactor, 0.01)

    async def test_all_tell_the_same(self):
        await self.start()
        (sink,) = self.service.bridge.webhooks
        self.publish("good", 7)
        self.publish("refused", 2)
        self.broker.transport.write(framed(envelope(make_event("on_client_gone").message)))
        await self.until(lambda: (sink.outbox.counts.delivered, sink.outbox.counts.dead) == (7, 2))
        for _ in range(20):
            # One row each: what is dropped makes room a row at a time.
            accepted = sink.outbox.counts.accepted
            self.publish("held", 1, b"x" * 5_000)
            await self.until(lambda: sink.outbox.counts.accepted > accepted)  # noqa: B023
        counts = sink.outbox.counts
        self.assertEqual((counts.accepted, counts.delivered, counts.dead), (29, 7, 2))
        self.assertGreater(counts.dropped, 5)
        self.assertGreater(counts.pending, 2)
        expected = {name: getattr(counts, name) for name in ("delivered", "dead", "dropped", "pending")}

        samples = await read_metrics(reactor, f"http://127.0.0.1:{self.port}")
        self.assertEqual(broken_identities(samples), [])
        told = {name: samples[f"mqhooks_deliveries_{name}_total", "billing"] for name in ("delivered", "dead", "dropped")}
        self.assertEqual(told | {"pending": samples["mqhooks_outbox_pending", "billing"]}, expected)

        response = await treq.get(f"http://127.0.0.1:{self.port}/api/status", agent=Agent(reactor), reactor=reactor)
        (status,) = (await response.json())["webhooks"]
        self.assertEqual({name: status[name] for name in expected}, expected)

        (streamed,) = (await self.first_status())["webhooks"]
        self.assertEqual({name: streamed[name] for name in expected}, expected)

        await self.stop()
        (row,) = next(event["webhooks"] for event in self.logged if "webhooks" in event and "events" in event)
        self.assertEqual({name: row[name] for name in expected}, expected)
        self.assertEqual(row["filtered"], samples["mqhooks_events_filtered_total", "billing"])

    async def first_status(self):
        """What the status page is told first."""
        follower = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", self.port), Follower())
        follower.transport.write(f"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        self.addCleanup(follower.transport.abortConnection)
        await self.until(lambda: follower.heard("status"))
        return follower.heard("status")[0]
