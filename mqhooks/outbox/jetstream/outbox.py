"""
The :class:`~mqhooks.interfaces.IOutbox` of one webhook, as one of several processes that share it.

- A delivery is accepted once JetStream has acknowledged it, or the local file has it, whoever owns its partition. Each process
  counts the deliveries that it accepts, and the partitions that it owns.
- Before a delivery is sent, its partition's lease is checked. The lanes forget deliveries that may not be sent; the owner of
  the partition hands them out.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import count
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.delivery import Counts, DeadLetter, Delivery
from mqhooks.errors import JetStreamError, NATSError, NATSTooLong, OutboxError
from mqhooks.interfaces import IGate, IHolding, IOutbox
from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import NO_STREAM, WRONG_LAST_SEQUENCE, Ack, JetStream
from mqhooks.outbox.jetstream.acceptor import AGAIN, NO_ROOM, Accepting, Acceptor, Held, claim
from mqhooks.outbox.jetstream.layout import BATCH, BATCH_BYTES, OVERHEAD, Names, decode_batch, encode_letter, partition_of
from mqhooks.outbox.jetstream.members import GONE, Members, Share
from mqhooks.outbox.jetstream.partition import SILENCE, LogRow, Partition
from mqhooks.outbox.queue import SqliteOutbox
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.outbox.stored import UNENCODABLE, without_body
from mqhooks.outbox.waiting import WaitingClaim
from mqhooks.support.ratelimit import RateLimit

READY = 4096
"""Unclaimed deliveries kept in memory, approximately."""

READY_BYTES = 8 << 20
"""Bytes that their bodies may have, approximately."""

INDEX_BITS = 16
"""A place is a number that stands for a message, then these bits: the delivery's index in it."""

INDEX = (1 << INDEX_BITS) - 1

LONGEST = 4 << 20
"""Longest message, in bytes, whatever the servers allow: a leader's answer has it in base64."""

ELECTION = 10.0
"""Seconds that a delivery waits for JetStream before the local file takes it: electing a leader takes some 4 to 9."""

HELD = 64 << 20
"""Bytes of memory that waiting deliveries of all webhooks may take: beyond this, the file takes them."""

STALE = 4096
"""Messages whose former numbers are remembered, besides those in flight: answers to these may still come."""


class StreamLimits(msgspec.Struct):
    """
    Limits that all outboxes of a store share.

    :param max_size: bytes of deliveries, for each webhook, shared out evenly to its partitions.
    :param dead_max: number of dead letters kept for each webhook.
    """

    max_size: int
    dead_max: int


class _Appended:
    """One call of ``append``, until all its deliveries are accepted."""

    __slots__ = ("done", "left", "outbox", "room")

    def __init__(self, outbox: JetStreamOutbox, left: int, *, room: bool) -> None:
        self.outbox = outbox
        self.left = left
        self.room = room
        self.done: Deferred[None] = Deferred()

    def landed(self) -> None:
        self.left -= 1
        if not self.left:
            self.outbox.accepted(self)


