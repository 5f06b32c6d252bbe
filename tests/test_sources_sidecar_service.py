"""Listening for VerneMQ on real sockets."""

import os
import resource
import socket
import ssl
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from mqhooks.errors import ConfigError, ListenError
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.sources.sidecar import protocol
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from tests.certificates import Authority, key_pem
from tests.frames import envelope, framed
from tests.ports import kept_port
from tests.test_sources_sidecar_protocol import Sink, publish

CLIENTS = ("c0", "c1", "c2", "c3", "c4")


class SidecarServiceTests(TestCase):
    timeout = 120

    def listen(self, *descriptions):
        self.sink = Sink()
        self.factory = SidecarFactory(reactor, self.sink)
        service = SidecarService(reactor, descriptions, self.factory)
        service.privilegedStartService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        service.startService()
        return service

    async def until(self, condition):
        while not condition():
            await deferLater(reactor, 0.01)

    async def test_listens_on_loopback(self):
        (address,) = self.listen("tcp:0").addresses
        self.assertEqual(address.host, "127.0.0.1")

    async def test_several_endpoints(self):
        path = os.path.relpath(self.mktemp())
        service = self.listen("tcp:0", "tcp6:0", f"unix:{path}")
        frame = framed(envelope(OnPublish(client_id="c")))
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", service.addresses[0].port)),
            (socket.AF_INET6, ("::1", service.addresses[1].port)),
            (socket.AF_UNIX, path),
        ):
            with socket.socket(family) as connection:
                connection.connect(address)
                connection.sendall(frame)
                connection.sendall(framed(b"\xff"))
        await self.until(lambda: (self.factory.counters.undecodable, len(self.sink.events)) == (3, 3))
        await self.until(lambda: not self.factory.connections)

    async def test_tls(self):
        path = Path(self.mktemp())
        certificate, key = Authority().issue(addresses=["127.0.0.1"])
        path.write_bytes(key_pem(key) + certificate)
        service = self.listen(f"ssl:0:privateKey={os.path.relpath(path)}")
        context = ssl.create_default_context(cadata=certificate.decode())
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        address = ("127.0.0.1", service.addresses[0].port)

        def send():
            with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
                tls.sendall(publish(0) + publish(1, 200_000) + publish(2)[:9])
                # Closed at once, it would be reset: the server's session tickets are not read yet.
                tls.unwrap()

        await deferToThread(send)
        await self.until(lambda: self.factory.counters.truncated and len(self.sink.events) == 2)
        self.assertEqual([event.client_id for event in self.sink.events], ["c0", "c1"])

    async def test_behind_a_proxy_that_says_for_whom(self):
        service = self.listen("haproxy:tcp:0")
        connection = socket.create_connection(("127.0.0.1", service.addresses[0].port))
        self.addCleanup(connection.close)
        connection.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 8890\r\n" + publish(0))
        await self.until(lambda: self.sink.events)
        (protocol,) = self.factory.connections
        self.assertEqual((protocol.peer, self.factory.counters.frames), ("192.0.2.7:4711", 1))

    async def test_a_thousand_connections_at_once(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard != resource.RLIM_INFINITY else 4096, hard))
        service = self.listen("tcp:0")
        address = ("127.0.0.1", service.addresses[0].port)
        # None is accepted before all are there: the reactor does not run meanwhile, so the backlog holds them.
        connections = []
        for _ in range(1000):
            connection = socket.socket()
            self.addCleanup(connection.close)
            connection.settimeout(10)
            connection.connect(address)
            connections.append(connection)
        frame = framed(envelope(OnPublish(client_id="c")))
        for connection in connections:
            connection.sendall(frame)
        await self.until(lambda: len(self.sink.events) == 1000)
        self.assertEqual(self.factory.counters.connections, 1000)

    async def test_a_taken_port_is_one_line(self):
        port = self.listen("tcp:0").addresses[0].port
        service = SidecarService(reactor, [f"tcp:{port}"], self.factory)
        error = self.assertRaises(ListenError, service.privilegedStartService)
        self.assertEqual(
            str(error),
            f"cannot listen on tcp:{port}: Address already in use; stop what uses the address or give another one",
        )

    def test_a_wrong_description_is_one_line(self):
        factory = SidecarFactory(reactor, Sink())
        for description in ("8890", "nonsense:1", "tcp:x", "ssl:0:privateKey=/nowhere.pem", ""):
            error = self.assertRaises(ConfigError, SidecarService, reactor, [description], factory)
            self.assertNotIn("\n", str(error))
            self.assertIn("not a listening endpoint", str(error))

    async def test_stopping_closes_listener_and_connections(self):
        service = self.listen(f"tcp:{kept_port(self)}")
        address = ("127.0.0.1", service.addresses[0].port)
        connection = socket.create_connection(address)
        self.addCleanup(connection.close)
        connection.sendall(framed(envelope(OnPublish())) + b"\0\0")
        await self.until(lambda: self.sink.events)
        await service.stopService()
        self.assertEqual(connection.recv(1), b"")
        self.assertEqual(self.factory.counters.truncated, 1)
        self.assertRaises(ConnectionRefusedError, socket.create_connection, address)

    async def test_stopping_closes_connections_even_if_somebody_has_removed_the_socket(self):
        path = os.path.relpath(self.mktemp())
        service = self.listen("tcp:0", f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            await self.until(lambda: self.factory.connections)
            os.unlink(path)
            with capturedLogs() as logged:
                await service.stopService()
            self.assertEqual(connection.recv(1), b"")
        self.assertIn(f"the socket {path} cannot be removed: No such file or directory", map(formatEvent, logged))

    async def test_stopping_does_not_wait_for_a_connection_that_is_not_read(self):
        service = self.listen("tcp:0")
        self.sink.held = []
        connection = socket.create_connection(("127.0.0.1", service.addresses[0].port))
        self.addCleanup(connection.close)
        self.factory.max_frame = 1 << 24
        connection.sendall(framed(envelope(OnPublish(payload=b"x" * (3 << 20)))))
        await self.until(lambda: self.sink.events)
        await service.stopService()
        self.assertEqual(self.factory.connections, set())

    async def connect(self, service, count):
        connections = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", service.addresses[0].port))
            self.addCleanup(connection.close)
            connections.append(connection)
        await self.until(lambda: len(self.factory.connections) == count)
        return connections

    async def test_what_can_be_read_in_one_turn_is_one_batch(self):
        connections = await self.connect(self.listen("tcp:0"), 5)
        for number, connection in enumerate(connections):
            connection.sendall(publish(number))
        await self.until(lambda: self.sink.batches)
        self.assertEqual([sorted(event.client_id for event in batch) for batch in self.sink.batches], [[*CLIENTS]])

    async def test_a_batch_is_of_bounded_size(self):
        connections = await self.connect(self.listen("tcp:0"), 5)
        for number, connection in enumerate(connections):
            connection.sendall(publish(number, 40_000))
        await self.until(lambda: len(self.sink.events) == 5)
        self.assertEqual([len(batch) for batch in self.sink.batches], [2, 2, 1])

    async def test_the_brake_holds_within_a_turn(self):
        connections = await self.connect(self.listen("tcp:0"), 5)
        self.sink.held = []
        self.factory.max_frame = 1 << 20
        self.patch(protocol, "UNACCEPTED_LIMIT", 50_000)
        for number, connection in enumerate(connections):
            connection.sendall(publish(number, 40_000))
        await self.until(lambda: self.factory.braked)
        await deferLater(reactor, 0.05)
        self.assertEqual([len(batch) for batch in self.sink.batches], [2])
        connections[4].close()
        self.sink.held.pop().callback(None)
        await self.until(lambda: len(self.sink.events) == 4)
        self.sink.held.pop().callback(None)
        await self.until(lambda: len(self.sink.events) == 5)
        self.assertEqual(sorted(event.client_id for event in self.sink.events), [*CLIENTS])

    async def test_backpressure_reaches_the_socket(self):
        service = self.listen("tcp:0")
        self.sink.held = []
        connection = socket.create_connection(("127.0.0.1", service.addresses[0].port))
        self.addCleanup(connection.close)
        connection.setblocking(False)
        frames = framed(envelope(OnPublish(client_id="c", payload=b"x" * 60_000))) * 20
        sent = quiet = 0
        while quiet < 20:
            try:
                sent += connection.send(frames[sent % len(frames) :])
                quiet = 0
            except BlockingIOError:
                quiet += 1
            await deferLater(reactor, 0.01)
        stalled = len(self.sink.events)
        self.assertLess(stalled * 60_000, 8 << 20)
        self.sink.held, held = None, self.sink.held
        for accepted in held:
            accepted.callback(None)
        await self.until(lambda: len(self.sink.events) == sent // (len(frames) // 20))
        self.assertGreater(len(self.sink.events), stalled)
