"""
Lanes in which several deliveries share a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mqhooks.outbox.delivery import Delivery
from mqhooks.webhook.lanes import DONE, Lane, Lanes, Recall, Verdict
from mqhooks.webhook.settings import BatchSettings


class BatchLanes(Lanes):
    """
    Lanes that send what stands first in them together.

    A batch that is refused is sent again in halves, until the delivery at fault stands alone. What has to wait for its retry
    parks its own client, as in other lanes: the next batch is made of what stands first then.

    :param reactor: tells the time.
    :param settings: how large a batch may be, and how long it waits for more.
    :param send: ``send(deliveries, done)`` tries them, and calls ``done`` once with what came of it.
    :param finished: ``finished(deliveries, result)`` is told what came of each attempt, and returns the :class:`Verdict` on
        each of them, or ``None`` when they are to be tried in halves.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        settings: BatchSettings,
        count: int,
        send: Callable[..., None],
        finished: Callable[..., Any],
        recall: Recall,
    ) -> None:
        self.clock = reactor
        self.settings = settings
        super().__init__(count, send, finished, recall)

    def stop(self) -> None:
        """Wait for nothing more."""
        for lane in self._lanes:
            assert isinstance(lane, BatchLane)
            lane.stop()

    def _make(self) -> Lane:
        return BatchLane(self)


class BatchLane(Lane):
    """
    One of them.

    :param lanes: all of them.
    """

    def __init__(self, lanes: BatchLanes) -> None:
        super().__init__(lanes)
        self._all = lanes
        self._batch: list[Delivery] = []
        self._size = 0
        self._since = 0.0
        self._timer: IDelayedCall | None = None
        # How many at the front of the queue are to be tried together: the parts of a batch that was refused.
        self._parts: list[int] = []

    def stop(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def push(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries at the end."""
        if not self._queue:
            self._since = self._all.clock.seconds()
        self._queue.extend(deliveries)
        # As long as the timer runs, only a full batch is due.
        if self._current is None and (self._timer is None or len(self._queue) >= self._all.settings.size):
            self.run()

    def unpark(self, client: str) -> None:
        """Put a parked client at the end."""
        if not self._queue:
            self._since = self._all.clock.seconds()
        super().unpark(client)

    def prefer(self, client: str) -> None:
        """Move the first delivery of a client to the front, to be sent alone."""
        super().prefer(client)
        self._parts.append(1)

    def run(self) -> None:
        """Send a batch, if one is due and none is under way."""
        if self._running:
            return
        self._running = True
        lanes = self._all
        while self._current is None and self._queue:
            if lanes.under_way >= lanes.limit:
                lanes.idle[self] = None
                break
            if not self._due():
                break
            batch = self._collect()
            if batch:
                self._batch = batch
                self._current = batch[0]
                lanes.under_way += 1
                lanes.send(batch, self._on_done)
        self._running = False

    def _due(self) -> bool:
        settings = self._all.settings
        if self._parts or len(self._queue) >= settings.size:
            return True
        left = self._since + settings.linger - self._all.clock.seconds()
        if left <= 0:
            return True
        if self._timer is None:
            self._timer = self._all.clock.callLater(left, self._lingered)
        return False

    def _lingered(self) -> None:
        self._timer = None
        self.run()

    def _collect(self) -> list[Delivery]:
        settings = self._all.settings
        part = bool(self._parts)
        room = self._parts.pop() if part else settings.size
        batch: list[Delivery] = []
        size, queue, parked = 0, self._queue, self._parked
        while queue and room:
            head = queue[0]
            if batch and not isinstance(head, str) and size + len(head.body) > settings.max_bytes:
                break
            room -= 1
            # Nobody is parked: then these are deliveries, and to be tried.
            delivery: Any = self._next() if parked else queue.popleft()
            if delivery is not None:
                batch.append(delivery)
                size += len(delivery.body)
        self._size = size
        if part and room and self._queue:
            self._parts.append(room)
        self._since = self._all.clock.seconds()
        return batch

    def _done(self, result: Any) -> None:
        batch, self._batch = self._batch, []
        lanes = self._all
        lanes.under_way -= 1
        lanes.load -= len(batch)
        lanes.size -= self._size
        # What is pushed meanwhile has to find the lane busy: nothing may go before a client is parked.
        verdicts: Sequence[Verdict] | None = lanes.finished(batch, result)
        if verdicts is None:
            half = len(batch) // 2
            self._parts += [len(batch) - half, half]
            for delivery in reversed(batch):
                self._put_back(delivery)
        elif self._parked or verdicts.count(DONE) < len(verdicts):
            self._settle(batch, verdicts)
        self._current = None
        if self._queue:
            self.run()
        if lanes.idle:
            lanes.admit()

    def _settle(self, batch: Sequence[Delivery], verdicts: Sequence[Verdict]) -> None:
        waiting: set[str] = set()
        back = 0
        # The last one first: what is put at the front ends up in order.
        for delivery, verdict in zip(reversed(batch), reversed(verdicts), strict=True):
            if verdict is Verdict.PARK:
                self._park(delivery)
                waiting.add(delivery.client)
            elif verdict is Verdict.AGAIN:
                back += self._put_back(delivery, named=delivery.client in waiting)
                waiting.add(delivery.client)
        if back and self._parts:
            self._parts.append(back)
        if self._parked:
            for delivery in batch:
                if delivery.client in self._parked and delivery.client not in waiting:
                    waiting.add(delivery.client)
                    self._release(delivery.client)
