"""The NATS client and real servers: logging in, requests, and what happens when a server goes."""

from pathlib import Path
from random import Random

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.trial.unittest import TestCase

from mqhooks.errors import (
    ConfigError,
    NATSDisconnected,
    NATSError,
    NATSFull,
    NATSNoResponders,
    NATSRefused,
    NATSTimeout,
    NATSTooLong,
    NATSUnavailable,
)
from mqhooks.nats.auth import Auth
from mqhooks.nats.client import NATSClient
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.support.tls import TLSSettings
from mqhooks.tools.ports import free_port
from tests.certificates import Authority, key_pem, pem
from tests.natscluster import ACCOUNT, OPERATOR, Cluster, NKey, credentials
from tests.natsfake import INFO, WELL, Fake
from tests.waiting import until


class ClientCase(TestCase):
    timeout = 300

    async def cluster(self, size=1, **options):
        self.nodes = await Cluster(self, size, **options).start()
        return self.nodes.servers

    def make(self, servers, **settings):
        self.connected, self.reasons, self.warnings = [], [], []
        client = NATSClient(
            reactor,
            NATSSettings(servers, **settings),
            connected=self.connected.append,
            disconnected=self.reasons.append,
            warned=self.warnings.append,
            random=Random(7),
        )
        self.addCleanup(client.close)
        client.start()
        client.start()
        return client

    async def client(self, servers, **settings):
        client = self.make(servers, **settings)
        await client.when_connected()
        return client

    async def assert_refused(self, servers, *words, **settings):
        """No connection comes about, for this reason, and it is tried again."""
        client = self.make(servers, max_backoff=0.01, **settings)
        await until(lambda: len(self.reasons) > 1)
        self.assertEqual((self.connected, client.server), ([], None))
        for word in words:
            self.assertIn(word, str(self.reasons[0]))
        for reason in self.reasons:
            self.assertIsInstance(reason, NATSError)
            self.assertTrue(str(reason).isprintable())
        self.assertIs(client.problem, self.reasons[-1])
        await client.close()


