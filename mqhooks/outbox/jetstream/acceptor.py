"""
Write deliveries to the log of one partition.

- Only one message at a time is unacknowledged: two could change places during an election.
- It is repeated under the same id until it is acknowledged, so a lost acknowledgement stores nothing twice. JetStream forgets
  ids after two minutes, so after a while the message is looked for in the log before it is repeated.
- While JetStream is away, everything goes through a local file, if there is one, behind whatever waits there, until it is
  empty.
- A delivery is counted as made from an event once, by the process that accepts it, when the log or the file has it. The owner
  of the partition counts it as taken over, unless that is this very process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Protocol

from msgspec import structs
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mqhooks.delivery import Delivery
from mqhooks.errors import JetStreamError, NATSError, NATSTooLong, NATSUnavailable, OutboxError
from mqhooks.nats.jetstream import Ack, JetStream
from mqhooks.outbox.jetstream.layout import BATCH, BATCH_BYTES, COUNT, encode
from mqhooks.outbox.queue import SqliteOutbox
from mqhooks.outbox.stored import UNENCODABLE, encodable

LINGER = 0.02
"""Seconds between two messages of a partition, unless one is full: batches keep it cheap."""

AGAIN = 0.1
"""Seconds until an unacknowledged message is sent again."""

TIMEOUT = 1.0
"""Seconds that an acknowledgement may take."""

REMEMBERED = 60.0
"""Seconds after which a message is looked for before it is sent again: half of the time that JetStream remembers ids."""

LATE = 0.25
"""Seconds without an acknowledgement after which an election is assumed."""

EACH = 768
"""Bytes of memory that a waiting delivery takes besides its body and its client, approximately."""

PASSED = 8 << 20
"""Bytes read from the local file in one turn of the reactor, approximately, when only ids matter."""

NO_ROOM = frozenset({10047, 10077})
"""JetStream's errors for a stream or a server without room."""


@dataclass
class Held:
    """
    The deliveries of all webhooks that wait in memory until JetStream or the file has them.

    :ivar size: bytes that they take, approximately.
    """

    size: int = 0


class Accepting(Protocol):
    """Some deliveries that a caller has appended."""

    def landed(self) -> None:
        """Note that all of them that are in one partition are accepted."""


_Part = tuple[Delivery, Accepting, float]


class _Flight:
    """
    A message that may or may not be in the log.

    :ivar kept: whether its deliveries are also in the local file.
    :ivar counted: whether this process has counted it, as the owner of the partition.
    """

    __slots__ = ("counted", "kept")

    def __init__(self, *, kept: bool) -> None:
        self.kept = kept
        self.counted = False


