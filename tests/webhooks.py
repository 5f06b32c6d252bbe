"""Shared helpers for tests of the webhook room: a transport, an outbox and a sink that the test controls."""

import json
from random import Random

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from zope.interface import implementer

from mqhooks.delivery import Response
from mqhooks.interfaces import IWebhookTransport
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.testing import make_event
from mqhooks.webhook.auth import AuthenticatedTransport, credentials_for
from mqhooks.webhook.settings import RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink

URL = "http://h/hook"


def publish(client, number, **fields):
    """Make an event whose payload is a number."""
    return make_event("on_publish", client_id=client, payload=str(number).encode(), topic="t", **fields)


def respond(status, headers=(), body=b""):
    """Make an endpoint's answer."""
    return Response(status, list(headers), body, len(body), complete=True)


class Attempt:
    """A request that has no result yet."""

    def __init__(self, request, answered):
        self.request = request
        self.id = dict(request.headers).get("webhook-id")
        self._answered = answered

    @property
    def bodies(self):
        """The JSON objects in it."""
        content = self.request.body
        if content.startswith(b"["):
            return json.loads(content)
        return [json.loads(line) for line in content.splitlines()]

    @property
    def body(self):
        (body,) = self.bodies
        return body

    @property
    def client(self):
        return self.body["from_client_id"]

    @property
    def number(self):
        return int(self.body["payload"])

    def end(self, result):
        """End the attempt with a status, a response or an error."""
        if isinstance(result, Exception):
            self._answered.errback(result)
        else:
            self._answered.callback(respond(result) if isinstance(result, int) else result)


@implementer(IWebhookTransport)
class FakeTransport:
    """Ends attempts when the test says so, or at once."""

    def __init__(self):
        self.in_flight = []
        self.closed = False
        self.at_once = None

    def send(self, request):
        answered = Deferred()
        attempt = Attempt(request, answered)
        if self.at_once is None:
            self.in_flight.append(attempt)
        else:
            attempt.end(self.at_once(attempt))
        return answered

    def end(self, result=200, index=0):
        """End one attempt, and return it."""
        attempt = self.in_flight.pop(index)
        attempt.end(result)
        return attempt

    def close(self):
        self.closed = True
        return succeed(None)


class DurableOutbox(MemoryOutbox):
    """An outbox in memory that claims to outlive the process."""

    durable = True


class SinkMixin:
    """Makes a sink with a clock, a transport and an outbox that the test controls."""

    def make(self, outbox=None, *, start=True, **settings):
        self.clock, self.transport = Clock(), FakeTransport()
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        rules = settings.pop("rules", (Rule("on_message_publish"),))
        budget = settings.pop("budget", None)
        self.outbox = outbox or MemoryOutbox()
        made = WebhookSettings("w", URL, rules, **{"merge_window": 0, "retry": RetrySettings(jitter=0)} | settings)
        self.sink = WebhookSink(
            self.clock,
            made,
            self.outbox,
            self.transport if made.auth is None else self.authenticated(made),
            budget=budget,
            random=Random(0),
            now=self.clock.seconds,
        )
        if start:
            self.sink.startService()
        return self.sink

    def authenticated(self, settings):
        """Return the transport for settings that ask for authentication."""
        return AuthenticatedTransport(self.transport, credentials_for(self.clock, settings.auth), settings)

    @property
    def in_flight(self):
        return self.transport.in_flight

    def lines(self):
        """Return the lines of the log."""
        return [formatEvent(event) for event in self.logged]

    def assert_identities(self):
        """Check the identities that all counts keep."""
        counters, counts = self.sink.counters, self.outbox.counts
        self.assertEqual(counters.events, counters.filtered + counters.matched)
        self.assertEqual(counters.attempts, counters.arrived + counters.refused + counters.failed)
        self.assertEqual(counts.accepted, counts.delivered + counts.dead + counts.dropped + counts.pending)

    def end_all(self, result=200):
        """End attempts, including those that they cause, until none is in flight."""
        while self.in_flight:
            self.transport.end(result)