class Messages(ClientCase):
    async def test_publish_and_subscribe(self):
        client = await self.client(await self.cluster())
        found = []
        client.subscribe("a.*", found.append)
        client.publish("a.1", b"one")
        client.publish("a.é", b"two\r\n", headers={"X-Y": "é: z"}, reply="r.1")
        client.publish("b.1", b"three")
        await client.flush()
        self.assertEqual([message.subject for message in found], ["a.1", "a.é"])
        self.assertEqual([message.payload for message in found], [b"one", b"two\r\n"])
        self.assertEqual((found[1].headers, found[1].reply, found[0].headers), ({"X-Y": "é: z"}, "r.1", {}))

    async def test_limit_and_queue_and_unsubscribe(self):
        client = await self.client(await self.cluster())
        found, shared = [], []
        client.subscribe("a", found.append, limit=2)
        for _ in range(3):
            client.subscribe("a", shared.append, queue="workers")
        other = client.subscribe("a", found.append)
        client.unsubscribe(other)
        client.unsubscribe(other)
        for number in range(5):
            client.publish("a", b"%d" % number)
        await client.flush()
        self.assertEqual([message.payload for message in found], [b"0", b"1"])
        self.assertEqual([message.payload for message in shared], [b"0", b"1", b"2", b"3", b"4"])

    async def test_requests(self):
        client = await self.client(await self.cluster())
        client.subscribe("echo", lambda message: client.publish(message.reply, message.payload + b"!", headers=message.headers))
        answers = await gatherResults([client.request("echo", b"%d" % n, headers={"N": f"{n}"}) for n in range(50)])
        self.assertEqual([answer.payload for answer in answers], [b"%d!" % n for n in range(50)])
        self.assertEqual(answers[7].headers, {"N": "7"})

    async def test_several_answers(self):
        client = await self.client(await self.cluster())

        def answer(message):
            for number in range(5):
                client.publish(message.reply, b"%d" % number)

        client.subscribe("many", answer)
        found = []
        await client.request_many("many", b"", lambda message: found.append(message.payload) or len(found) == 3)
        self.assertEqual(found, [b"0", b"1", b"2"])
        await self.assertFailure(client.request_many("many", b"", lambda message: False, timeout=0.1), NATSTimeout)
        await self.assertFailure(client.request_many("many", b"", lambda message: 1 / 0), ZeroDivisionError)

    async def test_nobody_answers(self):
        (server,) = await self.cluster()
        client = await self.client((server,))
        error = await self.assertFailure(client.request("nobody.here"), NATSNoResponders)
        self.assertEqual(str(error), "nobody listens on nobody.here")
        client.subscribe("silent", lambda message: None)
        error = await self.assertFailure(client.request("silent", timeout=0.05), NATSTimeout)
        self.assertEqual(str(error), f"no answer to silent from NATS server {server} within 0.05 s: the outcome is unknown")
        waiting = client.request("silent")
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)

    async def test_too_long(self):
        (server,) = await self.cluster(more="max_payload: 1000")
        client = await self.client((server,))
        error = self.assertRaises(NATSTooLong, client.publish, "a", bytes(1001))
        self.assertEqual(
            str(error), f"a message of 1001 bytes for a is too long for NATS server {server}: its max_payload is 1000"
        )
        await self.assertFailure(client.request("a", bytes(990), headers={"a": "b"}), NATSTooLong)
        client.publish("a", bytes(1000))
        await client.flush()
        self.assertEqual(self.reasons, [])

    async def test_what_cannot_be_sent(self):
        client = await self.client(await self.cluster())
        self.assertRaises(ValueError, client.publish, "a\r\nPUB b 0\r\n")
        self.assertRaises(ValueError, client.publish, "a", headers={"a": "b\r\nc: d"})
        self.assertRaises(ValueError, client.subscribe, "a b", print)
        await self.assertFailure(client.request(""), ValueError)
        await client.flush()

    async def test_drain(self):
        servers = await self.cluster()
        client, other = await self.client(servers), await self.client(servers)
        found, late = [], []
        client.subscribe("a", found.append)
        other.subscribe("b", lambda message: late.append(message))
        other.subscribe("c", lambda message: found.append(message.payload))
        await other.flush()
        asked = client.request("b", timeout=20)
        client.publish("c", b"last")
        draining = gatherResults([client.drain(), client.drain()])
        self.assertRaises(NATSUnavailable, client.publish, "a")
        await until(lambda: late)
        other.publish("a", b"too late")
        other.publish(late[0].reply, b"answer")
        self.assertEqual((await asked).payload, b"answer")
        await draining
        await until(lambda: found)
        self.assertEqual(found, [b"last"])
        await self.assertFailure(client.when_connected(), NATSUnavailable)

    async def test_drain_that_takes_too_long(self):
        client = await self.client(await self.cluster())
        client.subscribe("silent", lambda message: None)
        asked = self.assertFailure(client.request("silent", timeout=50), NATSDisconnected)
        await gatherResults([client.drain(timeout=0.1), asked])
        self.assertIsNone(client.server)

    async def test_close(self):
        (server,) = await self.cluster()
        client = await self.client((server,))
        client.subscribe("silent", lambda message: None)
        waiting = client.request("silent")
        closing = [client.close(), client.close(), self.assertFailure(waiting, NATSDisconnected)]
        # The connection is still there.
        error = self.assertRaises(NATSUnavailable, client.publish, "a")
        self.assertEqual((str(error), client.server, client.info), ("the NATS client is closed", None, None))
        for refused in (client.request("a"), client.flush(), client.when_writable()):
            await self.assertFailure(refused, NATSUnavailable)
        await gatherResults(closing)
        await client.close()
        self.assertRaises(NATSUnavailable, client.publish, "a")
        self.assertEqual((client.server, client.info, self.reasons), (None, None, []))

    async def test_callback_that_fails(self):
        servers = await self.cluster()
        client = NATSClient(reactor, NATSSettings(servers), connected=lambda name: 1 / 0)
        self.addCleanup(client.close)
        client.start()
        await client.when_connected()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class Reconnecting(ClientCase):
    async def test_server_that_is_killed(self):
        servers = await self.cluster(3)
        client, witness, found = await self.client(servers), NATSClient(reactor, NATSSettings(servers[:])), []
        witness.start()
        self.addCleanup(witness.close)
        await witness.when_connected()
        client.subscribe("silent", lambda message: None)
        client.subscribe("kept", lambda message: found.append(message.payload))
        client.subscribe("limited", lambda message: found.append(message.payload), limit=2)
        client.publish("limited", b"1")
        await client.flush()
        was = client.server
        waiting, flushing = client.request("silent"), client.flush()
        await flushing
        room = client.when_writable()
        self.nodes.kill([str(server) for server in servers].index(was))
        error = await self.assertFailure(waiting, NATSDisconnected)
        self.assertIn("the outcome of silent is unknown: NATS server " + was, str(error))
        await room
        self.assertEqual(client.server, None)
        error = self.assertRaises(NATSUnavailable, client.publish, "kept")
        self.assertIn("not connected to NATS: NATS server " + was, str(error))
        await client.when_connected()
        self.assertNotEqual(client.server, was)
        self.assertEqual(self.connected, [was, client.server])
        for payload in (b"2", b"3"):
            client.publish("kept", payload)
            client.publish("limited", payload)
        await client.flush()
        self.assertEqual(found, [b"1", b"2", b"2", b"3"])

    async def test_server_that_stands_still(self):
        servers = await self.cluster(3)
        client = await self.client(servers, ping_interval=0.5)
        was = client.server
        number = [str(server) for server in servers].index(was)
        self.nodes.stop(number)
        await until(lambda: self.reasons)
        self.assertEqual(str(self.reasons[0]), f"NATS server {was} did not answer a ping within 0.5 s")
        await client.when_connected()
        self.assertNotEqual(client.server, was)
        self.nodes.go_on(number)

    async def test_comes_back_to_the_only_server(self):
        client = await self.client(await self.cluster(), max_backoff=0.05)
        self.nodes.kill(0)
        await until(lambda: len(self.reasons) > 5)
        self.assertIn("no connection to NATS server 127.0.0.1:", str(self.reasons[-1]))
        self.nodes.spawn(0)
        await client.when_connected()
        await client.flush()

    async def test_gives_up_when_told(self):
        servers = tuple(Server("127.0.0.1", free_port()) for _ in range(2))
        client = self.make(servers, max_rounds=2, min_backoff=0.001)
        error = await self.assertFailure(client.when_connected(), NATSUnavailable)
        self.assertIn("no connection to NATS server 127.0.0.1:", str(error))
        self.assertEqual(len(self.reasons), 4)
        await self.assertFailure(client.when_connected(), NATSUnavailable)

    async def test_closed_while_it_connects(self):
        fake = Fake(self, greeting=b"")
        client = self.make((Server("127.0.0.1", fake.number),))
        waiting = self.assertFailure(client.when_connected(), NATSUnavailable)
        await gatherResults([client.close(), waiting])
        client = self.make((Server("127.0.0.1", fake.number),))
        waiting = self.assertFailure(client.when_connected(), NATSUnavailable)
        await until(lambda: fake.connections)
        await gatherResults([client.close(), waiting])

    async def test_connection_that_is_given_up(self):
        fake = Fake(self)
        server = Server("127.0.0.1", fake.number)
        errors = []

        def warned(_):
            # What the server says next ends the connection, which is not gone yet.
            reactor.callLater(0, lambda: errors.append(self.assertRaises(NATSUnavailable, client.publish, "a")))

        client = NATSClient(reactor, NATSSettings((server,)), warned=warned)
        self.addCleanup(client.close)
        client.start()
        await client.when_connected()
        fake.connections[0].transport.write(b"-ERR 'Permissions Violation'\r\n-ERR 'Stale Connection'\r\n")
        await until(lambda: errors)
        self.assertIn(f"not connected to NATS: NATS server {server} ends the connection: Stale Connection", str(errors[0]))

    async def test_server_that_lets_us_in_and_throws_us_out(self):
        fake = Fake(self, WELL, PING=b"PONG\r\n-ERR 'User Authentication Revoked'\r\n")
        self.make((Server("127.0.0.1", fake.number),), min_backoff=0.05)
        begun = reactor.seconds()
        await until(lambda: len(self.connected) > 4)
        # 0.05, 0.1, 0.2 and 0.4 s, each times 0.5 to 1.
        self.assertGreater(reactor.seconds() - begun, 0.37)
        self.assertIn("refused the login (User Authentication Revoked)", str(self.reasons[0]))

    async def test_names_of_hosts(self):
        (server,) = await self.cluster()
        await self.client((Server("localhost", server.port),))
        self.assertEqual(self.connected, [f"localhost:{server.port}"])
        # The system may ask a name server that takes its time.
        missing = (Server("no_such_host.invalid"),)
        await self.assert_refused(missing, "no_such_host.invalid:4222: no address was found", connect_timeout=60.0)

    async def test_servers_that_a_server_names(self):
        servers = await self.cluster(3)
        client = await self.client(servers[:1], discover=True)
        self.nodes.kill(0)
        await until(lambda: len(self.connected) > 1)
        self.assertIn(client.server, [str(server) for server in servers[1:]])

    async def test_names_that_a_server_makes_up(self):
        fake = Fake(self)
        names = b',"connect_urls":["x:y:z","","http://h","127.0.0.1:%d","127.0.0.1:1","[::1","127.0.0.1:1"]'
        fake.greeting = INFO % (names % fake.number)
        client = await self.client((Server("127.0.0.1", fake.number),), discover=True, min_backoff=0.01)
        fake.connections[0].transport.abortConnection()
        await until(lambda: len(self.connected) > 1)
        self.assertEqual(len(self.reasons), 2)
        self.assertIn("no connection to NATS server 127.0.0.1:1:", str(self.reasons[1]))
        await client.close()


