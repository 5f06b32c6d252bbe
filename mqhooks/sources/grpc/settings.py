"""
Where gRPC calls are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

GRPC_PORT = 8893
"""The port that the documentation uses. Nothing listens for gRPC unless it is asked for."""


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """
    Where VerneMQ's gRPC calls are taken.

    :param listen: Twisted endpoint strings; none for no gRPC.
    :param insecure: whether other machines may connect: there is neither TLS nor authentication.
    """

    listen: tuple[str, ...] = ()
    insecure: bool = False
