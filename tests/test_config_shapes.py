"""What a configuration may say of the shapes of requests, and how mistakes are told."""

import json
from itertools import count

from mqhooks.app.configuration import for_url
from mqhooks.app.sample import sample
from mqhooks.errors import ConfigError
from mqhooks.nanomq.settings import Rule
from mqhooks.shapes.rules import ShapedRules
from mqhooks.shapes.settings import CloudEventsSettings, Shape
from mqhooks.testing import make_event
from mqhooks.webhook.settings import BatchSettings
from tests.test_config import ConfigCase

PUBLISHED = 'events = [ { event = "on_message_publish" } ]'


class Case(ConfigCase):
    def rule(self, text="", **more):
        """The first rule of a webhook."""
        return self.webhook(text, **more).rules[0]

    def entry(self, text):
        return self.webhook(rules=f"events = [ {{ event = on_message_publish\n{text} }} ]").rules[0]

    def entry_mistake(self, text):
        told = self.webhook_mistake("", rules=f"events = [ {{ event = on_message_publish\n{text} }} ]")
        self.assertTrue(told.startswith("events[0]."), told)
        return told.removeprefix("events[0].")

    def body(self, event, text):
        webhook = self.webhook(text, rules="events = [ { event = on_publish } ]")
        numbers = count()
        ((_, body, _),) = ShapedRules(webhook.bodies, webhook.cloudevents, lambda: f"msg_{next(numbers)}").requests(event)
        return body


