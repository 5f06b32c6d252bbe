"""
Reads our part of configuration files, including the files that it includes and the keys that it refers to.

The format is NanoMQ's dialect of HOCON, https://github.com/lightbend/config/blob/main/HOCON.md.

- The scanner cuts our blocks out of the files, and the values that ``${…}`` in them names; pyhocon merges and substitutes. A
  broker's other blocks are never parsed, and the files that they include are never opened.
- pyhocon turns text that looks like a number, a duration or a boolean into one. So it never sees text, only positions in a
  table of ours, and never keys, only their numbers: ``k-1 { k-2 = "<17>"${k-3.k-4} }``. Its result is filled in afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob, has_magic
from stat import S_ISDIR, S_ISREG
from typing import Any

from pyhocon import ConfigFactory
from pyhocon.exceptions import ConfigSubstitutionException, ConfigWrongTypeException

from mqhooks.errors import ConfigError
from mqhooks.nanomq.block import Bare, Literal, Unset
from mqhooks.nanomq.scanner import (
    DEPTH,
    NESTING,
    BlockMembers,
    Include,
    Items,
    Member,
    Part,
    Reference,
    Scanner,
    Skipped,
    Text,
    Value,
)

OURS = frozenset({"webhook", "webhooks", "mqhooks"})
"""The top-level keys of our blocks, in lower case."""

SIZE = 32 << 20
"""Maximum size of a file and everything that it includes, in bytes."""

FILES = 1_000
"""Maximum number of files that are read."""

_OLD = re.compile(r"^[ \t]*web\.hook\.", re.MULTILINE)
_OLD_REMEDY = (
    "web.hook.… is NanoMQ's old format, which is not read: "
    'write webhook { url = "http://127.0.0.1:8080/hook", events = [ { event = "on_client_connack" } ] }'
)
_URL = re.compile(r"(?:https?|file)://")
_NAME = re.compile(r'"([^"]*)"|([^."]+)')
_PLACE = re.compile("\ue000([0-9]+)\ue001")
_NUMBERED = re.compile(r"k-[0-9]+(?:\.k-[0-9]+)*")
_UNSET = "k-0"
_UNSET_TEXT = Text("", quoted=True)

_Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """
    The contents of a file.

    :param values: our blocks: dictionaries and lists, of text as written and of ``None`` for ``null``. Keys are in lower case,
        except for the names of webhooks and headers, and for keys within a body.
    :param others: the top-level keys of everything else.
    :param warnings: oddities that are not mistakes.
    :param mistakes: mistakes that do not stop the reading: variables that are not set, and settings that appear twice.
    :param places: the file and the line of each of our keys, like ``nanomq.conf:12``, by the path that
        :meth:`mqhooks.nanomq.block.Block.path` returns.
    """

    values: dict[str, Any]
    others: frozenset[str]
    warnings: list[str]
    mistakes: list[ConfigError]
    places: dict[str, str]


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    scanner: Scanner
    chain: tuple[str, ...]
    old: bool


_Found = tuple[Member, _File]


def read(path: str, environ: Mapping[str, str] = os.environ, *, required: bool = True) -> Document:
    """
    Read a file, including the files that it includes and the values that it refers to.

    :param environ: the variables that ``${…}`` refers to when no key has its name.
    :param required: whether these variables have to be set. If so, an unset one is a mistake, and its value is
        :class:`~mqhooks.nanomq.block.Unset`. Otherwise ``${NAME}`` stands for itself, as a
        :class:`~mqhooks.nanomq.block.Literal`.
    :raises mqhooks.errors.ConfigError: when the file cannot be read, for whatever reason.
    """
    warnings: list[str] = []
    try:
        files = _Files(warnings)
        found = list(files.members(path, required=True))
        _check_format(found, warnings)
        composer = _Composer(path, found, files, environ, required=required)
        values = composer.values()
    except RecursionError:
        raise ConfigError(NESTING, path) from None
    others = frozenset(member.path[0] for member, _ in found) - OURS
    return Document(values, others, warnings, [*_twice(found), *composer.mistakes], composer.places)


class _Files:
    """Opens files and the files that they include."""

    def __init__(self, warnings: list[str]) -> None:
        self._warnings = warnings
        self._left = SIZE
        self._opened = 0

    def members(
        self, path: str, *, required: bool, by: _File | None = None, line: int = 0, foreign: bool = False
    ) -> Iterator[_Found]:
        """
        Read a file's members, and those of the files that it includes.

        :param by: the file that includes it.
        :param line: the line of that file.
        :param foreign: whether to read members other than ours, too.
        """
        from_ = f"; {by.name}:{line} includes it" if by is not None else ""
        try:
            file = self._open(path, by, required=required)
        except ConfigError as error:
            raise ConfigError(f"{error.message}{from_}", error.where) from None
        except (FileNotFoundError, NotADirectoryError):
            self._warnings.append(f"{path}: does not exist, so its settings are missing{from_}")
            return
        try:
            entries = file.scanner.members(lambda key: foreign or key.lower() in OURS)
        except ConfigError as error:
            if file.old:
                raise ConfigError(_OLD_REMEDY, path) from None
            raise ConfigError(error.message, path) from None
        for entry in entries:
            if isinstance(entry, Member):
                yield entry, file
            else:
                yield from self.included(entry, file, foreign=foreign)

    def included(self, include: Include, by: _File, *, foreign: bool) -> Iterator[_Found]:
        """Read the members of a file that another includes."""
        if include.kind == "url" or _URL.match(include.name):
            raise ConfigError("URLs cannot be included: download it to a file, and include that", include.name)
        if include.kind not in ("", "file"):
            raise ConfigError(f"line {include.line}: only files are included: include file(…), not {include.kind}(…)", by.name)
        path = os.path.join(os.path.dirname(by.name), include.name)
        names = sorted(glob(path, recursive=True)) if has_magic(path) and "\0" not in path else []
        for name in names or [path]:
            yield from self.members(name, required=include.required, by=by, line=include.line, foreign=foreign)

    def _open(self, path: str, by: _File | None, *, required: bool) -> _File:
        chain = () if by is None else by.chain
        try:
            real = os.path.realpath(path)
            if real in chain:
                raise ConfigError("includes itself", path)
            data = self._read(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if required:
                raise ConfigError(f"cannot be read: {error.strerror}", path) from None
            raise
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path) from None
        except ValueError:
            raise ConfigError("is not a valid file name", repr(path)) from None
        self._opened += 1
        if self._opened > FILES:
            raise ConfigError(f"cannot be read: more than {FILES} files are included", path)
        if len(chain) > DEPTH:
            raise ConfigError(NESTING, path)
        try:
            text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except ValueError:
            raise ConfigError("is not UTF-8 text", path) from None
        return _File(path, Scanner(text), (*chain, real), _OLD.search(text) is not None)

    def _read(self, path: str) -> bytes:
        # Opening a FIFO would block until someone writes to it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if S_ISDIR(mode):
                raise ConfigError("cannot be read: Is a directory", path)
            if not S_ISREG(mode):
                raise ConfigError("cannot be read: it is not a regular file", path)
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise ConfigError(f"cannot be read: it has more than {SIZE >> 20} MiB, with the files that it includes", path)
        return data


class _Composer:
    """Writes our blocks, and the values that they refer to, for pyhocon, and reads its result."""

    def __init__(self, path: str, found: list[_Found], files: _Files, environ: Mapping[str, str], *, required: bool) -> None:
        self._required = required
        self._path = path
        self._files = files
        self._environ = environ
        self._roots: dict[str, list[_Found]] = {}
        for member, file in found:
            self._roots.setdefault(_folded(member.path)[0], []).append((member, file))
        self._wanted = [key for key, members in self._roots.items() if key in OURS or any(map(_refers, members))]
        self._numbers: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._texts: list[Text | None] = []
        self._values: dict[_Path, tuple[str, list[str], int]] = {}
        self._references: dict[str, tuple[Reference, _File]] = {}
        self._lengths: dict[_Path, int] = {}
        self.mistakes: list[ConfigError] = []
        self.places: dict[str, str] = {}

    def values(self) -> dict[str, Any]:
        written: list[str] = []
        for key in self._wanted:
            for member, file in self._roots[key]:
                # This may add keys to _wanted.
                self._write(written, member, file, ())
        try:
            tree = ConfigFactory.parse_string("\n".join(written))
        except ConfigSubstitutionException as error:
            raise self._unresolved(str(error)) from None
        except ConfigWrongTypeException:
            raise ConfigError(
                "${…} joins text with a block or a list: name a key within it, or write a value of the same kind", self._path
            ) from None
        except RecursionError:
            raise
        except Exception as error:
            # pyhocon's own errors, for text that it can parse but not interpret.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"cannot be understood: {self._named(reason)}", self._path) from None
        return {self._keys[key]: self._plain(value) for key, value in tree.items() if self._keys[key] in OURS}

    def _write(self, written: list[str], member: Member, file: _File, within: _Path) -> None:
        try:
            member = file.scanner.unskipped(member)
        except ConfigError as error:
            raise ConfigError(error.message, file.name) from None
        path = _folded((*within, *member.path))
        first = member.value[0]
        self._place_at(path, member, file)
        for end in range(len(within) + 1, len(path)):
            # A key with dots is in blocks without braces.
            self.places.setdefault(_name(path[:end]), f"{file.name}:{member.line}")
        start = self._lengths.get(path, 0) if member.append else 0
        appended = member.append and not isinstance(first, Items)
        if appended:
            self._place_at((*path, f"[{start}]"), member, file)
        self._lengths[path] = start + (len(first.items) if isinstance(first, Items) else 1)
        text = self._value(member.value, file, (*path, f"[{start}]") if appended else path, start)
        if member.append:
            # pyhocon would look for the list only among the top-level keys, so write the list out again.
            before, place, index = self._values.get(path, ("", written, -1))
            text = f"{before} {text if isinstance(first, Items) else f'[{text}]'}"
            if index >= 0:
                place[index] = ""
        self._values[path] = text, written, len(written)
        keys = [self._number(key) for key in path[len(within) :]]
        written.append(f"{' { '.join(keys)} = {text}{' }' * (len(keys) - 1)}")

    def _place_at(self, path: _Path, member: Member, file: _File) -> None:
        name, place = _name(path), f"{file.name}:{member.line}"
        if isinstance(member.value[0], BlockMembers):
            # A block may be written in several places: the first one counts.
            self.places.setdefault(name, place)
        else:
            self.places[name] = place

    def _value(self, value: Value, file: _File, path: _Path, start: int = 0) -> str:
        """Write a value; the items of a list are numbered from ``start``."""
        if len(value) == 1 and isinstance(value[0], Text) and not value[0].quoted and value[0].text.lower() == "null":
            return self._place(None)
        written: list[str] = []
        for part, behind in zip(value, (*value[1:], None), strict=True):
            if isinstance(part, Text):
                written.append(self._place(part))
            elif isinstance(part, Reference):
                written.append(self._reference(part, file))
                if isinstance(behind, Reference) and part.gap and not (self._is_unset(part) or self._is_unset(behind)):
                    both = all(self._target(each) for each in (part, behind))
                    written.append(part.gap if both else self._place(Text(part.gap, quoted=False)))
            else:
                written.append(self._bracketed(part, file, path, start))
        unset = f"${{?{_UNSET}}}"
        known = [text for text in written if text != unset]
        if not any(map(str.strip, known)):
            return unset
        # Adjoining text is one string.
        return "".join(known).replace('\ue001""\ue000', "\ue001\ue000")

    def _bracketed(self, part: Part, file: _File, path: _Path, start: int) -> str:
        if isinstance(part, Items):
            items = (self._value(item, file, (*path, f"[{index}]")) for index, item in enumerate(part.items, start))
            return f"[{','.join(items)}]"
        assert isinstance(part, BlockMembers)
        members: list[str] = []
        for entry in part.entries:
            if isinstance(entry, Member) and path[-1].startswith("["):
                # An item has no line of its own, so take that of its first member.
                self.places.setdefault(_name(path), f"{file.name}:{entry.line}")
            inner = [(entry, file)] if isinstance(entry, Member) else self._files.included(entry, file, foreign=True)
            for found in inner:
                self._write(members, *found, path)
        return f"{{{','.join(filter(None, members))}}}"

    def _place(self, text: Text | None) -> str:
        self._texts.append(text)
        return f'"\ue000{len(self._texts) - 1}\ue001"'

    def _number(self, key: str) -> str:
        if key not in self._numbers:
            number = f"k-{len(self._numbers) + 1}"
            self._numbers[key] = number
            self._keys[number] = key
        return self._numbers[key]

    def _target(self, reference: Reference) -> _Path | None:
        """Return the key that a reference names; ``None`` for a variable of the environment."""
        path = tuple(quoted or plain.strip() for quoted, plain in _NAME.findall(reference.name))
        if len(path) > 1 and path[0].lower() in OURS:
            path = _folded(path)
        return path if path and path[0] in self._roots else None

    def _reference(self, reference: Reference, file: _File) -> str:
        target = self._target(reference)
        mark = "?" if reference.optional else ""
        if target is not None:
            if target[0] not in self._wanted:
                self._wanted.append(target[0])
            name = ".".join(map(self._number, target))
            self._references.setdefault(name, (reference, file))
            return f"${{{mark}{name}}}"
        value = self._environ.get(reference.name)
        if value is not None:
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise ConfigError(f"${{{reference.name}}} is not UTF-8 text (line {reference.line})", file.name)
            return self._place(Text(value, quoted=False))
        if not reference.optional:
            if self._required:
                self.mistakes.append(_not_set(reference, file))
                return self._place(_UNSET_TEXT)
            return self._place(Text(f"${{{reference.name}}}", quoted=True))
        return f"${{?{_UNSET}}}"

    def _is_unset(self, reference: Reference) -> bool:
        return self._target(reference) is None and reference.name not in self._environ

    def _unresolved(self, message: str) -> ConfigError:
        names = list(dict.fromkeys(_NUMBERED.findall(message)))
        if "cycles" not in message and names and names[0] in self._references:
            return _not_set(*self._references[names[0]])
        told = " and ".join(f"${{{self._named(name)}}}" for name in names)
        return ConfigError(
            f"cannot resolve {told}: references must not be circular or name a missing key",
            self._path,
        )

    def _named(self, text: str) -> str:
        named = _NUMBERED.sub(lambda match: ".".join(self._keys.get(key, key) for key in match[0].split(".")), text)
        return _PLACE.sub("…", named)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._keys[key]: self._plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        return self._filled(value) if isinstance(value, str) else None

    def _filled(self, value: str) -> str | None:
        texts = [self._texts[int(place)] for place in _PLACE.findall(value)]
        if texts == [None]:
            return None
        if any(text is _UNSET_TEXT for text in texts):
            return Unset()
        filled = _PLACE.sub(lambda match: _written(self._texts[int(match[1])]), value)
        literal = any(text is not None and text.quoted and "${" in text.text for text in texts)
        if literal:
            return Literal(filled)
        return filled if any(text is None or text.quoted for text in texts) else Bare(filled)


def _name(path: _Path) -> str:
    """Format a path for errors, with indices in brackets."""
    return ".".join(path).replace(".[", "[")


def _written(text: Text | None) -> str:
    return "null" if text is None else text.text


def _not_set(reference: Reference, file: _File) -> ConfigError:
    name = reference.name
    remedy = f"set the environment variable, or write ${{?{name}}} where it may be missing"
    return ConfigError(f"${{{name}}} is not set (line {reference.line}): {remedy}", file.name)


def _folded(path: _Path) -> _Path:
    """Write our keys in lower case, since their case has no meaning, except for those of webhooks, headers and bodies."""
    first = path[0].lower()
    if first not in OURS:
        return path
    named = 1 if first == "webhooks" else 0
    folded = [first, *path[1 : 1 + named], *(key.lower() for key in path[1 + named :])]
    if first != "mqhooks":
        at = 1 + named
        if folded[at : at + 1] == ["events"]:
            # Skip the rule's number or name; a rule that is appended has neither.
            at += 1 if folded[at + 1 : at + 2] in (["headers"], ["body"]) else 2
        if folded[at : at + 1] == ["headers"] or (folded[at : at + 1] == ["body"] and folded[at + 1 : at + 2] != ["encoding"]):
            folded[at + 1 :] = path[at + 1 :]
    return tuple(folded)


def _refers(found: _Found) -> bool:
    # NanoMQ has no references, so a top-level value with one is meant for us.
    value = found[0].value
    return any(isinstance(part, Reference) for part in value) and not any(isinstance(part, Skipped) for part in value)


def _check_format(found: list[_Found], warnings: list[str]) -> None:
    """Find settings in NanoMQ's format before 0.11, which looks like HOCON when its values are in quotes."""
    old = next((file for member, file in found if member.path[:2] == ("web", "hook")), None)
    if old is None:
        return
    if not any(member.path[0].lower() in ("webhook", "webhooks") for member, _ in found):
        raise ConfigError(_OLD_REMEDY, old.name)
    warnings.append(f"{old.name}: {_OLD_REMEDY}")


