"""
The ``mqhooks`` command: runs a bridge, checks its configuration, manages its outbox, shows its state, and tries endpoints.

A command's options are added, and its modules imported, only when the command is used: a health check or a look at the dead
letters need not wait for the whole program.
"""

from __future__ import annotations

import sqlite3
import sys
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import msgspec

import mqhooks
from mqhooks.app.parser import CommandParser
from mqhooks.errors import MqhooksError, NoAnswer, told
from mqhooks.support.output import complain, occupy, put
from mqhooks.support.printable import printable

_COMMANDS = {
    "run": ("run.add_run", "run a bridge in the foreground, as twistd -n mqhooks does"),
    "check": ("check.add", "check a configuration, and print what vernemq.conf needs for it"),
    "schema": ("check.add_schema", "print the JSON Schema of the configuration, for editors"),
    "status": ("state.add", "show the state of a running bridge, and what is wrong"),
    "dead": ("dead.add", "list, replay, export or purge dead letters: deliveries that mqhooks gave up"),
    "outbox": ("outboxes.add", "salvage, move or repartition an outbox"),
    "send-test": ("sendtest.add", "send one made-up delivery to a webhook's endpoint, and show what comes back"),
    "capture": ("run.add_capture", "record the events that VerneMQ sends"),
    "replay": ("run.add_replay", "send recorded events, as VerneMQ did"),
    "simulate": ("run.add_simulate", "stand in for VerneMQ: send made-up clients' events"),
    "receive": ("run.add_receive", "stand in for an endpoint: show the webhooks that arrive"),
}
"""The commands, each with the function in this package that adds its options, and with its description."""

_SHELLS = ("bash", "zsh", "tcsh")


def main(arguments: Sequence[str] | None = None, write: Callable[[str], object] = print) -> int:
    """
    Run a command.

    :param arguments: the command line after the program's name.
    :param write: writes a line.
    :returns: the exit status.
    """
    occupy()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            options = parser(words).understand(words)
        except SystemExit:
            # The help or a completion script may not have left the buffer.
            put(sys.stdout.flush)
            raise
        return _written(options.command(options), write)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130
    except (MqhooksError, sqlite3.Error, msgspec.MsgspecError, OverflowError) as error:
        mistakes = getattr(error, "mistakes", (error,))
        complain("".join(f"mqhooks: {printable(told(mistake), 4096)}\n" for mistake in mistakes))
        return error.status if isinstance(error, NoAnswer) else 1


def parser(words: Sequence[str] | None = None) -> CommandParser:
    """
    Make the parser of a command line.

    :param words: the command line: only the options of the commands that it names are added. ``None`` for all of them.
    """
    made = CommandParser("mqhooks", description="VerneMQ's events as webhooks: run a bridge, and manage it.")
    made.add_argument("--version", action="version", version=f"mqhooks {mqhooks.__version__}")
    completion = "print the completion script for this shell (needs shtab)"
    made.add_argument("--print-completion", action=_PrintCompletion, metavar="SHELL", choices=_SHELLS, help=completion)
    wanted = next((word for word in words or () if not word.startswith("-")), "")
    everything = words is None or any(word.startswith("--print-completion") for word in words)
    for name, (function, description) in _COMMANDS.items():
        command = made.command(name, description)
        if everything or name == wanted:
            module, _, function = function.partition(".")
            getattr(import_module(f"mqhooks.app.{module}"), function)(command)
    return made


class _PrintCompletion(Action):
    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error("--print-completion needs shtab, which is not installed: run pip install shtab")
        put(partial(print, shtab.complete(parser, values)))
        parser.exit()


def _written(lines: Iterator[str], write: Callable[[str], object]) -> int:
    """Write a command's lines, and return its exit status."""
    while True:
        try:
            line = next(lines)
        except StopIteration as end:
            put(sys.stdout.flush)
            return end.value or 0
        put(partial(write, line))
