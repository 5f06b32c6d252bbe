"""Templates: what a placeholder stands for, and that nothing that a client chooses gets out of its place."""

import json
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Head, Request
from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, Properties
from mqhooks.http.request import Renderer
from mqhooks.nanomq.bodies import as_json
from mqhooks.nanomq.events import CAUSES, RULE_EVENTS
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.shapes.fields import field, hooks_of, names_of
from mqhooks.shapes.rules import ShapedRules
from mqhooks.shapes.settings import Shape
from mqhooks.shapes.templates import LONGEST, BodyTemplate, Unsendable, header_maker, url_maker
from mqhooks.testing import make_event

ANY = st.text(st.characters(exclude_categories=("Cs",)))
ELSEWHERE = (
    *(".", "..", "../..", "a/../b", "%2e%2e", "%252e%252e", "..%2f", "..\\x", "..;x", ".;/", "/.", "a/./b", "/..", "\\..\\"),
    "%25252e",
)
VALUES = st.recursive(st.integers() | ANY, lambda inner: st.lists(inner) | st.dictionaries(ANY, inner))


def url(template, event, item=None, rule="on_message_publish"):
    return url_maker(template, rule)(event, item)


def header(template, event, rule="on_message_publish"):
    return header_maker(template, rule)(event, None)


def body(template, event, item=None, rule="on_message_publish", **more):
    return BodyTemplate(template, rule, **more).make(event, item)


def publish(**fields):
    return make_event("on_publish", **fields)


def mistake(make, *args, **more):
    return SynchronousTestCase().failUnlessRaises(ConfigError, make, *args, **more).message


