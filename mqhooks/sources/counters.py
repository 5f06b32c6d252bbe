"""
Counters that all sources have.
"""

from __future__ import annotations

from mqhooks.events import HOOKS


class SourceCounters:
    """
    Counters of one source, from its start. Events are counted when they are handed to the sink.

    :ivar hooks: events by hook.
    :ivar connections: open connections.
    :ivar refused: events refused for lack of room.
    :ivar pauses: times that backpressure held the source up for a second or longer.
    :ivar paused: whether backpressure holds it up now.
    """

    def __init__(self) -> None:
        self.hooks = dict.fromkeys(HOOKS, 0)
        self.connections = 0
        self.refused = 0
        self.pauses = 0
        self.paused = False

    @property
    def malformed(self) -> int:
        """Inputs that should have become events and did not."""
        return 0

    @property
    def events(self) -> int:
        """Events so far, of all hooks."""
        return sum(self.hooks.values())
