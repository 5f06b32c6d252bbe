"""
What the state of a bridge means, in words: the verdict of the status page (``admin/static/verdict.js``), for a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from mqhooks.support.printable import printable

LATE = 60.0
"""After how many seconds a delivery that still waits is worth a word, although its endpoint answers."""

FULL = 0.8
"""Of how much of its room in the outbox a webhook is worth a word."""

Level = Literal["good", "warn", "bad"]


class Reason(Struct):
    """Why an attempt failed."""

    reason: str


class Source(Struct):
    """Where events come in."""

    via: str
    listening: list[str]
    connections: int
    paused: bool
    events: int


class Webhook(Struct):
    """A webhook; durations are seconds, times seconds since 1970."""

    name: str
    url: str
    state: str
    refusing: bool
    pending: int
    delivered: int
    letters: int
    bytes: int
    max_size: int
    down_since: float | None
    oldest_seconds: float | None
    last_error: Reason | None


class Sink(Struct):
    """Another sink."""

    name: str
    running: bool


class Outbox(Struct):
    """The outbox."""

    kind: str
    failing: str | None
    damaged: list[str]
    dead: int


class Status(Struct):
    """What of ``GET /api/status`` the verdict needs."""

    version: str
    host: str
    now: float
    uptime: float
    rate: float
    sources: list[Source]
    webhooks: list[Webhook]
    sinks: list[Sink]
    outbox: Outbox


class Problem(NamedTuple):
    """
    Something to look at.

    :param level: ``bad`` for what needs somebody now, ``warn`` for what can wait.
    """

    level: Level
    title: str
    text: str


def judge(status: Status) -> list[Problem]:
    """
    Say what is wrong.

    :returns: the problems, the worst first.
    """
    problems = list(dict.fromkeys(_problems(status)))
    return sorted(problems, key=lambda problem: problem.level)


def headline(problems: list[Problem]) -> str:
    """Sum problems up in a few words."""
    titles = [problem.title for problem in problems]
    more = f", and {len(titles) - 2} more" if len(titles) > 2 else ""
    return ", ".join(titles[:2]) + more if titles else "All is well"


def span(seconds: float) -> str:
    """Write a duration in its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def absent(source: Source, sources: list[Source]) -> bool:
    """Say whether nobody is there. VerneMQ's own webhooks close connections that they do not use."""
    if source.via == "webhooks":
        return not source.connections and not source.events
    return not any(one.connections for one in sources if one.via != "webhooks")


def _problems(status: Status) -> Iterator[Problem]:
    outbox = status.outbox
    for file in outbox.damaged:
        remedy = f"mqhooks outbox salvage {printable(file, 4096)}"
        yield Problem("bad", "A damaged outbox was set aside", f"Take over what can be read of it: {remedy}")
    if outbox.failing is not None:
        remedy = "Nothing more is accepted; give its disk room, it goes on by itself."
        yield Problem("bad", "The outbox cannot be written", f"{printable(outbox.failing, 1000)}. {remedy}")
    for source in status.sources:
        yield from _source(source, status.sources)
    for webhook in status.webhooks:
        yield from _webhook(webhook, status)
    for sink in status.sinks:
        if not sink.running:
            remedy = "This sink was stopped, or did not start. The log says why."
            yield Problem("warn", f"{printable(sink.name, 60)} does not run", remedy)
    if outbox.dead:
        remedy = "See why with mqhooks dead list --groups." if outbox.kind == "sqlite" else "The log says why."
        title = f"{outbox.dead} dead letter{'s' if outbox.dead > 1 else ''}"
        yield Problem("warn", title, f"Deliveries that were given up. {remedy}")


def _source(source: Source, sources: list[Source]) -> Iterator[Problem]:
    if absent(source, sources):
        if source.via == "webhooks":
            ask = "Is the broker up, does vmq-admin webhooks show list this address?"
            yield Problem("warn", "VerneMQ has posted nothing yet", ask)
        else:
            ask = "Is the broker up, does vmq-admin plugin show list vmq_events_sidecar?"
            yield Problem("bad", "VerneMQ is not connected", f"It drops events meanwhile. {ask}")
    elif source.paused:
        why = "because the outbox has no room. See which webhook does not get rid of its deliveries."
        if source.via == "webhooks":
            yield Problem("bad", "VerneMQ's events are refused", f"They are lost, {why}")
        else:
            yield Problem("bad", "VerneMQ is held up", f"Its connections are not read, {why}")


def _webhook(webhook: Webhook, status: Status) -> Iterator[Problem]:
    name = printable(webhook.name, 60)
    waiting = f"{webhook.pending} waiting" if webhook.pending else "Nothing waits"
    if webhook.state == "paused":
        yield Problem("warn", f"{name} is paused", f"Nothing is sent until somebody resumes it. {waiting}.")
    elif webhook.state == "down":
        since = "" if webhook.down_since is None else f" for {span(status.now - webhook.down_since)}"
        why = "" if webhook.last_error is None else f": {printable(webhook.last_error.reason, 1000)}"
        if webhook.refusing:
            text = f"Its endpoint has refused every delivery{since}{why}. Check its URL, token and routes. {waiting}."
            yield Problem("bad", f"{name} refuses everything", text)
        else:
            yield Problem(
                "bad", f"{name} is failing", f"Its endpoint fails{since}{why}. {waiting}; it is tried again by itself."
            )
    elif webhook.oldest_seconds is not None and webhook.oldest_seconds > LATE:
        late = f"Its endpoint answers, but the oldest delivery has waited for {span(webhook.oldest_seconds)}"
        yield Problem("warn", f"{name} is behind", f"{late}. {waiting}.")
    elif webhook.max_size and webhook.bytes > FULL * webhook.max_size:
        used = f"{100 * webhook.bytes // webhook.max_size} % of its room is used"
        yield Problem("warn", f"{name} has little room left", f"Its endpoint answers. {waiting}, {used}.")


def shown(status: Status, problems: list[Problem]) -> Iterator[str]:
    """
    Show a state and its problems.

    :returns: lines for a terminal.
    """
    yield f"{headline(problems)}: mqhooks {status.version} on {printable(status.host, 60)}, up for {span(status.uptime)}"
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
    for problem in problems:
        yield f"{problem.level}: {problem.title}. {problem.text}"


def as_json(problems: list[Problem]) -> dict[str, Any]:
    """Make plain JSON values of problems."""
    level = problems[0].level if problems else "good"
    return {"level": level, "headline": headline(problems), "problems": [problem._asdict() for problem in problems]}
