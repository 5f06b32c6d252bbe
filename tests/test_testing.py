"""
What ships for those who test their sinks.
"""

from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from mqhooks.events import FAILURES, HOOKS, REASONS, Event
from mqhooks.interfaces import IEventSink
from mqhooks.testing import TIMESTAMP, RecordingSink, make_event, verify_sink


class MakeEventTests(SynchronousTestCase):
    def test_every_hook(self) -> None:
        for hook, message_type in HOOKS.items():
            event = make_event(hook)
            self.assertIsInstance(event.message, message_type)
            self.assertEqual((event.hook, event.client_id, event.mountpoint), (hook, "client-1", ""))
            self.assertEqual(event.timestamp, TIMESTAMP)
            self.assertEqual(event.message.timestamp, TIMESTAMP)
            fields = dict(event.fields())
            for name in ("topic", "topics", "payload", "matched_acl", "peer_addr", "reason"):
                self.assertTrue(fields.get(name, True), (hook, name))

    def test_fields_replace_defaults(self) -> None:
        event = make_event("on_publish", client_id="c", username="", mountpoint="m", topic="t", payload=b"", timestamp=-1)
        self.assertEqual((event.client_id, event.username, event.mountpoint, event.topics), ("c", "", "m", ("t",)))
        self.assertEqual((event.message.payload, event.timestamp), (b"", -1))
        self.assertEqual(event.message.timestamp, -1)

    def test_message_within_the_message(self) -> None:
        event = make_event("on_subscribe", topics=[{"topic": "a", "qos": 2}, {"topic": "b"}])
        self.assertEqual(event.topics, ("a", "b"))
        self.assertEqual(event.message.topics[0].qos, 2)

    def test_reasons_by_name_and_number(self) -> None:
        for reason in ("REASON_SESSION_TAKEN_OVER", "session_taken_over", 3):
            event = make_event("on_client_gone", reason=reason)
            self.assertEqual((event.message.reason, dict(event.fields())["reason"]), (3, "session_taken_over"))
        for reason in ("REASON_STALE_REQUEST", "REGISTRATION_REASON_STALE_REQUEST", "stale_request", 4):
            event = make_event("on_register_failed", reason=reason)
            self.assertEqual((event.message.reason, dict(event.fields())["reason"]), (4, "stale_request"))
        for number, name in enumerate(FAILURES):
            for prefix in ("", "REASON_", "REGISTRATION_", "REGISTRATION_REASON_"):
                self.assertEqual(make_event("on_register_failed", reason=prefix + name.upper()).message.reason, number)
        for hook in ("on_client_gone", "on_client_offline"):
            for number, name in enumerate(REASONS):
                for prefix in ("", "REASON_"):
                    self.assertEqual(make_event(hook, reason=prefix + name.upper()).message.reason, number)
        self.assertEqual(make_event("on_message_drop", reason="expired").message.reason, "expired")

    def test_remembered_username(self) -> None:
        self.assertEqual(make_event("on_session_expired", username="u").username, "u")
        self.assertEqual(make_event("on_session_expired").username, "")
        self.assertEqual(make_event("on_client_gone").username, "user-1")

    def test_mistakes(self) -> None:
        self.assertRaises(ValueError, make_event, "on_nothing")
        self.assertRaises(ValueError, make_event, "on_publish", peer_addr="127.0.0.1")
        self.assertRaises(ValueError, make_event, "on_publish", qos="1")
        self.assertRaises(ValueError, make_event, "on_session_expired", username=5)

    def test_wrong_reasons(self) -> None:
        for hook, reason, words in (
            (
                "on_client_gone",
                "lunch",
                "on_client_gone has no reason 'lunch'; give its number, or one of unspecified, not_authorized,",
            ),
            (
                "on_client_offline",
                "REASON_",
                "on_client_offline has no reason 'REASON_'; give its number, or one of unspecified,",
            ),
            (
                "on_client_gone",
                "REGISTRATION_TCP_CLOSED",
                "on_client_gone has no reason 'REGISTRATION_TCP_CLOSED'; give its number,",
            ),
            ("on_register_failed", "RETRY_EXHAUSTED", "invalid_signature, username_rid_mismatch,"),
            ("on_register_failed", None, "on_register_failed: Expected `int`, got `null`"),
            ("on_client_gone", 1.5, "on_client_gone: Expected `int`, got `float`"),
        ):
            error = self.assertRaises(ValueError, make_event, hook, reason=reason)
            self.assertIn(words, str(error))
            self.assertNotIn("\n", str(error))


