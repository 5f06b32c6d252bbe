"""
Plugins for the sinks that need only events; :mod:`mqhooks.app.plugins` has the others.
"""

from __future__ import annotations

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink
from mqhooks.sinks.compose import FanOut, FilterSink, SampleSink
from mqhooks.sinks.description import sinkFromString
from mqhooks.sinks.log import LogSink
from mqhooks.sinks.maker import SinkMaker


def _make_log(reactor: object, path: str | None = None) -> IEventSink:
    if path is None:
        return LogSink(reactor)
    if not path:
        raise ConfigError("is empty; give a file, or leave it out for standard output", key="path")
    return LogSink(reactor, path)


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
        raise ConfigError(f"{share!r} is not a share of the clients; write it like 10% or 0.1", key="share") from None
    return SampleSink(sinkFromString(reactor, sink), part)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


log = SinkMaker("log", "log or log:path=FILE", _make_log)
fanout = SinkMaker("fanout", r"fanout:SINK:SINK, each SINK's own colons written \:", _make_fanout)
filter_ = SinkMaker(
    "filter",
    r"filter:hooks=HOOK,HOOK:topic=FILTER:client=GLOB:mountpoint=NAME:sink=SINK, SINK's own colons written \:",
    _make_filter,
)
sample = SinkMaker("sample", r"sample:share=10%:sink=SINK, SINK's own colons written \:", _make_sample)
