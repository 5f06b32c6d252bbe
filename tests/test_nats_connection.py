"""One connection to a NATS server, without a network: what it says, and what a hostile server gets."""

import json

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener, IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mqhooks.errors import NATSError, NATSFull, NATSMalformed, NATSRefused, NATSUnavailable
from mqhooks.nats.auth import Auth
from mqhooks.nats.connection import HIGH, Connection
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.support.tls import TLSSettings
from tests.natscluster import NKey
from tests.natsfake import INFO, WELL


class Wire(StringTransport):
    """Notes what is done with it, and loses the connection as TCP does: later."""

    lost = None
    tls = 0

    def setTcpNoDelay(self, enabled):  # noqa: N802
        pass

    def abortConnection(self):  # noqa: N802
        self.lost = ConnectionLost()

    def loseConnection(self):
        self.lost = ConnectionDone()

    def startTLS(self, creator):  # noqa: N802
        self.tls += 1


class Turns(Clock):
    """What is called later, even at once, is called in another turn, as by the reactor."""

    def callLater(self, delay, *arguments, **named):  # noqa: N802
        return super().callLater(max(delay, 1e-9), *arguments, **named)


class Owner:
    """Notes what it is told."""

    def __init__(self):
        self.told_of = []
        self.errors = []
        self.messages = []
        self.writables = 0

    def greeted(self, connection):
        connection.send(b"SUB a 1\r\n")
        return {b"1": lambda message: self.messages.append(message.payload)}

    def opened(self, connection):
        self.told_of.append("opened")

    def told(self, connection):
        self.told_of.append(connection.info.server_name)

    def writable(self):
        self.writables += 1

    def warned(self, words):
        self.told_of.append(words)

    def lost(self, connection, error):
        self.errors.append(error)


class ConnectionCase(SynchronousTestCase):
    def connect(self, *, server=None, **settings):
        self.clock, self.owner, self.wire = Turns(), Owner(), Wire()
        server = server or Server("n.example", 4222)
        self.connection = Connection(self.clock, NATSSettings((server,), **settings), server, self.owner)
        self.connection.makeConnection(self.wire)
        return self.connection

    def receive(self, *pieces):
        """Have bytes come, as long as the connection is there; then let the reactor turn."""
        for piece in pieces:
            if self.wire.lost is None:
                self.connection.dataReceived(piece)
        self.turn()

    def turn(self, seconds=1e-6):
        self.clock.advance(seconds)
        if self.wire.lost is not None and not self.owner.errors:
            self.connection.connectionLost(Failure(self.wire.lost))

    def open(self, **settings):
        self.connect(**settings)
        self.receive(WELL)
        self.receive(b"PONG\r\n")
        self.assertTrue(self.connection.ready)
        self.wire.clear()

    def assert_fails(self, kind, *words):
        self.turn()
        (error,) = self.owner.errors
        self.assertIsInstance(error, kind)
        for word in ("n.example:4222", *words):
            self.assertIn(word, str(error))
        self.assertTrue(str(error).isprintable())
        self.assertFalse(self.connection.ready)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Greeting(ConnectionCase):
    def test_provides(self):
        self.connect()
        verifyObject(IPushProducer, self.connection)
        verifyObject(IHandshakeListener, self.connection)

    def test_says_who_we_are_and_waits_for_an_answer(self):
        self.connect(auth=Auth("me", "s3cret"), name="bridge")
        self.assertEqual(self.wire.value(), b"")
        self.receive(WELL[:10], WELL[10:])
        connect, *others = self.wire.value().split(b"\r\n")
        self.assertEqual(others, [b"SUB a 1", b"PING", b""])
        said = json.loads(connect.removeprefix(b"CONNECT "))
        expected = {"verbose": False, "headers": True, "no_responders": True, "user": "me", "pass": "s3cret", "name": "bridge"}
        self.assertEqual({**said, **expected}, said)
        self.assertEqual((self.connection.ready, self.owner.told_of), (False, []))
        self.receive(b"+OK\r\nPONG\r\n")
        self.assertEqual((self.connection.ready, self.owner.told_of), (True, ["opened"]))
        self.assertEqual(self.connection.info.release, (2, 15))

    def test_nkey(self):
        pair = NKey()
        self.connect(auth=Auth(seed=pair.seed))
        self.receive(INFO % b',"nonce":"abc"')
        said = json.loads(self.wire.value().partition(b"\r\n")[0].removeprefix(b"CONNECT "))
        self.assertEqual((said["nkey"], len(said["sig"])), (pair.public, 86))

    def test_nkey_that_the_server_does_not_ask_for(self):
        self.connect(auth=Auth(seed=NKey().seed))
        self.receive(WELL)
        self.assert_fails(NATSRefused, "does not support nkeys")
        self.assertEqual(self.wire.value(), b"")

    def test_server_that_is_too_old(self):
        for version, shown in (
            (b"2.10.26", "2.10.26"),
            (b"1.4.1", "1.4.1"),
            (b"", "unknown"),
            (b"new", "new"),
            (b"\\n2.x", "x"),
        ):
            self.connect(auth=Auth("me", "s3cret"))
            self.receive(WELL.replace(b"2.15.1", version))
            self.assert_fails(NATSRefused, "has version", shown, "update it to 2.11 or newer")
            self.assertEqual(self.wire.value(), b"")
        for version in (b"2.11.0", b"2.12.0-RC.1", b"3.0.0", b"10.2.0-dev"):
            self.connect()
            self.receive(WELL.replace(b"2.15.1", version))
            self.assertIn(b"CONNECT", self.wire.value())

    def test_server_without_headers(self):
        self.connect()
        self.receive(WELL.replace(b'"headers":true', b'"headers":false'))
        self.assert_fails(NATSRefused, "does not support headers", "no_header_support")

    def test_server_that_is_silent(self):
        self.connect()
        self.turn(2.1)
        self.assert_fails(NATSUnavailable, "sent no INFO within 2 s")
        self.connect()
        self.receive(WELL)
        self.turn(2.1)
        self.assert_fails(NATSUnavailable, "did not answer our login within 2 s")

    def test_refusals(self):
        for words, kind in (
            (b"'Authorization Violation'", "refused the login (Authorization Violation): check"),
            (b"'User Authentication Expired'", "refused the login (User Authentication Expired)"),
            (b"'maximum connections exceeded'", "ends the connection: maximum connections exceeded"),
            (b"'\x1b[2J\xff'", "ends the connection: "),
        ):
            self.connect()
            self.receive(WELL, b"-ERR " + words + b"\r\n")
            self.assert_fails(NATSRefused, kind)

    def test_file_that_is_gone(self):
        self.connect(auth=Auth(credsfile="/nowhere/x.creds", where="m.conf", path="outbox"))
        self.receive(INFO % b',"nonce":"abc"')
        self.assert_fails(
            NATSRefused, "cannot be used: m.conf: outbox.credsfile: /nowhere/x.creds cannot be read: No such file"
        )


