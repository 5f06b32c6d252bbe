"""The transport that sends through treq."""

from treq.testing import RequestTraversalAgent, StringStubbingResource
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, RedirectAgent
from twisted.web.iweb import IAgent
from zope.interface import implementer

from mqhooks.delivery import Head, Request
from mqhooks.errors import DeliveryTimeout
from mqhooks.http.treqtransport import TreqTransport
from tests.contract.transport import EarlyAnswerContract, TransportContract
from tests.waiting import Ahead, until


class OwnAgentTests(EarlyAnswerContract, TransportContract, TestCase):
    """Over Twisted's agent, made here."""

    def make(self, url, **options):
        self.clock = Ahead()
        return TreqTransport(self.clock, url, **options)

    async def test_old_connections_are_used_no_more(self):
        transport = self.start(size=2, max_age=100.0)
        for _ in range(2):
            self.assertEqual(await self.status(transport), 200)
        self.clock.ahead = 101.0
        for _ in range(3):
            self.assertEqual(await self.status(transport), 200)
        self.assertEqual(len(self.endpoint.connections), 2)
        await until(lambda: not self.endpoint.connections[0].transport.connected)

    async def test_a_request_on_an_old_connection_is_answered(self):
        transport = self.start(lambda request: None, size=2, max_age=100.0)
        results = [self.defer(self.status(transport))]
        await until(lambda: self.endpoint.requests)
        self.clock.ahead = 101.0
        results.append(self.defer(self.status(transport)))
        await until(lambda: len(self.endpoint.requests) == 2)
        for connection in self.endpoint.connections:
            connection.reply()
        self.assertEqual([await result for result in results], [200, 200])
        await until(lambda: not self.endpoint.connections[0].transport.connected)


class InjectedAgentTests(EarlyAnswerContract, TransportContract, TestCase):
    """Over an agent that somebody else owns, without persistent connections."""

    def make(self, url, timeout=5.0, **options):
        return TreqTransport(reactor, url, Agent(reactor), timeout=timeout)

    def connections_are_not_kept(self):
        """Not what this agent does."""

    test_connection_is_reused = connections_are_not_kept
    test_answers_of_all_kinds_leave_the_connection_usable = connections_are_not_kept
    test_beginning_of_a_long_body_is_kept = connections_are_not_kept

    def request_has_to_be_written_first(self):
        """Only its owner can say what this agent does instead."""

    test_answer_before_the_end_of_a_long_request_has_no_end = request_has_to_be_written_first
    test_connection_that_does_not_take_the_rest_of_a_request_is_not_used_again = request_has_to_be_written_first
    test_close_does_not_wait_for_an_endpoint_that_does_not_read = request_has_to_be_written_first


class TestAgentTests(TestCase):
    """Over treq's own test agents, and stranger ones."""

    request = Request(Head("POST", "http://h/hook", (("X-A", "b"),)), [("webhook-id", "msg_1")], b"{}")

    async def test_stub_gets_the_request(self):
        seen = []

        def respond(method, url, params, headers, data):
            seen.append((method, url, headers[b"X-A"], headers[b"Webhook-Id"], data))
            return 202, {}, b"taken"

        agent = RequestTraversalAgent(StringStubbingResource(respond))
        answered = TreqTransport(Clock(), "http://h/hook", agent).send(self.request)
        while not answered.called:
            agent.flush()
            await deferLater(reactor, 0)
        response = await answered
        self.assertEqual((response.status, response.body), (202, b"taken"))
        self.assertEqual(seen, [(b"POST", "http://h/hook", [b"b"], [b"msg_1"], b"{}")])

    def test_timeout_is_exact(self):
        @implementer(IAgent)
        class Silent:
            def request(self, method, uri, headers=None, bodyProducer=None):
                return Deferred()

        clock = Clock()
        answered = TreqTransport(clock, "http://h/hook", Silent(), timeout=5).send(self.request)
        clock.advance(4.9)
        self.assertNoResult(answered)
        clock.advance(0.1)
        error = self.failureResultOf(answered, DeliveryTimeout).value
        self.assertEqual(str(error), "http://h: no answer within 5 s")

    def test_closing_leaves_a_foreign_agent_alone(self):
        self.successResultOf(TreqTransport(Clock(), "http://h/hook", RedirectAgent(Agent(reactor))).close())
