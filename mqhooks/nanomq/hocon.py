"""
HOCON files, read by pyhocon, and the values in them, checked.

The format: https://github.com/lightbend/config/blob/main/HOCON.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pyhocon import ConfigFactory, config_parser
from pyhocon.config_tree import ConfigQuotedString, ConfigUnquotedString, NoneValue
from pyhocon.exceptions import ConfigSubstitutionException
from pyparsing import ParseBaseException, ParserElement, Regex

from mqhooks.errors import ConfigError

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
    "nano": 1e-9,
    "micro": 1e-6,
    "milli": 1e-3,
    "nanosecond": 1e-9,
    "microsecond": 1e-6,
    "millisecond": 1e-3,
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86400.0,
    "week": 604800.0,
}
_SIZES = {"": 1, "b": 1, "byte": 1, "bytes": 1} | {
    spelling.lower(): base**power
    for base, suffixes in ((1024, ("", "i", "iB")), (1000, ("B",)))
    for power, letter in enumerate("KMGT", 1)
    for spelling in (letter + suffix for suffix in suffixes)
}
_QUANTITY = re.compile(r"\s*(\+?(?:\d{1,18}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*([A-Za-z]*)\s*")
_NUMBER = r"[+-]?(?:\d*\.)?\d+(?:[eE][+-]?\d+)?"
_BARE = re.compile(rf"{_NUMBER}|true|false", re.IGNORECASE)
_CONFIDENTIAL = re.compile(r"(whsec_|secret|password|authorization|token|key|://[^/\s]*@).*", re.IGNORECASE)
_ESCAPE = re.compile(r"(?P<units>(?:\\u[0-9A-Fa-f]{4})+)|\\.")
# What JSON has, and what pyhocon has from .properties files.
_ESCAPED = dict(zip(r'"\/bfnrt=#!', '"\\/\b\f\n\r\t=#!', strict=True))
_QUOTED_PART = re.compile(r'[^"#=:]*\.\s*"$')
_NESTING = "nested too deeply, or it includes itself"

T = TypeVar("T")


def read(path: str) -> tuple[dict[str, Any], list[str]]:
    """
    Read a file, with what it includes and substitutes. Includes of URLs are refused.

    :returns: plain dictionaries and lists, of text as it is written and of ``None`` for ``null``; and warnings.
    :raises mqhooks.errors.ConfigError: when that is not possible, for whatever reason.
    """
    warnings: list[str] = []
    with _including(warnings), _as_written():
        try:
            tree = _parse_file(path, resolve=True)
        except ConfigSubstitutionException as error:
            raise ConfigError(_substitution(str(error)), path) from None
        except RecursionError:
            raise ConfigError(_NESTING, path) from None
    values = _plain(tree)
    if not isinstance(values, dict):
        raise ConfigError("holds a list, not settings like webhook { … }", path)
    return values, warnings


def _parse_file(path: str, **options: Any) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from None
    except ValueError:
        raise ConfigError("is not UTF-8 text", path) from None
    try:
        return ConfigFactory.parse_string(text, os.path.dirname(path), **options)
    except ParseBaseException as error:
        line = _CONFIDENTIAL.sub(r"\1…", error.line.strip())
        place = f"in line {error.lineno}, column {error.column}: {line[:80]!r}"
        if error.loc >= len(text.rstrip()):
            place = "at the end of the file: something is not closed or not finished"
        elif _QUOTED_PART.match(error.line[: error.column]):
            place += '; a key in quotes has no dots beside it: write it in braces, as in headers { "x-a" = b }'
        raise ConfigError(f"syntax error {place}", path) from None
    except (ConfigError, ConfigSubstitutionException, RecursionError):
        raise
    except Exception as error:
        # The parser's own, for text that it accepts and then cannot make sense of.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"cannot be understood: {reason}", path) from None


@contextmanager
def _including(warnings: list[str]) -> Iterator[None]:
    """
    Have included files read by us.

    pyhocon reads them through its factory, where a mistake does not say in which file it is, a file may include itself, and a
    URL is fetched.
    """
    reading: list[str] = []

    def parse_file(path: str, *, required: bool = False, **options: Any) -> Any:
        name = os.path.realpath(path)
        if name in reading:
            raise ConfigError("includes itself", path)
        if not os.path.exists(path) and not required:
            warnings.append(f"{path}: does not exist; what it was to be included for is missing")
            return []
        reading.append(name)
        try:
            return _parse_file(path, **options)
        finally:
            reading.pop()

    def parse_url(url: str, **_: Any) -> Any:
        raise ConfigError("URLs are not included: fetch it into a file and include that", url)

    originals = ConfigFactory.parse_file, ConfigFactory.parse_URL
    ConfigFactory.parse_file, ConfigFactory.parse_URL = parse_file, parse_url
    try:
        yield
    finally:
        ConfigFactory.parse_file, ConfigFactory.parse_URL = originals


@contextmanager
def _as_written() -> Iterator[None]:
    r"""
    Have numbers, durations and truth values read as the text that they are, and all of JSON's escapes understood.

    pyhocon makes ``7`` of ``007`` and ``0:05:00-x`` of ``5m-x``, within text too, and what was written is gone; in quotes it
    knows no ``\u0041``. The expression for durations is the one that it tries first.
    """
    original = config_parser.get_period_expr
    config_parser.get_period_expr = _scalar
    try:
        yield
    finally:
        config_parser.get_period_expr = original


def _scalar() -> ParserElement:
    number = Regex(rf"{_NUMBER}(?=[ \t]*(?:\Z|[$}}\],#\n\r]|//))[ \t]*")
    truth = Regex(r"(?:true|false)(?![\w$])[ \t]*", re.IGNORECASE)
    null = Regex(r"null(?![\w$])[ \t]*", re.IGNORECASE)
    quoted = Regex(r'"(?!"")(?P<text>(?:[^"\\\n]|\\.)*)"(?P<space>[ \t]*)')
    return (
        (number | truth).set_parse_action(lambda tokens: ConfigUnquotedString(tokens[0]))
        | null.set_parse_action(_Null)
        | quoted.set_parse_action(_quoted)
    )


def _quoted(text: str, at: int, tokens: Any) -> ConfigQuotedString:
    return ConfigQuotedString(_ESCAPE.sub(_unescaped, tokens["text"]), tokens["space"], text, at)


def _unescaped(escape: re.Match[str]) -> str:
    if escape["units"] is None:
        return _ESCAPED.get(escape[0][1], escape[0])
    # What has no place among the first 65,536 characters is written as two halves; one alone is no character.
    return bytes.fromhex(escape["units"].replace("\\u", "")).decode("utf-16-be", "replace")


class _Null(NoneValue):  # type: ignore[misc]
    """Nothing; within text, the word."""

    def __init__(self, tokens: Any) -> None:
        self._text = tokens[0]

    def __str__(self) -> str:
        return str(self._text)


def _substitution(message: str) -> str:
    names = list(dict.fromkeys(re.findall(r"\$\{([^}]+)\}", message)))
    if "cycles" in message:
        return f"{' and '.join(f'${{{name}}}' for name in names)} refer to each other or to nothing"
    line = re.search(r"line: (\d+)", message)
    place = f" (line {line[1]})" if line else ""
    return f"${{{names[0]}}} is not set{place}: set the environment variable, or write ${{?{names[0]}}} where it may be missing"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_unquoted(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _unquoted(key: str) -> str:
    return key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key


def suggest(name: str, known: Iterable[str]) -> str:
    """
    Suggest what a misspelt name may have been meant to be.

    :returns: text to append to a message; empty when nothing known is similar.
    """
    nearest = get_close_matches(name.lower(), list(known), 1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class Block:
    """
    The settings between two braces. Each is read once, by its key and as the type it has to be; the keys that nobody asked for
    are unknown.

    :param values: what the braces hold.
    :param where: the file; it is an attribute too.
    :param path: the block's own key; empty for the file itself.
    :param warnings: gets what is odd but no mistake.
    """

    def __init__(self, values: Mapping[str, Any], where: str, path: str, warnings: list[str]) -> None:
        self.where = where
        self._values = values
        self._path = path
        self._warnings = warnings
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def path(self, key: str) -> str:
        """Write out where a key stands."""
        return f"{self._path}.{key}" if self._path else key

    def error(self, key: str, message: str) -> ConfigError:
        """Make the error of a key."""
        return ConfigError(message, self.where, self.path(key))

    def warn(self, key: str, message: str) -> None:
        """Note something that is odd but no mistake."""
        self._warnings.append(f"{self.where}: {self.path(key)}: {message}")

    def string(self, key: str, default: T) -> str | T:
        """Read text."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def file(self, key: str, default: T) -> str | T:
        """Read the path of a file."""
        path = self.string(key, default)
        if path == "":
            raise self.error(key, "is empty: which file is it?")
        if isinstance(path, str) and "\0" in path:
            raise self.error(key, "has a NUL character, which no path has")
        return path

    def boolean(self, key: str, *, default: bool) -> bool:
        """Read ``true`` or ``false``, also spelt ``on``, ``off``, ``yes`` or ``no``."""
        value = self._get(key)
        if value is None:
            return default
        named = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
        chosen = named.get(value.lower()) if isinstance(value, str) else None
        if chosen is None:
            raise self._wrong(key, value, "true or false")
        return chosen

    def integer(self, key: str, default: T, *, least: int, most: int | None = None) -> int | T:
        """Read a whole number within limits."""
        value = self._get(key)
        if value is None:
            return default
        number = int(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value) else None
        if number is None or number < least or (most is not None and number > most):
            limits = f"a whole number of {least} or more" if most is None else f"a whole number from {least} to {most}"
            raise self._wrong(key, value, limits)
        return number

    def number(self, key: str, default: float, *, least: float, most: float) -> float:
        """Read a number within limits."""
        value = self._get(key)
        if value is None:
            return default
        number = _quantity(value, {"": 1.0}, "")
        if number is None or not least <= number <= most:
            raise self._wrong(key, value, f"a number from {least:g} to {most:g}")
        return number

    def duration(self, key: str, default: float, *, unit: str, zero: bool = False) -> float:
        """
        Read a duration.

        :param unit: what a plain number counts, for example ``ms``.
        :param zero: whether it may be nothing.
        :returns: seconds.
        """
        value = self._get(key)
        if value is None:
            return default
        seconds = _quantity(value, _UNITS, unit)
        if seconds is None or not 0 <= seconds < 1e9 or (seconds == 0 and not zero):
            raise self._wrong(key, value, f"a duration like 5s, 500ms or a number of {unit}{', or 0' if zero else ''}")
        return seconds

    def size(self, key: str, default: int, *, least: int, most: int | None = None) -> int:
        """Read a size in bytes within limits."""
        value = self._get(key)
        if value is None:
            return default
        size = _quantity(value, _SIZES, "")
        if size is None or size < least or (most is not None and size > most):
            limits = f"of {least} bytes or more" if most is None else f"from {least} to {most} bytes"
            raise self._wrong(key, value, f"a size {limits}, like 512KiB or 16MiB")
        return int(size)

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        """Read one of some names, in any case."""
        value = self.string(key, default)
        if value.lower() not in choices:
            raise self.error(key, f"{value!r} is not one of {', '.join(choices)}{suggest(value, choices)}")
        return value.lower()

    def block(self, key: str) -> Block:
        """Open a block within this one; an empty one when it is not there."""
        value = self._get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong(key, value, "a block in braces")
        return Block(value, self.where, self.path(key), self._warnings)

    def blocks(self, key: str) -> list[Block]:
        """Open the blocks of a list; none when it is not there."""
        value = self._get(key)
        if value is None:
            value = []
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list in brackets")
        opened = []
        for index, item in enumerate(value):
            name = f"{key}[{index}]"
            if not isinstance(item, dict):
                raise self._wrong(name, item, "a block in braces")
            opened.append(Block(item, self.where, self.path(name), self._warnings))
        return opened

    def entries(self, key: str) -> list[Any] | None:
        """Read a list; what stands alone is one of its own."""
        value = self._get(key)
        return value if isinstance(value, list) or value is None else [value]

    def members(self) -> Iterator[tuple[str, Any]]:
        """Read all that is not ``null``, in the file's order; the keys of blocks within the block are joined by dots."""
        self._known.update(self._values)
        yield from _flat(self._values)

    def names(self) -> list[str]:
        """List the keys that are there, in the file's order."""
        return [key for key, value in self._values.items() if value is not None]

    def close(self) -> None:
        """Warn of keys that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                self.warn(key, f"unknown, ignored{suggest(key, self._known)}")

    def _get(self, key: str) -> Any:
        self._known.add(key)
        return self._values.get(key)

    def _wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        shown = "what is given" if _CONFIDENTIAL.search(key) else _described(value)
        return self.error(key, f"{shown} is not {wanted}")


def _quantity(value: Any, units: Mapping[str, float], unit: str) -> float | None:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    name = match[2].lower() or unit
    factor = units.get(name, units.get(name.removesuffix("s")))
    return None if factor is None else float(match[1]) * factor


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return "a block"
    if isinstance(value, list):
        return "a list"
    text = str(value)[:80]
    return text if _BARE.fullmatch(text) else repr(text)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in _flat(value))
        elif value is not None:
            yield key, value
