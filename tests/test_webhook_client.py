"""The client: bytes the short way, treq for the rest."""

import treq
from standardwebhooks import Webhook
from treq.testing import RequestTraversalAgent, StringStubbingResource
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, RedirectAgent
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer
from zope.interface.verify import verifyObject

import mqhooks
from mqhooks.errors import BadAnswer, ConfigError, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.delivery import Delivery
from mqhooks.webhook.agent import PooledAgent
from mqhooks.webhook.client import KEEP, WebhookClient
from mqhooks.webhook.connection import MAX_BODY
from mqhooks.webhook.request import RequestTemplate
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.signature import Signer
from tests.endpoints import Endpoint

RULES = (Rule("on_publish"),)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DELIVERY = Delivery("msg_1", "c", 0, '{"a":"é"}'.encode())


class TemplateTests(SynchronousTestCase):
    """A request's bytes."""

    def render(self, url="http://h/hook", **more):
        template = RequestTemplate(WebhookSettings("w", url, RULES, **more), lambda: 1614265330.9)
        return template.render(DELIVERY, DELIVERY.body)

    def test_request(self):
        agent = f"mqhooks/{mqhooks.__version__}".encode()
        self.assertEqual(
            self.render("http://127.0.0.1:18880/hook?a=1"),
            b"POST /hook?a=1 HTTP/1.1\r\nHost: 127.0.0.1:18880\r\ncontent-type: application/json\r\n"
            b"user-agent: " + agent + b'\r\nwebhook-id: msg_1\r\nContent-Length: 10\r\n\r\n{"a":"\xc3\xa9"}',
        )

    def test_headers_as_configured(self):
        request = self.render(headers=(("X-B", "1"), ("X-a", "zwei"), ("Content-Type", "text/x"), ("User-Agent", "me")))
        lines = b"X-B: 1\r\nX-a: zwei\r\nContent-Type: text/x\r\nUser-Agent: me\r\nwebhook-id"
        self.assertIn(lines, request)

    def test_signed(self):
        signature = Signer([SECRET]).sign("msg_1", 1614265330, DELIVERY.body).encode()
        self.assertIn(
            b"\r\nwebhook-id: msg_1\r\nwebhook-timestamp: 1614265330\r\nwebhook-signature: "
            + signature
            + b"\r\nContent-Length",
            self.render(secrets=(SECRET,)),
        )

    def test_each_attempt_has_its_own_time(self):
        times = iter([1.0, 2.0])
        template = RequestTemplate(WebhookSettings("w", "http://h/", RULES, secrets=(SECRET,)), lambda: next(times))
        first, second = dict(template.identify(DELIVERY)), dict(template.identify(DELIVERY))
        self.assertEqual((first["webhook-timestamp"], second["webhook-timestamp"]), ("1", "2"))
        self.assertEqual(first["webhook-id"], second["webhook-id"])
        self.assertNotEqual(first["webhook-signature"], second["webhook-signature"])

    def test_no_path(self):
        self.assertTrue(self.render("http://h").startswith(b"POST / HTTP/1.1\r\nHost: h\r\n"))

    def test_ipv6(self):
        self.assertIn(b"\r\nHost: [::1]:8080\r\n", self.render("http://[::1]:8080/"))


class ClientCase(TestCase):
    timeout = 10

    def serve(self, answer=None):
        self.endpoint = Endpoint(answer)
        return self.endpoint.listen(self, reactor)

    def client(self, url, agent=None, **more):
        client = WebhookClient(reactor, WebhookSettings("w", url, RULES, **more), agent)
        self.addCleanup(client.close)
        return client

    def deliver(self, client):
        result = Deferred()
        client.deliver(DELIVERY, result.callback)
        return result


class MistakeTests(SynchronousTestCase):
    def test_urls(self):
        for url in ("ftp://h/", "http:///x", "h:80", "http://hé/", "http://u:p@h/"):
            error = self.assertRaises(ConfigError, WebhookClient, MemoryReactorClock(), WebhookSettings("w", url, RULES))
            self.assertTrue(str(error).startswith("webhook w: url: "), str(error))
            self.assertNotIn("\n", str(error))


