"""CloudEvents, read by the SDK of those who make the specification."""

import json
import re
from datetime import UTC, datetime, timedelta

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery, Head
from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS
from mqhooks.http.request import Renderer
from mqhooks.nanomq.events import RULE_EVENTS
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import Rule
from mqhooks.shapes.cloudevents import check_source
from mqhooks.shapes.fields import hooks_of
from mqhooks.shapes.rules import ShapedRules
from mqhooks.shapes.settings import CloudEventsSettings, Shape
from mqhooks.testing import TIMESTAMP, make_event
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.settings import BatchSettings, WebhookSettings

ANY = st.text(st.characters(exclude_categories=("Cs",)))
MODES = ("structured", "binary")


def settings(rule, mode, **more):
    batch = BatchSettings() if mode == "batch" else None
    own = {name: more.pop(name) for name in ("source", "origin") if name in more}
    return WebhookSettings("w", "http://h/", (rule,), cloudevents=CloudEventsSettings(mode=mode, **own), batch=batch, **more)


def requests(webhook, event):
    numbers = iter(range(1, 100))
    rules = ShapedRules(webhook.bodies, webhook.cloudevents, lambda: f"msg_{next(numbers)}")
    for id_, body, variation in rules.requests(event):
        yield RequestMaker(webhook, lambda: 0.0).make([Delivery(id_, "c", 0, body, variation=variation)])


def message(request):
    """What an HTTP server makes of a request."""
    lines = Renderer(request.head).render(request).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return HTTPMessage(dict(line.split(": ", 1) for line in lines), request.body)


def received(rule, mode, event, **more):
    return [from_http_event(message(request)) for request in requests(settings(rule, mode, **more), event)]


class AttributeTests(SynchronousTestCase):
    def test_each_event_in_both_modes(self):
        for rule in RULE_EVENTS:
            for hook in hooks_of(rule):
                event = make_event(hook)
                expected = [json.loads(body) for body in Rules(settings(Rule(rule), "binary").bodies).bodies(event)]
                for mode in MODES:
                    found = received(Rule(rule), mode, event)
                    self.assertEqual([each.get_data() for each in found], expected, (rule, mode))
                    (each,) = found
                    kind = f"io.vernemq.{rule}" if rule in HOOKS else f"io.nanomq.{rule}"
                    self.assertEqual((each.get_specversion(), each.get_type(), each.get_id()), ("1.0", kind, "msg_1"))
                    one_topic = hasattr(event.message, "topic") or (rule not in HOOKS and hasattr(event.message, "topics"))
                    self.assertEqual(each.get_subject(), "a/b" if one_topic else "client-1")
                    self.assertEqual(each.get_time(), datetime(2026, 1, 1, 0, 0, 0, 123000, UTC))
                    self.assertEqual((each.get_source(), each.get_extension("partitionkey")), ("//localhost", "client-1"))
                    self.assertEqual(each.get_datacontenttype(), "application/json")

    def test_content_types(self):
        for mode, kind in (
            ("structured", "application/cloudevents+json"),
            ("binary", "application/json"),
            ("batch", "application/cloudevents-batch+json"),
        ):
            (request,) = requests(settings(Rule("on_publish"), mode), make_event("on_publish"))
            self.assertEqual(dict(request.head.headers)["content-type"], kind)

    def test_source(self):
        event = make_event("on_publish", mountpoint="a b/c")
        for mode in MODES:
            for more, source in (
                ({}, "//localhost/a%20b%2Fc"),
                ({"origin": "broker.example"}, "//broker.example/a%20b%2Fc"),
                ({"source": "urn:vernemq:1"}, "urn:vernemq:1"),
            ):
                (found,) = received(Rule("on_publish"), mode, event, **more)
                self.assertEqual((found.get_source(), found.get_extension("mountpoint")), (source, "a b/c"))
        for bad in ("a b", "é", "%zz", '"', "a\nb"):
            self.assertRaises(ConfigError, check_source, bad)
        check_source("//h:1/a%20b?c#d")

    def test_time(self):
        for timestamp in (0, -1, TIMESTAMP, 2**63 - 1, -(2**63)):
            (found,) = received(Rule("on_publish"), "structured", _at(timestamp))
            self.assertEqual(found.get_time(), datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=timestamp // 1000))
        (request,) = requests(settings(Rule("on_publish"), "structured"), _at(10**30))
        self.assertNotIn("time", json.loads(request.body))

    def test_bodies_with_placeholders(self):
        shape = Shape(body='{"t":{{payload.t}}}')
        text = Shape(body="{{clientid}} is on", headers=(("Content-Type", "text/plain"),), plain=True)
        event = make_event("on_publish", payload=b'{"t":1.10}')
        for mode in MODES:
            (found,) = received(Rule("on_publish", None, shape), mode, event)
            self.assertEqual(found.get_data(), {"t": 1.1})
            (found,) = received(Rule("on_publish", None, text), mode, event)
            self.assertEqual((found.get_data(), found.get_datacontenttype()), ("client-1 is on", "text/plain"))

    def test_batch(self):
        webhook = settings(Rule("on_publish"), "batch")
        events = [make_event("on_publish", client_id=f"c{number}") for number in range(3)]
        numbers = iter(range(100))
        made = ShapedRules(webhook.bodies, webhook.cloudevents, lambda: f"msg_{next(numbers)}")
        deliveries = [Delivery(id_, "c", 0, body) for event in events for id_, body, _ in made.requests(event)]
        request = RequestMaker(webhook, lambda: 0.0).make(deliveries)
        kind = {"content-type": "application/cloudevents+json"}
        members = [from_http_event(HTTPMessage(kind, json.dumps(each).encode())) for each in json.loads(request.body)]
        self.assertEqual([each.get_id() for each in members], ["msg_0", "msg_1", "msg_2"])
        self.assertEqual([each.get_extension("partitionkey") for each in members], ["c0", "c1", "c2"])
        self.assertNotIn(b"webhook_id", request.body)
        self.assertTrue(dict(request.headers)["webhook-id"].startswith("batch_"))

    @given(ANY.filter(bool), ANY.filter(bool), st.binary(), ANY)
    @example('a"%\r\nce-id: x', "t", b'{"specversion":"2"}', "")
    @example("é" * 300, "é" * 300, b"", "")
    @example("same", "same", b"", "same")
    def test_whatever_the_values_are_they_come_out_as_they_went_in(self, client, topic, payload, mountpoint):
        event = make_event("on_publish", client_id=client, topic=topic, payload=payload, mountpoint=mountpoint)
        for mode in MODES:
            (found,) = received(Rule("on_message_publish"), mode, event, encoding="json")
            self.assertEqual((found.get_id(), found.get_subject()), ("msg_1", topic))
            self.assertEqual(found.get_extension("partitionkey"), client)
            self.assertEqual(found.get_extension("mountpoint"), mountpoint or None)
            self.assertEqual(found.get_data()["from_client_id"], client)

    def test_names_of_headers(self):
        (request,) = requests(settings(Rule("on_publish"), "binary"), make_event("on_publish", mountpoint="mp"))
        for name, value in request.headers:
            if name != "webhook-id":
                self.assertRegex(name, r"^ce-[a-z0-9]{1,20}$")
                self.assertTrue(re.fullmatch("[!-~]+", value))
        self.assertIsInstance(request.head, Head)


def _at(timestamp):
    event = make_event("on_publish")
    return type(event)(event.hook, event.message, timestamp, event.mountpoint, event.client_id, event.username)