class TLS(ConnectionCase):
    """What comes before TLS is not trusted. The handshake itself is tested against real servers."""

    def test_begins_behind_info(self):
        for settings, info in (
            ({}, b',"tls_required":true'),
            ({"tls": TLSSettings()}, b',"tls_available":true'),
            ({"server": Server("n.example", 4222, tls=True)}, b',"tls_required":true'),
        ):
            self.connect(auth=Auth("me", "s3cret"), **settings)
            self.receive(INFO % info)
            self.assertEqual((self.wire.tls, self.wire.value(), self.owner.errors), (1, b"", []))
            self.connection.handshakeCompleted()
            self.turn()
            self.assertIn(b'"pass":"s3cret"', self.wire.value())

    def test_nothing_may_follow_in_the_clear(self):
        info = INFO % b',"tls_required":true'
        for more in (b"MSG a 1 2\r\nhi\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'x'\r\n", b"P", b"MSG a 1 5\r\nhi", info):
            self.connect()
            self.receive(info + more)
            self.assert_fails(NATSMalformed, "it sends plain text where TLS has to begin")
            self.assertEqual((self.owner.messages, self.wire.value(), self.wire.tls), ([], b"", 0))

    def test_first(self):
        self.connect(tls_first=True)
        self.assertEqual(self.wire.tls, 1)
        self.connection.handshakeCompleted()
        self.receive(WELL)
        self.assertEqual(self.wire.tls, 1)
        self.assertIn(b"CONNECT", self.wire.value())

    def test_server_that_does_not_offer_it(self):
        for settings in ({"tls": TLSSettings()}, {"server": Server("n.example", 4222, tls=True)}):
            self.connect(auth=Auth("me", "s3cret"), **settings)
            self.receive(WELL)
            self.assert_fails(NATSRefused, "does not offer TLS")
            self.assertEqual((self.wire.tls, self.wire.value()), (0, b""))

    def test_handshake_that_does_not_end(self):
        self.connect(tls=TLSSettings())
        self.receive(INFO % b',"tls_required":true')
        self.turn(2.1)
        self.assert_fails(NATSUnavailable, "did not finish the TLS handshake")

    def test_file_that_is_gone(self):
        self.connect(tls=TLSSettings(cacertfile="/nowhere"), tls_first=True)
        self.assert_fails(NATSRefused, "/nowhere cannot be read")


