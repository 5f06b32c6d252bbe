"""
The sinks besides the webhooks, as the status page shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from twisted.application.service import IServiceCollection
from twisted.logger import Logger

from mqhooks.admin.plain import HIDDEN, plain
from mqhooks.interfaces import IEventSink, IShownSink
from mqhooks.support.redact import hide_url
from mqhooks.webhook.sink import WebhookSink

_log = Logger()

_PART = re.compile(r"(?:[^\\:]|\\.)+", re.DOTALL)
_KEYED = re.compile(r"([a-z_][a-z0-9_]*)=(.*)", re.DOTALL | re.ASCII)
_SECRET = re.compile("pass|secret|token|key|credential|auth")


def shown_description(description: str) -> str:
    """
    Show the description of a sink, without escapes and without what may be a secret in it.

    :param description: as ``--sink`` takes it.
    """
    return ":".join(_part(re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)) for raw in _PART.findall(description))


def _part(part: str) -> str:
    keyed = _KEYED.fullmatch(part)
    key, value = ("", part) if keyed is None else (f"{keyed[1]}=", keyed[2])
    if key and _SECRET.search(key):
        return key + HIDDEN
    if "://" in value and "\\" not in value:
        return key + hide_url(value)
    # Any other value with a colon is the description of another sink.
    return key + (shown_description(value) if ":" in value else value)


def shown_sinks(sinks: Mapping[str, IEventSink]) -> list[dict[str, Any]]:
    """
    List each sink, and the sinks that it is made of, with name, class, whether it runs, and the values that it shows.
    """
    return [line for name, sink in sinks.items() for line in _lines(name, sink)]


def _lines(name: str, sink: IEventSink) -> Iterator[dict[str, Any]]:
    yield {"name": name, "class": type(sink).__qualname__, "running": bool(sink.running), "shown": _shown(sink)}
    if IServiceCollection.providedBy(sink):
        for child in sink:
            if IEventSink.providedBy(child):
                own = f"webhook {child.settings.name}" if isinstance(child, WebhookSink) else type(child).__qualname__
                yield from _lines(f"{name} → {own}", child)


def _shown(sink: IEventSink) -> dict[str, Any]:
    try:
        if isinstance(sink, WebhookSink):
            return _webhook(sink)
        if not IShownSink.providedBy(sink):
            return {}
        return {str(key): plain(value) for key, value in sink.shown().items()}
    except Exception as error:
        _log.failure("sink {sink} failed to report its state", sink=type(sink).__qualname__)
        return {"error": f"{type(error).__name__}: {error}"}


def _webhook(sink: WebhookSink) -> dict[str, Any]:
    counts = sink.outbox.counts
    return {
        "url": hide_url(sink.settings.url),
        "up": sink.down_since is None,
        "waiting": counts.pending,
        "delivered": counts.delivered,
        "dead letters": sink.outbox.letters,
        "last error": None if sink.failure is None else sink.failure.reason,
    }
