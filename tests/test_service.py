"""Services that start and stop in order."""

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import ListenError
from mqhooks.support.services import OrderedService


class Child(Service):
    def __init__(self, name, log):
        self.setName(name)
        self.log = log
        self.stopped = Deferred()

    def privilegedStartService(self):
        self.log.append(f"privileged {self.name}")

    def startService(self):
        super().startService()
        self.log.append(f"start {self.name}")

    def stopService(self):
        self.log.append(f"stop {self.name}")
        return self.stopped


class OrderedServiceTests(SynchronousTestCase):
    def setUp(self):
        self.log = []
        self.first, self.second = Child("1", self.log), Child("2", self.log)
        self.service = OrderedService([self.first, self.second])
        self.service.privilegedStartService()
        self.service.startService()

    def test_starts_in_order(self):
        self.assertEqual(self.log, ["privileged 1", "privileged 2", "start 1", "start 2"])
        self.assertTrue(self.service.running)

    def test_stops_in_reverse_each_when_the_one_after_it_has(self):
        self.log.clear()
        stopped = self.service.stopService()
        self.assertEqual(self.log, ["stop 2"])
        self.second.stopped.callback(None)
        self.assertEqual(self.log, ["stop 2", "stop 1"])
        self.assertNoResult(stopped)
        self.first.stopped.callback(None)
        self.successResultOf(stopped)
        self.assertFalse(self.service.running)

    def test_a_child_that_fails_to_stop_stops_no_other(self):
        self.second.stopService = lambda: fail(RuntimeError("stuck"))
        self.first.stopped.callback(None)
        self.successResultOf(self.service.stopService())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.log[-1], "stop 1")

    def test_a_child_that_cannot_start_ends_the_process_with_one_line(self):
        for method in ("privilegedStartService", "startService"):
            child = Child("3", [])

            def refuse():
                raise ListenError("no room")

            setattr(child, method, refuse)
            exit_ = self.assertRaises(SystemExit, getattr(OrderedService([child]), method))
            self.assertEqual(exit_.code, "mqhooks: no room")

    def test_children_that_have_started_are_stopped_when_another_cannot_start(self):
        def refuse():
            raise ListenError("no room")

        log = []
        first, second, third = (Child(name, log) for name in "123")
        second.startService = refuse
        inner = OrderedService([second])
        exit_ = self.assertRaises(SystemExit, OrderedService([first, inner, third]).startService)
        self.assertEqual(exit_.code, "mqhooks: no room")
        self.assertEqual(log, ["start 1", "stop 1"])
