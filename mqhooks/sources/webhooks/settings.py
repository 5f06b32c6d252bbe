"""
How VerneMQ's own webhooks are received.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PayloadEncoding = Literal["base64", "text"]

PORT = 8892
"""Where VerneMQ's ``vmq_webhooks`` posts to by default."""

LISTEN = f"tcp:{PORT}:interface=127.0.0.1"
"""The same as an endpoint."""

PATH = "/vernemq"
"""The path that it posts to by default."""


@dataclass(frozen=True, slots=True)
class WebhooksSettings:
    """
    What is accepted as a request of VerneMQ's.

    :param listen: Twisted endpoints; empty for not listening.
    :param path: where requests go; their query is ignored but for the token.
    :param token: what a request must present, unless it presents user and password; ``None`` for none.
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
        """Whether requests must prove who they are."""
        return self.token is not None or self.user is not None
