"""Who takes the admin port's places, its memory and its time, and who gets an answer nevertheless."""

import socket

from twisted.internet import reactor
from twisted.internet.task import LoopingCall

from mqhooks.admin import connections, metrics, site
from tests.admin import AdminCase
from tests.waiting import until

HEAD = b"GET %b HTTP/1.1\r\nHost: localhost\r\n"
PATIENCE = 5.0


class ConnectionsCase(AdminCase):
    async def start(self, *names, **settings):
        await super().start(*names, **settings)
        self.trickles = []
        self.addCleanup(lambda: [call.stop() for call in self.trickles if call.running])

    def open(self, *parts):
        """Connect, and send something; what comes back is not read, unless a test does."""
        client = socket.socket()
        self.addCleanup(client.close)
        # The system holds little of what is not read, and that is soon there.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.connect(("127.0.0.1", self.port))
        client.setblocking(False)
        for part in parts:
            client.sendall(part)
        return client

    def trickle(self, client, piece, every=0.05):
        """Send a piece now and then, until the connection is closed."""

        def send():
            try:
                client.send(piece)
            except OSError:
                call.stop()

        call = LoopingCall(send)
        call.start(every)
        self.trickles.append(call)
        return call

    async def asked(self, path="/healthz"):
        """Ask as monitoring does: by a connection of its own, and not for long."""
        began = reactor.seconds()
        code, text = await self.ask(path)
        self.assertEqual(code, 200)
        self.assertLess(reactor.seconds() - began, PATIENCE)
        return text

    def count_renders(self):
        """Count how often /metrics is rendered from now on; has to be called before the start."""
        renders = []

        class Counted(metrics.Metrics):
            def __call__(self, call):
                renders.append(call)
                return super().__call__(call)

        self.patch(site, "Metrics", Counted)
        return renders


class PlacesTests(ConnectionsCase):
    async def test_slow_requests_shut_nobody_out(self):
        await self.start()
        clients = [self.open(HEAD % b"/healthz", b"X-Slow: ") for _ in range(site.CONNECTIONS + 20)]
        for client in clients:
            self.trickle(client, b"x", 0.5)
        for path in ("/healthz", "/metrics", "/api/status", "/"):
            self.assertTrue(await self.asked(path))

    async def test_silent_and_idle_connections_shut_nobody_out(self):
        self.patch(site, "CONNECTIONS", 8)
        await self.start()
        half = b"POST /api/dead-letters/purge HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"
        for parts in ((), (HEAD % b"/healthz", b"\r\n"), (half,)):
            for _ in range(site.CONNECTIONS):
                self.open(*parts)
            self.assertTrue(await self.asked())

    async def test_the_one_that_has_asked_nothing_for_longest_makes_room(self):
        self.patch(site, "CONNECTIONS", 3)
        await self.start()
        first, second, third = [await self.follow("/healthz") for _ in range(3)]
        for follower in (first, second, third):
            await until(lambda follower=follower: follower.buffer.endswith(b"}"))
        first.buffer = b""
        first.transport.write(HEAD % b"/healthz" + b"\r\n")
        await until(lambda: first.buffer)
        await self.asked()
        await second.closed
        self.assertFalse(first.closed.called or third.closed.called)

    async def test_a_stream_that_is_read_keeps_its_place(self):
        self.patch(site, "CONNECTIONS", 3)
        await self.start()
        watcher = await self.follow("/api/stream")
        await until(lambda: watcher.heard("status"))
        for _ in range(10):
            self.open(HEAD % b"/healthz")
            await self.asked()
        seen = len(watcher.heard("status"))
        await until(lambda: len(watcher.heard("status")) > seen)

    async def test_a_request_has_to_come_within_a_time(self):
        self.patch(connections, "COMPLETE", 0.5)
        await self.start()
        post = b"POST /api/dead-letters/purge HTTP/1.1\r\nHost: localhost\r\nX-Mqhooks: 1\r\n"
        heads = (
            HEAD % b"/healthz" + b"X-Slow: ",
            b"GET /",
            post + b"Content-Length: 60000\r\n\r\n",
            post + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n",
        )
        calls = [self.trickle(self.open(head), b"x") for head in heads]
        # One that was answered, and sends the next one slowly.
        answered = self.open(HEAD % b"/healthz", b"\r\n")
        await until(lambda: received(answered))
        calls.append(self.trickle(answered, b"G"))
        await until(lambda: not any(call.running for call in calls))

    async def test_a_connection_without_a_request_is_closed(self):
        self.patch(connections, "IDLE", 0.3)
        await self.start()
        idle = await self.follow("/healthz")
        await until(lambda: idle.buffer)
        await idle.closed
        silent = self.open()
        await until(lambda: received(silent) == b"")