class ShortWayTests(ClientCase):
    """Over a pooled agent."""

    async def test_deliver(self):
        client = self.client(self.serve())
        answer = await self.deliver(client)
        self.assertEqual(answer.status, 200)
        (request,) = self.endpoint.requests
        self.assertEqual((request.method, request.path, request.body), ("POST", "/hook", DELIVERY.body))
        self.assertEqual(request.header("webhook-id"), "msg_1")
        self.assertEqual(request.header("content-type"), "application/json")

    async def test_refusals_are_kept_in_part(self):
        client = self.client(self.serve(lambda request: request.connection.reply(400, b"x" * 5000)))
        answer = await self.deliver(client)
        self.assertEqual((answer.status, len(answer.body), answer.length), (400, KEEP, 5000))

    async def test_signed(self):
        await self.deliver(self.client(self.serve(), secrets=(SECRET,)))
        (request,) = self.endpoint.requests
        Webhook(SECRET).verify(request.body, dict(request.headers))

    async def test_long_bodies(self):
        body = b'"%b"' % (b"x" * (3 << 20))
        client = self.client(self.serve(), secrets=(SECRET,))
        result = Deferred()
        client.deliver(Delivery("msg_1", "c", 0, body), result.callback)
        self.assertEqual((await result).status, 200)
        (request,) = self.endpoint.requests
        self.assertEqual(request.body, body)
        Webhook(SECRET).verify(request.body, dict(request.headers))

    async def test_localhost(self):
        url = self.serve().replace("127.0.0.1", "localhost")
        self.assertEqual((await self.deliver(self.client(url))).status, 200)


class TreqTests(ClientCase):
    """What treq does over the same agent and pool."""

    async def test_long_bodies(self):
        client, result = self.client(self.serve(), Agent(reactor)), Deferred()
        client.deliver(Delivery("msg_1", "c", 0, b"x" * (3 << 20)), result.callback)
        self.assertEqual((await result).status, 200)
        self.assertEqual([request.body for request in self.endpoint.requests], [b"x" * (3 << 20)])

    async def test_every_verb_shares_the_pool(self):
        url = self.serve(lambda request: request.connection.reply(200, request.method.encode() + request.body, [("X", "y")]))
        client = self.client(url, pool_size=1)
        await self.deliver(client)
        response = await client.get(url, params={"a": "1"})
        verifyObject(IResponse, response.original)
        self.assertEqual((response.code, response.phrase, await response.content()), (200, b"OK", b"GET"))
        self.assertEqual(response.headers.getRawHeaders("x"), ["y"])
        self.assertEqual(self.endpoint.requests[-1].path, "/hook?a=1")
        response = await client.post(url, json={"b": 2}, headers={"X-Y": ["1", "2"]})
        self.assertEqual(await response.text(), 'POST{"b":2}')
        self.assertEqual([value for name, value in self.endpoint.requests[-1].headers if name.lower() == "x-y"], ["1", "2"])
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_many_at_once_stay_within_the_pool(self):
        url = self.serve(lambda request: reactor.callLater(0.01, request.connection.reply))
        client = self.client(url, pool_size=3)
        responses = await gatherResults([client.get(url) for _ in range(12)])
        self.assertEqual({response.code for response in responses}, {200})
        self.assertEqual(self.endpoint.most_open, 3)

    async def test_redirects_when_asked_for(self):
        def answer(request):
            if request.path == "/hook":
                request.connection.reply(307, b"", [("Location", "/moved")])
            else:
                request.connection.reply()

        url = self.serve(answer)
        agent = PooledAgent(reactor, timeout=5)
        self.addCleanup(agent.close)
        client = self.client(url, RedirectAgent(agent))
        response = await treq.client.HTTPClient(RedirectAgent(agent)).get(url)
        self.assertEqual((response.code, self.endpoint.requests[-1].path), (200, "/moved"))
        # A POST is not redirected without the user's consent: RFC 9110, section 15.4.8.
        self.assertIsInstance(await self.deliver(client), ConnectionBroken)

    async def test_a_long_answer_is_an_error(self):
        url = self.serve(lambda request: request.connection.reply(200, b"x" * (MAX_BODY + 1)))
        await self.assertFailure(self.client(url).get(url), BadAnswer)

    async def test_no_connection(self):
        url = self.serve()
        client = self.client(url)
        await self.endpoint.stop(self.endpoint.port)
        await self.assertFailure(client.get(url), ConnectFailed)

    async def test_a_body_that_cannot_be_read(self):
        url = self.serve()

        class Broken:
            length = 3

            def startProducing(self, consumer):
                return fail(RuntimeError("no body"))

        await self.assertFailure(PooledAgent(reactor).request(b"POST", url.encode(), None, Broken()), RuntimeError)
        self.assertEqual(self.endpoint.requests, [])

    def test_interface(self):
        verifyObject(IAgent, PooledAgent(reactor))

    def test_scheme(self):
        self.assertRaises(SchemeNotSupported, PooledAgent(reactor).request, b"GET", b"ftp://h/")


