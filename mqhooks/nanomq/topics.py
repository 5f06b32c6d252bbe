"""
Check MQTT topic filters (MQTT 5, section 4.7), and compile them.

All filters of a rule event become one function: a set look-up without wildcards, else a single regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mqhooks.errors import ConfigError

MAX_BYTES = 65_535
"""Longest topic or filter, in bytes (section 4.7.3)."""


def check_filter(text: str) -> str | None:
    """
    Find the mistake in a topic filter.

    :returns: the mistake; ``None`` when the filter is valid.
    """
    levels = text.split("/")
    if not text:
        return "an empty filter matches nothing: leave it out for every topic"
    if "\0" in text:
        return "no topic has a NUL character"
    if len(text.encode(errors="replace")) > MAX_BYTES:
        return f"no topic is longer than {MAX_BYTES:,} bytes"
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        return "# must be the last level and alone in it, as in a/b/#"
    if any("+" in level and level != "+" for level in levels):
        return "+ must be alone in its level, as in a/+/b"
    return None


def compile_filter(*filters: str) -> Callable[[str], bool]:
    """
    Compile topic filters into one function.

    :param filters: one filter or several.
    :returns: a function that returns whether a topic matches any of them. A filter that begins with a wildcard matches no topic
        that begins with ``$`` (section 4.7.2).
    :raises mqhooks.errors.ConfigError: when a filter is not valid; only the message is set.
    """
    distinct = sorted(set(filters))
    for text in distinct:
        problem = check_filter(text)
        if problem is not None:
            raise ConfigError(f"{text[:80]!r} is not a topic filter: {problem}")
    if not any("#" in text or "+" in text for text in distinct):
        return frozenset(distinct).__contains__
    if distinct == ["#"]:
        return _matches_most
    match = re.compile("|".join(map(_pattern, distinct)), re.DOTALL).fullmatch
    return lambda topic: match(topic) is not None


def _matches_most(topic: str) -> bool:
    return not topic.startswith("$")


def _pattern(text: str) -> str:
    levels = text.split("/")
    guard = r"(?!\$)" if levels[0] in ("#", "+") else ""
    tail = ""
    if levels[-1] == "#":
        del levels[-1]
        tail = "(?:/.*)?" if levels else ".*"
    return guard + "/".join("[^/]*" if level == "+" else re.escape(level) for level in levels) + tail
