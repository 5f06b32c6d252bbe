"""TLS to real servers: who they have to be, and who we are."""

from pathlib import Path
from random import Random

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair, PrivateCertificate, trustRootFromCertificates
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.errors import ConfigError, ConnectFailed, ConnectionBroken, DeliveryError
from mqhooks.nanomq.settings import Rule, TLSSettings, WebhookSettings
from mqhooks.outbox.delivery import Delivery
from mqhooks.webhook.client import WebhookClient
from mqhooks.webhook.tls import tls_options
from tests.certificates import Authority, key_pem, pem
from tests.endpoints import Endpoint


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

    def serve(self, *, dns=("localhost",), addresses=("127.0.0.1",), demand=False, authority=None):
        certificate, key = (authority or self.authority).issue(dns=dns, addresses=addresses)
        trusted = [Certificate.loadPEM(pem(self.client_authority.certificate))] if demand else None
        ours = PrivateCertificate.fromCertificateAndKeyPair(Certificate.loadPEM(certificate), KeyPair.load(key_pem(key), 1))
        options = CertificateOptions(
            privateKey=ours.privateKey.original,
            certificate=ours.original,
            trustRoot=trustRootFromCertificates(trusted) if trusted else None,
        )
        self.endpoint = Endpoint()
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
        self.assertEqual(self.mistake(cacertfile="/nowhere"), "/nowhere: cacertfile: cannot be read: No such file or directory")

    def test_not_pem(self):
        self.assertEqual(self.mistake(cacertfile=self.nothing), f"{self.nothing}: cacertfile: holds no PEM certificate")
        self.assertIn("holds no PEM certificate", self.mistake(certfile=self.nothing, keyfile=self.key))
        self.assertIn("holds no PEM private key", self.mistake(certfile=self.certificate, keyfile=self.nothing))

    def test_broken(self):
        self.assertIn(self.broken, self.mistake(cacertfile=self.broken))
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