class _Former:
    """A former generation of partitions, which takes no more deliveries. It takes the outbox's place as their owner."""

    def __init__(
        self,
        outbox: JetStreamOutbox,
        reactor: Any,
        client: NATSClient,
        stream: JetStream,
        monotonic: Callable[[], float],
        names: Names,
        count: int,
    ) -> None:
        self.me = outbox.me
        self.room, self.ready, self.revoked, self.counted = outbox.room, outbox.ready, outbox.revoked, outbox.counted
        self.lost, self.handed, self.changed, self.complain = outbox.lost, outbox.handed, outbox.changed, outbox.complain
        self.members = Members(reactor, client, names.alive, outbox.me, monotonic, list, lambda _: None, list, self._freed)
        self.partitions = [Partition(number, reactor, client, stream, names, self, monotonic) for number in range(count)]
        self._outbox = outbox
        self._started = False

    def preferred(self, partition: int) -> bool:
        """Return whether this process should own a partition."""
        return self._outbox.running and self.members.preferred(partition)

    def start(self) -> None:
        """Begin to share its partitions."""

        def share() -> None:
            if self._outbox.running:
                for partition in self.partitions:
                    partition.start()

        if not self._started:
            self._started = True
            self.members.start(share)

    def given_up(self, partition: int) -> None:
        """Tell the others that they may take a partition."""
        self.members.freed(partition)

    def _freed(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if 0 <= number < len(self.partitions):
                self.partitions[number].hurry()

    async def stop(self) -> None:
        """Give all its partitions up."""
        self.members.stop()
        if self._started:
            await gatherResults([partition.stop() for partition in self.partitions])


@implementer(IOutbox, IGate, IHolding)
class JetStreamOutbox:
    """
    One webhook's accepted and unsettled deliveries, in JetStream.

    :param name: the webhook's name.
    :param reactor: for timers.
    :param client: connected or not.
    :param stream: reads and writes.
    :param names: of streams and subjects.
    :param partitions: the number of partitions.
    :param limits: shared by all outboxes.
    :param me: this process's name; unique, in the world and for ever.
    :param failing: returns why nothing can be accepted now, or ``None``.
    :param now: returns the time in milliseconds since 1970.
    :param monotonic: a monotonic clock, in seconds.
    :param away: returns whether nothing can be accepted because JetStream is out of reach.
    :param held: counts the memory of all outboxes of the store.
    :param delivers: whether this process owns partitions; otherwise it only accepts.
    :ivar started: whether it was ever started.
    :ivar buried: number of dead letters that it has stored.
    :ivar burying: number of dead letters that are not stored yet.
    """

    durable = True
    log = Logger()

    def __init__(
        self,
        name: str,
        reactor: Any,
        client: NATSClient,
        stream: JetStream,
        names: Names,
        partitions: int,
        limits: StreamLimits,
        me: str,
        failing: Callable[[], str | None],
        now: Callable[[], int],
        monotonic: Callable[[], float],
        *,
        away: Callable[[], bool],
        held: Held,
        delivers: bool = True,
    ) -> None:
        self.name = name
        self._delivers = delivers
        self._away = away
        self._held = held
        self.me = me
        self.gate = self
        self.names = names
        self._reactor = reactor
        self._client = client
        self._js = stream
        self._limits = limits
        self._failing = failing
        self._now = now
        self._complaints = RateLimit(reactor)
        self._numbers = count(1)
        self._rows: dict[int, LogRow] = {}
        self._stale: dict[int, tuple[Partition, int]] = {}
        # Deliveries that can be claimed: the message, its number at that time, they themselves, and the bytes of their bodies.
        self._ready: deque[tuple[LogRow, int, list[Delivery], int]] = deque()
        self._ready_count = self._ready_bytes = 0
        self._claim = WaitingClaim(self._take)
        self._appended = self._resumed = self._replayed = self._delivered = self._dead = self._dropped = self._handed = (
            self._forgotten
        ) = 0
        self._letters = 0
        self._max_payload = LONGEST
        self.burying = self.buried = 0
        self._spill: SqliteStore | None = None
        self._spilled = False
        self._unaccepted: list[Deferred[None]] = []
        self._abandoned = False
        self._running = self.started = False
        self._timers: set[IDelayedCall] = set()
        self._ended = False
        self._recalled: tuple[tuple[Partition, int] | None, Sequence[Delivery]] = (None, ())
        self._monotonic = monotonic
        self._former: list[_Former] = []
        self._listened = False
        self._advancing: Deferred[Any] | None = None
        self._leftover: list[SqliteOutbox] = []
        self._moving: Deferred[Any] | None = None
        self.partitions = self._divided(names, partitions)
        self._acceptors = [
            Acceptor(
                reactor,
                stream,
                names.log(number),
                f"a-{me}",
                self._acknowledged(number),
                self._not_stored,
                self._unstorable,
                self._last_of(number),
                held,
            )
            for number in range(partitions)
        ]
        self._members = self._shared(names)

    def _divided(self, names: Names, partitions: int) -> list[Partition]:
        made = (self._reactor, self._client, self._js, names, self, self._monotonic)
        return [Partition(number, *made) for number in range(partitions)]

    def _shared(self, names: Names) -> Members:
        made = (self._reactor, self._client, names.alive, self.me, self._monotonic, self._full_here, self._full_there)
        return Members(*made, self._shares, self._freed, delivers=self._delivers)

    def use(self, names: Names, former: Iterable[tuple[Names, int]]) -> None:
        """
        Set the streams, before it is started.

        :param names: of those that take deliveries.
        :param former: of each former generation, with its number of partitions, oldest first; they are emptied first.
        """
        if names.generation != self.names.generation:
            digest = self._members.digest
            self.names = names
            self.partitions = self._divided(names, len(self.partitions))
            self._members = self._shared(names)
            self._members.digest = digest
            for number, acceptor in enumerate(self._acceptors):
                acceptor.subject = names.log(number)
        made = (self._reactor, self._client, self._js, self._monotonic)
        self._former = [_Former(self, *made, its, count) for its, count in former] if self._delivers else []

    @property
    def _all(self) -> list[Partition]:
        return [*self.partitions, *(partition for former in self._former for partition in former.partitions)]

    # Starting and stopping, by the store.

    def start(self, letters: int) -> None:
        """
        Begin to share the partitions; the streams are there.

        :param letters: the number of dead letters kept.
        """
        self._running = self.started = True
        self._ended = False
        self._letters = letters
        for partition, acceptor in zip(self.partitions, self._acceptors, strict=True):
            partition.made_here = acceptor.made_here
        self._members.start(self._share)

    def _share(self) -> None:
        self._listened = True
        if self._running:
            if self._former:
                self._former[0].start()
            elif self._delivers:
                for partition in self.partitions:
                    partition.start()
            for acceptor in self._acceptors:
                acceptor.begin()

    async def _advance(self) -> None:
        """Begin to deliver the next generation once all before it are empty."""
        while self._former:
            former = self._former[0]
            for partition in former.partitions:
                if not await partition.ended():
                    return
            await former.stop()
            if not self._running:
                return
            self._former.remove(former)
            what = f"all deliveries of the {len(former.partitions)} former partitions are settled"
            self.log.info("webhook {name}: {what}", name=self.name, what=what)
            if self._listened:
                self._share()
            # Others check whether it is empty, too.
            await deferLater(self._reactor, 3 * GONE)
            # As long as the first one is there, any process that starts goes on with this.
            for partition in reversed(former.partitions):
                try:
                    await self._js.delete_stream(partition.stream)
                except JetStreamError as error:
                    if error.err_code != NO_STREAM:
                        raise

    def _advanced(self, failure: Any) -> None:
        self._advancing = None
        if isinstance(failure, Failure) and not failure.check(NATSError, CancelledError):
            self.log.failure("moving on to the next partitions failed", failure)

    def attach(self, spill: SqliteStore, name: str) -> None:
        """
        Send deliveries through a local file while JetStream is away.

        :param spill: the file; it is open.
        :param name: the name of this machine's acceptors, also after a restart.
        """
        whose = f"{Names(self.names.prefix, self.name).stream(0).removesuffix('_0')}/"
        for number, acceptor in enumerate(self._acceptors):
            acceptor.name = name
            acceptor.attach(spill.outbox(f"{whose}{len(self._acceptors)}/{number}"))
        kept = [spill.outbox(name) for name in spill.names if name.startswith(whose)]
        own = [acceptor.spill for acceptor in self._acceptors]
        # These date from another number of partitions, and go before all others.
        self._leftover = [each for each in kept if each.counts.pending and each not in own]
        for acceptor in self._acceptors:
            acceptor.spilling = acceptor.spilling or bool(self._leftover)
        waiting = self.diverted
        if waiting:
            what = f"{spill.path} holds {waiting} deliveries for JetStream"
            self.log.info("webhook {name}: {what}", name=self.name, what=what)
        self._spill = spill

    @property
    def diverted(self) -> int:
        """Number of deliveries in the local file."""
        return sum([each.counts.pending for each in self._spills])

    @property
    def _spills(self) -> list[SqliteOutbox]:
        return [*(acceptor.spill for acceptor in self._acceptors if acceptor.spill is not None), *self._leftover]

    def divert(self) -> None:
        """Move deliveries that wait in memory to the local file."""
        for acceptor in self._acceptors:
            if acceptor.busy:
                acceptor.divert()

    def tend(self) -> None:
        """Look after deliveries that JetStream does not take. Called each second."""
        now, away = self._reactor.seconds(), self._away()
        for acceptor in self._acceptors:
            lost = acceptor.failing if acceptor.begun else away
            if acceptor.spilling:
                if not (away or self._leftover):
                    acceptor.drain()
            elif acceptor.since is not None and lost and (now - acceptor.since > ELECTION or self._held.size > HELD):
                self._divert(acceptor)
        if self._former and self._running and self._advancing is None and not away:
            self._advancing = advancing = ensureDeferred(self._advance())
            advancing.addBoth(self._advanced)
        if self._leftover and self._running and self._moving is None and not away:
            self._moving = moving = ensureDeferred(self._store_leftover())
            moving.addBoth(self._stored_leftover)
        if self._spilled and not any(acceptor.spilling for acceptor in self._acceptors):
            self._spilled = False
            self.log.info("webhook {name}: everything kept locally is in JetStream now", name=self.name)
        self._release()

    async def _store_leftover(self) -> None:
        while self._leftover:
            spill = self._leftover[0]
            spill.reclaim()
            while spill.counts.pending:
                groups: defaultdict[int, list[Delivery]] = defaultdict(list)
                for delivery in claim(spill, BATCH, BATCH_BYTES):
                    groups[partition_of(delivery.client, len(self._acceptors))].append(delivery)
                for number, group in groups.items():
                    await self._acceptors[number].put_away(group)
                    self._acceptors[number].forget(spill, group)
                if not groups:
                    await deferLater(self._reactor, AGAIN)
            # From here on it has no part in the counts.
            counts = spill.counts
            self._appended += counts.appended
            self._resumed += counts.resumed
            self._handed += counts.delivered
            self._dropped += counts.dropped
            self._leftover.remove(spill)

    def _stored_leftover(self, failure: Any) -> None:
        self._moving = None
        if isinstance(failure, Failure) and not failure.check(NATSError, CancelledError, OutboxError):
            self.log.failure("moving local deliveries to JetStream failed", failure)

    def _divert(self, acceptor: Acceptor) -> None:
        if self._spill is None:
            what = "JetStream is away, and there is no spill: nothing more is accepted until it is back"
        else:
            what = f"JetStream is away: {self._spill.path} takes deliveries until it is back"
            self._spilled = True
            acceptor.divert()
        if self._complaints.allow("away") is not None:
            self.log.warn("webhook {name}: {what}", name=self.name, what=what)

    def look(self, generations: Sequence[int]) -> None:
        """Log if nobody delivers, or if its streams are no longer those that take deliveries. Called every two seconds."""
        if (
            self.started
            and generations
            and generations[-1] > self.names.generation
            and self._complaints.allow("newer") is not None
        ):
            what = (
                "now has a different number of partitions, and these take no more deliveries: "
                "set outbox.partitions to the new number, and restart"
            )
            self.log.error("webhook {name}: {what}", name=self.name, what=what)
        if self._running and not self._delivers and self._members.alone and self._complaints.allow("alone") is not None:
            remedy = "start one with outbox.role = deliver or both"
            self.log.warn("webhook {name}: no bridge delivers: {remedy}", name=self.name, remedy=remedy)

    def configure(self, digest: str) -> None:
        """Note the webhook's configuration here, which the digest identifies."""
        self._members.digest = digest

    async def agree(self) -> None:
        """
        Check whether the webhook is configured as JetStream has noted it: otherwise nothing of it is delivered here.

        The note is changed when no process that delivers has that configuration any more.

        :raises mqhooks.errors.NATSError: when JetStream cannot be asked.
        """
        members, names = self._members, self.names
        if not members.digest:
            return
        found = await self._js.last(names.letters, names.note)
        noted = None if found is None else found.payload.decode("ascii", "replace")
        other = None
        if noted != members.digest and self._delivers:
            other = None if noted is None else members.sharing(noted) if self.started else noted
            if other is None:
                expected = 0 if found is None else found.sequence
                try:
                    await self._js.publish(names.note, members.digest.encode(), expected_last=expected, rollup="sub")
                    noted = members.digest
                except JetStreamError as error:
                    if error.err_code not in WRONG_LAST_SEQUENCE:
                        raise
                    # Somebody was faster: look again next time.
                    other = noted or ""
        differs = noted != members.digest
        for each in (members, *(former.members for former in self._former)):
            each.delivers = self._delivers and not differs
        if differs and other != noted and self._complaints.allow("differs") is not None:
            whom = other or "the bridges that deliver"
            what = (
                f"is configured differently here than on {whom}: nothing of it is delivered here until the configurations match"
            )
            if not self._delivers:
                what = "is configured differently here than on the bridges that deliver: make the configurations match"
            self.log.error("webhook {name}: {what}", name=self.name, what=what)

    def kept(self, letters: int) -> None:
        """Note the number of dead letters in JetStream."""
        self._letters = letters

    def connected(self) -> None:
        """Check for messages that were missed while there was no connection."""
        for partition in self._all:
            partition.look()

    @property
    def settled(self) -> bool:
        """Whether every appended delivery and every dead letter is stored."""
        return not self.burying and not any(acceptor.busy for acceptor in self._acceptors)

    @property
    def unstored(self) -> int:
        """Number of deliveries that are only in memory."""
        return sum([acceptor.unstored for acceptor in self._acceptors])

    def stop(self) -> Deferred[None]:
        """Give all partitions up."""
        self._running = False
        self._members.stop()
        self._end()
        given = gatherResults([partition.stop() for partition in self._all])
        return given.addCallback(lambda _: None)

    def abort(self) -> None:
        """Stop at once, as if the process had ended."""
        self._running = False
        self._members.stop()
        self._end()
        for partition in self._all:
            partition.abort()

    def _end(self) -> None:
        self._ended = True
        for acceptor in self._acceptors:
            acceptor.stop()
        for going_on in (self._moving, self._advancing):
            if going_on is not None:
                going_on.cancel()
        for former in self._former:
            former.members.stop()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._claim.cancel()

    # State.

    @property
    def _owned(self) -> list[Partition]:
        return [partition for partition in self._all if partition.mine]

    @property
    def ready_to_claim(self) -> bool:
        """Whether every partition is ours, counted and without a backlog."""
        return all(partition.caught_up and not partition.behind for partition in self.partitions)

    @property
    def caught_up(self) -> bool:
        """Whether every partition is ours, everything that was in its log is counted, and nothing is kept locally."""
        return all(partition.caught_up for partition in self.partitions) and not self.diverted

    @property
    def counts(self) -> Counts:
        """Counts of deliveries accepted here, or in partitions while they are ours, and of what became of them."""
        pending = sum([partition.pending for partition in self._owned])
        kept = [each.counts for each in self._spills]
        handed = sum([acceptor.handed for acceptor in self._acceptors])
        doubled = sum([acceptor.doubled for acceptor in self._acceptors])
        left = sum([acceptor.left for acceptor in self._acceptors])
        return Counts(
            self._appended + handed + sum([each.appended for each in kept]) - doubled,
            self._resumed + sum([each.resumed for each in kept]),
            self._replayed,
            self._delivered,
            self._dead,
            self._dropped + sum([each.dropped for each in kept]),
            pending + sum([each.pending for each in kept]) - (doubled - left),
            self._forgotten,
            self._handed + handed + sum([each.delivered for each in kept]) - left,
        )

    @property
    def oldest(self) -> int | None:
        """About when the oldest pending delivery was accepted, in milliseconds since 1970."""
        known = [oldest for partition in self._owned if (oldest := partition.oldest) is not None]
        if known:
            return min(known)
        since = self.waiting_since
        return None if since is None else self._now() - int((self._reactor.seconds() - since) * 1000)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest delivery that is not stored was appended, in the reactor's seconds."""
        return min([acceptor.since for acceptor in self._acceptors if acceptor.since is not None], default=None)

    def there(self) -> dict[str, list[Share]]:
        """Return the processes that share the partitions, with each one's reports on those that it owns."""
        return self._members.there()

    def _shares(self) -> list[Share]:
        return [
            Share(partition.number, partition.pending, partition.oldest, partition.leader, partition.replicas)
            for partition in self._owned
        ]

    @property
    def used(self) -> int:
        """Bytes that unsettled messages take in our partitions."""
        return sum([partition.size for partition in self._owned])

    @property
    def max_size(self) -> int:
        """Bytes that may be used in all partitions."""
        return self._limits.max_size

    @property
    def letters(self) -> int:
        """Number of dead letters kept, by all processes."""
        return self._letters + self.burying

    @property
    def full(self) -> bool:
        """Whether callers of append() wait for room, or would, or nothing can be stored."""
        failing = self._failing() if self._spill is None else self._spill.failing
        return failing is not None or bool(self._unaccepted) or not (self._abandoned or self._has_room)

    @property
    def _has_room(self) -> bool:
        if any(acceptor.full for acceptor in self._acceptors):
            return False
        owned = len(self._owned)
        return not owned or self.used <= self._limits.max_size * owned // len(self.partitions)

    @property
    def holds(self) -> bool:
        """Whether JetStream is electing a leader or briefly away, and there is memory for deliveries meanwhile."""
        if self._held.size > HELD or self._unaccepted or not self._has_room:
            return False
        now, since = self._reactor.seconds(), self.waiting_since
        if self._spill is not None:
            if self._spill.failing is not None:
                return False
        elif since is not None and now - since > ELECTION:
            return False
        away, lately = self._away(), now - ELECTION
        return any(acceptor.since is not None and (away or acceptor.late(lately)) for acceptor in self._acceptors)

    # IOutbox

    def append(self, deliveries: Sequence[Delivery], *, room: bool = True) -> Deferred[None] | None:
        """Accept deliveries, once JetStream or the local file has them."""
        if not deliveries:
            return None
        groups: defaultdict[int, list[Delivery]] = defaultdict(list)
        number = len(self._acceptors)
        longest = self._longest
        refused = []
        for delivery in deliveries:
            if len(delivery.body) + len(delivery.client) > longest:
                refused.append(delivery)
            else:
                groups[partition_of(delivery.client, number)].append(delivery)
        appended = _Appended(self, len(groups) + len(refused), room=room)
        for delivery in refused:
            problem = f"body and client id may have at most {longest} bytes together (max_payload of NATS)"
            self._unstorable(delivery, problem, appended.landed)
        for index, group in groups.items():
            self._acceptors[index].put(group, appended)
        return appended.done

    def takes(self, delivery: Delivery) -> bool:
        """Return whether a delivery is short enough for NATS."""
        return len(delivery.body) + len(delivery.client) <= self._longest

    @property
    def _longest(self) -> int:
        info = self._client.info
        if info is not None:
            # It holds while there is no connection: what is too long for the next server is found when it is stored.
            self._max_payload = info.max_payload
        return min(self._max_payload, LONGEST) - OVERHEAD

    @property
    def _every_member(self) -> list[Members]:
        return [self._members, *(former.members for former in self._former)]

    @property
    def running(self) -> bool:
        """Whether it is started and not stopped."""
        return self._running

    @property
    def others(self) -> list[str]:
        """The other processes that share this webhook."""
        return [who for members in self._every_member for who in members.others]

    def _last_of(self, number: int) -> Callable[[str], Awaitable[str | None]]:
        return lambda acceptor: self.partitions[number].last_of(acceptor)

    def _acknowledged(self, number: int) -> Callable[[int, list[Accepting]], None]:
        def acknowledged(seq: int, whose: list[Accepting]) -> None:
            def counted() -> None:
                for accepting in whose:
                    accepting.landed()

            self.partitions[number].when_counted(seq, counted)

        return acknowledged

    def accepted(self, appended: _Appended) -> None:
        """Answer a call of append(), now or when there is room."""
        if appended.room and not self._abandoned and (self._unaccepted or not self._has_room):
            self._unaccepted.append(appended.done)
        else:
            appended.done.callback(None)

    def claim(self, limit: int, size: int) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """Hand out the oldest unclaimed deliveries."""
        return self._claim(limit, size)

    def _take(self, limit: int, size: int) -> Sequence[Delivery]:
        ready = self._ready
        claimed: list[Delivery] = []
        while ready and limit > 0 and (size > 0 or not claimed):
            row, number, held, held_size = ready.popleft()
            self._ready_count -= len(held)
            self._ready_bytes -= held_size
            if row.number != number:
                # It is no longer ours, or is handed out again.
                continue
            taken = taken_size = 0
            for delivery in held:
                if taken == limit or (taken_size >= size and (taken or claimed)):
                    break
                taken += 1
                taken_size += len(delivery.body)
            if taken < len(held):
                ready.appendleft((row, number, held[taken:], held_size - taken_size))
                self._ready_count += len(held) - taken
                self._ready_bytes += held_size - taken_size
                held = held[:taken]
            claimed += held
            limit -= taken
            size -= taken_size
        if self.room():
            for partition in self._all:
                if partition.mine and partition.behind:
                    partition.read()
        return claimed

    def shelve(self, places: Iterable[int]) -> None:
        """Do nothing: nothing is ever dropped here to make room."""

    def recall(self, places: Iterable[int]) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """Hand out claimed deliveries again."""
        wanted = [place for place in places if self._holds(place)]
        rows = dict.fromkeys(self._rows[place >> INDEX_BITS] for place in wanted)
        if all((row.partition, row.seq) == self._recalled[0] for row in rows):
            return self._pick(wanted, dict.fromkeys(rows, self._recalled[1]))
        return ensureDeferred(self._recall(wanted, list(rows)))

    def _holds(self, place: int) -> bool:
        row = self._rows.get(place >> INDEX_BITS)
        return row is not None and row.holds(place & INDEX)

    async def _recall(self, places: list[int], rows: list[LogRow]) -> Sequence[Delivery]:
        found: dict[LogRow, Sequence[Delivery]] = {}
        for row in rows:
            stream = row.partition.stream
            try:
                batch = await self._js.direct_batch(stream, row.seq, row.partition.subject, limit=1, timeout=SILENCE)
                message = batch.messages[0] if batch.messages else None
                if message is None or message.sequence != row.seq:
                    message = await self._js.get(stream, row.seq, subject=row.partition.subject)
            except NATSError as error:
                raise OutboxError(f"webhook {self.name}: cannot read message {row.seq} of stream {stream}: {error}") from None
            there = message is not None and message.sequence == row.seq
            found[row] = (decode_batch(message.payload) if there and message is not None else None) or ()
            self._recalled = (row.partition, row.seq), found[row]
        return self._pick(places, found)

    def _pick(self, places: list[int], found: dict[LogRow, Sequence[Delivery]]) -> list[Delivery]:
        picked = []
        for place in places:
            # It may have been settled, or have gone to another process, while it was read.
            row = self._rows.get(place >> INDEX_BITS)
            index = place & INDEX
            if row is None or not row.holds(index):
                continue
            there = found.get(row, ())
            if index >= len(there):
                row.partition.missing(row, index)
                continue
            delivery = there[index]
            picked.append(msgspec.structs.replace(delivery, place=place))
        return picked

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Forget deliveries that have arrived."""
        for delivery in deliveries:
            row = self._row(delivery.place)
            if row is not None and row.partition.settle(row, delivery.place & INDEX):
                self._delivered += 1
        self._release()

    def bury(self, delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """Turn a delivery into a dead letter. It is settled for good once the dead letter is stored."""
        row, index = self._row(delivery.place), delivery.place & INDEX
        if row is not None and row.partition.settle(row, index, dying=True):
            letter = DeadLetter(0, self.name, delivery, url, reason, status, answer, died)
            self._dead += 1
            self._store_letter(letter, lambda: row.partition.stored(row, index))
            self._release()

    def reclaim(self) -> None:
        """Hand out all claimed deliveries again, before any others."""
        self._claim.cancel()
        self._abandoned = False
        for members in self._every_member:
            members.stay()
        self._stale.clear()
        for partition in self._all:
            if partition.mine:
                partition.rewind()
        self._stale.clear()

    def abandon(self) -> None:
        """Keep pending deliveries, or leave them to others, and let nobody wait for room."""
        self._claim.cancel()
        self._abandoned = True
        for members in self._every_member:
            members.retreat()
        self._release()

    # IGate

    def enter(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Return those that may be sent now."""
        entered = []
        for delivery in deliveries:
            place = delivery.place
            row = self._rows.get(place >> INDEX_BITS)
            if row is not None and row.holds(place & INDEX) and row.partition.may_send:
                row.partition.flying.add(place)
                entered.append(delivery)
        return entered

    def leave(self, deliveries: Sequence[Delivery]) -> None:
        """Note that these are no longer in flight."""
        for delivery in deliveries:
            row = self._row(delivery.place)
            if row is not None:
                row.partition.flying.discard(delivery.place)
            else:
                for partition in self._all:
                    partition.flying.discard(delivery.place)

    def _row(self, place: int) -> LogRow | None:
        """Find the message of a delivery, also of one that was handed out before and is still pending here."""
        number = place >> INDEX_BITS
        row = self._rows.get(number)
        if row is None and number in self._stale:
            partition, seq = self._stale[number]
            row = partition.rows.get(seq)
        return row

    # For partitions.

    def preferred(self, partition: int) -> bool:
        """Return whether this process should own a partition."""
        return self._running and self._members.preferred(partition)

    def room(self) -> bool:
        """Return whether there is room to read more."""
        return self._ready_count < READY and self._ready_bytes < READY_BYTES

    def ready(self, row: LogRow, deliveries: list[Delivery]) -> None:
        """Take deliveries that can be claimed."""
        row.number = number = next(self._numbers)
        self._rows[number] = row
        held = []
        size = 0
        for place, delivery in enumerate(deliveries, number << INDEX_BITS):
            if not row.settled >> (place & INDEX) & 1:
                delivery.place = place
                delivery.attempts = 0
                size += len(delivery.body)
                held.append(delivery)
        self._ready.append((row, number, held, size))
        self._ready_count += len(held)
        self._ready_bytes += size
        self._claim.serve()

    def revoked(self, row: LogRow) -> None:
        """Forget the deliveries handed out of a message."""
        if self._rows.pop(row.number, None) is not None:
            self._stale[row.number] = row.partition, row.seq
            if len(self._stale) % STALE == 0:
                flying = {place >> INDEX_BITS for partition in self._all for place in partition.flying}
                self._stale = {number: where for number, where in self._stale.items() if number in flying}
        row.number = 0

    def counted(self, count: int, *, resumed: bool, replayed: bool = False) -> None:
        """Count accepted deliveries."""
        if resumed:
            self._resumed += count
        elif replayed:
            self._replayed += count
        else:
            self._appended += count

    def lost(self, partition: Partition, count: int) -> None:
        """Count deliveries that cannot be read."""
        self._dropped += count
        self._release()

    def handed(self, count: int) -> None:
        """Count deliveries that now belong to another process."""
        self._handed += count

    def given_up(self, partition: int) -> None:
        """Tell the others that they may take a partition."""
        self._members.freed(partition)

    def _freed(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if 0 <= number < len(self.partitions):
                self.partitions[number].hurry()

    def changed(self) -> None:
        """Note that there may be more room."""
        self._release()

    def complain(self, key: str, error: object) -> None:
        """Log a problem, but not too often."""
        if self._complaints.allow(key) is not None:
            self.log.warn("webhook {name}: {error}; trying again", name=self.name, error=error)

    # Room.

    def _release(self) -> None:
        if self._unaccepted and (self._abandoned or self._has_plenty):
            unaccepted, self._unaccepted = self._unaccepted, []
            for accepted in unaccepted:
                accepted.callback(None)

    @property
    def _has_plenty(self) -> bool:
        owned = len(self._owned)
        return self._has_room and self.used * len(self.partitions) <= self._limits.max_size * owned * 3 // 4

    def _full_here(self) -> list[int]:
        """Return those of our partitions that have no room, for the others."""
        share = self._limits.max_size // len(self.partitions)
        return [partition.number for partition in self.partitions if partition.mine and partition.size > share]

    def _full_there(self, full: set[int]) -> None:
        """Hold back deliveries for partitions that have no room at their owners."""
        for number, acceptor in enumerate(self._acceptors):
            held = number in full and not self.partitions[number].mine
            if acceptor.held and not held:
                acceptor.held = False
                acceptor.go_on()
            acceptor.held = held
        self._release()

    # Unstorable deliveries, and dead letters.

    def _not_stored(self, error: NATSError) -> None:
        if isinstance(error, JetStreamError) and error.err_code in NO_ROOM:
            what = f"webhook {self.name}: JetStream has no room: {error}; nothing more is accepted until it has"
            if self._complaints.allow("no room") is not None:
                self.log.warn("{what}", what=what)
        else:
            self.complain("store", error)

    def _unstorable(self, delivery: Delivery, problem: str, stored: Callable[[], object] = lambda: None) -> None:
        bare = DeadLetter(0, self.name, delivery, "", "", 0, b"", self._now())
        letter = without_body(bare, f"cannot be stored: {problem}")
        self._appended += 1
        self._dead += 1
        if self._complaints.allow("cannot be stored") is not None:
            self.log.error("webhook {name}: a delivery became a dead letter: {reason}", name=self.name, reason=letter.reason)
        self._store_letter(letter, stored)

    def _store_letter(self, letter: DeadLetter, stored: Callable[[], object]) -> None:
        if self._limits.dead_max == 0:
            self._forgotten += 1
            stored()
            return
        try:
            data = encode_letter(letter)
            if len(data) > self._longest + OVERHEAD // 2:
                raise ValueError("it is too long for a NATS message")
        except UNENCODABLE as error:
            data = encode_letter(without_body(letter, f"{letter.reason}; {error}"))
        self.burying += 1
        # If we die before a checkpoint says so, another process buries the same delivery again: the id makes them one.
        again = f"{self.name}/{letter.delivery.id}/{letter.delivery.accepted}".encode(errors="replace")
        self._write_letter(letter, data, f"dead/{blake2b(again, digest_size=16).hexdigest()}", stored)

    def _write_letter(self, letter: DeadLetter, data: bytes, message_id: str, stored: Callable[[], object]) -> None:
        def done(ack: Ack) -> None:
            self.burying -= 1
            self.buried += 1
            if ack.duplicate:
                pass
            elif self._letters < self._limits.dead_max:
                self._letters += 1
            else:
                self._forgotten += 1
            stored()

        def failed(failure: Any) -> None:
            failure.trap(NATSError)
            if self._ended:
                # The delivery is not settled, and its next owner buries it.
                return
            problem = failure.getErrorMessage()
            self.complain("letter", problem)
            # The server may take less than the one before.
            bare = encode_letter(without_body(letter, f"{letter.reason}; {problem}")) if failure.check(NATSTooLong) else data

            def again() -> None:
                self._timers.discard(timer)
                self._write_letter(letter, bare, message_id, stored)

            timer = self._reactor.callLater(AGAIN, again)
            self._timers.add(timer)

        self._js.publish(self.names.dead, data, message_id=message_id).addCallbacks(done, failed)
