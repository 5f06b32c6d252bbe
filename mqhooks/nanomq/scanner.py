"""
Parses a configuration file: NanoMQ's dialect of HOCON.

NanoMQ and HOCON disagree on white space, which joins in HOCON and separates in NanoMQ: ``[ {…} {…} ]`` are two elements in
NanoMQ, and ``event = "x" topic = "y"`` are two members. Here white space separates two blocks of a list, and a value from a key
that ``=``, ``:`` or ``{`` follows. Text beside text or beside ``${…}`` is joined, as in HOCON.

- A value that is not wanted is skipped by its brackets and quotes alone, so a broker's thousands of access rules cost little,
  however they are written.
- Text stays as it is in the file, so ``007`` and ``5m-x`` are read as just that.
- Nothing here opens a file or resolves a reference, and the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from mqhooks.errors import ConfigError

NESTING = "nested too deeply, or it includes itself"
"""The message for a file that never ends."""

DEPTH = 50
"""Maximum depth of open brackets."""

CONFIDENTIAL = re.compile(
    r"(whsec_|whsk_|secret|password|authorization|token|key|\b(?:basic|bearer|oauth2|proxy)\b|https?:?//|://).*",
    re.IGNORECASE,
)
"""Matches the part of a line, or of a key's name, that must not be shown."""

_QUOTES = '; text that has "=" or ":" in it goes into quotes: x = "a=b"'
_SEPARATE = "; put the text into quotes, or a comma before a key that begins here"
_NO_VALUE = "; the key before it has no value: write key = value"
_BRACES = '; a key in quotes has no dots beside it: write it in braces, as in headers { "x-a" = b }'
_BEHIND = "; text cannot follow a block or a list: is a comma missing, or a comment's # or //?"
_BRACKET = "; this bracket closes nothing: is one missing before it, or is it one too many?"
_NO_KEY = "; no key is before it: write key = value, or name { … }"
_REFERENCES = "; write ${NAME} or ${?NAME}, with both braces"
_MIXED = "; text, blocks and lists cannot be joined: is a comma or a key missing?"

_PLACEHOLDER = "; a placeholder like {{clientid}} goes into quotes, with whatever stands beside it"

