"""Through a proxy: both transports keep their contract, and say what the proxy does not do."""

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.app.webhooks import transport_for
from mqhooks.delivery import Head, Request
from mqhooks.errors import ConnectFailed, DeliveryError
from mqhooks.http.limits import MAX_HEAD
from mqhooks.http.pooled import PooledTransport
from mqhooks.http.proxy import ProxySettings, TunnelEndpoint
from mqhooks.http.request import target
from mqhooks.http.sockets import PlainSockets
from mqhooks.http.treqtransport import TreqTransport
from mqhooks.webhook.settings import OAuth2Settings, WebhookSettings
from tests.contract.transport import TransportContract
from tests.endpoints import Endpoint
from tests.ports import kept_port
from tests.proxies import Proxy
from tests.test_http_tls import TLSContract
from tests.waiting import until

USER = ("user", "pass:wörd")


class ProxyMixin:
    """Makes transports that go through a proxy which wants to know who we are."""

    def proxied(self, maker, url, **options):
        proxy = Proxy(reactor, USER)
        self.proxies = [*getattr(self, "proxies", []), proxy]
        settings = proxy.settings(self, username=USER[0], password=USER[1])
        return maker(reactor, url, proxy=settings, **options)


class PassedOnContract(ProxyMixin, TransportContract):
    """What an ``http`` endpoint gets by way of a proxy."""

    def passed_on(self):
        """The requests that the proxies have got, but for those that followed on the same connection."""
        return [request for proxy in self.proxies for request in proxy.requests]

    async def test_request_arrives_as_it_is(self):
        await super().test_request_arrives_as_it_is()
        ((method, place, headers),) = self.passed_on()
        self.assertEqual((method, place), ("POST", self.url))
        self.assertEqual(headers["host"], self.url.split("/")[2])
        self.assertIsNone(self.endpoint.requests[0].header("proxy-authorization"))

    async def test_connection_refused(self):
        """The proxy's answer cannot be told from the endpoint's."""
        transport = self.start()
        await self.endpoint.port.stopListening()
        self.assertEqual(await self.status(transport), 502)


class PooledPassedOnTests(PassedOnContract, TestCase):
    def make(self, url, **options):
        return self.proxied(PooledTransport, url, **options)


class PlainPassedOnTests(PassedOnContract, TestCase):
    def make(self, url, **options):
        return self.proxied(PooledTransport, url, by=PlainSockets(), **options)


class TreqPassedOnTests(PassedOnContract, TestCase):
    def make(self, url, **options):
        return self.proxied(TreqTransport, url, **options)


class TunnelContract(TransportContract):
    """What goes through a tunnel."""

    maker = None

    def make(self, url, timeout=5.0, **options):
        self.proxy = Proxy(reactor, USER)
        settings = self.proxy.settings(self, username=USER[0], password=USER[1])
        at = target(url)
        endpoint = TunnelEndpoint(reactor, settings, timeout, at.host, at.port)
        return type(self).maker(reactor, url, timeout=timeout, endpoint=endpoint, **options)

    async def test_connection_refused(self):
        transport = self.start()
        await self.endpoint.port.stopListening()
        results = await gatherResults([self.defer(self.result(transport)) for _ in range(10)])
        self.assertEqual({type(error) for error in results}, {ConnectFailed})
        at = self.url.split("/")[2]
        self.assertTrue(str(results[0]).endswith(f" cannot connect to {at}: it answered 502"), results[0])


class PooledTunnelTests(TunnelContract, TestCase):
    maker = PooledTransport


class TreqTunnelTests(TunnelContract, TestCase):
    maker = TreqTransport


class TLSTunnelContract(ProxyMixin, TLSContract):
    """Whom TLS trusts is the same within a tunnel."""

    async def test_right_names(self):
        await super().test_right_names()
        asked = {(method, place.split(":")[0]) for proxy in self.proxies for method, place, _ in proxy.requests}
        self.assertEqual(asked, {("CONNECT", "localhost"), ("CONNECT", "127.0.0.1")})

    async def test_name_with_an_underscore(self):
        """The proxy looks names up."""

    async def test_a_proxy_that_answers_itself_is_not_the_endpoint(self):
        self.serve(dns=["localhost"])
        impostor = self.endpoint.port.getHost().port
        # The tunnel leads to a server with a good certificate of another name.
        proxy = Proxy(reactor)
        proxied = proxy.settings(self)
        connect = proxy.protocol.connect

        class Elsewhere(proxy.protocol):
            def connect(self, place, *, tunnel):
                connect(self, f"127.0.0.1:{impostor}", tunnel=tunnel)

        proxy.protocol = Elsewhere
        transport = self.transport(443, "bank.example", options={"proxy": proxied})
        error = await self.send(transport)
        self.assertIsInstance(error, ConnectFailed)
        self.assertIn("the certificate of bank.example:443 is not for bank.example", str(error))
        self.assertEqual(self.endpoint.requests, [])

    def proxied(self, maker, url, **options):
        if "proxy" in options:
            return maker(reactor, url, **options)
        return super().proxied(maker, url, **options)


