"""Ports that are still free when a process that was told of them listens, and ports that are closed at times."""

from errno import ECONNREFUSED
from random import Random
from socket import socket

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.tools.ports import LOWEST, free_port
from tests.ports import kept_port


class PortTests(SynchronousTestCase):
    def test_one_that_is_taken_is_not_given(self):
        with socket() as taken:
            port = free_port(Random(1))
            taken.bind(("127.0.0.1", port))
            taken.listen()
            self.assertNotEqual(free_port(Random(1)), port)

    def test_no_outgoing_connection_gets_it(self):
        with socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            outgoing = []
            for _ in range(50):
                sock = socket()
                self.addCleanup(sock.close)
                sock.connect(listening.getsockname())
                outgoing.append(sock.getsockname()[1])
        for _ in range(50):
            self.assertTrue(LOWEST <= free_port() < min(outgoing))


class KeptTests(TestCase):
    """A port of the tests' own."""

    async def test_it_is_refused_whenever_nobody_listens_and_nobody_else_gets_it(self):
        port = kept_port(self)
        for _ in range(2):
            with socket() as other, socket() as client:
                self.assertRaises(OSError, other.bind, ("127.0.0.1", port))
                self.assertEqual(client.connect_ex(("127.0.0.1", port)), ECONNREFUSED)
            listening = reactor.listenTCP(port, Factory(), interface="127.0.0.1")
            with socket() as client:
                self.assertEqual(client.connect_ex(("127.0.0.1", port)), 0)
            await listening.stopListening()
