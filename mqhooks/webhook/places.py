"""
Places in an outbox, in the order of recall. A run of consecutive places takes no more memory than a single one.
"""

from __future__ import annotations

from collections import deque


class Places:
    """The places of a parked client's deliveries."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: deque[list[int]] = deque()

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def runs(self) -> int:
        """Number of runs of consecutive places."""
        return len(self._runs)

    @property
    def first(self) -> int:
        """The place that is recalled next."""
        return self._runs[0][0]

    @property
    def last(self) -> int:
        """The place that is recalled last."""
        return self._runs[-1][1]

    def append(self, place: int) -> None:
        """Add a place behind the others."""
        if self._runs and self._runs[-1][1] + 1 == place:
            self._runs[-1][1] = place
        else:
            self._runs.append([place, place])

    def appendleft(self, place: int) -> None:
        """Add a place before the others."""
        if self._runs and self._runs[0][0] - 1 == place:
            self._runs[0][0] = place
        else:
            self._runs.appendleft([place, place])

    def popleft(self) -> int:
        """Remove and return the first place."""
        run = self._runs[0]
        place = run[0]
        if place == run[1]:
            self._runs.popleft()
        else:
            run[0] += 1
        return place