class TemplateTests(Case):
    def test_nothing_of_it_changes_nothing(self):
        webhook = self.webhook("body.encoding = base64\nheaders.x-a = 1\nmethod = post\nformat = nanomq")
        self.assertEqual(webhook.rules, (Rule("on_message_publish"),))
        self.assertFalse(webhook.shaped)

    def test_url(self):
        rule = self.rule(url='url = "HTTP://h:1/a/{{ clientid }}?q={{qos}}"')
        self.assertEqual(rule.shape, Shape(url="/a/{{clientid}}?q={{qos}}"))
        self.assertEqual(self.rule(url='url = "http://h?q={{qos}}"').shape.url, "/?q={{qos}}")
        self.assertEqual(self.entry('url = "/a/{{topic}}"').shape.url, "/a/{{topic}}")
        for host in ("http://{{clientid}}/", "http://{{clientid}}.h/", "http://h:{{qos}}/", "http://{{clientid}}"):
            told = self.webhook_mistake("", url=f'url = "{host}"')
            self.assertIn("has a placeholder in the host: write placeholders only in the path or the query", told)
        for url in ("http://other/{{clientid}}", "//other/{{clientid}}", "x"):
            self.assertIn("url: is not a path that begins with one slash", self.entry_mistake(f'url = "{url}"'))

    def test_method(self):
        self.assertEqual(self.rule("method = PUT").shape.method, "PUT")
        self.assertEqual(self.entry("method = patch").shape.method, "PATCH")
        self.assertIn("'GET' is not one of post, put, patch", self.webhook_mistake("method = GET"))
        self.assertIn("method: '{{qos}}' is not one of", self.entry_mistake('method = "{{qos}}"'))

    def test_headers(self):
        webhook = self.webhook('headers { X-A = "{{clientid}}", authorization = "Bearer x", x-b = 2 }')
        self.assertEqual(webhook.headers, (("authorization", "Bearer x"), ("x-b", "2")))
        self.assertEqual(webhook.rules[0].shape.headers, (("X-A", "{{clientid}}"),))
        self.assertEqual(self.entry('headers { X-A = "b" }').shape.headers, (("X-A", "b"),))
        self.assertIn("is not stored with an event", self.webhook_mistake('headers.Authorization = "Bearer {{username}}"'))
        self.assertIn("headers.cookie: authenticates", self.entry_mistake("headers.cookie = a"))
        for name in ("host", "webhook-id", "Content-Length"):
            self.assertIn("is set by mqhooks itself", self.entry_mistake(f'headers.{name} = "{{{{clientid}}}}"'))

    def test_a_rule_goes_before_its_webhook(self):
        own = '{ event = on_publish, url = "/own", headers.X-a = "2", body = "own" }'
        rules = f"events = [ {own}, {{ event = on_message_publish }} ]"
        own, other = self.webhook('headers.x-A = "{{qos}}"\nmethod = put\nbody { a = "{{qos}}" }', rules=rules).rules
        self.assertEqual(own.shape, Shape("PUT", "/own", (("X-a", "2"),), "own"))
        self.assertEqual(other.shape, Shape("PUT", None, (("x-A", "{{qos}}"),), '{"a":{{qos}}}'))

    def test_body(self):
        event = make_event("on_publish", payload=b'{"t":1.10}', client_id='"a')
        text = """body {
            Text = "Client {{clientid}}: {{ payload.t }}", n = 5, s = "5", f = 1.50, yes = true, no = "false", none = null
            zero = 007, List = [1, "{{qos}}", { Deep = "{{payload}}" }], b.B = x, "{{topic[0]}}" = "{{payload.t}}"
            gone = "{{payload.x}}"
        }"""
        body = self.body(event, text)
        self.assertEqual(self.warnings, ())
        made = json.loads(body)
        self.assertEqual((made["Text"], made["n"], made["s"], made["f"], made["yes"]), ('Client "a: 1.10', 5, "5", 1.5, True))
        self.assertEqual((made["no"], made["none"], made["zero"], made["gone"]), ("false", None, "007", None))
        self.assertEqual((made["List"], made["b"], made["a"]), ([1, 1, {"Deep": {"t": 1.1}}], {"B": "x"}, 1.1))
        self.assertIn(b'"f":1.50', body)
        self.assertEqual(self.body(event, 'body = """{ "c": "{{clientid}}" }"""'), b'{ "c": "\\"a" }')
        self.assertEqual(self.body(event, 'body = """c={{clientid}}"""'), b'c=\\"a')
        self.assertEqual(self.body(event, 'headers.content-type = "text/plain"\nbody = """c={{clientid}}"""'), b'c="a')

    def test_encoding_beside_a_body(self):
        event = make_event("on_publish", payload=b"21")
        for encoding, value in (("", 21), ("plain", "21"), ("base64", "MjE="), ("json", 21), ("omit", 21)):
            setting = f"encoding = {encoding}," if encoding else ""
            self.assertEqual(json.loads(self.body(event, f'body {{ {setting} p = "{{{{payload}}}}" }}')), {"p": value})
            self.assertEqual(self.warnings, ())
        told = self.entry_mistake('body { encoding = json, a = "{{qos}}" }')
        self.assertIn("body.encoding: is set for the whole webhook", told)

    def test_a_body_without_placeholders_is_a_mistake_as_ever(self):
        self.webhook("body { encodings = plain, x = 1 }")
        self.assertIn(f"{self.path}: webhook.body.encodings: unknown, ignored; did you mean 'encoding'?", self.warnings)
        for text in ("body = 5", "body = [1]"):
            self.assertIn("is not a block in braces", self.webhook_mistake(text))
        self.assertIn("body: is a list", self.entry_mistake("body = [1]"))
        self.assertEqual(self.entry("body { a = 1 }").shape.body, '{"a":1}')

    def test_mistakes_in_placeholders(self):
        for key in ('url = "/{{nothing}}"', 'headers.x = "{{nothing}}"', 'body.a = "{{nothing}}"', 'body = "{{nothing}}"'):
            told = self.entry_mistake(key)
            self.assertIn("{{nothing}} is not a field of on_message_publish", told)
        rules = "events = [ { event = on_message_publish }, { event = on_client_connack } ]"
        for text, url in (
            ('body.a = "{{topic}}"', "http://h/"),
            ('headers.x = "{{topic}}"', "http://h/"),
            ("", "http://h/{{topic}}"),
        ):
            told = self.webhook_mistake(text, rules=rules, url=f'url = "{url}"')
            self.assertIn("for on_client_connack: {{topic}} is not a field of on_client_connack", told)
        self.assertIn("body: starts like JSON but is not valid JSON", self.entry_mistake('body = """{"a": {{qos}},}"""'))

    def test_the_command_lines_url_has_none(self):
        error = self.assertRaises(ConfigError, for_url, "http://h/{{clientid}}")
        self.assertIn("--url: has a placeholder", str(error))

    def test_a_placeholder_without_quotes(self):
        for text in ("headers.x = {{qos}}", "headers.x = a{{qos}}", "body { a = {{qos}} }", "body { a = [{{qos}}] }"):
            self.assertIn("a placeholder like {{clientid}} goes into quotes", self.mistake(f"webhook {{ {text} }}"))
        self.load("foreign = {{ a }}")

    def test_what_cannot_share_a_request(self):
        for text, key in (("method = PUT", "method"), ('headers.x = "{{qos}}"', "headers"), ('body = """[{{qos}}]"""', "body")):
            self.assertTrue(self.webhook_mistake(f"{text}\nbatch {{}}").startswith(f"{key}: "))
        self.assertIn("url: does not work with batch", self.webhook_mistake("batch {}", url='url = "http://h/{{qos}}"'))
        rules = 'events = [ { event = on_publish, url = "/own" } ]'
        self.assertIn("events[0].url: does not work with batch", self.webhook_mistake("batch {}", rules=rules))
        self.webhook('batch {}\nbody { a = "{{qos}}" }')

    def test_usernames_are_remembered_where_a_template_names_them(self):
        for event, needed in (("on_message_publish", False), ("on_session_expired", True), ("on_client_wakeup", True)):
            rules = f'events = [ {{ event = {event}, headers.x = "{{{{username}}}}" }} ]'
            self.assertEqual(self.webhook(rules=rules).rules[0].names_user, needed)

    def test_samples(self):
        webhook = self.webhook(
            'secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"\n'
            'headers { authorization = "Bearer hush", x-c = "{{clientid}}" }\n'
            'body { t = "{{payload.a.b[1]}}", l = "{{topic[4]}}" }',
            url='url = "http://h/api/x7Kqhush99/{{username}}/now?token=hush&c={{clientid}}"',
            rules='events = [ { event = on_message_publish, topic = "m/+/#" }, { event = on_publish, method = PUT } ]',
        )
        text = "\n".join(sample(webhook))
        self.assertNotIn("hush", text)
        self.assertIn("sample  of webhook webhook: on_message_publish on m/+/#", text)
        self.assertIn("        POST http://h/api/…/user-1/now?…&c=client-1", text)
        self.assertIn("        PUT http://h/api/", text)
        self.assertIn("        authorization: …", text)
        self.assertIn("        x-c: client-1", text)
        self.assertIn('        {"t":21.5,"l":"x"}', text)
        for event in ("on_session_subscribed", "on_client_unsubscribe", "on_register_failed", "on_message_drop"):
            text = "\n".join(sample(self.webhook(rules=f"events = [ {{ event = {event} }} ]")))
            self.assertIn('"client', text)


