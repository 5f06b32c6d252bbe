"""Listening for VerneMQ's webhooks on real sockets."""

import os
import resource
import socket
import ssl
import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from mqhooks.errors import ConfigError, ListenError
from mqhooks.sources.webhooks.factory import WebhooksFactory
from mqhooks.sources.webhooks.listener import WebhooksService
from mqhooks.sources.webhooks.settings import WebhooksSettings
from tests.certificates import Authority, key_pem
from tests.ports import kept_port
from tests.test_sources_webhooks_protocol import TOKEN, StoringSink
from tests.vernemq import NEXT, request
from tests.waiting import until


def answers(connection, count=1):
    """Read some answers, in a thread."""
    came = b""
    while len(came) < count * len(NEXT):
        data = connection.recv(65536)
        if not data:
            break
        came += data
    return came


class WebhooksServiceTests(TestCase):
    timeout = 120

    def listen(self, *descriptions, **settings):
        self.sink = StoringSink()
        settings = WebhooksSettings(listen=descriptions, **settings)
        self.factory = WebhooksFactory(reactor, self.sink, settings)
        service = WebhooksService(reactor, settings, self.factory)
        service.privilegedStartService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        service.startService()
        return service

    def connect(self, service):
        connection = socket.create_connection(("127.0.0.1", service.addresses[0].port))
        self.addCleanup(connection.close)
        return connection

    async def test_several_endpoints(self):
        path = os.path.relpath(self.mktemp())
        service = self.listen("tcp:0", "tcp6:0", f"unix:{path}")
        self.assertEqual((service.via, service.addresses[0].host), ("webhooks", "127.0.0.1"))
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", service.addresses[0].port)),
            (socket.AF_INET6, ("::1", service.addresses[1].port)),
            (socket.AF_UNIX, path),
        ):
            with socket.socket(family) as connection:
                connection.connect(address)
                connection.sendall(request())
                self.assertEqual(await deferToThread(answers, connection), NEXT)
        self.assertEqual(len(self.sink.events), 3)

    def test_addresses_that_strangers_reach_need_a_token(self):
        for description in ("tcp:0:interface=0.0.0.0", "tcp:0:interface=", "tcp6:0:interface=\\:\\:", "haproxy:tcp:0"):
            error = self.assertRaises(ConfigError, self.listen, description)
            self.assertIn("sources.webhooks.token", str(error))
        self.listen("tcp:0:interface=0.0.0.0", token=TOKEN)

    async def test_a_taken_port_is_one_line(self):
        port = self.listen("tcp:0").addresses[0].port
        error = self.assertRaises(ListenError, self.listen, f"tcp:{port}")
        self.assertIn(f"cannot listen on tcp:{port}: Address already in use", str(error))

    async def test_head_and_body_that_come_apart(self):
        # As hackney 4 writes them: the body waits until the head is acknowledged.
        if not hasattr(socket, "TCP_QUICKACK"):
            raise SkipTest("this system does not delay acknowledgements in this way")

        def ask(connection, times):
            head, _, body = request().partition(b"\r\n\r\n")
            since = time.monotonic()
            for _ in range(times):
                connection.sendall(head + b"\r\n\r\n")
                connection.sendall(body)
                self.assertEqual(answers(connection), NEXT)
            return (time.monotonic() - since) / times

        service = self.listen("tcp:0")
        connection = self.connect(service)
        # A delayed acknowledgement holds up nearly all; a busy machine not all of these rounds.
        each = [await deferToThread(ask, connection, 50) for _ in range(3)]
        self.assertLess(min(each), 0.02)

    async def test_a_thousand_connections(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard != resource.RLIM_INFINITY else 4096, hard))
        service = self.listen("tcp:0")
        connections = [self.connect(service) for _ in range(1000)]
        for number, connection in enumerate(connections):
            connection.sendall(request(client_id=f"c{number}")[: None if number % 2 else -1])
        await until(lambda: len(self.sink.events) == 500)
        self.assertEqual(self.factory.counters.connections, 1000)
        self.assertEqual(await deferToThread(lambda: [answers(one) for one in connections[1::2]]), [NEXT] * 500)

    async def test_tls(self):
        path = Path(self.mktemp())
        certificate, key = Authority().issue(addresses=["127.0.0.1"])
        path.write_bytes(key_pem(key) + certificate)
        service = self.listen(f"ssl:0:privateKey={os.path.relpath(path)}")
        address = ("127.0.0.1", service.addresses[0].port)

        def ask(version):
            context = ssl.create_default_context(cadata=certificate.decode())
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.maximum_version = version
            context.set_alpn_protocols(["h2", "http/1.1"])
            with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
                head, _, body = request().partition(b"\r\n\r\n")
                tls.sendall(head + b"\r\n\r\n")
                tls.sendall(body)
                return answers(tls), tls.version(), tls.selected_alpn_protocol()

        self.assertEqual(await deferToThread(ask, ssl.TLSVersion.TLSv1_2), (NEXT, "TLSv1.2", "http/1.1"))
        self.assertEqual(await deferToThread(ask, ssl.TLSVersion.TLSv1_3), (NEXT, "TLSv1.3", "http/1.1"))

    async def test_what_can_be_read_in_one_turn_is_one_batch(self):
        service = self.listen("tcp:0")
        connections = [self.connect(service) for _ in range(5)]
        await until(lambda: len(self.factory.connections) == 5)
        for connection in connections:
            connection.sendall(request())
        await until(lambda: self.sink.batches)
        self.assertEqual([len(batch) for batch in self.sink.batches], [5])

    async def fill(self, connection, data):
        """Send until the other side reads no more; returns how many bytes it took."""
        connection.setblocking(False)
        sent, quiet = 0, 0
        while quiet < 20:
            try:
                sent += connection.send(data[sent % len(data) :])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                await deferLater(reactor, 0.01)
        return sent

    async def test_a_peer_that_never_reads(self):
        # Its answers must not pile up.
        service = self.listen("tcp:0")
        sent = await self.fill(self.connect(service), request("auth_on_publish", b"{}") * 500)
        self.assertLess(sent, 64 << 20)
        other = self.connect(service)
        other.sendall(request())
        self.assertEqual(await deferToThread(answers, other), NEXT)
        await service.stopService()
        self.assertEqual(self.factory.connections, set())

    async def test_a_peer_that_reads_slowly(self):
        # The socket takes a part of an answer, then nothing, then has room again: answers come whole, and in order.
        service = self.listen("tcp:0")
        asked = request("auth_on_publish", b"{}"), request("auth_on_publish", b"{}", method="GET")
        other = self.connect(service)
        other.sendall(asked[1])
        refusal = await deferToThread(other.recv, 65536)
        self.assertTrue(refusal.startswith(b"HTTP/1.1 405 "), refusal)
        slow = socket.socket()
        self.addCleanup(slow.close)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(30)
        slow.connect(other.getpeername())
        pairs = 10_000
        writing = deferToThread(slow.sendall, b"".join(asked) * pairs)

        def read():
            came, length = bytearray(), pairs * len(NEXT + refusal)
            while len(came) < length and (data := slow.recv(1000)):
                came += data
            return bytes(came)

        self.assertTrue(await deferToThread(read) == (NEXT + refusal) * pairs)
        await writing

    async def test_stopping(self):
        service = self.listen(f"tcp:{kept_port(self)}")
        self.sink.held = []
        connection, idle = self.connect(service), self.connect(service)
        address = connection.getpeername()
        connection.sendall(request())
        await until(lambda: self.sink.held)
        stopped = service.stopService()
        self.assertEqual(await deferToThread(idle.recv, 1), b"")
        self.assertRaises(ConnectionRefusedError, socket.create_connection, address)
        self.sink.held.pop().callback(None)
        await stopped
        self.assertEqual(await deferToThread(lambda: (answers(connection), connection.recv(1))), (NEXT, b""))
