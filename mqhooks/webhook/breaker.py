"""
Telling an endpoint that is down from deliveries that fail.
"""

from __future__ import annotations

from mqhooks.errors import ConnectFailed
from mqhooks.outbox.delivery import Delivery

IN_A_ROW = 10
"""So many different deliveries that fail, and none that doesn't in between, are the endpoint's failure."""


class Breaker:
    """
    Decides how many attempts may be under way.

    While the endpoint is down it is one at a time, a probe. When it answers again, each success doubles the number, up to all.

    :param most: how many attempts are under way when all is well.
    :ivar down: whether the endpoint is down.
    :ivar probes: how many attempts have failed since it is.
    :ivar limit: how many attempts may be under way.
    :ivar well: whether nothing has failed lately, and all attempts may be under way.
    """

    def __init__(self, most: int) -> None:
        self.down = False
        self.probes = 0
        self.limit = most
        self.well = True
        self._most = most
        self._failed: set[str] = set()

    def answered(self) -> bool:
        """
        Note an attempt that shows that the endpoint works.

        :returns: whether it was down before.
        """
        was_down, self.down = self.down, False
        self.probes = 0
        self._failed.clear()
        if self.limit < self._most:
            self.limit = min(self._most, max(1, self.limit * 2))
        self.well = self.limit == self._most
        return was_down

    def failed(self, delivery: Delivery, result: object) -> bool:
        """
        Note an attempt that failed in a way that another attempt may not.

        :returns: whether the endpoint is down. Then the attempt says nothing of the delivery, and nothing more is to be tried
            until :meth:`probe`.
        """
        self.well = False
        self._failed.add(delivery.id)
        if not self.down and not isinstance(result, ConnectFailed) and len(self._failed) < IN_A_ROW:
            return False
        self.down = True
        self.limit = 0
        return True

    def probe(self) -> None:
        """Let one attempt through."""
        self.well = False
        self.probes += 1
        self.limit = 1
