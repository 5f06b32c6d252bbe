"""
Many connections to one peer, as VerneMQ's events sidecar keeps them.
"""

from __future__ import annotations

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


@implementer(IPushProducer)
class Connection(Protocol):
    """
    One connection of a pool. While its peer doesn't read it is not among those that are ready.

    :param pool: where it belongs.
    """

    transport: Any

    def __init__(self, pool: ConnectionPool) -> None:
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

    def close(self) -> Deferred[None]:
        """
        Close the connection once the kernel has taken what was written.

        :returns: a ``Deferred`` that fires when it is closed.
        """
        self.ended = Deferred()
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        return self.ended

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Be given nothing: too much is unread."""
        self._pool.busy(self)

    def resumeProducing(self) -> None:
        """Be given something again."""
        self._pool.free(self)

    def stopProducing(self) -> None:
        """Do nothing more: :meth:`connectionLost` follows."""


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self._pool)


class ConnectionPool:
    """
    Keeps a number of connections open. One that is lost is opened again, after pauses that grow from 0.5 to 10 seconds.

    :param clock: for the pauses.
    :param endpoint: the peer.
    :param name: what the log calls the peer.
    :param size: how many connections.
    :param random: varies the pauses.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, endpoint: IStreamClientEndpoint, name: str, size: int, random: Random) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._name = name
        self._backoff = backoffPolicy(initialDelay=0.5, maxDelay=10.0, jitter=random.random)
        self._factory = _ConnectionFactory(self)
        self._holders: list[Deferred[None]] = []
        self._open: set[Connection] = set()
        self._closing = False
        self._complained = False
        self._why = ""
        self.size = size
        """How many connections there should be."""
        self.ready: list[Connection] = []
        """The connections that can be written to."""
        self.lost = 0
        """How many connections ended otherwise than by :meth:`close`; what was written to them last may not have arrived."""
        self.wake: Callable[[], None] = lambda: None
        """Called when a connection is ready after none was."""

    def open(self) -> Deferred[None]:
        """
        Begin to connect.

        :returns: a ``Deferred`` that fires when each connection was tried once.
        """
        tried: list[Deferred[None]] = [Deferred() for _ in range(self.size)]
        self._holders = [Deferred.fromCoroutine(self._hold(first)) for first in tried]
        return gatherResults(tried).addCallback(lambda _: self._complain())

    def close(self) -> Deferred[None]:
        """
        Close the connections, each once the kernel has taken what was written to it.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        self._closing = True
        self.ready.clear()
        for holder in self._holders:
            holder.cancel()
        return gatherResults(self._holders).addCallback(lambda _: None)

    def abort(self) -> None:
        """Close the connections at once."""
        for connection in list(self._open):
            connection.abort()

    def joined(self, connection: Connection) -> None:
        """Take in a connection that was opened."""
        self._open.add(connection)
        if self._complained:
            self._complained = False
            self.log.info("connected to {name}", name=self._name)
        self.free(connection)

    def left(self, connection: Connection, reason: Failure) -> None:
        """Let go of a connection that ended."""
        self._open.discard(connection)
        self.busy(connection)
        if not (self._closing and reason.check(ConnectionDone)):
            self.lost += 1
        if not self._closing:
            self._why = reason.getErrorMessage()
            self._complain()

    def busy(self, connection: Connection) -> None:
        """Keep a connection from being written to."""
        if connection in self.ready:
            self.ready.remove(connection)

    def free(self, connection: Connection) -> None:
        """Let a connection be written to."""
        if self._closing or connection in self.ready:
            return
        self.ready.append(connection)
        if len(self.ready) == 1:
            self.wake()

    async def _hold(self, tried: Deferred[None]) -> None:
        connection: Connection | None = None
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

    async def _connect(self) -> Connection | None:
        try:
            return cast(Connection, await self._endpoint.connect(self._factory))
        except Exception as error:
            if self._closing:
                raise CancelledError from error
            self._why = str(error)
            return None

    def _complain(self) -> None:
        if not (self._open or self._complained):
            self._complained = True
            self.log.warn("no connection to {name} ({why}); trying until there is one", name=self._name, why=self._why)
