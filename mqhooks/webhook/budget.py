"""
Bounding what all webhooks together hold in memory.

A webhook claims at most its share of bytes of bodies, which its merge window and lanes hold: 64 MiB divided by the webhooks, at
most 16 MiB. One body may exceed it, so that any body can be sent; about two more may while the merge window is full.
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