class FieldTests(SynchronousTestCase):
    def value(self, name, event, item=None, rule=None):
        found = field(name, rule or event.hook)
        return json.loads(BodyTemplate(f"{{{{{name}}}}}", rule or event.hook).make(event, item)), found.text(event, item)

    def test_what_is_promised(self):
        event = publish(topic="a/b//d", payload=b'{"a":{"b":[1.10]}}', mountpoint="mp", retain=True)
        for name, value, text in (
            ("clientid", "client-1", "client-1"),
            ("client_id", "client-1", "client-1"),
            ("username", "user-1", "user-1"),
            ("mountpoint", "mp", "mp"),
            ("topic", "a/b//d", "a/b//d"),
            ("topic[0]", "a", "a"),
            ("topic[2]", "", ""),
            ("topic[4]", None, None),
            ("qos", 1, "1"),
            ("retain", True, "true"),
            ("ts", 1767225600123, "1767225600123"),
            ("timestamp", 1767225600123, "1767225600123"),
            ("event", "on_publish", "on_publish"),
            ("payload", {"a": {"b": [1.1]}}, '{"a":{"b":[1.10]}}'),
            ("payload.a.b[0]", 1.1, "1.10"),
            ("payload.a.b", [1.1], "[1.10]"),
            ("payload.a.c", None, None),
            ("payload.a.b[1]", None, None),
            ("payload[0]", None, None),
            ("matched_acl.name", "default", "default"),
            ("session_id", None, None),
        ):
            self.assertEqual(self.value(name, event), (value, text), name)

    def test_every_field_of_every_hook(self):
        for rule in RULE_EVENTS:
            for hook in hooks_of(rule):
                event = make_event(hook)
                items = {"on_subscribe": getattr(event.message, "topics", ()), "on_unsubscribe": ("a/b",)}.get(hook, (None,))
                for name in (*names_of(rule), *(HOOKS[hook].__struct_fields__)):
                    value, text = self.value(name, event, items[0], rule)
                    self.assertEqual(text is None, value is None, (rule, name))
        self.assertEqual({hook for rule in RULE_EVENTS for hook in hooks_of(rule)}, set(HOOKS))

    def test_values_are_those_of_the_hooks_body(self):
        for hook in HOOKS:
            event = make_event(hook)
            for name, expected in event.fields():
                value, _ = self.value(name, event)
                expected = expected.decode() if isinstance(expected, bytes) else expected
                expected = json.loads(json.dumps(expected))
                self.assertEqual(value, expected if expected != "" or name == "mountpoint" else None, (hook, name))

    def test_a_topic_of_a_subscription(self):
        event = make_event("on_subscribe", topics=[{"topic": "a/b", "qos": 2}, {"topic": "c", "qos": 128}])
        for name in CAUSES["on_subscribe"]:
            for item, topic, qos in zip(event.message.topics, ("a/b", "c"), (2, 128), strict=True):
                self.assertEqual(self.value("topic", event, item, name)[0], topic)
                self.assertEqual(self.value("qos", event, item, name)[0], qos)
        self.assertEqual(self.value("topics[1].topic", event)[0], "c")

    def test_properties_of_mqtt_5(self):
        event = replace(publish(), properties=Properties({"p_content_type": "text/x", "p_number": 7}))
        self.assertEqual(self.value("properties.p_content_type", event), ("text/x", "text/x"))
        self.assertEqual(self.value("properties.p_number", event), (7, "7"))
        self.assertEqual(self.value("properties.p_number", publish()), (None, None))
        self.assertEqual(self.value("properties.p_content_type[0]", event), (None, None))
        self.assertEqual(self.value("properties.p_number[0]", event), (None, None))
        several = replace(publish(), properties=Properties({"p_subscription_id": (7, "ab")}))
        self.assertEqual(self.value("properties.p_subscription_id[0]", several), (7, "7"))
        self.assertEqual(self.value("properties.p_subscription_id[1][0]", several), (None, None))
        self.assertIn("is not a field of on_message_drop", mistake(field, "properties.a", "on_message_drop"))

    def test_a_text_has_no_parts(self):
        for event, name in (
            (publish(user_properties={"k": "abc"}), "user_properties.k[0]"),
            (publish(matched_acl={"name": "abc"}), "matched_acl.name[0]"),
            (publish(payload=b'{"s":"abc"}'), "payload.s[0]"),
            (make_event("on_unsubscribe", topics=["abc"]), "topics[0][1]"),
            (make_event("on_subscribe", topics=[{"topic": "abc", "qos": 2}]), "topics[0].topic[1]"),
        ):
            self.assertEqual(self.value(name, event), (None, None), name)
            self.assertEqual(self.value(f"{name}[0]", event), (None, None), name)
            parent = name[: name.rindex("[")]
            self.assertEqual(self.value(parent, event)[1], "abc")

    def test_payloads(self):
        for payload, value, text in (
            (b"21.50", 21.5, "21.50"),
            (b"hello", "hello", "hello"),
            (b'"hi"', "hi", '"hi"'),
            (b"\xff", "/w==", "/w=="),
            (b"", "", ""),
            (b"[" * 100_000, "[" * 100_000, "[" * 100_000),
        ):
            self.assertEqual(self.value("payload", publish(payload=payload)), (value, text))
        for payload in (b"", b"hello", b'{"a":"\xff"}', b'{"x":' + b"[" * 100_000, b'{"a":null}', b"null", b'{"b":1}', b"[1]"):
            self.assertEqual(self.value("payload.a", publish(payload=payload)), (None, None), payload[:20])
        self.assertEqual(self.value("payload.a", publish(payload=b'{"a":"\\u00e9\\n"}')), ("é\n", "é\n"))
        self.assertEqual(self.value("payload.é.x-1", publish(payload='{"é":{"x-1":true}}'.encode())), (True, "true"))
        self.assertEqual(body("{{payload}}", publish(payload=b"hi"), encoding="base64"), b'"aGk="')
        self.assertEqual(body("{{payload}}", publish(payload=b"21"), encoding="plain"), b'"21"')
        self.assertEqual(body("{{payload}}", publish(payload=b"21"), encoding="omit"), b"21")

    def test_mistakes(self):
        for name, told in (
            ("clientId", "did you mean 'clientid'?"),
            ("nothing", "is not a field of on_message_publish; its fields are clientid, username"),
            ("clientd", "matched_acl, session_id, user_properties, properties; did you mean 'clientid'?"),
            ("", "is not a placeholder"),
            ("a b", "is not a placeholder"),
            ("topic[-1]", "is not a placeholder"),
            ("payload.", "is not a placeholder"),
            ('payload."a"', "is not a placeholder"),
            ("topic.a", "a level of the topic is written {{topic[0]}}"),
            ("topic[1][2]", "a level of the topic is written {{topic[0]}}"),
            ("clientid.x", "clientid has no parts"),
            ("qos[0]", "qos has no parts"),
        ):
            self.assertIn(told, mistake(field, name, "on_message_publish"))
        self.assertIn("is not a field of on_client_connack", mistake(field, "topic", "on_client_connack"))
        self.assertIn("is not a field of on_subscribe", mistake(field, "topic", "on_subscribe"))
        self.assertIn("begins a placeholder, but no }} ends it", mistake(url_maker, "/{{clientid", "on_publish"))


