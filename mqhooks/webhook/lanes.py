"""
Keep each client's deliveries in order while many requests are in flight.

- A lane is a queue. All deliveries with the same key are in the same lane, and a lane has one request in flight, so they cannot
  overtake each other. A request carries a list of deliveries: a single one, unless events share requests.
- A delivery that waits for its retry parks its key: later ones with this key wait behind it, and the lane goes on.
- A client with a long backlog must not take the room of all others. Its key is parked too, but may go on at once, and others
  get their turn after each of its requests.
- Only the places of parked deliveries are kept. They are recalled when their turn comes, except for those that the outbox had
  to drop meanwhile.
- A delivery whose body does not fit into memory is parked too. If it still does not fit when its turn comes, it borrows room:
  then its body is in memory only while it is in flight.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Protocol
from zlib import crc32

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mqhooks.delivery import Delivery, Shelved
from mqhooks.errors import OutboxError
from mqhooks.webhook.outcomes import AGAIN, ARRIVED, HALVE, PARK, Fate
from mqhooks.webhook.places import Places
from mqhooks.webhook.settings import BatchSettings

Settle = Callable[[Fate | Sequence[Fate]], None]
Send = Callable[[list[Delivery], Settle], None]


class Gate(Protocol):
    """Decides which deliveries may be sent: an :class:`~mqhooks.interfaces.IGate`."""

    def enter(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Return the deliveries that may be sent."""

    def leave(self, deliveries: Sequence[Delivery]) -> None:
        """Note that an attempt has ended."""


class Shelf(Protocol):
    """The part of :class:`~mqhooks.interfaces.IOutbox` that lanes need."""

    def shelve(self, places: Iterable[int]) -> None:
        """Note that only the places are kept."""

    def recall(self, places: Iterable[int]) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """Hand out deliveries again."""


class Memory(Protocol):
    """The memory for bodies, as far as lanes need it."""

    @property
    def room(self) -> int:
        """Bytes that may be recalled."""

    @property
    def short(self) -> int:
        """Longest body, in bytes, whose size is not noted beside its place."""

    def borrow(self) -> bool:
        """
        Ask for the room of one body; :meth:`Lanes.lend` is called when it is granted.

        :returns: whether the reactor's next turn grants it.
        """

    def give_back(self) -> None:
        """Give the borrowed room back."""

    def missed(self) -> None:
        """Note that a delivery is gone, or belongs to another process."""


class Plenty:
    """Unlimited memory."""

    room = 1 << 62
    short = 0

    def borrow(self) -> bool:
        """Do nothing: nobody needs to borrow."""
        return False

    def give_back(self) -> None:
        """Do nothing."""

    missed = give_back


_ONE = BatchSettings(size=1, linger=0.0)


