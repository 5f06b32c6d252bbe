"""
Bounding what all webhooks together hold in memory: 64 MiB of bodies, and one body.

- A webhook has a part of its own, so that it goes on whatever the others do: 64 MiB divided by the webhooks, at most 16 MiB.
- A body that does not fit is lent its room: one at a time over all webhooks, to those that want it in line. It is read when it
  can be sent at once and let go when its request has ended, so a webhook keeps the others waiting for one request's timeout at
  most.
"""

from __future__ import annotations

from collections.abc import Callable

LIMIT = 64 << 20
"""Bytes of bodies that all webhooks together hold, and one body more."""

SHARE = 16 << 20
"""Bytes of bodies that one webhook holds at most, unless it is lent room."""


class Budget:
    """
    Bytes that several webhooks share, and room for one body more that they are lent in turn.

    :param limit: how many bytes.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._members: dict[object, tuple[Callable[[], int], Callable[[], object]]] = {}
        # Those that held more than their part when others joined, and may still.
        self._above: dict[object, Callable[[], int]] = {}
        self._borrower: object | None = None
        self._line: dict[object, Callable[[], object]] = {}

    def join(self, member: object, held: Callable[[], int] = int, shrunk: Callable[[], object] = int) -> None:
        """
        Take part.

        :param held: says how many bytes the member holds, what it is lent left out.
        :param shrunk: called when its part has become smaller.
        """
        others = list(self._members.items())
        self._members[member] = held, shrunk
        for _, (_, other_shrunk) in others:
            other_shrunk()
        part = self.part
        self._above = {other: other_held for other, (other_held, _) in others if other_held() > part}

    def leave(self, member: object) -> None:
        """Take part no longer."""
        self._members.pop(member, None)
        self._above.pop(member, None)
        self._line.pop(member, None)
        self.give_back(member)

    @property
    def part(self) -> int:
        """How many bytes each may hold."""
        return min(SHARE, self._limit // max(len(self._members), 1))

    @property
    def exceeded(self) -> bool:
        """Whether anybody holds more than its part; if not, each may hold its own."""
        if self._above:
            part = self.part
            self._above = {member: held for member, held in self._above.items() if held() > part}
        return bool(self._above)

    @property
    def free(self) -> int:
        """How many bytes nobody holds; some may hold more than their part for a while after others have joined."""
        return self._limit - sum([held() for held, _ in self._members.values()])

    def borrow(self, member: object, lent: Callable[[], object]) -> None:
        """
        Stand in line for the room of one body, unless the member does or has it already.

        :param lent: called when it is the member's turn, possibly at once; :meth:`give_back` ends it.
        """
        if member is not self._borrower:
            self._line.setdefault(member, lent)
            self._lend()

    def give_back(self, member: object) -> None:
        """Leave the room to the next in line."""
        if member is self._borrower:
            self._borrower = None
            self._lend()

    def _lend(self) -> None:
        if self._borrower is None and self._line:
            self._borrower = next(iter(self._line))
            self._line.pop(self._borrower)()
