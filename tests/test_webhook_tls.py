"""TLS to real servers: who they have to be, and who we are."""

from pathlib import Path
from random import Random
from socket import SO_SNDBUF, SOL_SOCKET

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    KeyPair,
    PrivateCertificate,
    TLSVersion,
    trustRootFromCertificates,
)
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.errors import ConfigError, ConnectFailed, ConnectionBroken, DeliveryError
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.delivery import Delivery
from mqhooks.webhook.client import WebhookClient
from mqhooks.webhook.settings import TLSSettings, WebhookSettings
from mqhooks.webhook.tls import tls_options
from tests.certificates import Authority, key_pem, pem
from tests.endpoints import Connection, Endpoint


class FilesMixin:
    """Certificates in files."""

    def file(self, name, *contents):
        path = Path(self.mktemp())
        path.mkdir()
        path = path / name
        path.write_bytes(b"".join(contents))
        return str(path)


class DeliveryTests(FilesMixin, TestCase):
    """A server whose certificate a private authority has signed, and which may demand one of ours."""

    timeout = 10

    def setUp(self):
        self.authority = Authority()
        self.client_authority = Authority("Client authority")
        self.cacertfile = self.file("ca.pem", pem(self.authority.certificate))

    def serve(
        self, answer=None, *, dns=("localhost",), addresses=("127.0.0.1",), name="Test", demand=False, authority=None, **more
    ):
        certificate, key = (authority or self.authority).issue(dns=dns, addresses=addresses, name=name)
        trusted = [Certificate.loadPEM(pem(self.client_authority.certificate))] if demand else None
        ours = PrivateCertificate.fromCertificateAndKeyPair(Certificate.loadPEM(certificate), KeyPair.load(key_pem(key), 1))
        options = CertificateOptions(
            privateKey=ours.privateKey.original,
            certificate=ours.original,
            trustRoot=trustRootFromCertificates(trusted) if trusted else None,
            **more,
        )
        self.endpoint = Endpoint(answer)
        self.endpoint.listen(self, reactor, listen=lambda *args, **kwargs: reactor.listenSSL(*args, options, **kwargs))
        return self.endpoint.port.getHost().port

    async def deliver(self, host, port, body=b"{}", **tls):
        settings = WebhookSettings("w", f"https://{host}:{port}/hook", (Rule("on_publish"),), tls=TLSSettings(**tls))
        client = WebhookClient(reactor, settings)
        self.addCleanup(client.close)
        result = Deferred()
        client.deliver(Delivery("msg_1", "c", 0, body), result.callback)
        return await result

    def client_files(self, password=None, chain=()):
        issuer = chain[-1] if chain else self.client_authority
        certificate, key = issuer.issue()
        return {
            "certfile": self.file("cert.pem", certificate, *(pem(link.certificate) for link in reversed(chain))),
            "keyfile": self.file("key.pem", key_pem(key, password)),
        }

    async def test_private_authority(self):
        port = self.serve()
        self.assertEqual((await self.deliver("localhost", port, cacertfile=self.cacertfile)).status, 200)
        self.assertEqual((await self.deliver("127.0.0.1", port, cacertfile=self.cacertfile)).status, 200)

    async def test_a_long_body(self):
        body = Random(0).randbytes(5_000_000)
        answer = await self.deliver("localhost", self.serve(), body, cacertfile=self.cacertfile)
        self.assertEqual((answer.status, self.endpoint.requests[0].body == body), (200, True))

    def client(self, port, **more):
        url = f"https://localhost:{port}/hook"
        client = WebhookClient(
            reactor, WebhookSettings("w", url, (Rule("on_publish"),), tls=TLSSettings(cacertfile=self.cacertfile), **more)
        )
        self.addCleanup(client.close)
        return client

    def send(self, client, body=b"{}"):
        result = Deferred()
        client.deliver(Delivery("msg_1", "c", 0, body), result.callback)
        return result

    async def assert_all_arrive(self, port):
        client, random = self.client(port, pool_size=3), Random(1)
        bodies = [random.randbytes(random.choice([1, 300, 16_000, 16_384, 17_000, 50_000, 700_000])) for _ in range(60)]
        answers = await gatherResults([self.send(client, body) for body in bodies])
        self.assertEqual({answer.status for answer in answers}, {200})
        self.assertCountEqual([request.body for request in self.endpoint.requests], bodies)
        self.assertLessEqual(len(self.endpoint.connections), 3)

    async def test_many_requests_share_connections(self):
        await self.assert_all_arrive(self.serve())

    async def test_an_older_version(self):
        await self.assert_all_arrive(self.serve(lowerMaximumSecurityTo=TLSVersion.TLSv1_2))

    async def test_answers_in_several_records_and_in_pieces_of_them(self):
        def answer(request):
            head, body = b"HTTP/1.1 400 No\r\nContent-Length: 900000\r\n\r\n", b"x" * 900_000
            request.connection.send(head)
            reactor.callLater(0.01, request.connection.send, body)

        client = self.client(self.serve(answer), pool_size=1)
        for _ in range(3):
            found = await self.send(client)
            self.assertEqual((found.status, found.length), (400, 900_000))
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_an_endpoint_that_takes_nothing_for_a_while(self):
        class Slow(Connection):
            def dataReceived(self, data):
                super().dataReceived(data)
                if self.factory.requests and self.buffer and not pauses:
                    pauses.append(len(self.buffer))
                    self.transport.pauseProducing()
                    reactor.callLater(0.3, self.transport.resumeProducing)

        pauses, port = [], self.serve()
        self.endpoint.protocol = Slow
        client, body = self.client(port, pool_size=1), Random(2).randbytes(1_000_000)
        await self.send(client)
        (connection,) = client._pool._connections
        connection.transport.transport.getHandle().setsockopt(SOL_SOCKET, SO_SNDBUF, 20_000)
        self.assertTrue(connection._send.__self__._direct)
        for _ in range(3):
            self.assertEqual((await self.send(client, body)).status, 200)
        self.assertFalse(connection._send.__self__._direct)
        self.assertEqual([request.body == body for request in self.endpoint.requests], [False, True, True, True])
        self.assertEqual(len(pauses), 1)
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_an_answer_before_the_whole_request_has_left(self):
        class Early(Connection):
            def dataReceived(self, data):
                if not begun:
                    begun.append(self)
                    self.reply()
                    self.transport.pauseProducing()
                    reactor.callLater(0.3, self.transport.resumeProducing)
                super().dataReceived(data)

        def answer(request):
            if len(self.endpoint.requests) > 1:
                request.connection.reply()

        begun, port = [], self.serve(answer)
        self.endpoint.protocol = Early
        client, body = self.client(port, pool_size=1), Random(3).randbytes(1_000_000)
        for sent in (body, b"{}"):
            self.assertEqual((await self.send(client, sent)).status, 200)
        self.assertEqual(
            [request.body == sent for request, sent in zip(self.endpoint.requests, (body, b"{}"), strict=True)], [True] * 2
        )
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_an_endpoint_that_ends_the_connection(self):
        port = self.serve()
        client = self.client(port, pool_size=1)
        for number in range(1, 4):
            for _ in range(2):
                self.assertEqual((await self.send(client)).status, 200)
            self.endpoint.connections[-1].transport.loseConnection()
            if number > 1:
                # Else the next request meets a connection that is just ending, and is sent again over another one.
                await self.endpoint.connections[-1].closed
            self.assertEqual((await self.send(client)).status, 200)
            self.assertEqual(len(self.endpoint.connections), number + 1)

    async def test_a_connection_that_takes_nothing_any_more(self):
        client = self.client(self.serve(), pool_size=1)
        await self.send(client)
        (connection,) = client._pool._connections
        connection._send.__self__._connection.shutdown()
        self.assertEqual((await self.send(client)).status, 200)
        self.assertEqual((len(self.endpoint.connections), len(self.endpoint.requests)), (2, 2))

    async def test_an_endpoint_that_breaks_the_connection(self):
        def answer(request):
            if len(self.endpoint.requests) == 3:
                request.connection.transport.transport.write(b"\x17\x03\x03\x00\x20" + bytes(32))
            else:
                request.connection.reply()

        client = self.client(self.serve(answer), pool_size=1)
        answers = [await self.send(client) for _ in range(4)]
        self.assertEqual([getattr(found, "status", 0) for found in answers], [200, 200, 200, 200])
        self.assertEqual((len(self.endpoint.connections), len(self.endpoint.requests)), (2, 5))

    async def assert_refused(self, *args, **kwargs):
        result = await self.deliver(*args, **kwargs)
        self.assertIsInstance(result, (ConnectFailed, ConnectionBroken))
        self.assertEqual(self.endpoint.requests, [])
        return str(result)

    async def test_unknown_authority(self):
        self.assertIn("certificate verify failed", await self.assert_refused("localhost", self.serve()))

    async def test_the_system_does_not_stand_in_for_a_private_authority(self):
        port = self.serve(authority=Authority("Somebody else"))
        await self.assert_refused("localhost", port, cacertfile=self.cacertfile)

    async def test_wrong_host(self):
        port = self.serve(dns=["elsewhere.example"], addresses=["127.0.0.2"])
        self.assertIn("localhost", await self.assert_refused("localhost", port, cacertfile=self.cacertfile))
        await self.assert_refused("127.0.0.1", port, cacertfile=self.cacertfile)

    async def test_certificate_that_names_no_host_is_refused(self):
        for dns, addresses, name in (
            ((), (), "device-0042"),
            ((), (), "localhost"),
            (("*.test",), (), "localhost"),
            (("*",), (), "localhost"),
            (("127.0.0.1",), (), "127.0.0.1"),
            (("l*.localhost", "*.localhost"), (), "localhost"),
        ):
            port = self.serve(dns=dns, addresses=addresses, name=name)
            for host in ("localhost", "127.0.0.1"):
                reason = await self.assert_refused(host, port, cacertfile=self.cacertfile)
                self.assertIn(f"not for {host}", reason)

    async def test_client_certificate(self):
        port = self.serve(demand=True)
        result = await self.deliver("localhost", port, cacertfile=self.cacertfile)
        self.assertIsInstance(result, DeliveryError)
        self.assertEqual(self.endpoint.requests, [])
        result = await self.deliver("localhost", port, cacertfile=self.cacertfile, **self.client_files())
        self.assertEqual(result.status, 200)

    async def test_client_certificate_with_an_encrypted_key(self):
        port = self.serve(demand=True)
        files = self.client_files(password=b"s3cret")
        result = await self.deliver("localhost", port, cacertfile=self.cacertfile, key_password="s3cret", **files)
        self.assertEqual(result.status, 200)

    async def test_client_certificate_below_an_intermediate_authority(self):
        port = self.serve(demand=True)
        files = self.client_files(chain=[Authority("Intermediate", self.client_authority)])
        self.assertEqual((await self.deliver("localhost", port, cacertfile=self.cacertfile, **files)).status, 200)

    async def test_connections_are_reused(self):
        port = self.serve()
        settings = WebhookSettings(
            "w", f"https://localhost:{port}/", (), tls=TLSSettings(cacertfile=self.cacertfile), pool_size=1
        )
        client = WebhookClient(reactor, settings)
        self.addCleanup(client.close)
        for number in range(5):
            result = Deferred()
            client.deliver(Delivery(f"msg_{number}", "c", 0, b"{}"), result.callback)
            self.assertEqual((await result).status, 200)
        self.assertEqual(len(self.endpoint.connections), 1)


