"""
Listening for whoever wants to know.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.guard import Guard, is_loopback
from mqhooks.admin.history import STEP
from mqhooks.admin.site import AdminFactory, Root, routes
from mqhooks.admin.status import Status
from mqhooks.admin.stream import Stream
from mqhooks.app.settings import ADMIN_LISTEN, AdminSettings
from mqhooks.errors import ConfigError, ListenError
from mqhooks.support.listening import Listener, address_name, complete


class AdminService(Service):
    """
    The status page, the API, the metrics and the health checks, on one address.

    :param reactor: listens and tells the time.
    :param bridge: what they are about.
    :param settings: where to listen, and who may ask; ``listen`` is not ``off``. The usual address need not be free: when it is
        taken, a line in the log says so.
    :raises mqhooks.errors.ConfigError: when the address is no endpoint, or others than this machine reach it and there is no
        token.
    """

    log = Logger()

    def __init__(self, reactor: Any, bridge: Bridge, settings: AdminSettings) -> None:
        self.bridge = bridge
        self._usual = settings.listen is None
        description = settings.listen or ADMIN_LISTEN
        self._listener = Listener(reactor, description)
        self.check(settings)
        status = Status(bridge, reactor)
        self._history = LoopingCall(status.history.sample)
        self._history.clock = reactor
        self._stream = Stream(status, reactor)
        self._guard = Guard(settings.token, settings.hosts)
        self._token = settings.token
        root = Root(routes(status, self._stream, reactor), self._guard)
        self._factory = AdminFactory(reactor, root)
        self._port: IListeningPort | None = None
        self._tried = False

    def check(self, settings: AdminSettings) -> None:
        """
        See whether these settings, but for ``listen``, would do here.

        :raises mqhooks.errors.ConfigError: when others than this machine reach the page, and there is no token.
        """
        description = self._listener.description
        if settings.token is None and not is_local(description):
            remedy = "set mqhooks.admin.token, or listen on tcp:8891:interface=127.0.0.1"
            raise ConfigError(f"others than this machine reach the status page, and it has no token: {remedy}", description)

    def change(self, settings: AdminSettings) -> None:
        """Have others ask from now on: who watches with another token is sent away."""
        self._guard.change(settings.token, settings.hosts)
        if settings.token != self._token:
            self._token = settings.token
            self._stream.dismiss()

    @property
    def address(self) -> Any:
        """Where it listens, as one of Twisted's addresses; ``None`` when it does not."""
        return None if self._port is None else self._port.getHost()

    def privilegedStartService(self) -> None:
        """
        Listen.

        :raises mqhooks.errors.ListenError: when the address is taken or not allowed, and not the usual one.
        """
        self._tried = True
        try:
            self._port = self._listener.listen(self._factory)
        except ListenError as error:
            if not self._usual:
                raise
            self.log.warn("{error}, with --admin-port; going on without the status page", error=error)
        else:
            self.log.info("the status page is on {address}", address=address_name(self._port.getHost()))

    def startService(self) -> None:
        """Listen, unless that was done, or tried, while there were privileges."""
        if not self._tried:
            self.privilegedStartService()
        super().startService()
        if self._port is not None:
            self._history.start(STEP, now=False)

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """
        Stop listening and close what is open.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        super().stopService()
        if self._history.running:
            self._history.stop()
        port, self._port = self._port, None
        if port is not None:
            yield maybeDeferred(port.stopListening)
        self._stream.close()
        yield self._factory.close()


def is_local(description: str) -> bool:
    """
    Say whether only this machine can connect to a listening endpoint. Of kinds that are not known nobody can say.

    :param description: as Twisted's ``serverFromString`` has it; it is completed by :func:`mqhooks.support.listening.complete`.
    """
    kind, *parts = re.split(r"(?<!\\):", complete(description))
    if kind == "unix":
        return True
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    interface = named.get("interface", "").replace("\\", "")
    return kind in ("tcp", "tcp6", "ssl") and (interface == "localhost" or is_loopback(interface))