class Slow(ClientCase):
    async def test_server_that_reads_slowly(self):
        fake = Fake(self)
        client = await self.client((Server("127.0.0.1", fake.number),), ping_interval=30, max_pending=8 << 20)
        fake.connections[0].transport.pauseProducing()
        sent = 0

        async def publish():
            nonlocal sent
            while not client.full:
                client.publish("a", bytes(500_000))
                sent += 1
                await client.flush(timeout=0.01).addErrback(lambda failure: failure.trap(NATSTimeout))

        await publish()
        waiting = client.when_writable()
        self.assertFalse(waiting.called)
        with self.assertRaises(NATSFull):
            for _ in range(100):
                client.publish("a", bytes(500_000))
                sent += 1
        self.assertIn("reads too slowly", str(await self.assertFailure(client.request("a", bytes(500_000)), NATSFull)))
        fake.connections[0].transport.resumeProducing()
        await waiting
        self.assertFalse(client.full)
        await client.flush(timeout=20)
        self.assertEqual(fake.received.count(b"PUB a  500000\r\n"), sent)
        self.assertEqual(self.reasons, [])

    async def test_server_that_stops_reading_is_left(self):
        fake = Fake(self)
        client = await self.client((Server("127.0.0.1", fake.number),), ping_interval=0.5)
        fake.connections[0].transport.pauseProducing()
        waiting = client.when_writable()
        while not client.full or waiting.called:
            client.publish("a", bytes(500_000))
            await client.flush(timeout=0.01).addErrback(lambda failure: failure.trap(NATSTimeout))
            waiting = client.when_writable()
        error = await self.assertFailure(waiting, NATSUnavailable)
        self.assertIn("did not answer a ping", str(error))


