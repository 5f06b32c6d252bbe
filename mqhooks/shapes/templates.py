"""
Compile templates: a URL's path and query, a header or a body in which placeholders stand for an event's fields.

A template is parsed once. Values that clients choose, such as their ids and topics, are hostile: they are escaped for the place
where they are inserted, and a value that no escaping makes harmless, such as ``..`` in a path, makes a request
:class:`Unsendable`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from mqhooks.errors import ConfigError
from mqhooks.events import Event
from mqhooks.nanomq.bodies import as_json
from mqhooks.nanomq.settings import Encoding
from mqhooks.shapes.fields import PLACEHOLDER, Field, Get, field

LONGEST = 1 << 13
"""Longest path and query of a URL, or header, in characters: most servers accept that."""

DECODED = 4
"""Number of times that a path is decoded to look for dot segments. Proxies in a row may decode it twice."""

OFTEN = 256
"""Longest value, in characters, whose escaped form is remembered."""

# Values in which no dot can make a dot segment.
_harmless = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*").fullmatch
_not_for_headers = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|\A[ \t]|[ \t]\Z").search
_slashes = re.compile(r"[/\\]").split
_quotes = re.compile(r'\\.|"', re.DOTALL).findall
_encode = msgspec.json.Encoder().encode


class Unsendable(Exception):
    """A value of an event does not fit into its request: the message says where, and why."""


def normal(template: str) -> str:
    """Remove the white space beside a placeholder's braces."""
    return PLACEHOLDER.sub(lambda match: f"{{{{{match[1].strip()}}}}}", template)


def placeholders(template: str) -> list[str]:
    """List the names in a template's placeholders."""
    return [name.strip() for name in PLACEHOLDER.findall(template)]


def parse(template: str, event: str, encoding: Encoding = "json") -> tuple[list[str], list[Field]]:
    """
    Parse a template.

    :returns: the pieces of text around the placeholders, one more than there are placeholders; and their fields.
    :raises mqhooks.errors.ConfigError: when a placeholder is wrong; only the message is set.
    """
    pieces = PLACEHOLDER.split(template)
    if any("{{" in piece for piece in pieces[::2]):
        raise ConfigError("{{ begins a placeholder, but no }} ends it: write it like {{clientid}}")
    return pieces[::2], [field(name.strip(), event, encoding) for name in pieces[1::2]]


def _joined(pieces: list[str]) -> str:
    return "%s".join(piece.replace("%", "%%") for piece in pieces)


def url_maker(template: str, event: str, encoding: Encoding = "json") -> Callable[[Event, Any], str]:
    """
    Compile path and query of a URL.

    :returns: a function that makes them for an event and, for an event of a subscription, its topic. It raises
        :class:`Unsendable`.
    :raises mqhooks.errors.ConfigError: when the template can never give a URL; only the message is set.
    """
    pieces, fields = parse(template, event, encoding)
    sample = "x".join(pieces)
    if not sample.startswith(("/", "?")) or sample.startswith("//"):
        raise ConfigError(
            "is not a path that begins with one slash: write it like /devices/{{clientid}}; the host is the webhook's"
        )
    if not sample.isascii() or not sample.isprintable() or " " in sample or set(sample) & set('#{}"<>\\^`|'):
        raise ConfigError("has a character that a path or a query cannot have: percent-encode it")
    path = template.partition("?")[0]
    dynamic = tuple(index for index, segment in enumerate(PLACEHOLDER.sub("{", path).split("/")) if "{" in segment)
    # Text beside a placeholder may turn a value without a dot into a dot segment.
    beside = PLACEHOLDER.split(path)[::2]
    wary = "%" in path or any(piece.startswith(".") or piece.endswith(".") for piece in beside)
    try:
        _check_path(sample, dynamic)
    except Unsendable as error:
        raise ConfigError(str(error)) from None
    form = _joined(pieces)

    def make(event: Event, item: Any) -> str:
        values = []
        check = wary
        for part in fields:
            value = part.text(event, item)
            if value is None:
                raise Unsendable(f"{{{{{part.name}}}}} is missing")
            if len(value) > LONGEST:
                raise Unsendable(f"{{{{{part.name}}}}} is longer than {LONGEST} characters")
            escaped, harmless = _escape_often(value) if len(value) <= OFTEN else _escape(value)
            values.append(escaped)
            check = check or not harmless
        url = form % tuple(values)
        if len(url) > LONGEST:
            raise Unsendable(f"path and query are longer than {LONGEST} characters")
        if check:
            _check_path(url, dynamic)
        return url

    return make


