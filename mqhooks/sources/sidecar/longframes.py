"""
Bounding the memory that unfinished long frames take.

- All connections together may hold a few MiB of them. Beyond that they take turns, each until its frame is complete; the others
  are paused as soon as they bring more of theirs. Short frames are never held up.
- Frames of up to a MiB have their own room and never wait for longer ones: a few slow peers must not hold up the common case.
- Whole frames may wait too, because they are worked off piece by piece (:mod:`mqhooks.sources.sidecar.pieces`). While too many
  bytes of them wait, no further long frame is begun.
- A slow peer must not cost the others more than seconds. While others wait, the connection whose turn it is must bring a share
  of its frame every few seconds, or that frame is skipped. The connection stays open, and keeps what VerneMQ has queued for it.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

LONG = 64 << 10
"""Longest frame, in bytes, that counts as short: it needs no turn."""

HELD = 4 << 20
"""Bytes of unfinished frames longer than :data:`COMMON` that all connections may hold before they take turns."""

COMMON = 1 << 20
"""Longest frame, in bytes, that counts towards :data:`HELD_COMMON` instead."""

HELD_COMMON = 32 << 20
"""Bytes of unfinished long frames of up to :data:`COMMON` that all connections may hold before they take turns."""

WHOLE = 32 << 20
"""Bytes of whole long frames that may wait to be worked off before no further one is begun."""

STALLED = 5.0
"""Seconds that a connection has to bring a share of its frame while others wait."""

SHARES = 4
"""Shares of a frame: a turn ends within 20 seconds while others wait."""


class FrameReader(Protocol):
    """
    A connection that reads frames.

    :ivar held: bytes of an unfinished long frame that it holds.
    :ivar waiting: whether it is paused until it has its turn.
    """

    held: int
    waiting: bool

    @property
    def length(self) -> int:
        """Length of that frame, in bytes."""

    def regulate(self) -> None:
        """Pause or resume reading."""

    def give_up(self) -> None:
        """Skip the unfinished frame."""


class LongFrames:
    """
    Gives connections their turns, each until its frame ends, while all of them together hold too much.

    :param reactor: tells the time.
    :param limit: bytes of unfinished frames beyond which they take turns.
    :ivar held: bytes of unfinished long frames that all of them hold.
    """

    def __init__(self, reactor: IReactorTime, limit: int) -> None:
        self._clock = reactor
        self._limit = limit
        self.held = 0
        self._whole = 0
        self._reading: FrameReader | None = None
        self._waiting: dict[FrameReader, None] = {}
        self._came = 0.0
        self._brought = 0
        self._suspected = False
        self._braked: float | None = None
        self._watch: IDelayedCall | None = None

    def note(self, reader: FrameReader, held: int) -> None:
        """
        Note the bytes that a connection holds now: fewer than before when its frame is complete, 0 when the connection ended.
        """
        grown = held - reader.held
        reader.held = held
        self.held += grown
        if reader is self._reading:
            self._brought += grown
            if self._brought * SHARES >= reader.length:
                self._came = self._clock.seconds()
                self._brought = 0
            if grown < 0:
                self._reading = None
        elif grown > 0 and (self.held > self._limit or self._whole > WHOLE):
            self._wait(reader)
        elif not held and reader in self._waiting:
            # TLS delivers bytes that it has already read, even to a paused connection.
            del self._waiting[reader]
            reader.waiting = False
            reader.regulate()
        self._go_on()

    def wait_for(self, whole: int) -> None:
        """Note the bytes of whole long frames that wait to be worked off."""
        self._whole = whole
        self._go_on()

    def brake(self, *, braked: bool) -> None:
        """Note whether backpressure pauses all connections: if so, nothing can arrive, and no connection is too slow."""
        now = self._clock.seconds()
        if braked:
            self._braked = now
        elif self._braked is not None:
            self._came += now - self._braked
            self._braked = None

    def _wait(self, reader: FrameReader) -> None:
        if self._reading is None and self._whole <= WHOLE:
            self._begin(reader)
        else:
            self._waiting[reader] = None
            reader.waiting = True
            reader.regulate()

    def _begin(self, reader: FrameReader) -> None:
        self._reading = reader
        self._came = self._clock.seconds()
        self._brought = 0
        self._suspected = False

    def _go_on(self) -> None:
        while self._waiting and self._whole <= WHOLE and (self.held <= self._limit or self._reading is None):
            reader = next(iter(self._waiting))
            del self._waiting[reader]
            if self.held > self._limit:
                self._begin(reader)
            reader.waiting = False
            reader.regulate()
        awaited = bool(self._waiting) and self._reading is not None
        if awaited and self._watch is None:
            self._watch = self._clock.callLater(STALLED, self._look)
        elif not awaited and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        """Check that the connection that others wait for makes progress."""
        self._watch = None
        left = STALLED if self._braked is not None else self._came + STALLED - self._clock.seconds()
        if left <= 0 and self._suspected and self._reading is not None:
            self._suspected = False
            self._reading.give_up()
            return
        # This process may have been busy: bytes that arrived meanwhile are read before the second look.
        self._suspected = left <= 0
        self._watch = self._clock.callLater(max(0.0, left), self._look)