_BLANK = re.compile(r"(?:[^\S\n]|\ufeff)*")
_COMMENT = re.compile(r"(?:#|//)[^\n]*")
_BETWEEN = re.compile(r"(?:\s|\ufeff|,|(?:#|//)[^\n]*)*")
_BEFORE = re.compile(r"(?:\s|\ufeff|(?:#|//)[^\n]*)*")
_SEPARATOR = re.compile(r"(?:[^\S\n]|\ufeff)*(\+=|=|:|\{)")
_BELOW = re.compile(r"(?:\s|\ufeff)*\{")
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_RAW = re.compile(r'"""(.*?"*)"""(?!")', re.DOTALL)
_REFERENCE = re.compile(r"\$\{(\??)([^{}\n]+)\}")
_LEVEL = r"(?<=/)\#(?=[\s,}\]]|\Z)"  # the end of a topic filter, not a comment
_WORD = re.compile(
    rf'(?:[^\s\ufeff"{{}}\[\],=:\#$+/]|\$(?!\{{)|\+(?!=)|:(?![\s"{{\[]|\$\{{|\Z)|/(?!/)|(?<=:)//|{_LEVEL})+',
)
_ASSIGNED = re.compile(r"=(?=\S)")
_TIGHT = re.compile(r"[\w.-]+:(?!/)")
_KEY = re.compile(r'(?:[^\s\ufeff"{}\[\],=:#$+/]|\+(?!=)|/(?!/)|\$(?!\{))+')
_INCLUDE = re.compile(
    r'include(?:[^\S\n]+(?=["a-z])|(?="))(?:(?P<required>required)\s*\(\s*)?(?:(?P<kind>[a-z]+)\s*\(\s*)?(?=")', re.IGNORECASE
)
_STEP = re.compile(rf'"""|"[^"\\]*(?:\\.[^"\\]*)*"|"|{_LEVEL}|\#[^\n]*|(?<!:)//[^\n]*|[{{}}\[\]]', re.DOTALL)
_ESCAPE = re.compile(r"(?P<units>(?:\\u[0-9A-Fa-f]{4})+)|\\.", re.DOTALL)
# The escapes of JSON, and those that pyhocon has from .properties files.
_ESCAPED = dict(zip('"\\/bfnrt=#!\n', '"\\/\b\f\n\r\t=#!\n', strict=True))
_CLOSING = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class Text:
    """
    Text, a number, or anything else that is not a block, a list or ``${…}``.

    :param text: the text, with its inner white space kept and its escapes resolved.
    :param quoted: whether any of it was in quotes.
    """

    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """
    ``${name}`` or ``${?name}``.

    :param name: the name between the braces.
    :param gap: the white space behind it, which matters only beside text.
    """

    name: str
    optional: bool
    line: int
    gap: str = ""


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class BlockMembers:
    """A block."""

    entries: tuple[Member | Include, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """
    A block or a list that was skipped.

    :param start: where it begins.
    """

    start: int


Part = Text | Reference | Items | BlockMembers | Skipped
Value = tuple[Part, ...]
"""A key's value: several parts when they have to be joined."""


@dataclass(frozen=True, slots=True)
class Member:
    """
    A key and its value.

    :param path: the key, split at its dots.
    :param append: whether ``+=`` is between key and value.
    """

    path: tuple[str, ...]
    append: bool
    value: Value
    line: int


@dataclass(frozen=True, slots=True)
class Include:
    """
    ``include "file"``.

    :param kind: ``file``, ``url``, or any other word before a parenthesis.
    """

    name: str
    kind: str
    required: bool
    line: int


class Scanner:
    r"""
    Reads one file's text.

    :param text: with ``\n`` at the end of lines.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
        self._key = ""

    def members(self, wanted: Callable[[str], bool]) -> tuple[Member | Include, ...]:
        """
        Read the file's members.

        :param wanted: returns whether to read the value of a top-level key. Other blocks and lists are :class:`Skipped`.
        :raises mqhooks.errors.ConfigError: when they cannot be read. The message says what is wrong, in which line, and what to
            write; it does not name the file.
        """
        self._at = _BEFORE.match(self._text).end()  # type: ignore[union-attr] # it matches anything
        if self._text.startswith("[", self._at):
            self._skip()
            raise ConfigError("holds a list, not settings like webhook { … }")
        braces = self._text.startswith("{", self._at)
        self._at += braces
        entries = tuple(self._entries("}" if braces else "", wanted, at=self._at - braces))
        if braces:
            self._pass(_BETWEEN)
            if self._at < len(self._text):
                raise self._error(self._at, "; the brace that begins the file was closed before it")
        return entries

    def unskipped(self, member: Member) -> Member:
        """
        Read a member that was skipped.

        :raises mqhooks.errors.ConfigError: as :meth:`members` does.
        """
        value = tuple(self._again(part) if isinstance(part, Skipped) else part for part in member.value)
        return Member(member.path, member.append, value, member.line)

    def _again(self, skipped: Skipped) -> Part:
        self._at = skipped.start
        return self._members() if self._text[self._at] == "{" else self._items()

    def _pass(self, blank: re.Pattern[str]) -> str:
        match = blank.match(self._text, self._at)
        assert match is not None  # they match nothing, too
        self._at = match.end()
        return match[0]

    def _entries(self, closing: str, wanted: Callable[[str], bool] | None, *, at: int) -> Iterator[Member | Include]:
        while True:
            self._pass(_BETWEEN)
            if self._at >= len(self._text):
                if closing:
                    raise self._unclosed(at)
                return
            if closing and self._text[self._at] == closing:
                self._at += 1
                return
            self._key = ""
            include = _INCLUDE.match(self._text, self._at)
            if include:
                yield self._include(include)
            else:
                yield self._member(wanted)

    def _include(self, match: re.Match[str]) -> Include:
        line = self._line(self._at)
        self._at = match.end()
        name = self._string()
        for _ in range(match[0].count("(")):
            self._pass(_BLANK)
            if not self._text.startswith(")", self._at):
                raise self._error(self._at, '; write it like include required("more.conf")')
            self._at += 1
        return Include(name, (match["kind"] or "").lower(), match["required"] is not None, line)

    def _member(self, wanted: Callable[[str], bool] | None) -> Member:
        line = self._line(self._at)
        path = self._path()
        self._key = ".".join(path)
        self._pass(_BEFORE)
        separator = _SEPARATOR.match(self._text, self._at)
        if separator is None:
            raise self._error(self._at, _NO_VALUE)
        if separator[1] != "{":
            self._at = separator.end()
            self._pass(_BEFORE)
        value = tuple(self._value(keep=wanted is None or wanted(path[0]), within_list=False))
        if not value:
            raise self._error(self._at, _NO_VALUE)
        return Member(path, separator[1] == "+=", value, line)

    def _path(self) -> tuple[str, ...]:
        start = self._at
        if self._text[start] == '"':
            name = self._string()
            if self._text.startswith(".", self._at):
                raise self._error(self._at, _BRACES)
            return (name,)
        end = start
        while word := _KEY.match(self._text, self._at):
            self._at = end = word.end()
            self._pass(_BLANK)
        name = self._text[start:end]
        if name.endswith(".") and self._text.startswith('"', self._at):
            raise self._error(self._at, _BRACES)
        if not name:
            raise self._error(self._at, _BRACKET if self._text[self._at] in "}]" else _NO_KEY)
        path = tuple(part.strip() for part in name.split("."))
        if not all(path):
            raise self._error(start, "; remove the dot at the beginning or end of this key, or the second of two dots")
        return path

    def _value(self, *, keep: bool, within_list: bool) -> Iterator[Part]:
        """Read the parts of one value; adjoining text is one part."""
        text: list[str] = []
        quoted = False
        last: str | None = None  # the first character of the part before: of text, "t"
        while True:
            gap = self._pass(_BLANK)
            start = self._at
            first = self._text[start : start + 1]
            if first in ("", "\n", ",", "}", "]") or _COMMENT.match(self._text, start):
                break
            if first in "{[":
                if keep and self._text.startswith("{{", start):
                    raise self._error(start, _PLACEHOLDER)
                if within_list and last in ("{", "["):
                    break
                if last == "t" or (last in ("{", "[") and last != first):
                    raise self._error(start, _MIXED)
                yield self._bracketed(first, keep=keep)
                last = first
                continue
            reference = _REFERENCE.match(self._text, start)
            if reference:
                if last == "t":
                    yield Text("".join((*text, gap)), quoted)
                    text, quoted = [], False
                self._at = reference.end()
                behind = self._pass(_BLANK)
                self._at -= len(behind)
                yield Reference(reference[2].strip(), reference[1] == "?", self._line(start), behind)
                last = "$"
                continue
            piece = self._piece()
            if within_list:
                self._check_no_key()
                if last in ("{", "["):
                    raise self._error(start, _BEHIND)
            elif self._is_key(piece, start, last, after_quotes=quoted, keep=keep):
                self._at = start
                break
            text += [piece.text] if last is None else [gap, piece.text]
            quoted |= piece.quoted
            last = "t"
        if last == "t":
            yield Text("".join(text), quoted)

    def _is_key(self, piece: Text, start: int, last: str | None, *, after_quotes: bool, keep: bool) -> bool:
        """Return whether text in a value's place is the key of the next member instead."""
        plain = last == "t" and not after_quotes and not piece.quoted
        if last is None:
            self._check_no_key()
            return False
        if last in ("{", "[") or _BELOW.match(self._text, self._at):
            return True
        if _SEPARATOR.match(self._text, self._at):
            if plain and CONFIDENTIAL.search(self._key) and _ASSIGNED.match(self._text, self._at):
                # This would cut credentials in two.
                raise self._error(start, _SEPARATE)
            return True
        if piece.quoted or not _TIGHT.match(piece.text):
            return False
        if keep and (plain or last == "$"):
            raise self._error(start, _SEPARATE)
        return not plain and last != "$"

    def _check_no_key(self) -> None:
        separator = _SEPARATOR.match(self._text, self._at)
        if separator:
            at = separator.start(1)
            hint = _PLACEHOLDER if self._text.startswith("{{", at) else _MIXED if separator[1] == "{" else _QUOTES
            raise self._error(at, hint)

    def _bracketed(self, first: str, *, keep: bool) -> Part:
        if not keep:
            return self._skip()
        return self._members() if first == "{" else self._items()

    def _members(self) -> BlockMembers:
        start = self._deeper()
        entries = tuple(self._entries("}", None, at=start))
        self._depth -= 1
        return BlockMembers(entries)

    def _items(self) -> Items:
        start = self._deeper()
        items: list[Value] = []
        while True:
            self._pass(_BETWEEN)
            if self._at >= len(self._text):
                raise self._unclosed(start)
            if self._text[self._at] == "]":
                self._at += 1
                self._depth -= 1
                return Items(tuple(items))
            value = tuple(self._value(keep=True, within_list=True))
            if not value:
                raise self._error(self._at, _BRACKET)
            items.append(value)

    def _deeper(self) -> int:
        self._depth += 1
        if self._depth > DEPTH:
            raise ConfigError(NESTING)
        self._at += 1
        return self._at - 1

    def _skip(self) -> Skipped:
        start = self._at
        opened: list[int] = []
        while step := _STEP.search(self._text, self._at):
            self._at = step.end()
            found = step[0]
            if found in _CLOSING:
                opened.append(step.start())
                if len(opened) > DEPTH:
                    raise ConfigError(NESTING)
            elif found in ("}", "]"):
                before = opened.pop()
                if _CLOSING[self._text[before]] != found:
                    raise self._error(step.start(), f"; the {self._text[before]} of line {self._line(before)} is open")
                if not opened:
                    return Skipped(start)
            elif found in ('"""', '"'):
                self._at = step.start()
                self._string()
        raise self._unclosed(opened[-1])

    def _piece(self) -> Text:
        if self._text[self._at] == '"':
            return Text(self._string(), quoted=True)
        word = _WORD.match(self._text, self._at)
        if word is None:
            raise self._error(self._at, _QUOTES if self._text[self._at] in "=:+" else _REFERENCES)
        self._at = word.end()
        return Text(word[0], quoted=False)

    def _string(self) -> str:
        raw = self._text.startswith('"""', self._at)
        match = (_RAW if raw else _QUOTED).match(self._text, self._at)
        if match is None:
            raise ConfigError(f"syntax error at the end of the file: the quotes of line {self._line(self._at)} are not closed")
        self._at = match.end()
        return match[1] if raw else _ESCAPE.sub(_unescaped, match[1])

    def _line(self, at: int) -> int:
        return bisect_right(self._starts, at)

    def _unclosed(self, at: int) -> ConfigError:
        return ConfigError(f"syntax error at the end of the file: the {self._text[at]} of line {self._line(at)} is not closed")

    def _error(self, at: int, hint: str = "") -> ConfigError:
        if at >= len(self._text.rstrip()):
            return ConfigError("syntax error at the end of the file: a value or a bracket is incomplete")
        number = self._line(at)
        begin = self._starts[number - 1]
        line = self._text[begin : self._starts[number] - 1].strip()
        shown = "…" if CONFIDENTIAL.search(self._key) else CONFIDENTIAL.sub(r"\1…", line)[:80]
        if CONFIDENTIAL.search(self._key) and self._key in line:
            shown = f"{self._key}…"
        return ConfigError(f"syntax error in line {number}, column {at - begin + 1}: {shown!r}{hint}")


def _unescaped(escape: re.Match[str]) -> str:
    if escape["units"] is None:
        return _ESCAPED.get(escape[0][1], escape[0])
    # A character beyond the first 65,536 is written as two surrogates; a lone surrogate is not a character.
    return bytes.fromhex(escape["units"].replace("\\u", "")).decode("utf-16-be", "replace")
