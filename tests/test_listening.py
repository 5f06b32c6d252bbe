"""Descriptions of where to listen."""

import errno
import os

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import ConfigError, ListenError
from mqhooks.support.listening import Listener, address_name, complete


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


class ListenerTests(SynchronousTestCase):
    def test_ports_that_there_are(self):
        for description in ("tcp:0", "tcp:65535:interface=10.0.0.1", "tcp:interface=::1:1", "tcp6:port=1", "unix:/x/99999"):
            Listener(MemoryReactor(), description.replace("::", "\\:\\:"))
        for description in ("tcp:99999", "tcp:65536", "tcp:-1", "tcp:interface=10.0.0.1:port=99999", "tcp6:99999"):
            error = self.assertRaises(ConfigError, Listener, MemoryReactor(), description)
            self.assertRegex(str(error), r"^tcp.*: there is no port -?\d+: ports are from 1 to 65535, and 0 is any free one$")

    def test_what_to_do(self):
        class Refusing(MemoryReactor):
            def listenTCP(self, port, factory, backlog=50, interface=""):  # noqa: N802
                raise CannotListenError(interface, port, OSError(number, os.strerror(number)))

            def listenUNIX(self, address, factory, backlog=50, mode=0o666, wantPID=0):  # noqa: N802, N803
                raise CannotListenError(None, address, OSError(number, os.strerror(number)))

        for description, number, remedy in (
            ("tcp:1", errno.EADDRINUSE, "stop what uses the address or give another one"),
            ("tcp:1", errno.EACCES, "get the privilege that a port below 1024 needs or give another one"),
            ("tcp:1", errno.EPERM, "get the privilege that a port below 1024 needs or give another one"),
            ("tcp:1", errno.EADDRNOTAVAIL, "this machine has no such address: give another one"),
            ("tcp:1", errno.EAFNOSUPPORT, "give another one"),
            ("unix:/x/y", errno.EACCES, "let this user write to its directory or give another one"),
            ("unix:/x/y", errno.ENOENT, "make its directory or give another one"),
        ):
            error = self.assertRaises(ListenError, Listener(Refusing(), description).listen, Factory())
            self.assertEqual(str(error), f"cannot listen on {description}: {os.strerror(number)}; {remedy}")


class AddressNameTests(SynchronousTestCase):
    def test_names(self):
        self.assertEqual(address_name(IPv4Address("TCP", "127.0.0.1", 8890)), "127.0.0.1:8890")
        self.assertEqual(address_name(IPv6Address("TCP", "::1", 8890)), "[::1]:8890")
        self.assertEqual(address_name(UNIXAddress(b"/run/x")), "/run/x")
        self.assertEqual(address_name(UNIXAddress(None)), "unix")