class Pings(ConnectionCase):
    def test_server_that_misses_one(self):
        self.open()
        self.turn(1.0)
        self.turn()
        self.assertEqual(self.wire.value(), b"PING\r\n")
        self.receive(b"PONG\r\n")
        self.turn(1.0)
        self.turn()
        self.turn(1.0)
        self.turn()
        self.assert_fails(NATSUnavailable, "did not answer a ping within 1 s")

    def test_whatever_comes_counts(self):
        self.open()
        self.receive(b"MSG a 1 100\r\n")
        for _ in range(5):
            self.turn(1.0)
            self.receive(b"x")
        self.assertEqual(self.owner.errors, [])
        self.assertEqual(self.wire.value(), b"PING\r\n")

    def test_what_it_takes_counts(self):
        self.open()
        for _ in range(5):
            self.connection.pauseProducing()
            self.turn(1.0)
            self.connection.resumeProducing()
            self.turn()
        self.assertEqual(self.owner.errors, [])

    def test_when_we_slept_it_is_not_its_fault(self):
        self.open()
        self.turn(1.0)
        self.clock.advance(30)
        self.receive(b"PONG\r\n")
        self.turn()
        self.turn()
        self.assertEqual((self.owner.errors, self.connection.ready), ([], True))
        self.assertEqual(self.wire.value(), b"PING\r\nPING\r\n")

    def test_ours_are_answered(self):
        self.open()
        self.receive(b"PING\r\nPING\r\n")
        self.assertEqual(self.wire.value(), b"PONG\r\nPONG\r\n")

    def test_pongs_come_in_order(self):
        self.open()
        found = []
        self.connection.ping(lambda: found.append(1))
        self.connection.ping(None)
        self.connection.ping(lambda: found.append(2))
        self.receive(b"PONG\r\n")
        self.assertEqual(found, [1])
        self.receive(b"PONG\r\nPONG\r\nPONG\r\nPONG\r\n")
        self.assertEqual(found, [1, 2])


class Sending(ConnectionCase):
    def test_one_write_for_a_turn(self):
        self.open()
        writes = []
        self.wire.write = writes.append
        for number in range(3):
            self.connection.send(b"PUB a 1\r\n%d\r\n" % number)
        self.assertEqual(writes, [])
        self.turn()
        self.assertEqual(writes, [b"PUB a 1\r\n0\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\n"])

    def test_full(self):
        self.open(max_pending=3 * HIGH)
        self.assertFalse(self.connection.full)
        self.connection.pauseProducing()
        self.assertTrue(self.connection.full)
        for _ in range(3):
            self.connection.send(bytes(HIGH))
        error = self.assertRaises(NATSFull, self.connection.send, b"x")
        self.assertIn("n.example:4222 reads too slowly: 3145728 bytes wait", str(error))
        self.turn()
        self.assertEqual(self.wire.value(), b"")
        told = self.owner.writables
        self.connection.resumeProducing()
        self.assertEqual((self.connection.full, self.owner.writables, len(self.wire.value())), (False, told + 1, 3 * HIGH))

    def test_no_more_is_written_than_the_transport_takes(self):
        self.open()
        writes = []

        def write(data):
            writes.append(len(data))
            self.connection.pauseProducing()

        self.wire.write = write
        for _ in range(100):
            self.connection.send(bytes(10_000))
        self.turn()
        self.assertEqual(writes, [140_000])
        self.connection.resumeProducing()
        self.assertEqual(writes, [140_000, 140_000])

    def test_a_message_longer_than_all_that_may_wait(self):
        self.open(max_pending=1000)
        self.connection.send(bytes(5000))
        self.assertRaises(NATSFull, self.connection.send, b"x")
        self.turn()
        self.assertEqual(len(self.wire.value()), 5000)

    def test_closing_writes_what_waits(self):
        self.open()
        self.connection.pauseProducing()
        self.connection.send(b"PUB a 1\r\n1\r\n")
        self.connection.send(bytes(HIGH))
        self.connection.close()
        self.assertEqual(len(self.wire.value()), HIGH + len(b"PUB a 1\r\n1\r\n"))
        self.assertIsInstance(self.wire.lost, ConnectionDone)
        self.assertIsNone(self.wire.producer)

    def test_nothing_is_to_be_sent_once_it_closes(self):
        for close in (lambda: self.connection.close(), lambda: self.connection.fail(NATSRefused("no"))):
            self.open()
            self.connection.pauseProducing()
            self.connection.send(bytes(HIGH + 1))
            told = self.owner.writables
            close()
            self.assertEqual((self.connection.ready, self.owner.writables), (False, told))

    def test_what_comes_when_it_was_closed_before_the_server_let_us_in(self):
        for come, late in (([], WELL), ([WELL], b"PONG\r\n"), ([], WELL + b"PONG\r\n")):
            self.connect()
            self.receive(*come)
            self.wire.clear()
            self.connection.close()
            self.connection.dataReceived(late)
            self.assertEqual((self.connection.ready, self.owner.told_of, self.wire.value()), (False, [], b""))
            self.clock.advance(2.1)
            self.assertIsInstance(self.wire.lost, ConnectionLost)
            self.assert_fails(NATSUnavailable, "is closed")

    def test_answers_that_come_while_it_closes(self):
        self.open()
        answered = []
        self.connection.ping(lambda: answered.append("pong"))
        self.connection.close()
        self.connection.dataReceived(b"MSG a 1 2\r\nhi\r\nPONG\r\n")
        self.assertEqual((self.owner.messages, answered, self.connection.ready), ([b"hi"], ["pong"], False))

    def test_close_that_is_not_answered(self):
        self.open()
        self.connection.close()
        self.clock.advance(2.1)
        self.assertIsInstance(self.wire.lost, ConnectionLost)

    def test_pings_of_a_server_that_reads_nothing(self):
        self.open(max_pending=1000)
        self.connection.pauseProducing()
        for _ in range(50):
            self.receive(b"PING\r\n" * 1000)
        self.assert_fails(NATSFull, "reads too slowly")

    def test_pong_has_room_when_publishing_has_none(self):
        self.open(max_pending=1000)
        self.connection.pauseProducing()
        self.connection.send(bytes(1000))
        self.receive(b"PING\r\n")
        self.assertEqual(self.owner.errors, [])


