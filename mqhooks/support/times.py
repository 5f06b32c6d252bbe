"""
Read and write times as text: RFC 3339, and durations counted back or ahead from now.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(?:\.(\d{1,18}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?(ms|s|min|m|h|d|w)", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_LAST = 253_402_300_799
"""The last second of the year 9999."""


def written(nanoseconds: int, digits: int = 0) -> str:
    """
    Write a time in UTC, as in RFC 3339.

    :param nanoseconds: since 1970; a time outside the years 1970 to 9999 is written as the nearest one within them.
    :param digits: decimal places of the seconds, 0 to 9.
    """
    seconds, rest = divmod(min(max(nanoseconds, 0), _LAST * 10**9), 10**9)
    text = f"{_BEGIN + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"
    return f"{text}.{rest:09d}"[: len(text) + 1 + digits] + "Z" if digits else f"{text}Z"


def read(text: str) -> int:
    """
    Read an RFC 3339 time.

    :returns: nanoseconds since 1970; further digits are cut off.
    :raises ValueError: when it is not one, or is before 1970.
    """
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is not a time like 2026-01-31T12:00:00Z")
    date, minute, second, fraction, zone = match.groups()
    try:
        # A leap second counts as the second after it.
        at = datetime.fromisoformat(f"{date}T{minute}:00{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not a time: there is no such day, hour, minute or zone") from None
    if minute.startswith("24"):
        # Python takes this for the next day's 00:00 from 3.14 on.
        raise ValueError(f"{text[:80]!r} is not a time: there is no such hour")
    if int(second) > 60:
        raise ValueError(f"{text[:80]!r} is not a time: a minute has 60 seconds")
    whole = (at - _BEGIN) // timedelta(seconds=1) + int(second)
    if whole < 0:
        raise ValueError(f"{text[:80]!r} is before 1970")
    return whole * 10**9 + int((fraction or "").ljust(9, "0")[:9])


def moment(text: str, now: float, *, ahead: bool = False) -> int:
    """
    Read a time as people give it: RFC 3339, seconds since 1970, or a duration like ``2h``, which means that long ago.

    :param now: seconds since 1970.
    :param ahead: whether a duration counts ahead from now instead.
    :returns: milliseconds since 1970, at least 0.
    :raises ValueError: when it is none of these; the message says what is accepted.
    """
    if _NUMBER.fullmatch(text):
        return int(float(text) * 1000)
    duration = _DURATION.fullmatch(text)
    if duration is not None:
        seconds = float(duration[1]) * _UNITS[duration[2]]
        return max(int((now + (seconds if ahead else -seconds)) * 1000), 0)
    try:
        return read(text) // 10**6
    except ValueError as error:
        raise ValueError(f"{error}, nor a duration like 90s, 2h or 3d" if "like" in str(error) else str(error)) from None