class URLTests(SynchronousTestCase):
    def test_values_are_escaped(self):
        event = publish(client_id="a b/ü?&#%", topic="x/y")
        self.assertEqual(
            url("/c/{{clientid}}/{{topic[1]}}?t={{topic}}&q={{qos}}", event), "/c/a%20b%2F%C3%BC%3F%26%23%25/y?t=x%2Fy&q=1"
        )

    def test_what_leads_elsewhere_is_refused(self):
        for text in ELSEWHERE:
            for template in ("/x/{{clientid}}", "/x/{{clientid}}/y", "/{{clientid}}"):
                self.assertRaises(Unsendable, url, template, publish(client_id=text))
            # In a query it leads nowhere.
            self.assertEqual(unquote(url("/x?c={{clientid}}", publish(client_id=text))), f"/x?c={text}")
        for template, text in (
            ("/x/.{{clientid}}", "/"),
            ("/x/{{clientid}}.", "/"),
            ("/x/.{{clientid}}", "."),
            ("/x%2F{{clientid}}", ".."),
        ):
            self.assertRaises(Unsendable, url, template, publish(client_id=text))
        self.assertEqual(url("/x/v1.{{clientid}}", publish(client_id="1.5")), "/x/v1.1.5")
        self.assertEqual(url("/x/{{clientid}}", publish(client_id="sensor.1")), "/x/sensor.1")

    def test_an_empty_segment_is_refused(self):
        for template in ("/x/{{mountpoint}}/y", "/{{mountpoint}}", "/x/{{mountpoint}}{{mountpoint}}?a=1"):
            self.assertRaises(Unsendable, url, template, publish())
        self.assertEqual(url("/x/a{{mountpoint}}/y?m={{mountpoint}}", publish()), "/x/a/y?m=")

    def test_what_is_missing_is_named(self):
        for template, name in (
            ("/{{username}}", "username"),
            ("/x?a={{payload.a}}", "payload.a"),
            ("/{{topic[9]}}", "topic[9]"),
        ):
            error = self.assertRaises(Unsendable, url, template, publish(username="", payload=b"1"))
            self.assertEqual(str(error), f"{{{{{name}}}}} is missing")

    def test_a_deeply_encoded_or_long_one_takes_no_time(self):
        self.assertRaises(Unsendable, url, "/{{clientid}}", publish(client_id="%" + "25" * 32_000))
        self.assertRaises(Unsendable, url, "/{{clientid}}", publish(client_id="x" * (LONGEST + 1)))
        self.assertRaises(Unsendable, url, "/{{payload}}", publish(payload=b"x" * (15 << 20)))

    def test_mistakes(self):
        for template in ("x/{{clientid}}", "http://h/{{clientid}}", "//h/{{clientid}}", ""):
            self.assertIn("is not a path that begins with one slash", mistake(url_maker, template, "on_publish"))
        for template in ("/a b", "/a#b", "/é", "/a\n", '/"', "/}}", "/{x}"):
            self.assertIn("has a character that", mistake(url_maker, template, "on_publish"))
        for template in ("/a/../{{clientid}}", "/%2e%2E/{{clientid}}", "/./{{clientid}}"):
            self.assertIn("a segment of the path would be . or ..", mistake(url_maker, template, "on_publish"))

    @given(ANY, ANY, ANY)
    @example("..", "x", "")
    @example("a", "&b=c", "\r\nX: y")
    def test_whatever_the_values_are_they_come_out_as_they_went_in(self, one, two, three):
        event = publish(client_id=one, topic=two, username=three)
        try:
            made = url("/api/{{clientid}}/t-{{topic}}/x?u={{username}}&c={{clientid}}", event)
        except Unsendable:
            dots = re.search(r"(^|[/\\])\s*\.\.?\s*($|[/\\;])", f"{one}/t-{two}")
            self.assertTrue(not one or not three or dots or "%" in one + two or len(one + two + three) > 500, (one, two))
            return
        line = Renderer(Head("POST", "http://h/", ())).render(Request(Head("POST", "http://h/", ()), [], b"", path=made))
        self.assertEqual(line.split(b"\r\n")[0], f"POST {made} HTTP/1.1".encode())
        parts = urlsplit(f"http://host{made}")
        self.assertEqual((parts.netloc, parts.fragment), ("host", ""))
        segments = [unquote(segment) for segment in parts.path.split("/")]
        self.assertEqual(segments, ["", "api", one, f"t-{two}", "x"])
        self.assertEqual(parse_qsl(parts.query, keep_blank_values=True), [("u", three), ("c", one)])


