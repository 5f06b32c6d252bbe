"""
The counters of one webhook's sink that no other part keeps.

The outbox counts what is accepted, delivered, dead, dropped and pending (:class:`mqhooks.delivery.Counts`), so that these
numbers always add up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mqhooks.delivery import Delivery, Response
from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryError, DeliveryTimeout, NotAuthenticated
from mqhooks.support.histogram import Histogram

FAILURES = ("status", "timeout", "connect", "broken", "answer")
"""
Causes of a failed attempt: the endpoint answered with a status that is retried, did not answer in time, could not be reached,
broke the connection, or answered with something that is not HTTP.
"""

AUTH = "auth"
"""Cause of a failed attempt: there was nothing to authenticate with. Only webhooks that authenticate count it."""

AGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 259200.0)
"""The bounds of :attr:`WebhookCounters.ages`, in seconds."""

ANSWERS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The bounds of :attr:`WebhookCounters.answers`, in seconds."""


TRIED = 100
"""Number of attempts to remember, at most 4 KiB and a URL each."""

SHOWN = 512
"""Number of characters to remember of a client, and of the reason why there was no answer."""


class Attempt(NamedTuple):
    """
    One request and its result. The values may contain secrets; hide them before showing them.

    :param at: time of its end, in seconds since 1970.
    :param seconds: duration.
    :param id: id of its delivery, or of the first of a batch; likewise ``client``.
    :param together: number of deliveries that shared the request.
    :param url: the endpoint; the request's own ``path``, if it has one, replaces that of the URL.
    :param status: the answer's status; 0 without an answer.
    :param said: the first KiB of the answer's body; without an answer, the reason.
    """

    at: float
    seconds: float
    id: str
    client: str
    together: int
    url: str
    path: str | None
    status: int
    said: bytes


class LastFailure:
    """
    The last failed attempt.

    :ivar at: time, in seconds since 1970.
    :ivar reason: the reason, without anything in the URL that may be a credential.
    :ivar status: the response's status; 0 without a response.
    :ivar body: the beginning of the response's body.
    """

    __slots__ = ("at", "body", "reason", "status")

    def __init__(self, at: float, reason: str, status: int, body: bytes) -> None:
        self.at = at
        self.reason = reason
        self.status = status
        self.body = body


class WebhookCounters:
    """
    Counters of one webhook since the process started, and its last failure. They outlive its sinks.

    ``events = filtered + matched`` and ``attempts = arrived + refused + failed`` hold at every moment.

    :ivar events: events received.
    :ivar filtered: events that no rule wanted.
    :ivar late: deliveries that came too late for the merge window to put them before a later one of their client.
    :ivar attempts: deliveries tried; each delivery of a batch counts.
    :ivar failed: attempts that failed and may be made again.
    :ivar refused: attempts that the endpoint refused.
    :ivar failures: the failed attempts by cause, one of :data:`FAILURES`, or :data:`AUTH`.
    :ivar ages: time from each event to its delivery.
    :ivar answers: time until the endpoint's answer, including the wait for a connection.
    :ivar failure: the last failed attempt; ``None`` if none has failed.
    :ivar refusal: the last failed attempt that got an answer.
    """

    def __init__(self) -> None:
        self.events = 0
        self.filtered = 0
        self.late = 0
        self.attempts = 0
        self.failed = 0
        self.refused = 0
        self.failures = dict.fromkeys(FAILURES, 0)
        self.ages = Histogram(AGES)
        self.answers = Histogram(ANSWERS)
        self.failure: LastFailure | None = None
        self.refusal: LastFailure | None = None
        # Plain tuples: making each of them an Attempt would cost a hundredth of a delivery.
        self._tried: deque[tuple[float, float, str, str, int, str, str | None, int, bytes]] = deque(maxlen=TRIED)

    def note(
        self, at: float, seconds: float, deliveries: Sequence[Delivery], url: str, result: Response | DeliveryError
    ) -> None:
        """
        Remember an attempt.

        :param deliveries: the deliveries that shared the request; for the other parameters see :class:`Attempt`.
        :param result: the answer, or the reason why there is none.
        """
        first = deliveries[0]
        path = None if first.variation is None else first.variation.path
        if isinstance(result, Response):
            status, said = result.status, result.body
        else:
            status, said = 0, str(result)[:SHOWN].encode()
        self._tried.append((at, seconds, first.id, first.client[-SHOWN:], len(deliveries), url, path, status, said))

    @property
    def tried(self) -> list[Attempt]:
        """The last :data:`TRIED` attempts, including tests, oldest first."""
        return [Attempt(*values) for values in self._tried]

    @property
    def matched(self) -> int:
        """Events that became deliveries."""
        return self.events - self.filtered

    @property
    def arrived(self) -> int:
        """Attempts that the endpoint answered with 2xx."""
        return self.attempts - self.failed - self.refused


def failure_of(result: object) -> str:
    """
    Return the cause of a failed attempt.

    :param result: a response, or a :class:`~mqhooks.errors.DeliveryError`.
    :returns: one of :data:`FAILURES`, or :data:`AUTH`.
    """
    if isinstance(result, NotAuthenticated):
        return AUTH
    if isinstance(result, ConnectFailed):
        return "connect"
    if isinstance(result, DeliveryTimeout):
        return "timeout"
    if isinstance(result, BadAnswer):
        return "answer"
    return "broken" if isinstance(result, ConnectionBroken) else "status"