class OtherAgentTests(ClientCase):
    """Over any agent that treq knows."""

    async def test_the_stock_agent(self):
        url = self.serve(lambda request: request.connection.reply(503, b"y" * 5000))
        client = self.client(url, Agent(reactor), headers=(("X-A", "b"), ("X-C", "d")))
        answer = await self.deliver(client)
        self.assertEqual((answer.status, answer.body, answer.length, answer.complete), (503, b"y" * KEEP, 5000, False))
        (request,) = self.endpoint.requests
        self.assertEqual((request.method, request.path, request.body), ("POST", "/hook", DELIVERY.body))
        self.assertEqual((request.header("x-a"), request.header("x-c")), ("b", "d"))
        self.assertEqual((request.header("webhook-id"), request.header("content-type")), ("msg_1", "application/json"))

    async def test_signed(self):
        await self.deliver(self.client(self.serve(), Agent(reactor), secrets=(SECRET,)))
        (request,) = self.endpoint.requests
        Webhook(SECRET).verify(request.body, dict(request.headers))

    async def test_no_connection(self):
        url = self.serve()
        await self.endpoint.stop(self.endpoint.port)
        self.assertIsInstance(await self.deliver(self.client(url, Agent(reactor))), ConnectionBroken)


class TreqTestingTests(TestCase):
    """Over treq's own test agents."""

    def client(self, agent):
        self.clock = Clock()
        settings = WebhookSettings("w", "http://h/hook", RULES, headers=(("X-A", "b"),), cancel_timeout=5)
        return WebhookClient(self.clock, settings, agent)

    async def test_stub(self):
        seen = []

        def respond(method, url, params, headers, data):
            seen.append((method, url, headers[b"X-A"], headers[b"Webhook-Id"], data))
            return 202, {}, b"taken"

        agent = RequestTraversalAgent(StringStubbingResource(respond))
        results = []
        self.client(agent).deliver(DELIVERY, results.append)
        while not results:
            agent.flush()
            await deferLater(reactor, 0)
        self.assertEqual((results[0].status, results[0].body), (202, b"taken"))
        self.assertEqual(seen, [(b"POST", "http://h/hook", [b"b"], [b"msg_1"], DELIVERY.body)])

    def test_timeout(self):
        @implementer(IAgent)
        class Silent:
            def request(self, method, uri, headers=None, bodyProducer=None):
                return Deferred()

        results = []
        self.client(Silent()).deliver(DELIVERY, results.append)
        self.clock.advance(4.9)
        self.assertEqual(results, [])
        self.clock.advance(0.2)
        self.assertIsInstance(results[0], DeliveryTimeout)
        self.assertEqual(str(results[0]), "http://h/hook: no answer within 5 s")

    def test_closing_leaves_a_foreign_agent_alone(self):
        self.successResultOf(self.client(object()).close())
