"""
Counters of the sidecar's stream.

Events are counted when they are handed to the sink, all other frames when they are read.
"""

from __future__ import annotations

from mqhooks.sources.counters import SourceCounters

UNKNOWN_NAMES = 64
"""Unknown types that are counted by name; further ones share the name ``other``."""


class SidecarCounters(SourceCounters):
    """
    Counters of one sidecar listener, from its start.

    ``frames = empty + unknown + malformed + events`` holds whenever no frame is unfinished, unless one was divided: more than
    1,000 topics become several events.

    :ivar frames: frames that arrived, complete or not.
    :ivar empty: frames of length zero, which VerneMQ sends for an event that it cannot encode.
    :ivar unknown: frames of a type that no hook sends, by the type's name.
    :ivar undecodable: frames that don't parse.
    :ivar oversized: frames longer than ``sidecar.max_frame`` (skipped), or than the hard limit (the connection was aborted).
    :ivar truncated: frames cut off by the end of their connection, or skipped because they came too slowly while others waited.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0
        self.empty = 0
        self.unknown: dict[str, int] = {}
        self.undecodable = 0
        self.oversized = 0
        self.truncated = 0

    @property
    def malformed(self) -> int:
        """Frames that should have become events and did not."""
        return self.undecodable + self.oversized + self.truncated

    def count_unknown(self, name: str) -> None:
        """Count a frame of an unknown type, keeping the table bounded."""
        if name not in self.unknown and len(self.unknown) >= UNKNOWN_NAMES:
            name = "other"
        self.unknown[name] = self.unknown.get(name, 0) + 1
