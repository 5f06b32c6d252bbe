"""
The sinks that ship, as :func:`~mqhooks.sinks.sinkFromString` finds them.
"""

from __future__ import annotations

from twisted.internet.endpoints import quoteStringArgument
from twisted.logger import Logger

from mqhooks.app.webhookblock import webhook as read_webhook
from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink
from mqhooks.nanomq.events import NANOMQ_EVENTS, TOPIC_EVENTS
from mqhooks.nanomq.hocon import Block
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.sinks.capture import CaptureSink
from mqhooks.sinks.compose import FanOut, FilterSink, SampleSink
from mqhooks.sinks.description import sinkFromString
from mqhooks.sinks.log import LogSink
from mqhooks.sinks.maker import SinkMaker

_logger = Logger()


def _make_log(reactor: object, path: str | None = None) -> IEventSink:
    if path is None:
        return LogSink(reactor)
    if not path:
        raise ConfigError("is empty; give a file, or leave it out for standard output", key="path")
    return LogSink(reactor, path)


def _make_capture(reactor: object, path: str, *, max_size: str | None = None) -> IEventSink:
    if not path:
        raise ConfigError("is empty; which file is to be written?", key="path")
    size = Block({"max_size": max_size}, "", "", []).size("max_size", 0, least=1 << 10)
    return CaptureSink(reactor, path, max_size=size)


def _make_fanout(reactor: object, *sinks: str) -> IEventSink:
    if not sinks:
        raise ConfigError(f"has no sinks; write it like {fanout.usage}")
    return FanOut([sinkFromString(reactor, description) for description in sinks])


def _make_filter(
    reactor: object,
    *,
    sink: str,
    hooks: str | None = None,
    topic: str | None = None,
    client: str | None = None,
    mountpoint: str | None = None,
) -> IEventSink:
    return FilterSink(
        sinkFromString(reactor, sink),
        hooks=None if hooks is None else _listed(hooks),
        topics=topic,
        clients=client,
        mountpoints=mountpoint,
    )


def _make_sample(reactor: object, *, share: str, sink: str) -> IEventSink:
    try:
        part = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        raise ConfigError(f"{share!r} is no share of the clients; write it like 10% or 0.1", key="share") from None
    return SampleSink(sinkFromString(reactor, sink), part)


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
) -> IEventSink:
    # An HTTP client is much to import for those who only want to know which sinks there are.
    from mqhooks.webhook.sink import WebhookSink

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
    settings = read_webhook(Block(values, f"webhook:url={quoteStringArgument(url)}", "", warnings), name)
    for text in warnings:
        _logger.warn("{text}", text=text)
    return WebhookSink(reactor, settings, MemoryOutbox())


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


log = SinkMaker("log", "log or log:path=FILE", _make_log)
capture = SinkMaker("capture", "capture:path=FILE:max_size=1GiB", _make_capture)
fanout = SinkMaker("fanout", r"fanout:SINK:SINK, each SINK's own colons written \:", _make_fanout)
filter_ = SinkMaker(
    "filter",
    r"filter:hooks=HOOK,HOOK:topic=FILTER:client=GLOB:mountpoint=NAME:sink=SINK, SINK's own colons written \:",
    _make_filter,
)
sample = SinkMaker("sample", r"sample:share=10%:sink=SINK, SINK's own colons written \:", _make_sample)
webhook = SinkMaker(
    "webhook",
    r"webhook:url=http\://HOST/PATH:events=EVENT,EVENT:topic=FILTER:encoding=base64:pool_size=32:cancel_timeout=5s:details=true",
    _make_webhook,
)
