"""
Keeping long frames that are not whole yet within bounds.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

LONG = 64 << 10
"""A frame of fewer bytes is not held against its connection."""

HELD = 4 << 20
"""How many bytes of unfinished long frames all connections hold together before their frames are read one after the other."""

STALLED = 30.0
"""In how many seconds a connection must send more of its frame while others wait for it."""

PROGRESS = 64 << 10
"""How many bytes it must send of it in that time, or all that is left."""


class Reader(Protocol):
    """
    A connection that reads frames.

    :ivar held: how many bytes of an unfinished long frame it holds.
    :ivar waiting: whether it is not to be read.
    """

    held: int
    waiting: bool

    def regulate(self) -> None:
        """Read, or don't."""

    def stalled(self, seconds: float) -> None:
        """Give up: others have waited for the frame's end for too long."""


class LongFrames:
    """
    Lets connections read on one by one, each to its frame's end, while all of them together hold too much.

    :param reactor: tells the time.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._clock = reactor
        self._held = 0
        self._reading: Reader | None = None
        self._waiting: dict[Reader, None] = {}
        self._came = 0.0
        self._brought = 0
        self._braked: float | None = None
        self._watch: IDelayedCall | None = None

    def note(self, reader: Reader, held: int) -> None:
        """
        Take note of how much a connection holds now: less than before when its frame has become whole, 0 when it ended.
        """
        grown = held - reader.held
        reader.held = held
        self._held += grown
        if reader is self._reading:
            self._brought += grown
            if self._brought >= PROGRESS:
                self._came = self._clock.seconds()
                self._brought = 0
            if grown < 0:
                self._reading = None
        elif grown > 0 and self._held > HELD:
            self._wait(reader)
        elif not held and reader in self._waiting:
            # TLS delivers what it has read already, also to who is not to be read.
            del self._waiting[reader]
            reader.waiting = False
            reader.regulate()
        self._go_on()

    def brake(self, *, braked: bool) -> None:
        """Note whether no connection at all is read: nobody can be blamed for what does not come then."""
        now = self._clock.seconds()
        if braked:
            self._braked = now
        elif self._braked is not None:
            self._came += now - self._braked
            self._braked = None

    def _wait(self, reader: Reader) -> None:
        if self._reading is None:
            self._begin(reader)
        else:
            self._waiting[reader] = None
            reader.waiting = True
            reader.regulate()

    def _begin(self, reader: Reader) -> None:
        self._reading = reader
        self._came = self._clock.seconds()
        self._brought = 0

    def _go_on(self) -> None:
        while self._waiting and (self._held <= HELD or self._reading is None):
            reader = next(iter(self._waiting))
            del self._waiting[reader]
            if self._held > HELD:
                self._begin(reader)
            reader.waiting = False
            reader.regulate()
        if self._waiting and self._watch is None:
            self._watch = self._clock.callLater(STALLED, self._look)
        elif not self._waiting and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        """See whether the one that others wait for makes progress."""
        self._watch = None
        left = STALLED if self._braked is not None else self._came + STALLED - self._clock.seconds()
        if left > 0:
            self._watch = self._clock.callLater(left, self._look)
        elif self._reading is not None:
            self._reading.stalled(STALLED)
