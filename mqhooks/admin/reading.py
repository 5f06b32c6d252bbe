"""
The status page as HTML, for reading without JavaScript.

- It is in the page's ``<noscript>``: one address for everybody, and none of it is shown where scripts run.
- Its times are UTC, since only a script knows the reader's time zone.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from mqhooks.admin.attempts import shown_attempt
from mqhooks.admin.deadletters import DeadLetters
from mqhooks.admin.replies import AdminCall, Reply
from mqhooks.admin.status import Status
from mqhooks.admin.words import rate, span
from mqhooks.errors import OutboxError
from mqhooks.outbox.deadletters import ANY
from mqhooks.support.printable import printable
from mqhooks.support.times import written

LETTERS = 200
"""Dead letters grouped at most."""

_TYPE = "text/html; charset=utf-8"


class Page:
    """
    Serves the page.

    :param html: the page, with an empty ``<noscript>`` and a ``<title>`` that names mqhooks only.
    :param status: the state of the bridge.
    :param letters: its dead letters.
    """

    def __init__(self, html: str, status: Status, letters: DeadLetters) -> None:
        self._html = html
        self._status = status
        self._letters = letters

    async def __call__(self, call: AdminCall) -> Reply:
        """Serve the page; if there is a token, only those who send it see the bridge's state."""
        if not call.trusted:
            needs = "<p>This page needs JavaScript, or the token: send <code>Authorization: Bearer</code> and the token.</p>"
            return self._with("mqhooks", needs)
        status = self._status.snapshot()
        title = f"mqhooks on {_text(status['host'], 80)} · {status['version']}"
        # A reload may replace the webhooks while dead letters are read.
        parts = list(self._parts(status))
        if status["outbox"]["kind"] == "sqlite" and status["outbox"]["dead"]:
            parts += await self._groups()
        return self._with(title, "\n".join(parts))

    def _with(self, title: str, content: str) -> Reply:
        html = self._html.replace("<title>mqhooks<", f"<title>{title}<", 1)
        return Reply(html.replace("<noscript>", f"<noscript>\n{content}\n", 1).encode(), _TYPE)

    def _parts(self, status: dict[str, Any]) -> Iterable[str]:
        verdict = status["verdict"]
        yield f"<h1>{_text(verdict['headline'])}</h1>\n<p>{_text(verdict['summary'])}</p>"
        if verdict["problems"]:
            yield _list(f"<b>{_text(each['title'])}</b> {_text(each['text'], 2000)}" for each in verdict["problems"])
        now = written(int(status["now"] * 1e9))
        yield f"<p>{now}, up for {span(status['uptime'])}. Times are UTC. Reload the page to update it.</p>"
        yield "<h2>From VerneMQ</h2>\n" + _list(map(_source, status["sources"]))
        yield "<h2>Webhooks</h2>"
        tried = [sink.counters.tried for sink in self._status.bridge.webhooks]
        rows = [_webhook(webhook, each) for webhook, each in zip(status["webhooks"], tried, strict=True)]
        yield _table(("webhook", "state", "waiting", "oldest", "dead", "last answer"), rows)
        if status["sinks"]:
            yield "<h2>Other sinks</h2>\n" + _list(map(_sink, status["sinks"]))

    async def _groups(self) -> list[str]:
        title = "<h2>Dead letters</h2>"
        try:
            found = await self._letters.page(ANY, 0, LETTERS)
        except (OutboxError, sqlite3.DatabaseError) as error:
            return [title, f"<p>They cannot be read: {_text(str(error))}</p>"]
        alike = defaultdict(list)
        for letter in found["letters"]:
            alike[letter["webhook"], letter["status"], letter["reason"]].append(letter["died"])
        rows = [
            [str(len(died)), _text(webhook, 60), _text(reason), _at(min(died)), _at(max(died))]
            for (webhook, _, reason), died in sorted(alike.items(), key=lambda group: -len(group[1]))
        ]
        first = len(found["letters"])
        shown = f"<p>The first {first:,} of {found['total']:,}.</p>" if first < found["total"] else ""
        return [title, _table(("dead letters", "webhook", "why", "first given up", "last"), rows) + shown]


def _text(text: str, most: int = 300) -> str:
    """Make a text from outside safe to show."""
    return escape(printable(text, most))


def _at(seconds: float) -> str:
    return written(int(seconds * 1e9))


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{name}</th>" for name in head)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table><tr>{names}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _source(source: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name} {source[name]:,}" for name in ("connections", "events", "malformed", "refused"))
    return f"{source['via']} on {_text(', '.join(source['listening']))}: {numbers}, {rate(source['rate'])} events/s"


def _webhook(webhook: dict[str, Any], tried: Sequence[Any]) -> list[str]:
    oldest = "none" if webhook["oldest_seconds"] is None else span(webhook["oldest_seconds"])
    state = webhook["state"] if tried or webhook["state"] != "up" else "not tried yet"
    answer = "none yet"
    if tried:
        last = shown_attempt(tried[-1])
        answer = f"{_at(last['at'])} {last['status'] or 'none'} {_text(' '.join(last['said'].split()), 200)}"
    return [_text(webhook["name"], 60), state, f"{webhook['pending']:,}", oldest, f"{webhook['letters']:,}", answer]


def _sink(sink: dict[str, Any]) -> str:
    shown = ", ".join(f"{_text(str(key), 60)}: {_text(str(value))}" for key, value in sink["shown"].items())
    return f"{_text(sink['name'])} {'runs' if sink['running'] else 'is not running'}{': ' if shown else ''}{shown}"
