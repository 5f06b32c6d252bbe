"""
The ledger: one webhook's accepted and unsettled deliveries, as rows, a bit for each delivery, and counts.

- Pure: no SQL, no reactor, no Deferred.
- Deliveries that are committed together form a row. Rows are handed out in the order of their numbers, and each is deleted as
  a whole when all its deliveries are settled: arrived, buried or dropped.
- Only the rows that are claimed or come next are in memory. Those behind them are unread: they stay in storage and are known
  only by their numbers, so a backlog of any length costs no memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import islice
from typing import cast

from mqhooks.delivery import Counts, Delivery

ROW = 512
"""Maximum number of deliveries in a row."""

ROW_BYTES = 1 << 20
"""Maximum bytes of bodies in a row, unless a single body is longer."""

INDEX_BITS = 16
"""A place is a row's number, then these bits: the delivery's index in the row."""

INDEX = (1 << INDEX_BITS) - 1

READY = 4096
"""Unclaimed deliveries kept in memory, approximately; the rows behind them stay unread."""

READY_BYTES = 8 << 20
"""Bytes that their bodies may have, approximately, and a row more. A row with a long body is read when it is claimed."""

THINNED = 100
"""Maximum number of rows thinned each second; while there is room, only this many of the oldest are considered."""

THIN_SIZE = 4096
"""A row of fewer bytes is not worth thinning while there is room."""


class Row:
    """
    A row, and which of its deliveries are settled.

    :param number: grows from row to row.
    :param count: its number of deliveries when it was written.
    :param size: its size in bytes.
    :param settled: the settled ones, in the format of :attr:`bits`; ``None`` for none.
    :ivar settled: a bit for each delivery, the lowest for the first.
    :ivar kept: number of deliveries that its bytes hold; thinning takes settled ones out.
    :ivar left: number of unsettled deliveries.
    :ivar marked: whether storage has bits for it.
    :ivar accepted: when its oldest delivery was accepted, in milliseconds since 1970; ``None`` before it is read.
    :ivar shelved: a bit for each claimed delivery of which the sink keeps only the place: it recalls the delivery to send it.
    """

    __slots__ = ("accepted", "count", "kept", "left", "marked", "number", "settled", "shelved", "size")

    def __init__(self, number: int, count: int, size: int, settled: bytes | None = None) -> None:
        self.number = number
        self.count = count
        self.size = size
        self.accepted: int | None = None
        self.shelved = 0
        self.kept = count
        self.marked = settled is not None
        self.settled = 0 if settled is None else int.from_bytes(settled, "little") & ((1 << count) - 1)
        self.left = count - self.settled.bit_count()

    @property
    def spare(self) -> int:
        """Bytes that settled deliveries take in it, approximately."""
        return self.size * (self.kept - self.left) // self.kept if self.kept else self.size

    @property
    def bits(self) -> bytes:
        """The settled bits, as stored."""
        return self.settled.to_bytes((self.count + 7) // 8, "little")

    def holds(self, index: int) -> bool:
        """Return whether a delivery is unsettled."""
        return index < self.count and not self.settled >> index & 1

    def settle(self, places: Sequence[int]) -> int:
        """
        Settle deliveries.

        :param places: of this row, each once and in order; those that are settled are left as they are.
        :returns: the number newly settled.
        """
        first, last = places[0] & INDEX, places[-1] & INDEX
        if last - first == len(places) - 1:
            mask = ((1 << len(places)) - 1) << first
        else:
            mask = 0
            for place in places:
                mask |= 1 << (place & INDEX)
        mask &= ((1 << self.count) - 1) & ~self.settled
        self.settled |= mask
        count = mask.bit_count()
        self.left -= count
        return count


class Ledger:
    """
    The rows of one webhook.

    :param first: one less than the number of the oldest row in storage.
    :param last: the number of the newest row.
    :param pending: number of unsettled deliveries in storage.
    :param size: bytes of all rows.
    :param ready: approximate number of unclaimed deliveries to keep in memory; the rows behind them stay unread.
    :ivar size: bytes of the unsettled rows.
    :ivar ready_bytes: approximate limit on the bodies of unclaimed deliveries in memory, in bytes.
    :ivar surplus: number of deliveries found beyond those pending: bits were lost, so these are delivered again.
    """

    def __init__(self, first: int = 0, last: int = 0, pending: int = 0, size: int = 0, ready: int = READY) -> None:
        self.size = size
        self.ready_bytes = READY_BYTES
        self.surplus = 0
        self.forgotten = 0
        self._most_ready = ready
        self._read = first
        self._last = last
        self._resumed = pending
        self._appended = self._replayed = self._delivered = self._dead = self._dropped = 0
        self._rows: dict[int, Row] = {}
        # Unsettled deliveries in these rows.
        self._left = 0
        # Unclaimed deliveries in memory: each row, what is left of it, and the bytes of its bodies.
        self._ready: deque[tuple[Row, list[Delivery], int]] = deque()
        self._ready_count = self._ready_bytes = 0
        # Rows to read again, in order; a row that is settled meanwhile leaves it. The values mean nothing. To take 80,000 rows
        # from the front takes 0.02 s; with a plain dict, which steps over those removed before, 2 s.
        self._again: OrderedDict[int, None] = OrderedDict()
        self._touched: dict[int, Row] = {}
        self._finished: list[Row] = []
        # Bytes that thinning can free, counted when there was too little room.
        self._spare = 0

    # Counts.

    @property
    def counts(self) -> Counts:
        """Counts of accepted deliveries and of what became of them."""
        return Counts(
            self._appended,
            self._resumed,
            self._replayed,
            self._delivered,
            self._dead,
            self._dropped,
            self.pending,
            self.forgotten,
        )

    @property
    def pending(self) -> int:
        """Number of deliveries that are accepted and not settled."""
        accepted = self._appended + self._resumed + self._replayed
        return accepted - self._delivered - self._dead - self._dropped

    @property
    def oldest(self) -> int | None:
        """When the oldest pending delivery was accepted, in milliseconds since 1970; ``None`` when no row is in memory."""
        for row in self._rows.values():
            return row.accepted
        return None

    @property
    def behind(self) -> bool:
        """Whether there are rows to read, for the first time or again."""
        return bool(self._again) or self._read < self._last

    @property
    def empty(self) -> bool:
        """Whether there are no rows, in memory or unread."""
        return not self._rows and not self.behind

    def accept(self, appended: int, replayed: int = 0, resumed: int = 0, dead: int = 0) -> None:
        """
        Count deliveries that were committed.

        :param appended: number made from events; likewise ``replayed`` and ``resumed``, as in
            :class:`~mqhooks.delivery.Counts`.
        :param dead: number of them that became dead letters at once.
        """
        self._appended += appended
        self._replayed += replayed
        self._resumed += resumed
        self._dead += dead

    # New rows.

    def add(
        self, number: int, deliveries: list[Delivery | None], size: int, settled: bytes | None = None, *, wanted: bool = True
    ) -> None:
        """
        Add a row that was just committed.

        :param number: higher than any before.
        :param deliveries: ``None`` in the places of those that are settled.
        :param size: its size in storage, in bytes.
        :param settled: the settled bits, as stored; ``None`` for none.
        :param wanted: whether a claim is waiting.
        """
        caught_up = self._read == self._last and not self._again
        self._last = number
        self.size += size
        for place, delivery in enumerate(deliveries, number << INDEX_BITS):
            if delivery is not None:
                delivery.place = place
        if not caught_up or self._ready_count >= self._most_ready or self._ready_bytes >= self.ready_bytes:
            return
        if not (self.takes(size) and (wanted or size <= ROW_BYTES)):
            return
        self._read = number
        row = Row(number, len(deliveries), size, settled)
        if settled is None:
            self._hold(row, cast("list[Delivery]", deliveries))
        else:
            self._put(row, deliveries)

    @property
    def unread(self) -> tuple[int, int]:
        """The range of the unread rows' numbers, the first excluded and the second included."""
        return self._read, self._last

    @property
    def wants_more(self) -> bool:
        """Whether the next unread row should be read."""
        return not self._again and self._read < self._last and self._has_room()

    def again(self) -> int | None:
        """Get the number of the row to read again next, before any unread one; ``None`` when there is none now."""
        return next(iter(self._again)) if self._again and self._has_room() else None

    def takes(self, size: int) -> bool:
        """Return whether to keep a row of this many bytes in memory: one with a long body only when no other is there."""
        return size <= ROW_BYTES or not self._ready

    def _has_room(self) -> bool:
        return self._ready_count < max(self._most_ready // 4, 1) and self._ready_bytes < self.ready_bytes

    def load(self, row: Row, deliveries: Sequence[Delivery | None] | None) -> int:
        """
        Add a row that was read.

        :param row: as stored.
        :param deliveries: ``None`` when they are lost.
        :returns: the number lost.
        """
        if row.number in self._again:
            del self._again[row.number]
            # The one in memory may have settled bits that are not written yet.
            row = self._rows.get(row.number, row)
        self._read = max(self._read, row.number)
        if deliveries is not None and len(deliveries) == row.count:
            self._put(row, deliveries)
            self._balance()
            return 0
        # A damaged row's own count may be wrong.
        return self._drop(row)

    def read_up(self) -> None:
        """Note that all rows in storage have been read."""
        self._read = self._last

    def gone(self, number: int) -> int:
        """
        Note that storage has lost a row that was to be read again.

        :returns: the number of deliveries lost.
        """
        lost = self.load(self._rows[number], None)
        # There is nothing to delete.
        self._finished.pop()
        return lost

    def _put(self, row: Row, deliveries: Sequence[Delivery | None]) -> None:
        held = []
        for index, delivery in enumerate(deliveries):
            if delivery is not None and row.holds(index):
                delivery.place = row.number << INDEX_BITS | index
                held.append(delivery)
        if len(held) < row.left:
            # A delivery that was thinned out is settled, whatever the bits say.
            row.settle([index for index, delivery in enumerate(deliveries) if delivery is None])
        row.kept = len(deliveries) - deliveries.count(None)
        if held:
            self._hold(row, held)
        else:
            self._finish(row)

    def _hold(self, row: Row, held: list[Delivery]) -> None:
        size = sum([len(delivery.body) for delivery in held])
        row.accepted = held[0].accepted
        if row.number not in self._rows:
            self._rows[row.number] = row
            self._left += row.left
        self._ready.append((row, held, size))
        self._ready_count += len(held)
        self._ready_bytes += size

    # Claims.

    def claim(self, limit: int, size: int) -> list[Delivery]:
        """
        Hand out the oldest unclaimed deliveries that are in memory.

        :param limit: maximum number of deliveries.
        :param size: approximate limit on their bodies, in bytes; the first is handed out however long it is.
        """
        ready = self._ready
        claimed: list[Delivery] = []
        while ready and limit > 0 and (size > 0 or not claimed):
            row, held, held_size = ready.popleft()
            if len(held) > limit or held_size > size:
                taken = taken_size = 0
                for delivery in islice(held, limit):
                    if taken_size >= size and (taken or claimed):
                        break
                    taken += 1
                    taken_size += len(delivery.body)
                if taken < len(held):
                    ready.appendleft((row, held[taken:], held_size - taken_size))
                    held, held_size = held[:taken], taken_size
            claimed += held
            limit -= len(held)
            size -= held_size
            self._ready_count -= len(held)
            self._ready_bytes -= held_size
        return claimed

    def reclaim(self) -> None:
        """Hand out everything in memory again, once it has been read again."""
        self._ready.clear()
        self._ready_count = self._ready_bytes = 0
        # Rows are in the order in which they were committed.
        self._again = OrderedDict.fromkeys(self._rows)
        for row in self._rows.values():
            row.shelved = 0

    def shelve(self, places: Iterable[int]) -> None:
        """Note that claimed deliveries will be recalled before they are sent, so they may be dropped to make room."""
        for place in places:
            row = self._rows.get(place >> INDEX_BITS)
            if row is not None:
                row.shelved |= 1 << (place & INDEX)

    def recall(self, places: Iterable[int]) -> list[int]:
        """
        Note that claimed deliveries are about to be sent.

        :returns: the places of those that are pending.
        """
        held = [place for place in places if self.holds(place)]
        for place in held:
            self._rows[place >> INDEX_BITS].shelved &= ~(1 << (place & INDEX))
        return held

    def holds(self, place: int) -> bool:
        """Return whether a claimed delivery is pending."""
        row = self._rows.get(place >> INDEX_BITS)
        return row is not None and row.holds(place & INDEX)

    # Settling deliveries.

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Settle deliveries that have arrived; skip those that are not pending."""
        self._delivered += self._settle([delivery.place for delivery in deliveries])
        self._balance()

    def bury(self, place: int) -> bool:
        """
        Settle a delivery as dead.

        :returns: whether it was pending.
        """
        dead = self._settle((place,))
        self._dead += dead
        self._balance()
        return bool(dead)

    def lose(self, places: Iterable[int]) -> int:
        """
        Settle deliveries that cannot be read.

        :returns: the number of them that were pending.
        """
        lost = self._settle(places)
        self._dropped += lost
        self._balance()
        return lost

    def _settle(self, places: Iterable[int]) -> int:
        ordered = list(places)
        if not ordered:
            return 0
        first = ordered[0]
        # Neighbours of one row, in order, are the usual case when events share requests.
        if ordered[-1] - first != len(ordered) - 1 or ordered != list(range(first, first + len(ordered))):
            ordered = sorted(set(ordered))
        at = count = 0
        while at < len(ordered):
            number = ordered[at] >> INDEX_BITS
            end = bisect_left(ordered, (number + 1) << INDEX_BITS, at)
            row = self._rows.get(number)
            if row is not None:
                settled = row.settle(ordered[at:end])
                self._left -= settled
                count += settled
                self._touched[number] = row
                if not row.left:
                    self._finish(row)
            at = end
        return count

    def _drop(self, row: Row) -> int:
        dropped = min(row.left, self.pending)
        self._dropped += dropped
        if row.number in self._rows:
            self._left -= row.left
        row.left = 0
        self._finish(row)
        return dropped

    def _finish(self, row: Row) -> None:
        self._rows.pop(row.number, None)
        self._again.pop(row.number, None)
        self._touched.pop(row.number, None)
        self._finished.append(row)
        self.size = max(self.size - row.size, 0)

    def _balance(self) -> None:
        surplus = self._left - self.pending
        if surplus > 0:
            # More are left than were counted: settled bits were lost, and these deliveries are sent again.
            self._resumed += surplus
            self.surplus += surplus

    # What to write.

    @property
    def settled(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._finished or self._touched)

    def finished(self) -> list[Row]:
        """Take the rows to delete."""
        finished, self._finished = self._finished, []
        return finished

    def progress(self) -> list[tuple[int, bytes]]:
        """Take the bits that have changed, by their rows' numbers."""
        touched, self._touched = self._touched, {}
        for row in touched.values():
            row.marked = True
        return [(number, row.bits) for number, row in touched.items()]

    # Making room.
    def excess(self, max_size: int) -> int:
        """Return the bytes in excess of the limit, not counting those that thinning is going to free."""
        return self.size - self._spare - max_size

    def sparse(self, max_size: int) -> list[Row]:
        """
        Find sparse rows, in which a few deliveries in retry keep many settled ones in storage.

        :returns: some that are worth thinning; :meth:`thinned` is called for those that are rewritten.
        """
        if self.size <= max_size:
            self._spare = 0
            oldest = islice(self._rows.values(), THINNED)
            return [row for row in oldest if row.left * 2 <= row.kept and row.size > THIN_SIZE]
        self._spare = sum([row.spare for row in self._rows.values()])
        return [row for row in nlargest(THINNED, self._rows.values(), key=lambda row: row.spare) if row.spare]

    def thinned(self, row: Row, size: int) -> None:
        """Note that a row is being rewritten without its settled deliveries."""
        self._spare = max(self._spare - row.spare, 0)
        self.size -= row.size - size
        row.size = size
        row.kept = row.left
        # Without its bits the row would count as damaged.
        self._touched[row.number] = row

    def unthinned(self, row: Row, size: int, kept: int) -> None:
        """Note that a row was not rewritten after all: its bytes are ``size``, and hold ``kept`` deliveries."""
        if row.number in self._rows:
            self.size += size - row.size
        row.size, row.kept = size, kept

    def drop_oldest(self, excess: int, unread: Iterable[Row]) -> int:
        """
        Drop deliveries until there is room: shelved ones first, then unclaimed rows, both oldest first. Callers that shelved
        deliveries find out when they recall them. Deliveries about to be sent stay.

        :param excess: the bytes to free.
        :param unread: the unread rows, in order, as stored; consumed one by one.
        :returns: the number of deliveries dropped.
        """
        dropped = 0
        for row in list(self._rows.values()):
            shelved = row.shelved & ~row.settled
            if excess > 0 and shelved:
                excess -= row.size * shelved.bit_count() // row.kept
                dropped += self._drop_shelved(row, shelved)
        for row in self._droppable(unread) if excess > 0 else ():
            spare = min(row.spare, self._spare)
            self._spare -= spare
            excess -= row.size - spare
            dropped += self._drop(row)
            if excess <= 0:
                break
        return dropped

    def _drop_shelved(self, row: Row, shelved: int) -> int:
        count = shelved.bit_count()
        if count == row.left:
            self._spare = max(self._spare - row.spare, 0)
            return self._drop(row)
        spare = row.spare
        row.settled |= shelved
        row.left -= count
        self._left -= count
        self._dropped += count
        self._touched[row.number] = row
        # Thinning frees them.
        self._spare += row.spare - spare
        return count

    def _droppable(self, unread: Iterable[Row]) -> Iterator[Row]:
        """Take unclaimed rows, one by one."""
        ready = self._ready
        claimed_in_part = int(bool(ready) and len(ready[0][1]) < ready[0][0].left)
        while len(ready) > claimed_in_part:
            row = ready[claimed_in_part][0]
            self._unready(claimed_in_part)
            yield row
        while self._again:
            number, _ = self._again.popitem(last=False)
            yield self._rows[number]
        for row in unread:
            self._read = row.number
            yield row

    def _unready(self, at: int) -> None:
        _, held, size = self._ready[at]
        del self._ready[at]
        self._ready_count -= len(held)
        self._ready_bytes -= size


def chunks(deliveries: Sequence[Delivery], size: int) -> Iterator[Sequence[Delivery]]:
    """Split deliveries that are committed together into rows; ``size`` is the total of their bodies, in bytes."""
    if size <= ROW_BYTES:
        for start in range(0, len(deliveries), ROW):
            yield deliveries[start : start + ROW]
        return
    start = size = 0
    for index, delivery in enumerate(deliveries):
        if index > start and (index - start == ROW or size + len(delivery.body) > ROW_BYTES):
            yield deliveries[start:index]
            start, size = index, 0
        size += len(delivery.body)
    if start < len(deliveries):
        yield deliveries[start:]
