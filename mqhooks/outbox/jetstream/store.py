"""
The outboxes of all webhooks in one JetStream: the connection, the streams, starting and stopping.

JetStream may be away when the bridge starts: nothing is accepted until it is there and its streams are as they should be.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from secrets import token_hex
from time import monotonic, time
from typing import Any, Literal

from msgspec import structs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mqhooks.errors import NATSError, OutboxError
from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import JetStream
from mqhooks.nats.settings import NATSSettings
from mqhooks.outbox.jetstream.acceptor import Held
from mqhooks.outbox.jetstream.examination import UNSYNCED
from mqhooks.outbox.jetstream.generations import close, ensure, generations, partitions_of
from mqhooks.outbox.jetstream.layout import HEADROOM, Names, letters_config, log_config
from mqhooks.outbox.jetstream.letters import SharedLetters
from mqhooks.outbox.jetstream.outbox import JetStreamOutbox, StreamLimits
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.support.loops import Loop
from mqhooks.support.ratelimit import RateLimit

CLOSING_TIME = 5.0
"""Seconds that stopping waits for appended deliveries to be stored."""

AGAIN = 2.0
"""Seconds until streams that could not be made or checked are tried again."""

Role = Literal["both", "accept", "deliver"]
Spill = Literal["sqlite", "none"]

SPILL = "-spill"
"""The suffix that makes the local file's name from ``outbox.path``."""

ACCEPTOR = "acceptor "
"""The prefix of an outbox's name in that file: the rest identifies this machine's acceptors."""

TENDING = 1.0
"""Seconds between checks for deliveries that JetStream does not take."""

NOT_YET = "not connected to NATS yet"

COUNTING = 2.0
"""Seconds between checks of the other processes: they bury and replay, and may be gone."""


@dataclass(frozen=True, slots=True)
class JetStreamSettings:
    """
    Where JetStream is, and how deliveries are kept there.

    :param nats: its servers.
    :param replicas: number of servers that keep each message: 1, 3 or 5.
    :param partitions: number of logs that each webhook's deliveries are divided into; fixed when they are made.
    :param prefix: the beginning of the names of streams and subjects.
    :param synced: whether the operator has declared that the servers have ``sync_interval: always``.
    :param spill: whether a local file takes deliveries while JetStream is away; ``None``: if it can be written to.
    :param role: ``accept``: this process delivers nothing; ``deliver``: it takes no events.
    """

    nats: NATSSettings
    replicas: int = 3
    partitions: int = 16
    prefix: str = "MQ"
    synced: bool = False
    role: Role = "both"
    spill: Spill | None = None