class RecordingSinkTests(SynchronousTestCase):
    def test_contract(self) -> None:
        sink = RecordingSink()
        verifyObject(IEventSink, sink)
        self.assertIsNone(self.successResultOf(verify_sink(sink)))

    def test_remembers(self) -> None:
        sink = RecordingSink()
        one, two = make_event("on_publish"), make_event("on_deliver")
        self.assertIsNone(sink.receive((one,)))
        self.assertIsNone(sink.receive([two, one]))
        self.assertEqual(sink.batches, [[one], [two, one]])
        self.assertEqual(sink.events, [one, two, one])

    def test_remembers_what_it_got_even_when_the_caller_uses_the_list_again(self) -> None:
        sink, batch = RecordingSink(), [make_event("on_publish")]
        sink.receive(batch)
        batch.clear()
        self.assertEqual(len(sink.events), 1)

    def test_holds_and_releases(self) -> None:
        sink = RecordingSink()
        sink.hold()
        first, second = sink.receive([make_event("on_publish")]), sink.receive([])
        assert first is not None
        assert second is not None
        self.assertEqual(sink.waiting, [first, second])
        second.callback(None)
        self.assertNoResult(first)
        sink.release()
        self.assertIsNone(self.successResultOf(first))
        self.assertEqual(sink.waiting, [])
        self.assertIsNone(sink.receive([]))

    def test_raises(self) -> None:
        sink = RecordingSink()
        sink.error = RuntimeError("broken")
        self.assertRaises(RuntimeError, sink.receive, [])
        self.assertEqual(sink.batches, [])


@implementer(IEventSink)
class Answering(Service):
    """Answers each batch as it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def receive(self, events: Sequence[Event]) -> Any:
        return self.answer(events)


class VerifySinkTests(SynchronousTestCase):
    def test_gets_every_hook_and_an_empty_batch(self) -> None:
        sink = RecordingSink()
        verify_sink(sink)
        self.assertIn([], sink.batches)
        self.assertEqual({event.hook for event in sink.events}, set(HOOKS))

    def test_own_events(self) -> None:
        sink, events = RecordingSink(), [make_event("on_publish")]
        verify_sink(sink, events)
        self.assertEqual(sink.batches, [[], events, events])

    def test_waits_for_acceptance(self) -> None:
        sink = RecordingSink()
        sink.hold()
        verified = verify_sink(sink)
        self.assertNoResult(verified)
        sink.release()
        self.assertIsNone(self.successResultOf(verified))

    def test_accepts_deferreds(self) -> None:
        self.assertIsNone(self.successResultOf(verify_sink(Answering(lambda events: succeed(None)))))

    def breach(self, answer: Any) -> str:
        return str(self.assertRaises(AssertionError, verify_sink, Answering(answer)))

    def test_no_sink(self) -> None:
        self.assertRaises(Invalid, verify_sink, Service())

    def test_raises(self) -> None:
        self.assertIn("a sink never raises", self.breach(lambda events: events[0]))

    def test_changes_the_batch(self) -> None:
        self.assertIn("changed its batch", self.breach(lambda events: events.clear()))

    def test_returns_something_else(self) -> None:
        self.assertIn("returned True; a sink returns None or a Deferred", self.breach(lambda events: True))

    def test_acceptance_carries_a_value(self) -> None:
        verified = verify_sink(Answering(lambda events: succeed(len(events))))
        self.assertIn("fired with 0", str(self.failureResultOf(verified, AssertionError).value))

    def test_acceptance_fails(self) -> None:
        failing: Deferred[None] = fail(RuntimeError("broken"))
        answers = iter([None, failing, None])
        self.failureResultOf(verify_sink(Answering(lambda events: next(answers))), RuntimeError)
