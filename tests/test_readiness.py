"""Many connections, read in one turn of the reactor."""

from errno import EMFILE
from socket import socketpair

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mqhooks.readiness import Reader, Readiness


class ReadinessTests(SynchronousTestCase):
    def setUp(self):
        if not Readiness.possible(reactor):
            raise SkipTest("this reactor watches no epoll")
        self.readiness = Readiness(reactor, "test", 7)
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
        far = self.watch("a", lambda near: True)
        far.send(b"never read")
        self.readiness.doRead()
        self.assertEqual(self.reads, [("a", True)] * 7)

    def test_the_last_connection_goes_meanwhile(self):
        far = self.watch("a", lambda near: self.readiness.remove(near.fileno()))
        far.send(b"last")
        self.readiness.doRead()
        self.assertEqual((self.reads, self.readiness in reactor.getReaders()), ([("a", True)], False))


class Transport:
    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        return lambda: self.asked.append(name)


class ReaderTests(SynchronousTestCase):
    def setUp(self):
        if not Readiness.possible(reactor):
            raise SkipTest("this reactor watches no epoll")
        self.readiness = Readiness(reactor, "test", 7)
        self.near, self.far = socketpair()
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)
        self.near.setblocking(False)
        self.transport = Transport()
        self.taken = []
        self.reader = Reader(self.readiness, self.transport, self.near, self.taken.append, 4, 8)
        self.addCleanup(self.reader.leave)

    def test_the_transport_reads_no_more(self):
        self.assertEqual(self.transport.asked, ["stopReading"])

    def test_more_at_a_time_once_much_has_come(self):
        self.far.send(b"one")
        self.readiness.doRead()
        self.far.send(b"and a long one")
        self.readiness.doRead()
        self.assertEqual(self.taken, [b"one", b"and ", b"a long o", b"ne"])

    def test_paused(self):
        self.reader.pause()
        self.reader.pause()
        self.assertNotIn(self.readiness, reactor.getReaders())
        self.far.send(b"one")
        self.far.close()
        self.reader.resume()
        self.reader.resume()
        self.readiness.doRead()
        self.assertEqual((self.taken, self.transport.asked[1:]), ([], ["startReading"]))

    def test_what_came_during_a_pause(self):
        self.far.send(b"one")
        self.reader.pause()
        self.far.send(b"two")
        self.reader.resume()
        self.readiness.doRead()
        self.assertEqual(b"".join(self.taken), b"onetwo")

    def test_paused_by_what_was_received(self):
        self.far.send(b"one and two")
        self.reader.leave()
        self.reader = Reader(self.readiness, self.transport, self.near, lambda _: self.reader.pause(), 4, 4)
        self.addCleanup(self.reader.leave)
        self.readiness.doRead()
        self.assertEqual((self.near.recv(8), self.readiness in reactor.getReaders()), (b"and two", False))

    def test_the_end_is_left_to_the_transport(self):
        self.far.close()
        self.readiness.doRead()
        self.assertEqual(self.transport.asked[1:], ["startReading"])
        self.reader.pause()
        self.reader.resume()
        self.assertEqual(self.transport.asked[2:], ["pauseProducing", "resumeProducing"])

    def test_a_broken_connection_is_left_to_the_transport(self):
        class Broken:
            def fileno(self):
                return fileno

            def recv(self, size):
                raise ConnectionResetError

        self.reader.leave()
        fileno = self.near.fileno()
        reader = Reader(self.readiness, self.transport, Broken(), self.taken.append, 4, 4)
        self.addCleanup(reader.leave)
        self.far.send(b"one")
        self.readiness.doRead()
        self.assertEqual((self.taken, self.transport.asked[2:]), ([], ["startReading"]))

    def test_no_room_to_watch_it(self):
        self.reader.pause()

        def refuse(descriptor, read):
            raise OSError(EMFILE, "Too many open files")

        self.patch(self.readiness, "add", refuse)
        self.reader.resume()
        self.assertEqual(self.transport.asked[1:], ["startReading"])
        self.reader.pause()
        self.assertEqual(self.transport.asked[2:], ["pauseProducing"])

    def test_pausing_all_needs_no_new_descriptor(self):
        before = self.readiness.fileno()
        self.reader.pause()
        self.assertEqual((self.readiness.fileno(), self.readiness in reactor.getReaders()), (before, False))
        self.reader.resume()
        self.assertEqual((self.readiness.fileno(), self.readiness in reactor.getReaders()), (before, True))

    def test_done_with(self):
        self.reader.leave()
        self.reader.leave()
        self.reader.give_back()
        self.assertEqual(self.transport.asked[1:], [])
        self.reader.resume()
        self.assertEqual((self.readiness in reactor.getReaders(), self.transport.asked[1:]), (False, ["resumeProducing"]))