@dataclass(frozen=True, slots=True)
class _Leaf:
    value: tuple[Any, ...]
    optional: bool
    line: int
    file: str


def _twice(found: list[_Found]) -> list[ConfigError]:
    """Find webhooks and settings that appear twice: NanoMQ takes the first of two values, HOCON the last."""
    seen: dict[_Path, _Leaf] = {}
    names: dict[str, str] = {}
    mistakes: list[ConfigError] = []
    for member, file in found:
        for path, leaves in _blocks(member, file):
            if path[0] == "webhooks" and names.setdefault(path[1].lower(), path[1]) != path[1]:
                other_name = names[path[1].lower()]
                told = f"differs from {other_name!r} only in case: rename one"
                mistakes.append(ConfigError(told, file.name, ".".join(path)))
            for key, leaf in leaves.items():
                other = seen.get(key)
                if other is None or leaf.optional:
                    continue
                lines = f"line {other.line}{f' of {other.file}' if other.file != leaf.file else ''} and in line {leaf.line}"
                if path[0] == "webhooks" and key[2:] == ("url",):
                    told = f"two webhooks have this name, in {lines}: rename one"
                    mistakes.append(ConfigError(told, file.name, ".".join(path)))
                    break
                if other.value != leaf.value:
                    told = f"is set in {lines}, to different values: keep one"
                    mistakes.append(ConfigError(told, file.name, ".".join(key)))
            seen.update(leaves)
    return mistakes


