"""
Services that start and stop in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from mqhooks.errors import MqhooksError


class StartFailed(SystemExit, Exception):
    """
    A service cannot start: the process ends with this one line and status 1.

    It is a ``SystemExit``, so that Python prints the line and no traceback. It is an ``Exception`` too because a daemon's
    ``twistd`` handles only those: it reports the failure to the waiting parent and removes its pid file.
    """


class OrderedService(MultiService):
    """
    Starts its children one after the other, and stops them in reverse, each once the one after it has stopped.

    A child that cannot start (:class:`~mqhooks.errors.MqhooksError`) ends the process with one line and exit status 1.

    :param children: dependencies first: an outbox, the sinks, and last the listener.
    :param program: the name that the line begins with.
    """

    log = Logger()

    def __init__(self, children: Iterable[IService] = (), *, program: str = "mqhooks") -> None:
        super().__init__()
        self._program = program
        for child in children:
            child.setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Start the privileged part of all children."""
        try:
            super().privilegedStartService()
        except MqhooksError as error:
            raise StartFailed(f"{self._program}: {error}") from None

    def startService(self) -> None:
        """Start all children."""
        try:
            super().startService()
        except (MqhooksError, StartFailed) as error:
            self._stop_started()
            raise error if isinstance(error, StartFailed) else StartFailed(f"{self._program}: {error}") from None

    def _stop_started(self) -> None:
        # A running thread would keep the process alive. The reactor is not running, so nothing can wait for the children.
        self.running = 0
        for child in reversed([child for child in self if getattr(child, "running", False)]):
            maybeDeferred(child.stopService).addErrback(self._not_stopped, child)

    def _not_stopped(self, failure: Failure, child: IService) -> None:
        self.log.failure("{child} failed to stop", failure, child=child)

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """
        Stop all children, the last one first.

        :returns: a ``Deferred`` that fires when all have stopped. A failure is logged, and the others are still stopped.
        """
        self.running = 0
        for child in reversed(list(self)):
            try:
                yield maybeDeferred(child.stopService)
            except Exception:
                self.log.failure("{child} failed to stop", child=child)


class DaemonService(OrderedService):
    """
    Says on the terminal why a daemon cannot start; twistd itself passes on at most 100 bytes of that line.

    :param children: see :class:`OrderedService`.
    """

    def __init__(self, children: Iterable[IService]) -> None:
        super().__init__(children)
        # A daemon's standard error leads nowhere.
        self._terminal: int | None = os.dup(2)

    def privilegedStartService(self) -> None:
        """Start the privileged part of all children."""
        with self._telling():
            super().privilegedStartService()

    def startService(self) -> None:
        """Start all children, and leave the terminal."""
        with self._telling():
            super().startService()
        self._leave()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except StartFailed as error:
            if self._terminal is not None:
                with suppress(OSError):
                    os.write(self._terminal, f"{error}\n".encode(errors="backslashreplace"))
                self._leave()
            raise

    def _leave(self) -> None:
        terminal, self._terminal = self._terminal, None
        if terminal is not None:
            os.close(terminal)


class LoggedService(OrderedService):
    """
    Sets the log observer of the application that it becomes part of, unless the application has one.

    :param children: see :class:`OrderedService`.
    :param observer: makes the observer when logging begins.
    """

    def __init__(self, children: Iterable[IService], observer: Callable[[], ILogObserver]) -> None:
        super().__init__(children)
        self._observer = observer

    def setServiceParent(self, parent: Any) -> None:
        """Become part of an application or of another service."""
        if isinstance(parent, Componentized) and parent.getComponent(ILogObserver) is None:
            try:
                parent.setComponent(ILogObserver, self._observer())
            except MqhooksError as error:
                raise StartFailed(f"mqhooks: {error}") from None
        super().setServiceParent(parent)