class CloudEventsTests(Case):
    def test_settings(self):
        webhook = self.webhook("format = cloudevents")
        self.assertEqual((webhook.cloudevents.mode, webhook.cloudevents.source, webhook.batch), ("structured", "", None))
        inner = 'source = "urn:x", origin = broker.example, handshake = true'
        expected = CloudEventsSettings("urn:x", "broker.example", "binary", handshake=True)
        text = f"format = CloudEvents, mode = binary, cloudevents {{ {inner} }}"
        self.assertEqual(self.webhook(text).cloudevents, expected)
        self.assertEqual(self.webhook("format = cloudevents, mode = batch").batch, BatchSettings())
        self.assertEqual(self.webhook("format = cloudevents, mode = batch, batch.size = 5").batch, BatchSettings(size=5))
        self.webhook("mode = binary")
        self.assertIn("webhook.mode: applies only to format = cloudevents", self.warnings[0])

    def test_content_type(self):
        for mode, kind in (("structured", "cloudevents+json"), ("batch", "cloudevents-batch+json")):
            webhook = self.webhook(f'format = cloudevents, mode = {mode}, headers.content-type = "application/json"')
            self.assertEqual(webhook.headers, ())
            self.assertIn(f"application/{kind} is sent instead, since format is cloudevents", self.warnings[0])
        webhook = self.webhook('format = cloudevents, mode = binary, headers.content-type = "application/json"')
        self.assertEqual((webhook.headers, self.warnings), ((("content-type", "application/json"),), ()))

    def test_mistakes(self):
        for text, told in (
            ("format = xml", "format: 'xml' is not one of nanomq, cloudevents"),
            ("format = cloudevents, mode = x", "mode: 'x' is not one of structured, binary, batch"),
            ("format = cloudevents, batch {}", "mode: is structured, and with batch events share requests: write mode = batch"),
            ("format = cloudevents, mode = batch, batch.format = ndjson", "batch.format: is ndjson"),
            ('format = cloudevents, cloudevents.source = "a b"', "cloudevents.source: 'a b' is not a URI"),
            ('format = cloudevents, cloudevents.origin = "a b"', "cloudevents.origin: 'a b' is not a host name"),
            ("format = cloudevents, headers.Ce-Id = 1", "headers.Ce-Id: is set by format = cloudevents"),
        ):
            self.assertIn(told, self.webhook_mistake(text))
        text = "format = cloudevents, cloudevents.handshake = true"
        told = self.webhook_mistake(text, url='url = "http://h/{{clientid}}"')
        self.assertIn("cloudevents.handshake: covers only the webhook's own URL", told)
