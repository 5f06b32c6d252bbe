"""
The ``mqhooks`` command: looks after an outbox, even while the bridge that owns it runs.

It needs only the outbox's path from the configuration, none of its secrets.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime

import msgspec

import mqhooks
from mqhooks.app.configuration import outbox_path
from mqhooks.app.settings import DEFAULTS
from mqhooks.delivery import DeadLetter
from mqhooks.errors import MqhooksError
from mqhooks.outbox.aside import ASIDE
from mqhooks.outbox.deadletters import Letters
from mqhooks.outbox.salvage import salvage
from mqhooks.support.printable import printable
from mqhooks.support.redact import hide, hide_url

NAME = 60
"""How many characters of a name are shown in a list."""


def main(arguments: Sequence[str] | None = None, write: Callable[[str], object] = print) -> int:
    """
    Run a command.

    :param arguments: the command line after the program's name.
    :param write: shows a line.
    :returns: the exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        for line in options.command(options):
            write(line)
    except BrokenPipeError:
        # The reader has gone; without this, Python would fail to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MqhooksError, sqlite3.Error, msgspec.MsgspecError, OverflowError) as error:
        sys.stderr.write(f"mqhooks: {error}\n")
        return 1
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser("mqhooks", description="Look after mqhooks' outbox. The relay itself is twistd mqhooks.")
    parser.add_argument("--version", action="version", version=f"mqhooks {mqhooks.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    dead = commands.add_parser("dead", help="dead letters: deliveries that were given up")
    actions = dead.add_subparsers(required=True, metavar="ACTION")
    for name, command, description in (
        ("list", _list, "list them, oldest first"),
        ("show", _show, "show them whole, with the request and the last answer"),
        ("replay", _ask, "deliver them again, behind what waits"),
        ("purge", _ask, "remove them for good"),
    ):
        action = actions.add_parser(name, help=description, description=f"Dead letters: {description}.")
        _add_outbox(action)
        action.set_defaults(command=command, action=name)
        if name != "show":
            action.add_argument("--webhook", metavar="NAME", help="only those of this webhook")
        if name in ("replay", "purge"):
            action.add_argument("--all", action="store_true", help="all, or all of one webhook")
        if name == "show":
            action.add_argument("--reveal", action="store_true", help="show secrets in the URL too")
        if name != "list":
            action.add_argument("number", nargs="+" if name == "show" else "*", type=int, help="their numbers")
    outbox = commands.add_parser("outbox", help="the outbox itself").add_subparsers(required=True, metavar="ACTION")
    description = "hand what a damaged outbox file still holds to the outbox that replaced it"
    action = outbox.add_parser("salvage", help=description, description=f"Outbox: {description}.")
    _add_outbox(action)
    action.add_argument("file", metavar="FILE", help=f"the damaged file, like mqhooks-outbox{ASIDE}20260131T120000")
    action.set_defaults(command=_salvage)
    return parser


def _add_outbox(parser: ArgumentParser) -> None:
    parser.add_argument("--outbox", metavar="FILE", help="the outbox")
    parser.add_argument("--config", "-c", metavar="FILE", help="the configuration that names it")


def _outbox(options: Namespace, default: str = DEFAULTS.outbox.path) -> str:
    path: str = options.outbox or (outbox_path(options.config) if options.config else default)
    return path


def _salvage(options: Namespace) -> Iterator[str]:
    path = _outbox(options, options.file.rpartition(ASIDE)[0] or DEFAULTS.outbox.path)
    yield f"salvage: {salvage(options.file, path)}"


def _list(options: Namespace) -> Iterator[str]:
    with closing(Letters(_outbox(options))) as letters:
        _check_webhook(letters, options)
        for letter in letters.of(options.webhook):
            client = letter.delivery.client.replace("\0", "/")
            reason = hide(letter.reason, letter.url)
            parts = (str(letter.number), _time(letter.died), letter.webhook, letter.delivery.id, client, reason)
            yield "  ".join(printable(part, NAME if part is not reason else 200) for part in parts)


def _show(options: Namespace) -> Iterator[str]:
    with closing(Letters(_outbox(options))) as letters:
        for number in options.number:
            letter = letters.get(number)
            letter.check()
            yield from _described(letter, reveal=options.reveal)


def _ask(options: Namespace) -> Iterator[str]:
    with closing(Letters(_outbox(options))) as letters:
        _check_webhook(letters, options)
        numbers = _numbers(letters, options)
        if not numbers:
            whose = f" of webhook {printable(options.webhook, NAME)}" if options.webhook else ""
            which = " that can be replayed" if options.action == "replay" else ""
            yield f"{options.action}: there are no dead letters{whose}{which}"
            return
        count = letters.ask(options.action, numbers)
        when = "done within a second by the mqhooks that owns the outbox, or when one starts"
        yield f"{options.action}: requested for {count}; {when}"


def _numbers(letters: Letters, options: Namespace) -> list[int]:
    """List the numbers of the dead letters that are meant, all of which can be acted on."""
    numbers: list[int] = options.number
    replay = options.action == "replay"
    if options.all and numbers:
        raise MqhooksError(f"{options.action}: all of them or these? Give --all or numbers, not both")
    if options.all:
        return [letter.number for letter in letters.of(options.webhook) if not (replay and letter.damage)]
    if options.webhook or not numbers:
        raise MqhooksError(f"{options.action}: which ones? Give their numbers, or --all, or --all --webhook NAME")
    for number in numbers:
        letter = letters.get(number)
        if replay:
            letter.check()
    return numbers


def _check_webhook(letters: Letters, options: Namespace) -> None:
    name = options.webhook
    if name is None:
        return
    known = letters.webhooks()
    if name not in known:
        names = ", ".join(printable(each, NAME) for each in known) or "none"
        raise MqhooksError(f"the outbox knows no webhook {printable(name, NAME)}; it knows {names}")


def _described(letter: DeadLetter, *, reveal: bool) -> Iterator[str]:
    delivery = letter.delivery
    limit = 1 << 20
    answer = letter.answer.decode("utf-8", "backslashreplace")
    url, reason = letter.url, letter.reason
    if not reveal:
        # The answer may repeat what was asked for.
        url, reason, answer = hide_url(url), hide(reason, url), hide(answer, url)
    yield f"dead letter {letter.number}"
    yield f"  webhook   {printable(letter.webhook, limit)}"
    yield f"  id        {printable(delivery.id, limit)}"
    yield f"  client    {printable(delivery.client.replace(chr(0), '/'), limit)}"
    yield f"  accepted  {_time(delivery.accepted)}"
    yield f"  died      {_time(letter.died)}"
    yield f"  reason    {printable(reason, limit)}"
    yield f"  attempts  {delivery.attempts}"
    yield f"  request   POST {printable(url, limit)}"
    yield f"            {printable(delivery.body[: 4 * limit + 4].decode('utf-8', 'backslashreplace'), limit)}"
    if letter.status:
        yield f"  answer    {letter.status}"
        yield f"            {printable(answer, limit)}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
