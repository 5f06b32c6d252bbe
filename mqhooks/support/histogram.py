"""
Histograms of durations.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """
    Durations counted by bucket.

    :param bounds: the buckets' upper bounds in seconds, ascending and inclusive.
    :ivar counts: observations in each bucket; the last counts those above all bounds.
    :ivar sum: the sum of all observations, in seconds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """How many observations were made."""
        return sum(self.counts)
