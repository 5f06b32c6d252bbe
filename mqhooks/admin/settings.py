"""
The settings of the status page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ADMIN_LISTEN = "tcp:8891"
"""Where the status page listens by default."""

TOKEN = re.compile(r"[!-~]{16,}")
"""What a token of :class:`AdminSettings` looks like: it has to fit into a header."""


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """
    The status page, the API and the metrics.

    :param listen: a Twisted endpoint; ``off`` for none; ``None`` for :data:`ADMIN_LISTEN`, unless that address is taken.
    :param token: what a request must present; ``None`` for no authentication.
    :param hosts: host names the page may be called by, besides the loopback's and the address itself.
    """

    listen: str | None = None
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
