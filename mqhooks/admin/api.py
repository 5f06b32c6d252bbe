"""
The calls of the API.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime

from mqhooks.admin.deadletters import DeadLetters
from mqhooks.admin.health import ready
from mqhooks.admin.plain import plain
from mqhooks.admin.replies import Answer, Call, Refused, json_answer
from mqhooks.admin.status import Status
from mqhooks.webhook.sink import WebhookSink

PAGE = 50
"""How many dead letters are listed when nothing is said."""

MOST = 1000
"""How many are listed at most."""

_FILTER = ("webhook", "reason", "all")


class Api:
    """
    Answers calls.

    :param status: knows how things are.
    :param clock: has others take their turns.
    """

    def __init__(self, status: Status, clock: IReactorTime) -> None:
        self._status = status
        self._bridge = status.bridge
        self._letters = DeadLetters(status.bridge, clock)

    def health(self, call: Call) -> Answer:
        """Say that the process turns."""
        return json_answer({"status": "ok"})

    def ready(self, call: Call) -> Answer:
        """Say whether events can be taken in and kept."""
        good, reasons = ready(self._bridge)
        return json_answer(reasons, 200 if good else 503)

    def status(self, call: Call) -> Answer:
        """Say everything."""
        return json_answer(self._status.snapshot())

    def config(self, call: Call) -> Answer:
        """Show what it runs with."""
        return json_answer(plain(self._bridge.settings))

    def letters(self, call: Call) -> Answer:
        """List dead letters."""
        after, limit = call.number("after", 0, 1 << 62), call.number("limit", PAGE, MOST)
        return json_answer(self._letters.page(call.query("webhook"), call.query("reason"), after, limit))

    def letter(self, call: Call) -> Answer:
        """Show one."""
        return json_answer(self._letters.get(_number(call)))

    def replay(self, call: Call) -> Answer:
        """Put one back."""
        return json_answer({"count": self._letters.settle(_number(call), replay=True)})

    def purge(self, call: Call) -> Answer:
        """Remove one."""
        return json_answer({"count": self._letters.settle(_number(call), replay=False)})

    async def replay_all(self, call: Call) -> Answer:
        """Put back all that fit a filter."""
        return json_answer({"count": await self._letters.settle_all(*_filter(call), replay=True)})

    async def purge_all(self, call: Call) -> Answer:
        """Remove all that fit a filter."""
        return json_answer({"count": await self._letters.settle_all(*_filter(call), replay=False)})

    def pause(self, call: Call) -> Answer:
        """Send nothing more to a webhook."""
        sink = self._sink(call)
        sink.pause()
        return json_answer({"name": sink.settings.name, "paused": sink.paused})

    def resume(self, call: Call) -> Answer:
        """Send again."""
        sink = self._sink(call)
        sink.resume()
        return json_answer({"name": sink.settings.name, "paused": sink.paused})

    def _sink(self, call: Call) -> WebhookSink:
        (name,) = call.arguments
        for sink in self._bridge.webhooks:
            if sink.settings.name == name:
                return sink
        raise Refused(404, f"there is no webhook {name!r}")


def _number(call: Call) -> int:
    (text,) = call.arguments
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Refused(404, f"{text!r} is not the number of a dead letter")
    return int(text)


def _filter(call: Call) -> tuple[str | None, str | None]:
    """
    Read which dead letters are meant.

    :raises Refused: when nothing is said: all of them have to be asked for.
    """
    wanted: dict[str, Any] = call.json()
    for key in wanted:
        if key not in _FILTER:
            raise Refused(400, f"{key!r} is unknown: give {', '.join(_FILTER[:-1])} or {_FILTER[-1]}")
    webhook, reason = (wanted.get(key) for key in _FILTER[:2])
    for key, value in (("webhook", webhook), ("reason", reason)):
        if not isinstance(value, (str, type(None))):
            raise Refused(400, f"{key} is not text")
    if not webhook and not reason and wanted.get("all") is not True:
        raise Refused(400, 'say which: {"webhook": "…"}, {"reason": "…"}, or {"all": true}')
    return webhook or None, reason or None
