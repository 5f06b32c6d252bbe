"""
Counters of the gRPC source.
"""

from __future__ import annotations

from mqhooks.sources.counters import SourceCounters
from mqhooks.sources.grpc.status import STATUSES


class GrpcCounters(SourceCounters):
    """
    Counters of gRPC calls, from the source's start.

    Health checks are not counted. ``events`` may exceed the calls answered with status 0: a caller may have given up, and more
    than 1,000 topics become several events.

    :ivar calls: calls by the status that answered them; those that the caller ended first under ``CANCELLED``.
    :ivar undecodable: calls whose message is not an event.
    :ivar unknown: calls with an event of a type that no hook sends.
    :ivar orphaned: calls that began, never ended and were reset.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = dict.fromkeys(STATUSES, 0)
        self.undecodable = 0
        self.unknown = 0
        self.orphaned = 0

    @property
    def malformed(self) -> int:
        """Calls that should have brought an event and did not, except for those that never ended."""
        return self.undecodable
