"""
``mqhooks outbox``, and the options that name the outbox for a command.

These options read only the outbox's path from the configuration, and none of its secrets.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from mqhooks.app.configuration import outbox_path
from mqhooks.app.parser import CommandParser
from mqhooks.app.settings import DEFAULTS
from mqhooks.outbox.aside import ASIDE
from mqhooks.outbox.salvage import salvage


def add(parser: CommandParser) -> None:
    """Add the commands of ``mqhooks outbox``."""
    action = parser.command(
        "salvage", "recover what a damaged outbox file still holds into the outbox that replaced it", metavar="ACTION"
    )
    add_outbox(action)
    action.add_argument("file", metavar="FILE", help=f"the damaged file, like mqhooks-outbox{ASIDE}20260131T120000")
    action.set_defaults(command=_salvage)
    action = parser.command("move", "move everything in one outbox to another, while no mqhooks uses either")
    action.add_argument("source", metavar="OLD", help="the configuration with the outbox to move from")
    action.add_argument("target", metavar="NEW", help="the configuration with the outbox to move to")
    action.set_defaults(command=_move)
    action = parser.command("repartition", "divide webhooks in JetStream into as many partitions as the configuration says")
    action.add_argument("--config", "-c", metavar="FILE", required=True, help="the configuration")
    action.set_defaults(command=_repartition)


def add_outbox(parser: CommandParser) -> None:
    """Add the options that name the outbox; the parsed options' ``outbox_path`` returns its path."""
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
    # This imports the reactor, which the other commands need not wait for.
    from mqhooks.app.move import move

    return move(options.source, options.target)


def _repartition(options: Namespace) -> Iterator[str]:
    from mqhooks.app.repartition import repartition

    return repartition(options.config)
