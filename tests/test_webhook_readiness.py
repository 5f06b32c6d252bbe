"""Many connections, read in one turn of the reactor."""

from socket import socketpair

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mqhooks.webhook import readiness
from mqhooks.webhook.readiness import Readiness


class ReadinessTests(SynchronousTestCase):
    def setUp(self):
        if not Readiness.possible(reactor):
            raise SkipTest("this reactor watches no epoll")
        self.readiness = Readiness(reactor)
        self.reads = []

    def watch(self, name, read):
        near, far = socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        near.setblocking(False)

        def note(sound):
            self.reads.append((name, sound))
            return read(near)

        self.readiness.add(near.fileno(), note)
        self.addCleanup(self.readiness.remove, near.fileno())
        return far

    def test_what_becomes_readable_meanwhile_is_read_in_the_same_turn(self):
        def read(near):
            near.recv(10)
            if len(self.reads) < 5:
                far.send(b"again")

        far = self.watch("a", read)
        far.send(b"once")
        self.readiness.doRead()
        self.assertEqual(self.reads, [("a", True)] * 5)

    def test_what_is_left_is_read_later(self):
        far = self.watch("a", lambda near: len(near.recv(4)) == 4)
        far.send(b"in three parts")
        self.readiness.doRead()
        self.assertEqual(self.reads, [("a", True)] * 4)

    def test_nobody_is_called_without_need(self):
        far = self.watch("a", lambda near: False)
        far.send(b"never read")
        self.readiness.doRead()
        self.readiness.doRead()
        self.assertEqual(self.reads, [("a", True)])

    def test_what_is_done_when_all_are_read(self):
        def read(near):
            near.recv(10)
            self.assertTrue(self.readiness.reading)
            self.readiness.afterwards(lambda: self.reads.append("afterwards"))
            self.readiness.afterwards(lambda: 1 // 0)

        for name in "ab":
            self.watch(name, read).send(b"once")
        self.readiness.doRead()
        self.assertEqual(sorted(self.reads[:2]), [("a", True), ("b", True)])
        self.assertEqual(self.reads[2:], ["afterwards"] * 2)
        self.assertFalse(self.readiness.reading)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.readiness.doRead()
        self.assertEqual(len(self.reads), 4)

    def test_data_and_their_end(self):
        far = self.watch("a", lambda near: False)
        far.send(b"last")
        far.close()
        self.readiness.doRead()
        self.assertEqual(self.reads, [("a", False)])

    def test_an_end_that_comes_after_the_look(self):
        def read(near):
            if len(self.reads) == 1:
                far.close()
            near.recv(10)

        far = self.watch("a", read)
        far.send(b"last")
        self.readiness.doRead()
        self.assertEqual(self.reads, [("a", True), ("a", False)])

    def test_others_have_their_turn(self):
        self.patch(readiness, "ENOUGH", 7)
        far = self.watch("a", lambda near: True)
        far.send(b"never read")
        self.readiness.doRead()
        self.assertEqual(self.reads, [("a", True)] * 7)

    def test_the_last_connection_goes_meanwhile(self):
        far = self.watch("a", lambda near: self.readiness.remove(near.fileno()))
        far.send(b"last")
        self.readiness.doRead()
        self.assertEqual((self.reads, self.readiness.fileno()), ([("a", True)], -1))
