"""
What went out, counted.
"""

from __future__ import annotations

from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.support.histogram import Histogram

FAILURES = ("status", "timeout", "connect", "broken", "answer")
"""
Why an attempt failed: the endpoint answered that it may be tried again, did not answer in time, could not be connected
to, broke the connection, or answered what is no answer.
"""

AGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 259200.0)
"""The limits of :attr:`WebhookCounters.ages`, in seconds."""

ANSWERS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The limits of histograms of how long an endpoint took to answer, in seconds."""


class WebhookCounters:
    """
    Counters of one webhook, from its start.

    ``events = filtered + matched`` holds at every moment; so does ``accepted = delivered + dead + pending``, when what the
    outbox held at the start is added to what was accepted.

    :ivar events: events that came.
    :ivar filtered: those that no rule wanted.
    :ivar accepted: deliveries made of the others: one or more each.
    :ivar delivered: deliveries that the endpoint answered with 2xx.
    :ivar dead: deliveries that were given up.
    :ivar dropped: deliveries that had to make room.
    :ivar late: deliveries that came too late for the merge window to put them before a later one of their client.
    :ivar attempts: how often a delivery was tried.
    :ivar failed: attempts that failed and may be made again.
    :ivar refused: attempts that the endpoint answered for good with something else than 2xx.
    :ivar failures: the failed attempts, by why: one of :data:`FAILURES`.
    :ivar ages: how long each delivery took from its event to its success.
    :ivar answers: how long the endpoint took to answer.
    """

    def __init__(self) -> None:
        self.events = 0
        self.filtered = 0
        self.accepted = 0
        self.delivered = 0
        self.dead = 0
        self.dropped = 0
        self.late = 0
        self.attempts = 0
        self.failed = 0
        self.refused = 0
        self.failures = dict.fromkeys(FAILURES, 0)
        self.ages = Histogram(AGES)
        self.answers = Histogram(ANSWERS)

    @property
    def matched(self) -> int:
        """Events that became deliveries."""
        return self.events - self.filtered


def failure_of(result: object) -> str:
    """
    Say why an attempt failed.

    :param result: an answer that is not for good, or a :class:`~mqhooks.errors.DeliveryError`.
    :returns: one of :data:`FAILURES`.
    """
    if isinstance(result, ConnectFailed):
        return "connect"
    if isinstance(result, DeliveryTimeout):
        return "timeout"
    if isinstance(result, BadAnswer):
        return "answer"
    return "broken" if isinstance(result, ConnectionBroken) else "status"
