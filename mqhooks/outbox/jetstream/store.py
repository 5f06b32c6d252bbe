"""
The outboxes of all webhooks in one JetStream: the connection, the streams, starting and stopping.

The engine may be away when the bridge starts: nothing is accepted until it is there and its streams are as they should be.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from time import monotonic, time
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mqhooks.errors import JetStreamError, NATSError, OutboxError
from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import NO_STREAM, JetStream
from mqhooks.nats.settings import NATSSettings
from mqhooks.outbox.jetstream.layout import Names, differences, letters_config, log_config, raised
from mqhooks.outbox.jetstream.outbox import JetStreamOutbox, Limits
from mqhooks.support.ratelimit import RateLimit

CLOSING_TIME = 5.0
"""How many seconds stopping waits until what was appended is stored."""

AGAIN = 2.0
"""How many seconds after streams could not be made or checked that is tried again."""

HEADROOM = 8 << 20
"""How many bytes a stream may have beyond its share of ``max_size``: the lease must find room in a full one."""

NO_STORAGE = frozenset({10002, 10028, 10047})
"""JetStream's errors for a stream that a server, or the account, has no storage for."""

MAKING = 10.0
"""How many seconds making a stream may take."""

ASKING = 2.0
"""How many seconds asking for one may take: one that was just made has no leader yet, and nobody answers."""


@dataclass(frozen=True, slots=True)
class JetStreamSettings:
    """
    Which JetStream, and how deliveries are kept there.

    :param nats: its servers.
    :param replicas: how many of them keep each message: 1, 3 or 5.
    :param partitions: into how many logs each webhook's deliveries are divided; fixed when they are made.
    :param prefix: what the names of streams and subjects begin with.
    :param synced: the operator says that the servers have ``sync_interval: always``.
    """

    nats: NATSSettings
    replicas: int = 3
    partitions: int = 16
    prefix: str = "MQ"
    synced: bool = False


