"""
Numbers and texts as people read them, in a few words of English.
"""

from __future__ import annotations

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def plural(number: int, one: str, many: str | None = None) -> str:
    """Write a number of things: ``1 delivery``, ``2,000 deliveries``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def rate(number: float) -> str:
    """Write a rate per second, with a tenth where that matters."""
    return f"{number:,.0f}" if number >= 100 or number == 0 else f"{number:.1f}"


def size(number: float) -> str:
    """Write a number of bytes in the largest unit that it fills."""
    unit = 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number /= 1024
        unit += 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else plural(int(number), "byte")


def span(seconds: float) -> str:
    """Write a duration in seconds, minutes, hours or days, whichever says enough."""
    whole = max(round(seconds), 0)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    (large, first), (small, second) = ((3600, "h"), (60, "min")) if whole < 172_800 else ((86_400, "d"), (3600, "h"))
    rest = whole % large // small
    return f"{whole // large} {first}" + (f" {rest} {second}" if rest else "")


def short(text: str, most: int) -> str:
    """Shorten a text from outside; the caller has to deal with control characters in it."""
    return text if len(text) <= most else f"{text[:most]}…"
