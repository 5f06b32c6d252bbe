"""
The settings of the status page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ADMIN_LISTEN = "tcp:8891"
"""The default endpoint of the status page."""

TOKEN = re.compile(r"[!-~]{16,}")
"""The form of a token in :class:`AdminSettings`: it has to fit into a header."""


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """
    The status page, the API and the metrics.

    :param listen: a Twisted endpoint; ``off`` for none; ``None`` for :data:`ADMIN_LISTEN`, unless that address is taken.
    :param token: the token that requests must present; ``None`` for no authentication.
    :param hosts: host names that requests may use, besides the loopback's and the address itself.
    """

    listen: str | None = None
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