class JetStreamStore(Service):
    """
    All outboxes of one JetStream. It has to be started before their sinks, and stopped after them.

    :param reactor: for connections and timers.
    :param settings: where, and how.
    :param max_size: bytes of deliveries, for each webhook.
    :param dead_max: how many dead letters are kept for each webhook; the oldest make room.
    :param now: tells the time that is stored, in seconds since 1970.
    :param clock: a clock that nobody sets, in seconds.
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
    ) -> None:
        self.settings = settings
        self._reactor = reactor
        self._limits = Limits(max_size, dead_max)
        self._now = now
        self._clock = clock
        self._me = f"{socket.gethostname()}-{os.getpid()}-{token_hex(6)}"
        self._client = NATSClient(
            reactor, settings.nats, connected=self._connected, disconnected=self._disconnected, warned=self._warned
        )
        self._js = JetStream(self._client, timeout=1.0)
        self._outboxes: dict[str, JetStreamOutbox] = {}
        self._started: set[str] = set()
        self._complaints = RateLimit(reactor)
        self._problem: str | None = "not connected to NATS yet"
        self._preparing = False
        self._timer: IDelayedCall | None = None

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
            )
            if self.running:
                self._prepare()
        return self._outboxes[name]

    def resize(self, max_size: int, dead_max: int) -> None:
        """Replace the limits, which are those of the constructor; streams grow with them and never shrink."""
        self._limits.max_size, self._limits.dead_max = max_size, dead_max
        for outbox in self._outboxes.values():
            outbox.changed()
        if self.running:
            self._started.clear()
            self._prepare()

    @property
    def me(self) -> str:
        """What this process calls itself among those that share the outboxes."""
        return self._me

    @property
    def server(self) -> str | None:
        """The server of NATS that we are connected to."""
        return self._client.server

    @property
    def failing(self) -> str | None:
        """Why nothing is accepted; ``None`` when all is well."""
        if self._problem is not None:
            return self._problem
        return None if self._client.server is not None else str(self._client.problem or "not connected to NATS")

    # Starting and stopping.

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        if not self.settings.synced:
            self.log.warn(
                "outbox: unless the servers of NATS have sync_interval: always, a power failure can undo what they have "
                "acknowledged; when they have it, say sync = full"
            )
        self._client.start()

    def stopService(self) -> Deferred[None]:
        """
        Store what is not yet stored, give all partitions up, and close the connection.

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
                self.log.critical("outbox: stopped before everything was stored; what was not yet accepted is lost")
                break
            await deferLater(self._reactor, 0.02)
        # Each of its requests is answered within a second or given up.
        await DeferredList([outbox.stop() for outbox in outboxes], consumeErrors=True)
        await self._client.drain(1.0)

    def abort(self) -> Deferred[None]:
        """End as a crash would: give nothing up, close the connection."""
        if self.running:
            super().stopService()
        self._cancel()
        for outbox in self._outboxes.values():
            outbox.abort()
        return self._client.close()

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

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
        if self._preparing or not self.running or self._started >= set(self._outboxes):
            return
        self._preparing = True
        ensureDeferred(self._make()).addErrback(self._not_made).addCallback(self._made)

    def _not_made(self, failure: Any) -> None:
        if not failure.check(NATSError, OutboxError):
            self.log.failure("preparing the streams failed", failure)
        if not self.running:
            return
        problem = failure.getErrorMessage()
        if not all(outbox.started for outbox in self._outboxes.values()):
            # Otherwise only larger limits were in vain.
            self._problem = problem
        if self._complaints.allow(problem) is not None:
            self.log.error("outbox: {problem}; trying again", problem=problem)
        self._timer = self._reactor.callLater(AGAIN, self._prepare)

    def _made(self, _: object) -> None:
        self._preparing = False
        if self._problem is None:
            # A reload may have added a webhook meanwhile.
            self._prepare()

    async def _make(self) -> None:
        settings, limits = self.settings, self._limits
        names = Names(settings.prefix, "")
        # Half as many letters as deliveries may take.
        await self._stream(letters_config(names, settings.replicas, limits.dead_max, limits.max_size))
        for name, outbox in list(self._outboxes.items()):
            if name in self._started:
                continue
            share = limits.max_size // settings.partitions + HEADROOM
            made = [
                ensureDeferred(self._stream(log_config(outbox.names, number, settings.partitions, settings.replicas, share)))
                for number in range(settings.partitions)
            ]
            results: list[tuple[bool, Any]] = await DeferredList(made, consumeErrors=True)
            for done, result in results:
                if not done:
                    result.raiseException()
            info = await self._js.call(f"STREAM.INFO.{names.letters}", {"subjects_filter": outbox.names.dead}, ASKING)
            kept = (info.get("state", {}).get("subjects") or {}).get(outbox.names.dead, 0)
            self._started.add(name)
            self._problem = None
            if not outbox.started:
                outbox.start(int(kept))

    async def _stream(self, config: dict[str, Any]) -> None:
        name = config["name"]
        try:
            info = await self._js.call(f"STREAM.INFO.{name}", None, ASKING)
        except JetStreamError as error:
            if error.err_code != NO_STREAM:
                raise
            try:
                info = await self._js.call(f"STREAM.CREATE.{name}", config, MAKING)
            except JetStreamError as problem:
                raise OutboxError(_explained(name, problem)) from None
        differing = differences(config, info.get("config", {}))
        if differing:
            remedy = "give outbox the settings that it was made with, another prefix, or change it with nats stream edit"
            raise OutboxError(f"stream {name} is not as configured: {', '.join(differing)}: {remedy}")
        higher = raised(config, info["config"])
        if higher:
            try:
                await self._js.call(f"STREAM.UPDATE.{name}", {**info["config"], **higher}, MAKING)
            except JetStreamError as problem:
                raise OutboxError(_explained(name, problem)) from None


def _explained(name: str, error: JetStreamError) -> str:
    if error.err_code in NO_STORAGE or "storage" in error.description:
        return f"stream {name} cannot be made, there is too little storage ({error}): raise max_file, or lower outbox.max_size"
    if error.err_code in (10005, 10074):
        return f"stream {name} cannot be made, there are too few servers ({error}): lower outbox.replicas, or add servers"
    return f"stream {name} cannot be made: {error}"
