"""
Putting each client's events back in the order in which they happened.

VerneMQ sends each event over a connection picked at random, so a client's events are read in another order than they happened,
now and then, by some milliseconds.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable

from mqhooks.outbox.delivery import Delivery

REMEMBERED = 50_000
"""Of how many clients the last delivery's timestamp is remembered at least, to know which of the next ones is late."""


class MergeWindow:
    """
    Holds deliveries for a time after they came, and lets them go by their events' timestamps.

    Whenever a client's delivery has been held long enough, the earliest that the client has here is let go: it, or one that
    happened before it and came after it.

    :param window: seconds.
    :param late: how many were late before.
    :ivar size: how many bytes the bodies have that are held.
    :ivar late: deliveries let go after a later one of their client.
    """

    def __init__(self, window: float, late: int = 0) -> None:
        self.late = late
        self.size = 0
        self._window = window
        self._arrivals: deque[tuple[float, str]] = deque()
        self._clients: dict[str, list[Delivery]] = {}
        self._last: dict[str, int] = {}
        self._before: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def push(self, deliveries: Iterable[Delivery], now: float) -> None:
        """
        Take deliveries in, in the order in which they were accepted.

        :param now: seconds.
        """
        arrivals, clients = self._arrivals, self._clients
        for delivery in deliveries:
            client = delivery.client
            self.size += len(delivery.body)
            arrivals.append((now, client))
            waiting = clients.get(client)
            if waiting is None:
                clients[client] = [delivery]
            elif waiting[-1].timestamp <= delivery.timestamp:
                waiting.append(delivery)
            else:
                insort(waiting, delivery, key=_timestamp)

    def release(self, now: float, limit: int) -> list[Delivery]:
        """
        Let go what was held long enough.

        :param now: seconds, of the same clock; later to let go more.
        :param limit: how many at most.
        """
        released: list[Delivery] = []
        arrivals, clients = self._arrivals, self._clients
        until = now - self._window
        last = self._last
        while arrivals and limit > 0 and arrivals[0][0] <= until:
            limit -= 1
            client = arrivals.popleft()[1]
            waiting = clients.pop(client)
            delivery = waiting.pop(0)
            if waiting:
                clients[client] = waiting
            self.size -= len(delivery.body)
            timestamp = delivery.timestamp
            before = last.get(client)
            if before is None:
                before = self._before.get(client, timestamp)
            if timestamp < before:
                self.late += 1
                timestamp = before
            last[client] = timestamp
            released.append(delivery)
        if len(last) > REMEMBERED:
            self._before, self._last = last, {}
        return released


def _timestamp(delivery: Delivery) -> int:
    return delivery.timestamp
