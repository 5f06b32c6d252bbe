"""
Listening for VerneMQ's gRPC client, and closing its connections at the end.

The service starts last and stops first: calls that are here still find their sinks running, and are answered.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSource
from mqhooks.sources.grpc.counters import GrpcCounters
from mqhooks.sources.grpc.factory import GrpcFactory
from mqhooks.sources.grpc.protocol import CLOSING_TIME
from mqhooks.sources.grpc.settings import GRPC_PORT, GrpcSettings
from mqhooks.sources.handover import Watcher
from mqhooks.support.listening import Listener, address_name, is_local


@implementer(IEventSource)
class GrpcService(Service):
    """
    Listens on any number of endpoints; stopping it answers what is in flight, and closes their connections.

    :param reactor: listens and tells the time.
    :param settings: where to listen.
    :param factory: what the connections share.
    :raises mqhooks.errors.ConfigError: when a description is wrong, or other machines can connect without the settings' leave.
    """

    via = "grpc"
    log = Logger()

    def __init__(self, reactor: Any, settings: GrpcSettings, factory: GrpcFactory) -> None:
        self._factory = factory
        self._clock: IReactorTime = reactor
        self._listeners = [Listener(reactor, description) for description in settings.listen]
        for description in settings.listen:
            if not settings.insecure and not is_local(description):
                raise ConfigError(
                    f"other machines can reach {description}, and gRPC has neither TLS nor authentication here: set "
                    f"mqhooks.sources.grpc.insecure = true, or listen on tcp:{GRPC_PORT}:interface=127.0.0.1"
                )
        self._ports: list[IListeningPort] = []

    @property
    def counters(self) -> GrpcCounters:
        """What has come in."""
        return self._factory.counters

    def watch(self, watcher: Watcher | None) -> None:
        """Show each batch to a watcher; see :meth:`mqhooks.interfaces.IEventSource.watch`."""
        self._factory.watch(watcher)

    def limit(self, *, max_frame: int) -> None:
        """Replace the longest message's length."""
        self._factory.limit(max_frame=max_frame)

    @property
    def addresses(self) -> list[Any]:
        """Where it listens, as Twisted's addresses."""
        return [port.getHost() for port in self._ports]

    def privilegedStartService(self) -> None:
        """
        Listen; what connects is read once the reactor runs.

        :raises mqhooks.errors.ListenError: when an address is taken or not allowed.
        """
        for listener in self._listeners:
            port = listener.listen(self._factory)
            self._ports.append(port)
            self.log.info("listening for VerneMQ's gRPC on {address}", address=address_name(port.getHost()))

    def startService(self) -> None:
        """Listen, unless that was done while there were privileges."""
        super().startService()
        if not self._ports:
            self.privilegedStartService()

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """
        Stop listening, answer the calls that are here, and close their connections, in at most :data:`CLOSING_TIME` seconds.

        VerneMQ is told that no further calls are taken (GOAWAY), and drops events until it reconnects.
        """
        super().stopService()
        ports, self._ports = self._ports, []
        yield gatherResults([maybeDeferred(port.stopListening) for port in ports])
        for protocol in list(self._factory.connections):
            protocol.close()
        late = self._clock.callLater(CLOSING_TIME, self._factory.give_up)
        yield self._factory.when_empty()
        if late.active():
            late.cancel()
