"""Ports that are still free when a process that was told of them listens."""

from random import Random
from socket import socket

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.tools.ports import LOWEST, free_port


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
