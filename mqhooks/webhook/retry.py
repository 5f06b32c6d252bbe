"""
The retry policy: decides which attempts are repeated, and after which backoff.

It only computes: randomness and time are passed in, and the dispatcher sets the timers. A ``Retry-After`` is obeyed up to an
hour, so that a mistake in it cannot stop a webhook for days.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from random import Random

from mqhooks.webhook.settings import RetrySettings

MAX_RETRY_AFTER = 3600.0
"""The longest ``Retry-After`` that is obeyed, in seconds; longer ones are cut to this."""

_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
# The three forms of RFC 9110, section 5.6.7. Names of days are not checked against the date.
_DATES = [
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"\w{{3}}, (?P<day>\d\d) (?P<month>\w{{3}}) (?P<year>\d{{4}}) {_TIME} GMT",
        rf"\w{{6,9}}, (?P<day>\d\d)-(?P<month>\w{{3}})-(?P<year>\d\d) {_TIME} GMT",
        rf"\w{{3}} (?P<month>\w{{3}}) (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
]
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class RetryPolicy:
    """
    Applies a webhook's retry settings.

    :param settings: the webhook's settings.
    """

    def __init__(self, settings: RetrySettings) -> None:
        self.settings = settings
        self._retried: set[int] = set()
        for entry in settings.on:
            if isinstance(entry, int):
                self._retried.add(entry)
            else:
                first = int(entry[0]) * 100
                self._retried.update(range(first, first + 100))

    def retries(self, status: int) -> bool:
        """Return whether a response that is not 2xx is retried. An attempt without a response always is."""
        return status in self._retried

    def delay(self, attempts: int, random: Random) -> float:
        """
        Return the backoff after a failed attempt: exponential, up to a limit, with jitter.

        :param attempts: attempts made so far; 1 or more.
        :param random: the source of the jitter.
        :returns: seconds.
        """
        settings = self.settings
        try:
            grown = settings.initial * float(settings.multiplier) ** (attempts - 1)
        except OverflowError:
            grown = settings.maximum
        return min(grown, settings.maximum) * (1 + settings.jitter * random.uniform(-1, 1))

    def exhausted(self, attempts: int, age: float) -> str | None:
        """
        Decide whether to give up a delivery that has been tried for too long.

        :param attempts: attempts made so far.
        :param age: seconds since it was accepted.
        :returns: the reason to give it up; ``None`` to go on.
        """
        settings = self.settings
        if 0 < settings.max_attempts <= attempts:
            return f"max_attempts ({settings.max_attempts}) reached"
        if age > settings.max_age:
            return f"older than max_age ({span(settings.max_age)})"
        return None


def retry_after(headers: Iterable[tuple[bytes, bytes]], now: float) -> float | None:
    """
    Read an answer's ``Retry-After``: RFC 9110, section 10.2.3.

    :param headers: the answer's headers.
    :param now: seconds since 1970.
    :returns: seconds from now, 0 to :data:`MAX_RETRY_AFTER`; ``None`` without the header, or when it cannot be understood.
    """
    for name, value in headers:
        if name.lower() == b"retry-after":
            seconds = _seconds(value.strip(b" \t").decode("latin-1"), now)
            return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER)
    return None


def span(seconds: float) -> str:
    """Format a time for a person to read, in the largest unit that gives a whole number."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"


def _seconds(value: str, now: float) -> float | None:
    if re.fullmatch("[0-9]+", value):
        # A number with more digits exceeds any limit.
        return float(value) if len(value) <= 20 else MAX_RETRY_AFTER
    match = next((match for match in (form.fullmatch(value) for form in _DATES) if match), None)
    if match is None or match["month"] not in _MONTHS:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        this_year = datetime.fromtimestamp(now, UTC).year
        year += this_year // 100 * 100
        if year > this_year + 50:
            year -= 100
    hour, minute, second = int(match["hour"]), int(match["minute"]), min(int(match["second"]), 59)
    try:
        date = datetime(year, _MONTHS.index(match["month"]) + 1, int(match["day"]), hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return date.timestamp() - now
