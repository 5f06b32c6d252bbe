"""
Untrusted text, made safe for a terminal.
"""

from __future__ import annotations


def printable(text: str, limit: int) -> str:
    """
    Make a text fit for one line of a terminal.

    :param text: any text.
    :param limit: how many characters of it are kept.
    :returns: the text with unprintable characters escaped; ``...`` stands for what was cut off.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown + ("..." if len(text) > limit else "")
