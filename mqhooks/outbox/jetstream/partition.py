"""
One partition as this process sees it: its lease, the part of its log that is in memory, and the settled part.

- By our own clock the lease ends before anybody else may take it, counted from when its renewal was sent. Then nothing more is
  sent. Once the lease is renewed, deliveries are handed out again, unless another process has taken the partition.
- When a renewal gets no answer, the leader is asked whether it was carried out.
- The log has two cursors: it is counted up to ``tail``, and handed out up to ``read``. They differ only when there is a
  backlog.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import structs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mqhooks.delivery import Delivery
from mqhooks.errors import JetStreamError, NATSError, NATSTooLong
from mqhooks.nats.client import NATSClient, Subscription
from mqhooks.nats.jetstream import MESSAGE_ID, NO_STREAM, WRONG_LAST_SEQUENCE, JetStream, Stored
from mqhooks.nats.message import NATSMessage
from mqhooks.outbox.jetstream.layout import (
    ACCEPTORS,
    COUNT,
    REPLAYED,
    Checkpoint,
    Names,
    accepted_by,
    decode_batch,
    decode_checkpoint,
    encode_checkpoint,
    shortened,
)
from mqhooks.support.ratelimit import RateLimit

LEASE = 2.0
"""Lifetime of a lease, in seconds."""

EARLY = 0.2
"""Seconds before the end of its lease at which the owner stops sending."""

RENEWAL = 0.5
"""Seconds between two renewals; each writes a checkpoint."""

ANSWER = 1.0
"""Seconds that the leader may take to answer."""

SILENCE = 0.3
"""Seconds that a replica may be silent."""

LOOK = 2.0
"""Seconds between checks of the log's end, in case the announcement of a message was lost."""

PATIENCE = 10.0
"""Seconds until a settled message is deleted on its own, because an earlier one is not settled yet."""

HEALTH = 5.0
"""Seconds between an owner's checks of which servers have the stream."""

DELETED = 64
"""Messages deleted on their own with one renewal; a tenth of the settled ones if that is more, so they can't pile up."""

MESSAGES = 64
"""Maximum number of messages per read request."""

READ_BYTES = 1 << 20
"""Bytes per read request, approximately."""

MOST_OPEN = 2000
"""
Open messages that a checkpoint holds, or fewer if the server takes no message as long; deliveries settled beyond them may be
sent again by the next owner.
"""


class LogRow:
    """
    A message of the log with unsettled deliveries.

    :ivar seq: its sequence number.
    :ivar number: the first part of its deliveries' places; 0 while they are not handed out.
    :ivar count: its number of deliveries; 0 before it is read.
    :ivar size: its size in bytes.
    :ivar settled: a bit for each delivery that is settled.
    :ivar dying: a bit for each whose dead letter is not stored yet; they count as settled, but not in a checkpoint.
    :ivar accepted: acceptance time of the first delivery that was still unsettled on reading, in milliseconds since 1970.
    """

    __slots__ = ("accepted", "count", "dying", "number", "partition", "seq", "settled", "size")

    def __init__(self, partition: Partition, seq: int, settled: int = 0) -> None:
        self.partition = partition
        self.seq = seq
        self.number = 0
        self.count = 0
        self.size = 0
        self.settled = settled
        self.dying = 0
        self.accepted: int | None = None

    def holds(self, index: int) -> bool:
        """Return whether a delivery is unsettled."""
        return index < self.count and not self.settled >> index & 1


