"""
The ``mqhooks`` command: looks after an outbox, even while the bridge that owns it runs, and tries an endpoint.

For an outbox it needs only its path from the configuration, none of its secrets.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence

import msgspec

import mqhooks
from mqhooks.app.configuration import outbox_path
from mqhooks.app.letters import add_commands
from mqhooks.app.settings import DEFAULTS
from mqhooks.errors import MqhooksError
from mqhooks.outbox.aside import ASIDE
from mqhooks.outbox.exchange import ImportMistakes
from mqhooks.outbox.salvage import salvage
from mqhooks.support.printable import printable


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
    except ImportMistakes as error:
        sys.stderr.write("".join(f"mqhooks: {printable(mistake, 4096)}\n" for mistake in error.mistakes))
        return 1
    except (MqhooksError, sqlite3.Error, msgspec.MsgspecError, OverflowError) as error:
        sys.stderr.write(f"mqhooks: {error}\n")
        return 1
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "mqhooks", description="Look after mqhooks' outbox, and try endpoints. The relay itself is twistd mqhooks."
    )
    parser.add_argument("--version", action="version", version=f"mqhooks {mqhooks.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    dead = commands.add_parser("dead", help="dead letters: deliveries that were given up")
    actions = dead.add_subparsers(required=True, metavar="ACTION")
    add_commands(actions, _add_outbox)
    outbox = commands.add_parser("outbox", help="the outbox itself").add_subparsers(required=True, metavar="ACTION")
    description = "hand what a damaged outbox file still holds to the outbox that replaced it"
    action = outbox.add_parser("salvage", help=description, description=f"Outbox: {description}.")
    _add_outbox(action)
    action.add_argument("file", metavar="FILE", help=f"the damaged file, like mqhooks-outbox{ASIDE}20260131T120000")
    action.set_defaults(command=_salvage)
    description = "take all that an outbox holds into another one, while no mqhooks uses either"
    action = outbox.add_parser("move", help=description, description=f"Outbox: {description}.")
    action.add_argument("source", metavar="OLD", help="the configuration of the outbox that is to be left")
    action.add_argument("target", metavar="NEW", help="the configuration of the one that is to be used from now on")
    action.set_defaults(command=_move)
    description = "divide webhooks in JetStream into as many partitions as the configuration says"
    action = outbox.add_parser("repartition", help=description, description=f"Outbox: {description}.")
    action.add_argument("--config", "-c", metavar="FILE", required=True, help="the configuration")
    action.set_defaults(command=_repartition)
    description = "send one made-up delivery to a webhook's endpoint, and show what comes back"
    action = commands.add_parser("send-test", help=description, description=f"{description.capitalize()}; 2xx is success.")
    action.add_argument("--config", "-c", metavar="FILE", required=True, help="the configuration")
    action.add_argument("--webhook", metavar="NAME", help="the webhook, if there are several")
    action.add_argument("--event", metavar="EVENT", help="what it is about, like on_message_publish")
    action.set_defaults(command=_send_test)
    return parser


def _add_outbox(parser: ArgumentParser) -> None:
    parser.add_argument("--outbox", metavar="FILE", help="the outbox")
    parser.add_argument("--config", "-c", metavar="FILE", help="the configuration that names it")
    parser.set_defaults(outbox_path=_outbox)


def _outbox(options: Namespace, default: str = DEFAULTS.outbox.path) -> str:
    path: str = options.outbox or (outbox_path(options.config) if options.config else default)
    return path


def _salvage(options: Namespace) -> Iterator[str]:
    path = _outbox(options, options.file.rpartition(ASIDE)[0] or DEFAULTS.outbox.path)
    yield f"salvage: {salvage(options.file, path)}"


def _move(options: Namespace) -> Iterator[str]:
    from mqhooks.app.move import move

    return move(options.source, options.target)


def _repartition(options: Namespace) -> Iterator[str]:
    from mqhooks.app.repartition import repartition

    return repartition(options.config)


def _send_test(options: Namespace) -> Iterator[str]:
    # It takes the whole program, which the other commands need not wait for.
    from mqhooks.app.sendtest import send_test

    return send_test(options.config, options.webhook, options.event)
