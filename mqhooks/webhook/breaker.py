"""
The circuit breaker: decides whether the endpoint fails, or only some deliveries.

Two things look alike at first: an endpoint that is down, and clients whose poisoned messages a healthy endpoint cannot take.

- The test is whether other clients still succeed: a client that fails again does not count again, and while the endpoint
  seems to be down, the next probe is a delivery of a client whose last attempt did not fail.
- A refusal counts like a failure only if it says more about the endpoint than about the delivery (:data:`WHOLESALE`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from mqhooks.delivery import Delivery, Response
from mqhooks.errors import ConnectFailed

IN_A_ROW = 10
"""The endpoint is down when this many deliveries of different clients have failed without a success between them."""

REMEMBERED = 1 << 16
"""Number of failing clients to remember; beyond that, those that failed longest ago are forgotten."""

PRESSED = frozenset({429, 503})
"""Statuses that ask for less load: each halves the number of attempts that may be in flight."""

WHOLESALE = frozenset({*range(300, 400), 401, 403, 404, 405, 410})
"""
Refusals that say more about the endpoint than about a delivery: an expired token, a missing route, a redirect. When an endpoint
answers nothing else, it counts as down.
"""


class Breaker:
    """
    A circuit breaker: decides how many attempts may be in flight.

    While it is open, one attempt at a time goes out, the probe. Once a probe has succeeded, each success doubles the limit.
    While it is closed, :data:`PRESSED` statuses halve the limit, and each success raises it by one.

    :param most: the limit while the endpoint works.
    :ivar down: whether the breaker is open.
    :ivar refusing: whether it is open because the endpoint refuses everything.
    :ivar probes: number of probes that have failed since it opened.
    :ivar limit: number of attempts that may be in flight.
    :ivar well: whether nothing has failed lately and all attempts may be in flight.
    :ivar failing: clients whose last attempt failed, the latest failure last.
    """

    def __init__(self, most: int) -> None:
        self.down = False
        self.refusing = False
        self.probes = 0
        self.limit = most
        self.well = True
        self._most = most
        # The limit that the endpoint's 429 and 503 suggest.
        self._bearable = most
        # Ids of deliveries that have failed since the last success, only those of clients that had not failed before.
        self._failed: set[str] = set()
        self._refused: set[str] = set()
        self._refused_clients: set[str] = set()
        self.failing: dict[str, None] = {}

    def succeeded(self) -> bool:
        """
        Note a success.

        :returns: whether the breaker was open before.
        """
        self.refusing = False
        self._refused.clear()
        self._refused_clients.clear()
        if self._bearable < self._most:
            self._bearable += 1
        return self.answered()

    def answered(self) -> bool:
        """
        Note an answer that shows that the endpoint works, even if it is not a success. Don't call it while the endpoint
        refuses everything.

        :returns: whether the breaker was open before.
        """
        was_down, self.down = self.down, False
        self.probes = 0
        self._failed.clear()
        if self.limit < self._bearable:
            self.limit = min(self._bearable, max(1, self.limit * 2))
        self.well = self.limit == self._most and not self._refused
        return was_down

    def arrived(self, deliveries: Iterable[Delivery]) -> None:
        """Note that deliveries have arrived: their clients no longer fail."""
        if self.failing:
            for delivery in deliveries:
                self.failing.pop(delivery.client, None)

    def failed(self, delivery: Delivery, result: object) -> bool:
        """
        Note an attempt whose failure may be temporary.

        :returns: whether the breaker is open. Then the attempt says nothing about the delivery, and nothing more is sent before
            :meth:`probe`.
        """
        self.well = False
        if len(self._failed) < IN_A_ROW and delivery.client not in self.failing:
            self._failed.add(delivery.id)
        self._note_failing(delivery.client)
        if not self.down and not isinstance(result, ConnectFailed) and len(self._failed) < IN_A_ROW:
            if isinstance(result, Response) and result.status in PRESSED:
                self._bearable = max(self.limit // 2, 1)
                self.limit = min(self.limit, self._bearable)
            return False
        self.trip()
        return True

    def refused(self, deliveries: Sequence[Delivery], waiting: Callable[[Collection[str]], bool]) -> bool:
        """
        Note one of the :data:`WHOLESALE` refusals.

        :param deliveries: the deliveries of the refused request.
        :param waiting: returns whether any client other than these has a delivery waiting. If so, the refusals of a few clients
            say nothing about the endpoint.
        :returns: whether the breaker is open. Then the refusal says nothing about the deliveries.
        """
        self.well = False
        if len(self._refused) < IN_A_ROW:
            # A batch that is tried in halves may be refused ten times because of its first delivery: that counts once.
            self._refused.add(deliveries[0].id)
        for delivery in deliveries:
            if len(self._refused_clients) < IN_A_ROW:
                self._refused_clients.add(delivery.client)
        everything = len(self._refused) >= IN_A_ROW and (
            len(self._refused_clients) >= IN_A_ROW or not waiting(self._refused_clients)
        )
        if not everything and not self.down:
            return False
        self.refusing = self.refusing or everything
        for delivery in deliveries:
            self._note_failing(delivery.client)
        self.trip()
        return True

    def knows(self, client: str) -> bool:
        """Return whether a client's last attempt failed."""
        return client in self.failing

    def probe(self) -> None:
        """Let one attempt through."""
        self.well = False
        self.probes += 1
        self.limit = 1

    def trip(self) -> None:
        """Open the breaker."""
        self.down = True
        self.limit = 0
        # Once the endpoint is back, the limit doubles from one up to its maximum.
        self._bearable = self._most

    def _note_failing(self, client: str) -> None:
        failing = self.failing
        failing.pop(client, None)
        failing[client] = None
        if len(failing) > REMEMBERED:
            del failing[next(iter(failing))]
