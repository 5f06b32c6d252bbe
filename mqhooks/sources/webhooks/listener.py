"""
Listening for VerneMQ's webhooks.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from mqhooks.errors import ConfigError
from mqhooks.sources.listening import SourceService
from mqhooks.sources.webhooks.factory import WebhooksFactory
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.support.listening import can_be_reached


class WebhooksService(SourceService):
    """
    Listens for requests. When it stops, it answers those that have arrived; VerneMQ loses events that are refused then.

    :param reactor: listens.
    :param settings: where it listens, and which requests it accepts.
    :param factory: shared by the connections.
    :raises mqhooks.errors.ConfigError: when an endpoint is wrong, or other machines could post without token or password.
    """

    via = "webhooks"
    awaited = "VerneMQ's webhooks"
    factory: WebhooksFactory

    def __init__(self, reactor: Any, settings: WebhooksSettings, factory: WebhooksFactory) -> None:
        check(settings)
        super().__init__(reactor, settings.listen, factory)

    def _close(self) -> Deferred[Any]:
        return self.factory.close()


def check(settings: WebhooksSettings) -> None:
    """
    Check that strangers cannot post events.

    :raises mqhooks.errors.ConfigError: when other machines can reach an endpoint, and it asks for no token or password.
    """
    for description in settings.listen:
        if not settings.locked and can_be_reached(description):
            remedy = "set mqhooks.sources.webhooks.token, or user and password"
            raise ConfigError(
                f"other machines can reach {description}, and anybody could post events: {remedy}",
                key="mqhooks.sources.webhooks.listen",
            )
