"""
Makes one webhook: its transport, or a sink with its own outbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.iweb import IAgent
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.events import Event
from mqhooks.http.pooled import PooledTransport
from mqhooks.http.treqtransport import TreqTransport
from mqhooks.interfaces import IEventSink, IWebhookTransport
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.support.services import OrderedService
from mqhooks.webhook.auth import AuthenticatedTransport, Credentials, credentials_for
from mqhooks.webhook.settings import AuthSettings, OAuth2Settings, WebhookSettings, check_url
from mqhooks.webhook.sink import WebhookSink
from mqhooks.webhook.tokens import FETCH_TIME, MAX_ANSWER, Tokens


def transport_for(reactor: Any, settings: WebhookSettings, agent: IAgent | None = None) -> IWebhookTransport:
    """
    Make the transport that a webhook's settings ask for.

    :param agent: sends in place of mqhooks' own connections, through no proxy but its own; its owner closes it.
    :raises mqhooks.errors.ConfigError: when requests cannot be sent to the URL, or a TLS file cannot be used.
    """
    try:
        url = check_url(settings.url)
    except ConfigError as error:
        raise ConfigError(error.message, f"webhook {settings.name}", "url") from None
    size, timeout, tls, proxy = settings.pool_size, settings.cancel_timeout, settings.tls, settings.proxy
    transport: IWebhookTransport
    if agent is not None or settings.transport == "treq":
        transport = TreqTransport(reactor, url, agent, timeout=timeout, size=size, tls=tls, proxy=proxy)
    else:
        transport = PooledTransport(reactor, url, size=size, timeout=timeout, tls=tls, proxy=proxy)
    if settings.auth is None:
        return transport
    return AuthenticatedTransport(transport, _credentials(reactor, settings.auth, settings.name, agent), settings)


def _credentials(reactor: Any, auth: AuthSettings, name: str, agent: IAgent | None) -> Credentials:
    if not isinstance(auth, OAuth2Settings):
        return credentials_for(reactor, auth)
    url, tls = auth.token_url, auth.tls
    server = TreqTransport(reactor, url, agent, timeout=FETCH_TIME, size=1, tls=tls, keep=MAX_ANSWER, proxy=auth.proxy)
    return Tokens(reactor, auth, server, name)


@implementer(IEventSink)
class StoredWebhook(OrderedService):
    """
    A webhook with its own outbox file, for compositions of sinks.

    :param reactor: connects, tells the time, and has threads.
    :param settings: the webhook's.
    :param path: the outbox's file, relative to the directory in which the service starts. The file's directory has to exist.
    :param agent: see :func:`transport_for`.
    :ivar settings: the webhook's.
    :ivar path: its outbox's file.
    :raises mqhooks.errors.ConfigError: when requests cannot be sent to the URL, or a TLS file cannot be used.
    """

    def __init__(self, reactor: Any, settings: WebhookSettings, path: str, agent: IAgent | None = None) -> None:
        super().__init__()
        self._reactor = reactor
        self.settings = settings
        self.path = path
        self._transport = transport_for(reactor, settings, agent)
        self._sink: WebhookSink | None = None

    def startService(self) -> None:
        """Open the outbox and start to deliver."""
        if self._sink is None:
            # Only now, since twistd changes its directory after the services are made.
            store = SqliteStore(self._reactor, self.path)
            self._sink = WebhookSink(self._reactor, self.settings, store.outbox(self.settings.name), self._transport)
            for child in (store, self._sink):
                child.setServiceParent(self)
        super().startService()

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Put the events that the rules want into the outbox."""
        assert self._sink is not None, "a sink receives events after it was started"
        return self._sink.receive(events)
