"""
The durable :class:`~mqhooks.interfaces.IOutbox` of one webhook.

It connects the ledger and the store: deliveries settled in the ledger go into the store's next transaction, and those that a
transaction has committed go into the ledger.

- Deliveries are counted when they are committed, not before.
- An acknowledgement only adds to a list, which is applied to the ledger when it is read or a transaction is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.delivery import Counts, DeadLetter, Delivery
from mqhooks.errors import OutboxDamaged, OutboxError
from mqhooks.interfaces import IOutbox
from mqhooks.outbox.file import Changes, Kept, NewRow, OutboxFile, StoredRow
from mqhooks.outbox.ledger import INDEX, INDEX_BITS, READY_BYTES, ROW_BYTES, Ledger, Row, chunks
from mqhooks.outbox.store import Store
from mqhooks.outbox.stored import LONGEST, UNENCODABLE, decode_row, encodable, encode, without_body
from mqhooks.outbox.waiting import WaitingClaim
from mqhooks.support.ratelimit import RateLimit

NOTED = 0.005
"""Seconds until an acknowledgement is committed, at most: a commit for each would double all other costs."""

UNNOTED = 64
"""Waiting acknowledgements, approximately, that cause a commit at once: this many are sent again after a kill."""

THIN_AGAIN = 60.0
"""Seconds until rows are thinned again after the disk had no room for that."""

# The soonest commit that acknowledge() has asked for since the last transaction.
_NOTHING, _SOON, _NOW = range(3)

OnFull = Literal["pause", "drop_oldest"]


@dataclass
class FileLimits:
    """
    Limits that the outboxes of one file share.

    :param max_size: bytes of deliveries, for each webhook.
    :param on_full: ``pause``: nothing more is accepted until there is room. ``drop_oldest``: the oldest make room.
    :param dead_max: number of dead letters kept for each webhook; the oldest make room.
    :param longest: the longest body, in bytes.
    :param ready: bytes of unclaimed bodies that each outbox keeps in memory, approximately.
    """

    max_size: int
    on_full: OnFull
    dead_max: int
    longest: int = LONGEST
    ready: int = READY_BYTES


class Surroundings:
    """
    Everything that an outbox needs besides the store.

    :param limits: shared by all outboxes of the file.
    :param now: returns the time in milliseconds since 1970.
    :param path: the file, for the log.
    :param complaints: rate-limits the log.
    :param unreadable: called with the error when something cannot be read.
    """

    def __init__(
        self,
        limits: FileLimits,
        now: Callable[[], int],
        path: str,
        complaints: RateLimit,
        unreadable: Callable[[OutboxError], object],
    ) -> None:
        self.limits = limits
        self.now = now
        self.path = path
        self.complaints = complaints
        self.unreadable = unreadable


@dataclass(slots=True)
class _New:
    """
    New deliveries and dead letters, which the next transaction accepts.

    :ivar deliveries: those to write, oldest first.
    :ivar size: bytes of their bodies.
    :ivar replayed: number of them that were dead letters.
    :ivar resumed: number of them that another process has handed over.
    :ivar resolved: numbers of the dead letters that are replayed.
    :ivar refused: dead letters of unstorable deliveries.
    :ivar letters: dead letters that another process has handed over.
    :ivar accepting: the waiting callers, each with the number of deliveries up to its last one, and whether it waits for room
        as well.
    :ivar since: when the oldest was appended, in the reactor's seconds.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    size: int = 0
    replayed: int = 0
    resumed: int = 0
    resolved: list[int] = field(default_factory=list)
    refused: list[DeadLetter] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    accepting: list[tuple[Deferred[None], int, bool]] = field(default_factory=list)
    since: float | None = None

    def __bool__(self) -> bool:
        return bool(self.accepting or self.deliveries or self.refused or self.letters)

    def then(self, later: _New) -> _New:
        """Append later ones."""
        count = len(self.deliveries)
        return _New(
            self.deliveries + later.deliveries,
            self.size + later.size,
            self.replayed + later.replayed,
            self.resumed + later.resumed,
            self.resolved + later.resolved,
            self.refused + later.refused,
            self.letters + later.letters,
            # Unstorable ones have been taken out.
            [(accepted, min(upto, count), room) for accepted, upto, room in self.accepting]
            + [(accepted, upto + count, room) for accepted, upto, room in later.accepting],
            later.since if self.since is None else self.since,
        )

    def split(self, most: int) -> tuple[_New, _New]:
        """Split off the first deliveries, about ``most`` bytes of bodies; the first one is taken however long it is."""
        if self.size <= most or self.replayed or self.resumed:
            return self, _New()
        count = size = 0
        for delivery in self.deliveries:
            if count and size + len(delivery.body) > most:
                break
            count += 1
            size += len(delivery.body)
        first = _New(self.deliveries[:count], size, 0, 0, self.resolved, self.refused, self.letters, [], self.since)
        left = self.deliveries[count:]
        rest = _New(left, self.size - size, since=self.since if left else None)
        for accepted, upto, room in self.accepting:
            if upto <= count:
                first.accepting.append((accepted, upto, room))
            else:
                rest.accepting.append((accepted, upto - count, room))
        return first, rest


