"""
Options of twistd commands: each mistake ends in one line, and values are checked while they are parsed.

Each function here makes the parser of one option, for the last element of its entry in ``optParameters``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from math import inf
from shlex import quote
from typing import Any

from twisted.python.usage import Options, UsageError


class CommandOptions(Options):
    """
    Base class of the options of a twistd command.
    """

    optParameters: Sequence[Sequence[Any]] = []
    optFlags: Sequence[Sequence[Any]] = []

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse a command line.

        :param options: the words after the command.
        :raises UsageError: when the command line is wrong.
        :raises SystemExit: the same, under twistd, which would print its whole help before the one line that matters.
        """
        try:
            super().parseOptions(options)
        except UsageError as error:
            if self.parent is None:
                raise
            raise SystemExit(f"{self.parent.subCommand}: {error}{self._remedy(self.parent, str(error))}") from None

    def _remedy(self, twistd: Options, error: str) -> str:
        unknown = re.fullmatch("option (-(?:-[^ ]+|[^ ])) not recognized", error)
        if unknown is None:
            return ""
        option = unknown[1]
        command = twistd.subCommand
        if option.lstrip("-") in (twistd.shortOpt if len(option) == 2 else {name.rstrip("=") for name in twistd.longOpt}):
            return f"; it is one of twistd's own: write it before {command}"
        near = get_close_matches(option[2:], [name.rstrip("=") for name in self.longOpt], 1)
        return f"; did you mean --{near[0]}?" if near else "; --help lists them"

    def parseArgs(self, *args: str) -> None:
        """
        Refuse positional arguments.

        :raises UsageError: when there is one.
        """
        if args:
            hint = file_hint(args[0], [f"--{name.rstrip('=')}" for name in self.longOpt])
            raise UsageError(f"{args[0]!r} is not an option{hint or '; --help lists them'}")


def file_hint(word: str, options: Iterable[str]) -> str:
    """
    Suggest ``--config`` for a configuration's name that was given without it.

    :param options: the names of the command's options, as they are written.
    :returns: text to append to a message; empty when the word does not look like a file, or the command has no such option.
    """
    meant = "--config" in options and (word.endswith((".conf", ".json", ".hocon")) or os.path.isfile(word))
    return f"; did you mean --config {quote(word)}?" if meant and word.isprintable() else ""


def whole(option: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """
    Make the parser of a whole number.

    :param option: the option as it is written, for the error message.
    :param least: the smallest value allowed.
    :param most: the largest value allowed.
    :returns: a function from the option's text to its value that raises ``UsageError``.
    """
    limits = f"of {least} or more" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
        if value < least or (most is not None and value > most):
            raise UsageError(f"{option}: {text!r} is not a whole number {limits}")
        return value

    return parse


def number(option: str) -> Callable[[str], float]:
    """
    Make the parser of a number, 0 or more; see :func:`whole`.
    """

    def parse(text: str) -> float:
        value = _number(text)
        if value is None:
            raise UsageError(f"{option}: {text!r} is not a number of 0 or more")
        return value

    return parse


def share(option: str) -> Callable[[str], float]:
    """
    Make the parser of a share like ``10%``; values are from 0 to 1.
    """

    def parse(text: str) -> float:
        value = _number(text.removesuffix("%"))
        if value is None or value > 100 or not text.endswith("%"):
            raise UsageError(f"{option}: {text!r} is not a share from 0% to 100%, like 10%")
        return value / 100

    return parse


def duration(option: str) -> Callable[[str], float]:
    """
    Make the parser of a duration: ``50ms``, ``1s``, or a number of milliseconds; values are in seconds.
    """

    def parse(text: str) -> float:
        if text.endswith("ms"):
            value, unit = _number(text[:-2]), 0.001
        elif text.endswith("s"):
            value, unit = _number(text[:-1]), 1.0
        else:
            value, unit = _number(text), 0.001
        if value is None:
            raise UsageError(f"{option}: {text!r} is not a duration; write it like 50ms or 1s")
        return value * unit

    return parse


def speed(option: str) -> Callable[[str], float]:
    """
    Make the parser of a speed: ``10x``, ``0.5``, or ``max``; values are above 0, and infinite for ``max``.
    """

    def parse(text: str) -> float:
        value = inf if text == "max" else _number(text.removesuffix("x"))
        if not value:
            raise UsageError(f"{option}: {text!r} is not a speed; write it like 10x, 0.5x or max")
        return value

    return parse


def one_of(option: str, text: str, known: Iterable[str]) -> str:
    """
    Check a name against the known ones.

    :raises UsageError: when it is unknown; the message names the closest match, or all of them.
    """
    names = list(known)
    if text in names:
        return text
    near = get_close_matches(text, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    raise UsageError(f"{option}: {text!r} is unknown; {hint}")


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text) else None
