"""
Read values from a configuration, and check them.

- Each value is read by its key and type. Keys that nobody has read are unknown, so there is no list of keys to keep up to date.
- Mistakes are collected, and the default is used in place of a wrong value, so that one run reports all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from mqhooks.errors import ConfigError, Remark
from mqhooks.nanomq.scanner import CONFIDENTIAL

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
_LITERAL = re.compile(r"\$\{\??([^}]*)\}")
_SCHEME = re.compile(r"[A-Za-z]+ ")

T = TypeVar("T")


class Literal(str):
    """Quoted text that contains ``${``, where nothing is substituted."""

    __slots__ = ()

    def form(self, *, secret: bool = False) -> str:
        """
        Show how to write the text so that it is substituted, leaving out parts that may be secret.

        :param secret: whether all of it may be secret.
        """
        first = _LITERAL.search(self)
        if first is None:
            return '"Bearer "${TOKEN}'
        before, behind = self[: first.start()], self[first.end() :]
        shown = [
            f'"{before if _SCHEME.fullmatch(before) and not secret else "…"}"' if before else "",
            first[0],
            '"…"' if behind else "",
        ]
        return "".join(shown)


class Bare(str):
    """Text without quotes, which may be a number or a boolean where the difference matters."""

    __slots__ = ()


class Unset(str):
    """Replaces text with a variable that is not set. The mistake is reported already, so reading it gives the default."""

    __slots__ = ()


def place_of(path: str, places: Mapping[str, str]) -> str:
    """
    Return the place of a key, or of the nearest block around it; empty if neither is known.

    :param path: the key's path.
    :param places: the file and the line of each key in the configuration.
    """
    while path and path not in places:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return places.get(path, "")


def placed(error: ConfigError, places: Mapping[str, str]) -> ConfigError:
    """Add the place of its key to an error that has none."""
    if error.place or not error.key:
        return error
    return ConfigError(error.message, error.where, error.key, place_of(error.key, places))


def suggest(name: str, known: Iterable[str]) -> str:
    """
    Suggest a known name for a misspelt one.

    :returns: text to append to a message; empty when no known name is similar.
    """
    nearest = get_close_matches(name.lower(), list(known), 1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class Block:
    """
    The settings between two braces. Each is read by its key and checked for its type; keys that were never read are unknown.

    :param values: the settings.
    :param where: the file. It is an attribute, and so are ``asked``: the paths of all keys that were read, inner ones too, and
        ``replaced``: whether the block stands in for another value, which was reported as an error.
    :param path: the block's own key; empty for the file itself.
    :param warnings: collects oddities that are not errors.
    :param errors: collects wrong values, for which the default is returned; without it the first error is raised.
    :param places: the file and the line of each key, if they are known.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        path: str,
        warnings: list[str],
        errors: list[ConfigError] | None = None,
        places: Mapping[str, str] = {},
    ) -> None:
        self.where = where
        self._places = places
        self._values = values
        self._path = path
        self._warnings = warnings
        self._errors = errors
        self._known: set[str] = set()
        self.asked: set[str] = set()
        self.replaced = False
        self._warned: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def holds(self, key: str, inner: str) -> bool:
        """Return whether a key has a block that holds an inner key."""
        value = self._values.get(key)
        return isinstance(value, dict) and value.get(inner) is not None

    def path(self, key: str) -> str:
        """Return the full path of a key."""
        return f"{self._path}.{key}" if self._path else key

    def error(self, key: str, message: str) -> ConfigError:
        """Make an error about a key."""
        path = self.path(key)
        return ConfigError(message, self.where, path, place_of(path, self._places))

    def missing(self, key: str, remedy: str) -> ConfigError:
        """Make the error of a missing key, which may be misspelt."""
        nearest = get_close_matches(key, [name for name in self._values if name not in self._known], 1)
        guess = f" ({nearest[0]!r} is unknown: a misspelling?)" if nearest else ""
        return self.error(key, f"is missing{guess}: {remedy}")

    def fail(self, error: ConfigError) -> None:
        """Note an error, or raise it when errors are not collected."""
        if self._errors is None:
            raise error
        self._errors.append(error)

    def warn(self, key: str, message: str) -> None:
        """Note an oddity that is not an error."""
        self._warnings.append(Remark(self.error(key, message)))

    def string(self, key: str, default: T) -> str | T:
        """Read text."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(self._wrong(key, value, "text"))
            return default
        return value

    def file(self, key: str, default: T) -> str | T:
        """Read the path of a file."""
        path = self.string(key, default)
        if path == "":
            self.fail(self.error(key, "is empty: name a file"))
            return default
        if isinstance(path, str) and "\0" in path:
            self.fail(self.error(key, "has a NUL character, which a path must not have"))
            return default
        return path

    def tree(self, key: str) -> Any:
        """
        Read a value of any type.

        :returns: text, as :class:`Bare` if it had no quotes; lists and dictionaries of text; ``None`` for nothing and ``null``.
        """
        self._known.add(key)
        self.asked.add(self.path(key))
        value = self._values.get(key)
        return None if isinstance(value, Unset) else value

    def boolean(self, key: str, *, default: bool) -> bool:
        """Read ``true`` or ``false``, also spelt ``on``, ``off``, ``yes`` or ``no``."""
        value = self._get(key)
        if value is None:
            return default
        named = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
        chosen = named.get(value.lower()) if isinstance(value, str) else None
        if chosen is None:
            self.fail(self._wrong(key, value, "true or false"))
            return default
        return chosen

    def integer(self, key: str, default: T, *, least: int, most: int | None = None) -> int | T:
        """Read a whole number within limits."""
        value = self._get(key)
        if value is None:
            return default
        number = int(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value) else None
        if number is None or number < least or (most is not None and number > most):
            limits = f"a whole number of {least} or more" if most is None else f"a whole number from {least} to {most}"
            self.fail(self._wrong(key, value, limits))
            return default
        return number

    def number(self, key: str, default: float, *, least: float, most: float) -> float:
        """Read a number within limits."""
        value = self._get(key)
        if value is None:
            return default
        number = _quantity(value, {"": 1.0}, "")
        if number is None or not least <= number <= most:
            self.fail(self._wrong(key, value, f"a number from {least:g} to {most:g}"))
            return default
        return number

    def duration(self, key: str, default: float, *, unit: str, zero: bool = False, plain: float = 0) -> float:
        """
        Read a duration.

        :param unit: the unit of a plain number, for example ``ms``.
        :param zero: whether it may be 0.
        :param plain: seconds; a plain number below this was probably meant in another unit.
        :returns: seconds.
        """
        value = self._get(key)
        if value is None:
            return default
        seconds = _quantity(value, _UNITS, unit)
        if seconds is None or not 0 <= seconds < 1e9 or (seconds == 0 and not zero):
            self.fail(self._wrong(key, value, f"a duration like 5s, 500ms or a number of {unit}{', or 0' if zero else ''}"))
            return default
        if seconds < plain and value.strip()[-1:] in "0123456789.":
            self.warn(key, f"{value} is {value} {unit}, since a plain number is in {unit}; for seconds write {value}s")
        return seconds

    def size(self, key: str, default: int, *, least: int, most: int | None = None) -> int:
        """Read a size in bytes within limits."""
        value = self._get(key)
        if value is None:
            return default
        size = _quantity(value, _SIZES, "")
        if size is None or size < least or (most is not None and size > most):
            limits = f"of {least} bytes or more" if most is None else f"from {least} to {most} bytes"
            self.fail(self._wrong(key, value, f"a size {limits}, like 512KiB or 16MiB"))
            return default
        return int(size)

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        """Read one of several names, in any case."""
        value = self.string(key, default)
        if value.lower() not in choices:
            self.fail(self.error(key, f"{value!r} is not one of {', '.join(choices)}{suggest(value, choices)}"))
            return default
        return value.lower()

    def block(self, key: str, remedy: str = "") -> Block:
        """
        Open a block within this one; an empty one if it is missing, or if the key holds something else.

        :param remedy: text to append to the error in that case.
        """
        value = self._get(key)
        if isinstance(value, dict):
            return self._inner(key, value)
        inner = self._inner(key, {})
        if key in self:
            inner.replaced = True
            if value is not None:
                self.fail(self._wrong(key, value, f"a block in braces{remedy}"))
        return inner

    def blocks(self, key: str, example: str) -> list[Block]:
        """
        Open the blocks of a list, or named ones, as in ``events.1 { … }``; none if the key is missing.

        :param example: an example of such a block, for the error.
        """
        value = self._get(key)
        if value is None:
            value = []
        if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
            named = [(f"{key}.{name}", item) for name, item in value.items()]
        elif isinstance(value, list):
            named = [(f"{key}[{index}]", item) for index, item in enumerate(value)]
        else:
            self.fail(self._wrong(key, value, f"a list in brackets, like [ {example} ]"))
            return []
        for name, item in named:
            if not isinstance(item, (dict, Unset)):
                self.fail(self._wrong(name, item, f"a block in braces, like {example}"))
        return [self._inner(name, item) for name, item in named if isinstance(item, dict)]

    def entries(self, key: str) -> list[Any] | None:
        """Read a list; a single value counts as a list of one."""
        value = self._get(key)
        entries = value if isinstance(value, list) or value is None else [value]
        if entries is not None and any(isinstance(entry, Unset) for entry in entries):
            return None
        return None if entries is None else [self._meant(key, entry) for entry in entries]

    def secret(self, key: str) -> str | None:
        """Read a secret."""
        return None if self._has_literal(key) else self.string(key, None)

    def secrets(self, key: str) -> list[Any] | None:
        """Read a list of secrets; a single one counts as a list of one."""
        return None if self._has_literal(key) else self.entries(key)

    def members(self) -> Iterator[tuple[str, Any]]:
        """Read everything that is not ``null``, in the file's order; keys of blocks within the block are joined by dots."""
        self._known.update(self._values)
        for key, value in _flat(self._values):
            if isinstance(value, Unset):
                continue
            yield key, self._meant(key, value)

    def names(self) -> list[str]:
        """List the keys, in the file's order."""
        return [key for key, value in self._values.items() if value is not None]

    @property
    def unread(self) -> list[str]:
        """The keys that were never read."""
        return [key for key in self._values if key not in self._known]

    def close(self, hints: Mapping[str, str] = {}) -> None:
        """
        Warn of keys that were never read.

        :param hints: text to append for keys that users are likely to try; for others a similar key is suggested.
        """
        for key in self.unread:
            self.warn(key, f"unknown, ignored{hints.get(key) or suggest(key, self._known)}")

    def _inner(self, key: str, values: Mapping[str, Any]) -> Block:
        inner = Block(values, self.where, self.path(key), self._warnings, self._errors, self._places)
        inner.asked = self.asked
        return inner

    def _get(self, key: str) -> Any:
        self._known.add(key)
        self.asked.add(self.path(key))
        return self._meant(key, self._values.get(key))

    def _meant(self, key: str, value: Any) -> Any:
        if isinstance(value, Unset):
            return None
        if isinstance(value, Bare):
            return str(value)
        if not isinstance(value, Literal):
            return value
        if key not in self._warned:
            self._warned.add(key)
            self.warn(key, f"nothing is substituted within quotes: close them before ${{…}}, as in {value.form()}")
        return str(value)

    def _has_literal(self, key: str) -> bool:
        value = self._values.get(key)
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Literal):
                self._known.add(key)
                form = f"{key} = {entry.form(secret=True)}"
                self.fail(self.error(key, f"nothing is substituted within quotes: write it without them, as in {form}"))
                return True
        return False

    def _wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        hidden = CONFIDENTIAL.search(key) or (isinstance(value, str) and CONFIDENTIAL.search(value))
        shown = "the value" if hidden else _described(value)
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
