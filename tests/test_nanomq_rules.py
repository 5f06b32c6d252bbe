"""
Which rule wants which event.
"""

import json

from msgspec import structs
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS
from mqhooks.nanomq.events import CAUSES, NANOMQ_EVENTS, RULE_EVENTS, TOPIC_EVENTS
from mqhooks.nanomq.rules import Rules, needs_usernames
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.testing import make_event
from mqhooks.webhook.settings import WebhookSettings

INFOS = [{"topic": "a/b", "qos": 1}, {"topic": "a/c", "qos": 128}, {"topic": "x", "qos": 0}]


def sent(event, *rules):
    settings = BodySettings(tuple(Rule(*rule) for rule in rules))
    return [json.loads(body) for body in Rules(settings).bodies(event)]


def actions(event, *rules):
    return [body["action"] for body in sent(event, *rules)]


def topics(event, *rules):
    return [(body["action"], body.get("topic")) for body in sent(event, *rules)]


class UsernameTests(SynchronousTestCase):
    def test_needed_by_what_names_a_user_whom_the_message_may_not_name(self):
        needing = set()
        for name in RULE_EVENTS:
            settings = WebhookSettings("webhook", "http://127.0.0.1/", (Rule("on_message_publish"), Rule(name)))
            if needs_usernames(settings):
                needing.add(name)
        ends = {"on_client_offline", "on_client_gone", "on_session_expired"}
        nameless = {hook: structs.replace(make_event(hook, username=""), username="remembered") for hook in HOOKS}
        shown = {
            name
            for name in RULE_EVENTS
            for hook in ends | {"on_client_wakeup", "on_offline_message", "on_message_drop"}
            if any("remembered" in json.dumps(body) for body in sent(nameless[hook], (name,)))
        }
        self.assertEqual(needing, shown)
        self.assertEqual(needing, {"on_client_disconnected", "on_session_terminated", "on_client_offline", "on_client_gone"})


class TableTests(SynchronousTestCase):
    def test_every_hook(self):
        everything = [(name,) for name in RULE_EVENTS]
        self.assertEqual(set(CAUSES), set(HOOKS))
        for hook, caused in CAUSES.items():
            expected = [name.removeprefix("on_") for name in (*caused, hook)]
            self.assertEqual(actions(make_event(hook), *everything), expected)
            for name in RULE_EVENTS:
                wanted = [name.removeprefix("on_")] if name in (*caused, hook) else []
                self.assertEqual(actions(make_event(hook), (name,)), wanted)

    def test_names(self):
        self.assertEqual(len(NANOMQ_EVENTS), 12)
        self.assertEqual(len(RULE_EVENTS), 25)
        self.assertEqual(
            TOPIC_EVENTS,
            {
                *("on_client_subscribe", "on_session_subscribed", "on_client_unsubscribe", "on_session_unsubscribed"),
                *("on_message_publish", "on_message_delivered", "on_message_acked"),
                *("on_publish", "on_deliver", "on_delivery_complete", "on_offline_message", "on_message_drop"),
                *("on_subscribe", "on_unsubscribe"),
            },
        )

    def test_no_rules(self):
        for hook in HOOKS:
            self.assertEqual(sent(make_event(hook)), [])


class TopicTests(SynchronousTestCase):
    def test_message(self):
        event = make_event("on_publish", topic="a/b")
        for name in ("on_message_publish", "on_publish"):
            self.assertEqual(len(sent(event, (name, "a/+"))), 1)
            self.assertEqual(sent(event, (name, "b/#")), [])

    def test_several_rules_make_one_request(self):
        event = make_event("on_publish", topic="a/b")
        rules = [("on_message_publish", "a/#"), ("on_message_publish", "a/b"), ("on_message_publish", "#")]
        self.assertEqual(len(sent(event, *rules)), 1)
        self.assertEqual(len(sent(event, ("on_message_publish", "nope"), ("on_message_publish", "a/b"))), 1)

    def test_a_rule_without_topic_wants_all(self):
        event = make_event("on_publish", topic="$SYS/a")
        self.assertEqual(sent(event, ("on_message_publish", "#")), [])
        self.assertEqual(len(sent(event, ("on_message_publish", "#"), ("on_message_publish",))), 1)

    def test_subscription(self):
        event = make_event("on_subscribe", topics=INFOS)
        both = ("on_session_subscribed",), ("on_client_subscribe",)
        self.assertEqual(
            topics(event, *both),
            [
                ("client_subscribe", "a/b"),
                ("client_subscribe", "a/c"),
                ("client_subscribe", "x"),
                ("session_subscribed", "a/b"),
                ("session_subscribed", "x"),
            ],
        )
        self.assertEqual(
            topics(event, ("on_client_subscribe", "a/#"), ("on_session_subscribed", "a/c")),
            [("client_subscribe", "a/b"), ("client_subscribe", "a/c")],
        )

    def test_unsubscription(self):
        event = make_event("on_unsubscribe", topics=["a/b", "x"])
        self.assertEqual(
            topics(event, ("on_client_unsubscribe",), ("on_session_unsubscribed", "x")),
            [("client_unsubscribe", "a/b"), ("client_unsubscribe", "x"), ("session_unsubscribed", "x")],
        )

    def test_no_topics(self):
        event = make_event("on_subscribe", topics=[])
        rules = [("on_client_subscribe",), ("on_session_subscribed",), ("on_subscribe",)]
        self.assertEqual(actions(event, *rules), ["subscribe"])
        self.assertEqual(sent(event, ("on_subscribe", "#")), [])

    def test_hook_with_several_topics(self):
        event = make_event("on_subscribe", topics=INFOS)
        self.assertEqual(len(sent(event, ("on_subscribe", "x"))), 1)
        self.assertEqual(sent(event, ("on_subscribe", "y")), [])

    def test_topic_where_there_is_none(self):
        self.assertEqual(actions(make_event("on_client_gone"), ("on_client_disconnected", "a/b")), ["client_disconnected"])

    def test_wrong_filter(self):
        error = self.assertRaises(ConfigError, sent, make_event("on_publish"), ("on_publish", "a/#/b"))
        self.assertIn("a/#/b", str(error))