def _escape(value: str) -> tuple[str, bool]:
    """Escape a value for a URL, and return whether it is unable to make a dot segment or an empty one."""
    harmless = value != "" and (_harmless(value) is not None or not ("." in value or "%" in value))
    return quote(value, safe="", errors="replace"), harmless


# The same clients and topics recur.
_escape_often = lru_cache(1 << 12)(_escape)


def _check_path(url: str, dynamic: tuple[int, ...]) -> None:
    path = url.partition("?")[0]
    segments = path.split("/")
    for index in dynamic:
        if not segments[index]:
            raise Unsendable("a segment of the path would be empty")
    for _ in range(DECODED + 1):
        for segment in _slashes(path):
            # A semicolon ends the name of a segment: RFC 3986, section 3.3.
            if segment.partition(";")[0].strip() in (".", ".."):
                raise Unsendable("a segment of the path would be . or .., which leads elsewhere")
        path = unquote(path)


def header_maker(template: str, event: str, encoding: Encoding = "json") -> Callable[[Event, Any], str]:
    """Compile the value of a header; see :func:`url_maker`."""
    pieces, fields = parse(template, event, encoding)
    form = _joined(pieces)
    if not fields:
        fixed = "".join(pieces)
        return lambda _event, _item: fixed

    def make(event: Event, item: Any) -> str:
        values = []
        for part in fields:
            value = part.text(event, item)
            if value is None:
                raise Unsendable(f"{{{{{part.name}}}}} is missing")
            values.append(value)
        header = form % tuple(values)
        if len(header) > LONGEST:
            raise Unsendable(f"it is longer than {LONGEST} characters")
        if not (header.isprintable() and header.strip() == header) and _not_for_headers(header):
            raise Unsendable("it would have a line break or another control character, or a space at its beginning or end")
        return header

    return make


class BodyTemplate:
    """
    A compiled body.

    A template that is JSON, with its placeholders within strings or in place of values, always makes JSON. In any other text,
    values are escaped as in a JSON string.

    :param template: the body.
    :param event: the event of the rule.
    :param encoding: the encoding of ``{{payload}}``.
    :param plain: whether the body is text in which nothing is escaped.
    :ivar json: whether it makes JSON.
    :ivar members: whether it makes JSON objects, none of them empty.
    :raises mqhooks.errors.ConfigError: when a placeholder is wrong; only the message is set.
    """

    def __init__(self, template: str, event: str, encoding: Encoding = "json", *, plain: bool = False) -> None:
        pieces, fields = parse(template, event, encoding)
        quoted = list(_quoted(pieces))
        sample = "".join(
            f"{piece}{stand_in}"
            for piece, stand_in in zip(pieces, [*("x" if each else "0" for each in quoted), ""], strict=True)
        )
        self.json = not plain and as_json(sample.encode()) is not None
        if not (plain or self.json) and sample.lstrip().startswith(("{", "[")):
            raise ConfigError(
                "starts like JSON but is not valid JSON: fix it, or set headers.content-type = text/plain for other text"
            )
        # An object that is not empty has a name in quotes. Its numbers may be longer than any that Python can hold.
        self.members = self.json and sample.lstrip().startswith("{") and '"' in sample
        if self.json:
            pieces[0], pieces[-1] = pieces[0].lstrip(), pieces[-1].rstrip()
        self._form = b"%b".join(piece.encode().replace(b"%", b"%%") for piece in pieces)
        if self.json:
            self._parts = [
                _within(part.text) if inside else _value(part.value) for part, inside in zip(fields, quoted, strict=True)
            ]
        else:
            self._parts = [(_bare if plain else _within)(part.text) for part in fields]

    def make(self, event: Event, item: Any) -> bytes:
        """Make the body of an event and, for an event of a subscription, its topic."""
        return self._form % tuple([part(event, item) for part in self._parts])


def _quoted(pieces: list[str]) -> Iterator[bool]:
    """Tell for each placeholder whether it is within a JSON string."""
    inside = False
    for piece in pieces[:-1]:
        inside ^= _quotes(piece).count('"') % 2 == 1
        yield inside


def _value(get: Get) -> Callable[[Event, Any], bytes]:
    return lambda event, item: _encode(get(event, item))


def _within(get: Get) -> Callable[[Event, Any], bytes]:
    def make(event: Event, item: Any) -> bytes:
        text = get(event, item)
        return b"null" if text is None else _encode(text)[1:-1]

    return make


def _bare(get: Get) -> Callable[[Event, Any], bytes]:
    def make(event: Event, item: Any) -> bytes:
        text = get(event, item)
        return b"null" if text is None else text.encode()

    return make
