"""
Counters of the requests from VerneMQ's webhooks.
"""

from __future__ import annotations

from mqhooks.sources.counters import SourceCounters
from mqhooks.sources.webhooks.decode import QUESTIONS


class WebhooksCounters(SourceCounters):
    """
    Counters of one listener, from its start.

    :ivar questions: questions to an authorizer, by hook. They are no events; the answer is always ``next``.
    :ivar unknown: requests of unknown hooks.
    :ivar undecodable: bodies that are not what their hook sends.
    :ivar oversized: bodies longer than ``max_body``.
    :ivar truncated: requests cut off by the end of their connection, or that came too slowly.
    :ivar invalid: requests that don't belong here: not HTTP, another path or method, no hook.
    :ivar unauthorized: requests with a wrong token or password, or without one.
    :ivar late: events that were not committed in time for their answer; they may still be committed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.questions = dict.fromkeys(QUESTIONS, 0)
        self.unknown = 0
        self.undecodable = 0
        self.oversized = 0
        self.truncated = 0
        self.invalid = 0
        self.unauthorized = 0
        self.late = 0

    def count(self, kind: str) -> None:
        """Count a refused request, by the counter's name."""
        setattr(self, kind, getattr(self, kind) + 1)

    @property
    def malformed(self) -> int:
        """Requests that should have become events and did not."""
        return self.undecodable + self.oversized + self.truncated