hostile = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(
        [
            WELL,
            b"PONG\r\n",
            b"PING\r\n",
            b"MSG a 1 2\r\nhi\r\n",
            b"HMSG a 1 12 12\r\nNATS/1.0\r\n\r\n\r\n",
            b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
            b"-ERR\r\n",
            b"INFO\r\n",
            b"INFO {}\r\n",
            b"INFO []\r\n",
            b'INFO {"max_payload":"x"}\r\n',
            b'INFO {"max_payload":-1,"version":"2.15.1","headers":true}\r\n',
            b'INFO {"connect_urls":[null]}\r\n',
            b'INFO {"connect_urls":["x:y:z",""],"version":"2.11.1","headers":true}\r\n',
            b"INFO " + b'{"a":' * 5000 + b"\r\n",
            b'INFO {"a":' + b"[" * 5000 + b"]" * 5000 + b"}\r\n",
            b"INFO \xff\xfe\r\n",
            b'INFO {"version":"\xff"}\r\n',
            INFO % b',"tls_required":true',
            b"+OK\r\n",
            b"\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"MSG a 1 99999999\r\n",
        ]
    ),
)


class Hostile(ConnectionCase):
    @given(st.lists(hostile, max_size=8), st.booleans())
    @example([WELL, b"PONG\r\n", b'INFO {"a":' + b"[" * 5000 + b"]" * 5000 + b"}\r\n"], False)
    @example([WELL, b"PONG\r\n", b"INFO " + b'{"a":' * 5000 + b"\r\n"], True)
    def test_one_clear_error_and_no_traceback(self, parts, byte_by_byte):
        self.connect()
        data = b"".join(parts)
        self.receive(*([data[at : at + 1] for at in range(len(data))] if byte_by_byte else parts))
        for _ in range(5):
            self.turn(1.0)
            self.turn()
        (error,) = self.owner.errors
        self.assertIsInstance(error, NATSError)
        self.assertIn("n.example:4222", str(error))
        self.assertTrue(str(error).isprintable(), str(error))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_something_else_than_nats(self):
        for data in (b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail.example ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            self.connect()
            self.receive(data)
            self.assert_fails(NATSMalformed, "does not speak the protocol", "it may be something other than NATS")

    def test_how_it_ends(self):
        self.open()
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.assertIn("n.example:4222 closed the connection", str(self.owner.errors[0]))
        self.open()
        self.connection.connectionLost(Failure(ConnectionLost()))
        self.assertIn("n.example:4222 is gone", str(self.owner.errors[0]))
