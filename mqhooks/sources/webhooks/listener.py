"""
Listening for VerneMQ's webhooks, and closing its connections at the end.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSource
from mqhooks.sources.handover import Watcher
from mqhooks.sources.webhooks.counters import WebhooksCounters
from mqhooks.sources.webhooks.factory import WebhooksFactory
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.support.listening import Listener, address_name, is_local


@implementer(IEventSource)
class WebhooksService(Service):
    """
    Listens on any number of endpoints; stopping it answers what was asked for and closes the connections.

    :param reactor: listens.
    :param settings: where it listens, and what it accepts.
    :param factory: what the connections share.
    :ivar factory: the same.
    :raises mqhooks.errors.ConfigError: when an endpoint is wrong, or others could post there without a token.
    """

    via = "webhooks"
    log = Logger()

    def __init__(self, reactor: Any, settings: WebhooksSettings, factory: WebhooksFactory) -> None:
        check(settings)
        self.factory = factory
        self._listeners = [Listener(reactor, description) for description in settings.listen]
        self._ports: list[IListeningPort] = []

    @property
    def counters(self) -> WebhooksCounters:
        """What has come in."""
        return self.factory.counters

    def watch(self, watcher: Watcher | None) -> None:
        """Show each batch to a watcher; see :meth:`mqhooks.interfaces.IEventSource.watch`."""
        self.factory.watch(watcher)

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
            port = listener.listen(self.factory)
            self._ports.append(port)
            self.log.info("listening for VerneMQ's webhooks on {address}", address=address_name(port.getHost()))

    def startService(self) -> None:
        """Listen, unless that was done while there were privileges."""
        super().startService()
        if not self._ports:
            self.privilegedStartService()

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Stop listening, answer what was asked for, and close what is open. What is refused then, VerneMQ loses."""
        super().stopService()
        ports, self._ports = self._ports, []
        yield gatherResults([maybeDeferred(port.stopListening) for port in ports])
        yield self.factory.close()


def check(settings: WebhooksSettings) -> None:
    """
    Check that strangers cannot post events.

    :raises mqhooks.errors.ConfigError: when an endpoint can be reached from elsewhere, and nothing has to be presented there.
    """
    for description in settings.listen:
        if not settings.locked and not is_local(description):
            remedy = "set mqhooks.sources.webhooks.token, or user and password"
            raise ConfigError(
                f"{description} can be reached from elsewhere, and anybody could post events: {remedy}",
                key="mqhooks.sources.webhooks.listen",
            )
