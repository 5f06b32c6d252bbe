"""TLS to real servers: who they have to be, who we are, and what is said when it fails."""

import os
from pathlib import Path
from random import Random
from socket import AF_INET6, has_ipv6, socket

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    KeyPair,
    PrivateCertificate,
    TLSVersion,
    trustRootFromCertificates,
)
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface.verify import verifyObject

from mqhooks.delivery import Head, Request
from mqhooks.errors import ConfigError, ConnectFailed, DeliveryError
from mqhooks.http import pooled
from mqhooks.http.lookups import endpoint
from mqhooks.http.policy import VerifyingPolicy
from mqhooks.http.pooled import PooledTransport
from mqhooks.http.sockets import EpollSockets, PlainSockets
from mqhooks.http.treqtransport import TreqTransport
from mqhooks.support.tls import TLSSettings, client_context
from tests.certificates import Authority, key_pem, pem
from tests.endpoints import Connection, Endpoint
from tests.waiting import until


class FilesMixin:
    """Certificates in files."""

    def file(self, name, *contents):
        path = Path(self.mktemp())
        path.mkdir()
        path = path / name
        path.write_bytes(b"".join(contents))
        return str(path)


class TLSContract(FilesMixin):
    """What every transport keeps. Mix into a TestCase that has ``make(url, **options)``."""

    timeout = 120

    def setUp(self):
        self.authority = Authority()
        self.client_authority = Authority("Client authority")
        self.cacertfile = self.file("ca.pem", pem(self.authority.certificate))

    def serve(self, answer=None, *, demand=False, pair=None, interface="127.0.0.1", newest=None, **names):
        certificate, key = pair or self.authority.issue(**(names or {"dns": ["localhost"], "addresses": ["127.0.0.1"]}))
        trusted = [Certificate.loadPEM(pem(self.client_authority.certificate))] if demand else None
        ours = PrivateCertificate.fromCertificateAndKeyPair(Certificate.loadPEM(certificate), KeyPair.load(key_pem(key), 1))
        made = CertificateOptions(
            privateKey=ours.privateKey.original,
            certificate=ours.original,
            trustRoot=trustRootFromCertificates(trusted) if trusted else None,
            **({"insecurelyLowerMinimumTo": TLSVersion.TLSv1_0} if newest == SSL.TLS1_1_VERSION else {}),
        )
        if newest is not None:
            made.getContext().set_max_proto_version(newest)
        self.endpoint = Endpoint(answer)

        def listen(port, factory, **more):
            return reactor.listenSSL(port, factory, made, **{**more, "interface": interface})

        self.endpoint.listen(self, reactor, listen=listen)
        return self.endpoint.port.getHost().port

    def transport(self, port, host="localhost", *, cacertfile=None, options=None, **tls):
        self.head = Head("POST", f"https://{host}:{port}/hook", ())
        settings = TLSSettings(cacertfile=cacertfile or self.cacertfile, **tls)
        transport = self.make(self.head.url, tls=settings, **(options or {}))
        self.addCleanup(transport.close)
        return transport

    async def send(self, transport, body=b"{}"):
        try:
            return await transport.send(Request(self.head, [("webhook-id", "msg_1")], body))
        except DeliveryError as error:
            return error

    async def deliver(self, host, port, **tls):
        return await self.send(self.transport(port, host, **tls))

    async def assert_accepted(self, host="localhost", port=None, **tls):
        result = await self.deliver(host, port, **tls)
        self.assertEqual(getattr(result, "status", result), 200)

    async def assert_refused(self, host, port, *words, **tls):
        result = await self.deliver(host, port, **tls)
        self.assertIsInstance(result, ConnectFailed)
        self.assertEqual(self.endpoint.requests, [])
        for word in words:
            self.assertIn(word, str(result))
        self.assertNotIn("[(", str(result))
        self.assertNotIn("\n", str(result))

    async def test_right_names(self):
        port = self.serve(dns=["elsewhere.example", "localhost", "third.example"], addresses=["127.0.0.2", "127.0.0.1"])
        await self.assert_accepted("localhost", port)
        await self.assert_accepted("127.0.0.1", port)

    async def test_certificate_that_names_no_host(self):
        port = self.serve(common_name="localhost")
        await self.assert_refused("localhost", port, "the certificate of localhost:", "is not for localhost")
        port = self.serve(common_name="127.0.0.1")
        await self.assert_refused("127.0.0.1", port, "is not for 127.0.0.1")

    async def test_certificate_of_another_host(self):
        port = self.serve(dns=["elsewhere.example"], addresses=["127.0.0.2"])
        await self.assert_refused("localhost", port, "is not for localhost")
        await self.assert_refused("127.0.0.1", port, "is not for 127.0.0.1")

    async def test_patterns_that_would_name_everybody(self):
        for name in ("*", "*.localhost", "local*", "*host"):
            await self.assert_refused("localhost", self.serve(dns=[name]), "is not for localhost")

    def named(self, port, host):
        """Options to connect to a host that no name server knows."""
        return {"endpoint": endpoint(reactor, host, port, 5.0, lambda host: ["127.0.0.1"])}

    async def test_wildcards(self):
        for host, pattern in (("a.example.test", "*.example.test"), ("my_host.example.test", "my_host.example.test")):
            port = self.serve(dns=[pattern])
            await self.assert_accepted(host, port, options=self.named(port, host))
        for host, pattern in (
            ("x.test", "*.test"),
            ("a.b.example.test", "*.example.test"),
            ("example.test", "*.example.test"),
            ("a.example.test", "a.*.test"),
            ("a.example.test", "*.elsewhere.test"),
        ):
            port = self.serve(dns=[pattern])
            await self.assert_refused(host, port, f"is not for {host}", options=self.named(port, host))

    async def test_address_in_a_dns_entry(self):
        await self.assert_refused("127.0.0.1", self.serve(dns=["127.0.0.1"]), "is not for 127.0.0.1")
        await self.assert_refused("localhost", self.serve(dns=["127.0.0.1"]), "is not for localhost")

    async def test_address_does_not_stand_for_a_name(self):
        await self.assert_refused("localhost", self.serve(addresses=["127.0.0.1"]), "is not for localhost")

    async def test_ipv6(self):
        if not has_ipv6:
            raise SkipTest("no IPv6")
        try:
            with socket(AF_INET6) as tried:
                tried.bind(("::1", 0))
        except OSError:
            raise SkipTest("no IPv6 loopback") from None
        await self.assert_accepted("[::1]", self.serve(addresses=["::1"], interface="::1"))
        await self.assert_refused("[::1]", self.serve(addresses=["::2"], interface="::1"), "is not for ::1")

    async def test_name_with_an_underscore(self):
        for issued, words in (("my_consumer", None), ("my-consumer", "is not for my_consumer")):
            port = self.serve(dns=[issued])
            asked = []
            by = endpoint(reactor, "my_consumer", port, 5.0, lambda host, asked=asked: asked.append(host) or ["127.0.0.1"])
            if words is None:
                await self.assert_accepted("my_consumer", port, options={"endpoint": by})
            else:
                await self.assert_refused("my_consumer", port, words, options={"endpoint": by})
            self.assertEqual(asked, ["my_consumer"])

    async def test_expired(self):
        port = self.serve(dns=["localhost"], days=(-3, -1))
        await self.assert_refused("localhost", port, f"the certificate of localhost:{port} has expired")

    async def test_not_yet_valid(self):
        await self.assert_refused("localhost", self.serve(dns=["localhost"], days=(1, 3)), "is not valid yet")

    async def test_unknown_authority(self):
        pair = Authority("Somebody else").issue(dns=["localhost"])
        await self.assert_refused("localhost", self.serve(pair=pair), "is signed by an unknown authority", "tls.cacertfile")

    async def test_self_signed(self):
        other = Authority("localhost")
        port = self.serve(pair=(pem(other.certificate), other.key))
        await self.assert_refused("localhost", port, "is self-signed")

    async def test_port_that_speaks_plain_http(self):
        self.endpoint = Endpoint()
        self.endpoint.protocol = Talker
        self.endpoint.listen(self, reactor)
        await self.assert_refused("localhost", self.endpoint.port.getHost().port, "this port does not speak TLS")

    async def test_port_that_waits_for_plain_http(self):
        class Silent(Connection):
            def dataReceived(self, data):
                """Wait for the end of a line, as a server for plain HTTP does."""

        self.endpoint = Endpoint()
        self.endpoint.protocol = Silent
        self.endpoint.listen(self, reactor)
        transport = self.transport(self.endpoint.port.getHost().port, options={"timeout": 1.0})
        for _ in range(2):
            result = await self.send(transport)
            self.assertIsInstance(result, ConnectFailed)
            self.assertIn(": no TLS handshake within 1 s: the port may be meant for http://", str(result))

    async def test_endpoint_that_takes_too_long_is_no_matter_of_tls(self):
        transport = self.transport(self.serve(lambda request: None, dns=["localhost"]), options={"timeout": 1.0})
        self.assertIn("no answer within 1 s", str(await self.send(transport)))

    async def test_old_version(self):
        await self.assert_refused("localhost", self.serve(newest=SSL.TLS1_1_VERSION), "no safe version of TLS")

    async def test_version_1_2(self):
        port = self.serve(newest=SSL.TLS1_2_VERSION)
        await self.assert_accepted("localhost", port)

    def client_files(self, password=None, chain=()):
        issuer = chain[-1] if chain else self.client_authority
        certificate, key = issuer.issue()
        return {
            "certfile": self.file("cert.pem", certificate, *(pem(link.certificate) for link in reversed(chain))),
            "keyfile": self.file("key.pem", key_pem(key, password)),
        }

    async def test_client_certificate_is_demanded(self):
        port = self.serve(demand=True)
        await self.assert_refused("localhost", port, "client certificate")
        await self.assert_accepted("localhost", port, **self.client_files())

    async def test_client_certificate_is_demanded_before_tls_1_3(self):
        port = self.serve(demand=True, newest=SSL.TLS1_2_VERSION)
        await self.assert_refused("localhost", port)
        await self.assert_accepted("localhost", port, **self.client_files())

    async def test_client_certificate_of_a_stranger(self):
        port = self.serve(demand=True)
        self.client_authority = Authority("Stranger")
        await self.assert_refused("localhost", port, "client certificate", **self.client_files())

    async def test_client_certificate_with_an_encrypted_key(self):
        port = self.serve(demand=True)
        files = self.client_files(password=b"s3cret")
        await self.assert_accepted("localhost", port, key_password="s3cret", **files)

    async def test_client_certificate_below_an_intermediate_authority(self):
        files = self.client_files(chain=[Authority("Intermediate", self.client_authority)])
        await self.assert_accepted("localhost", self.serve(demand=True), **files)

    async def test_connection_is_reused(self):
        transport = self.transport(self.serve(), options={"size": 1})
        for _ in range(5):
            self.assertEqual((await self.send(transport)).status, 200)
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_long_body(self):
        body = Random(0).randbytes(5_000_000)
        response = await self.send(self.transport(self.serve()), body)
        self.assertEqual((response.status, self.endpoint.requests[0].body == body), (200, True))

    async def test_mistake_in_a_file_is_told_at_once(self):
        settings = TLSSettings(cacertfile="/nowhere", where="w.conf", path="webhook.tls")
        error = self.assertRaises(ConfigError, self.make, "https://h/", tls=settings)
        self.assertEqual(str(error), "w.conf: webhook.tls.cacertfile: /nowhere cannot be read: No such file or directory")