def _blocks(member: Member, file: _File) -> Iterator[tuple[_Path, dict[_Path, _Leaf]]]:
    """Divide a member into the settings of each webhook, by key."""
    path = _folded(member.path)
    if path == ("webhooks",):
        for part in member.value:
            if isinstance(part, BlockMembers):
                for entry in part.entries:
                    if isinstance(entry, Member):
                        yield from _blocks(Member((*path, *entry.path), entry.append, entry.value, entry.line), file)
    elif path[0] in ("webhook", "webhooks"):
        yield path[: 1 if path[0] == "webhook" else 2], dict(_leaves(member, file, ()))


def _leaves(member: Member, file: _File, within: _Path) -> Iterator[tuple[_Path, _Leaf]]:
    path = _folded((*within, *member.path))
    if member.append:
        return
    if isinstance(member.value[0], BlockMembers) and len(member.value) == 1:
        for entry in member.value[0].entries:
            if isinstance(entry, Member):
                yield from _leaves(entry, file, path)
    else:
        optional = any(isinstance(part, Reference) and part.optional for part in member.value)
        yield path, _Leaf(tuple(map(_spelt, member.value)), optional, member.line, file.name)


def _spelt(part: Part) -> Any:
    """Normalize a value, so that values with the same meaning are equal."""
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Reference):
        return ("$", part.name, part.gap)
    if isinstance(part, Items):
        return ["[", *(tuple(map(_spelt, item)) for item in part.items)]
    if isinstance(part, BlockMembers):
        entries = (entry for entry in part.entries if isinstance(entry, Member))
        return {tuple(map(str.lower, entry.path)): tuple(map(_spelt, entry.value)) for entry in entries}
    return part