class HeaderTests(SynchronousTestCase):
    def test_values(self):
        self.assertEqual(header("c={{clientid}}; q={{qos}}", publish(client_id="ü 1")), "c=ü 1; q=1")
        self.assertEqual(header("fixed", publish()), "fixed")

    def test_what_cannot_be_in_one(self):
        for text in ("a\r\nX-Evil: 1", "a\nb", "\r", "\0", "\x7f", " a", "a ", "\ta", "x" * (LONGEST + 1)):
            self.assertRaises(Unsendable, header, "{{clientid}}", publish(client_id=text))
        for template in ("{{username}}", "x{{username}}", "{{username}}{{topic}}"):
            error = self.assertRaises(Unsendable, header, template, publish(username=""))
            self.assertEqual(str(error), "{{username}} is missing")

    def test_numbers_are_text(self):
        self.assertEqual(header("{{qos}}", publish()), "1")
        self.assertEqual(header("{{payload.t}}", publish(payload=b'{"t": 21.50}')), "21.50")

    @given(ANY)
    @example("a\x85b\u2028c")
    def test_whatever_the_value_is_it_comes_back(self, text):
        try:
            made = header("<{{clientid}}>", publish(client_id=text))
        except Unsendable:
            self.assertRegex(text, r"[\x00-\x08\x0a-\x1f\x7f]")
            return
        sent = Renderer(Head("POST", "http://h/", ())).render(
            Request(Head("POST", "http://h/", ()), [("x-a", made), ("x-b", "1")], b"")
        )
        lines = sent.split(b"\r\n")
        self.assertEqual(lines[2:4], [f"x-a: <{text}>".encode(), b"x-b: 1"])