class Talker(Connection):
    """Answers whatever comes as a server of plain HTTP does."""

    def dataReceived(self, data):
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.transport.loseConnection()


class TreqTests(TLSContract, TestCase):
    """Over Twisted's agent."""

    def make(self, url, **options):
        return TreqTransport(reactor, url, **options)

    def test_policy(self):
        verifyObject(IPolicyForHTTPS, VerifyingPolicy(None))


class PooledTLS(TLSContract):
    """What only the pooled transport promises."""

    async def assert_all_arrive(self, port):
        transport, random = self.transport(port, options={"size": 3}), Random(1)
        bodies = [random.randbytes(random.choice([1, 300, 16_000, 16_384, 17_000, 50_000, 700_000])) for _ in range(60)]
        responses = await gatherResults([ensureDeferred(self.send(transport, body)) for body in bodies])
        self.assertEqual({response.status for response in responses}, {200})
        self.assertCountEqual([request.body for request in self.endpoint.requests], bodies)
        self.assertLessEqual(len(self.endpoint.connections), 3)

    async def test_many_requests_share_connections(self):
        await self.assert_all_arrive(self.serve())

    async def test_many_requests_over_version_1_2(self):
        await self.assert_all_arrive(self.serve(newest=SSL.TLS1_2_VERSION))

    async def test_answers_in_several_records_and_in_pieces_of_them(self):
        def answer(request):
            head, body = b"HTTP/1.1 400 No\r\nContent-Length: 900000\r\n\r\n", b"x" * 900_000
            request.connection.send(head)
            reactor.callLater(0.01, request.connection.send, body)

        transport = self.transport(self.serve(answer), options={"size": 1})
        for _ in range(3):
            found = await self.send(transport)
            self.assertEqual((found.status, found.length), (400, 900_000))
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_answer_behind_an_answer_counts_for_nothing(self):
        both = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n" + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        for apart in (False, True):

            def answer(request, apart=apart):
                for piece in [both[:38], both[38:]] if apart else [both]:
                    request.connection.send(piece)

            transport = self.transport(self.serve(answer), options={"size": 1})
            results = await gatherResults([ensureDeferred(self.send(transport)) for _ in range(4)])
            self.assertEqual([result.status for result in results], [503] * 4)

    async def test_what_comes_before_the_request_counts_for_nothing(self):
        # A busy machine may take longer than usual to send what comes too early.
        self.patch(pooled, "QUIET", 1.0)
        port = self.serve(lambda request: request.connection.reply(503))
        self.endpoint.on_connect = lambda connection: connection.reply(200)
        transport = self.transport(port)
        results = await gatherResults([ensureDeferred(self.send(transport)) for _ in range(6)])
        self.assertEqual({type(result) for result in results}, {ConnectFailed})
        self.assertEqual(self.endpoint.requests, [])

    async def test_endpoint_that_takes_nothing_for_a_while(self):
        class Slow(Connection):
            def dataReceived(self, data):
                super().dataReceived(data)
                if self.buffer and not pauses:
                    pauses.append(len(self.buffer))
                    self.transport.pauseProducing()
                    reactor.callLater(0.3, self.transport.resumeProducing)

        pauses, port = [], self.serve()
        self.endpoint.protocol = Slow
        transport, body = self.transport(port, options={"size": 1}), Random(2).randbytes(4_000_000)
        for _ in range(3):
            self.assertEqual((await self.send(transport, body)).status, 200)
        self.assertEqual([request.body == body for request in self.endpoint.requests], [True] * 3)
        self.assertEqual((len(pauses), len(self.endpoint.connections)), (1, 1))

    async def test_answer_before_the_whole_request_has_left(self):
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
        transport, body = self.transport(port, options={"size": 1}), Random(3).randbytes(1_000_000)
        for sent in (body, b"{}"):
            self.assertEqual((await self.send(transport, sent)).status, 200)
        received = [request.body for request in self.endpoint.requests]
        self.assertEqual([received[0] == body, received[1]], [True, b"{}"])
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_endpoint_that_ends_the_connection(self):
        port = self.serve()
        transport = self.transport(port, options={"size": 1})
        for number in range(1, 4):
            for _ in range(2):
                self.assertEqual((await self.send(transport)).status, 200)
            self.endpoint.connections[-1].transport.loseConnection()
            if number > 1:
                # Else the next request meets a connection that is just ending, and is sent again over another one.
                await self.endpoint.connections[-1].closed
            self.assertEqual((await self.send(transport)).status, 200)
            self.assertEqual(len(self.endpoint.connections), number + 1)

    async def test_endpoint_that_breaks_the_connection(self):
        def answer(request):
            if len(self.endpoint.requests) == 3:
                request.connection.transport.transport.write(b"\x17\x03\x03\x00\x20" + bytes(32))
            else:
                request.connection.reply()

        transport = self.transport(self.serve(answer), options={"size": 1})
        statuses = [(await self.send(transport)).status for _ in range(4)]
        self.assertEqual(statuses, [200] * 4)
        self.assertEqual((len(self.endpoint.connections), len(self.endpoint.requests)), (2, 5))

    async def test_handshake_that_never_ends(self):
        class Silent(Connection):
            def dataReceived(self, data):
                pass

        self.endpoint = Endpoint()
        self.endpoint.protocol = Silent
        self.endpoint.listen(self, reactor)
        transport = self.transport(self.endpoint.port.getHost().port, options={"timeout": 1.0})
        self.assertIsInstance(await self.send(transport), DeliveryError)
        await self.endpoint.connections[0].closed
        await transport.close()

    async def test_close_during_the_handshake(self):
        class Silent(Connection):
            def dataReceived(self, data):
                reactor.callLater(0, lambda: closing.append(transport.close()))

        closing = []
        self.endpoint = Endpoint()
        self.endpoint.protocol = Silent
        self.endpoint.listen(self, reactor)
        transport = self.transport(self.endpoint.port.getHost().port)
        self.assertIsInstance(await self.send(transport), ConnectFailed)
        await until(lambda: closing)
        await closing[0]


