"""
Putting each client's events back in the order in which they happened.

VerneMQ sends each event over a connection picked at random, so a client's events are read in another order than they happened,
now and then, by some milliseconds.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from typing import cast

from mqhooks.delivery import Delivery

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
        self._held = 0
        # What came together: when, and a delivery for each, or its client where that is mixed up.
        self._arrivals: deque[tuple[float, list[Delivery | str]]] = deque()
        self._mixed: dict[str, _Mixed] = {}
        self._newest = _Times()
        self._last = _Times()

    def __len__(self) -> int:
        return self._held

    def push(self, deliveries: Sequence[Delivery], now: float) -> None:
        """
        Take deliveries in, in the order in which they were accepted.

        :param now: seconds.
        """
        if not deliveries:
            return
        slots: list[Delivery | str] = list(deliveries)
        newest, older = self._newest.recent, self._newest.older
        size = 0
        for index, delivery in enumerate(deliveries):
            client, timestamp = delivery.client, delivery.timestamp
            size += len(delivery.body)
            before = newest.get(client)
            if before is None:
                before = older.get(client, timestamp)
            if timestamp >= before:
                newest[client] = timestamp
            else:
                newest[client] = before
                slots[index] = client
                # Until it is let go, nothing of this client is that is later.
                self.late += timestamp < self._last.get(client, timestamp)
                insort(self._mixed.setdefault(client, _Mixed()).late, delivery, key=_timestamp)
        self.size += size
        self._held += len(slots)
        self._arrivals.append((now, slots))
        self._newest.forget()

    def release(self, now: float, limit: int) -> list[Delivery]:
        """
        Let go what was held long enough.

        :param now: seconds, of the same clock; later to let go more.
        :param limit: how many at most.
        """
        released: list[Delivery] = []
        arrivals = self._arrivals
        until = now - self._window
        while arrivals and limit > 0 and arrivals[0][0] <= until:
            since, slots = arrivals.popleft()
            if len(slots) > limit:
                arrivals.appendleft((since, slots[limit:]))
                slots = slots[:limit]
            limit -= len(slots)
            released += self._earliest(slots)
        self._held -= len(released)
        self._last.forget()
        return released

    def _earliest(self, slots: list[Delivery | str]) -> list[Delivery]:
        """Find the delivery that goes in each slot's place."""
        last = self._last
        recent = last.recent
        size = 0
        if self._mixed:
            found = [self._first(slot) for slot in slots]
            for delivery in found:
                size += len(delivery.body)
                recent[delivery.client] = max(delivery.timestamp, last.get(delivery.client, delivery.timestamp))
        else:
            found = cast("list[Delivery]", slots)
            for delivery in found:
                size += len(delivery.body)
                recent[delivery.client] = delivery.timestamp
        self.size -= size
        return found

    def _first(self, slot: Delivery | str) -> Delivery:
        client = slot if isinstance(slot, str) else slot.client
        mixed = self._mixed.get(client)
        if mixed is None:
            return cast("Delivery", slot)
        if not isinstance(slot, str):
            mixed.displaced.append(slot)
        first = mixed.pop()
        if not mixed.late and not mixed.displaced:
            del self._mixed[client]
        return first


class _Mixed:
    """
    Deliveries of a client of which some came after one that had happened later.

    :ivar late: those, in order.
    :ivar displaced: others, in order, in whose places such have gone. They came before all that are late.
    """

    __slots__ = ("displaced", "late")

    def __init__(self) -> None:
        self.late: list[Delivery] = []
        self.displaced: deque[Delivery] = deque()

    def pop(self) -> Delivery:
        """Take out the earliest; of two as early, the one that came first."""
        if self.displaced and (not self.late or self.displaced[0].timestamp <= self.late[0].timestamp):
            return self.displaced.popleft()
        return self.late.pop(0)


class _Times:
    """
    A timestamp for each client, of the last :data:`REMEMBERED` clients at least.

    :ivar recent: takes new ones.
    :ivar older: those before.
    """

    __slots__ = ("older", "recent")

    def __init__(self) -> None:
        self.recent: dict[str, int] = {}
        self.older: dict[str, int] = {}

    def get(self, client: str, default: int) -> int:
        """Look a client up."""
        time = self.recent.get(client)
        return self.older.get(client, default) if time is None else time

    def forget(self) -> None:
        """Forget the older ones, when the recent ones have become many."""
        if len(self.recent) > REMEMBERED:
            self.older, self.recent = self.recent, {}


def _timestamp(delivery: Delivery) -> int:
    return delivery.timestamp
