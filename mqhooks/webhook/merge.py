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
    :ivar size: how many bytes the bodies have that are held.
    :ivar late: deliveries let go after a later one of their client.
    """

    def __init__(self, window: float) -> None:
        self.late = 0
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
            self.size += len(delivery.body)
            arrivals.append((now, delivery.client))
            waiting = clients.get(delivery.client)
            if waiting is None:
                clients[delivery.client] = [delivery]
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
        while arrivals and len(released) < limit and arrivals[0][0] <= until:
            client = arrivals.popleft()[1]
            waiting = clients[client]
            delivery = waiting.pop(0)
            if not waiting:
                del clients[client]
            self.size -= len(delivery.body)
            self._note(delivery)
            released.append(delivery)
        return released

    def _note(self, delivery: Delivery) -> None:
        client, timestamp = delivery.client, delivery.timestamp
        last = self._last.get(client)
        if last is None:
            last = self._before.get(client, timestamp)
        if timestamp < last:
            self.late += 1
            timestamp = last
        self._last[client] = timestamp
        if len(self._last) > REMEMBERED:
            self._before, self._last = self._last, {}


def _timestamp(delivery: Delivery) -> int:
    return delivery.timestamp