class Lanes:
    """
    The lanes of one webhook.

    :param count: number of lanes.
    :param send: ``send(deliveries, settle)`` makes an attempt. It calls ``settle`` once, with one fate for all deliveries or a
        fate for each; possibly before it returns.
    :param outbox: shelves and recalls deliveries of which only the places are kept.
    :param unreadable: called with a key whose deliveries could not be read; call :meth:`reread` later.
    :param key: returns a delivery's key; deliveries with the same key stay in order.
    :param clock: for lingering.
    :param batch: how deliveries share a request; ``None`` when each has one of its own.
    :param gate: asked before deliveries are sent; ``None`` when they always may be.
    :param rated: whether a single request may use up the webhook's limit for now.
    :ivar load: number of deliveries in lanes or in flight; parked ones don't count.
    :ivar size: bytes of their bodies, without the one in borrowed room.
    :ivar in_flight: number of requests without a result.
    :ivar limit: number of requests that may be in flight. Whoever raises it calls :meth:`admit`.
    :ivar memory: bounds the bodies that may be recalled.
    :ivar lent: holder of the borrowed room: a delivery, or a parked key whose first delivery is being recalled.
    :ivar kept: number by which the limit is lowered while a delivery is being recalled into borrowed room, or is about to be.
    :ivar awaited: number of deliveries that were pushed as places and have yet to be recalled for the first time.
    :ivar parked: number of keys that wait for a retry, or have waited for one.
    :ivar runs: number of runs of consecutive places of parked deliveries.
    :ivar idle: the lanes that have something to send, and wait for the limit or for memory.
    :ivar stopped: whether :meth:`stop` was called.
    """

    def __init__(
        self,
        count: int,
        send: Send,
        outbox: Shelf,
        unreadable: Callable[[str], object],
        *,
        key: Callable[[Delivery | Shelved], str],
        clock: IReactorTime,
        batch: BatchSettings | None = None,
        gate: Gate | None = None,
        rated: bool = False,
    ) -> None:
        self.limit = count
        self.memory: Memory = Plenty()
        self.stopped = False
        self.lent: Delivery | Parked | None = None
        self.awaited = 0
        self.send = send
        self.outbox = outbox
        self.gate = gate
        self.unreadable = unreadable
        self.key = key
        self.clock = clock
        self.batch = batch or _ONE
        self.load = 0
        self.size = 0
        self.in_flight = 0
        self.parked = self.runs = 0
        self.idle: dict[Lane, None] = {}
        self.kept = 0
        self._rated = rated
        self._may_borrow = False
        self._lanes = [Lane(self) for _ in range(count)]

    def push(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries at the end of their lanes."""
        count = len(self._lanes)
        self.load += len(deliveries)
        self.size += sum([len(delivery.body) for delivery in deliveries])
        groups: defaultdict[int, list[Delivery]] = defaultdict(list)
        for delivery, key in zip(deliveries, map(self.key, deliveries), strict=True):
            groups[crc32(key.encode()) % count].append(delivery)
        for lane, group in groups.items():
            self._lanes[lane].push(group)

    def push_place(self, shelved: Shelved) -> None:
        """Put a delivery of which only the place is kept at the end of its lane."""
        self._lane(self.key(shelved)).push_place(shelved)

    def unpark(self, key: str) -> None:
        """Let the deliveries of a parked key be tried again when their lane comes to them."""
        self._lane(key).unpark(key)

    def reread(self, key: str) -> None:
        """Recall a key's deliveries again after they could not be read, unless the key waits for a retry."""
        self._lane(key).reread(key)

    def admit(self) -> None:
        """Resume lanes that wait for the limit or for memory, as far as the limit allows."""
        for lane in list(self.idle):
            if self.in_flight + self.kept >= self.limit:
                break
            if lane in self.idle:
                del self.idle[lane]
                lane.run()

    def lend(self) -> None:
        """Let the first lane that is short of memory send one body in borrowed room; :meth:`Memory.give_back` follows."""
        self._may_borrow = True
        self.kept = 0
        self.idle = dict.fromkeys(sorted(self.idle, key=attrgetter("fed")))
        self.admit()
        if self._may_borrow:
            self._may_borrow = False
            self.memory.give_back()

    def borrow(self, parked: Parked) -> bool:
        """Return whether the first delivery of a key may be recalled into borrowed room now; if not, ask for that room."""
        if not self._may_borrow:
            if self.lent is None and self.memory.borrow():
                self.keep()
            return False
        self._may_borrow = False
        self.lent = parked
        return True

    def keep(self) -> None:
        """Keep a request for the delivery in borrowed room, so that others do not use up the limit before it is read."""
        self.kept = len(self._lanes) if self._rated else 1

    def give_back(self) -> None:
        """Give the borrowed room back, and ask again if lanes still wait."""
        self.lent = None
        self.memory.give_back()
        if self.idle:
            # The waiting lanes have not asked while the room was in use.
            self.memory.borrow()

    def leave(self, delivery: Delivery) -> None:
        """Note that a body is no longer in memory."""
        self.load -= 1
        if delivery is self.lent:
            self.give_back()
        else:
            self.size -= len(delivery.body)

    def shelve(self) -> None:
        """Park deliveries that wait behind a parked one now rather than when their turn comes, to make room."""
        for lane in self._lanes:
            lane.shelve()

    def shorten(self, length: int) -> bool:
        """
        Park the keys of the deliveries behind the first of each lane, to make room for other lanes.

        :param length: number of deliveries to leave at the front of each lane.
        :returns: whether anything was parked.
        """
        before = self.load
        for lane in self._lanes:
            lane.shorten(length)
        return self.load < before

    def waits_beside(self, clients: Collection[str]) -> bool:
        """Return whether a delivery of a client other than these waits in a lane."""
        return any(lane.waits_beside(clients) for lane in self._lanes)

    def newest(self, known: Callable[[str], bool]) -> str | None:
        """
        Find the key of the delivery that was accepted last, in lanes with nothing in flight.

        :param known: returns whether to leave a client out.
        """
        found = [newest for lane in self._lanes if (newest := lane.newest(known)) is not None]
        return max(found)[1] if found else None

    def prefer(self, key: str) -> None:
        """Make the first delivery of a key from :meth:`newest` the next one to be sent, alone."""
        lane = self._lane(key)
        lane.prefer(key)
        self.idle = {lane: None, **self.idle}

    def stop(self) -> None:
        """Forget the waiting deliveries, and ignore the outbox's answers from now on: others may have claimed them."""
        self.stopped = True
        for lane in self._lanes:
            lane.stop()

    def _lane(self, key: str) -> Lane:
        return self._lanes[crc32(key.encode()) % len(self._lanes)]


class Parked:
    """
    A parked key.

    :param key: the key.
    :param client: the client of its deliveries.
    :ivar places: the places of its parked deliveries.
    :ivar recalled: its first delivery, if it was recalled before it could be sent.
    :ivar queued: whether it may go on, and is in its lane's queue.
    :ivar asked: whether the outbox has yet to answer a recall.
    :ivar held: whether it waits for a retry.
    :ivar failed: whether it has ever waited for one.
    :ivar longest: longest body, in bytes, of those whose sizes are not noted beside their places.
    :ivar awaited: number of its places that count in :attr:`Lanes.awaited`.
    :ivar reserved: bytes reserved for the recall that the outbox has yet to answer.
    """

    __slots__ = ("asked", "awaited", "client", "failed", "held", "key", "longest", "places", "queued", "recalled", "reserved")

    def __init__(self, key: str, client: str) -> None:
        self.key = key
        self.client = client
        self.places = Places()
        self.recalled: Delivery | None = None
        self.queued = self.asked = self.held = self.failed = False
        self.awaited = self.longest = self.reserved = 0


class Lane:
    """
    One lane.

    :param lanes: all of them.
    :ivar fed: whether there was enough memory when it last had something to send.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.fed = True
        self._all = lanes
        # Parked keys that may go on are in the queue, too.
        self._queue: deque[Delivery | Parked] = deque()
        self._parked: dict[str, Parked] = {}
        # Attempts of parked deliveries by place; the outbox does not know them.
        self._attempts: dict[int, int] = {}
        # Sizes of parked deliveries' long bodies by place.
        self._sizes: dict[int, int] = {}
        self._current: list[Delivery] | None = None
        self._running = False
        self._settle_current = self._settle
        # Numbers of deliveries at the front of the queue to try together: the halves of a batch that was refused.
        self._parts: list[int] = []
        self._single = lanes.batch.size == 1
        self._since = 0.0
        self._timer: IDelayedCall | None = None

    def push(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries at the end."""
        if not self._single and not self._queue:
            self._since = self._all.clock.seconds()
        self._queue.extend(deliveries)
        # While the timer runs, only a full batch is due.
        if self._current is None and (self._timer is None or len(self._queue) >= self._all.batch.size):
            self.run()

    def push_place(self, shelved: Shelved) -> None:
        """Put a delivery of which only the place is kept at the end; later ones with its key wait behind it."""
        key = self._all.key(shelved)
        # It must not overtake earlier ones with its key that are here with their bodies.
        self._park_all({key})
        if key not in self._parked:
            self._append(self._new_parked(key, shelved.client))
        parked = self._parked[key]
        self._keep(shelved.place, shelved.size, parked)
        if not parked.held:
            parked.awaited += 1
            self._all.awaited += 1
        if self._current is None:
            self.run()

    def unpark(self, key: str) -> None:
        """Put a parked key at the end: a key that keeps failing must not go before one that never had a turn."""
        if not self._queue:
            self._since = self._all.clock.seconds()
        parked = self._parked[key]
        parked.held = False
        self._append(parked)
        if self._current is None:
            self.run()

    def reread(self, key: str) -> None:
        """Go on with a parked key whose deliveries could not be read."""
        parked = self._parked.get(key)
        if parked is not None and not parked.held:
            self.unpark(key)

    def _append(self, parked: Parked) -> None:
        if not (parked.queued or parked.asked):
            parked.queued = True
            self._queue.append(parked)

    def stop(self) -> None:
        """Forget the waiting deliveries, and cancel the timer."""
        self._queue.clear()
        self._parked.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def waits_beside(self, clients: Collection[str]) -> bool:
        """Return whether a delivery of a client other than these waits here."""
        return any(item.client not in clients for item in self._queue)

    def shelve(self) -> None:
        """Park deliveries that wait behind a parked one."""
        if self._parked:
            queue = list(self._queue)
            self._queue.clear()
            for item in queue:
                if isinstance(item, Parked) or self._all.key(item) not in self._parked:
                    self._queue.append(item)
                else:
                    self._park_behind(item)

    def shorten(self, length: int) -> None:
        """Park the keys of the deliveries behind the first; they may go on at once unless they wait for a retry."""
        behind = islice(self._queue, length, None)
        keys = {self._all.key(item) for item in behind if isinstance(item, Delivery)}
        if keys:
            self._park_all(keys)

    def _park_all(self, keys: Collection[str]) -> None:
        queue, self._queue = self._queue, deque()
        for item in queue:
            if isinstance(item, Parked) or (key := self._all.key(item)) not in keys:
                self._queue.append(item)
                continue
            if key not in self._parked:
                self._append(self._new_parked(key, item.client))
            self._park_behind(item)

    def newest(self, known: Callable[[str], bool]) -> tuple[int, str] | None:
        """Return place and key of the last delivery whose client is not known, unless a request is in flight here."""
        if self._current is not None:
            return None
        for item in reversed(self._queue):
            if known(item.client):
                continue
            if isinstance(item, Delivery):
                return item.place, self._all.key(item)
            if item.places:
                return item.places.last, item.key
            if item.recalled is not None:
                return item.recalled.place, item.key
        return None

    def prefer(self, key: str) -> None:
        """Move a key, or the first delivery with it if it is not parked, to the front."""
        first: Delivery | Parked | None = self._parked.get(key)
        if first is None or first not in self._queue:
            first = next(item for item in self._queue if isinstance(item, Delivery) and self._all.key(item) == key)
        self._queue.remove(first)
        self._queue.appendleft(first)
        if self._all.batch.size > 1:
            self._parts.append(1)

    def run(self) -> None:
        """Send as much as may be sent, if nothing is in flight."""
        # An attempt may end before send() returns and so call this again: the loop goes on instead of recursing.
        if self._running:
            return
        self._running = True
        lanes = self._all
        while self._current is None and self._queue:
            if lanes.in_flight + lanes.kept >= lanes.limit:
                lanes.idle[self] = None
                break
            if self._single and not self._parked and not self._parts:
                # The usual case: no key is parked, so the queue holds deliveries, and each has a request of its own.
                first: Any = self._queue.popleft()
                batch: list[Delivery] = [first]
            elif lanes.batch.linger and not self._due():
                break
            else:
                batch = self._collect()
                if not batch and not self.fed:
                    lanes.idle[self] = None
                    break
            if lanes.gate is not None and batch:
                batch = self._enter(lanes.gate, batch)
            if batch:
                self._current = batch
                lanes.in_flight += 1
                lanes.send(batch, self._settle_current)
        self._running = False

    def _enter(self, gate: Gate, batch: list[Delivery]) -> list[Delivery]:
        """Forget deliveries that may not be sent: they belong to another process, or will be claimed again."""
        entered = gate.enter(batch)
        if len(entered) < len(batch):
            kept = {delivery.place for delivery in entered}
            forgotten = [delivery for delivery in batch if delivery.place not in kept]
            for delivery in forgotten:
                self._all.leave(delivery)
            if self._parked:
                staying = set(map(self._all.key, entered))
                self._go_on(key for key in map(self._all.key, forgotten) if key not in staying)
            self._all.memory.missed()
        return entered

    # The next request.

    def _due(self) -> bool:
        batch, clock = self._all.batch, self._all.clock
        if self._parts or len(self._queue) >= batch.size:
            return True
        left = self._since + batch.linger - clock.seconds()
        if left <= 0:
            return True
        if self._timer is None:
            self._timer = clock.callLater(left, self._lingered)
        return False

    def _lingered(self) -> None:
        self._timer = None
        self.run()

    def _collect(self) -> list[Delivery]:
        lanes, queue = self._all, self._queue
        limits = lanes.batch
        part = bool(self._parts)
        room = self._parts.pop() if part else limits.size
        batch: list[Delivery] = []
        turned: Parked | None = None
        size, most = 0, room
        self.fed = True
        while queue and room and len(batch) < most:
            head = queue[0]
            if isinstance(head, Parked) and not self._fits(head) and (batch or not lanes.borrow(head)):
                self.fed = bool(batch)
                break
            queue.popleft()
            if isinstance(head, Parked):
                head.queued = False
                delivery = self._resume(head)
                if self._current is not None:
                    break
            else:
                delivery = self._unless_parked(head)
            if delivery is not None:
                if delivery.attempts:
                    # A delivery that always fails must not hold up others for long: each time it shares with a quarter as many.
                    most = min(most, limits.size >> 2 * delivery.attempts)
                if batch and (size + len(delivery.body) > limits.max_bytes or len(batch) >= most):
                    if isinstance(head, Parked):
                        head.recalled, head.queued = delivery, True
                    queue.appendleft(head)
                    break
                batch.append(delivery)
                size += len(delivery.body)
                if isinstance(head, Parked) and head.places and not head.failed:
                    # More deliveries of this key may share the request.
                    head.queued, turned = True, head
                    queue.appendleft(head)
            room -= 1
        if part and room and queue:
            self._parts.append(room)
        if turned is not None and queue and queue[0] is turned and not self._parts:
            # Let other keys have their turn.
            queue.rotate(-1)
        if limits.linger and self.fed:
            self._since = lanes.clock.seconds()
        return batch

    def _fits(self, parked: Parked) -> bool:
        """Return whether the first delivery of a key fits into memory, if it has to be recalled."""
        memory = self._all.memory
        if parked.recalled is not None or not parked.places or (size := self._size(parked)) <= memory.room:
            return True
        if not self._all.in_flight:
            # Deliveries that wait behind a parked one must not take the room that it needs.
            self.shelve()
        return size <= memory.room

    def _size(self, parked: Parked) -> int:
        return self._sizes.get(parked.places.first, parked.longest)

    def _unless_parked(self, delivery: Delivery) -> Delivery | None:
        if self._parked and self._all.key(delivery) in self._parked:
            self._park_behind(delivery)
            return None
        return delivery

    def _resume(self, parked: Parked) -> Delivery | None:
        """Return the first delivery of a parked key, or start its recall."""
        if parked.recalled is None:
            if not parked.places:
                self._free(parked)
                return None
            try:
                found = self._all.outbox.recall((parked.places.first,))
            except OutboxError:
                self._not_lent(parked)
                self._all.unreadable(parked.key)
                return None
            if isinstance(found, Deferred):
                parked.asked = True
                if self._all.lent is parked:
                    # Send nothing else from this lane meanwhile, so that it keeps the borrowed room no longer than needed.
                    self._current = []
                    self._all.keep()
                else:
                    parked.reserved = self._size(parked)
                    self._all.size += parked.reserved
                more = (parked, parked.places.first)
                found.addCallbacks(self._came_back, self._unreadable, callbackArgs=more, errbackArgs=more)
                return None
            self._take(found, parked)
            if parked.recalled is None:
                # It was dropped; the one behind it gets its turn.
                self._append(parked)
        recalled, parked.recalled = parked.recalled, None
        return recalled

    def _take(self, found: Sequence[Delivery], parked: Parked) -> None:
        lanes = self._all
        lanes.runs -= parked.places.runs
        place = parked.places.popleft()
        lanes.runs += parked.places.runs
        attempts = self._attempts.pop(place, 0)
        self._sizes.pop(place, None)
        if parked.awaited:
            parked.awaited -= 1
            lanes.awaited -= 1
        for delivery in found:
            delivery.attempts = attempts
            parked.recalled = delivery
            lanes.load += 1
            if lanes.lent is parked:
                lanes.lent = delivery
            else:
                lanes.size += len(delivery.body)
        if not found:
            self._not_lent(parked)
            lanes.memory.missed()

    def _answered(self, parked: Parked) -> None:
        parked.asked = False
        self._all.size -= parked.reserved
        parked.reserved = 0
        if self._all.lent is parked:
            self._current = None
            self._all.kept = 0

    def _not_lent(self, parked: Parked) -> None:
        """Give back the room borrowed for a delivery that cannot be sent now."""
        if self._all.lent is parked:
            self._all.give_back()

    def _came_back(self, found: Sequence[Delivery], parked: Parked, place: int) -> None:
        lanes = self._all
        if lanes.stopped:
            return
        self._answered(parked)
        lent = lanes.lent is parked
        if parked.places.first != place or (lent and lanes.in_flight >= lanes.limit):
            # An earlier one was parked again meanwhile, or this one would keep the borrowed room while it waits for the limit.
            lanes.outbox.shelve((place,))
            self._not_lent(parked)
        else:
            self._take(found, parked)
        if lent and parked.recalled is not None and not parked.held:
            parked.queued = True
            self._queue.appendleft(parked)
            if not self._single:
                self._parts.append(1)
        else:
            self.reread(parked.key)
        self._on()

    def _unreadable(self, failure: Any, parked: Parked, _place: int) -> None:
        failure.trap(OutboxError)
        if self._all.stopped:
            return
        self._answered(parked)
        self._not_lent(parked)
        self._all.unreadable(parked.key)
        self._on()

    def _on(self) -> None:
        """Go on here and in other lanes after an answer of the outbox."""
        if self._current is None:
            self.run()
        self._all.admit()

    # Results.

    def _settle(self, fates: Fate | Sequence[Fate]) -> None:
        batch, lanes = self._current, self._all
        assert batch is not None
        lanes.in_flight -= 1
        lanes.load -= len(batch)
        for delivery in batch:
            lanes.size -= len(delivery.body)
            if delivery is lanes.lent:
                lanes.size += len(delivery.body)
                lanes.give_back()
        if lanes.gate is not None:
            lanes.gate.leave(batch)
        if fates is ARRIVED:
            if self._parked:
                self._go_on(map(lanes.key, batch))
        elif isinstance(fates, Fate):
            self._settle_each(batch, [fates] * len(batch))
        else:
            self._settle_each(batch, fates)
        self._current = None
        if self._queue:
            if lanes.idle and not self._running:
                # Lanes that wait for the limit have waited longer.
                lanes.idle[self] = None
            else:
                self.run()
        if lanes.idle:
            lanes.admit()

    def _settle_each(self, batch: Sequence[Delivery], fates: Sequence[Fate]) -> None:
        key = self._all.key
        if fates[0] is HALVE:
            half = len(batch) // 2
            self._parts += [len(batch) - half, half]
        waiting: set[str] = set()
        back = 0
        # Go backwards, so that deliveries put at the front end up in order.
        for delivery, fate in zip(reversed(batch), reversed(fates), strict=True):
            if fate is PARK:
                self._park(delivery)
                self._hold(self._parked[key(delivery)])
            elif fate is AGAIN or fate is HALVE:
                back += self._put_back(delivery, named=key(delivery) in waiting)
            else:
                continue
            waiting.add(key(delivery))
        if back and self._parts and fates[0] is not HALVE:
            self._parts.append(back)
        if self._parked:
            self._go_on(name for name in map(key, batch) if name not in waiting)

    def _go_on(self, keys: Iterable[str]) -> None:
        """Resume the deliveries that waited behind settled ones."""
        for key in dict.fromkeys(keys):
            parked = self._parked.get(key)
            if parked is None or parked.queued or parked.asked:
                continue
            if parked.places:
                # Queue it behind other clients' deliveries that came meanwhile: one client's long queue must not hold them up.
                self._append(parked)
            else:
                self._free(parked)

    def _new_parked(self, key: str, client: str) -> Parked:
        parked = self._parked[key] = Parked(key, client)
        return parked

    def _free(self, parked: Parked) -> None:
        del self._parked[parked.key]
        self._all.awaited -= parked.awaited
        self._all.parked -= parked.failed

    def _hold(self, parked: Parked) -> None:
        """Make a parked key wait until it is unparked."""
        if parked.queued:
            parked.queued = False
            self._queue.remove(parked)
        self._all.awaited -= parked.awaited
        parked.awaited = 0
        self._all.parked += not parked.failed
        parked.held = parked.failed = True

    def _park(self, delivery: Delivery) -> None:
        """Park a delivery that has been tried, ahead of others with its key."""
        key = self._all.key(delivery)
        parked = self._parked.get(key) or self._new_parked(key, delivery.client)
        if parked.recalled is not None:
            recalled, parked.recalled = parked.recalled, None
            self._all.leave(recalled)
            self._shelve(recalled, parked, front=True)
        self._shelve(delivery, parked, front=True)

    def _park_behind(self, delivery: Delivery) -> None:
        self._all.leave(delivery)
        self._shelve(delivery, self._parked[self._all.key(delivery)])

    def _shelve(self, delivery: Delivery, parked: Parked, *, front: bool = False) -> None:
        self._keep(delivery.place, len(delivery.body), parked, front=front)
        self._all.outbox.shelve((delivery.place,))
        if delivery.attempts:
            self._attempts[delivery.place] = delivery.attempts

    def _keep(self, place: int, size: int, parked: Parked, *, front: bool = False) -> None:
        places = parked.places
        self._all.runs -= places.runs
        (places.appendleft if front else places.append)(place)
        self._all.runs += places.runs
        if size > self._all.memory.short:
            self._sizes[place] = size
        else:
            parked.longest = max(parked.longest, size)

    def _put_back(self, delivery: Delivery, *, named: bool) -> int:
        """
        Put a delivery back at the front.

        :param named: whether a parked key is in the queue already.
        :returns: number of entries by which the queue has grown.
        """
        key = self._all.key(delivery)
        parked = self._parked.get(key)
        if parked is not None:
            self._park(delivery)
            if parked.asked:
                # It goes on once the outbox has answered.
                return 0
            if not named:
                if parked.queued:
                    self._queue.remove(parked)
                parked.queued = True
                self._queue.appendleft(parked)
            return 0 if named and parked.failed else 1
        self._all.load += 1
        self._all.size += len(delivery.body)
        self._queue.appendleft(delivery)
        return 1