@implementer(IOutbox)
class SqliteOutbox:
    """
    One webhook's accepted and unsettled deliveries, in a file.

    :param store: commits them.
    :param name: the webhook's name.
    :param surroundings: shared with the file's other outboxes.
    """

    durable = True
    gate = None
    log = Logger()

    def __init__(self, store: Store, name: str, surroundings: Surroundings) -> None:
        self.name = name
        self._store = store
        self._around = surroundings
        self._ledger = Ledger()
        self._key = 0
        # What the ledger does not count: what the file had settled when it was opened, and the dead letters handed over since.
        # They are accepted, delivered, dead, dropped.
        self._base = (0, 0, 0, 0)
        self._assigned = 0
        self._letters = 0
        self._new = _New()
        # The new part of the transaction being written, and what the file's counters become without that part.
        self._writing: _New | None = None
        self._planned = (0, 0, 0, 0, 0)
        # How many of the transaction's dead letters, and of those it deletes, are not of the new part. They stand first.
        self._buried = self._removed = 0
        self._acknowledged: list[Delivery] = []
        self._asked = _NOTHING
        self._dead: list[DeadLetter] = []
        # Numbers of dead letters to delete, and those of them that are in no transaction yet.
        self._resolved: set[int] = set()
        self._purged: list[int] = []
        self._sparse: list[Row] = []
        # The rows that the transaction being written thins, with their size before and the number of deliveries in it.
        self._thinned: list[tuple[Row, int, int]] = []
        self._thin_after = 0.0
        self._unaccepted: list[Deferred[None]] = []
        self._abandoned = False
        self._surplus = 0
        self._recalled: tuple[int, Sequence[Delivery | None]] = (0, ())
        self._claim = WaitingClaim(self._take)

    def load(self, kept: Kept) -> None:
        """Begin with this webhook's counters and rows in the file."""
        self._key, self._assigned, self._letters = kept.key, kept.assigned, kept.letters
        settled = kept.delivered + kept.dead + kept.dropped
        self._base = settled, kept.delivered, kept.dead, kept.dropped
        self._ledger = Ledger(kept.first, kept.last, max(kept.accepted - settled, 0), kept.size)

    # State.

    @property
    def counts(self) -> Counts:
        """Counts of the deliveries accepted since the file was opened, and of what became of them."""
        self._take_up()
        return self._ledger.counts

    @property
    def oldest(self) -> int | None:
        """About when the oldest pending delivery was accepted, in milliseconds since 1970."""
        self._take_up()
        ledger = self._ledger
        if not ledger.pending:
            since = self.waiting_since
            return None if since is None else self._around.now() - int((self._store.seconds() - since) * 1000)
        if ledger.oldest is None:
            self._fill()
            # Nobody has claimed anything: keep only the time.
            ledger.reclaim()
        return ledger.oldest

    @property
    def waiting_since(self) -> float | None:
        """When the oldest uncommitted delivery was appended, in the reactor's seconds."""
        return self._new.since if self._writing is None or self._writing.since is None else self._writing.since

    @property
    def used(self) -> int:
        """Bytes that the unsettled rows take."""
        self._take_up()
        return self._ledger.size

    @property
    def max_size(self) -> int:
        """Bytes that they may take."""
        return self._around.limits.max_size

    @property
    def letters(self) -> int:
        """Number of dead letters kept."""
        return self._letters

    @property
    def full(self) -> bool:
        """Whether callers of append() wait for room, or would, or nothing can be committed."""
        return self._store.failing is not None or bool(self._unaccepted) or not (self._abandoned or self._room)

    @property
    def _room(self) -> bool:
        limits = self._around.limits
        return self._ledger.size <= limits.max_size or limits.on_full == "drop_oldest"

    @property
    def unwritten(self) -> int:
        """Bytes of bodies that wait for the next transaction."""
        return self._new.size

    # IOutbox

    def append(self, deliveries: Sequence[Delivery], *, room: bool = True) -> Deferred[None] | None:
        """Accept deliveries, once they are committed."""
        if not deliveries:
            return None
        new = self._new
        size = sum([len(delivery.body) for delivery in deliveries])
        if size > self._around.limits.longest:
            deliveries, size = self._without_too_long(deliveries)
        accepted: Deferred[None] = Deferred()
        new.deliveries += deliveries
        new.size += size
        new.accepting.append((accepted, len(new.deliveries), room))
        if new.since is None:
            new.since = self._store.seconds()
        self._store.commit(self, 0.0)
        return accepted

    def claim(self, limit: int, size: int) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """Hand out the oldest unclaimed deliveries."""
        return self._claim(limit, size)

    def shelve(self, places: Iterable[int]) -> None:
        """Note that only the places of these deliveries are kept, so they may be dropped."""
        self._ledger.shelve(places)

    def recall(self, places: Iterable[int]) -> list[Delivery]:
        """Hand out claimed deliveries again."""
        self._take_up()
        ledger = self._ledger
        recalled: list[Delivery] = []
        for number, group in groupby(ledger.recall(places), lambda place: place >> INDEX_BITS):
            row = self._recent(number)
            lost = []
            for place in group:
                delivery = row[place & INDEX] if place & INDEX < len(row) else None
                if delivery is None:
                    lost.append(place)
                else:
                    delivery.place = place
                    recalled.append(delivery)
            if lost:
                self._lose(number, ledger.lose(lost))
        return recalled

    def _recent(self, number: int) -> Sequence[Delivery | None]:
        """Read a row, unless it is the last one read: a client's parked deliveries are recalled one by one."""
        if number != self._recalled[0]:
            row = self._read(number) or ()
            size = sum(len(delivery.body) for delivery in row if delivery is not None)
            # A row this long holds a single long body.
            if size > ROW_BYTES:
                return row
            self._recalled = (number, row)
        return self._recalled[1]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Forget deliveries that have arrived."""
        acknowledged = self._acknowledged
        acknowledged += deliveries
        if self._asked is _NOTHING:
            self._asked = _SOON
            self._store.commit(self, NOTED)
        elif self._asked is _SOON and len(acknowledged) >= UNNOTED:
            self._asked = _NOW
            self._store.commit(self, 0.0)

    def bury(self, delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """Turn a delivery into a dead letter."""
        self._take_up()
        if self._ledger.bury(delivery.place):
            self._letters += 1
            self._dead.append(DeadLetter(0, self.name, delivery, url, reason, status, answer, died))
            self._store.commit(self, 0.0)

    def reclaim(self) -> None:
        """Hand out all claimed deliveries again, before any others."""
        self._claim.cancel()
        self._take_up()
        self._abandoned = False
        self._ledger.reclaim()

    def abandon(self) -> None:
        """Keep pending deliveries, and let nobody wait for room."""
        self._claim.cancel()
        self._abandoned = True
        self.release()

    # For the owner of the store.

    def take_over(self, deliveries: Sequence[Delivery]) -> None:
        """Accept deliveries that another process has handed over."""
        self._put(deliveries)
        self._new.resumed += len(deliveries)
        self._store.commit(self, 0.0)

    def take_over_letter(self, letter: DeadLetter) -> None:
        """Keep a dead letter that another process has handed over."""
        self._letters += 1
        self._new.letters.append(letter)
        self._store.commit(self, 0.0)

    def resolve(self, letter: DeadLetter, *, replay: bool) -> bool:
        """
        Remove a dead letter, and accept its delivery again if it is replayed.

        :returns: whether it was still there.
        """
        if letter.number in self._resolved:
            return False
        self._resolved.add(letter.number)
        self._letters -= 1
        if replay:
            delivery = letter.delivery
            delivery.attempts = 0
            delivery.accepted = self._around.now()
            self._put((delivery,))
            self._new.replayed += 1
            self._new.resolved.append(letter.number)
        else:
            self._purged.append(letter.number)
        self._store.commit(self, 0.0)
        return True

    def look(self) -> None:
        """
        Make room, and retry failed reads. Called once a second.

        :raises mqhooks.errors.OutboxDamaged: when the file has silently lost rows.
        """
        self._take_up()
        limits, ledger = self._around.limits, self._ledger
        self._sparse = ledger.sparse(limits.max_size) if self._store.seconds() >= self._thin_after else []
        if self._sparse or (limits.on_full == "drop_oldest" and ledger.excess(limits.max_size) > 0):
            self._store.commit(self, 0.0)
        full = self._unaccepted or not (self._abandoned or self._room)
        if full and self._around.complaints.allow(("full", self.name)) is not None:
            self.log.warn(
                "{path}: webhook {name} is full ({bytes} bytes, outbox.max_size): nothing more is read from VerneMQ",
                path=self._around.path,
                name=self.name,
                bytes=ledger.size,
            )
        self._claim.serve()
        if not self._store.writing:
            self._compare()

    def release(self) -> None:
        """Release callers of append() if there is room."""
        if self._unaccepted and (self._abandoned or self._room):
            unaccepted, self._unaccepted = self._unaccepted, []
            for accepted in unaccepted:
                accepted.callback(None)

    # Transactions.

    def plan(self, most: int) -> Changes:
        """
        Plan the next transaction; :meth:`written` is called once it is committed.

        :param most: approximate limit on new bodies, in bytes; 0 to write nothing that takes more room.
        """
        changes = Changes(self._key, self.name, letters_max=self._around.limits.dead_max)
        self._asked = _NOTHING
        self._take_up()
        changes.resolved, self._purged = self._purged, []
        changes.letters, self._dead = self._dead, []
        self._removed, self._buried = len(changes.resolved), len(changes.letters)
        if self._new and most:
            self._writing, self._new = self._new.split(most)
            self._plan_new(changes, self._writing)
        if self._sparse and most:
            self._thin(changes)
        self._drop(sum([len(row.data) for row in changes.rows]))
        ledger = self._ledger
        finished = ledger.finished()
        changes.finished = [row.number for row in finished]
        changes.marked = [row.number for row in finished if row.marked]
        changes.progress = ledger.progress()
        counts, base = ledger.counts, self._base
        self._planned = (
            base[0] + counts.appended + counts.resumed,
            base[1] + counts.delivered,
            base[2] + counts.dead - counts.replayed,
            base[3] + counts.dropped,
            ledger.size,
        )
        self._count(changes)
        return changes

    def _plan_new(self, changes: Changes, new: _New) -> None:
        for chunk in list(chunks(new.deliveries, new.size)):
            deliveries: list[Delivery | None] = list(chunk)
            try:
                data = encode(deliveries)
            except UNENCODABLE:
                problems = [(delivery, encodable(delivery)) for delivery in chunk]
                self._refuse(new, [(delivery, problem) for delivery, problem in problems if problem is not None])
                deliveries = [delivery for delivery, problem in problems if problem is None]
                data = encode(deliveries)
            if deliveries:
                self._assigned += 1
                changes.rows.append(NewRow(self._assigned, deliveries, data))
        changes.resolved += new.resolved
        changes.letters += new.refused + new.letters

    def _count(self, changes: Changes) -> None:
        """Work out the new values of the file's counters."""
        accepted, delivered, dead, dropped, size = self._planned
        new = self._writing
        if new is not None:
            # A replayed delivery was accepted before, and is no longer dead.
            dying = len(new.refused) + len(new.letters)
            accepted += len(new.deliveries) - new.replayed + dying
            dead += dying - new.replayed
            size += sum([len(row.data) for row in changes.rows])
        changes.counters = accepted, delivered, dead, dropped, size, self._assigned

    def postpone(self, changes: Changes) -> None:
        """Take back everything that needs much room, for a later transaction."""
        new, self._writing = self._writing, None
        if new is not None:
            # Cut by position: refuse() and the file may have replaced letters, so they cannot be compared.
            del changes.letters[self._buried :], changes.resolved[self._removed :]
            changes.rows = []
            self._new = new.then(self._new)
        if changes.thinned:
            # Acknowledgements may still fit.
            finished = set(changes.finished)
            more = sum([size - row.size for row, size, _ in self._thinned if row.number not in finished])
            self._planned = (*self._planned[:4], self._planned[4] + more)
            for row, size, kept in self._thinned:
                self._ledger.unthinned(row, size, kept)
            changes.thinned = []
            self._thin_after = self._store.seconds() + THIN_AGAIN
        self._count(changes)

    def refuse(self, changes: Changes, deliveries: list[tuple[Delivery, str]]) -> None:
        """Bury a transaction's unstorable deliveries."""
        assert self._writing is not None
        changes.letters += self._refuse(self._writing, deliveries)
        changes.rows = [row for row in changes.rows if any(row.deliveries)]
        self._count(changes)

    def written(self, changes: Changes) -> None:
        """Account for a committed transaction."""
        new, self._writing = self._writing, None
        ledger = self._ledger
        committed: list[Deferred[None]] = []
        if new is not None:
            appended = len(new.deliveries) + len(new.refused) - new.replayed - new.resumed
            ledger.accept(appended, new.replayed, new.resumed, len(new.refused))
            handed = len(new.letters)
            total, delivered, dead, dropped = self._base
            self._base = total + handed, delivered, dead + handed, dropped
            ledger.ready_bytes = self._around.limits.ready
            for row in changes.rows:
                ledger.add(row.number, row.deliveries, len(row.data), row.settled, wanted=self._claim.waits)
            for accepted, _, room in new.accepting:
                (self._unaccepted if room else committed).append(accepted)
        self._resolved.difference_update(changes.resolved)
        if changes.forgotten:
            self._forget(changes.forgotten)
        for accepted in committed:
            accepted.callback(None)
        self.release()
        self._claim.serve()

    # Internals.

    def _take_up(self) -> None:
        """Apply the acknowledgements to the ledger."""
        if self._acknowledged:
            acknowledged, self._acknowledged = self._acknowledged, []
            self._ledger.acknowledge(acknowledged)

    def _put(self, deliveries: Sequence[Delivery]) -> None:
        self._new.deliveries += deliveries
        self._new.size += sum([len(delivery.body) for delivery in deliveries])

    def _take(self, limit: int, size: int) -> Sequence[Delivery]:
        claimed = self._ledger.claim(limit, size)
        if not claimed and self._ledger.behind:
            self._fill()
            claimed = self._ledger.claim(limit, size)
        return claimed

    def _fill(self) -> None:
        """Read the next rows into the ledger."""
        file, ledger = self._store.file, self._ledger
        if file is None:
            return
        ledger.ready_bytes = self._around.limits.ready
        try:
            while (number := ledger.again()) is not None:
                stored = self._stored(file, number)
                if stored is None:
                    self._lose(number, ledger.gone(number))
                elif ledger.takes(_size(stored)):
                    self._load(stored)
                else:
                    return
            with closing(file.rows(self._key, *ledger.unread)) as rows:
                while ledger.wants_more:
                    stored = next(rows, None)
                    if stored is None:
                        ledger.read_up()
                    elif ledger.takes(_size(stored)):
                        self._load(stored)
                    else:
                        return
        except OutboxError as error:
            self._around.unreadable(error)

    def _stored(self, file: OutboxFile, number: int) -> StoredRow | None:
        with closing(file.rows(self._key, number - 1, number)) as rows:
            return next(rows, None)

    def _decoded(self, stored: StoredRow) -> Sequence[Delivery | None] | None:
        return decode_row(stored.id, stored.version, stored.checksum, stored.deliveries)

    def _load(self, stored: StoredRow) -> None:
        deliveries = self._decoded(stored)
        # The checksum vouches for the deliveries, but not for the count stored beside them.
        count = len(deliveries) if deliveries is not None else stored.counted if isinstance(stored.counted, int) else 0
        count = count if 0 <= count <= INDEX else 0
        size = _size(stored)
        settled = stored.settled
        if settled is not None and (len(settled) != (count + 7) // 8 or int.from_bytes(settled, "little") >> count):
            settled = None
        row = Row(stored.number, count, size, settled)
        row.marked = True
        self._lose(stored.number, self._ledger.load(row, deliveries))

    def _read(self, number: int) -> Sequence[Delivery | None] | None:
        """
        Read a row again.

        :returns: its deliveries; ``None`` when it is gone or damaged.
        :raises mqhooks.errors.OutboxError: when it cannot be read now.
        """
        file = self._store.file
        if file is None:
            raise OutboxError(f"{self._around.path}: is not open")
        try:
            stored = self._stored(file, number)
        except OutboxError as error:
            self._around.unreadable(error)
            raise
        return None if stored is None else self._decoded(stored)

    def _lose(self, number: int, count: int) -> None:
        if self._ledger.settled:
            # Don't commit at once: rows are being read.
            self._store.commit(self, NOTED)
        if count:
            self.log.critical(
                "{path}: row {number} of webhook {name} is damaged: {lost} deliveries are lost",
                path=self._around.path,
                number=number,
                name=self.name,
                lost=count,
            )

    def _thin(self, changes: Changes) -> None:
        """Rewrite rows without their settled deliveries."""
        rows, self._sparse = self._sparse, []
        self._thinned = []
        for row in rows:
            try:
                deliveries = self._read(row.number) if row.left else None
            except OutboxError:
                continue
            if deliveries:
                data = encode([delivery if row.holds(index) else None for index, delivery in enumerate(deliveries)])
                changes.thinned.append((row.number, data))
                self._thinned.append((row, row.size, row.kept))
                self._ledger.thinned(row, len(data))

    def _drop(self, coming: int) -> None:
        """Drop the oldest deliveries to make room; ``coming`` bytes are about to be written."""
        limits, ledger = self._around.limits, self._ledger
        if limits.on_full != "drop_oldest":
            return
        excess = ledger.excess(limits.max_size) + coming
        if excess <= 0 or self._store.file is None:
            return
        before = ledger.counts.dropped
        try:
            with closing(self._unread(self._store.file)) as unread:
                ledger.drop_oldest(excess, unread)
        except OutboxError as error:
            self._around.unreadable(error)
        if ledger.counts.dropped > before and self._around.complaints.allow(("dropped", self.name)) is not None:
            self.log.warn(
                "{path}: webhook {name} is full (outbox.max_size): the oldest deliveries are dropped, {dropped} so far",
                path=self._around.path,
                name=self.name,
                dropped=ledger.counts.dropped,
            )

    def _unread(self, file: OutboxFile) -> Generator[Row]:
        with closing(file.sizes(self._key, *self._ledger.unread)) as rows:
            for number, count, size, settled in rows:
                row = Row(number, count, size, settled)
                row.marked = True
                yield row

    def _without_too_long(self, deliveries: Sequence[Delivery]) -> tuple[list[Delivery], int]:
        longest = self._around.limits.longest
        problem = f"a body may have at most {longest} bytes"
        self._refuse(self._new, [(delivery, problem) for delivery in deliveries if len(delivery.body) > longest])
        kept = [delivery for delivery in deliveries if len(delivery.body) <= longest]
        return kept, sum([len(delivery.body) for delivery in kept])

    def _refuse(self, new: _New, deliveries: list[tuple[Delivery, str]]) -> list[DeadLetter]:
        """Turn unstorable deliveries into dead letters."""
        letters = []
        for delivery, problem in deliveries:
            bare = DeadLetter(0, self.name, delivery, "", "", 0, b"", self._around.now())
            letter = without_body(bare, f"cannot be stored: {problem}")
            letters.append(letter)
            if self._around.complaints.allow(("cannot be stored", self.name)) is not None:
                self.log.error(
                    "{path}: webhook {name}: a delivery became a dead letter: {reason}",
                    path=self._around.path,
                    name=self.name,
                    reason=letter.reason,
                )
        refused = {id(delivery) for delivery, _ in deliveries}
        new.size -= sum([len(delivery.body) for delivery in new.deliveries if id(delivery) in refused])
        new.deliveries = [delivery for delivery in new.deliveries if id(delivery) not in refused]
        new.refused += letters
        self._letters += len(letters)
        return letters

    def _forget(self, count: int) -> None:
        self._ledger.forgotten += count
        self._letters -= count
        # Some of them may have been resolved during the transaction, and so counted twice.
        file = self._store.file
        try:
            gone = [] if file is None else [number for number in self._resolved if not file.has_letter(number)]
        except OutboxError as error:
            self._around.unreadable(error)
            gone = []
        self._letters += len(gone)
        self._resolved.difference_update(gone)
        if self._around.complaints.allow(("forgotten", self.name)) is not None:
            self.log.warn(
                "{path}: webhook {name}: the oldest dead letters are discarded (outbox.dead_max), {forgotten} so far",
                path=self._around.path,
                name=self.name,
                forgotten=self._ledger.forgotten,
            )

    def _compare(self) -> None:
        """Check that nothing counts as pending when no rows are left."""
        ledger = self._ledger
        if ledger.empty:
            if ledger.pending and not ledger.settled:
                raise OutboxDamaged("rows of table batch are missing")
            if ledger.size:
                ledger.size = 0
                self.release()
        if ledger.surplus > self._surplus:
            self._surplus = ledger.surplus
            self.log.critical(
                "{path}: lost track of what was settled for webhook {name}: {again} deliveries were sent again",
                path=self._around.path,
                name=self.name,
                again=self._surplus,
            )


def _size(stored: StoredRow) -> int:
    return len(stored.deliveries) if isinstance(stored.deliveries, bytes) else 0
