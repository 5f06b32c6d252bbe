"""
An outbox in memory, which is lost when the process ends.

Everything appended is taken. When there is too little room, ``append`` answers once a quarter of the room is free. So an
outbox exceeds its size by whatever its callers append before backpressure takes effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mqhooks.delivery import Counts, DeadLetter, Delivery
from mqhooks.interfaces import IOutbox
from mqhooks.outbox.waiting import WaitingClaim

DELIVERY_SIZE = 320
"""Bytes that a delivery takes besides its body, approximately."""


@implementer(IOutbox)
class MemoryOutbox:
    """
    Keeps deliveries in memory, up to a size.

    :param max_size: bytes of bodies and their overhead.
    :param dead_max: number of dead letters kept; the oldest make room.
    :ivar dead_letters: the dead letters, oldest first.
    """

    durable = False
    gate = None
    waiting_since: float | None = None

    def __init__(self, max_size: int = 64 << 20, dead_max: int = 1000) -> None:
        self.dead_letters: deque[DeadLetter] = deque(maxlen=dead_max)
        self.max_size = max_size
        self.used = 0
        self._places = count(1)
        self._claimed: dict[int, Delivery] = {}
        self._waiting: deque[Delivery] = deque()
        self._appended = self._delivered = self._dead = self._forgotten = 0
        self._unaccepted: list[Deferred[None]] = []
        self._claim = WaitingClaim(self._take)
        self._abandoned = False

    @property
    def counts(self) -> Counts:
        """Counts of accepted deliveries and of what became of them."""
        pending = len(self._claimed) + len(self._waiting)
        return Counts(self._appended, 0, 0, self._delivered, self._dead, 0, pending, self._forgotten)

    @property
    def oldest(self) -> int | None:
        """When the oldest pending delivery was accepted, in milliseconds since 1970."""
        first = next(iter(self._claimed.values()), None) or (self._waiting[0] if self._waiting else None)
        return None if first is None else first.accepted

    @property
    def letters(self) -> int:
        """Number of dead letters kept."""
        return len(self.dead_letters)

    @property
    def full(self) -> bool:
        """Whether callers of append() wait for room, or would."""
        return bool(self._unaccepted) or (not self._abandoned and self.used > self.max_size)

    def append(self, deliveries: Sequence[Delivery], *, room: bool = True) -> Deferred[None] | None:
        """Accept deliveries."""
        self._waiting.extend(deliveries)
        self._appended += len(deliveries)
        self.used += DELIVERY_SIZE * len(deliveries) + sum([len(delivery.body) for delivery in deliveries])
        accepted: Deferred[None] | None = None
        if room and not self._abandoned and (self._unaccepted or self.used > self.max_size):
            accepted = Deferred()
            self._unaccepted.append(accepted)
        self._claim.serve()
        return accepted

    def claim(self, limit: int, size: int) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """Hand out the oldest unclaimed deliveries."""
        return self._claim(limit, size)

    def _take(self, limit: int, size: int) -> Sequence[Delivery]:
        waiting = self._waiting
        claimed: list[Delivery] = []
        while waiting and len(claimed) < limit and (not claimed or size > 0):
            delivery = waiting.popleft()
            delivery.place = next(self._places)
            self._claimed[delivery.place] = delivery
            claimed.append(delivery)
            size -= len(delivery.body)
        return claimed

    def shelve(self, places: Iterable[int]) -> None:
        """Do nothing: nothing is ever dropped here to make room."""

    def recall(self, places: Iterable[int]) -> Sequence[Delivery]:
        """Hand out claimed deliveries again."""
        return [self._claimed[place] for place in places if place in self._claimed]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Forget deliveries that have arrived."""
        self._delivered += sum([self._settle(delivery) for delivery in deliveries])
        self._release()

    def bury(self, delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """Turn a delivery into a dead letter."""
        if self._settle(delivery):
            self._dead += 1
            self._forgotten += len(self.dead_letters) == self.dead_letters.maxlen
            self.dead_letters.append(DeadLetter(0, "", delivery, url, reason, status, answer, died))
            self._release()

    def _settle(self, delivery: Delivery) -> bool:
        kept = self._claimed.pop(delivery.place, None)
        if kept is None:
            return False
        self.used -= DELIVERY_SIZE + len(kept.body)
        return True

    def reclaim(self) -> None:
        """Hand out all claimed deliveries again, before any others."""
        self._claim.cancel()
        self._abandoned = False
        self._waiting.extendleft(reversed(self._claimed.values()))
        self._claimed.clear()

    def abandon(self) -> None:
        """Keep pending deliveries, and let nobody wait for room."""
        self._claim.cancel()
        self._abandoned = True
        self._release()

    def resize(self, max_size: int, dead_max: int) -> None:
        """Replace the constructor's limits."""
        self.max_size = max_size
        self._forgotten += max(len(self.dead_letters) - dead_max, 0)
        self.dead_letters = deque(self.dead_letters, maxlen=dead_max)
        self._release()

    def _release(self) -> None:
        if self._unaccepted and (self._abandoned or self.used <= self.max_size * 3 // 4):
            unaccepted, self._unaccepted = self._unaccepted, []
            for accepted in unaccepted:
                accepted.callback(None)


class MemoryStore:
    """
    Outboxes in memory, by their webhooks' names.

    :param max_size: for each outbox, as in :class:`MemoryOutbox`.
    :param dead_max: likewise.
    """

    def __init__(self, max_size: int, dead_max: int) -> None:
        self._max_size = max_size
        self._dead_max = dead_max
        self._outboxes: dict[str, MemoryOutbox] = {}

    def outbox(self, name: str) -> MemoryOutbox:
        """Get the outbox of a webhook."""
        if name not in self._outboxes:
            self._outboxes[name] = MemoryOutbox(self._max_size, self._dead_max)
        return self._outboxes[name]

    def resize(self, max_size: int, dead_max: int) -> None:
        """Replace the limits of all of them."""
        self._max_size, self._dead_max = max_size, dead_max
        for outbox in self._outboxes.values():
            outbox.resize(max_size, dead_max)
