"""
Command lines of the ``mqhooks`` command: argparse, with one line for each mistake, and with the options of twistd's commands.
"""

from __future__ import annotations

import re
import sys
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from inspect import getdoc
from typing import Any, NoReturn

from mqhooks.support.options import CommandOptions, file_hint
from mqhooks.support.output import complain

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
"""Each shell's completion of file names, for shtab."""

_METAVARS = {
    "clients": "COUNT",
    "config": "FILE",
    "connections": "COUNT",
    "delay": "DURATION",
    "drop": "SHARE",
    "fail": "SHARE",
    "generation": "YEAR",
    "listen": "ENDPOINT",
    "log-format": "FORMAT",
    "mix": "WEIGHTS",
    "payload-size": "BYTES",
    "replay": "FILE",
    "seed": "TEXT",
    "sidecar": "ENDPOINT",
    "sink": "DESCRIPTION",
    "target": "ENDPOINT",
    "via": "WAY",
}
_CHOICE = re.compile(r"argument (.+?): invalid choice: '(.*?)' \(")


class CommandParser(ArgumentParser):
    """
    A parser for a command line, or for the rest of one after a command.

    :ivar options: the names of its options, as they are written.
    :ivar commands: the parsers of its commands, by name.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self.options: list[str] = []
        self.commands: dict[str, CommandParser] = {}
        self._below: Any = None
        super().__init__(*args, **more)

    def add_argument(self, *args: Any, **more: Any) -> Action:
        """Add an argument, as argparse does, and let shells complete file names."""
        action = super().add_argument(*args, **more)
        self.options += action.option_strings
        if action.metavar == "FILE":
            action.complete = FILES  # type: ignore[attr-defined] # shtab looks for it
        return action

    def command(self, name: str, description: str, *, metavar: str = "COMMAND") -> CommandParser:
        """
        Add a command.

        :param description: what it does, in a few words.
        :param metavar: the word for the commands in the usage.
        """
        if self._below is None:
            self._below = self.add_subparsers(required=True, metavar=metavar, dest="command_name")
        whole = f"{description[0].upper()}{description[1:]}."
        made: CommandParser = self._below.add_parser(name, help=description, description=whole)
        self.commands[name] = made
        made.set_defaults(parser=made)
        return made

    def understand(self, words: Sequence[str]) -> Namespace:
        """
        Parse a command line.

        :raises SystemExit: when it is wrong, with a line on standard error; or when it only asks for information, such as help.
        """
        options, left = self.parse_known_args(words)
        if left:
            parser: CommandParser = getattr(options, "parser", self)
            parser.refuse(left[0])
        return options

    def refuse(self, word: str) -> NoReturn:
        """Report a word that is not understood, and suggest another."""
        name = word.partition("=")[0]
        if name.startswith("-"):
            near = get_close_matches(name, self.options, 1)
            self.error(f"there is no option {name!r} here{f'; did you mean {near[0]}?' if near else ''}")
        self.error(f"there is no argument {word!r} here{file_hint(word, self.options)}")

    def error(self, message: str) -> NoReturn:
        """
        Report a mistake in one line, without the usage.

        :raises SystemExit: with status 2.
        """
        choice = _CHOICE.match(message)
        if choice is not None:
            named, word = choice.groups()
            option = named.startswith("-")
            known = re.findall(r"[\w-]+", message.partition("choose from")[2]) if option else list(self.commands)
            near = get_close_matches(word, known, 1)
            what = f"{named}: {word!r} is unknown" if option else f"there is no command {word!r}"
            message = f"{what}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
        elif self.commands and "are required" in message:
            message = f"which command? There are {', '.join(self.commands)}"
        message = message.removeprefix("argument ")
        hint = "" if "did you mean" in message else f"; {self.prog} --help tells more"
        complain(f"{self.prog}: {message}{hint}\n")
        sys.exit(2)

    def take_over(self, options: type[CommandOptions], *, only: Sequence[str] = (), without: Sequence[str] = ()) -> None:
        """
        Add the options of one of twistd's commands; :func:`words_of` turns them back into words.

        :param only: their names, without dashes; empty for all.
        :param without: names of options to leave out.
        """
        for name, short, text, flag, repeated in _described(options):
            if (only and name not in only) or name in without:
                continue
            names = [f"--{name}", *([f"-{short}"] if short else [])]
            if flag:
                self.add_argument(*names, action="store_true", help=text)
            else:
                metavar = _METAVARS.get(name, name.rpartition("-")[2].upper())
                self.add_argument(*names, metavar=metavar, action="append" if repeated else "store", help=text)


def words_of(options: type[CommandOptions], given: Namespace) -> list[str]:
    """Write the options that were given as words for one of twistd's commands."""
    words = []
    for name, _, _, flag, _ in _described(options):
        value = getattr(given, name.replace("-", "_"), None)
        if flag:
            words += [f"--{name}"] if value else []
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}={each}" for each in values if each is not None]
    return words


def _described(options: type[CommandOptions]) -> Iterator[tuple[str, str | None, str, bool, bool]]:
    """Yield each option's name, short name and help, whether it is a flag, and whether it may be repeated."""
    for name, short, default, text, *_ in options.optParameters:
        shown = f"{default:g}" if isinstance(default, float) else default
        told = "" if default is None or "[default" in text else f" [default: {shown}]"
        yield name, short, _help(text + told), False, False
    for name, short, text in options.optFlags:
        yield name, short, _help(text), True, False
    for method, function in vars(options).items():
        if method.startswith("opt_"):
            yield method.removeprefix("opt_"), None, _help(getdoc(function) or ""), False, True


def _help(text: str) -> str:
    """Write a sentence the way argparse writes help."""
    text = re.sub(r"\.(?= \[|$)", "", text.strip())
    return (text if text[1:2].isupper() else text[0].lower() + text[1:]).replace("%", "%%")
