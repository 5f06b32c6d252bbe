"""
The API's handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import time
from typing import Any

from mqhooks.admin.attempts import shown_attempt
from mqhooks.admin.deadletters import DeadLetters
from mqhooks.admin.health import ready
from mqhooks.admin.plain import plain
from mqhooks.admin.replies import AdminCall, Refused, Reply, json_reply
from mqhooks.admin.status import Status
from mqhooks.errors import MqhooksError
from mqhooks.outbox.deadletters import ANY, Filter, status_range
from mqhooks.support.times import moment, written
from mqhooks.webhook.sink import WebhookSink

PAGE = 50
"""Dead letters listed by default."""

MOST = 1000
"""Dead letters listed at most, and ids taken at most."""

LONGEST_PAUSE = 366 * 86_400
"""Furthest end of a pause, in seconds from now; a larger number is likely to be milliseconds."""

_FILTER = ("webhook", "reason", "client", "status", "since", "until")


class Api:
    """
    Handles calls.

    :param status: the state of the bridge.
    :param letters: its dead letters.
    """

    def __init__(self, status: Status, letters: DeadLetters) -> None:
        self._status = status
        self._bridge = status.bridge
        self._letters = letters

    def health(self, call: AdminCall) -> Reply:
        """Report liveness: the reactor runs."""
        return json_reply({"status": "ok"})

    def ready(self, call: AdminCall) -> Reply:
        """Report readiness: events can be received and stored, and no endpoint refuses everything."""
        good, reasons = ready(self._bridge)
        return json_reply(reasons, 200 if good else 503)

    def status(self, call: AdminCall) -> Reply:
        """Return everything that the status page shows."""
        return json_reply(self._status.snapshot())

    def config(self, call: AdminCall) -> Reply:
        """Return the configuration, without its secrets."""
        return json_reply(plain(self._bridge.settings))

    async def letters(self, call: AdminCall) -> Reply:
        """List dead letters."""
        after, limit = call.number("after", 0, 1 << 62), call.number("limit", PAGE, MOST)
        return json_reply(await self._letters.page(_filter(_asked(call)), after, limit))

    async def letter(self, call: AdminCall) -> Reply:
        """Show one dead letter."""
        return json_reply(await self._letters.get(_number(call)))

    async def replay(self, call: AdminCall) -> Reply:
        """Replay one dead letter."""
        return json_reply({"count": await self._letters.settle(_number(call), replay=True)})

    async def purge(self, call: AdminCall) -> Reply:
        """Purge one dead letter."""
        return json_reply({"count": await self._letters.settle(_number(call), replay=False)})

    async def replay_all(self, call: AdminCall) -> Reply:
        """Replay all dead letters that match a filter."""
        return json_reply({"count": await self._settle(call, replay=True)})

    async def purge_all(self, call: AdminCall) -> Reply:
        """Purge all dead letters that match a filter."""
        return json_reply({"count": await self._settle(call, replay=False)})

    async def _settle(self, call: AdminCall, *, replay: bool) -> int:
        asked = _asked(call)
        wanted = call.json()
        for key in asked:
            if key in wanted:
                raise Refused(400, f"{key} is given twice, in the query and in the body: give it once")
        wanted |= asked
        if "ids" in wanted:
            return await self._letters.settle_some(_ids(wanted), replay=replay)
        for key in wanted:
            if key not in (*_FILTER, "all"):
                raise Refused(400, f"{key!r} is unknown: give {', '.join(_FILTER)}, all or ids")
        only = _filter(wanted)
        if only == ANY and wanted.get("all") is not True:
            raise Refused(400, 'say which: {"webhook": "…"}, {"reason": "…"}, {"ids": […]}, or {"all": true}')
        return await self._letters.settle_all(only, replay=replay)

    def pause(self, call: AdminCall) -> Reply:
        """Pause a webhook, until a time if one is given."""
        sink = self._sink(call)
        sink.pause(_until(call))
        return json_reply({"name": sink.settings.name, "paused": sink.paused, "until": sink.paused_until})

    def resume(self, call: AdminCall) -> Reply:
        """Resume a webhook."""
        sink = self._sink(call)
        sink.resume()
        return json_reply({"name": sink.settings.name, "paused": sink.paused})

    def try_now(self, call: AdminCall) -> Reply:
        """Have a webhook make its next attempts now."""
        sink = self._sink(call)
        if sink.paused:
            raise Refused(409, f"webhook {sink.settings.name!r} is paused: resume it first")
        return json_reply({"name": sink.settings.name, "trying": sink.try_now()})

    async def test(self, call: AdminCall) -> Reply:
        """Send a made-up delivery to a webhook's endpoint, and return the result."""
        sink, make_test = self._sink(call), self._bridge.make_test
        name = sink.settings.name
        if make_test is None:
            raise Refused(409, f"webhook {name!r} cannot be tested here: use mqhooks send-test")
        if sink.testing:
            raise Refused(409, f"webhook {name!r} is being tested: wait for the answer")
        try:
            delivery, request = make_test(sink.settings)
        except MqhooksError as error:
            raise Refused(409, str(error)) from None
        return json_reply({"name": name, "attempt": shown_attempt(await sink.send_test(delivery, request))})

    def attempts(self, call: AdminCall) -> Reply:
        """List a webhook's last attempts, the newest first."""
        sink = self._sink(call)
        return json_reply({"name": sink.settings.name, "attempts": [*map(shown_attempt, reversed(sink.counters.tried))]})

    def _sink(self, call: AdminCall) -> WebhookSink:
        (name,) = call.arguments
        for sink in self._bridge.webhooks:
            if sink.settings.name == name:
                return sink
        raise Refused(404, f"there is no webhook {name!r}")


