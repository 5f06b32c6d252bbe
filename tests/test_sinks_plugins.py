"""
The sinks that ship, made from descriptions.
"""

import json
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.app.webhooks import StoredWebhook
from mqhooks.errors import ConfigError
from mqhooks.events import Event
from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.events import NANOMQ_EVENTS, TOPIC_EVENTS
from mqhooks.nanomq.settings import Rule
from mqhooks.sinks import FanOut, FilterSink, SampleSink, sinkFromString
from mqhooks.testing import make_event
from tests.endpoints import Endpoint
from tests.waiting import until

reactor: Any = installed_reactor


class ComposedTests(SynchronousTestCase):
    """Each description ends in a file, which shows what passes."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.log = f"log:path={quoteStringArgument(str(self.path))}"

    def started(self, description: str) -> IEventSink:
        sink = sinkFromString(Clock(), description)
        sink.startService()
        self.addCleanup(sink.stopService)
        return sink

    def passed(self, description: str, *events: Event) -> list[dict[str, Any]]:
        self.started(description).receive(events)
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def test_log(self) -> None:
        (line,) = self.passed(self.log, make_event("on_publish", topic="t"))
        self.assertEqual((line["action"], line["topic"]), ("publish", "t"))

    def test_log_with_a_positional_path(self) -> None:
        self.assertEqual(len(self.passed(f"log:{self.path}", make_event("on_publish"))), 1)

    def test_filter(self) -> None:
        match = {"client_id": "sensor-1", "topic": "a/b", "mountpoint": "m"}
        events = [
            make_event("on_publish", **match),
            make_event("on_deliver", **match),
            make_event("on_offline_message", **match),
            make_event("on_publish", **match | {"client_id": "x"}),
            make_event("on_publish", **match | {"topic": "x"}),
            make_event("on_publish", **match | {"mountpoint": "x"}),
        ]
        description = (
            f"filter:hooks=on_publish, on_deliver:topic=a/#:client=sensor-*:mountpoint=m:sink={quoteStringArgument(self.log)}"
        )
        self.assertEqual([line["action"] for line in self.passed(description, *events)], ["publish", "deliver"])

    def test_filter_for_the_default_mountpoint(self) -> None:
        events = [make_event("on_publish"), make_event("on_deliver", mountpoint="m")]
        lines = self.passed(f"filter:mountpoint=:sink={quoteStringArgument(self.log)}", *events)
        self.assertEqual([line["action"] for line in lines], ["publish"])

    def test_sample(self) -> None:
        events = [make_event("on_publish", client_id=f"client-{number}") for number in range(100)]
        half = len(self.passed(f"sample:share=50%:sink={quoteStringArgument(self.log)}", *events))
        self.assertTrue(0 < half < 100)
        both = self.passed(f"sample:share=0.5:sink={quoteStringArgument(self.log)}", *events)
        self.assertEqual(len(both), half * 2)

    def test_fanout(self) -> None:
        inner = quoteStringArgument(self.log)
        lines = self.passed(f"fanout:{inner}:{inner}", make_event("on_publish"))
        self.assertEqual(len(lines), 2)

    def test_as_deep_as_the_documentation(self) -> None:
        sink = sinkFromString(
            MemoryReactorClock(),
            r"fanout:log:sample\:share=10%\:sink=webhook\\\:url=http\\\\\\\://127.0.0.1\\\\\\\:8080/hook",
        )
        assert isinstance(sink, FanOut)
        sample = list(sink)[1]
        assert isinstance(sample, SampleSink)
        (webhook,) = sample
        assert isinstance(webhook, StoredWebhook)
        self.assertEqual(webhook.settings.url, "http://127.0.0.1:8080/hook")

    def test_mistakes(self) -> None:
        for description, message in [
            ("log:path=", "path: is empty; give a file, or leave it out for standard output"),
            ("fanout", "has no sinks; write it like fanout:SINK:SINK"),
            ("filter:hooks=on_publsh:sink=log", "hooks: VerneMQ has no hook 'on_publsh'; did you mean on_publish?"),
            ("filter:topic=a/#/b:sink=log", "topics: "),
            ("sample:share=x:sink=log", "share: 'x' is not a share of the clients; write it like 10% or 0.1"),
            ("sample:share=%:sink=log", "share: '%' is not a share of the clients; write it like 10% or 0.1"),
            ("sample:share=150%:sink=log", "share: 1.5 is not a share of the clients; give one above 0 and up to 1"),
        ]:
            error = self.assertRaises(ConfigError, sinkFromString, Clock(), description)
            self.assertTrue(str(error).startswith(f"{description}: {message}"), str(error))

    def test_path_that_cannot_be_opened(self) -> None:
        sink = sinkFromString(Clock(), r"filter:sink=log\:path=/no/such/folder/x")
        self.assertIsInstance(sink, FilterSink)
        error = self.assertRaises(ConfigError, sink.startService)
        self.assertTrue(str(error).startswith("/no/such/folder/x: cannot be opened for appending"), str(error))


class WebhookTests(SynchronousTestCase):
    def made(self, options: str = "") -> StoredWebhook:
        sink = sinkFromString(MemoryReactorClock(), rf"webhook:url=http\://127.0.0.1\:8080/hook{options}")
        assert isinstance(sink, StoredWebhook)
        return sink

    def test_every_event_of_nanomqs(self) -> None:
        settings = self.made().settings
        self.assertEqual(settings.url, "http://127.0.0.1:8080/hook")
        self.assertEqual(settings.rules, tuple(map(Rule, NANOMQ_EVENTS)))

    def test_every_event_that_carries_a_topic(self) -> None:
        expected = tuple(Rule(event, "a/#") for event in NANOMQ_EVENTS if event in TOPIC_EVENTS)
        with capturedLogs() as logged:
            self.assertEqual(self.made(":topic=a/#").settings.rules, expected)
        self.assertEqual(logged, [])

    def test_options(self) -> None:
        options = (
            ":events=on_publish, ON_CLIENT_CONNACK:encoding=base64:pool_size=8:cancel_timeout=2s:details=true:name=billing"
        )
        settings = self.made(options).settings
        self.assertEqual(settings.rules, (Rule("on_publish"), Rule("on_client_connack")))
        self.assertEqual(
            (settings.encoding, settings.pool_size, settings.cancel_timeout, settings.details, settings.name),
            ("base64", 8, 2.0, True, "billing"),
        )

    def test_warnings_are_logged(self) -> None:
        with capturedLogs() as logged:
            self.made(":events=on_client_connack:topic=a")
        (event,) = logged
        self.assertIn("events[0].topic: on_client_connack has no topic", formatEvent(event))

    def test_mistakes(self) -> None:
        for description, message in [
            ("webhook:events=on_publish", "'url'; write it like webhook:url="),
            (r"webhook:url=ftp\://h", "url: 'ftp://h' is not a URL like "),
            (r"webhook:url=http\://h/:events=on_mesage_publish", "did you mean 'on_message_publish'?"),
            (r"webhook:url=http\://h/:topic=a/#/b", "events[0].topic: "),
            (r"webhook:url=http\://h/:encoding=base65", "did you mean 'base64'?"),
            (r"webhook:url=http\://h/:pool_size=0", "pool_size: "),
            (r"webhook:url=http\://h/:cancel_timeout=soon", "cancel_timeout: 'soon' is not a duration"),
            (r"webhook:url=http\://h/:poolsize=3", "there is no argument 'poolsize'; write it like webhook:"),
        ]:
            error = self.assertRaises(ConfigError, sinkFromString, Clock(), description)
            self.assertIn(message, str(error))
            self.assertTrue(str(error).startswith("webhook:"), str(error))


class WebhookDeliveryTests(TestCase):
    async def test_request_arrives(self) -> None:
        endpoint = Endpoint()
        url = endpoint.listen(self, reactor)
        sink = sinkFromString(reactor, f"webhook:url={quoteStringArgument(url)}:events=on_message_publish")
        sink.startService()
        self.addCleanup(sink.stopService)
        sink.receive([make_event("on_publish", topic="t"), make_event("on_deliver")])
        await until(lambda: endpoint.requests)
        (request,) = endpoint.requests
        self.assertEqual(json.loads(request.body)["topic"], "t")