class PlainTests(PooledTLS, TestCase):
    """Over Twisted's transports."""

    def make(self, url, **options):
        return PooledTransport(reactor, url, by=PlainSockets(), **options)


class EpollTests(PooledTLS, TestCase):
    """Over sockets read and written past Twisted's transports."""

    def make(self, url, **options):
        if not EpollSockets.possible(reactor):
            raise SkipTest("no epoll here")
        return PooledTransport(reactor, url, by=EpollSockets(reactor), **options)


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
        error = self.assertRaises(ConfigError, client_context, TLSSettings(**settings))
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_missing(self):
        self.assertEqual(self.mistake(cacertfile="/nowhere"), "cacertfile: /nowhere cannot be read: No such file or directory")

    def test_not_pem(self):
        self.assertEqual(self.mistake(cacertfile=self.nothing), f"cacertfile: {self.nothing} holds no PEM certificate")
        self.assertIn("holds no PEM certificate", self.mistake(certfile=self.nothing, keyfile=self.key))
        self.assertIn("holds no PEM private key", self.mistake(certfile=self.certificate, keyfile=self.nothing))

    def test_files_that_never_end(self):
        fifo = self.mktemp()
        os.mkfifo(fifo)
        for path in (fifo, "/dev/zero"):
            self.assertEqual(self.mistake(cacertfile=path), f"cacertfile: {path} holds no PEM certificate")
            self.assertIn("holds no PEM certificate", self.mistake(certfile=path, keyfile=self.key))
            self.assertIn("holds no PEM private key", self.mistake(certfile=self.certificate, keyfile=path))

    def test_broken(self):
        self.assertIn(f"cacertfile: {self.broken} cannot be used: ", self.mistake(cacertfile=self.broken))
        self.assertIn(f"keyfile: {self.broken} cannot be used: ", self.mistake(certfile=self.certificate, keyfile=self.broken))

    def test_password(self):
        self.assertIn("set key_password", self.mistake(certfile=self.certificate, keyfile=self.encrypted))
        for password in ("wrong", "w" * 2000, ""):
            wrong = self.mistake(certfile=self.certificate, keyfile=self.encrypted, key_password=password)
            self.assertIn("does not open with key_password", wrong)

    def test_mismatch(self):
        self.assertIn("not the key of the certificate", self.mistake(certfile=self.certificate, keyfile=self.other))

    def test_good(self):
        files = {"cacertfile": self.ca, "certfile": self.certificate}
        for settings in (
            TLSSettings(keyfile=self.key, **files),
            TLSSettings(keyfile=self.encrypted, key_password="right", **files),
            TLSSettings(keyfile=self.key, key_password="needless", **files),
            None,
        ):
            client_context(settings)
            VerifyingPolicy(settings)

    def test_password_is_not_shown(self):
        self.assertNotIn("s3cret", repr(TLSSettings(key_password="s3cret")))
