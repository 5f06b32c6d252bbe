"""
``mqhooks``: dead letters from the command line.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from mqhooks.app.configuration import load
from mqhooks.app.settings import DEFAULTS
from mqhooks.errors import MqhooksError
from mqhooks.outbox.delivery import DeadLetter
from mqhooks.outbox.letters import Letters
from mqhooks.tools.ledger import printable

NAME = 60
"""How many characters of a name a list shows."""


def main(arguments: Sequence[str] | None = None, write: Callable[[str], object] = print) -> int:
    """
    Run a command.

    :param arguments: the command line after the program's name.
    :param write: shows a line.
    :returns: the exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        path = options.outbox or (load(options.config).outbox.path if options.config else DEFAULTS.outbox.path)
        letters = Letters(path)
        try:
            for line in options.command(letters, options):
                write(line)
        finally:
            letters.close()
    except BrokenPipeError:
        # Whoever reads has read enough; at the end Python would try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MqhooksError, sqlite3.Error, msgspec.MsgspecError, OverflowError) as error:
        sys.stderr.write(f"mqhooks: {error}\n")
        return 1
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser("mqhooks", description="Look after mqhooks' outbox. The relay itself is twistd mqhooks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    dead = commands.add_parser("dead", help="deliveries that were given up").add_subparsers(required=True, metavar="ACTION")
    for name, command, description in (
        ("list", _list, "list them, oldest first"),
        ("show", _show, "show them whole, with the request and the last answer"),
        ("replay", _ask, "have them delivered after all, behind what waits"),
        ("purge", _ask, "remove them for good"),
    ):
        action = dead.add_parser(name, help=description, description=f"Dead letters: {description}.")
        action.add_argument("--outbox", metavar="FILE", help="the outbox")
        action.add_argument("--config", "-c", metavar="FILE", help="the configuration that names it")
        action.set_defaults(command=command, action=name)
        if name != "show":
            action.add_argument("--webhook", metavar="NAME", help="those of one webhook only")
        if name in ("replay", "purge"):
            action.add_argument("--all", action="store_true", help="all, or all of one webhook")
        if name != "list":
            action.add_argument("number", nargs="+" if name == "show" else "*", type=int, help="their numbers")
    return parser


def _list(letters: Letters, options: Namespace) -> Iterator[str]:
    for letter in letters.of(options.webhook):
        client = letter.delivery.client.replace("\0", "/")
        parts = (str(letter.number), _time(letter.died), letter.webhook, letter.delivery.id, client, letter.reason)
        yield "  ".join(printable(part, NAME if part is not letter.reason else 200) for part in parts)


def _show(letters: Letters, options: Namespace) -> Iterator[str]:
    for number in options.number:
        letter = letters.get(number)
        letter.check()
        yield from _described(letter)


def _ask(letters: Letters, options: Namespace) -> Iterator[str]:
    numbers = options.number
    replay = options.action == "replay"
    if options.all and numbers:
        raise MqhooksError(f"{options.action}: all of them or these? Give --all or numbers, not both")
    if options.all:
        numbers = [letter.number for letter in letters.of(options.webhook) if not (replay and letter.damage)]
        if not numbers:
            whose = f" of webhook {printable(options.webhook, NAME)}" if options.webhook else ""
            yield f"{options.action}: there are no dead letters{whose}{' that can be replayed' if replay else ''}"
            return
    elif options.webhook or not numbers:
        raise MqhooksError(f"{options.action}: which ones? Give their numbers, or --all, or --all --webhook NAME")
    else:
        for number in numbers:
            letter = letters.get(number)
            if replay:
                letter.check()
    count = letters.ask(options.action, numbers)
    yield f"{options.action}: asked for {count}; done within a second by the mqhooks that has the outbox, or when one starts"


def _described(letter: DeadLetter) -> Iterator[str]:
    delivery = letter.delivery
    limit = 1 << 20
    yield f"dead letter {letter.number}"
    yield f"  webhook   {printable(letter.webhook, limit)}"
    yield f"  id        {printable(delivery.id, limit)}"
    yield f"  client    {printable(delivery.client.replace(chr(0), '/'), limit)}"
    yield f"  accepted  {_time(delivery.accepted)}"
    yield f"  died      {_time(letter.died)}"
    yield f"  reason    {printable(letter.reason, limit)}"
    yield f"  attempts  {delivery.attempts}"
    yield f"  request   POST {printable(letter.url, limit)}"
    yield f"            {printable(delivery.body[: 4 * limit + 4].decode('utf-8', 'backslashreplace'), limit)}"
    if letter.status:
        yield f"  answer    {letter.status}"
        yield f"            {printable(letter.answer.decode('utf-8', 'backslashreplace'), limit)}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
