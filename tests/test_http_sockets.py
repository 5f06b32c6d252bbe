"""Sockets read and written past Twisted's transport."""

from socket import SO_RCVBUF, SOL_SOCKET, socketpair

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from mqhooks.http.sockets import SHORT, EpollSockets, PlainSockets
from tests.endpoints import Connection, Endpoint
from tests.waiting import until


class WatchTests(SynchronousTestCase):
    """Many sockets, read in one turn of the reactor."""

    def setUp(self):
        if not EpollSockets.possible(reactor):
            raise SkipTest("no epoll here")
        self.watch = EpollSockets(reactor)
        self.reads = []

    def add(self, name, read):
        near, far = socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        near.setblocking(False)

        def note(sound):
            self.reads.append((name, sound))
            return read(near)

        self.watch.add(near.fileno(), note)
        self.addCleanup(self.watch.remove, near.fileno())
        return far

    def test_what_becomes_readable_meanwhile_is_read_in_the_same_turn(self):
        def read(near):
            near.recv(10)
            if len(self.reads) < 5:
                far.send(b"again")

        far = self.add("a", read)
        far.send(b"once")
        self.watch.doRead()
        self.assertEqual(self.reads, [("a", True)] * 5)

    def test_what_is_left_is_read_later(self):
        far = self.add("a", lambda near: len(near.recv(4)) == 4)
        far.send(b"in three parts")
        self.watch.doRead()
        self.assertEqual(self.reads, [("a", True)] * 4)

    def test_nobody_is_called_without_need(self):
        far = self.add("a", lambda near: False)
        far.send(b"never read")
        self.watch.doRead()
        self.watch.doRead()
        self.assertEqual(self.reads, [("a", True)])

    def test_data_and_their_end(self):
        far = self.add("a", lambda near: False)
        far.send(b"last")
        far.close()
        self.watch.doRead()
        self.assertEqual(self.reads, [("a", False)])

    def test_an_end_that_comes_after_the_look(self):
        def read(near):
            if len(self.reads) == 1:
                far.close()
            near.recv(10)

        far = self.add("a", read)
        far.send(b"last")
        self.watch.doRead()
        self.assertEqual(self.reads, [("a", True), ("a", False)])

    def test_the_reactor_has_its_turn(self):
        far = self.add("a", lambda near: True)
        far.send(b"never read")
        self.watch.doRead()
        self.assertLess(len(self.reads), 1000)

    def test_reader_that_fails_harms_no_other(self):
        for name in "ab":
            self.add(name, lambda near: 1 // 0).send(b"once")
        self.watch.doRead()
        self.assertEqual(sorted(self.reads), [("a", True), ("b", True)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_the_last_socket_goes_meanwhile(self):
        far = self.add("a", lambda near: self.watch.remove(near.fileno()))
        far.send(b"last")
        self.watch.doRead()
        self.assertEqual((self.reads, self.watch in reactor.getReaders()), ([("a", True)], False))


class Receiver:
    """Keeps what comes."""

    def __init__(self):
        self.data = b""
        self.reasons = []

    def received(self, data):
        self.data += data

    def lost(self, reason, *, refused=False):
        self.reasons.append(reason)


class Silent(Connection):
    """Keeps what comes, and answers nothing."""

    def dataReceived(self, data):
        self.buffer += data


class ChannelContract:
    """What every channel keeps. Mix into a TestCase that has ``sockets()``."""

    timeout = 120

    async def connect(self):
        self.endpoint = Endpoint()
        self.endpoint.protocol = Silent
        self.endpoint.listen(self, reactor)
        made = TCP4ClientEndpoint(reactor, "127.0.0.1", self.endpoint.port.getHost().port)
        self.receiver = Receiver()
        connecting = self.sockets().connect(made)

        def take(channel):
            channel.receiver = self.receiver
            return channel

        channel = await connecting.addCallback(take)
        await until(lambda: self.endpoint.connections)
        (self.far,) = self.endpoint.connections
        return channel

    async def test_both_ways_and_an_orderly_end(self):
        channel = await self.connect()
        channel.send(b"ping")
        await until(lambda: self.far.buffer == b"ping")
        self.far.send(b"pong")
        await until(lambda: self.receiver.data == b"pong")
        channel.send(b"last")
        channel.close()
        await self.far.closed
        self.assertEqual(self.far.buffer, b"pinglast")
        await until(lambda: self.receiver.reasons)

    async def test_all_sizes_come_whole(self):
        channel = await self.connect()
        sizes = [1, SHORT - 1, SHORT, SHORT + 1, 1 << 16, (1 << 16) + 1, 3_000_000, 5]
        for number, size in enumerate(sizes):
            self.receiver.data = b""
            self.far.send(b"%d" % number * size)
            await until(lambda size=size: len(self.receiver.data) == size)
            self.assertEqual(self.receiver.data, b"%d" % number * size)
        channel.abort()
        await self.far.closed

    async def test_more_than_the_socket_takes(self):
        channel = await self.connect()
        self.far.transport.getHandle().setsockopt(SOL_SOCKET, SO_RCVBUF, 20_000)
        self.far.transport.pauseProducing()
        sent = [b"a" * 8_000_000, b"b", b"c" * 100_000]
        for data in sent:
            channel.send(data)
        self.far.transport.resumeProducing()
        await until(lambda: len(self.far.buffer) == sum(map(len, sent)))
        self.assertEqual(self.far.buffer, b"".join(sent))
        self.far.send(b"all")
        await until(lambda: self.receiver.data == b"all")
        channel.close()
        await self.far.closed
        await until(lambda: self.receiver.reasons)

    async def test_last_bytes_come_before_the_end(self):
        await self.connect()
        self.far.send(b"x" * 5000)
        self.far.transport.loseConnection()
        await until(lambda: self.receiver.reasons)
        self.assertEqual((self.receiver.data, len(self.receiver.reasons)), (b"x" * 5000, 1))

    async def test_abort_is_told_once_and_at_once(self):
        channel = await self.connect()
        channel.abort()
        channel.abort()
        await until(lambda: self.receiver.reasons)
        await self.far.closed
        channel.send(b"into the void")
        channel.close()
        await deferLater(reactor, 0)
        self.assertEqual((len(self.receiver.reasons), self.far.buffer), (1, b""))

    async def test_reset_is_told(self):
        channel = await self.connect()
        self.far.transport.abortConnection()
        await until(lambda: self.receiver.reasons)
        self.assertEqual(len(self.receiver.reasons), 1)
        channel.hurry()
        channel.close()

    async def test_pending_tells_what_was_not_delivered(self):
        channel = await self.connect()
        self.assertFalse(channel.pending())
        # By hand: the reactor must not have a turn in between.
        self.far.transport.getHandle().send(b"early")
        self.assertTrue(channel.pending())
        channel.hurry()
        await until(lambda: self.receiver.data == b"early")
        self.assertFalse(channel.pending())
        channel.close()
        await self.far.closed
        await until(lambda: self.receiver.reasons)


class PlainTests(ChannelContract, TestCase):
    def sockets(self):
        return PlainSockets()


class EpollTests(ChannelContract, TestCase):
    def sockets(self):
        if not EpollSockets.possible(reactor):
            raise SkipTest("no epoll here")
        return EpollSockets(reactor)

    async def test_full_tells_when_there_may_be_more(self):
        channel = await self.connect()
        for size, full in ((SHORT - 1, False), (SHORT, True)):
            self.receiver.data = b""
            self.far.send(b"x" * size)
            await until(lambda size=size: len(self.receiver.data) == size)
            self.assertEqual(channel.full, full)
        channel.close()
        await self.far.closed
        await until(lambda: self.receiver.reasons)

    async def test_no_room_in_the_system_leaves_it_to_twisted(self):
        class Full(EpollSockets):
            def add(self, descriptor, read):
                raise OSError("Too many open files")

        self.sockets = lambda: Full(reactor)
        await self.test_both_ways_and_an_orderly_end()