class LoggingIn(ClientCase):
    async def test_user_and_password(self):
        servers = await self.cluster(more="accounts { A { users [ { user: me, password: s3cret } ], jetstream: enabled } }")
        await self.client(servers, auth=Auth("me", "s3cret"))
        await self.client((Server("127.0.0.1", servers[0].port, auth=Auth("me", "s3cret")),), auth=Auth("you", "x"))
        for auth in (Auth("me", "wr0ng"), Auth(), Auth(token="t")):
            await self.assert_refused(servers, f"{servers[0]} refused the login (Authorization Violation): check", auth=auth)
            self.assertNotIn("wr0ng", str(self.reasons[0]))

    async def test_token(self):
        servers = await self.cluster(more="authorization { token: t0ken }")
        await self.client(servers, auth=Auth(token="t0ken"))
        await self.assert_refused(servers, "refused the login (", auth=Auth(token="other"))

    async def test_nkey(self):
        pair = NKey()
        servers = await self.cluster(more=f"accounts {{ A {{ users [ {{ nkey: {pair.public} }} ] }} }}")
        await self.client(servers, auth=Auth(seed=pair.seed))
        await self.assert_refused(servers, "refused the login (", auth=Auth(seed=NKey().seed))

    async def test_credentials(self):
        operator, account, user = NKey(OPERATOR), NKey(ACCOUNT), NKey()
        limits = {
            "subs": -1,
            "data": -1,
            "payload": -1,
            "conn": -1,
            "leaf": -1,
            "imports": -1,
            "exports": -1,
            "wildcards": True,
        }
        accounts = operator.token(account, "A", type="account", limits=limits)
        servers = await self.cluster(
            sync=None,
            more=f"operator: {operator.token(operator, 'O', type='operator')}\nresolver: MEMORY\n"
            f"resolver_preload {{ {account.public}: {accounts} }}",
        )

        def made_by(issuer):
            return credentials(issuer.token(user, "U", type="user", subs=-1, data=-1, payload=-1), user.seed)

        path = Path(self.mktemp())
        path.write_text(made_by(account))
        client = await self.client(servers, auth=Auth(credsfile=str(path)), max_backoff=0.05)
        client.publish("a", b"b")
        await client.flush()
        # The file is read again for the next connection.
        path.write_text(made_by(NKey(ACCOUNT)))
        self.nodes.kill(0)
        self.nodes.spawn(0)
        await until(lambda: self.reasons and "refused the login (" in str(self.reasons[-1]))
        path.unlink()
        await until(lambda: f"{path} cannot be read" in str(self.reasons[-1]))
        path.write_text(made_by(account))
        await client.when_connected()

    async def test_what_a_user_must_not(self):
        servers = await self.cluster(
            more='accounts { A { users [ { user: me, password: p, permissions: { publish: { deny: "secret.>" }, '
            'subscribe: { deny: "secret.>" } } } ] } }'
        )
        client = await self.client(servers, auth=Auth("me", "p"))
        error = await self.assertFailure(client.request("secret.x", timeout=20), NATSRefused)
        self.assertIn(f'{servers[0]} denied a request: Permissions Violation for Publish to "secret.x": check', str(error))
        client.subscribe("secret.y", print)
        await client.flush()
        self.assertIn('Permissions Violation for Subscription to "secret.y"', str(self.warnings[-1]))
        self.assertEqual((len(self.warnings), self.reasons), (2, []))

    async def test_mistakes_are_told_at_once(self):
        servers = (Server("127.0.0.1", 1),)
        for settings in (
            NATSSettings(()),
            NATSSettings(servers, inbox="a b"),
            NATSSettings(servers, auth=Auth(seed="x")),
            NATSSettings(servers, auth=Auth(credsfile="/nowhere")),
            NATSSettings(servers, tls=TLSSettings(cacertfile="/nowhere")),
        ):
            self.assertRaises(ConfigError, NATSClient, reactor, settings)

    async def test_server_that_is_too_old(self):
        fake = Fake(self, WELL.replace(b"2.15.1", b"2.10.26"))
        await self.assert_refused(
            (Server("127.0.0.1", fake.number),), "has version 2.10.26: update it to 2.11 or newer", auth=Auth("me", "s3cret")
        )
        self.assertEqual(fake.received, b"")


