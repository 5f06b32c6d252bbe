"""
An outbox that forgets everything when the process ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mqhooks.interfaces import IOutbox
from mqhooks.outbox.delivery import DeadLetter, Delivery
from mqhooks.outbox.totals import Totals

DELIVERY_SIZE = 320
"""About how many bytes a delivery costs beside its body."""


@implementer(IOutbox)
class MemoryOutbox:
    """
    Holds what waits in memory, up to a size.

    What was appended is always taken; beyond the size its acceptance waits until a quarter of the room is free again. So it
    holds more than its size by what its callers append meanwhile.

    :param max_size: bytes of bodies and of what goes with them.
    :param dead_max: how many dead letters are kept; the oldest make room.
    :ivar dead_letters: those, oldest first.
    """

    durable = False

    def __init__(self, max_size: int = 64 << 20, dead_max: int = 1000) -> None:
        self.dead_letters: deque[DeadLetter] = deque(maxlen=dead_max)
        self.max_size = max_size
        self._places = count(1)
        self._claimed: dict[int, Delivery] = {}
        self._waiting: deque[Delivery] = deque()
        self.used = 0
        self._appended = self._delivered = self._dead = self._dropped = 0
        self._unaccepted: list[Deferred[None]] = []
        self._abandoned = False
        self.pending = 0
        self.more: Callable[[], object] | None = None
        self.overflow: Callable[[int], object] | None = None
        self.waiting_since: float | None = None

    @property
    def totals(self) -> Totals:
        """What became of what was appended."""
        return Totals(self._appended, 0, 0, self._delivered, self._dead, self._dropped, self.pending)

    @property
    def oldest(self) -> int | None:
        """When the oldest pending delivery was accepted, in milliseconds since 1970."""
        first = next(iter(self._claimed.values()), None) or (self._waiting[0] if self._waiting else None)
        return None if first is None else first.accepted

    @property
    def letters(self) -> int:
        """How many dead letters are kept."""
        return len(self.dead_letters)

    def append(self, deliveries: Sequence[Delivery]) -> Deferred[None] | None:
        """Take deliveries over."""
        self._waiting.extend(deliveries)
        self.pending += len(deliveries)
        self._appended += len(deliveries)
        for delivery in deliveries:
            self.used += DELIVERY_SIZE + len(delivery.body)
        if self.more is not None:
            self.more()
        if self._abandoned or (self.used <= self.max_size and not self._unaccepted):
            return None
        accepted: Deferred[None] = Deferred()
        self._unaccepted.append(accepted)
        return accepted

    def claim(self, limit: int) -> Sequence[Delivery]:
        """Hand out the oldest unclaimed deliveries."""
        waiting = self._waiting
        claimed = [waiting.popleft() for _ in range(min(limit, len(waiting)))]
        for delivery in claimed:
            delivery.place = next(self._places)
            self._claimed[delivery.place] = delivery
        return claimed

    def recall(self, places: Iterable[int]) -> Sequence[Delivery]:
        """Hand out claimed deliveries once more."""
        return [self._claimed[place] for place in places]

    def reclaim(self) -> None:
        """Hand out anew what was claimed."""
        self._abandoned = False
        self._waiting.extendleft(reversed(self._claimed.values()))
        self._claimed.clear()

    def abandon(self) -> None:
        """Keep what is pending, and hold nobody up."""
        self._abandoned = True
        self.more = self.overflow = None
        self._release()

    def resize(self, max_size: int, dead_max: int) -> None:
        """Have another size, and keep another number of dead letters."""
        self.max_size = max_size
        self.dead_letters = deque(self.dead_letters, maxlen=dead_max)
        self._release()

    def settle(self, *deliveries: Delivery) -> None:
        """Forget deliveries that arrived."""
        self._delivered += len(deliveries)
        self._settle(deliveries)

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            del self._claimed[delivery.place]
            self.used -= DELIVERY_SIZE + len(delivery.body)
        self.pending -= len(deliveries)
        self._release()

    def _release(self) -> None:
        if self._unaccepted and (self._abandoned or self.used <= self.max_size * 3 // 4):
            unaccepted, self._unaccepted = self._unaccepted, []
            for accepted in unaccepted:
                accepted.callback(None)

    def discard(self, *deliveries: Delivery) -> None:
        """Forget deliveries for want of room."""
        self._dropped += len(deliveries)
        self._settle(deliveries)

    def bury(self, delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """Make a dead letter of a delivery."""
        self._dead += 1
        self.dead_letters.append(DeadLetter(0, "", delivery, url, reason, status, answer, died))
        self._settle((delivery,))


class MemoryStore:
    """
    Outboxes in memory, by their webhooks' names.

    :param max_size: as of :class:`MemoryOutbox`, for each.
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
        """Give all of them another size."""
        self._max_size, self._dead_max = max_size, dead_max
        for outbox in self._outboxes.values():
            outbox.resize(max_size, dead_max)
