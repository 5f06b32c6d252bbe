"""
The merge window: puts each client's events back in the order in which they happened.

- VerneMQ sends each event over a random connection, so now and then a client's events are read in the wrong order, some
  milliseconds apart. Holding each for a moment and releasing the client's earliest by timestamp restores the order.
- Deliveries are accepted before they are held here, so that waiting for order cannot lose any.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import cast

from mqhooks.delivery import Delivery, Shelved

REMEMBERED = 50_000
"""
Minimum number of clients whose timestamps are remembered after their deliveries have gone, to count those that come late. While
any of a client's deliveries is held, its timestamp is remembered anyway.
"""


Held = Delivery | Shelved
"""An item in the window: a delivery, or the place of one whose body is not in memory."""


class MergeWindow:
    """
    Holds deliveries for a while, and releases them by their events' timestamps.

    Whenever a client's delivery has been held long enough, the client's earliest in the window is released: that delivery, or
    one that happened before it and arrived after it.

    :param window: seconds.
    :param late: initial value of ``late``.
    :ivar size: bytes of the held bodies.
    :ivar late: number of deliveries that came too late to be released before a later one of their client.
    """

    def __init__(self, window: float, late: int = 0) -> None:
        self.late = late
        self.size = 0
        self._window = window
        self._held = 0
        # Arrivals in order: the time, and a slot for each delivery. A slot holds the delivery, or only its client if it arrived
        # after one that happened later.
        self._arrivals: deque[tuple[float, list[Held | str]]] = deque()
        self._mixed: dict[str, _Mixed] = {}
        self._newest = _Times()
        self._last = _Times()

    def __len__(self) -> int:
        return self._held

    @property
    def clients(self) -> set[str]:
        """The clients of the held deliveries."""
        return {slot if isinstance(slot, str) else slot.client for _, slots in self._arrivals for slot in slots}

    def push(self, deliveries: Sequence[Held], now: float) -> None:
        """
        Take in deliveries, in the order of acceptance.

        :param now: seconds.
        """
        if not deliveries:
            return
        slots: list[Held | str] = list(deliveries)
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
                # From now on nothing later of this client is released before it.
                self.late += timestamp < self._last.get(client, timestamp)
                insort(self._mixed.setdefault(client, _Mixed()).late, delivery, key=_timestamp)
        self.size += size
        self._held += len(slots)
        self._arrivals.append((now, slots))
        if len(newest) > REMEMBERED:
            for client in self.clients - newest.keys():
                newest[client] = older[client]
            self._newest.forget()

    def release(self, now: float, limit: int) -> list[Held]:
        """
        Release deliveries that were held long enough.

        :param now: seconds, by the same clock as :meth:`push`; a later time releases more.
        :param limit: maximum number of deliveries to release.
        """
        released: list[Held] = []
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

    def release_oldest(self, count: int) -> list[Held]:
        """Release the deliveries that happened first, however briefly they were held, to make room for more."""
        arrivals, self._arrivals = self._arrivals, deque()
        held = [(since, self._first(slot)) for since, slots in arrivals for slot in slots]
        # Each client's deliveries are in order by now, so those that stay are later than those that go.
        first = sorted(range(len(held)), key=lambda index: held[index][1].timestamp)[:count]
        going = set(first)
        for since, group in groupby(range(len(held)), lambda index: held[index][0]):
            stays: list[Held | str] = [held[index][1] for index in group if index not in going]
            if stays:
                self._arrivals.append((since, stays))
        self._held -= len(first)
        return self._earliest([held[index][1] for index in first])

    def _earliest(self, slots: list[Held | str]) -> list[Held]:
        """Find the delivery to release in each slot's place."""
        last = self._last
        recent = last.recent
        size = 0
        if self._mixed:
            found = [self._first(slot) for slot in slots]
            for delivery in found:
                size += len(delivery.body)
                recent[delivery.client] = max(delivery.timestamp, last.get(delivery.client, delivery.timestamp))
        else:
            found = cast("list[Held]", slots)
            for delivery in found:
                size += len(delivery.body)
                recent[delivery.client] = delivery.timestamp
        self.size -= size
        return found

    def _first(self, slot: Held | str) -> Held:
        client = slot if isinstance(slot, str) else slot.client
        mixed = self._mixed.get(client)
        if mixed is None:
            return cast("Held", slot)
        if not isinstance(slot, str):
            mixed.displaced.append(slot)
        first = mixed.pop()
        if not mixed.late and not mixed.displaced:
            del self._mixed[client]
        return first


class _Mixed:
    """
    A client's deliveries, some of which arrived after one that happened later.

    :ivar late: deliveries that arrived after a later one, in order.
    :ivar displaced: deliveries whose slots went to late ones, in order. They arrived before all late ones.
    """

    __slots__ = ("displaced", "late")

    def __init__(self) -> None:
        self.late: list[Held] = []
        self.displaced: deque[Held] = deque()

    def pop(self) -> Held:
        """Remove and return the earliest; of two with the same time, the one that came first."""
        if self.displaced and (not self.late or self.displaced[0].timestamp <= self.late[0].timestamp):
            return self.displaced.popleft()
        return self.late.pop(0)


class _Times:
    """
    A timestamp for each client, at least for the last :data:`REMEMBERED` clients.

    :ivar recent: gets new timestamps.
    :ivar older: the generation before.
    """

    __slots__ = ("older", "recent")

    def __init__(self) -> None:
        self.recent: dict[str, int] = {}
        self.older: dict[str, int] = {}

    def get(self, client: str, default: int) -> int:
        """Return a client's timestamp."""
        time = self.recent.get(client)
        return self.older.get(client, default) if time is None else time

    def forget(self) -> None:
        """Forget the older generation when the recent one is full."""
        if len(self.recent) > REMEMBERED:
            self.older, self.recent = self.recent, {}


def _timestamp(delivery: Held) -> int:
    return delivery.timestamp
