"""Descriptions of where to listen."""

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.listening import address_name, complete


class CompleteTests(SynchronousTestCase):
    def test_defaults(self):
        self.assertEqual(complete("tcp:8890"), "tcp:8890:interface=127.0.0.1:backlog=1024")
        self.assertEqual(complete("tcp6:8890"), "tcp6:8890:interface=\\:\\:1:backlog=1024")
        self.assertEqual(complete("unix:/run/x.sock"), "unix:/run/x.sock:backlog=1024")
        self.assertEqual(complete("ssl:8890:privateKey=k.pem"), "ssl:8890:privateKey=k.pem:interface=127.0.0.1:backlog=1024")

    def test_what_is_given_stays(self):
        self.assertEqual(complete("tcp:port=1:interface=0.0.0.0"), "tcp:port=1:interface=0.0.0.0:backlog=1024")
        self.assertEqual(complete("tcp:1:backlog=9"), "tcp:1:backlog=9:interface=127.0.0.1")
        self.assertEqual(complete("tcp:1:0.0.0.0"), "tcp:1:0.0.0.0")
        self.assertEqual(complete("systemd:domain=INET:index=0"), "systemd:domain=INET:index=0")
        self.assertEqual(complete("tcp6:1:interface=\\:\\:"), "tcp6:1:interface=\\:\\::backlog=1024")


class AddressNameTests(SynchronousTestCase):
    def test_names(self):
        self.assertEqual(address_name(IPv4Address("TCP", "127.0.0.1", 8890)), "127.0.0.1:8890")
        self.assertEqual(address_name(IPv6Address("TCP", "::1", 8890)), "[::1]:8890")
        self.assertEqual(address_name(UNIXAddress(b"/run/x")), "/run/x")
        self.assertEqual(address_name(UNIXAddress(None)), "unix")
