"""build(): the service tree of twistd mqhooks, for everybody."""

from pathlib import Path

from twisted.application.service import IService
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.settings import OutboxSettings, Settings
from mqhooks.errors import ConfigError
from mqhooks.nanomq.settings import Rule
from mqhooks.testing import RecordingSink, make_event
from mqhooks.webhook.settings import WebhookSettings
from tests.frames import envelope, framed

WEBHOOK = WebhookSettings("a", "http://127.0.0.1:1/", (Rule("on_message_publish"),))
OFF = AdminSettings("off")


class BuildTests(SynchronousTestCase):
    def setUp(self):
        self.reactor = MemoryReactorClock()
        self.path = Path(self.mktemp())

    def settings(self, **parts):
        return Settings(**{"outbox": OutboxSettings(path=str(self.path)), "admin": OFF} | parts)

    def test_nothing_happens_before_the_start(self):
        service = build(self.settings(webhooks=(WEBHOOK,), admin=AdminSettings()), self.reactor)
        self.assertTrue(IService.providedBy(service))
        self.assertFalse(self.path.exists())
        self.assertEqual((self.reactor.tcpServers, self.reactor.getDelayedCalls()), ([], []))

    def test_parts(self):
        service = build(self.settings(webhooks=(WEBHOOK,)), self.reactor)
        self.assertEqual([sink.settings for sink in service.bridge.webhooks], [WEBHOOK])
        self.assertIsNone(service.admin)
        self.assertIsNotNone(build(self.settings(webhooks=(WEBHOOK,), admin=AdminSettings()), self.reactor).admin)

    def test_every_sink_gets_every_event(self):
        sinks = [RecordingSink(), RecordingSink()]
        service = build(self.settings(), self.reactor, sinks=sinks)
        protocol = service.bridge.sources[0].factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(framed(envelope(make_event("on_client_gone").message)))
        self.reactor.advance(0)
        self.assertEqual([len(sink.events) for sink in sinks], [1, 1])

    def test_neither_webhook_nor_sink(self):
        error = self.assertRaises(ConfigError, build, self.settings(), self.reactor)
        self.assertIn("there is neither a webhook nor a sink", str(error))

    def test_an_address_that_is_none(self):
        error = self.assertRaises(
            ConfigError, build, self.settings(webhooks=(WEBHOOK,), admin=AdminSettings("nonsense:1")), self.reactor
        )
        self.assertEqual(error.key, "mqhooks.admin.listen")
