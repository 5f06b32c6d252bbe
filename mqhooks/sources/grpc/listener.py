"""
Listening for VerneMQ's gRPC client.
"""

from __future__ import annotations

from typing import Any

from mqhooks.errors import ConfigError
from mqhooks.sources.grpc.factory import GrpcFactory
from mqhooks.sources.grpc.settings import GRPC_PORT, GrpcSettings
from mqhooks.sources.listening import SourceService
from mqhooks.support.listening import can_be_reached


class GrpcService(SourceService):
    """
    Listens for calls. When it stops, it answers those that have arrived.

    It then tells VerneMQ that it takes no further calls (GOAWAY), and VerneMQ drops events until it reconnects.

    :param reactor: listens and tells the time.
    :param settings: where to listen.
    :param factory: shared by the connections.
    :raises mqhooks.errors.ConfigError: when a description is wrong, or other machines can connect and the settings forbid it.
    """

    via = "grpc"
    awaited = "VerneMQ's gRPC"
    factory: GrpcFactory

    def __init__(self, reactor: Any, settings: GrpcSettings, factory: GrpcFactory) -> None:
        super().__init__(reactor, settings.listen, factory)
        for description in settings.listen:
            if not settings.insecure and can_be_reached(description):
                raise ConfigError(
                    f"other machines can reach {description}, and gRPC has neither TLS nor authentication here: set "
                    f"mqhooks.sources.grpc.insecure = true, or listen on tcp:{GRPC_PORT}:interface=127.0.0.1"
                )

    def limit(self, *, max_frame: int) -> None:
        """Replace the limit for a message's length."""
        self.factory.limit(max_frame=max_frame)
