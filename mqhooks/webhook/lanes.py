"""
Keeping each client's deliveries in order while many are under way.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import Enum
from itertools import islice
from typing import Any
from zlib import crc32

from mqhooks.errors import OutboxError
from mqhooks.outbox.delivery import Delivery

PARKED = 4096
"""How many parked deliveries are kept in memory; of further ones only the places in the outbox are."""

PARKED_SIZE = 4096
"""A parked delivery with a body of more bytes is not kept in memory either."""

RECALL = 8
"""How many of them are read again at a time."""


class Verdict(Enum):
    """What becomes of a delivery after an attempt."""

    DONE = "done"
    """Nobody will try it again."""

    PARK = "park"
    """It waits, and its client with it, until :meth:`Lanes.unpark`."""

    AGAIN = "again"
    """It is the first to be tried when attempts are made again."""


# Python 3.11 runs code of its own whenever a member is looked up.
DONE = Verdict.DONE

Recall = Callable[[Iterable[int]], Sequence[Delivery]]


class Lanes:
    """
    Lanes in which deliveries stand one behind the other; the first of each is under way.

    All deliveries of a client stand in the same lane. One that has to wait parks its client: later ones of that client wait
    behind it, the others in the lane go on.

    :param count: how many lanes.
    :param send: ``send(delivery, done)`` tries a delivery, and calls ``done`` once with what came of it.
    :param finished: ``finished(delivery, result)`` is told what came of each attempt, and returns the :class:`Verdict` on the
        delivery. It must not unpark its client.
    :param recall: reads deliveries again by their places in the outbox, or raises :exc:`mqhooks.errors.OutboxError` when they
        cannot be read now: :meth:`recall_again` has it try once more.
    :ivar load: how many deliveries stand in lanes or are under way; those that are parked don't count.
    :ivar size: how many bytes their bodies have.
    :ivar under_way: how many attempts have no result yet.
    :ivar limit: how many attempts may be under way. Whoever raises it calls :meth:`admit`.
    :ivar parked: how many deliveries are parked in memory.
    :ivar clients: how many clients are parked.
    """

    def __init__(self, count: int, send: Callable[..., None], finished: Callable[..., Any], recall: Recall) -> None:
        self.count = self.limit = count
        self.send = send
        self.finished = finished
        self.recall = recall
        self.load = 0
        self.size = 0
        self.under_way = 0
        self.parked = 0
        self.clients = 0
        self.idle: dict[Lane, None] = {}
        self.unread: dict[str, None] = {}
        self._lanes = [self._make() for _ in range(count)]

    def _make(self) -> Lane:
        return Lane(self)

    def push(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries at the end of their clients' lanes."""
        count = self.count
        self.load += len(deliveries)
        self.size += sum([len(delivery.body) for delivery in deliveries])
        groups: defaultdict[int, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            groups[crc32(delivery.client.encode()) % count].append(delivery)
        for lane, group in groups.items():
            self._lanes[lane].push(group)

    def unpark(self, client: str) -> None:
        """Try a parked client's first delivery again when its lane comes to it, and then those behind it."""
        self._lane(client).unpark(client)

    def recall_again(self) -> None:
        """Let clients go on whose deliveries could not be read."""
        unread, self.unread = self.unread, {}
        for client in unread:
            self.unpark(client)

    def shed(self, size: int) -> list[Delivery]:
        """
        Take out deliveries that wait behind a parked one, until they have so many bytes or none is left.

        :returns: them. The first of each client, which was tried, stays.
        """
        shed: list[Delivery] = []
        for lane in self._lanes:
            while size > 0 and (found := lane.shed()):
                shed += found
                size -= sum(len(delivery.body) for delivery in found)
        return shed

    def stop(self) -> None:
        """Begin nothing more by itself."""

    def waits_beside(self, clients: Collection[str]) -> bool:
        """Say whether a delivery of another client than these stands in a lane."""
        return any(lane.waits_beside(clients) for lane in self._lanes)

    def shelve(self) -> None:
        """Let what belongs behind parked deliveries leave the lanes at once, without waiting for its turn: that makes room."""
        for lane in self._lanes:
            lane.shelve()

    def newest(self, known: Callable[[str], bool]) -> Delivery | None:
        """
        Find what waits of the client that was heard of last, leaving some out.

        :param known: the clients to leave out.
        """
        found = [newest for lane in self._lanes if (newest := lane.newest(known)) is not None]
        return max(found, key=_place, default=None)

    def prefer(self, delivery: Delivery) -> None:
        """Have the first delivery of this one's client be the first to be sent, alone."""
        lane = self._lane(delivery.client)
        lane.prefer(delivery.client)
        self.idle = {lane: None, **self.idle}

    def admit(self) -> None:
        """Let lanes go on that the limit had stopped."""
        while self.idle and self.under_way < self.limit:
            lane = next(iter(self.idle))
            del self.idle[lane]
            lane.run()

    def _lane(self, client: str) -> Lane:
        return self._lanes[crc32(client.encode()) % self.count]


class Lane:
    """
    One of them.

    :param lanes: all of them.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        # A parked client that may go on stands in the queue by its name.
        self._queue: deque[Delivery | str] = deque()
        self._parked: dict[str, deque[Delivery | int]] = {}
        # The outbox does not know how often a delivery was tried that it is to hand out once more.
        self._attempts: dict[int, int] = {}
        self._current: Delivery | None = None
        self._running = False
        self._on_done = self._done

    def push(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries at the end."""
        self._queue.extend(deliveries)
        if self._current is None:
            self.run()

    def unpark(self, client: str) -> None:
        """Put a parked client at the end."""
        # Behind those that wait already: who fails again and again must not go before who never had a turn.
        self._queue.append(client)
        if self._current is None:
            self.run()

    def shed(self) -> list[Delivery]:
        """Take out some deliveries that wait behind a parked one."""
        for parked in self._parked.values():
            if len(parked) > 1:
                behind = list(islice(parked, 1, 1 + RECALL))
                kept = [item for item in behind if isinstance(item, Delivery)]
                try:
                    recalled = self._lanes.recall([item for item in behind if isinstance(item, int)])
                except OutboxError:
                    continue
                first = parked.popleft()
                for _ in behind:
                    parked.popleft()
                parked.appendleft(first)
                self._lanes.parked -= len(kept)
                return kept + list(recalled)
        return []

    def waits_beside(self, clients: Collection[str]) -> bool:
        """Say whether a delivery of another client than these waits here."""
        return any((item if isinstance(item, str) else item.client) not in clients for item in self._queue)

    def shelve(self) -> None:
        """Put what waits for a parked client behind its parked deliveries."""
        if self._parked:
            queue = list(self._queue)
            self._queue.clear()
            for item in queue:
                if isinstance(item, str) or item.client not in self._parked:
                    self._queue.append(item)
                else:
                    self._park_behind(item)

    def newest(self, known: Callable[[str], bool]) -> Delivery | None:
        """Find the last delivery whose client is not known, unless an attempt is under way here."""
        if self._current is not None:
            return None
        return next((item for item in reversed(self._queue) if isinstance(item, Delivery) and not known(item.client)), None)

    def prefer(self, client: str) -> None:
        """Move the first delivery of a client, which is not parked, to the front."""
        first = next(item for item in self._queue if isinstance(item, Delivery) and item.client == client)
        self._queue.remove(first)
        self._queue.appendleft(first)

    def run(self) -> None:
        """Send the first that may be sent, if none is under way."""
        # An attempt may end before send() returns, and so come back here: the loop goes on instead of getting deeper.
        if self._running:
            return
        self._running = True
        lanes = self._lanes
        while self._current is None and self._queue:
            if lanes.under_way >= lanes.limit:
                lanes.idle[self] = None
                break
            # Nobody is parked: then these are deliveries, and to be tried.
            delivery: Any = self._next() if self._parked else self._queue.popleft()
            if delivery is not None:
                self._current = delivery
                lanes.under_way += 1
                lanes.send(delivery, self._on_done)
        self._running = False

    def _next(self) -> Delivery | None:
        """Take the first of the queue: a delivery to be tried, or one to be parked behind others of its client."""
        item = self._queue.popleft()
        if isinstance(item, str):
            return self._first(item)
        if item.client not in self._parked:
            return item
        self._park_behind(item)
        return None

    def _park_behind(self, delivery: Delivery) -> None:
        self._lanes.load -= 1
        self._lanes.size -= len(delivery.body)
        self._parked[delivery.client].append(self._shelved(delivery))

    def _shelved(self, delivery: Delivery) -> Delivery | int:
        if self._lanes.parked < PARKED and len(delivery.body) <= PARKED_SIZE:
            self._lanes.parked += 1
            return delivery
        if delivery.attempts:
            self._attempts[delivery.place] = delivery.attempts
        return delivery.place

    def _first(self, client: str) -> Delivery | None:
        parked = self._parked[client]
        while parked and isinstance(parked[0], int):
            places: list[int] = []
            for item in islice(parked, RECALL):
                if not isinstance(item, int):
                    break
                places.append(item)
            try:
                recalled = self._lanes.recall(places)
            except OutboxError:
                self._lanes.unread[client] = None
                return None
            for delivery in recalled:
                delivery.attempts = self._attempts.get(delivery.place, delivery.attempts)
            for place in places:
                parked.popleft()
                self._attempts.pop(place, None)
            parked.extendleft(reversed(recalled))
            self._lanes.parked += len(recalled)
        if not parked:
            self._free(client)
            return None
        first = parked.popleft()
        assert isinstance(first, Delivery)
        self._lanes.parked -= 1
        self._lanes.load += 1
        self._lanes.size += len(first.body)
        return first

    def _park(self, delivery: Delivery) -> None:
        """Let a delivery wait, before others of its client."""
        parked = self._parked.get(delivery.client)
        if parked is None:
            parked = self._parked[delivery.client] = deque()
            self._lanes.clients += 1
        parked.appendleft(self._shelved(delivery))

    def _put_back(self, delivery: Delivery, *, named: bool = False) -> int:
        """
        Put a delivery where it was.

        :param named: whether its client stands in the queue already, if it is parked.
        :returns: how much longer the queue is now.
        """
        parked = self._parked.get(delivery.client)
        if parked is None:
            self._lanes.load += 1
            self._lanes.size += len(delivery.body)
            self._queue.appendleft(delivery)
            return 1
        parked.appendleft(self._shelved(delivery))
        if named:
            return 0
        self._queue.appendleft(delivery.client)
        return 1

    def _release(self, client: str) -> None:
        """Let those go on that wait behind a delivery that is done."""
        if self._parked[client]:
            # Behind those of other clients that came meanwhile: a long queue of one client must not hold them up.
            self._queue.append(client)
        else:
            self._free(client)

    def _free(self, client: str) -> None:
        del self._parked[client]
        self._lanes.clients -= 1

    def _done(self, result: Any) -> None:
        delivery = self._current
        assert delivery is not None
        lanes = self._lanes
        lanes.load -= 1
        lanes.size -= len(delivery.body)
        lanes.under_way -= 1
        # What is pushed meanwhile has to find the lane busy: nothing may go before a client is parked.
        verdict = lanes.finished(delivery, result)
        if verdict is DONE:
            if self._parked and delivery.client in self._parked:
                self._release(delivery.client)
        elif verdict is Verdict.PARK:
            self._park(delivery)
        else:
            self._put_back(delivery)
        self._current = None
        if self._queue:
            self.run()
        if lanes.idle:
            lanes.admit()


def _place(delivery: Delivery) -> int:
    return delivery.place
