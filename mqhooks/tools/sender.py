"""
Writing frames as VerneMQ's events sidecar does: each to one of many connections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from struct import Struct

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mqhooks.sources.sidecar.events import HOOKS
from mqhooks.tools.pool import ConnectionPool

CHUNK = 512
"""How many events are written before the reactor may turn to something else."""

CLOSING_TIME = 5.0
"""How many seconds the peer gets to read what was written once the sender is told to stop."""

_LENGTH = Struct("!I")


def framed(content: bytes) -> bytes:
    """
    Put a frame's length before it.
    """
    return _LENGTH.pack(len(content)) + content


class Sender(Service):
    """
    Writes frames to the connections of a pool, each to one picked at random among those whose peer reads.

    It starts once each connection was tried, and waits while none is ready. What was written to a connection that breaks may be
    lost with it, as VerneMQ's events are. Which frames, and when, is the subclass's to say, in :meth:`_send`.

    :param clock: tells the time.
    :param pool: not yet opened.
    :param random: picks connections.
    :param when_done: called when all frames are sent and all connections are closed.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, pool: ConnectionPool, random: Random, when_done: Callable[[], object]) -> None:
        self._clock = clock
        self._pool = pool
        self._random = random
        self._when_done = when_done
        self._call: IDelayedCall | None = None
        self._started: float | None = None
        self._closed: Deferred[None] | None = None
        self.sent: Counter[str] = Counter()
        """How many events were written, by hook."""

    def startService(self) -> None:
        """Connect; the events follow."""
        super().startService()
        self._pool.wake = self._wake
        self._pool.open().addCallback(lambda _: self._begin())

    def stopService(self) -> Deferred[None]:
        """
        Stop sending and close the connections; a peer that doesn't read gets :data:`CLOSING_TIME` seconds.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        super().stopService()
        late = self._clock.callLater(CLOSING_TIME, self._pool.abort)
        return self._close().addCallback(lambda _: late.cancel() if late.active() else None)

    def _send(self) -> float:
        """
        Write up to about :data:`CHUNK` frames, by :meth:`_put`, while a connection is ready.

        :returns: in how many seconds there may be more to write.
        :raises StopIteration: when there is nothing left.
        """
        raise NotImplementedError

    def _put(self, hook: str, data: bytes) -> None:
        ready = self._pool.ready
        self.sent[hook] += 1
        ready[int(self._random.random() * len(ready))].transport.write(data)

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
            "sent {total} events over {size} connections in {seconds:.1f} s ({rate:.0f}/s){lost}: {hooks}",
            total=total,
            size=self._pool.size,
            seconds=seconds,
            rate=total / seconds if seconds > 0 else 0.0,
            lost=f", connections lost: {self._pool.lost}" if self._pool.lost else "",
            hooks=", ".join(f"{hook} {self.sent[hook]}" for hook in HOOKS if self.sent[hook]) or "none",
        )
