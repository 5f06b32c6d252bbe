"""The pooled transport: connections reused, bounded, and given up when they don't answer."""

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface.verify import verifyObject

from mqhooks.delivery import Response
from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.http import pooled
from mqhooks.http.limits import MAX_HEAD
from mqhooks.http.pooled import PooledTransport
from mqhooks.http.sockets import EpollSockets, PlainSockets, sockets
from mqhooks.interfaces import ICallbackTransport
from tests.contract.transport import EarlyAnswerContract, TransportContract
from tests.endpoints import Connection
from tests.waiting import Ahead, until


class PooledContract(EarlyAnswerContract, TransportContract):
    """What the pooled transport keeps over any sockets, beyond the contract."""

    def sockets(self):
        raise NotImplementedError

    def make(self, url, **options):
        self.clock = Ahead()
        return PooledTransport(self.clock, url, by=self.sockets(), **options)

    def listen_long(self):
        """A busy machine may take longer than usual to bring what comes before a request."""
        self.patch(pooled, "QUIET", 1.0)

    async def test_never_more_connections_than_the_size(self):
        transport = self.start(lambda request: reactor.callLater(0.01, request.connection.reply), size=4)
        statuses = await gatherResults([self.defer(self.status(transport)) for _ in range(50)])
        self.assertEqual(set(statuses), {200})
        self.assertEqual(self.endpoint.most_open, 4)
        self.assertEqual(len(self.endpoint.connections), 4)
        self.assertEqual(transport.connections, 4)

    async def test_submit_calls_back_with_what_send_would_fire_with(self):
        transport = self.start(lambda request: request.connection.reply(503))
        verifyObject(ICallbackTransport, transport)
        results = []
        transport.submit(self.request(), results.append)
        await until(lambda: results)
        self.assertEqual(results[0].status, 503)
        await transport.close()
        transport.submit(self.request(), results.append)
        self.assertIsInstance(results[1], ConnectFailed)

    async def test_requests_go_out_in_order(self):
        transport = self.start(size=1)
        await gatherResults([self.defer(self.status(transport, b"%d" % number)) for number in range(20)])
        self.assertEqual([request.body for request in self.endpoint.requests], [b"%d" % number for number in range(20)])

    async def test_http_1_0_may_keep_the_connection(self):
        raw = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
        transport = self.start(lambda request: request.connection.send(raw))
        self.assertEqual([await self.status(transport) for _ in range(2)], [200, 200])
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_answers_that_end_their_connection(self):
        kinds = [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n",
        ]
        answers = iter(kinds)
        transport = self.start(lambda request: request.connection.send(next(answers)))
        self.assertEqual([await self.status(transport) for _ in kinds], [200] * 3)
        self.assertEqual(len(self.endpoint.connections), 3)

    async def test_answer_behind_an_answer_counts_for_nothing(self):
        # The lengths at which the first one fills what is received at a time, and those around them.
        for length in (478, 479, 480, 1 << 16):
            bare = b"HTTP/1.1 503 No\r\nX: \r\nContent-Length: 0\r\n\r\n"
            first = bare.replace(b"X: ", b"X: " + b"x" * (length - len(bare)))
            both = first + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            transport = self.start(lambda request, both=both: request.connection.send(both), size=1)
            statuses = await gatherResults([self.defer(self.status(transport)) for _ in range(6)])
            self.assertEqual(statuses, [503] * 6, length)
            self.assertEqual(len(self.endpoint.connections), 6)

    async def test_known_answer_behind_an_answer_counts_for_nothing(self):
        first = b"HTTP/1.1 503 No\r\nContent-Length: 439\r\n\r\n"
        first += b"x" * 439
        self.assertEqual(len(first), 479)
        both = first + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

        held = []

        def answer(request):
            if request.body == b"hold":
                held.append(request.connection)
            else:
                request.connection.send(first if request.body == b"alone" else both)

        transport = self.start(answer, size=2)
        self.assertEqual(await self.status(transport, b"alone"), 503)
        # The connection that has received much at a time is busy; the other one begins with little.
        busy = self.defer(self.status(transport, b"hold"))
        statuses = await gatherResults([self.defer(self.status(transport)) for _ in range(4)])
        self.assertEqual((statuses, len(self.endpoint.connections)), ([503] * 4, 5))
        held[0].reply()
        self.assertEqual(await busy, 200)

    async def test_what_comes_before_the_request_counts_for_nothing(self):
        self.listen_long()
        transport = self.start(lambda request: request.connection.reply(503))
        self.endpoint.on_connect = lambda connection: connection.reply(200)
        results = await gatherResults([self.defer(self.result(transport)) for _ in range(12)])
        self.assertEqual({type(result) for result in results}, {ConnectFailed})
        self.assertIn("before any request", str(results[0]))
        self.assertEqual(self.endpoint.requests, [])

    async def test_endpoint_that_closes_at_once_got_no_request(self):
        self.listen_long()
        transport = self.start()
        self.endpoint.on_connect = lambda connection: connection.transport.loseConnection()
        self.assertIsInstance(await self.result(transport), ConnectFailed)
        self.assertEqual(self.endpoint.requests, [])

    async def test_bytes_that_nobody_asked_for(self):
        transport = self.start()
        await self.result(transport)
        self.endpoint.connections[0].send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await self.endpoint.connections[0].closed
        self.assertEqual(await self.status(transport), 200)
        self.assertEqual((len(self.endpoint.requests), len(self.endpoint.connections)), (2, 2))

    async def test_another_protocol_is_a_bad_answer(self):
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        transport = self.start(lambda request: request.connection.send(switch))
        self.assertIsInstance(await self.result(transport), BadAnswer)

    async def test_doubtful_answer_has_arrived(self):
        kinds = [
            b"HTTP/1.1 200 OK\nContent-Length: 2\nRetry-After: 7\n\nok",
            b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nX : a\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nRetry-After: 7\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nRetry-After: 7\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a\x01b\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 103 Hints\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nX : a\r\nRetry-After: 7\r\n\r\nok",
        ]
        answers = iter(kinds)
        transport = self.start(lambda request: request.connection.send(next(answers)))
        for raw in kinds:
            response = await self.result(transport)
            self.assertIsInstance(response, Response, raw)
            self.assertEqual((response.status, dict(response.headers)[b"Retry-After"]), (200, b"7"), raw)
            self.assertIn(b"ok", response.body)
        # Nothing else is sent on a connection whose framing is in doubt.
        self.assertEqual(len(self.endpoint.connections), len(kinds))

    async def test_doubtful_status_line_has_not_arrived(self):
        for raw in (b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 200", b"\x00HTTP/1.1 200 OK\r\n\r\n"):

            def answer(request, raw=raw):
                request.connection.send(raw)
                request.connection.transport.loseConnection()

            self.assertIsInstance(await self.result(self.start(answer)), (BadAnswer, ConnectionBroken), raw)

    async def test_endless_head_is_not_read(self):
        transport = self.start(lambda request: request.connection.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD * 2)))
        self.assertIsInstance(await self.result(transport), BadAnswer)

    async def test_endless_interim_answers_are_not_read(self):
        raw = b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_HEAD // 20)
        transport = self.start(lambda request: request.connection.send(raw))
        self.assertIsInstance(await self.result(transport), BadAnswer)

    async def test_what_waits_for_a_connection_times_out_too(self):
        transport = self.start(lambda request: None, size=1, timeout=1.0)
        results = await gatherResults([self.defer(self.result(transport)) for _ in range(2)])
        self.assertEqual([type(result) for result in results], [DeliveryTimeout] * 2)
        self.assertEqual(self.endpoint.most_open, 1)

    async def test_idle_connection_that_was_just_closed(self):
        # The endpoint closes the connection when the second request comes: it is sent again at once, on another.
        def answer(request):
            if len(self.endpoint.requests) == 2:
                request.connection.transport.loseConnection()
            else:
                request.connection.reply()

        transport = self.start(answer)
        self.assertEqual([await self.status(transport) for _ in range(2)], [200, 200])
        self.assertEqual(len(self.endpoint.connections), 2)

    async def test_request_is_sent_again_only_once(self):
        def answer(request):
            if len(self.endpoint.requests) == 1:
                request.connection.reply()
            else:
                request.connection.transport.loseConnection()

        transport = self.start(answer)
        await self.result(transport)
        self.assertIsInstance(await self.result(transport), ConnectionBroken)
        self.assertEqual(len(self.endpoint.requests), 3)

    async def test_request_that_was_answered_in_part_is_not_sent_again(self):
        def answer(request):
            if len(self.endpoint.requests) == 1:
                request.connection.reply()
            else:
                request.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.connection.transport.loseConnection()

        transport = self.start(answer)
        await self.result(transport)
        self.assertIsInstance(await self.result(transport), ConnectionBroken)
        self.assertEqual(len(self.endpoint.requests), 2)

    async def test_old_connection_is_used_no_more(self):
        transport = self.start(size=1, max_age=100.0)
        await self.result(transport)
        self.clock.ahead = 101.0
        for _ in range(3):
            self.assertEqual(await self.status(transport), 200)
        self.assertEqual(len(self.endpoint.connections), 2)

    async def test_old_connection_that_does_not_take_the_rest_of_a_request_makes_way(self):
        class Hasty(Connection):
            def dataReceived(self, data):
                self.transport.pauseProducing()
                self.reply(413)

        transport = self.start(size=1, max_age=0.0, timeout=1.0)
        self.endpoint.protocol = Hasty
        self.assertEqual(await self.status(transport, bytes(16 << 20)), 413)
        self.endpoint.protocol = Connection
        await until(lambda: not transport.connections)
        self.assertEqual(await self.status(transport), 200)

    async def test_close_fails_what_waits(self):
        transport = self.start(lambda request: None, size=1)
        results = [self.defer(self.result(transport)) for _ in range(2)]
        await until(lambda: self.endpoint.requests)
        await transport.close()
        self.assertIsInstance(await results[0], ConnectionBroken)
        self.assertIsInstance(await results[1], ConnectFailed)
        self.assertEqual(transport.connections, 0)

    async def test_close_while_connecting(self):
        transport = self.start()
        result = self.defer(self.result(transport))
        await transport.close()
        self.assertIsInstance(await result, ConnectFailed)

    async def test_close_before_the_first_request_has_left(self):
        transport = self.start()
        result = self.defer(self.result(transport))
        await until(lambda: self.endpoint.connections)
        await transport.close()
        self.assertIsInstance(await result, (ConnectFailed, Response))

    async def test_no_timer_stays_when_nothing_is_under_way(self):
        transport = self.start(timeout=0.1)
        await self.result(transport)
        # The latest is trial's own.
        *ours, _ = sorted(call.getTime() - reactor.seconds() for call in reactor.getDelayedCalls())
        later = []
        self.clock.callLater = lambda delay, *what: later.append(delay) or reactor.callLater(delay, *what)
        await until(lambda: len(reactor.getDelayedCalls()) == 1)
        # By the timers' own times: a busy machine may be late for each.
        self.assertLess(max(ours, default=0.0) + sum(later), 1.0)

    async def test_server_of_the_standard_library(self):
        await super().test_server_of_the_standard_library()
        # Without an acknowledgement at once each request takes 44 ms; a busy machine does not hold up each ten of them.
        self.assertLess(min(self.elapsed), 0.22)


class PlainTests(PooledContract, TestCase):
    """Over Twisted's transports."""

    def sockets(self):
        return PlainSockets()


class EpollTests(PooledContract, TestCase):
    """Over sockets read and written past Twisted's transports."""

    def sockets(self):
        if not EpollSockets.possible(reactor):
            raise SkipTest("no epoll here")
        return EpollSockets(reactor)


class ChoiceTests(TestCase):
    def test_fastest_sockets_are_chosen(self):
        fast = EpollSockets.possible(reactor)
        self.assertIsInstance(sockets(reactor), EpollSockets if fast else PlainSockets)
        self.assertIsInstance(sockets(object()), PlainSockets)