class MistakeTests(FilesMixin, SynchronousTestCase):
    """Each is one line that names the file and the key."""

    def setUp(self):
        authority = Authority()
        certificate, key = authority.issue()
        self.ca = self.file("ca.pem", pem(authority.certificate))
        self.certificate = self.file("cert.pem", certificate)
        self.key = self.file("key.pem", key_pem(key))
        self.encrypted = self.file("encrypted.pem", key_pem(key, b"right"))
        self.other = self.file("other.pem", key_pem(authority.issue()[1]))
        self.nothing = self.file("nothing.pem", b"nothing")
        self.broken = self.file(
            "broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAAAA\n"
        )

    def mistake(self, **settings):
        error = self.assertRaises(ConfigError, tls_options, "localhost", TLSSettings(**settings))
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_missing(self):
        self.assertEqual(self.mistake(cacertfile="/nowhere"), "cacertfile: /nowhere cannot be read: No such file or directory")

    def test_not_pem(self):
        self.assertEqual(self.mistake(cacertfile=self.nothing), f"cacertfile: {self.nothing} holds no PEM certificate")
        self.assertIn("holds no PEM certificate", self.mistake(certfile=self.nothing, keyfile=self.key))
        self.assertIn("holds no PEM private key", self.mistake(certfile=self.certificate, keyfile=self.nothing))

    def test_broken(self):
        self.assertIn(f"cacertfile: {self.broken} cannot be used: ", self.mistake(cacertfile=self.broken))
        self.assertIn(self.broken, self.mistake(certfile=self.certificate, keyfile=self.broken))

    def test_password(self):
        self.assertIn("set key_password", self.mistake(certfile=self.certificate, keyfile=self.encrypted))
        wrong = self.mistake(certfile=self.certificate, keyfile=self.encrypted, key_password="wrong")
        self.assertIn("does not open with key_password", wrong)

    def test_mismatch(self):
        self.assertIn("not the key of the certificate", self.mistake(certfile=self.certificate, keyfile=self.other))

    def test_good(self):
        files = {"cacertfile": self.ca, "certfile": self.certificate}
        tls_options("localhost", TLSSettings(keyfile=self.key, **files))
        tls_options("localhost", TLSSettings(keyfile=self.encrypted, key_password="right", **files))
        tls_options("localhost", TLSSettings(keyfile=self.key, key_password="needless", **files))
        tls_options("localhost", None)
