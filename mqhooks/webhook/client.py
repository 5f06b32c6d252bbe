"""
The HTTP client of one webhook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from mqhooks.errors import ConfigError, ConnectionBroken, DeliveryError, DeliveryTimeout
from mqhooks.outbox.delivery import Delivery
from mqhooks.support.histogram import Histogram
from mqhooks.webhook.agent import PooledAgent
from mqhooks.webhook.connection import Answer
from mqhooks.webhook.counters import ANSWERS
from mqhooks.webhook.request import Batch, RequestTemplate
from mqhooks.webhook.settings import WebhookSettings, check_url

KEEP = 1024
"""How many bytes of an answer's body are kept for whoever wants to know why it was refused."""

Done = Callable[[Answer | DeliveryError], None]


class WebhookClient(HTTPClient):
    """
    A treq client that knows its endpoint.

    What treq can do, it does: redirects, proxies and authentication are agents around agents. The one request that is made for
    every event takes the short way: over a :class:`~mqhooks.webhook.agent.PooledAgent` it goes to the pool as bytes.

    :param reactor: connects, and tells the time for timeouts.
    :param settings: the endpoint.
    :param agent: ``None`` for a pooled one of the size and with the certificates that the settings give.
    :param now: tells the time of day, in seconds since 1970.
    :raises mqhooks.errors.ConfigError: when the URL is no place to send requests to, or the certificates don't serve.
    """

    def __init__(
        self,
        reactor: Any,
        settings: WebhookSettings,
        agent: IAgent | None = None,
        *,
        now: Callable[[], float] = time,
    ) -> None:
        try:
            check_url(settings.url)
        except ConfigError as error:
            raise ConfigError(error.message, f"webhook {settings.name}", "url") from None
        if agent is None:
            agent = PooledAgent(reactor, size=settings.pool_size, timeout=settings.cancel_timeout, tls=settings.tls)
        super().__init__(agent)
        self._reactor = reactor
        self._settings = settings
        self._template = RequestTemplate(settings, now)
        self._pooled = agent if isinstance(agent, PooledAgent) else None
        self._pool = None
        if self._pooled is not None:
            self._pool = self._pooled.pool(URI.fromBytes(settings.url.encode("ascii")))
        self._answers = Histogram(ANSWERS)

    @property
    def answers(self) -> Histogram:
        """How long the endpoint took to answer deliveries; another histogram may be put in its place."""
        return self._answers if self._pool is None else self._pool.answers

    @answers.setter
    def answers(self, histogram: Histogram) -> None:
        if self._pool is None:
            self._answers = histogram
        else:
            self._pool.answers = histogram

    def deliver(self, delivery: Delivery, done: Done) -> None:
        """
        Try a delivery once.

        :param done: called once with what came of it; possibly before this method returns.
        """
        self._send(delivery, delivery.body, done)

    def deliver_batch(self, deliveries: Sequence[Delivery], done: Done) -> None:
        """
        Try several deliveries once, in one request.

        :param deliveries: at least one.
        :param done: called once with what came of all of them; possibly before this method returns.
        """
        batch = self._template.batch(deliveries)
        self._send(batch, batch.sent, done)

    def afterwards(self, callback: Callable[[], object]) -> None:
        """
        Call something once when all answers that have come are handed over: what is done about them may be done together.

        :param callback: called before this method returns, unless more may come in this turn of the reactor.
        """
        if self._pool is None:
            callback()
        else:
            self._pool.afterwards(callback)

    def _send(self, what: Delivery | Batch, sent: bytes, done: Done) -> None:
        if self._pool is None:
            self._try(what, sent, done)
        else:
            self._pool.send(self._template.render(what, sent), done, KEEP)

    def close(self) -> Deferred[Any]:
        """
        Close the connections of a pooled agent; any other agent is its owner's.

        :returns: a ``Deferred`` that fires when none is left.
        """
        if self._pooled is None:
            closed: Deferred[Any] = Deferred()
            closed.callback(None)
            return closed
        return self._pooled.close()

    def _try(self, delivery: Delivery | Batch, sent: bytes, done: Done) -> None:
        answered = ensureDeferred(self._post(delivery, sent)).addTimeout(self._settings.cancel_timeout, self._reactor)
        answered.addErrback(self._explain).addCallback(done)

    async def _post(self, delivery: Delivery | Batch, sent: bytes) -> Answer:
        begun = self._reactor.seconds()
        headers = [*self._template.headers, *self._template.identify(delivery)]
        response = await self.post(self._settings.url, headers=_fields(headers), data=sent, unbuffered=True)
        kept = bytearray()
        length = 0

        def keep(data: bytes) -> None:
            nonlocal length
            length += len(data)
            kept.extend(data[: KEEP - len(kept)])

        await response.collect(keep)
        self.answers.observe(self._reactor.seconds() - begun)
        pairs = [(name, value) for name, values in response.headers.getAllRawHeaders() for value in values]
        return Answer(response.code, pairs, bytes(kept), length, length == len(kept))

    def _explain(self, failure: Failure) -> DeliveryError:
        error = failure.value
        if isinstance(error, DeliveryError):
            return error
        if isinstance(error, DeferredTimeout):
            return DeliveryTimeout(f"{self._settings.url}: no answer within {self._settings.cancel_timeout:g} s")
        return ConnectionBroken(f"{self._settings.url}: {failure.getErrorMessage() or type(error).__name__}")


def _fields(headers: list[tuple[str, str]]) -> Headers:
    fields = Headers()
    for name, value in headers:
        fields.addRawHeader(name, value)
    return fields
