"""
The service that serves the status page.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.guard import AdminGuard
from mqhooks.admin.history import STEP
from mqhooks.admin.settings import ADMIN_LISTEN, AdminSettings
from mqhooks.admin.site import AdminFactory, Root, routes
from mqhooks.admin.status import Status
from mqhooks.admin.stream import Stream
from mqhooks.errors import ConfigError, ListenError
from mqhooks.support.listening import Listener, address_name, can_be_reached, stop_listening
from mqhooks.support.loops import Loop


class AdminService(Service):
    """
    The status page, the API, the metrics and the health checks, on one address.

    :param reactor: listens and tells the time.
    :param bridge: the bridge to show.
    :param settings: where to listen and who may connect; ``listen`` is not ``off``. When the default address is taken, the
        service logs a warning and goes without the page.
    :ivar description: the endpoint to listen on.
    :raises mqhooks.errors.ConfigError: when the address is not an endpoint, or other machines can reach it without a token.
    """

    log = Logger()

    def __init__(self, reactor: Any, bridge: Bridge, settings: AdminSettings) -> None:
        self.bridge = bridge
        self._default = settings.listen is None
        self.description = settings.listen or ADMIN_LISTEN
        self._listener = Listener(reactor, self.description)
        self.check(settings)
        status = Status(bridge, reactor)
        self._history = Loop(reactor, "sampling the counters", status.history.sample)
        self._stream = Stream(status, reactor)
        self._guard = AdminGuard(settings.token, settings.hosts)
        self._token = settings.token
        root = Root(routes(status, self._stream, reactor), self._guard)
        self._factory = AdminFactory(reactor, root)
        self._port: IListeningPort | None = None
        self._tried = False

    def check(self, settings: AdminSettings) -> None:
        """
        Check settings before :meth:`change`; their ``listen`` is ignored.

        :raises mqhooks.errors.ConfigError: when other machines can reach the page without a token.
        """
        if settings.token is None and can_be_reached(self.description):
            raise ConfigError(
                "other machines can reach the status page, and it has no token: "
                "set mqhooks.admin.token, or listen on tcp:8891:interface=127.0.0.1",
                self.description,
            )

    def change(self, settings: AdminSettings) -> None:
        """Replace the token and the hosts. A new token ends all event streams."""
        self._guard.change(settings.token, settings.hosts)
        if settings.token != self._token:
            self._token = settings.token
            self._stream.dismiss()

    @property
    def address(self) -> Any:
        """Where it listens, a Twisted address; ``None`` when it does not."""
        return None if self._port is None else self._port.getHost()

    def privilegedStartService(self) -> None:
        """
        Listen.

        :raises mqhooks.errors.ListenError: when an address that was configured is taken or not allowed.
        """
        self._tried = True
        try:
            self._port = self._listener.listen(self._factory)
        except ListenError as error:
            if not self._default:
                raise
            self.log.warn("{error}, with --admin-port; continuing without the status page", error=error)
        else:
            self.log.info("the status page is on {address}", address=address_name(self._port.getHost()))

    def startService(self) -> None:
        """Listen, unless :meth:`privilegedStartService` has already tried to."""
        if not self._tried:
            self.privilegedStartService()
        super().startService()
        if self._port is not None:
            self._history.start(STEP)

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """
        Stop listening and close all connections.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        super().stopService()
        self._history.stop()
        port, self._port = self._port, None
        if port is not None:
            yield stop_listening(port)
        self._stream.close()
        yield self._factory.close()
