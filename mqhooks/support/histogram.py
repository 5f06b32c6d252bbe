"""
Counting how long things take.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """
    Observations counted by size.

    :param bounds: upper limits in seconds, in ascending order; a value equal to one is within it.
    :ivar counts: how many were within each limit and beyond the one before it; the last is for what is beyond all of them.
    :ivar sum: all observations together, in seconds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def observe_all(self, values: Sequence[float]) -> None:
        """Count several, at least one."""
        counts, bounds = self.counts, self.bounds
        first = bisect_left(bounds, min(values))
        if first == bisect_left(bounds, max(values)):
            # What comes together is mostly of about the same size.
            counts[first] += len(values)
        else:
            for seconds in values:
                counts[bisect_left(bounds, seconds)] += 1
        self.sum += sum(values)

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self.counts)
