"""
Settings of the source for VerneMQ's own webhooks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PayloadEncoding = Literal["base64", "text"]

PORT = 8892
"""Default port for VerneMQ's ``vmq_webhooks``."""

LISTEN = f"tcp:{PORT}:interface=127.0.0.1"
"""The same as an endpoint string."""

PATH = "/vernemq"
"""Default path of the requests."""


@dataclass(frozen=True, slots=True)
class WebhooksSettings:
    """
    Settings that decide which requests are accepted as VerneMQ's.

    :param listen: Twisted endpoints; empty for not listening.
    :param path: the requests' path; of their query only the token is read.
    :param token: token that a request must present, unless it presents user and password; ``None`` for none.
    :param user: for Basic authentication; ``None`` for none.
    :param password: likewise.
    :param max_body: bytes; longer bodies are refused.
    :param payload_encoding: how VerneMQ writes payloads: ``base64``, or ``text`` with its ``base64encode = off``.
    """

    listen: tuple[str, ...] = ()
    path: str = PATH
    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    max_body: int = 16 << 20
    payload_encoding: PayloadEncoding = "base64"

    @property
    def locked(self) -> bool:
        """Whether requests must present a token or a password."""
        return self.token is not None or self.user is not None
