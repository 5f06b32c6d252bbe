"""
What one webhook has in the outbox on disk.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from itertools import groupby, islice
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mqhooks.errors import OutboxError
from mqhooks.interfaces import IOutbox
from mqhooks.outbox.delivery import DeadLetter, Delivery
from mqhooks.outbox.rows import ROW, UNSTORABLE, WEBHOOKS, Batch, Plan, chunks, decode, encode, without_body
from mqhooks.outbox.totals import Totals

if TYPE_CHECKING:
    from mqhooks.outbox.sqlite import SqliteStore

CACHE = 4096
"""How many deliveries that nobody has claimed yet are kept in memory for each webhook; what is beyond them is read again."""

CACHE_BYTES = 8 << 20
"""How many bytes their bodies may have, about."""

CLAIM_BYTES = 4 << 20
"""How many bytes of bodies are claimed at a time, about."""

UNWRITTEN_BYTES = 8 << 20
"""How many bytes of bodies are kept until the end of a turn, unless a single append brings more."""

LONGEST = 990_000_000
"""How many bytes a body may have: SQLite takes no row of more than a thousand million."""

THINNED = 100
"""How many rows are thinned each second, at most; while there is room, of the oldest so many are looked at."""

THIN_SIZE = 4096
"""A row of fewer bytes is not worth it."""

UNNOTED = 64
"""How many deliveries of a webhook have arrived, at most about, without that being committed: a kill has them sent again."""


@implementer(IOutbox)
class SqliteOutbox:
    """
    What one webhook has accepted and not settled.

    ``accepted = delivered + dead + dropped + pending`` holds at every moment, also across restarts.

    :ivar accepted: deliveries that were appended.
    :ivar delivered: deliveries that arrived.
    :ivar dead: deliveries that became dead letters and were not replayed.
    :ivar dropped: deliveries that had to make room, or that a damaged file has lost.
    :ivar bytes: what the rows take that are not yet deleted.
    :ivar letters: how many dead letters are kept.
    """

    durable = True

    def __init__(self, store: SqliteStore, name: str) -> None:
        self.name = name
        self.key = 0
        self.dead_max = store.dead_max
        self.accepted = self.delivered = self.dead = self.dropped = self.bytes = self.letters = 0
        self._loaded = (0, 0, 0, 0)
        self._replayed = 0
        self._store = store
        self._cache: deque[Delivery] = deque()
        self._batches: dict[int, Batch] = {}
        self._progress: dict[int, bytes] = {}
        self._read = 0
        self._last = 0
        self._assigned = 0
        self._new: list[Delivery] = []
        self._accepting: list[Deferred[None]] = []
        self._unaccepted: list[Deferred[None]] = []
        self._touched: dict[int, Batch] = {}
        self._finished: list[Batch] = []
        self._dead: list[DeadLetter] = []
        # Dead letters that are to go.
        self._resolved: dict[int, None] = {}
        self._thinned: list[Batch] = []
        self._cached = 0
        # Rows to be read once more, oldest first.
        self._again: deque[int] = deque()
        self._abandoned = False
        self.more: Callable[[], object] | None = None
        self.overflow: Callable[[int], object] | None = None
        self._size = 0
        self._unnoted = 0
        # What can be freed in rows that are not settled, as it was found when there was too little room.
        self._spare = 0
        self._appended: float | None = None
        self._writing: float | None = None

    @property
    def pending(self) -> int:
        """How many deliveries were appended and are not settled."""
        return self.accepted - self.delivered - self.dead - self.dropped

    @property
    def used(self) -> int:
        """How many bytes of the room are used."""
        return self.bytes

    @property
    def max_size(self) -> int:
        """How many bytes of deliveries there is room for."""
        return self._store.max_size

    @property
    def totals(self) -> Totals:
        """What was taken over since the file was opened, and what became of it."""
        accepted, delivered, dead, dropped = self._loaded
        return Totals(
            appended=self.accepted - accepted,
            resumed=accepted - delivered - dead - dropped,
            replayed=self._replayed,
            delivered=self.delivered - delivered,
            dead=self.dead - dead + self._replayed,
            dropped=self.dropped - dropped,
            pending=self.pending,
        )

    @property
    def oldest(self) -> int | None:
        """About when the oldest pending delivery was accepted, in milliseconds since 1970."""
        if not self.pending:
            return None
        if not self._batches and self._read < self._last:
            self._fill()
        batch = next(iter(self._batches.values()), None)
        if batch is not None:
            return batch.accepted
        since = self.waiting_since
        return None if since is None else self._store.now() - int((self._store.seconds() - since) * 1000)

    @property
    def unwritten(self) -> int:
        """How many bytes of bodies wait for the next transaction."""
        return self._size

    @property
    def waiting_since(self) -> float | None:
        """When the oldest delivery was appended that is not committed; the reactor's seconds."""
        return self._appended if self._writing is None else self._writing

    def load(self, connection: sqlite3.Connection) -> None:
        """Take up what the file holds for this webhook, or make a place for it."""
        connection.execute("INSERT OR IGNORE INTO webhook (name) VALUES (?)", (self.name,))
        question = "SELECT id, accepted, delivered, dead, dropped, bytes, last FROM webhook WHERE name = ?"
        row = connection.execute(question, (self.name,)).fetchone()
        if row is None or not all(type(value) is int and 0 <= value < 1 << 62 for value in row) or row[0] >= WEBHOOKS:
            raise sqlite3.DatabaseError(f"row {self.name} of webhook is not as it was written")
        self.key, self.accepted, self.delivered, self.dead, self.dropped, self.bytes, assigned = row
        first, last = self.key << 40, ((self.key + 1) << 40) - 1
        question = "SELECT max(id) FROM batch WHERE id BETWEEN ? AND ?"
        self._last = connection.execute(question, (first, last)).fetchone()[0] or first
        self._loaded = self.accepted, self.delivered, self.dead, self.dropped
        self.letters = connection.execute("SELECT count(*) FROM dead WHERE webhook = ?", (self.name,)).fetchone()[0]
        # A row's number is never given again: what a row of that number has left behind must not be taken for this one's.
        self._assigned = max(self._last, assigned)
        question = "SELECT min(id) FROM batch WHERE id BETWEEN ? AND ?"
        self._read = (connection.execute(question, (first, last)).fetchone()[0] or first + 1) - 1
        question = "SELECT batch, settled FROM progress WHERE batch BETWEEN ? AND ?"
        self._progress = dict(connection.execute(question, (first, last)).fetchall())
        if None in self._progress.values():
            raise sqlite3.DatabaseError("progress is not as it was written")

    # IOutbox

    def append(self, deliveries: Sequence[Delivery]) -> Deferred[None] | None:
        """Take deliveries over; they are accepted when they are committed."""
        if not deliveries:
            return None
        size = sum([len(delivery.body) for delivery in deliveries])
        if size > LONGEST:
            deliveries = self._without_too_long(deliveries)
            size = sum([len(delivery.body) for delivery in deliveries])
        if self._new and self._size + size > UNWRITTEN_BYTES:
            self._store.hurry()
        if self._appended is None:
            self._appended = self._store.seconds()
        self._new.extend(deliveries)
        # Not before: what hurries would commit it without the deliveries.
        self.accepted += len(deliveries)
        accepted: Deferred[None] = Deferred()
        self._accepting.append(accepted)
        self._size += size
        self._store.touch(self)
        return accepted

    def claim(self, limit: int) -> Sequence[Delivery]:
        """Hand out the oldest unclaimed deliveries."""
        cache = self._cache
        if not cache and (self._again or self._read < self._last):
            self._fill()
        claimed: list[Delivery]
        if len(cache) <= limit and self._cached <= CLAIM_BYTES:
            claimed = list(cache)
            cache.clear()
            self._cached = 0
            return claimed
        claimed = []
        size = 0
        while cache and len(claimed) < limit and size < CLAIM_BYTES:
            delivery = cache.popleft()
            size += len(delivery.body)
            claimed.append(delivery)
        self._cached -= size
        return claimed

    def settle(self, *deliveries: Delivery) -> None:
        """Forget deliveries that arrived."""
        self.delivered += len(deliveries)
        self._settle(deliveries)

    def discard(self, *deliveries: Delivery) -> None:
        """Forget deliveries for want of room."""
        self.dropped += len(deliveries)
        self._spare += sum([len(delivery.body) for delivery in deliveries])
        self._settle(deliveries)

    def bury(self, delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """Make a dead letter of a delivery."""
        self.dead += 1
        self.letters += 1
        self._dead.append(DeadLetter(0, self.name, delivery, url, reason, status, answer, died))
        self._settle((delivery,))
        self._store.touch(self)

    def recall(self, places: Iterable[int]) -> list[Delivery]:
        """
        Read deliveries again that were claimed before, by their places.

        :raises mqhooks.errors.OutboxError: when they cannot be read now.
        """
        recalled: list[Delivery] = []
        lost: list[Delivery] = []
        for number, group in groupby(places, lambda place: place >> 16):
            row = self._row(number) or ()
            for place in group:
                index = place & 0xFFFF
                delivery = row[index] if index < len(row) else None
                if delivery is None:
                    lost.append(Delivery("", "", 0, b"", place=place))
                else:
                    delivery.place = place
                    recalled.append(delivery)
        if lost:
            self._lose(lost[0].place >> 16, len(lost))
            self.discard(*lost)
        return recalled

    def reclaim(self) -> None:
        """Hand out anew what was claimed."""
        self._abandoned = False
        self._cache.clear()
        self._cached = 0
        # A row whose deliveries are all settled is not among them, committed or not.
        self._again = deque(sorted(self._batches))

    def abandon(self) -> None:
        """Keep what is pending, and hold nobody up."""
        self._abandoned = True
        self.more = self.overflow = None
        self.release()

    # Dead letters

    def resolve(self, letter: DeadLetter, *, replay: bool) -> bool:
        """
        Remove a dead letter, and append its delivery anew if it is to be replayed.

        :returns: whether it was still there.
        """
        if letter.number in self._resolved:
            return False
        self._resolved[letter.number] = None
        self.letters -= 1
        if replay:
            delivery = letter.delivery
            delivery.attempts = 0
            delivery.accepted = self._store.now()
            self.dead -= 1
            self._replayed += 1
            self._size += len(delivery.body)
            self._new.append(delivery)
        self._store.touch(self)
        return True

    # Transactions

    def plan(self) -> Plan:
        """Say what is to be written now; :meth:`written` is called when it was."""
        plan = Plan(self)
        new, self._new = self._new, []
        self._writing, self._appended = self._appended, None
        size, self._size = self._size, 0
        for chunk in chunks(new, size):
            try:
                data = encode(chunk)
            except UNSTORABLE:
                chunk = self._encodable(plan, chunk)
                if not chunk:
                    continue
                data = encode(chunk)
            self._assigned += 1
            plan.rows.append((self._assigned, len(chunk), crc32(data), data))
            plan.batches.append((Batch(self._assigned, len(chunk), len(data)), chunk))
            self.bytes += len(data)
        plan.accepting, self._accepting = self._accepting, []
        plan.finished, self._finished = self._finished, []
        self.bytes -= sum(batch.size for batch in plan.finished)
        for batch in self._touched.values():
            if batch.left:
                batch.marked = True
                plan.progress.append((batch.id, bytes(batch.settled)))
        self._touched.clear()
        self._unnoted = 0
        plan.dead += self._dead
        self._dead = []
        plan.resolved = list(self._resolved)
        plan.thinned = self._thin()
        if self.excess > 0 and self._store.on_full == "drop_oldest":
            plan.dropped = self._drop(self.excess)
            if self._store.complaints.allow(("dropped", self.name)) is not None:
                self._store.log.warn(
                    "{path}: webhook {name} is full (outbox.max_size): the oldest make room, {dropped} are dropped so far",
                    path=self._store.path,
                    name=self.name,
                    dropped=self.dropped,
                )
        plan.counters = (self.accepted, self.delivered, self.dead, self.dropped, self.bytes, self._assigned)
        return plan

    def written(self, plan: Plan) -> None:
        """Go on after a transaction."""
        self._writing = None
        self.letters -= plan.forgotten
        caught_up = self._read == self._last and not self._again
        for batch, deliveries in plan.batches:
            self._last = batch.id
            if caught_up and len(self._cache) < CACHE and self._cached < CACHE_BYTES:
                self._read = batch.id
                self._take(batch, deliveries)
            else:
                caught_up = False
        for number in plan.resolved:
            self._resolved.pop(number, None)
        if plan.forgotten:
            self._miss_forgotten()
        self._unaccepted += plan.accepting
        self.release()
        if plan.batches and self.more is not None:
            self.more()

    def _miss_forgotten(self) -> None:
        """See which dead letters were resolved while a transaction that was under way made room for newer ones."""
        there = "SELECT count(*) FROM dead WHERE id = ?"
        try:
            gone = [number for number in self._resolved if not self._store.reader.execute(there, (number,)).fetchone()[0]]
        except sqlite3.DatabaseError as error:
            self._store.unreadable(error)
            return
        for number in gone:
            self.letters += 1
            del self._resolved[number]

    def release(self) -> None:
        """Tell that there is room, if there is."""
        room = self.bytes <= self._store.max_size or self._store.on_full == "drop_oldest"
        if self._unaccepted and (room or self._abandoned):
            unaccepted, self._unaccepted = self._unaccepted, []
            for accepted in unaccepted:
                accepted.callback(None)

    def thin(self) -> None:
        """
        Free what settled deliveries still take in rows that others keep: those of clients that wait long for their retries.
        """
        if self.bytes <= self._store.max_size:
            self._spare = 0
            oldest = islice(self._batches.values(), THINNED)
            self._thinned = [batch for batch in oldest if batch.left * 2 <= batch.kept and batch.size > THIN_SIZE]
        else:
            self._spare = sum([batch.spare for batch in self._batches.values()])
            largest = nlargest(THINNED, self._batches.values(), key=lambda batch: batch.spare)
            self._thinned = [batch for batch in largest if batch.spare]
        if self._thinned:
            self._store.touch(self)

    def compare(self) -> None:
        """
        See that nothing is counted as pending when there is nothing. No transaction may be under way.

        :raises sqlite3.DatabaseError: when the file has lost rows without a word.
        """
        if self._batches or self._again or self._new or self._finished or self._read < self._last:
            return
        if self.bytes:
            self.bytes = 0
            self.release()
        if not self.pending:
            return
        if self.pending > 0:
            raise sqlite3.DatabaseError("rows of batch cannot be found")
        self._store.log.critical(
            "{path}: has lost what was settled of webhook {name}: {again} deliveries were sent once more",
            path=self._store.path,
            name=self.name,
            again=-self.pending,
        )
        self.accepted -= self.pending

    @property
    def excess(self) -> int:
        """How many bytes too many there are, beside those that :meth:`thin` has found to free."""
        return self.bytes - self._spare - self._store.max_size

    @property
    def paused(self) -> bool:
        """Whether something waits for room."""
        return bool(self._unaccepted)

    def _drop(self, excess: int) -> list[int]:
        """Give up the oldest rows that nobody has read."""
        dropped: list[int] = []
        question = "SELECT id, count, length(deliveries) FROM batch WHERE id > ? AND id <= ? ORDER BY id"
        try:
            rows = self._store.reader.execute(question, (self._read, self._last))
            for number, count, size in rows:
                if excess <= 0:
                    break
                # What a crash has left half settled is not pending as a whole.
                batch = Batch.stored(number, count, size, self._progress.pop(number, None))
                self.dropped += batch.left
                self.bytes -= size
                excess -= size
                self._read = number
                dropped.append(number)
            rows.close()
        except sqlite3.DatabaseError as error:
            self._store.unreadable(error)
        return dropped

    def _thin(self) -> list[tuple[int, bytes, int]]:
        thinned = []
        batches, self._thinned = self._thinned, []
        for batch in batches:
            try:
                row = self._row(batch.id) if batch.left else None
            except OutboxError:
                continue
            if row:
                data = encode([delivery if batch.holds(index) else None for index, delivery in enumerate(row)])
                thinned.append((crc32(data), data, batch.id))
                self.bytes -= batch.size - len(data)
                self._spare = max(self._spare - batch.spare, 0)
                batch.size = len(data)
                batch.kept = batch.left
        return thinned

    def _take(self, batch: Batch, row: Sequence[Delivery | None]) -> None:
        """Keep the deliveries of a row that are not settled, for who claims them."""
        self._batches[batch.id] = batch
        held = []
        for place, delivery in enumerate(row, batch.id << 16):
            if delivery is not None:
                delivery.place = place
                held.append(delivery)
        if batch.left < len(held):
            held = [delivery for delivery in held if batch.holds(delivery.place & 0xFFFF)]
        self._cache.extend(held)
        self._cached += sum([len(delivery.body) for delivery in held])
        if held:
            batch.accepted = held[0].accepted

    def _fill(self) -> None:
        question = f"SELECT {ROW} FROM batch WHERE id > ? AND id <= ? ORDER BY id"
        one = f"SELECT {ROW} FROM batch WHERE id = ?"
        rows = None
        try:
            while self._again and self._wants_more():
                again = self._store.reader.execute(one, (self._again[0],)).fetchone()
                self._load_row(*again or (self._again[0], 0, 1, b""))
                self._again.popleft()
            rows = self._store.reader.execute(question, (self._read, self._last))
            while not self._again and self._wants_more():
                row = rows.fetchone()
                if row is None:
                    self._read = self._last
                    break
                if row[0] <= self._read:
                    raise sqlite3.DatabaseError("rows of batch stand in no order")
                self._load_row(*row)
        except sqlite3.DatabaseError as error:
            self._store.unreadable(error)
        except OutboxError:
            # Who could not read a body has said so.
            pass
        finally:
            if rows is not None:
                rows.close()

    def _wants_more(self) -> bool:
        return len(self._cache) < CACHE // 4 and self._cached < CACHE_BYTES

    def _load_row(self, number: int, count: int, checksum: int, data: bytes) -> None:
        row = self._sound(checksum, data)
        size = len(data) if isinstance(data, bytes) else 0
        self._read = max(self._read, number)
        if row is not None:
            # The checksum speaks for these, and nothing for the count that stands beside them.
            count = len(row)
        # When it was read before, what is settled of it since may not be written yet.
        batch = self._batches.get(number) or Batch.stored(number, count, size, self._progress.pop(number, None))
        if row is not None:
            self._take(batch, row)
        else:
            self._lose(number, batch.left)
            self.dropped += batch.left
            batch.left = 0
        if not batch.left:
            self._batches.pop(number, None)
            self._finished.append(batch)
            self._store.touch(self)

    def _row(self, number: int) -> Sequence[Delivery | None] | None:
        """
        Read a row once more.

        :returns: its deliveries; ``None`` when it is gone or damaged.
        :raises mqhooks.errors.OutboxError: when it cannot be read now.
        """
        try:
            row = self._store.reader.execute(f"SELECT {ROW} FROM batch WHERE id = ?", (number,)).fetchone()
            return None if row is None else self._sound(*row[2:])
        except sqlite3.DatabaseError as error:
            self._store.unreadable(error)
            raise OutboxError(f"row {number} of batch cannot be read ({error})") from None

    def _sound(self, checksum: int, data: bytes) -> Sequence[Delivery | None] | None:
        """Take a row's deliveries, or ``None`` when it is damaged."""
        try:
            return decode(data) if isinstance(data, bytes) and crc32(data) == checksum else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _lose(self, number: int, count: int) -> None:
        self._store.log.critical(
            "{path}: row {number} of webhook {name} is damaged: {lost} deliveries are lost",
            path=self._store.path,
            number=number,
            name=self.name,
            lost=count,
        )

    def _without_too_long(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        for delivery in deliveries:
            if len(delivery.body) > LONGEST:
                self.accepted += 1
                self._dead.append(self._refused(delivery, f"a body has {LONGEST} bytes at most"))
                self._store.touch(self)
        return [delivery for delivery in deliveries if len(delivery.body) <= LONGEST]

    def _encodable(self, plan: Plan, deliveries: Sequence[Delivery]) -> list[Delivery]:
        kept = []
        for delivery in deliveries:
            try:
                encode(delivery)
            except UNSTORABLE as error:
                self.refuse(plan, delivery, error)
            else:
                kept.append(delivery)
        return kept

    def refuse(self, plan: Plan, delivery: Delivery, error: Exception) -> None:
        """Have a transaction bury a delivery that it cannot store."""
        plan.dead.append(self._refused(delivery, str(error)))
        plan.counters = (self.accepted, self.delivered, self.dead, *plan.counters[3:])

    def _refused(self, delivery: Delivery, problem: str) -> DeadLetter:
        self.dead += 1
        self.letters += 1
        bare = without_body(
            DeadLetter(0, self.name, delivery, "", "", 0, b"", self._store.now()), f"cannot be stored: {problem}"
        )
        if self._store.complaints.allow(("cannot be stored", self.name)) is not None:
            self._store.log.error(
                "{path}: webhook {name}: a delivery is a dead letter: {reason}",
                path=self._store.path,
                name=self.name,
                reason=bare.reason,
            )
        return bare

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        batch: Batch | None = None
        for delivery in deliveries:
            place = delivery.place
            # Those of one row mostly come one after the other.
            if batch is None or batch.id != place >> 16:
                batch = self._batches[place >> 16]
                self._touched[batch.id] = batch
            batch.settled[place >> 3 & 0x1FFF] |= 1 << (place & 7)
            batch.left -= 1
            if not batch.left:
                del self._batches[batch.id], self._touched[batch.id]
                self._finished.append(batch)
                batch = None
        unnoted = self._unnoted
        self._unnoted += len(deliveries)
        if unnoted < UNNOTED <= self._unnoted:
            self._store.touch(self)
        elif not unnoted:
            self._store.note(self)