class PooledTLSTests(TLSTunnelContract, TestCase):
    def make(self, url, **options):
        return self.proxied(PooledTransport, url, **options)


class TreqTLSTests(TLSTunnelContract, TestCase):
    def make(self, url, **options):
        return self.proxied(TreqTransport, url, **options)


class RefusalTests(TestCase):
    """What becomes of requests that the proxy does not pass on."""

    timeout = 120

    async def results(self, proxy, url="https://endpoint.example/hook", timeout=5.0):
        async def result(maker):
            transport = maker(reactor, url, proxy=proxy, timeout=timeout)
            try:
                return await transport.send(Request(Head("POST", url, ()), [("webhook-id", "m")], b"{}"))
            except DeliveryError as error:
                return error
            finally:
                await transport.close()

        return await gatherResults([ensureDeferred(result(maker)) for maker in (PooledTransport, TreqTransport)])

    async def assert_told(self, proxy, words, **more):
        for error in await self.results(proxy, **more):
            self.assertIsInstance(error, ConnectFailed)
            self.assertTrue(str(error).endswith(words), f"{error} instead of {words}")
            self.assertNotIn("s3cret", str(error))

    async def test_a_user_is_wanted(self):
        proxy = Proxy(reactor, ("a", "b"))
        ours = proxy.settings(self)
        at = f"127.0.0.1:{ours.port}"
        wanted = f": the proxy {at} requires a user and a password (407): write http://user:password@{at}"
        wrong = f": the proxy {at} does not accept our user and password (407)"
        for url in ("https://endpoint.example/", "http://endpoint.example/"):
            await self.assert_told(ours, url.rstrip("/") + wanted, url=url)
            await self.assert_told(ProxySettings("127.0.0.1", ours.port, "a", "s3cret"), url.rstrip("/") + wrong, url=url)

    async def test_refused_tunnels(self):
        for answer, words in {
            b"HTTP/1.1 403 Filtered\r\n\r\n": "refuses to connect to endpoint.example:443: it answered 403",
            b"HTTP/1.1 401 Who\r\n\r\n": "requires a user and a password (401): write http://user:password@{at}",
            b"HTTP/1.0 502 Bad\nX: y\n\n": "cannot connect to endpoint.example:443: it answered 502",
            b"HTTP/1.1 302 Found\r\n\r\n": "cannot connect to endpoint.example:443: it answered 302",
            b"HTTP/1.1 2000 What\r\n\r\n": "cannot connect to endpoint.example:443: it answered 000",
            b"SSH-2.0-OpenSSH_9.2\r\n": "does not speak HTTP: is it an HTTP proxy?",
            b"HTTP/1.1 200 " + b"x" * MAX_HEAD: f"answers CONNECT with more than {MAX_HEAD} bytes",
        }.items():
            proxy = Proxy(reactor, answer=answer)
            ours = proxy.settings(self)
            at = f"127.0.0.1:{ours.port}"
            await self.assert_told(ours, f"https://endpoint.example: the proxy {at} {words.replace('{at}', at)}")
            await until(lambda proxy=proxy: proxy.ended == len(proxy.connections) == 2)

    async def test_interim_answers_are_none(self):
        proxy = Proxy(reactor, answer=b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\n\r\n")
        await self.assert_told(proxy.settings(self), "refuses to connect to endpoint.example:443: it answered 403")

    async def test_thousands_of_interim_answers_are_none(self):
        proxy = Proxy(reactor, answer=b"HTTP/1.1 100\r\n\r\n" * 4000 + b"HTTP/1.1 403 No\r\n\r\n")
        await self.assert_told(proxy.settings(self), "refuses to connect to endpoint.example:443: it answered 403")

    async def test_a_proxy_that_does_not_answer(self):
        proxy = Proxy(reactor, answer=b"HTTP/1.1 2")
        ours = proxy.settings(self)
        await self.assert_told(ours, f"the proxy 127.0.0.1:{ours.port} does not answer CONNECT in time", timeout=4.0)
        await until(lambda: proxy.ended == 2)

    async def test_a_proxy_that_hangs_up(self):
        class HangUp(Protocol):
            def connectionMade(self):
                self.transport.loseConnection()

        port = reactor.listenTCP(0, Factory.forProtocol(HangUp), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        for error in await self.results(ProxySettings("127.0.0.1", port.getHost().port)):
            self.assertIsInstance(error, ConnectFailed)
            self.assertIn("closed the connection instead of connecting to endpoint.example:443", str(error))

    async def test_a_proxy_that_is_not_there(self):
        port = kept_port(self)
        for url in ("https://endpoint.example/", "http://endpoint.example/"):
            for error in await self.results(ProxySettings("127.0.0.1", port), url):
                self.assertIsInstance(error, ConnectFailed)
                self.assertIn(f": the proxy 127.0.0.1:{port} cannot be reached: Connection was refused", str(error))
            for error in await self.results(ProxySettings("nowhere.invalid", 1), url, timeout=60.0):
                self.assertIsInstance(error, ConnectFailed)
                problem = "no address was found for nowhere.invalid"
                self.assertIn(f"the proxy nowhere.invalid:1 cannot be reached: {problem}", str(error))

    async def test_closing_while_the_tunnel_is_asked_for(self):
        for maker in (PooledTransport, TreqTransport):
            proxy = Proxy(reactor, answer=b"")
            url = "https://endpoint.example/"
            transport = maker(reactor, url, proxy=proxy.settings(self))
            sent = transport.send(Request(Head("POST", url, ()), [], b""))
            await until(lambda proxy=proxy: proxy.requests)
            await transport.close()
            try:
                await sent
            except DeliveryError:
                pass
            await until(lambda proxy=proxy: proxy.ended == 1)

    async def test_ipv6(self):
        proxy = Proxy(reactor, answer=b"HTTP/1.1 403 No\r\n\r\n")
        await self.assert_told(
            proxy.settings(self), "refuses to connect to [2001:db8::1]:443: it answered 403", url="https://[2001:db8::1]/"
        )
        self.assertEqual({place for _, place, _ in proxy.requests}, {"[2001:db8::1]:443"})


class TunnelTests(SynchronousTestCase):
    """A tunnel by itself."""

    def test_what_comes_right_behind_the_answer_is_not_lost(self):
        clock = MemoryReactorClock()
        got = []

        class Inner(Protocol):
            def dataReceived(self, data):
                got.append(data)

            def connectionLost(self, reason):
                got.append("lost")

        endpoint = TunnelEndpoint(clock, ProxySettings("127.0.0.1", 1), 5, "h", 443)
        opened = endpoint.connect(Factory.forProtocol(Inner))
        _, _, factory, *_ = clock.tcpClients[0]
        tunnel = factory.buildProtocol(None)
        transport = StringTransport()
        tunnel.makeConnection(transport)
        self.assertEqual(transport.value(), b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n")
        for piece in (b"HTTP/1.1 2", b"00 OK\r\nX: y\r", b"\n\r\nhello"):
            tunnel.dataReceived(piece)
        inner = self.successResultOf(opened)
        self.assertIs(inner.transport, transport)
        tunnel.dataReceived(b"world")
        tunnel.connectionLost(None)
        self.assertEqual(got, [b"hello", b"world", "lost"])
        self.assertEqual([call for call in clock.getDelayedCalls() if call.active()], [])


class WebhookTests(TestCase):
    """As a webhook has it."""

    timeout = 120

    async def test_the_token_goes_through_the_proxy_too(self):
        grant = b'{"access_token": "granted", "token_type": "Bearer"}'
        endpoint, server = Endpoint(), Endpoint(lambda request: request.connection.reply(200, grant))
        url, token_url = endpoint.listen(self, reactor), server.listen(self, reactor)
        proxy = Proxy(reactor, USER)
        ours = proxy.settings(self, username=USER[0], password=USER[1])
        for transport in ("pooled", "treq"):
            auth = OAuth2Settings(token_url, "a", "b", proxy=ours)
            sender = transport_for(reactor, WebhookSettings("w", url, (), auth=auth, proxy=ours, transport=transport))
            await sender.send(Request(Head("POST", url, ()), [("webhook-id", "m")], b"{}"))
            await sender.close()
        self.assertEqual([place for _, place, _ in proxy.requests], [token_url, url] * 2)
        self.assertEqual({request.header("authorization") for request in endpoint.requests}, {"Bearer granted"})
