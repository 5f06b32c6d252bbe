"""
Closing the connections of a listening port.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

CLOSING_TIME = 2.0
"""Seconds that connections get to close before they are aborted."""


class ClosingFactory(WrappingFactory):
    """
    Tracks the open connections of another factory, and closes them.

    :param clock: for timeouts.
    :param factory: makes the connections' protocols.
    """

    noisy = False

    def __init__(self, clock: IReactorTime, factory: ServerFactory[Any]) -> None:
        super().__init__(factory)
        self._clock = clock
        self._empty: Deferred[None] | None = None

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802
        """Forget a connection that has ended."""
        super().unregisterProtocol(p)
        if self._empty is not None and not self.protocols:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def close(self) -> Deferred[None]:
        """
        Close all connections; requests without a response yet are abandoned.

        :returns: a ``Deferred`` that fires when all are closed, after at most :data:`CLOSING_TIME` seconds.
        """
        if not self.protocols:
            return succeed(None)
        self._empty = Deferred()
        late = self._clock.callLater(CLOSING_TIME, self._abort)
        self._empty.addCallback(lambda _: late.cancel() if late.active() else None)
        empty = self._empty
        for protocol in list(self.protocols):
            protocol.loseConnection()
        return empty

    def _abort(self) -> None:
        for protocol in list(self.protocols):
            protocol.transport.abortConnection()
