"""
Untrusted text, made safe for a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str, limit: int) -> str:
    """
    Make a text safe to print on one line of a terminal.

    :param text: any text.
    :param limit: characters to keep.
    :returns: the text with unprintable characters escaped, and ``...`` if some of it was cut off.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown + ("..." if len(text) > limit else "")


def listed(numbers: Sequence[int], most: int = 20) -> str:
    """List numbers, with ``…`` in place of those after the first ``most``."""
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")
