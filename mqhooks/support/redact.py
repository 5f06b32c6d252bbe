"""
Hide the secrets in URLs: the one place that decides which parts of a URL are shown.

A path is shown up to its first segment that is not a plain word. From there on everything may be a token, as in
``https://hooks.slack.com/services/T0/B0/x7Kq`` or ``/api/v1/x7Kq/telemetry``.
"""

from __future__ import annotations

import re
from itertools import takewhile

_PARTS = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*://|https?:/*|/+)?((?:[^/?#]*@)?)([^/?#\\]*)([^?#]*)(.*)", re.DOTALL | re.IGNORECASE
)
_AUTHORITY = re.compile(r"(\[[^\[\]@]*\]|[^:\[\]@]*)(:\d*)?")
_WORD = re.compile(r"[a-z]{0,12}(?:[-_][a-z]{1,12}){0,2}")
_URL = re.compile(r"https?(?:(\\+):(?:[^\s\"':\\]|\\.)*|()://[^\s\"']*)", re.IGNORECASE)

LONG = 8
"""Shortest hidden part of a URL, in characters, that is also hidden where it appears alone."""


def hide_url(url: str) -> str:
    """
    Remove whatever may be a credential from a URL: user, password, query, fragment, and the path from the first segment that
    is not made of one to three words of at most 12 lower-case letters.

    :param url: it need not be well-formed.
    :returns: the URL, with ``…`` in place of what was removed.
    """
    start, _, host, path, rest = _parts(url)
    shown = host if _AUTHORITY.fullmatch(host) else "…"
    segments = path.split("/")
    words = list(takewhile(_WORD.fullmatch, segments))
    path = path if len(words) == len(segments) else "/".join([*words, "…"])
    return f"{start}{shown}{path}{f'{rest[0]}…' if rest else ''}"


def hide(text: str, url: str) -> str:
    """
    Remove from a text, such as an endpoint's answer, whatever :func:`hide_url` removes from a URL.

    :param text: it may repeat the URL, its path, or part of either.
    """
    shown = hide_url(url)
    if shown == url:
        return text
    _, user, _, path, rest = _parts(url)
    _, _, _, shown_path, shown_rest = _parts(shown)
    instead = {path + rest: shown_path + shown_rest, path: shown_path}
    pieces = [rest[1:], user[:-1], *(piece for piece in re.split(r"[/?#&=:@]", url) if len(piece) >= LONG)]
    instead |= {piece: "…" for piece in sorted(pieces, key=len, reverse=True) if piece not in shown}

    def hidden(part: str) -> str:
        for secret, stand_in in instead.items():
            if secret != stand_in and len(secret.strip("/")) > 1:
                part = part.replace(secret, stand_in)
        return part

    return shown.join(map(hidden, text.split(url)))


def hide_urls(text: str) -> str:
    r"""
    Remove credentials from all URLs in a text.

    :param text: one whose URLs are not known, such as a sink's description, which writes ``\:`` for a colon.
    """

    def hidden(match: re.Match[str]) -> str:
        slashes = match[1] or ""
        return hide_url(match[0].replace(f"{slashes}:", ":")).replace(":", f"{slashes}:")

    return _URL.sub(hidden, text)


def _parts(url: str) -> tuple[str, str, str, str, str]:
    """Split a URL into scheme, user, authority, path, and query with fragment; this works for any text."""
    match = _PARTS.fullmatch(url)
    assert match is not None
    return match[1] or "", match[2], match[3], match[4], match[5]
