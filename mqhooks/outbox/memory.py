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
        self._max_size = max_size
        self._places = count(1)
        self._claimed: dict[int, Delivery] = {}
        self._waiting: deque[Delivery] = deque()
        self._size = 0
        self._unaccepted: list[Deferred[None]] = []
        self.pending = 0
        self.more: Callable[[], object] | None = None
        self.overflow: Callable[[int], object] | None = None
        self.waiting_since: float | None = None

    def append(self, deliveries: Sequence[Delivery]) -> Deferred[None] | None:
        """Take deliveries over."""
        self._waiting.extend(deliveries)
        self.pending += len(deliveries)
        for delivery in deliveries:
            self._size += DELIVERY_SIZE + len(delivery.body)
        if self.more is not None:
            self.more()
        if self._size <= self._max_size and not self._unaccepted:
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

    def settle(self, delivery: Delivery) -> None:
        """Forget a delivery."""
        del self._claimed[delivery.place]
        self.pending -= 1
        self._size -= DELIVERY_SIZE + len(delivery.body)
        if self._unaccepted and self._size <= self._max_size * 3 // 4:
            unaccepted, self._unaccepted = self._unaccepted, []
            for accepted in unaccepted:
                accepted.callback(None)

    def discard(self, delivery: Delivery) -> None:
        """Forget a delivery."""
        self.settle(delivery)

    def bury(self, delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """Make a dead letter of a delivery."""
        self.dead_letters.append(DeadLetter(0, "", delivery, url, reason, status, answer, died))
        self.settle(delivery)