class PartitionOwner(Protocol):
    """The outbox, as its partitions see it."""

    me: str

    def preferred(self, partition: int) -> bool:
        """Return whether this process should own a partition."""

    def room(self) -> bool:
        """Return whether there is room to read more."""

    def ready(self, row: LogRow, deliveries: list[Delivery]) -> None:
        """Take deliveries that can be claimed, in order."""

    def revoked(self, row: LogRow) -> None:
        """Forget the deliveries handed out of a message."""

    def counted(self, count: int, *, resumed: bool, replayed: bool = False) -> None:
        """Count accepted deliveries: ``resumed`` if another process has counted them, else ``replayed`` if they were dead."""

    def lost(self, partition: Partition, count: int) -> None:
        """Count deliveries that cannot be read."""

    def handed(self, count: int) -> None:
        """Count deliveries that now belong to another process."""

    def given_up(self, partition: int) -> None:
        """Tell others that a partition no longer has an owner."""

    def changed(self) -> None:
        """Note that there may be more room, or less."""

    def complain(self, key: str, error: object) -> None:
        """Log a problem, but not too often."""


class Partition:
    """
    One partition.

    :param number: its number, from 0.
    :param reactor: for timers.
    :param client: subscribes.
    :param stream: reads and writes.
    :param names: of streams and subjects.
    :param owner: the outbox.
    :param monotonic: a monotonic clock, in seconds.
    :ivar mine: whether we hold the lease, as far as we know.
    :ivar leaving: whether it is being given up: nothing more is sent, and requests in flight end first.
    :ivar pending: number of unsettled deliveries up to ``tail``.
    :ivar size: bytes of their messages.
    :ivar flying: places of deliveries in flight.
    :ivar leader: the server that leads its stream; empty when unknown.
    :ivar replicas: number of servers that have all of it; 0 when unknown.
    :ivar made_here: called when a message is counted, with the id of its last delivery and its number of deliveries; returns
        whether this process has sent it.
    """

    log = Logger()

    def __init__(
        self,
        number: int,
        reactor: Any,
        client: NATSClient,
        stream: JetStream,
        names: Names,
        owner: PartitionOwner,
        monotonic: Callable[[], float],
    ) -> None:
        self.number = number
        self.mine = self.leaving = False
        self.pending = self.size = 0
        self.flying: set[int] = set()
        self.made_here: Callable[[str, int], bool] = lambda _last, _count: False
        self.leader = ""
        self.replicas = 0
        self.rows: dict[int, LogRow] = {}
        self.tail = 0
        self._accepted: dict[str, str] = {}
        self._reactor = reactor
        self._client = client
        self._js = stream
        self.subject = names.log(number)
        self.stream = self._name = names.stream(number)
        self._log, self._own = self.subject, names.own(number)
        self._new = names.new(number)
        self._owner = owner
        self._monotonic = monotonic
        self._until = 0.0
        self._suspended = False
        self._rev = self._turn = 0
        self._seen = (-1, 0.0)
        self._read = self._upto = self._purged = 0
        # The last checkpoint says what is settled up to here; and how many open messages one may hold.
        self._noted, self._most_open = 0, MOST_OPEN
        self._again: deque[LogRow] = deque()
        # Settled messages beyond the floor, and when each was settled; with its number of deliveries and its size.
        self._done: deque[tuple[int, float, int, int]] = deque()
        self._resuming = False
        self._wanted = 0
        self._fetching = False
        self._looked = self._asked = 0.0
        # Changes whenever answers to earlier requests are to be ignored.
        self._term = 0
        self._subscription: Subscription | None = None
        self._timer: IDelayedCall | None = None
        self._tending: Deferred[Any] | None = None
        self._idle: Deferred[None] | None = None
        self._begun = self._stopped = False
        self._complaints = RateLimit(reactor)
        # Callbacks that wait until a message is counted.
        self._awaited: list[tuple[int, Callable[[], object]]] = []

    # For the outbox.

    def start(self) -> None:
        """Begin to watch who owns it, and take it when nobody does."""
        if not self._begun:
            self._begun = True
            self._soon(0.0)

    def hurry(self) -> None:
        """Check at once who owns it: its owner has given it up."""
        if not self.mine and self._timer is not None and self._timer.active():
            self._timer.reset(0.0)

    def stop(self) -> Deferred[None]:
        """
        Write the last checkpoint, and give the partition up.

        :returns: a ``Deferred`` that fires when that is done, or cannot be.
        """
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        if self._tending is not None:
            self._idle = Deferred()
            await self._idle
        await self._give_up()

    def abort(self) -> None:
        """Stop at once, as if the process had ended."""
        self._stopped = True
        self.mine = False
        self._term += 1
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    @property
    def may_send(self) -> bool:
        """Whether its deliveries may be sent right now."""
        if not self.mine or self.leaving or self._suspended:
            return False
        if self._monotonic() < self._until:
            return True
        self._suspend()
        return False

    @property
    def behind(self) -> bool:
        """Whether there is more to read."""
        return bool(self._again) or self._read < self.tail

    @property
    def caught_up(self) -> bool:
        """Whether it is ours, and everything that was in the log when it became ours is counted."""
        return self.mine and not self._resuming

    @property
    def oldest(self) -> int | None:
        """When the oldest delivery in memory was accepted, in milliseconds since 1970."""
        return next((row.accepted for row in self.rows.values() if row.accepted is not None), None)

    def settle(self, row: LogRow, index: int, *, dying: bool = False) -> bool:
        """
        Settle a delivery.

        :param dying: whether it is a dead letter that is not stored yet; :meth:`stored` follows.
        :returns: whether it was pending.
        """
        if not row.holds(index) or self.rows.get(row.seq) is not row:
            return False
        row.settled |= 1 << index
        self.pending -= 1
        if dying:
            row.dying |= 1 << index
        self._finish(row)
        return True

    def stored(self, row: LogRow, index: int) -> None:
        """Note that a delivery's dead letter is stored."""
        row.dying &= ~(1 << index)
        if self.rows.get(row.seq) is row:
            self._finish(row)

    def missing(self, row: LogRow, index: int) -> None:
        """Give up a delivery whose message is no longer in the log."""
        if self.settle(row, index):
            self._owner.lost(self, 1)
            line = "{name}: message {seq} is gone: a delivery of it is lost"
            self.log.critical(line, name=self._name, seq=row.seq)

    def _finish(self, row: LogRow) -> None:
        self._upto = max(self._upto, row.seq)
        if row.settled.bit_count() >= row.count and not row.dying:
            del self.rows[row.seq]
            self.size -= row.size
            self._owner.revoked(row)
            self._done.append((row.seq, self._monotonic(), row.count, row.size))

    def rewind(self) -> None:
        """Hand out unsettled deliveries again."""
        self.flying.clear()
        for row in self.rows.values():
            if row.number:
                self._owner.revoked(row)
        self._again = deque(self.rows.values())
        # Ignore answers to earlier requests: everything is requested again.
        self._term += 1
        self._fetching = False
        self.read()

    def when_counted(self, seq: int, then: Callable[[], object]) -> None:
        """Call back once a message is counted, or it is up to another process to count it."""
        if seq <= self.tail or not self.mine:
            then()
            return
        self._awaited.append((seq, then))
        if seq > self._wanted:
            self._reactor.callLater(0.05, self._want, seq)

    def _want(self, seq: int) -> None:
        if self.mine and seq > self.tail:
            self._wanted = max(self._wanted, seq)
            self.read()

    # The lease.

    def _soon(self, delay: float) -> None:
        if not self._stopped:
            self._timer = self._reactor.callLater(delay, self._tend)

    def _tend(self) -> None:
        began = self._reactor.seconds()

        def done(result: Any) -> None:
            self._tending = None
            if self._idle is not None:
                self._idle.callback(None)
            self._soon(max(RENEWAL - (self._reactor.seconds() - began), 0.0) if result is None else result)

        def failed(failure: Any) -> None:
            if not failure.check(NATSError, ValueError) and self._complaints.allow(failure.type) is not None:
                self.log.failure("tending partition {name} failed", failure, name=self._name)
            self._owner.complain(f"lease {self.number}", failure.getErrorMessage())
            done(0.1)

        self._tending = tending = ensureDeferred(self._renew() if self.mine else self._watch())
        tending.addCallbacks(done, failed)

    async def _watch(self) -> None:
        found = await self._js.direct_last(self._name, self._own)
        seq, state = self._read_checkpoint(found)
        now = self._monotonic()
        if self._seen[0] != seq:
            self._seen = seq, now
        if state.owner not in (None, self._owner.me) and now - self._seen[1] < LEASE:
            return
        if not self._owner.preferred(self.number) or self._stopped:
            return
        # A replica may be behind; the leader knows.
        found = await self._js.last(self._name, self._own)
        self._rev, state = self._read_checkpoint(found)
        if self._rev != seq:
            self._seen = -1, 0.0
            return
        self._turn += 1
        try:
            until = await self._write(structs.replace(state, owner=self._owner.me, turn=self._turn))
        except JetStreamError as error:
            self._seen = -1, 0.0
            if error.err_code in WRONG_LAST_SEQUENCE:
                return
            raise
        await self._taken(state, until)

    async def _taken(self, state: Checkpoint, until: float) -> None:
        if self._stopped:
            # Others need not wait until the lease ends.
            self._turn += 1
            await self._write(structs.replace(state, owner=None, turn=self._turn))
            self._owner.given_up(self.number)
        else:
            self._take_over(state, until)

    async def _write(self, checkpoint: Checkpoint) -> float:
        """Write lease and checkpoint if nobody has since we looked; return when we have to stop sending."""
        began = self._monotonic()
        data = encode_checkpoint(checkpoint)
        try:
            ack = await self._js.publish(self._own, data, expected_last=self._rev, rollup="sub", timeout=ANSWER)
        except NATSTooLong:
            if not checkpoint.open:
                raise
            # The next ones are no longer, and count what they leave out.
            self._most_open = len(checkpoint.open) // 2
            return await self._write(shortened(checkpoint))
        self._rev, self._noted = ack.seq, checkpoint.upto
        return began + LEASE - EARLY

    def _take_over(self, state: Checkpoint, until: float) -> None:
        self.mine, self.leaving, self._suspended = True, False, False
        self._until = until
        self._term += 1
        self._fetching = False
        self.flying.clear()
        self._most_open = MOST_OPEN
        self.tail, self._upto, self._read = state.tail, state.upto, min(state.upto, state.tail)
        self.pending, self.size = state.pending, state.size
        self._accepted = dict(state.accepted)
        self.rows = {seq: LogRow(self, seq, int(bits, 16)) for seq, bits in sorted(state.open.items())}
        self._again = deque(self.rows.values())
        self._purged = 0
        self._resuming = True
        self._owner.counted(self.pending, resumed=True)
        if self._subscription is None:
            self._subscription = self._client.subscribe(self._new, self._told)
        self.log.info("{name}: now delivered here, {pending} deliveries are waiting", name=self._name, pending=self.pending)
        self.look()

    async def _renew(self) -> float | None:
        self.leaving = self._stopped or not self._owner.preferred(self.number)
        if self.leaving and not self._suspended and self._again_needed():
            self._suspend_claims()
        if self.leaving and not self.flying:
            await self._give_up()
            return None
        checkpoint, floor = self._checkpoint()
        began = self._monotonic()
        try:
            until = await self._write(checkpoint)
        except NATSTooLong:
            # Nothing was sent.
            raise
        except NATSError as error:
            if isinstance(error, JetStreamError) and error.err_code in (10047, 10077):
                await self._more_room()
            return await self._read_back(began)
        if not self.mine:
            return None
        self._until = until
        self._after_renewal()
        if floor > self._purged:
            self._purge(floor)
        self._delete(floor)
        if self._monotonic() - self._looked > LOOK:
            self.look()
        if self._monotonic() - self._asked > HEALTH:
            self._ask_health()
        return None

    def _ask_health(self) -> None:
        """Ask which servers have the stream: the lease shows only that a quorum has."""

        def answered(info: dict[str, Any]) -> None:
            cluster = info.get("cluster") or {}
            self.leader = str(cluster.get("leader") or "")
            followers = cluster.get("replicas") or ()
            self.replicas = 1 + sum(bool(each.get("current")) and not each.get("offline") for each in followers)

        def unanswered(failure: Any) -> None:
            failure.trap(NATSError)
            self.leader, self.replicas = "", 0

        self._asked = self._monotonic()
        self._js.stream_info(self._name).addCallbacks(answered, unanswered)

    def _again_needed(self) -> bool:
        return any(row.number for row in self.rows.values())

    def _suspend_claims(self) -> None:
        """Take back everything handed out, to hand it out again if the partition stays ours; requests in flight go on."""
        for row in self.rows.values():
            if row.number:
                self._owner.revoked(row)
        self._again = deque(self.rows.values())

    def _after_renewal(self) -> None:
        if self._suspended:
            self._suspended = False
            self.log.info("{name}: the lease is renewed, deliveries continue", name=self._name)
            self.look()
        if not self.leaving and self._again:
            self.read()

    async def _read_back(self, began: float) -> float | None:
        """Find out whether a renewal without an answer was carried out, and who has the lease."""
        found = await self._js.last(self._name, self._own)
        if not self.mine:
            return None
        rev, state = self._read_checkpoint(found)
        if state.owner != self._owner.me:
            self._lose(state.owner)
            return None
        self._rev = rev
        if state.turn == self._turn:
            self._until = began + LEASE - EARLY
            self._after_renewal()
        return 0.1

    async def _more_room(self) -> None:
        """Give the stream more room: without it the lease cannot be renewed, and nothing would ever drain."""
        info = await self._js.stream_info(self._name)
        config = info["config"]
        await self._js.update_stream({**config, "max_bytes": int(config["max_bytes"]) + (1 << 20)})
        self.log.warn("{name}: was completely full; its limit was raised by 1 MiB", name=self._name)

    async def _give_up(self) -> None:
        if not self.mine:
            return
        checkpoint, floor = self._checkpoint(owner=None)
        self._release()
        try:
            await self._write(checkpoint)
        except NATSError:
            # Nobody renews the lease, so it ends anyway.
            pass
        else:
            if floor > self._purged:
                self._purge(floor)
            self._owner.given_up(self.number)
        self._seen = -1, 0.0
        self.log.info("{name}: given up", name=self._name)

    def _lose(self, owner: str | None) -> None:
        self._release()
        self._seen = -1, 0.0
        self.log.warn("{name}: now delivered by {owner}", name=self._name, owner=owner or "nobody")

    def _release(self) -> None:
        """Forget everything about it: from here on, what is pending is another process's."""
        self.mine = self.leaving = self._suspended = False
        self._owner.handed(self.pending)
        self._term += 1
        self._fetching = False
        for row in self.rows.values():
            if row.number:
                self._owner.revoked(row)
        self.rows = {}
        self._again.clear()
        self._done.clear()
        self.flying.clear()
        self.pending = self.size = self.tail = self._read = 0
        if self._subscription is not None:
            self._client.unsubscribe(self._subscription)
            self._subscription = None
        self._release_awaited()
        self._owner.changed()

    def _release_awaited(self) -> None:
        awaited, self._awaited = self._awaited, []
        for _, then in awaited:
            then()

    def _suspend(self) -> None:
        """Note that the lease has ended by our clock: nothing is sent until it is renewed."""
        self._suspended = True
        self.log.warn("{name}: the lease was not renewed in time; nothing is sent until it is", name=self._name)
        self._suspend_claims()

    def _checkpoint(self, owner: str | None = "") -> tuple[Checkpoint, int]:
        """Return a checkpoint, and the number up to which the log may be purged once it is written."""
        self._turn += 1
        upto, pending, size = self._upto, self.pending, self.size
        opened: dict[int, str] = {}
        for seq, row in self.rows.items():
            settled = row.settled & ~row.dying
            pending += row.dying.bit_count()
            if seq <= upto:
                if len(opened) == self._most_open:
                    upto = seq - 1
                else:
                    opened[seq] = f"{settled:x}"
            if seq > upto:
                pending += settled.bit_count()
        first = next(iter(self.rows), None)
        floor = self._read if first is None else first - 1
        upto = max(upto, floor)
        if upto < self._upto:
            # Nothing beyond counts as settled.
            beyond = [(count, length) for seq, _, count, length in self._done if seq > upto]
            pending += sum([count for count, _ in beyond])
            size += sum([length for _, length in beyond])
        who = self._owner.me if owner == "" else owner
        return Checkpoint(who, self._turn, upto, opened, self.tail, pending, size, dict(self._accepted)), floor

    def _purge(self, floor: int) -> None:
        def purged(_: object) -> None:
            self._purged = max(self._purged, floor)

        self._js.purge(self._name, subject=self._log, below=floor + 1).addCallbacks(purged, lambda _: None)

    def _delete(self, floor: int) -> None:
        """Delete settled messages behind an unsettled one, once a checkpoint says that they are settled."""
        done, before = self._done, self._monotonic() - PATIENCE
        for _ in range(max(DELETED, len(done) // 10)):
            while done and done[0][0] <= floor:
                done.popleft()
            if not done or done[0][1] > before or done[0][0] > self._noted:
                break
            # A message that stays only takes room.
            self._js.delete_message(self._name, done.popleft()[0]).addErrback(lambda failure: failure.trap(NATSError))

    async def last_of(self, acceptor: str) -> str | None:
        """
        Find the last delivery that an acceptor has stored, whoever owns the partition.

        :returns: its id; ``None`` when none is known.
        """
        before = await self._state()
        end = await self._js.last(self._name, self._log)
        at, last, found = before.tail, 0, None
        while end is not None and at < end.sequence:
            batch = await self._js.direct_batch(self._name, at + 1, self._log, limit=MESSAGES, max_bytes=READ_BYTES)
            messages = batch.messages
            if not messages:
                # A replica may be behind; the leader knows.
                message = await self._js.get(self._name, at + 1, subject=self._log)
                if message is None:
                    break
                messages = [message]
            for message in messages:
                at = message.sequence
                stored = accepted_by(message.headers.get(MESSAGE_ID, ""))
                if stored is not None and stored[0] == acceptor:
                    last, found = at, stored[1]
        # A later checkpoint covers whatever was purged meanwhile.
        after = await self._state()
        return found if last > after.tail else after.accepted.get(acceptor)

    async def ended(self) -> bool:
        """Return whether it is closed and everything in it is settled, whoever owns it."""
        try:
            config = (await self._js.stream_info(self._name))["config"]
        except JetStreamError as error:
            if error.err_code == NO_STREAM:
                return True
            raise
        if self._log in config["subjects"]:
            return False
        end, state = await self._js.last(self._name, self._log), await self._state()
        # The number alone may be too low for a while after a crash.
        settled = not state.pending and not state.open and state.upto >= state.tail
        return settled and (end is None or end.sequence <= state.tail)

    async def _state(self) -> Checkpoint:
        found = await self._js.last(self._name, self._own)
        return self._read_checkpoint(found)[1]

    def _read_checkpoint(self, found: Stored | None) -> tuple[int, Checkpoint]:
        """Return the sequence number of a checkpoint and its content; an empty one if there is none yet."""
        if found is None:
            return 0, Checkpoint()
        try:
            return found.sequence, decode_checkpoint(found.payload)
        except ValueError as error:
            what = f"the checkpoint of {self._name} cannot be read: {error}: is another bridge newer than this?"
            raise NATSError(what) from None

    # The log.

    def look(self) -> None:
        """Check for messages whose announcement was lost."""
        self._looked = self._monotonic()
        if self.mine:
            ensureDeferred(self._look(self._term)).addErrback(lambda failure: failure.trap(NATSError))

    async def _look(self, term: int) -> None:
        if self._resuming:
            # Only the leader knows the end for sure.
            found = await self._js.last(self._name, self._log)
        else:
            found = await self._js.direct(self._name, self.tail + 1, subject=self._log)
        if term != self._term or not self.mine:
            return
        last = 0 if found is None else found.sequence
        if last > self.tail:
            self._wanted = max(self._wanted, last)
            self.read()
        elif self._resuming:
            self._caught_up()
        if self.behind:
            self.read()

    def _told(self, message: NATSMessage) -> None:
        """Take a message that the leader has just stored, if it follows those that we have; otherwise read on."""
        if not self.mine:
            return
        headers = message.headers
        try:
            seq, before = int(headers["Nats-Sequence"]), int(headers["Nats-Last-Sequence"])
        except (KeyError, ValueError):
            return
        if seq <= self.tail:
            return
        if before <= self.tail and not self._resuming:
            self._count(seq, headers, message.payload)
        else:
            self._wanted = max(self._wanted, seq)
            self.read()

    def _count(self, seq: int, headers: Mapping[str, str], payload: bytes) -> None:
        """Count the next message, and hand it out if there is no backlog."""
        behind = self.behind
        count = _number(headers, payload)
        self.tail = seq
        stored = accepted_by(headers.get(MESSAGE_ID, ""))
        if stored is not None:
            # The latest ones come last.
            self._accepted.pop(stored[0], None)
            self._accepted[stored[0]] = stored[1]
            if len(self._accepted) > ACCEPTORS:
                del self._accepted[next(iter(self._accepted))]
        self.pending += count
        self.size += len(payload)
        resumed = self._resuming if stored is None else not self.made_here(stored[1], count)
        self._owner.counted(count, resumed=resumed, replayed=REPLAYED in headers)
        if not behind and not self._paused:
            self._hand_out(LogRow(self, seq), payload, count)
        if self._resuming and seq >= self._wanted:
            self._caught_up()
        while self._awaited and self._awaited[0][0] <= self.tail:
            self._awaited.pop(0)[1]()

    def _caught_up(self) -> None:
        self._resuming = False
        self._owner.changed()

    def _hand_out(self, row: LogRow, payload: bytes, count: int) -> None:
        """Hand out the unsettled deliveries of a message."""
        self._read = max(self._read, row.seq)
        deliveries = decode_batch(payload)
        if deliveries is None or len(deliveries) != count:
            self._lost(row, payload, max(count - row.settled.bit_count(), 0))
            return
        if not row.count:
            row.count, row.size = len(deliveries), len(payload)
        if row.settled.bit_count() >= row.count and not row.dying:
            self.rows.pop(row.seq, None)
            self.size -= row.size
            return
        self.rows[row.seq] = row
        row.accepted = next((each.accepted for index, each in enumerate(deliveries) if row.holds(index)), None)
        self._owner.ready(row, deliveries)

    def _lost(self, row: LogRow, payload: bytes, count: int) -> None:
        self.rows.pop(row.seq, None)
        self._upto = max(self._upto, row.seq)
        self.size -= len(payload)
        self.pending -= count
        self._owner.lost(self, count)
        self.log.critical(
            "{name}: message {seq} cannot be read: {count} deliveries are lost", name=self._name, seq=row.seq, count=count
        )

    def read(self) -> None:
        """Read on, if there is more and room for it."""
        if not self._fetching and self.mine:
            self._fetching = True
            ensureDeferred(self._fetch(self._term)).addErrback(self._unread, self._term)

    def _unread(self, failure: Any, term: int) -> None:
        self.log.failure("reading {name} failed", failure, name=self._name)
        if term == self._term:
            self._fetching = False

    async def _fetch(self, term: int) -> None:
        empty = 0
        while term == self._term and self.mine:
            paused, tail = self._paused, self.tail
            if tail < self._wanted and (paused or not self.behind):
                start, limit = tail + 1, MESSAGES
            elif paused or not self.behind:
                break
            elif self._again:
                start, limit = self._again[0].seq, self._run()
            else:
                start, limit = self._read + 1, MESSAGES
            try:
                batch = await self._js.direct_batch(
                    self._name, start, self._log, limit=limit, max_bytes=READ_BYTES, timeout=SILENCE
                )
                if not batch.messages and empty >= 3:
                    # It cannot be that all replicas are behind for this long: ask the leader.
                    found = await self._js.get(self._name, start, subject=self._log)
                    if term == self._term:
                        self._nothing(start, None if found is None else found.sequence, tail)
                    empty = 0
                    continue
            except NATSError as error:
                self._owner.complain(f"read {self.number}", error)
                await deferLater(self._reactor, 0.1)
                continue
            if term != self._term:
                return
            empty = 0 if batch.messages else empty + 1
            if not batch.messages:
                await deferLater(self._reactor, 0.02)
            for message in batch.messages:
                self._arrived(start, message.sequence, message.headers, message.payload)
        if term == self._term:
            self._fetching = False
            self._balance()

    @property
    def _paused(self) -> bool:
        """Whether nothing may be handed out now."""
        return self._suspended or self.leaving or not self._owner.room()

    def _run(self) -> int:
        """Return how many of the messages to read again are close enough together for one request."""
        first = self._again[0].seq
        count = 0
        for row in self._again:
            if row.seq - first >= MESSAGES or count == MESSAGES:
                break
            count += 1
        return count

    def _arrived(self, start: int, seq: int, headers: Mapping[str, str], payload: bytes) -> None:
        """Take a message that was read, in answer to a request for those from ``start`` on."""
        if self._again and self._again[0].seq >= start and not (self._suspended or self.leaving):
            # Those before it were asked for too, so they are gone.
            while self._again and self._again[0].seq < seq:
                self._gone(self._again.popleft())
            if self._again and self._again[0].seq == seq:
                row = self._again.popleft()
                if self.rows.get(seq) is row:
                    self._hand_out(row, payload, _number(headers, payload))
                return
        if seq > self.tail:
            self._count(seq, headers, payload)
        elif self._read < seq and start <= self._read + 1 and not self._paused and not self._again:
            # An answer that begins further behind would leave out a backlog.
            self._hand_out(LogRow(self, seq), payload, _number(headers, payload))

    def _gone(self, row: LogRow) -> None:
        if self.rows.pop(row.seq, None) is row:
            lost = max(row.count - row.settled.bit_count(), 0)
            self.size -= row.size
            self.pending -= lost
            if lost:
                self._owner.lost(self, lost)
                line = "{name}: message {seq} is gone: {lost} deliveries are lost"
                self.log.critical(line, name=self._name, seq=row.seq, lost=lost)

    def _nothing(self, start: int, following: int | None, tail: int) -> None:
        """Note that the leader's first message from ``start`` on is ``following``, or that none was there up to ``tail``."""
        if self._again and start == self._again[0].seq:
            if following != start:
                self._gone(self._again.popleft())
        elif start == self._read + 1 and self._read < self.tail:
            # What was announced meanwhile may be missing in the answer.
            self._read = tail if following is None else min(following - 1, self.tail)
        elif following is None:
            # The wanted message is purged, so it is settled.
            self._wanted = self.tail
            self._release_awaited()
            if self._resuming:
                self._caught_up()

    def _balance(self) -> None:
        """Correct the counts if deliveries count as pending when none are left."""
        if self.rows or self.behind or self._resuming:
            return
        if self.pending > 0:
            lost, self.pending = self.pending, 0
            self._owner.lost(self, lost)
            self.log.critical("{name}: {lost} deliveries are gone from the stream, and are lost", name=self._name, lost=lost)
        elif self.pending < 0:
            more, self.pending = -self.pending, 0
            self._owner.counted(more, resumed=True)
        self.size = 0


def _number(headers: Mapping[str, str], payload: bytes) -> int:
    """Return the number of deliveries in a message."""
    try:
        return int(headers.get(COUNT, ""))
    except ValueError:
        return len(decode_batch(payload) or ())