class BodyTests(SynchronousTestCase):
    def test_json(self):
        event = publish(payload=b'{"t":1.10,"s":"\\"x"}', client_id='a"b\\')
        text = "{{clientid}} is {{payload.t}} {{payload.s}} {{payload.n}}"
        template = '{"t": {{payload.t}}, "text": "%s", "{{clientid}}": {{payload.n}}}'.replace("%s", text)
        made = body(template, event)
        self.assertIn(b'"t": 1.10', made)
        self.assertEqual(json.loads(made), {"t": 1.1, "text": 'a"b\\ is 1.10 "x null', 'a"b\\': None})
        self.assertEqual(body(" {{payload}}\n", publish(payload=b" [1, 2] ")), b"[1, 2]")

    def test_other_text_is_escaped_as_json_is(self):
        self.assertEqual(body('c="{{clientid}}"&p=100%', publish(client_id='"\n')), b'c="\\"\\n"&p=100%')
        self.assertEqual(body("{{clientid}} {{username}}", publish(client_id='"', username=""), plain=True), b'" null')

    def test_what_looks_like_json_and_is_not(self):
        for template in ('{"a": {{qos}},}', "[{{qos}} {{qos}}]", "{{{clientid}}: 1}", '{"a": "{{clientid}}}'):
            self.assertIn("JSON", mistake(BodyTemplate, template, "on_publish") or "")
        BodyTemplate('{"a": {{qos}},}', "on_publish", plain=True)

    def test_which_can_share_a_request(self):
        for template, members in (
            ('{"a":1}', True),
            (' {"a":{{qos}}} ', True),
            (f'{{"a":{"9" * 5000},"b":1e999}}', True),
            (f'[{"9" * 5000},"a"]', False),
            ("{}", False),
            (" { } ", False),
            ("[1]", False),
            ("{{payload}}", False),
            ("text", False),
            ("1", False),
        ):
            self.assertEqual(BodyTemplate(template, "on_publish").members, members, template)

    @given(ANY, ANY, st.binary() | ANY.map(str.encode) | VALUES.map(json.dumps).map(str.encode))
    @example('","x":"', "\\", b'"},{"')
    @example("\u2028", "\x7f", b'{"a":"\\ud83d\\ude00"}')
    def test_whatever_the_values_are_it_is_json_and_has_them(self, client, topic, payload):
        event = publish(client_id=client, topic=topic, payload=payload)
        members = ('"c":"<{{clientid}}>"', '"t":{{topic}}', '"p":{{payload}}', '"a":{{payload.a}}', '"s":"{{payload}}"')
        made = json.loads(body("{" + ",".join([*members, '"_{{clientid}}":1']) + "}", event))
        self.assertEqual(set(made), {"c", "t", "p", "a", "s", f"_{client}"})
        self.assertEqual((made["c"], made["t"]), (f"<{client}>", topic))
        whole = as_json(payload)
        if whole is not None:
            self.assertEqual((made["p"], made["s"]), (json.loads(payload), payload.decode()))


class RequestTests(SynchronousTestCase):
    def made(self, event, *rules):
        numbers = iter(range(100))
        shaped = ShapedRules(BodySettings(tuple(rules)), None, lambda: f"msg_{next(numbers)}")
        return list(shaped.requests(event))

    def test_the_first_rule_that_wants_an_event_shapes_it(self):
        one, two = Shape(url="/one"), Shape(url="/two")
        rules = (Rule("on_message_publish", "a/#", one), Rule("on_message_publish", None, two), Rule("on_publish", "b/#", one))
        for topic, paths in (("a/b", ["/one"]), ("b/a", ["/two", "/one"]), ("c", ["/two"])):
            self.assertEqual([made[2].path for made in self.made(publish(topic=topic), *rules)], paths)
        event = make_event("on_subscribe", topics=[{"topic": "a/1"}, {"topic": "b"}, {"topic": "a/2", "qos": 128}])
        rules = (
            Rule("on_session_subscribed", "a/#", one),
            Rule("on_session_subscribed", None, two),
            Rule("on_subscribe", "b", two),
        )
        self.assertEqual([made[2].path for made in self.made(event, *rules)], ["/one", "/two", "/two"])
        event = make_event("on_unsubscribe", topics=["a/1", "b"])
        self.assertEqual([made[2].path for made in self.made(event, Rule("on_client_unsubscribe", "b", one))], ["/one"])

    def test_without_templates_the_same_events_make_the_same_bodies(self):
        rules = tuple(Rule(name, topic) for name in RULE_EVENTS for topic in ("a/+", "x/#"))
        for hook in HOOKS:
            event = make_event(hook)
            expected = list(Rules(BodySettings(rules)).bodies(event))
            self.assertEqual([made[1] for made in self.made(event, *rules)], expected)
            self.assertTrue(all(made[2] is None for made in self.made(event, *rules)))

    def test_one_that_cannot_be_sent_says_why(self):
        shape = Shape(method="PUT", url="/{{username}}", headers=(("X-A", "{{clientid}}"),))
        for event, problem in (
            (publish(username=""), "url: {{username}} is missing"),
            (
                publish(client_id="a\r\nb"),
                "headers.X-A: it would have a line break or another control character, or a space at its beginning or end",
            ),
        ):
            ((_, body_, variation),) = self.made(event, Rule("on_publish", None, shape))
            self.assertEqual(
                (variation.method, variation.path, variation.headers, variation.problem), ("PUT", None, (), problem)
            )
            self.assertTrue(body_)