def _until(call: AdminCall) -> float | None:
    """
    Read the end of a pause from the query, or from the body, which may be empty.

    :returns: seconds since 1970; ``None`` for no end.
    :raises Refused: when it is not a time, is over, or is too far away.
    """
    asked, wanted = call.query("until"), call.json(empty=True)
    if asked is not None:
        wanted.setdefault("until", asked)
    until = wanted.pop("until", None)
    if wanted:
        raise Refused(400, f"{next(iter(wanted))!r} is unknown: give until, or nothing")
    if until is None:
        return None
    now = time()
    try:
        at = moment(_written(until) if type(until) in (int, float) else until, now, ahead=True) / 1000
    except (TypeError, ValueError) as error:
        raise Refused(400, f"until: {error if isinstance(error, ValueError) else 'it is not a time'}") from None
    if not now < at < now + LONGEST_PAUSE:
        what = "is over" if at <= now else "is more than a year away"
        raise Refused(400, f"until: {written(int(at * 1e9))} {what}: give a future time, in seconds or like 2h")
    return at


def _written(number: int | float) -> str:
    """Write a number of JSON as people write it in a query."""
    return f"{number:.3f}" if isinstance(number, float) else str(number)


def _number(call: AdminCall) -> int:
    (text,) = call.arguments
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Refused(404, f"{text!r} is not the number of a dead letter")
    return int(text)


def _ids(wanted: dict[str, Any]) -> list[int]:
    """
    Read the numbers of the dead letters that are wanted.

    :raises Refused: when they are not a list of up to :data:`MOST` numbers, or something else is given too.
    """
    ids = wanted["ids"]
    if len(wanted) > 1:
        raise Refused(400, "ids cannot be combined with a filter: leave out the rest")
    if not (isinstance(ids, list) and all(type(number) is int and 0 <= number < 1 << 62 for number in ids)):
        raise Refused(400, "ids is not a list of dead letters' numbers")
    if len(ids) > MOST:
        raise Refused(400, f"{len(ids)} ids are too many: give {MOST} at a time, or a filter")
    return ids


def _asked(call: AdminCall) -> dict[str, str]:
    """Get the filter in a query."""
    return {key: value for key in _FILTER if (value := call.query(key)) is not None}


def _filter(wanted: Mapping[str, Any]) -> Filter:
    """
    Read a filter of dead letters.

    :raises Refused: when a part of it is invalid.
    """
    values: dict[str, Any] = {}
    for key in _FILTER:
        value = wanted.get(key)
        if value is None or value == "":
            continue
        if key in _NUMBERS and type(value) in (int, float):
            value = _written(value)
        if not isinstance(value, str):
            raise Refused(400, f"{key} is not text")
        try:
            values[key] = _NUMBERS[key](value) if key in _NUMBERS else value
        except ValueError as error:
            raise Refused(400, f"{key}: {error}") from None
    return Filter(**values)


_NUMBERS: dict[str, Callable[[str], Any]] = {
    "status": status_range,
    "since": lambda text: moment(text, time()),
    "until": lambda text: moment(text, time()),
}
