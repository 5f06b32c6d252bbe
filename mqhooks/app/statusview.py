"""
Show a bridge's state and verdict, as its API returns them, on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from mqhooks.admin.words import span
from mqhooks.support.printable import printable


class Source(Struct):
    """A source of events."""

    via: str
    listening: list[str]
    connections: int
    paused: bool
    events: int


class Webhook(Struct):
    """A webhook; durations are seconds, times seconds since 1970."""

    name: str
    state: str
    refusing: bool
    pending: int
    delivered: int
    letters: int
    oldest_seconds: float | None


class Problem(Struct):
    """
    Something to look at.

    :param level: ``bad`` if it needs somebody now, ``warn`` if it can wait.
    """

    level: str
    title: str
    text: str


class Verdict(Struct):
    """The bridge's verdict on itself: ``level`` is ``good``, ``warn`` or ``bad``, and the worst problems come first."""

    level: str
    headline: str
    problems: list[Problem]


class StatusReply(Struct):
    """The parts of ``GET /api/status`` that are shown."""

    version: str
    host: str
    now: float
    uptime: float
    rate: float
    sources: list[Source]
    webhooks: list[Webhook]
    verdict: Verdict


def shown(status: StatusReply) -> Iterator[str]:
    """
    Format a state and its verdict.

    :returns: lines for a terminal.
    """
    headline = printable(status.verdict.headline, 1000)
    yield f"{headline}: mqhooks {status.version} on {printable(status.host, 60)}, up for {span(status.uptime)}"
    for source in status.sources:
        where = printable(", ".join(source.listening) or "nowhere", 200)
        held = ", held up" if source.paused else ""
        many = "" if source.connections == 1 else "s"
        yield f"source  {source.via} on {where}: {source.connections} connection{many}, {source.events} events{held}"
    yield f"events  {status.rate:g} a second"
    rows = [("webhook", "state", "pending", "oldest", "delivered", "dead letters")]
    for webhook in status.webhooks:
        oldest = "-" if webhook.oldest_seconds is None else span(webhook.oldest_seconds)
        numbers = (str(webhook.pending), oldest, str(webhook.delivered), str(webhook.letters))
        rows.append((printable(webhook.name, 60), "refusing" if webhook.refusing else webhook.state, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if status.webhooks else ():
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for problem in status.verdict.problems:
        yield printable(f"{problem.level}: {problem.title}. {problem.text}", 4096)
