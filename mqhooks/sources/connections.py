"""
Base classes for a source's connections: the set of open ones, and their way to the sink.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.python.failure import Failure

from mqhooks.interfaces import IEventSink
from mqhooks.sources.counters import SourceCounters
from mqhooks.sources.handover import Handover, Watcher
from mqhooks.support.listening import address_name


class SourceProtocol(Protocol):
    """One connection of a source. A subclass's ``dataReceived`` hands over what it reads."""

    factory: SourceFactory

    @property
    def peer(self) -> str:
        """The peer's address, for the log."""
        assert self.transport is not None
        return address_name(self.transport.getPeer())

    def connectionMade(self) -> None:
        """Note a new connection."""
        self.factory.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note that the connection ended."""
        self.factory.left(self)

    def close(self) -> None:
        """Close the connection in order."""
        assert self.transport is not None
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()


class SourceFactory(ServerFactory):
    """
    Makes the protocols of a source's connections, and keeps track of the open ones.

    A protocol calls :meth:`joined` and :meth:`left`, and hands events to the factory's ``handover``. Like
    :class:`SourceProtocol`, it has ``close()``, which closes the connection in order, and ``abort()``.

    :param sink: gets the events. The factory neither starts nor stops it.
    :param counters: the source's counters.
    :ivar counters: the same.
    :ivar handover: the way to the sink.
    :ivar connections: the open connections.
    """

    noisy = False

    def __init__(self, sink: IEventSink, counters: SourceCounters) -> None:
        self.counters = counters
        self.handover = Handover(sink, counters)
        self.connections: set[Any] = set()
        self._emptied: list[Deferred[None]] = []

    def watch(self, watcher: Watcher | None) -> None:
        """Show each batch to a watcher; see :meth:`mqhooks.interfaces.IEventSource.watch`."""
        self.handover.watcher = watcher

    def joined(self, protocol: Any) -> None:
        """Note a new connection."""
        self.connections.add(protocol)
        self.counters.connections = len(self.connections)

    def left(self, protocol: Any) -> None:
        """Note that a connection ended."""
        self.connections.discard(protocol)
        self.counters.connections = len(self.connections)
        self.tell_empty()

    @property
    def empty(self) -> bool:
        """Whether no connection is open and nothing waits to be handed over."""
        return not self.connections

    def when_empty(self) -> Deferred[None]:
        """Return a ``Deferred`` that fires when the source is :attr:`empty`."""
        deferred: Deferred[None] = Deferred()
        self._emptied.append(deferred)
        self.tell_empty()
        return deferred

    def tell_empty(self) -> None:
        """If the source is empty, fire the deferreds of :meth:`when_empty`."""
        if self.empty:
            waiting, self._emptied = self._emptied, []
            for deferred in waiting:
                deferred.callback(None)

    def give_up(self) -> None:
        """Abort all connections."""
        for protocol in list(self.connections):
            protocol.abort()
        self.tell_empty()
