"""
Listening for VerneMQ's events sidecar stream.
"""

from __future__ import annotations

from mqhooks.sources.listening import SourceService
from mqhooks.sources.sidecar.protocol import SidecarFactory


class SidecarService(SourceService):
    """
    Listens for the stream.

    When it stops, whatever VerneMQ has written and mqhooks has not read is lost. VerneMQ notices the end, and drops events
    until it reconnects.
    """

    via = "sidecar"
    awaited = "VerneMQ"
    factory: SidecarFactory
