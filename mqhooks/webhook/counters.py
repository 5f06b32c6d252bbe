"""
What went out, counted.
"""

from __future__ import annotations


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
    :ivar failed: attempts that did not deliver.
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

    @property
    def matched(self) -> int:
        """Events that became deliveries."""
        return self.events - self.filtered
