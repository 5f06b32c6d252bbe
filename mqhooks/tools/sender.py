"""
Sending events at a given pace, as VerneMQ does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from struct import Struct
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mqhooks.events import HOOKS

CHUNK = 512
"""Events written in one turn of the reactor."""

CLOSING_TIME = 5.0
"""Seconds that the peer gets, when the sender stops, to read everything that was written."""

_LENGTH = Struct("!I")


def framed(content: bytes) -> bytes:
    """Prefix a frame with its length."""
    return _LENGTH.pack(len(content)) + content


class Pool(Protocol):
    """
    Where a sender's events go.

    :ivar size: most connections or calls.
    :ivar wake: called when it is ready after it was not.
    """

    size: int
    wake: Callable[[], None]

    @property
    def outcome(self) -> str:
        """The fate of the sent items, as far as it is known, for the log."""

    @property
    def ready(self) -> object:
        """Whether it takes an item now."""

    def open(self) -> Deferred[None]:
        """Get ready, and return a ``Deferred`` that fires when sending may begin."""

    def put(self, item: Any, random: Random) -> None:
        """Send an item."""

    def close(self) -> Deferred[None]:
        """Finish, and return a ``Deferred`` that fires when everything is closed."""

    def abort(self) -> None:
        """End at once."""


class Sender(Service):
    """
    Sends events through a pool.

    It starts once the pool is open, and waits while it is not ready. Events written to a connection that breaks may be lost, as
    VerneMQ's are. Subclasses decide in :meth:`_send` which events go out, and when.

    :param clock: tells the time.
    :param pool: not yet opened.
    :param random: picks connections.
    :param when_done: called when all frames are sent and all connections are closed.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, pool: Pool, random: Random, when_done: Callable[[], object]) -> None:
        self._clock = clock
        self._pool = pool
        self._random = random
        self._when_done = when_done
        self._call: IDelayedCall | None = None
        self._started: float | None = None
        self._closed: Deferred[None] | None = None
        self.sent: Counter[str] = Counter()
        """Events written, by hook."""

    def startService(self) -> None:
        """Connect, then send."""
        super().startService()
        self._pool.wake = self._wake
        self._pool.open().addCallback(lambda _: self._begin())

    def stopService(self) -> Deferred[None]:
        """
        Stop sending and close the connections; a peer that does not read gets :data:`CLOSING_TIME` seconds.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        super().stopService()
        late = self._clock.callLater(CLOSING_TIME, self._pool.abort)
        return self._close().addCallback(lambda _: late.cancel() if late.active() else None)

    def _send(self) -> float:
        """
        Send up to about :data:`CHUNK` events with :meth:`_put`, as long as the pool is ready.

        :returns: seconds until there may be more to write.
        :raises StopIteration: when there is nothing left.
        """
        raise NotImplementedError

    def _put(self, hook: str, item: Any) -> None:
        self.sent[hook] += 1
        self._pool.put(item, self._random)

    def _begin(self) -> None:
        self._started = self._clock.seconds()
        self._wake()

    def _wake(self) -> None:
        if self._started is not None and self._closed is None and self._call is None and self._pool.ready:
            self._call = self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._call = None
        try:
            pause = self._send()
        except StopIteration:
            self._close().addCallback(lambda _: self._when_done() if self.running else None)
            return
        if self._pool.ready:
            self._call = self._clock.callLater(pause, self._turn)

    def _close(self) -> Deferred[None]:
        if self._closed is None:
            if self._call is not None:
                self._call.cancel()
                self._call = None
            self._closed = self._pool.close().addCallback(lambda _: self._summarise())
        waiting: Deferred[None] = Deferred()
        self._closed.addCallback(lambda _: waiting.callback(None))
        return waiting

    def _summarise(self) -> None:
        began = self._clock.seconds() if self._started is None else self._started
        seconds = self._clock.seconds() - began
        total = self.sent.total()
        self.log.info(
            "sent {total} events over {size} connections in {seconds:.1f} s ({rate:.0f}/s){outcome}: {hooks}",
            total=total,
            size=self._pool.size,
            seconds=seconds,
            rate=total / seconds if seconds > 0 else 0.0,
            outcome=f", {self._pool.outcome}" if self._pool.outcome else "",
            hooks=", ".join(f"{hook} {self.sent[hook]}" for hook in HOOKS if self.sent[hook]) or "none",
        )