class _Landing:
    """Calls back when a message is counted, or it is up to another process to count it."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def landed(self) -> None:
        self._then()


class _Whole:
    """A caller with several deliveries: told once all of them are accepted or dead letters, whatever message each is in."""

    def __init__(self, accepting: Accepting, left: int) -> None:
        self._accepting = accepting
        self._left = left

    def landed(self) -> None:
        self._left -= 1
        if not self._left:
            self._accepting.landed()


class Acceptor:
    """
    Writes one partition's log.

    :param reactor: for timers.
    :param stream: writes.
    :param subject: of the log.
    :param name: begins the ids of messages, and tells acceptors apart.
    :param acknowledged: called with a message's sequence number, and with the caller of each delivery in it.
    :param failed: called with the error whenever storing a message fails.
    :param refused: called with a delivery that can never be stored, why, and what to call once it is a dead letter.
    :param last: asks for the id of the last delivery in the log that an acceptor of this name has stored.
    :param held: counts the bytes that it has in memory, too.
    :ivar subject: of the log.
    :ivar since: when the oldest delivery that is neither acknowledged nor in the file was appended, in the reactor's seconds.
    :ivar refused: whether the last attempt found no room.
    :ivar failing: whether it failed for another reason.
    :ivar held: whether nothing may be sent, because the partition's owner has announced that it has no room.
    :ivar begun: whether the stream is known to be there.
    :ivar spill: the local file's part for this partition; ``None`` for none.
    :ivar spilling: whether everything goes through the file.
    :ivar handed: number of deliveries that are in the log, have not been in the file, and are up to another process to count.
    :ivar doubled: number of deliveries that are or were in the file and count twice here: also in the log or as dead letters.
    :ivar left: number of these that have left the file.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        stream: JetStream,
        subject: str,
        name: str,
        acknowledged: Callable[[int, list[Accepting]], object],
        failed: Callable[[NATSError], object],
        refused: Callable[[Delivery, str, Callable[[], object]], object],
        last: Callable[[str], Awaitable[str | None]],
        held: Held,
    ) -> None:
        self.since: float | None = None
        self.handed = self.doubled = self.left = 0
        self.refused = self.failing = self.held = self.begun = self.spilling = False
        self.spill: SqliteOutbox | None = None
        self.name = name
        self._reactor = reactor
        self._stream = stream
        self.subject = subject
        self._acknowledged = acknowledged
        self._failed = failed
        self._refused = refused
        self._last = last
        self._held = held
        self._waiting: deque[_Part] = deque()
        # The unacknowledged message: its content, and the deliveries in it.
        self._flying: tuple[bytes, list[_Part]] | None = None
        # Messages that may be in the log, by the id of the last delivery in each.
        self._flights: dict[str, _Flight] = {}
        # Whether the unacknowledged message may be stored already; since when; and how many deliveries the next one may have.
        self._sent = False
        self._first_sent = 0.0
        self._failed_at = -inf
        self._most = BATCH
        self._next = 0.0
        self._timer: IDelayedCall | None = None
        self._stopped = False
        # Uncommitted appends to the file; and how many of the first deliveries in it were sent as one message before.
        self._uncommitted = 0
        self._sent_before = 0
        self._draining: Deferred[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether any delivery is neither acknowledged nor in the file."""
        return bool(self._waiting) or self._flying is not None or bool(self._uncommitted)

    @property
    def full(self) -> bool:
        """Whether there is no room for more: in the file while everything goes through it, in JetStream otherwise."""
        if self.spilling:
            return self.spill is not None and self.spill.full
        return self.refused or self.held or (self.spill is None and not self.begun)

    @property
    def unstored(self) -> int:
        """Number of deliveries that are only in memory: neither acknowledged nor given to the file."""
        return len(self._waiting) + (0 if self._flying is None else len(self._flying[1]))

    def late(self, since: float) -> bool:
        """
        Return whether JetStream is slow to acknowledge, as during an election, or an attempt has failed.

        :param since: the earliest failure that counts, in the reactor's seconds.
        """
        return self._failed_at >= since or (self._flying is not None and self._reactor.seconds() - self._first_sent > LATE)

    def put(self, deliveries: list[Delivery], accepting: Accepting) -> None:
        """Append deliveries; the caller has checked that none is too long."""
        now = self._reactor.seconds()
        whose = accepting if len(deliveries) == 1 else _Whole(accepting, len(deliveries))
        parts: list[_Part] = [(delivery, whose, now) for delivery in deliveries]
        self._held.size += _size(parts)
        if self.spilling:
            self._keep(parts)
            return
        if self.since is None:
            self.since = now
        self._waiting.extend(parts)
        self.go_on()

    def begin(self) -> None:
        """Note that the stream is there."""
        self.begun = True
        self.go_on()

    def go_on(self) -> None:
        """Send the next message, if it may be sent now."""
        if self.spilling or self._flying is not None or not self._waiting or self._stopped or self.held or not self.begun:
            return
        left = self._next - self._reactor.seconds()
        if left > 0 and len(self._waiting) < BATCH:
            if self._timer is None:
                self._later(left, self.go_on)
            return
        self._cancel()
        now = self._reactor.seconds()
        self._next = now + LINGER
        batch: list[_Part] = []
        size = 0
        waiting = self._waiting
        while waiting and len(batch) < self._most and (not batch or size + len(waiting[0][0].body) <= BATCH_BYTES):
            batch.append(waiting.popleft())
            size += len(batch[-1][0].body)
        unstorable: list[tuple[_Part, str]] = []
        try:
            data = encode([delivery for delivery, _, _ in batch])
        except UNENCODABLE:
            batch, unstorable = self._sorted_out(batch)
            data = encode([delivery for delivery, _, _ in batch])
        self._most = BATCH
        if batch:
            self._sent = False
            self._first_sent = now
            self._flying = data, batch
            self._flights[batch[-1][0].id] = _Flight(kept=False)
            self._fly()
        else:
            self.since = waiting[0][2] if waiting else None
        if unstorable:
            self._refuse(unstorable)
            self.go_on()

    def made_here(self, last: str, count: int) -> bool:
        """
        Return whether this process made a message from events. Our partition calls this when it counts the message.

        :param last: the id of the last delivery in it.
        :param count: its number of deliveries.
        """
        flight = self._flights.get(last)
        if flight is None or flight.counted:
            return False
        flight.counted = True
        if flight.kept:
            self.doubled += count
        return True

    def _landed(self, last: str, count: int) -> None:
        flight = self._flights.pop(last, None)
        if flight is not None and not flight.counted:
            self.handed += count

    def _sorted_out(self, batch: list[_Part]) -> tuple[list[_Part], list[tuple[_Part, str]]]:
        """Return what can be stored, and what cannot, with the reasons."""
        checked = [(part, encodable(part[0])) for part in batch]
        kept = [part for part, problem in checked if problem is None]
        self._held.size -= _size(batch) - _size(kept)
        return kept, [(part, problem) for part, problem in checked if problem is not None]

    def _refuse(self, unstorable: list[tuple[_Part, str]]) -> None:
        """Have dead letters made. Do everything else first: a caller may be told, and append more, before this returns."""
        for (delivery, accepting, _), problem in unstorable:
            self._refused(delivery, problem, accepting.landed)

    def stop(self) -> None:
        """Stop sending."""
        self._stopped = True
        self._cancel()
        if self._draining is not None:
            self._draining.cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _later(self, delay: float, function: Callable[[], None]) -> None:
        def now() -> None:
            self._timer = None
            function()

        self._timer = self._reactor.callLater(delay, now)

    def _fly(self) -> None:
        if self._flying is None or self._stopped:
            return
        flying = self._flying
        data, batch = flying
        self._publish(data, [delivery for delivery, _, _ in batch]).addCallbacks(
            self._stored, self._missed, callbackArgs=(flying,), errbackArgs=(flying,)
        )

    def _publish(self, data: bytes, deliveries: list[Delivery]) -> Deferred[Ack]:
        return self._stream.publish(
            self.subject,
            data,
            message_id=f"{self.name}/{deliveries[-1].id}",
            headers={COUNT: str(len(deliveries))},
            timeout=TIMEOUT,
        )

    def _stored(self, ack: Ack | None, flying: tuple[bytes, list[_Part]]) -> None:
        if self._flying is not flying:
            # It has gone to the file meanwhile.
            return
        self._flying = None
        self.refused = self.failing = False
        self._held.size -= _size(flying[1])
        self.since = self._waiting[0][2] if self._waiting else None
        batch = flying[1]
        landing = _Landing(lambda: self._landed(batch[-1][0].id, len(batch)))
        self._acknowledged(0 if ack is None else ack.seq, [landing, *(whose for _, whose, _ in batch)])
        self.go_on()

    def _missed(self, failure: Any, flying: tuple[bytes, list[_Part]]) -> None:
        failure.trap(NATSError)
        if self._flying is not flying:
            return
        error = failure.value
        if isinstance(error, NATSTooLong) and not self._sent:
            self._divide(flying[1], str(error))
            return
        self._sent = self._sent or not isinstance(error, NATSUnavailable)
        self._note(error)
        if not self._stopped:
            late = isinstance(error, NATSTooLong) or self._reactor.seconds() - self._first_sent > REMEMBERED
            self._later(AGAIN, self._look if self._sent and late else self._fly)
            self._failed(error)

    def _note(self, error: NATSError) -> None:
        self.refused = isinstance(error, JetStreamError) and error.err_code in NO_ROOM
        self.failing = not self.refused
        if self.failing:
            self._failed_at = self._reactor.seconds()

    def _look(self) -> None:
        """Look for a message whose id JetStream may have forgotten, before it is sent again."""
        flying = self._flying
        if flying is None or self._stopped:
            return

        def found(last: str | None) -> None:
            if self._flying is not flying:
                return
            if last == flying[1][-1][0].id:
                self._stored(None, flying)
            else:
                self._sent = False
                self._first_sent = self._reactor.seconds()
                self._fly()

        asked = ensureDeferred(self._ask())
        asked.addCallbacks(found, self._missed, errbackArgs=(flying,))

    async def _ask(self) -> str | None:
        return await self._last(self.name)

    def _divide(self, batch: list[_Part], problem: str) -> None:
        """Send fewer at once: client ids, headers and paths may be long too."""
        if len(batch) == 1 and self.spill is not None and not self.spill.full:
            # Its caller need not wait: the file keeps it until its dead letter is stored.
            self.divert()
            self.drain()
            return
        self._flying = None
        self._flights.pop(batch[-1][0].id, None)
        single = len(batch) == 1
        if single:
            self._held.size -= _size(batch)
        else:
            self._waiting.extendleft(reversed(batch))
            self._most = len(batch) // 2
        self.since = self._waiting[0][2] if self._waiting else None
        self._next = 0.0
        if single:
            self._refuse([(batch[0], problem)])
        self.go_on()

    # The local file.

    def attach(self, spill: SqliteOutbox) -> None:
        """
        Give it a part of an open file.

        :param spill: that part; deliveries that an earlier process has left in it are stored first.
        """
        self.spill = spill
        self.spilling = spill.counts.pending > 0

    def divert(self) -> None:
        """Send everything through the file from now on, first of all the deliveries that wait in memory."""
        if self.spill is None or self.spilling:
            return
        self.spilling = True
        flying, self._flying = self._flying, None
        self._cancel()
        sent = [] if flying is None else flying[1]
        self._sent_before = len(sent) if self._sent else 0
        parts = [*sent, *self._waiting]
        self._waiting.clear()
        self.since = None
        flight = None if flying is None else self._flights.get(flying[1][-1][0].id)
        doubled = 0
        if flying is not None and flight is not None:
            flight.kept = True
            doubled = len(flying[1]) if flight.counted else 0
        if parts:
            self._keep(parts, doubled)

    def _keep(self, parts: list[_Part], doubled: int = 0) -> None:
        if self.spill is None:
            return
        kept, unstorable = self._sorted_out(parts)

        def committed(_: None) -> None:
            self._uncommitted -= 1
            self.doubled += doubled
            self._held.size -= _size(kept)
            for whose in [whose for _, whose, _ in kept]:
                whose.landed()

        accepted = self.spill.append([delivery for delivery, _, _ in kept], room=False)
        if accepted is not None:
            self._uncommitted += 1
            accepted.addCallback(committed)
        self._refuse(unstorable)

    def drain(self) -> None:
        """Begin to move the file's deliveries into the log, unless that goes on already."""
        if not self.spilling or self._draining is not None or self._stopped or not self.begun:
            return
        self._draining = draining = ensureDeferred(self._drain())
        draining.addErrback(self._not_drained).addBoth(self._drained)

    def _not_drained(self, failure: Any) -> None:
        if failure.check(NATSError):
            self._note(failure.value)
            self._failed(failure.value)
        elif not failure.check(CancelledError, OutboxError):
            self.log.failure("moving local deliveries for {subject} to JetStream failed", failure, subject=self.subject)

    def _drained(self, _: object) -> None:
        self._draining = None
        self.go_on()

    async def _drain(self) -> None:
        spill = self.spill
        assert spill is not None
        last = await self._ask()
        passed = await self._place_of(spill, last)
        spill.reclaim()
        first = 0 if passed else self._sent_before
        while passed and (claimed := claim(spill, passed, PASSED)):
            self.forget(spill, claimed)
            passed -= len(claimed)
        while spill.counts.pending or self._uncommitted:
            # Send the same deliveries as one message again, under the same id.
            claimed = claim(spill, first or BATCH, 1 << 62 if first else BATCH_BYTES)
            if not claimed:
                await deferLater(self._reactor, AGAIN / 10)
                continue
            first = 0
            await self.put_away(claimed)
            self.forget(spill, claimed)
            self._sent_before = 0
        self.spilling = False

    def forget(self, spill: SqliteOutbox, deliveries: list[Delivery]) -> None:
        """Remove deliveries of this partition from a file's part: they are in the log."""
        spill.acknowledge(deliveries)
        self.left += min(len(deliveries), self.doubled - self.left)
        for delivery in deliveries:
            self._flights.pop(delivery.id, None)

    async def _place_of(self, spill: SqliteOutbox, last: str | None) -> int:
        """Return how many deliveries at the head of the file JetStream has already."""
        if last is None:
            return 0
        spill.reclaim()
        seen, pending = 0, spill.counts.pending
        while seen < pending and (claimed := claim(spill, BATCH, PASSED)):
            for delivery in claimed:
                seen += 1
                if delivery.id == last:
                    return seen
            if not seen % (16 * BATCH):
                await deferLater(self._reactor, 0)
        return 0

    async def put_away(self, deliveries: list[Delivery]) -> None:
        """Store deliveries as one message, or as several if it is too long; wait as long as it takes."""
        # Their places belong to the file.
        data = encode([structs.replace(delivery, place=0, attempts=0) for delivery in deliveries])
        began, sent = self._reactor.seconds(), False
        # The message may have been sent, and counted, before its deliveries went to the file.
        self._flights.setdefault(deliveries[-1].id, _Flight(kept=True))
        while True:
            if self.held:
                await deferLater(self._reactor, AGAIN)
                continue
            if sent and self._reactor.seconds() - began > REMEMBERED:
                if await self._ask() == deliveries[-1].id:
                    return
                began = self._reactor.seconds()
            try:
                ack = await self._publish(data, deliveries)
            except NATSTooLong as error:
                del self._flights[deliveries[-1].id]
                if len(deliveries) > 1:
                    half = len(deliveries) // 2
                    await self.put_away(deliveries[:half])
                    await self.put_away(deliveries[half:])
                else:
                    self.doubled += 1
                    # Until the dead letter is stored, the file keeps the delivery.
                    buried: Deferred[None] = Deferred()
                    self._refused(deliveries[0], str(error), partial(buried.callback, None))
                    await buried
                return
            except NATSError as error:
                sent = sent or not isinstance(error, NATSUnavailable)
                self._note(error)
                self._failed(error)
                await deferLater(self._reactor, AGAIN)
            else:
                self.refused = self.failing = False
                counted: Deferred[None] = Deferred()
                self._acknowledged(ack.seq, [_Landing(partial(counted.callback, None))])
                await counted
                return


def claim(spill: SqliteOutbox, limit: int, size: int) -> list[Delivery]:
    """Claim deliveries of a file; none if nothing can be read now: what is pending may turn out to be damaged."""
    claimed = spill.claim(limit, size)
    if isinstance(claimed, Deferred):
        claimed.addErrback(lambda failure: failure.trap(CancelledError))
        claimed.cancel()
        return []
    return list(claimed)


def _size(parts: list[_Part]) -> int:
    return sum([len(delivery.body) + len(delivery.client) + EACH for delivery, _, _ in parts])
