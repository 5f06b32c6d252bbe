"""
Starting and stopping in order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from mqhooks.errors import MqhooksError


class OrderedService(MultiService):
    """
    Starts its children one after the other, and stops them in the reverse order, each when the one after it has stopped.

    A child that cannot start (:class:`~mqhooks.errors.MqhooksError`) ends the process with that one line and exit status 1.

    :param children: what the others need stands before them: an outbox, the sinks, and last the listener.
    """

    log = Logger()

    def __init__(self, children: Iterable[IService] = ()) -> None:
        super().__init__()
        for child in children:
            child.setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Start what needs privileges."""
        try:
            super().privilegedStartService()
        except MqhooksError as error:
            raise SystemExit(f"mqhooks: {error}") from None

    def startService(self) -> None:
        """Start all children."""
        try:
            super().startService()
        except MqhooksError as error:
            raise SystemExit(f"mqhooks: {error}") from None

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """
        Stop all children, the last one first.

        :returns: a ``Deferred`` that fires when all have stopped; one that fails is logged and stops none of the others.
        """
        self.running = 0
        for child in reversed(list(self)):
            try:
                yield maybeDeferred(child.stopService)
            except Exception:
                self.log.failure("{child} did not stop in order", child=child)


class LoggedService(OrderedService):
    """
    As the service of an application it has the log written as it is told; an observer that the application has already stays.

    :param children: as for :class:`OrderedService`.
    :param observer: makes the log's observer, once the log begins.
    """

    def __init__(self, children: Iterable[IService], observer: Callable[[], ILogObserver]) -> None:
        super().__init__(children)
        self._observer = observer

    def setServiceParent(self, parent: Any) -> None:
        """Become part of an application or of another service."""
        if isinstance(parent, Componentized) and parent.getComponent(ILogObserver) is None:
            parent.setComponent(ILogObserver, self._observer())
        super().setServiceParent(parent)
