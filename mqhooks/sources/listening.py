"""
The service of every source: listens for VerneMQ, and closes its connections at the end.

A source starts last and stops first, so its sinks are running whenever an event arrives. It closes connections instead of
leaving that to the end of the process, so that VerneMQ notices at once.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.interfaces import IEventSource
from mqhooks.sources.connections import SourceFactory
from mqhooks.sources.counters import SourceCounters
from mqhooks.sources.handover import Watcher
from mqhooks.support.listening import Listener, address_name, stop_listening

CLOSING_TIME = 2.0
"""Seconds for open connections to take their last answers and close, before they are aborted."""


@implementer(IEventSource)
class SourceService(Service):
    """
    Listens on any number of endpoints. Stopping it also closes their connections.

    :param reactor: listens and tells the time.
    :param descriptions: strings for Twisted's ``serverFromString``, completed by :func:`mqhooks.support.listening.complete`.
    :param factory: shared by the connections.
    :ivar factory: the same.
    :cvar via: the source's short name, for example ``sidecar``.
    :cvar awaited: the peer that it listens for, for the log.
    :raises mqhooks.errors.ConfigError: when a description is wrong.
    """

    via: str
    awaited: str
    log = Logger()

    def __init__(self, reactor: Any, descriptions: Sequence[str], factory: SourceFactory) -> None:
        self.factory = factory
        self._clock: IReactorTime = reactor
        self._listeners = [Listener(reactor, description) for description in descriptions]
        self._ports: list[IListeningPort] = []

    @property
    def counters(self) -> SourceCounters:
        """The source's counters."""
        return self.factory.counters

    def watch(self, watcher: Watcher | None) -> None:
        """Show each batch to a watcher; see :meth:`mqhooks.interfaces.IEventSource.watch`."""
        self.factory.watch(watcher)

    @property
    def addresses(self) -> list[Any]:
        """The addresses that it listens on, as Twisted's address objects."""
        return [port.getHost() for port in self._ports]

    def privilegedStartService(self) -> None:
        """
        Listen. Connections are read once the reactor runs.

        :raises mqhooks.errors.ListenError: when an address is taken or not allowed.
        """
        for listener in self._listeners:
            port = listener.listen(self.factory)
            self._ports.append(port)
            self.log.info("listening for {awaited} on {address}", awaited=self.awaited, address=address_name(port.getHost()))

    def startService(self) -> None:
        """Listen, unless :meth:`privilegedStartService` already does."""
        super().startService()
        if not self._ports:
            self.privilegedStartService()

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Stop listening, then close open connections, waiting at most :data:`CLOSING_TIME` seconds for them."""
        super().stopService()
        ports, self._ports = self._ports, []
        yield gatherResults(map(stop_listening, ports))
        yield self._close()

    @inlineCallbacks
    def _close(self) -> Generator[Deferred[Any], Any, None]:
        for protocol in list(self.factory.connections):
            protocol.close()
        late = self._clock.callLater(CLOSING_TIME, self.factory.give_up)
        yield self.factory.when_empty()
        if late.active():
            late.cancel()