class TLS(ClientCase):
    def setUp(self):
        self.authority = Authority()
        self.tls = TLSSettings(cacertfile=self.file(pem(self.authority.certificate)))

    def file(self, content):
        path = Path(self.mktemp())
        path.write_bytes(content)
        return str(path.resolve())

    async def secure(self, more="", **names):
        certificate, key = self.authority.issue(**(names or {"dns": ["localhost"], "addresses": ["127.0.0.1"]}))
        files = f'cert_file: "{self.file(certificate)}", key_file: "{self.file(key_pem(key))}"'
        return await self.cluster(more=f"tls {{ {files}, timeout: 5, {more} }}")

    async def test_server_that_demands_it(self):
        servers = await self.secure()
        client = await self.client(servers, tls=self.tls)
        found = []
        client.subscribe("a", lambda message: found.append(message.payload))
        for size in (1, 16_384, 17_000, 1_000_000):
            client.publish("a", bytes(size))
        await client.flush()
        self.assertEqual([len(payload) for payload in found], [1, 16_384, 17_000, 1_000_000])
        await client.close()
        await self.client((Server("localhost", servers[0].port, tls=True),), tls=self.tls)

    async def test_first(self):
        servers = await self.secure("handshake_first: true")
        client = await self.client(servers, tls=self.tls, tls_first=True)
        await client.flush()
        await self.assert_refused(
            servers, "sent no INFO within 1 s: is it NATS, without TLS first", tls=self.tls, connect_timeout=1.0
        )

    async def test_first_where_the_server_begins_without(self):
        servers = await self.secure()
        await self.assert_refused(servers, "does not speak TLS", "may be meant for nats://", tls=self.tls, tls_first=True)

    async def test_server_without(self):
        await self.assert_refused(await self.cluster(), "does not offer TLS", tls=self.tls)

    async def test_certificates_that_are_refused(self):
        for names, words in (
            ({"dns": ["elsewhere.example"]}, "the certificate of 127.0.0.1:{port} is not for 127.0.0.1"),
            ({"common_name": "127.0.0.1"}, "is not for 127.0.0.1"),
            ({"addresses": ["127.0.0.1"], "days": (-3, -1)}, "the certificate of 127.0.0.1:{port} has expired"),
        ):
            servers = await self.secure(**names)
            words = words.format(port=servers[0].port)
            await self.assert_refused(servers, words, tls=self.tls)

    async def test_unknown_authority(self):
        servers = await self.secure()
        await self.assert_refused(servers, "is signed by an unknown authority", "tls.cacertfile")

    async def test_client_certificate(self):
        clients = Authority("Clients")
        servers = await self.secure(f'verify: true, ca_file: "{self.file(pem(clients.certificate))}"')
        certificate, key = clients.issue()
        mine = TLSSettings(self.tls.cacertfile, self.file(certificate), self.file(key_pem(key)))
        client = await self.client(servers, tls=mine)
        await client.flush()
        await self.assert_refused(servers, "client certificate", tls=self.tls)