class JetStreamStore(Service):
    """
    All outboxes of one JetStream. Start it before their sinks, and stop it after them.

    :param reactor: for connections and timers.
    :param settings: where deliveries are kept, and how.
    :param max_size: bytes of deliveries, for each webhook.
    :param dead_max: number of dead letters kept for each webhook; the oldest make room.
    :param now: returns the time to store, in seconds since 1970.
    :param clock: a monotonic clock, in seconds.
    :param spill: the local file that takes deliveries while JetStream is away; ``None`` for none.
    :ivar letters: all dead letters.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: JetStreamSettings,
        *,
        max_size: int = 1 << 30,
        dead_max: int = 100_000,
        now: Callable[[], float] = time,
        clock: Callable[[], float] = monotonic,
        spill: str | None = None,
    ) -> None:
        self.settings = settings
        self._reactor = reactor
        self._limits = StreamLimits(max_size, dead_max)
        self._now = now
        self._clock = clock
        self._me = f"{socket.gethostname()}-{os.getpid()}-{token_hex(6)}"
        self._client = NATSClient(
            reactor, settings.nats, connected=self._connected, disconnected=self._disconnected, warned=self._warned
        )
        self._js = JetStream(self._client, timeout=1.0)
        self.letters = SharedLetters(self._js, settings.prefix, lambda: int(self._now() * 1000))
        self._outboxes: dict[str, JetStreamOutbox] = {}
        self._held = Held()
        self._spill = None if spill is None or settings.role == "deliver" else self._file(spill)
        self._acceptor = self._me
        self._digests: Mapping[str, str] | None = None
        self._started: set[str] = set()
        self._complaints = RateLimit(reactor)
        self._problem: str | None = NOT_YET
        self._preparing = self._unreachable = False
        self._timer: IDelayedCall | None = None
        self._counting = Loop(reactor, "checking the other bridges", self._look)
        self._tending = Loop(reactor, "tending the outboxes", self._tend)

    def outbox(self, name: str) -> JetStreamOutbox:
        """Get the outbox of a webhook."""
        if name not in self._outboxes:
            self._outboxes[name] = JetStreamOutbox(
                name,
                self._reactor,
                self._client,
                self._js,
                Names(self.settings.prefix, name),
                self.settings.partitions,
                self._limits,
                self._me,
                lambda: self.failing,
                lambda: int(self._now() * 1000),
                self._clock,
                away=lambda: self.away,
                held=self._held,
                delivers=self.settings.role != "accept",
            )
            self._outboxes[name].configure((self._digests or {}).get(name, ""))
            if self._spill is not None and self._spill.running:
                self._outboxes[name].attach(self._spill, self._acceptor)
            if self.running:
                self._prepare()
        return self._outboxes[name]

    def configure(self, digests: Mapping[str, str]) -> None:
        """
        Note the webhooks' configurations here: a webhook whose configuration differs from the others' is not delivered.

        :param digests: identify the configuration of each.
        """
        self._digests = digests
        for name, outbox in self._outboxes.items():
            outbox.configure(digests.get(name, ""))
        self._prepare()

    def resize(self, max_size: int, dead_max: int) -> None:
        """Replace the constructor's limits; streams grow with them and never shrink."""
        self._limits.max_size, self._limits.dead_max = max_size, dead_max
        if self._spill is not None:
            self._spill.resize(self._share, "pause", dead_max)
        for outbox in self._outboxes.values():
            outbox.changed()
        if self.running:
            self._started.clear()
            self._prepare()

    @property
    def _share(self) -> int:
        """Bytes that a partition may have."""
        return max(self._limits.max_size // self.settings.partitions, 1 << 20)

    def _file(self, path: str) -> SqliteStore:
        sync: Literal["normal", "full"] = "full" if self.settings.synced else "normal"
        return SqliteStore(self._reactor, path, sync=sync, max_size=self._share, now=self._now)

    @property
    def away(self) -> bool:
        """Whether JetStream is out of reach."""
        return self._client.server is None or self._unreachable

    @property
    def me(self) -> str:
        """This process's name among those that share the outboxes."""
        return self._me

    @property
    def server(self) -> str | None:
        """The NATS server that we are connected to."""
        return self._client.server

    @property
    def failing(self) -> str | None:
        """Why nothing is accepted; ``None`` when all is well, or the local file takes deliveries."""
        if self._spill is not None and self._spill.running and self.away:
            return self._spill.failing
        if self._client.server is None and self._problem in (None, NOT_YET):
            return str(self._client.problem or NOT_YET)
        return self._problem

    # Starting and stopping.

    def startService(self) -> None:
        """Begin to connect."""
        self._open_spill()
        super().startService()
        if not self.settings.synced:
            self.log.warn("outbox: {what}", what=UNSYNCED)
        self._client.start()
        self._counting.start(COUNTING)
        self._tending.start(TENDING)

    def _open_spill(self) -> None:
        if self._spill is None:
            return
        try:
            self._spill.startService()
        except OutboxError as error:
            if self.settings.spill is not None:
                raise
            self.log.warn("outbox: no spill: {error}; while JetStream is away nothing is accepted", error=error)
            self._spill = None
            return
        # The acceptors' name outlives the process, like the deliveries that they have kept.
        known = [name for name in self._spill.names if name.startswith(ACCEPTOR)]
        name = known[0] if known else self._spill.outbox(f"{ACCEPTOR}{token_hex(8)}").name
        self._acceptor = f"a-{name.removeprefix(ACCEPTOR)}"
        for outbox in self._outboxes.values():
            outbox.attach(self._spill, self._acceptor)

    def stopService(self) -> Deferred[None]:
        """
        Store whatever is left, give all partitions up, and close the connection.

        :returns: a ``Deferred`` that fires when it is closed.
        """
        super().stopService()
        self._cancel()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        outboxes = list(self._outboxes.values())
        end = self._reactor.seconds() + CLOSING_TIME
        while not all(outbox.settled for outbox in outboxes):
            if self._reactor.seconds() > end:
                self._tell_unstored(outboxes)
                break
            if self._spill is not None and (self.away or self._reactor.seconds() > end - CLOSING_TIME / 2):
                for outbox in outboxes:
                    outbox.divert()
            await deferLater(self._reactor, 0.02)
        # Each of its requests is answered within a second or given up.
        await DeferredList([outbox.stop() for outbox in outboxes], consumeErrors=True)
        await self._client.drain(1.0)
        if self._spill is not None and self._spill.running:
            await self._spill.stopService()

    def _tell_unstored(self, outboxes: Iterable[JetStreamOutbox]) -> None:
        # The file commits whatever it was given, or logs that it could not.
        count, letters = sum([each.unstored for each in outboxes]), sum([each.burying for each in outboxes])
        if count:
            what = f"{count} deliveries that were not yet accepted are lost"
            self.log.critical("outbox: stopped before everything was stored; {what}", what=what)
        if letters:
            self.log.critical("outbox: stopped before {letters} dead letters were stored", letters=letters)

    def abort(self) -> Deferred[None]:
        """Stop as a crash would: give nothing up, close the connection."""
        if self.running:
            super().stopService()
        self._cancel()
        for outbox in self._outboxes.values():
            outbox.abort()
        closed = self._client.close()
        if self._spill is not None and self._spill.running:
            spill = self._spill
            closed.addCallback(lambda _: spill.stopService())
        return closed

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._counting.stop()
        self._tending.stop()

    def _tend(self) -> None:
        for name, outbox in self._outboxes.items():
            try:
                outbox.tend()
            except Exception:
                self._failed(name)

    def _failed(self, name: str) -> None:
        """Log an error that should not happen; the other webhooks have nothing to do with it."""
        if self._complaints.allow(("failed", name)) is not None:
            self.log.failure("tending the outbox of webhook {name} failed, and goes on", name=name)

    async def _look(self) -> None:
        try:
            known = await generations(self._js, self.settings.prefix)
        except NATSError:
            # Problems that matter are logged elsewhere.
            known = {}
        for name, outbox in list(self._outboxes.items()):
            try:
                outbox.look(known.get(name, []))
                if outbox.started:
                    await outbox.agree()
            except NATSError as error:
                outbox.complain("agree", error)
            except Exception:
                self._failed(name)
        await self._count_letters()

    async def _count_letters(self) -> None:
        before = {name: outbox.buried for name, outbox in self._outboxes.items()}
        try:
            counts = await self.letters.counts()
        except (NATSError, OutboxError):
            # Problems that matter are logged elsewhere.
            return
        for name, buried in before.items():
            outbox = self._outboxes[name]
            if outbox.started and outbox.buried == buried:
                outbox.kept(counts.get(name, 0))

    # The connection.

    def _connected(self, server: str) -> None:
        self.log.info("outbox: connected to NATS server {server}", server=server)
        self._prepare()
        for outbox in self._outboxes.values():
            outbox.connected()

    def _disconnected(self, error: NATSError) -> None:
        if self.running and self._complaints.allow(str(error)) is not None:
            self.log.error("outbox: {error}; trying again", error=error)

    def _warned(self, error: NATSError) -> None:
        if self._complaints.allow(str(error)) is not None:
            self.log.error("outbox: {error}", error=error)

    # Streams.

    def _prepare(self) -> None:
        """Make and check the streams of webhooks that have not started."""
        if self._preparing or not self.running:
            return
        wanted = self._wanted
        if self._started >= wanted.keys():
            if wanted:
                # A webhook whose streams could not be made may be gone.
                self._problem, self._unreachable = None, False
            return
        self._preparing = True
        ensureDeferred(self._make()).addCallbacks(self._made, self._not_made)

    @property
    def _wanted(self) -> dict[str, JetStreamOutbox]:
        """The outboxes whose streams have to be there: of webhooks that are configured, or were while these were made."""
        known = self._digests
        return {name: each for name, each in self._outboxes.items() if known is None or name in known or each.started}

    def _not_made(self, failure: Any) -> None:
        self._preparing = False
        if not failure.check(NATSError, OutboxError):
            self.log.failure("preparing the streams failed", failure)
        if not self.running:
            return
        problem = failure.getErrorMessage()
        if not all(outbox.started for outbox in self._wanted.values()):
            # Otherwise only raising the limits has failed.
            self._problem = problem
            self._unreachable = failure.check(NATSError) is not None
        if self._complaints.allow(problem) is not None:
            self.log.error("outbox: {problem}; trying again", problem=problem)
        if self._timer is None or not self._timer.active():
            self._timer = self._reactor.callLater(AGAIN, self._prepare)

    def _made(self, _: object) -> None:
        self._preparing = self._unreachable = False
        # A reload may have added a webhook meanwhile.
        self._prepare()

    async def _make(self) -> None:
        # A reload may change them meanwhile: then everything is checked again.
        settings, limits = self.settings, structs.replace(self._limits)
        names = Names(settings.prefix, "")
        # All dead letters together may take as many bytes as the deliveries of one webhook.
        await ensure(self._js, letters_config(names, settings.replicas, limits.dead_max, limits.max_size))
        known = await generations(self._js, settings.prefix)
        for name, outbox in self._wanted.items():
            if name in self._started:
                continue
            numbers = known.get(name) or [1]
            latest, former = Names(settings.prefix, name, numbers[-1]), []
            for number in numbers[:-1]:
                earlier = Names(settings.prefix, name, number)
                former.append((earlier, await partitions_of(self._js, earlier)))
            if not outbox.started:
                outbox.use(latest, former)
            share = limits.max_size // settings.partitions + HEADROOM
            configs = [
                log_config(latest, number, settings.partitions, settings.replicas, share)
                for number in range(settings.partitions)
            ]
            # Partition 0 says that all are there: it is made last, and checked first.
            parts = (configs[:1], configs[1:]) if name in known else (configs[1:], configs[:1])
            for some in parts:
                await self._ensure(some)
            for earlier, count in former:
                await close(self._js, earlier, count)
            kept = (await self.letters.counts()).get(name, 0)
            if not outbox.started:
                await outbox.agree()
                outbox.start(kept)
            # Only now: what has failed before is tried again.
            if limits == self._limits:
                self._started.add(name)
            self._problem = None

    async def _ensure(self, configs: Iterable[dict[str, Any]]) -> None:
        made = [ensureDeferred(ensure(self._js, config)) for config in configs]
        results: list[tuple[bool, Any]] = await DeferredList(made, consumeErrors=True)
        for done, result in results:
            if not done:
                result.raiseException()
