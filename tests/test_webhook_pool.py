"""Connections to one endpoint: reused, bounded, and given up when they don't answer."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.webhook.connection import MAX_BODY, MAX_HEAD, Answer, Exchange, HTTPConnection
from mqhooks.webhook.pool import ConnectionPool
from tests.endpoints import Connection, Endpoint

REQUEST = b"POST /hook HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"


class PoolTests(TestCase):
    """Against a real server on loopback."""

    timeout = 10

    def start(self, answer=None, *, size=4, seconds=5.0):
        self.endpoint = Endpoint(answer)
        self.endpoint.listen(self, reactor)
        return self.connect(self.endpoint.port.getHost().port, size, seconds)

    def connect(self, port, size=4, seconds=5.0):
        pool = ConnectionPool(reactor, HostnameEndpoint(reactor, b"127.0.0.1", port), "http://h", size, seconds)
        self.addCleanup(pool.close)
        return pool

    def send(self, pool, keep=1024):
        result = Deferred()
        pool.send(REQUEST, result.callback, keep)
        return result

    def send_long(self, pool, body):
        result = Deferred()
        pool.send(b"POST /hook HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), result.callback, 1024)
        return result

    async def test_long_requests(self):
        pool = self.start(size=1)
        bodies = [Random(number).randbytes(3_000_000 + number) for number in range(3)]
        results = [self.send_long(pool, body) for body in bodies]
        for result in [*results, self.send(pool)]:
            self.assertEqual((await result).status, 200)
        self.assertEqual([request.body for request in self.endpoint.requests], [*bodies, b"{}"])
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_an_answer_before_the_end_of_a_long_request(self):
        class Hasty(Connection):
            def dataReceived(self, data):
                self.transport.pauseProducing()
                self.reply(413)

        pool = self.start()
        self.endpoint.protocol = Hasty
        self.assertEqual((await self.send_long(pool, bytes(64 << 20))).status, 413)
        self.endpoint.protocol = Connection
        self.assertEqual((await self.send(pool)).status, 200)
        self.endpoint.connections[0].transport.resumeProducing()
        await self.endpoint.connections[0].closed
        self.assertEqual(len(self.endpoint.connections), 2)

    async def test_a_long_request_that_breaks_off(self):
        class Rude(Connection):
            def dataReceived(self, data):
                self.transport.abortConnection()

        pool = self.start()
        self.endpoint.protocol = Rude
        self.assertIsInstance(await self.send_long(pool, bytes(64 << 20)), ConnectionBroken)
        self.endpoint.protocol = Connection
        self.assertEqual((await self.send(pool)).status, 200)

    async def test_answer(self):
        pool = self.start(lambda request: request.connection.reply(418, b"teapot", [("Retry-After", "7")]))
        answer = await self.send(pool)
        self.assertEqual((answer.status, answer.body, answer.length, answer.complete), (418, b"teapot", 6, True))
        self.assertIn((b"Retry-After", b"7"), answer.headers)

    async def test_a_connection_is_reused(self):
        pool = self.start()
        for _ in range(20):
            self.assertEqual((await self.send(pool)).status, 200)
        self.assertEqual(len(self.endpoint.connections), 1)
        self.assertEqual(pool.connections, 1)

    async def test_never_more_connections_than_the_size(self):
        pool = self.start(lambda request: reactor.callLater(0.01, request.connection.reply))
        answers = await gatherResults([self.send(pool) for _ in range(50)])
        self.assertEqual({answer.status for answer in answers}, {200})
        self.assertEqual(self.endpoint.most_open, 4)
        self.assertEqual(len(self.endpoint.connections), 4)

    async def test_answers_of_all_kinds_leave_the_connection_usable(self):
        kinds = [
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        ]
        answers = iter(kinds)
        pool = self.start(lambda request: request.connection.send(next(answers)))
        received = [await self.send(pool) for _ in kinds]
        self.assertEqual([answer.status for answer in received], [204, 200, 200, 202, 200, 304])
        self.assertEqual([answer.body for answer in received], [b"", b"abcde", b"x", b"", b"", b""])
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_answers_that_end_their_connection(self):
        kinds = [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n",
        ]
        answers = iter(kinds)
        pool = self.start(lambda request: request.connection.send(next(answers)))
        for _ in kinds:
            self.assertEqual((await self.send(pool)).status, 200)
        self.assertEqual(len(self.endpoint.connections), 3)

    async def test_a_body_that_ends_with_its_connection(self):
        def answer(request):
            request.connection.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
            request.connection.transport.loseConnection()

        answer = await self.send(self.start(answer))
        self.assertEqual((answer.status, answer.body), (200, b"until the end"))

    async def test_a_status_stands_whatever_becomes_of_the_body(self):
        def answer(request):
            request.connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            request.connection.transport.loseConnection()

        answer = await self.send(self.start(answer))
        self.assertEqual((answer.status, answer.complete), (200, False))

    async def test_a_slow_body_does_not_undo_a_status(self):
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1"
        pool = self.start(lambda request: request.connection.send(half), seconds=0.2)
        self.assertEqual((await self.send(pool)).status, 200)
        await self.endpoint.connections[0].closed

    async def test_long_bodies_are_not_kept(self):
        pool = self.start(lambda request: request.connection.reply(500, b"x" * 100_000))
        for _ in range(3):
            answer = await self.send(pool, keep=10)
            self.assertEqual((answer.body, answer.length, answer.complete), (b"x" * 10, 100_000, False))
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_endless_bodies_are_not_read(self):
        pool = self.start(lambda request: request.connection.reply(500, b"x" * (MAX_BODY * 3)))
        answer = await self.send(pool)
        self.assertEqual(answer.status, 500)
        self.assertLess(answer.length, MAX_BODY * 2)
        await self.endpoint.connections[0].closed

    async def test_endless_heads_are_not_read(self):
        pool = self.start(lambda request: request.connection.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD * 2)))
        self.assertIsInstance(await self.send(pool), BadAnswer)

    async def test_garbage(self):
        pool = self.start(lambda request: request.connection.send(b"SSH-2.0-OpenSSH_9.2\r\n"))
        self.assertIsInstance(await self.send(pool), BadAnswer)
        self.assertIsInstance(await self.send(pool), BadAnswer)
        self.assertEqual(len(self.endpoint.connections), 2)

    async def test_another_protocol(self):
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        self.assertIsInstance(await self.send(self.start(lambda request: request.connection.send(switch))), BadAnswer)

    async def test_no_answer(self):
        pool = self.start(lambda request: None, seconds=0.2)
        error = await self.send(pool)
        self.assertIsInstance(error, DeliveryTimeout)
        self.assertEqual(str(error), "http://h: no answer within 0.2 s")
        await self.endpoint.connections[0].closed

    async def test_what_waits_for_a_connection_times_out_too(self):
        pool = self.start(lambda request: None, size=1, seconds=0.2)
        first, second = await gatherResults([self.send(pool), self.send(pool)])
        self.assertIsInstance(first, DeliveryTimeout)
        self.assertIsInstance(second, DeliveryTimeout)
        self.assertEqual(self.endpoint.most_open, 1)

    async def test_closed_without_an_answer(self):
        pool = self.start(lambda request: request.connection.transport.loseConnection())
        self.assertIsInstance(await self.send(pool), ConnectionBroken)
        self.assertEqual(len(self.endpoint.requests), 1)

    async def test_reset_without_an_answer(self):
        pool = self.start(lambda request: request.connection.transport.abortConnection())
        self.assertIsInstance(await self.send(pool), ConnectionBroken)

    async def test_an_idle_connection_that_was_just_closed(self):
        # The endpoint closes the connection when the second request comes: it is sent again at once, on another.
        def answer(request):
            if len(self.endpoint.requests) == 2:
                request.connection.transport.loseConnection()
            else:
                request.connection.reply()

        pool = self.start(answer)
        self.assertEqual([(await self.send(pool)).status for _ in range(2)], [200, 200])
        self.assertEqual(len(self.endpoint.connections), 2)

    async def test_sent_again_only_once(self):
        def answer(request):
            if len(self.endpoint.requests) == 1:
                request.connection.reply()
            else:
                request.connection.transport.loseConnection()

        pool = self.start(answer)
        await self.send(pool)
        self.assertIsInstance(await self.send(pool), ConnectionBroken)
        self.assertEqual(len(self.endpoint.requests), 3)

    async def test_bytes_that_nobody_asked_for(self):
        pool = self.start()
        await self.send(pool)
        self.endpoint.connections[0].send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await self.endpoint.connections[0].closed
        self.assertEqual((await self.send(pool)).status, 200)

    async def test_refused(self):
        endpoint = Endpoint()
        endpoint.listen(self, reactor)
        port = endpoint.port.getHost().port
        await endpoint.port.stopListening()
        pool = self.connect(port)
        errors = await gatherResults([self.send(pool) for _ in range(10)])
        self.assertEqual({type(error) for error in errors}, {ConnectFailed})
        self.assertIn("refused", str(errors[0]))

    async def test_close(self):
        pool = self.start(lambda request: None, size=1)
        results = [self.send(pool), self.send(pool)]
        while not self.endpoint.requests:
            await deferLater(reactor, 0.01)
        await pool.close()
        self.assertIsInstance(await results[0], ConnectionBroken)
        self.assertIsInstance(await results[1], ConnectFailed)
        self.assertIsInstance(await self.send(pool), ConnectFailed)
        self.assertEqual(pool.connections, 0)

    async def test_close_while_connecting(self):
        pool = self.start()
        result = self.send(pool)
        await pool.close()
        self.assertIsInstance(await result, ConnectFailed)

    async def test_what_nobody_asked_for(self):
        pool = self.start()
        await self.send(pool)
        (connection,) = pool._connections
        connection.dataReceived(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        # It is closed in the reactor's next turn only, and must not be used before.
        self.assertEqual((await self.send(pool)).status, 200)
        self.assertEqual((len(self.endpoint.requests), len(self.endpoint.connections)), (2, 2))

    async def test_no_timer_stays_when_nothing_is_under_way(self):
        pool = self.start(seconds=0.1)
        await self.send(pool)
        await deferLater(reactor, 0.2)
        self.assertNotIn("_look", str(reactor.getDelayedCalls()))


class Owner:
    """Notes what a connection reports."""

    readiness = None

    def __init__(self):
        self.events = []
        self.known = {}

    def ended(self, exchange, result):
        exchange.done(result)

    def answered(self, connection, exchange, answer):
        self.events.append("answered")
        exchange.done(answer)

    def unfit(self, connection):
        self.events.append("unfit")

    def lost(self, connection):
        self.events.append("lost")

    def resend(self, exchange):
        self.events.append("resend")


class ConnectionTests(SynchronousTestCase):
    """Any bytes in any pieces."""

    def exchange(self, pieces):
        owner, results = Owner(), []
        connection = HTTPConnection(owner)
        connection.makeConnection(StringTransport())
        connection.start(Exchange(REQUEST, results.append, 100, Clock().seconds()))
        for piece in pieces:
            connection.dataReceived(piece)
        return owner, results, connection

    @given(st.lists(st.integers(0, 200), max_size=10))
    def test_any_chunking_gives_the_same_answer(self, cuts):
        stream = b"HTTP/1.1 201 Created\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        cuts = sorted(min(cut, len(stream)) for cut in cuts)
        pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        owner, results, _ = self.exchange([piece for piece in pieces if piece])
        self.assertEqual(
            results, [Answer(201, [(b"X", b"y"), (b"Transfer-Encoding", b"chunked")], b"hello world", 11, complete=True)]
        )
        self.assertEqual(owner.events, ["answered"])

    @given(st.lists(st.binary(min_size=1), max_size=5))
    def test_random_bytes_never_escape(self, pieces):
        _, results, connection = self.exchange([b"HTTP/1.1 ", *pieces])
        connection.connectionLost()
        self.assertLessEqual(len(results), 1)
        self.assertIsNone(connection.exchange)
