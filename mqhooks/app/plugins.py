"""
Sink plugins that need several rooms: ``webhook``, with its own outbox, and ``capture``, which needs the encoder.
"""

from __future__ import annotations

from twisted.internet.endpoints import quoteStringArgument
from twisted.logger import Logger

from mqhooks.app.webhookblock import webhook as read_webhook
from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.block import Block
from mqhooks.nanomq.events import NANOMQ_EVENTS, TOPIC_EVENTS
from mqhooks.sinks.maker import SinkMaker
from mqhooks.support.redact import hide_url

_logger = Logger()


def _make_webhook(
    reactor: object,
    *,
    url: str,
    events: str | None = None,
    topic: str | None = None,
    encoding: str | None = None,
    pool_size: str | None = None,
    cancel_timeout: str | None = None,
    details: str | None = None,
    name: str = "webhook",
    outbox: str | None = None,
) -> IEventSink:
    # Listing the plugins should not import an HTTP client.
    from mqhooks.app.webhooks import StoredWebhook

    every = [event for event in NANOMQ_EVENTS if topic is None or event in TOPIC_EVENTS]
    values = {
        "url": url,
        "events": [{"event": event, "topic": topic} for event in (every if events is None else _listed(events))],
        "body": {"encoding": encoding},
        "pool_size": pool_size,
        "cancel_timeout": cancel_timeout,
        "details": details,
    }
    warnings: list[str] = []
    settings = read_webhook(Block(values, f"webhook:url={quoteStringArgument(hide_url(url))}", "", warnings), name)
    for text in warnings:
        _logger.warn("{text}", text=text)
    return StoredWebhook(reactor, settings, outbox or f"mqhooks-outbox-{name}")


def _make_capture(reactor: object, path: str, *, max_size: str | None = None) -> IEventSink:
    from mqhooks.sinks.capture import CaptureSink
    from mqhooks.sources.sidecar.encode import encode

    if not path:
        raise ConfigError("is empty; give a file", key="path")
    size = Block({"max_size": max_size}, "", "", []).size("max_size", 0, least=1 << 10)
    return CaptureSink(reactor, path, encode, max_size=size)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


webhook = SinkMaker(
    "webhook",
    r"webhook:url=http\://HOST/PATH:events=EVENT,EVENT:topic=FILTER:encoding=base64:pool_size=32:cancel_timeout=5s:details=true:outbox=FILE",
    _make_webhook,
)
capture = SinkMaker("capture", "capture:path=FILE:max_size=1GiB", _make_capture)
