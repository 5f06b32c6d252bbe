"""
What an outbox has taken over since the process began, and what became of it.
"""

from __future__ import annotations

import msgspec


class Totals(msgspec.Struct, frozen=True):
    """
    Deliveries, counted since the process began: ``accepted = delivered + dead + dropped + pending`` holds at every moment.

    :param appended: made of events.
    :param resumed: left by an earlier process.
    :param replayed: dead letters that were put back.
    :param delivered: those that have arrived.
    :param dead: those that became dead letters, each time that they did.
    :param dropped: those that had to make room or are lost.
    :param pending: those that wait, or are under way.
    """

    appended: int
    resumed: int
    replayed: int
    delivered: int
    dead: int
    dropped: int
    pending: int

    @property
    def accepted(self) -> int:
        """All that were taken over."""
        return self.appended + self.resumed + self.replayed
