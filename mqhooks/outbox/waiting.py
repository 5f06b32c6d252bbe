"""
A claim that waits until there is something to hand out; every outbox needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from mqhooks.delivery import Delivery

Take = Callable[[int, int], Sequence[Delivery]]


class WaitingClaim:
    """
    Answers claims, at once or when :meth:`serve` finds something; one may wait at a time.

    :param take: called with a number of deliveries and an approximate number of bytes; returns unclaimed deliveries, or none.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._waiting: Deferred[Sequence[Delivery]] | None = None
        self._limits = (0, 0)

    def __call__(self, limit: int, size: int) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """
        Claim, as :meth:`mqhooks.interfaces.IOutbox.claim` says.

        :raises RuntimeError: when another claim waits.
        """
        if self._waiting is not None:
            raise RuntimeError("a claim is already waiting")
        claimed = self._take(limit, size)
        if claimed:
            return claimed
        self._limits = limit, size
        waiting: Deferred[Sequence[Delivery]] = Deferred(self._forget)
        self._waiting = waiting
        return waiting

    @property
    def waits(self) -> bool:
        """Whether a claim waits."""
        return self._waiting is not None

    def serve(self) -> None:
        """Answer the waiting claim, if there is something for it."""
        waiting = self._waiting
        if waiting is None:
            return
        claimed = self._take(*self._limits)
        if claimed:
            self._waiting = None
            waiting.callback(claimed)

    def cancel(self) -> None:
        """Cancel the waiting claim, if any."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _forget(self, waiting: Deferred[Sequence[Delivery]]) -> None:
        self._waiting = None
