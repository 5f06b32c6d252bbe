"""Loops go on, whatever becomes of a call."""

from pathlib import Path

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.support import loops
from mqhooks.support.loops import Loop


async def failing():
    raise LookupError("later")


class LoopTests(SynchronousTestCase):
    def loop(self, function):
        """Start a loop, one call a second, which ``calls`` counts."""
        self.clock = Clock()
        self.calls = 0

        def called():
            self.calls += 1
            return function()

        loop = Loop(self.clock, "looking around", called)
        loop.start(1.0)
        self.addCleanup(loop.stop)
        return loop

    def test_goes_on_after_an_error(self):
        for function, kind in (
            (lambda: 1 / 0, ZeroDivisionError),
            (lambda: fail(KeyError("at once")), KeyError),
            (failing, LookupError),
        ):
            self.loop(function)
            self.clock.pump([1.0] * 3)
            self.assertEqual(self.calls, 3)
            # With its traceback, once a minute.
            (failure,) = self.flushLoggedErrors()
            self.assertEqual(failure.type, kind)
            self.clock.pump([1.0] * 60)
            self.assertEqual((self.calls, len(self.flushLoggedErrors(kind))), (63, 1))

    def test_the_log_says_what_has_failed_and_where(self):
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        self.loop(failing)
        self.clock.advance(1.0)
        (event,) = [event for event in logged if "log_failure" in event]
        self.assertEqual(formatEvent(event), "looking around failed, and goes on")
        self.assertIn("in failing\n", event["log_failure"].getTraceback())
        self.flushLoggedErrors(LookupError)

    def test_another_error_is_told_at_once(self):
        errors = [ZeroDivisionError, KeyError, KeyError]
        self.loop(lambda: fail(errors.pop(0)("x")))
        self.clock.pump([1.0] * 3)
        self.assertEqual([failure.type for failure in self.flushLoggedErrors()], [ZeroDivisionError, KeyError])

    def test_waits_for_a_call_that_has_not_ended(self):
        ends = [Deferred() for _ in range(2)]
        waiting = list(ends)
        self.loop(lambda: waiting.pop(0))
        self.clock.pump([1.0] * 5)
        self.assertEqual(self.calls, 1)
        ends[0].errback(KeyError("x"))
        self.clock.advance(1.0)
        self.assertEqual((self.calls, len(self.flushLoggedErrors(KeyError))), (2, 1))

    def test_starts_stops_and_starts_again(self):
        loop = self.loop(lambda: None)
        self.assertTrue(loop.running)
        self.clock.advance(1.0)
        loop.stop()
        loop.stop()
        self.clock.pump([1.0] * 3)
        self.assertEqual((self.calls, loop.running, self.clock.getDelayedCalls()), (1, False, []))
        loop.start(1.0, now=True)
        self.clock.advance(1.0)
        self.assertEqual(self.calls, 3)

    def test_nothing_else_ends_at_the_first_error(self):
        own = Path(loops.__file__)
        users = [path for path in own.parent.parent.rglob("*.py") if "LoopingCall(" in path.read_text()]
        self.assertEqual(users, [own])
