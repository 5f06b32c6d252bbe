"""
Where gRPC calls are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

GRPC_PORT = 8893
"""Where gRPC calls are taken by default; nothing listens for them unless it is asked for."""

GRPC_LISTEN = f"tcp:{GRPC_PORT}:interface=127.0.0.1"
"""The same as an endpoint."""


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """
    Where VerneMQ's gRPC calls are taken.

    :param listen: Twisted endpoint strings; none for no gRPC.
    :param insecure: whether other machines may connect: there is neither TLS nor authentication.
    """

    listen: tuple[str, ...] = ()
    insecure: bool = False
