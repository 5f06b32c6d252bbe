"""
Bound the memory of all webhooks together: 64 MiB of bodies, and one body more.

- Each webhook has a part of its own, so that it goes on whatever the others do: 64 MiB divided by the number of webhooks, at
  most 16 MiB.
- A body that does not fit is lent room. Only one webhook has that room at a time; the others queue for it. The body is read
  when it can be sent at once and released when its request has ended, so a webhook keeps the others waiting for one request's
  timeout at most.
"""

from __future__ import annotations

from collections.abc import Callable

LIMIT = 64 << 20
"""Bytes of bodies that all webhooks together may hold, not counting the one body more."""

SHARE = 16 << 20
"""Bytes of bodies that one webhook may hold, not counting the room that it is lent."""


class Budget:
    """
    Memory that several webhooks share, and room for one body more, which is lent to them in turn.

    :param limit: bytes to share.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._members: dict[object, tuple[Callable[[], int], Callable[[], object]]] = {}
        # Members that held more than their part when another joined, and may still do so.
        self._above: dict[object, Callable[[], int]] = {}
        self._borrower: object | None = None
        self._line: dict[object, Callable[[], object]] = {}

    def join(self, member: object, held: Callable[[], int] = int, shrunk: Callable[[], object] = int) -> None:
        """
        Add a member.

        :param held: returns the number of bytes that the member holds, not counting the room that it is lent.
        :param shrunk: called when its part has become smaller.
        """
        others = list(self._members.items())
        self._members[member] = held, shrunk
        for _, (_, other_shrunk) in others:
            other_shrunk()
        part = self.part
        self._above = {other: other_held for other, (other_held, _) in others if other_held() > part}

    def leave(self, member: object) -> None:
        """Remove a member."""
        self._members.pop(member, None)
        self._above.pop(member, None)
        self._line.pop(member, None)
        self.give_back(member)

    @property
    def part(self) -> int:
        """Bytes that each member may hold."""
        return min(SHARE, self._limit // max(len(self._members), 1))

    @property
    def exceeded(self) -> bool:
        """Whether any member holds more than its part; if not, each may use its whole part."""
        if self._above:
            part = self.part
            self._above = {member: held for member, held in self._above.items() if held() > part}
        return bool(self._above)

    @property
    def free(self) -> int:
        """Bytes that no member holds. For a while after others have joined, a member may hold more than its part."""
        return self._limit - sum([held() for held, _ in self._members.values()])

    def borrow(self, member: object, lent: Callable[[], object]) -> None:
        """
        Queue for the room of one body, unless the member is queued or has the room already.

        :param lent: called when it is the member's turn, possibly at once; the turn ends with :meth:`give_back`.
        """
        if member is not self._borrower:
            self._line.setdefault(member, lent)
            self._lend()

    def give_back(self, member: object) -> None:
        """Pass the room on to the next in the queue."""
        if member is self._borrower:
            self._borrower = None
            self._lend()

    def _lend(self) -> None:
        if self._borrower is None and self._line:
            self._borrower = next(iter(self._line))
            self._line.pop(self._borrower)()
