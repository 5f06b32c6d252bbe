"""
A pool of connections to one peer, like the pool of VerneMQ's events sidecar.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, cast

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IPushProducer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.support.names import in_words


@implementer(IPushProducer)
class PoolConnection(Protocol):
    """
    A connection of a pool. While its peer does not read, it is not among the ready ones.

    :param pool: the pool.
    """

    transport: Any

    def __init__(self, pool: SenderPool) -> None:
        self._pool = pool
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Join the pool."""
        self.transport.registerProducer(self, True)  # noqa: FBT003
        self._pool.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the pool."""
        self._pool.left(self, reason)
        self.ended.callback(None)

    def send(self, item: bytes) -> None:
        """Write a frame."""
        self.transport.write(item)

    def close(self) -> Deferred[None]:
        """
        Close the connection once the kernel has taken everything that was written.

        :returns: a ``Deferred`` that fires when it is closed.
        """
        self.ended = Deferred()
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        return self.ended

    def abort(self) -> None:
        """Abort the connection."""
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Leave the ready connections: the buffer is full."""
        self._pool.busy(self)

    def resumeProducing(self) -> None:
        """Rejoin the ready connections."""
        self._pool.free(self)

    def stopProducing(self) -> None:
        """Do nothing: :meth:`connectionLost` follows."""


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, pool: SenderPool, make: Callable[[SenderPool], PoolConnection]) -> None:
        self._pool = pool
        self._make = make

    def buildProtocol(self, addr: IAddress | None) -> PoolConnection:
        return self._make(self._pool)


class SenderPool:
    """
    Keeps a number of connections open. A lost one is opened again after a backoff of 0.5 to 10 seconds.

    :param clock: for the backoff.
    :param endpoint: connects to the peer.
    :param name: the peer's name in the log.
    :param size: number of connections.
    :param random: the source of jitter.
    :param make: makes a connection.
    :ivar answers: number of answers of each kind, if the connections get any.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: IStreamClientEndpoint,
        name: str,
        size: int,
        random: Random,
        make: Callable[[SenderPool], PoolConnection] = PoolConnection,
    ) -> None:
        self.answers: Counter[str] = Counter()
        self._clock = clock
        self._endpoint = endpoint
        self._name = name
        self._backoff = backoffPolicy(initialDelay=0.5, maxDelay=10.0, jitter=random.random)
        self._factory = _ConnectionFactory(self, make)
        self._holders: list[Deferred[None]] = []
        self._open: set[PoolConnection] = set()
        self._closing = False
        self._complained = False
        self._reason = ""
        self.size = size
        """Number of connections to keep open."""
        self.ready: list[PoolConnection] = []
        """The connections that can take frames."""
        self.lost = 0
        """Connections that ended other than by :meth:`close`: what was written to them last may be lost."""
        self.wake: Callable[[], None] = lambda: None
        """Called when a connection gets ready after none was."""

    def open(self) -> Deferred[None]:
        """
        Start connecting.

        :returns: a ``Deferred`` that fires when each connection has been tried once.
        """
        tried: list[Deferred[None]] = [Deferred() for _ in range(self.size)]
        self._holders = [Deferred.fromCoroutine(self._hold(first)) for first in tried]
        return gatherResults(tried).addCallback(lambda _: self._complain())

    @property
    def outcome(self) -> str:
        """The number of lost connections, if any, and of each kind of answer."""
        lost = [f"connections lost: {self.lost}"] if self.lost else []
        return ", ".join(lost + [f"{answer}: {count}" for answer, count in self.answers.most_common()])

    def put(self, item: bytes, random: Random) -> None:
        """Write a frame to one of the ready connections."""
        self.ready[int(random.random() * len(self.ready))].send(item)

    def close(self) -> Deferred[None]:
        """
        Close the connections, each once the kernel has taken everything that was written to it.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        self._closing = True
        self.ready.clear()
        for holder in self._holders:
            holder.cancel()
        return gatherResults(self._holders).addCallback(lambda _: None)

    def abort(self) -> None:
        """Abort all connections."""
        for connection in list(self._open):
            connection.abort()

    def joined(self, connection: PoolConnection) -> None:
        """Add a connection that was opened."""
        self._open.add(connection)
        if self._complained:
            self._complained = False
            self.log.info("connected to {name}", name=self._name)
        self.free(connection)

    def left(self, connection: PoolConnection, reason: Failure) -> None:
        """Remove a connection that has ended."""
        self._open.discard(connection)
        self.busy(connection)
        if not (self._closing and reason.check(ConnectionDone)):
            self.lost += 1
        if not self._closing:
            self._reason = in_words(reason.value)
            self._complain()

    def busy(self, connection: PoolConnection) -> None:
        """Remove a connection from the ready ones."""
        if connection in self.ready:
            self.ready.remove(connection)

    def free(self, connection: PoolConnection) -> None:
        """Add a connection to the ready ones."""
        if self._closing or connection in self.ready:
            return
        self.ready.append(connection)
        if len(self.ready) == 1:
            self.wake()

    async def _hold(self, tried: Deferred[None]) -> None:
        connection: PoolConnection | None = None
        attempt = 0
        try:
            while True:
                connection = await self._connect()
                if not tried.called:
                    tried.callback(None)
                if connection is None:
                    attempt += 1
                else:
                    attempt = 0
                    await connection.ended
                await deferLater(self._clock, self._backoff(attempt))
        except CancelledError:
            if connection in self._open:
                await connection.close()

    async def _connect(self) -> PoolConnection | None:
        try:
            return cast(PoolConnection, await self._endpoint.connect(self._factory))
        except Exception as error:
            if self._closing:
                raise CancelledError from error
            self._reason = in_words(error)
            return None

    def _complain(self) -> None:
        if not (self._open or self._complained):
            self._complained = True
            self.log.warn("no connection to {name} ({reason}); retrying", name=self._name, reason=self._reason)
