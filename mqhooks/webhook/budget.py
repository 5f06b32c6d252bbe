"""
Bounding what all webhooks together hold in memory.

- Deliveries wait in the outbox; a webhook claims only as many bytes of bodies as it may hold in its merge window and lanes.
- Its share is an equal part of the whole. A single body may exceed it, but nobody claims anything while the whole is exceeded,
  so all of them together hold at most the limit and one body.
"""

from __future__ import annotations

from collections.abc import Callable

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
        self._used = 0
        self._shares: set[Share] = set()

    def join(self, wake: Callable[[], object]) -> Share:
        """
        Get a share.

        :param wake: called when others have made room after the budget was used up.
        """
        share = Share(self, wake)
        self._shares.add(share)
        return share

    def leave(self, share: Share) -> None:
        """Give a share back."""
        self.hold(share, 0)
        self._shares.discard(share)

    def left(self, share: Share) -> int:
        """Work out how many bytes a share may take now."""
        part = min(SHARE, self._limit // max(len(self._shares), 1)) - share.held
        return max(min(part, self._limit - self._used), 0)

    def hold(self, share: Share, held: int) -> None:
        """Note how many bytes a share holds."""
        full = self._used >= self._limit
        self._used += held - share.held
        share.held = held
        if full and self._used < self._limit:
            for other in self._shares - {share}:
                other.wake()


class Share:
    """
    One webhook's part of a :class:`Budget`.

    :ivar held: how many bytes it holds.
    :ivar wake: called when others have made room.
    """

    __slots__ = ("_budget", "held", "wake")

    def __init__(self, budget: Budget, wake: Callable[[], object]) -> None:
        self._budget = budget
        self.held = 0
        self.wake = wake

    @property
    def left(self) -> int:
        """How many bytes it may take now; 0 for none."""
        return self._budget.left(self)

    def hold(self, held: int) -> None:
        """Note how many bytes are held."""
        if held != self.held:
            self._budget.hold(self, held)

    def leave(self) -> None:
        """Give everything back, for good."""
        self._budget.leave(self)