class AnswersTests(ConnectionsCase):
    async def test_requests_sent_ahead_wait_until_answers_are_taken(self):
        renders = self.count_renders()
        await self.start()
        number = 4000
        client = self.open()
        sent = 0
        ahead = (HEAD % b"/metrics" + b"\r\n") * number

        async def stands_still():
            nonlocal sent
            before = len(renders)
            sent += send_some(client, ahead[sent:])
            for _ in range(20):
                await self.asked()
            return renders and len(renders) == before

        await until(stands_still)
        self.assertLess(len(renders), number // 2)
        # It is answered in full once it reads.
        answered, rest = 0, b""

        def all_answered():
            nonlocal sent, answered, rest
            sent += send_some(client, ahead[sent:])
            *answers, rest = (rest + (received(client) or b"")).split(b"HTTP/1.1 200 OK")
            answered += len(answers)
            return answered == number

        await until(all_answered)

    async def test_many_who_ask_ahead_hold_up_neither_deliveries_nor_monitoring(self):
        await self.start()
        for _ in range(60):
            send_some(self.open(), (HEAD % b"/metrics" + b"\r\n") * 1000)
        for number in range(1, 4):
            self.publish(10)
            await until(lambda number=number: self.sinks[0].outbox.counts.delivered == 10 * number, PATIENCE)
            await self.asked()

    async def test_what_all_have_not_taken_is_limited(self):
        self.patch(connections, "MOST_UNTAKEN", 60_000)
        renders = self.count_renders()
        await self.start()
        clients = [self.open() for _ in range(20)]
        for client in clients:
            send_some(client, (HEAD % b"/metrics" + b"\r\n") * 2000)

        async def some_are_closed():
            before = len(renders)
            await self.asked()
            return len(renders) == before and sum(map(was_cut_off, clients)) >= 10

        await until(some_are_closed)

    async def test_who_does_not_read_an_answer_is_cut_off(self):
        self.patch(connections, "TAKEN", 0.5)
        await self.start()
        client = self.open()
        send_some(client, (HEAD % b"/metrics" + b"\r\n") * 2000)
        await until(lambda: was_cut_off(client))

    async def test_who_leaves_before_the_turn_is_not_answered(self):
        renders = self.count_renders()
        await self.start()
        for _ in range(30):
            send_some(self.open(), (HEAD % b"/metrics" + b"\r\n") * 3)
            self.open(HEAD % b"/metrics", b"\r\n").close()
        await self.asked()
        await until(lambda: len(renders) >= 90)
        await self.asked()
        self.assertEqual(self.flushLoggedErrors(), [])


def send_some(client, data):
    """Send as much as the socket takes; how many bytes."""
    try:
        return client.send(data)
    except BlockingIOError:
        return 0


def received(client):
    """What has come: ``None`` for nothing yet, no bytes for the end."""
    try:
        return client.recv(1 << 20)
    except BlockingIOError:
        return None


def was_cut_off(client):
    """Whether the connection was aborted; what it has not read stays unread."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSED


CLOSED = 7
"""Linux's TCP_CLOSE."""
