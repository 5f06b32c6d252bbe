"""
Settings of the gRPC source.
"""

from __future__ import annotations

from dataclasses import dataclass

GRPC_PORT = 8893
"""Default port for gRPC calls. Nothing listens there unless the configuration asks for it."""

GRPC_LISTEN = f"tcp:{GRPC_PORT}:interface=127.0.0.1"
"""The same as an endpoint string."""


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """
    Settings for taking VerneMQ's gRPC calls.

    :param listen: Twisted endpoint strings; empty for no gRPC.
    :param insecure: whether other machines may connect, although there is neither TLS nor authentication.
    """

    listen: tuple[str, ...] = ()
    insecure: bool = False
