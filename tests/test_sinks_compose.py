"""
Sinks made of sinks.
"""

import os
import sys
from collections.abc import Sequence
from subprocess import run
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, Event
from mqhooks.interfaces import IEventSink, IHolding
from mqhooks.sinks import FanOut, FilterSink, SampleSink
from mqhooks.testing import RecordingSink, make_event, verify_sink

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@implementer(IEventSink)
class SlowSink(Service):
    """Writes down when it starts and stops; stopping takes until :attr:`stopped` is fired."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.label = name
        self.diary = diary
        self.stopped: Deferred[None] = Deferred()

    def startService(self) -> None:
        super().startService()
        self.diary.append(f"{self.label} starts")

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.diary.append(f"{self.label} stops")
        return self.stopped

    def receive(self, events: Sequence[Event]) -> None:
        return None


@implementer(IHolding)
class HoldingSink(RecordingSink):
    """Holds what it does not accept."""

    holds = True


class HoldingTests(SynchronousTestCase):
    """What a sink holds need not stop its source, unless another sink waits."""

    def setUp(self) -> None:
        self.holding, self.other = HoldingSink(), RecordingSink()
        self.sink = FanOut([self.holding, self.other])
        verifyObject(IHolding, self.sink)

    def test_a_sink_that_holds_speaks_for_those_that_have_accepted_all(self) -> None:
        self.assertTrue(self.sink.holds)
        self.other.hold()
        self.sink.receive([make_event("on_publish")])
        self.assertFalse(self.sink.holds)
        self.other.release()
        self.assertTrue(self.sink.holds)
        self.holding.holds = False
        self.assertFalse(self.sink.holds)

    def test_a_sink_that_fails_does_not_wait(self) -> None:
        self.other.hold()
        self.sink.receive([make_event("on_publish")])
        self.other.waiting[0].errback(RuntimeError("no"))
        self.assertTrue(self.sink.holds)
        self.flushLoggedErrors(RuntimeError)

    def test_a_filter_asks_its_sink(self) -> None:
        self.assertTrue(FilterSink(self.sink).holds)
        verifyObject(IHolding, FilterSink(self.sink))
        self.assertFalse(IHolding.providedBy(FilterSink(self.other)))

    def test_a_sink_that_never_holds_is_waited_for_at_any_depth(self) -> None:
        for inner in (
            FilterSink(self.other),
            SampleSink(self.other, 1),
            FanOut([self.other]),
            FanOut([HoldingSink(), self.other]),
            SampleSink(FilterSink(FanOut([HoldingSink(), FilterSink(self.other)])), 1),
        ):
            sink = FilterSink(FanOut([self.holding, inner]))
            self.assertTrue(sink.holds)
            self.other.hold()
            for pass_on in (sink.receive, sink.store):
                pass_on([make_event("on_publish")])
            self.assertFalse(sink.holds, inner)
            self.other.release()
            self.assertTrue(sink.holds, inner)


class FanOutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.inner = [RecordingSink(), RecordingSink(), RecordingSink()]
        self.sink = FanOut(self.inner)
        self.batch = [make_event("on_publish"), make_event("on_deliver")]

    def test_contract(self) -> None:
        verifyObject(IEventSink, self.sink)
        self.assertIsNone(self.successResultOf(verify_sink(self.sink)))

    def test_all_get_the_batch(self) -> None:
        self.assertIsNone(self.sink.receive(self.batch))
        for inner in self.inner:
            self.assertEqual(inner.batches, [self.batch])

    def test_accepted_when_all_have(self) -> None:
        self.inner[0].hold()
        self.inner[2].hold()
        accepted = self.sink.receive(self.batch)
        assert accepted is not None
        self.inner[2].release()
        self.assertNoResult(accepted)
        self.inner[0].release()
        self.assertIsNone(self.successResultOf(accepted))

    def test_one_that_waits(self) -> None:
        self.inner[1].hold()
        accepted = self.sink.receive(self.batch)
        assert accepted is not None
        self.assertNoResult(accepted)
        self.inner[1].release()
        self.assertIsNone(self.successResultOf(accepted))

    def test_one_that_raises(self) -> None:
        self.inner[0].error = RuntimeError("broken")
        self.assertIsNone(self.sink.receive(self.batch))
        self.assertEqual(self.inner[1].batches, [self.batch])
        self.assertEqual(self.inner[2].batches, [self.batch])
        self.assertEqual(self.sink.failures, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_one_whose_acceptance_fails(self) -> None:
        for inner in self.inner:
            inner.hold()
        accepted = self.sink.receive(self.batch)
        assert accepted is not None
        self.inner[0].waiting.pop().errback(RuntimeError("broken"))
        self.inner[1].release()
        self.assertNoResult(accepted)
        self.inner[2].release()
        self.assertIsNone(self.successResultOf(accepted))
        self.assertEqual(self.sink.failures, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_one_that_returns_something_else(self) -> None:
        @implementer(IEventSink)
        class Odd(Service):
            def receive(self, events: Sequence[Event]) -> Any:
                return True

        other = RecordingSink()
        self.assertIsNone(FanOut([Odd(), other]).receive(self.batch))
        self.assertEqual(other.batches, [self.batch])
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_failures_do_not_flood_the_log(self) -> None:
        self.inner[0].error = RuntimeError("broken")
        for _ in range(1000):
            self.sink.receive(self.batch)
        self.assertEqual(self.sink.failures, 1000)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 4)

    def test_starts_in_order_and_stops_together(self) -> None:
        diary: list[str] = []
        first, second = SlowSink("first", diary), SlowSink("second", diary)
        sink = FanOut([first, second])
        sink.startService()
        stopped = sink.stopService()
        self.assertEqual(diary[:2], ["first starts", "second starts"])
        self.assertEqual(sorted(diary[2:]), ["first stops", "second stops"])
        second.stopped.callback(None)
        self.assertNoResult(stopped)
        first.stopped.callback(None)
        self.successResultOf(stopped)


class FilterTests(SynchronousTestCase):
    def passed(self, events: Sequence[Event], **criteria: object) -> list[Event]:
        inner = RecordingSink()
        sink = FilterSink(inner, **criteria)  # type: ignore[arg-type]
        self.assertIsNone(sink.receive(events))
        self.assertEqual(sink.filtered + len(inner.events), len(events))
        return inner.events

    def test_contract(self) -> None:
        sink = FilterSink(RecordingSink(), hooks="on_publish")
        verifyObject(IEventSink, sink)
        self.assertIsNone(self.successResultOf(verify_sink(sink)))

    def test_no_criterion(self) -> None:
        events = [make_event(hook) for hook in HOOKS]
        self.assertEqual(self.passed(events), events)

    def test_hooks(self) -> None:
        events = [make_event(hook) for hook in HOOKS]
        wanted = ["on_publish", "on_deliver"]
        self.assertEqual([event.hook for event in self.passed(events, hooks=wanted)], wanted)
        self.assertEqual([event.hook for event in self.passed(events, hooks="on_client_gone")], ["on_client_gone"])

    def test_topics(self) -> None:
        match = [
            make_event("on_publish", topic="a"),
            make_event("on_deliver", topic="a/b/c"),
            make_event("on_subscribe", topics=[{"topic": "x"}, {"topic": "a/b"}]),
            make_event("on_unsubscribe", topics=["x", "y/z"]),
        ]
        others = [
            make_event("on_publish", topic="b"),
            make_event("on_unsubscribe", topics=["x", "y"]),
            make_event("on_register"),
        ]
        self.assertEqual(self.passed(match + others, topics=["a/#", "y/+"]), match)

    def test_clients(self) -> None:
        match = [make_event("on_publish", client_id=client) for client in ("sensor-1", "sensor-\n", "x[1]")]
        others = [make_event("on_publish", client_id=client) for client in ("", "Sensor-1", "a sensor-1", "x1")]
        self.assertEqual(self.passed(match + others, clients=["sensor-*", "x[[]1]"]), match)

    def test_mountpoints(self) -> None:
        default, other = make_event("on_publish"), make_event("on_publish", mountpoint="m")
        self.assertEqual(self.passed([default, other], mountpoints=""), [default])
        self.assertEqual(self.passed([default, other], mountpoints=["m", "n"]), [other])

    def test_every_criterion_has_to_match(self) -> None:
        match = make_event("on_publish", client_id="c", topic="a", mountpoint="m")
        others = [
            make_event("on_deliver", client_id="c", topic="a", mountpoint="m"),
            make_event("on_publish", client_id="d", topic="a", mountpoint="m"),
            make_event("on_publish", client_id="c", topic="b", mountpoint="m"),
            make_event("on_publish", client_id="c", topic="a"),
        ]
        self.assertEqual(
            self.passed([*others, match], hooks=["on_publish"], clients=["c"], topics=["a"], mountpoints=["m"]), [match]
        )

    def test_empty_criterion_matches_nothing(self) -> None:
        for criterion in ("hooks", "topics", "clients", "mountpoints"):
            self.assertEqual(self.passed([make_event("on_publish")], **{criterion: []}), [])

    def test_mistakes(self) -> None:
        error = self.assertRaises(ConfigError, FilterSink, RecordingSink(), hooks=["on_publsh"])
        self.assertEqual(str(error), "hooks: VerneMQ has no hook 'on_publsh'; did you mean on_publish?")
        error = self.assertRaises(ConfigError, FilterSink, RecordingSink(), hooks=["?"])
        self.assertIn("choose from on_register, ", str(error))
        error = self.assertRaises(ConfigError, FilterSink, RecordingSink(), topics=["a", "a/#/b"])
        self.assertTrue(str(error).startswith("topics: "), str(error))
        self.assertIn("'a/#/b'", str(error))

    def test_backpressure_passes_through(self) -> None:
        inner = RecordingSink()
        inner.hold()
        sink = FilterSink(inner, hooks="on_publish")
        self.assertIsNone(sink.receive([make_event("on_deliver")]))
        accepted = sink.receive([make_event("on_publish")])
        assert accepted is not None
        self.assertNoResult(accepted)
        inner.release()
        self.successResultOf(accepted)

    def test_starts_and_stops_what_it_wraps(self) -> None:
        inner = RecordingSink()
        sink = FilterSink(inner)
        sink.startService()
        self.assertTrue(inner.running)
        self.successResultOf(sink.stopService())
        self.assertFalse(inner.running)


def sample(share: float, clients: Sequence[str]) -> set[str]:
    inner = RecordingSink()
    SampleSink(inner, share).receive([make_event("on_publish", client_id=client) for client in clients])
    return {event.client_id for event in inner.events}


class SampleTests(SynchronousTestCase):
    clients = tuple(f"client-{number}" for number in range(2000))

    def test_contract(self) -> None:
        sink = SampleSink(RecordingSink(), 0.5)
        verifyObject(IEventSink, sink)
        self.assertIsNone(self.successResultOf(verify_sink(sink)))

    def test_share_of_the_clients(self) -> None:
        self.assertTrue(150 < len(sample(0.1, self.clients)) < 250)
        self.assertTrue(950 < len(sample(0.5, self.clients)) < 1050)
        self.assertEqual(sample(1, self.clients), set(self.clients))

    def test_larger_share_only_adds(self) -> None:
        self.assertLess(sample(0.1, self.clients), sample(0.2, self.clients))

    def test_all_of_a_client_or_nothing(self) -> None:
        inner = RecordingSink()
        sink = SampleSink(inner, 0.5)
        sink.receive([make_event(hook, client_id=client) for client in self.clients[:50] for hook in HOOKS])
        for client in self.clients[:50]:
            self.assertIn(sum(event.client_id == client for event in inner.events), (0, len(HOOKS)))
        self.assertEqual(sink.filtered, 50 * len(HOOKS) - len(inner.events))

    def test_mountpoint_is_a_part_of_the_client(self) -> None:
        inner = RecordingSink()
        sink = SampleSink(inner, 0.5)
        sink.receive([make_event("on_publish", client_id="c", mountpoint=f"m{number}") for number in range(64)])
        self.assertTrue(0 < len(inner.events) < 64)

    def test_same_clients_in_another_process(self) -> None:
        program = "import sys; from tests.test_sinks_compose import sample; print(*sorted(sample(0.1, sys.argv[1:])))"
        clients = self.clients[:100]
        done = run([sys.executable, "-c", program, *clients], capture_output=True, text=True, check=True, cwd=ROOT)
        self.assertEqual(done.stdout.split(), sorted(sample(0.1, clients)))

    @given(st.floats(min_value=0, max_value=1, exclude_min=True), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
    def test_any_client(self, share: float, client: str) -> None:
        sample(share, [client])
        self.assertEqual(sample(1, [client]), {client})

    def test_mistakes(self) -> None:
        for share in (0, -0.1, 1.01, float("nan"), float("inf")):
            error = self.assertRaises(ConfigError, SampleSink, RecordingSink(), share)
            self.assertIn("is not a share of the clients; give one above 0 and up to 1", str(error))
