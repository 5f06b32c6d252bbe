"""
Counters of what has come in, which all sources have.
"""

from __future__ import annotations

from mqhooks.events import HOOKS


class SourceCounters:
    """
    Counters of one source, from its start. Events are counted when they are handed to the sink.

    :ivar hooks: events by hook.
    :ivar connections: how many connections are open.
    :ivar refused: events that were refused because there was no room for them.
    :ivar pauses: how often backpressure held the source up for a second or longer.
    :ivar paused: whether it does so now.
    """

    def __init__(self) -> None:
        self.hooks = dict.fromkeys(HOOKS, 0)
        self.connections = 0
        self.refused = 0
        self.pauses = 0
        self.paused = False

    @property
    def malformed(self) -> int:
        """What should have become events and did not."""
        return 0

    @property
    def events(self) -> int:
        """How many events came in."""
        return sum(self.hooks.values())
