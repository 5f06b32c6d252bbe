"""
Bounding what all webhooks together hold in memory.

What waits is in the outbox; a webhook claims only as many bytes of bodies as it may hold in its merge window and lanes: an
equal part of the whole. What one of them holds takes nothing from the others, however long it is kept. A body that is longer
than what is left is claimed all the same, so each holds at most its part and one body.
"""

from __future__ import annotations

LIMIT = 64 << 20
"""Bytes of bodies that all webhooks together hold."""

SHARE = 16 << 20
"""Bytes of bodies that one webhook holds at most."""


class Budget:
    """
    Bytes that several webhooks share.

    :param limit: how many.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._members: set[object] = set()

    def join(self, member: object) -> None:
        """Take part."""
        self._members.add(member)

    def leave(self, member: object) -> None:
        """Take part no longer."""
        self._members.discard(member)

    @property
    def part(self) -> int:
        """How many bytes each may hold."""
        return min(SHARE, self._limit // max(len(self._members), 1))
