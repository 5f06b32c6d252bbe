"""
The commands that twistd runs: ``mqhooks run``, ``capture``, ``replay``, ``simulate`` and ``receive``.

Each is short for ``twistd -n --pidfile= COMMAND``, in this process; for twistd's own options, run twistd.
"""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator, Mapping, Sequence

from twisted.internet.endpoints import quoteStringArgument

from mqhooks.app import tap
from mqhooks.app.parser import CommandParser, words_of
from mqhooks.support.redact import hide_urls
from mqhooks.tools import receiver, simulator

_SOURCES = ("sidecar-port", "sidecar", "webhooks-port", "grpc-port", "log-format")


def add_run(parser: CommandParser) -> None:
    """Add the options of ``mqhooks run``."""
    _add_foreground(parser)
    parser.take_over(tap.Options)
    parser.set_defaults(command=lambda given: _twistd("mqhooks", words_of(tap.Options, given)))


def add_capture(parser: CommandParser) -> None:
    """Add the options of ``mqhooks capture``."""
    _add_foreground(parser)
    parser.add_argument("file", metavar="FILE", help="the file; frames are appended")
    size = "stop recording at this size, like 1GiB; without it, when the disk is full"
    parser.add_argument("--max-size", metavar="SIZE", help=size)
    parser.take_over(tap.Options, only=_SOURCES)
    parser.set_defaults(command=_capture)


def add_replay(parser: CommandParser) -> None:
    """Add the options of ``mqhooks replay``."""
    _add_foreground(parser)
    parser.add_argument("replay", metavar="FILE", help="what mqhooks capture, or the sink capture, has recorded")
    parser.take_over(simulator.Options, only=("via", "target", "connections", "count", "seed", "speed"))
    typed = {"mqhooks-simulate: --replay: ": "mqhooks replay: ", "mqhooks-simulate: ": "mqhooks replay: "}
    parser.set_defaults(command=lambda given: _twistd("mqhooks-simulate", words_of(simulator.Options, given), typed))


def add_simulate(parser: CommandParser) -> None:
    """Add the options of ``mqhooks simulate``."""
    _add_foreground(parser)
    parser.take_over(simulator.Options)
    typed = {"mqhooks-simulate: ": "mqhooks simulate: "}
    parser.set_defaults(command=lambda given: _twistd("mqhooks-simulate", words_of(simulator.Options, given), typed))


def add_receive(parser: CommandParser) -> None:
    """Add the options of ``mqhooks receive``."""
    _add_foreground(parser)
    parser.take_over(receiver.Options)
    typed = {"mqhooks-receive: ": "mqhooks receive: "}
    parser.set_defaults(command=lambda given: _twistd("mqhooks-receive", words_of(receiver.Options, given), typed))


def _add_foreground(parser: CommandParser) -> None:
    # Accepted because twistd's users type it by habit.
    parser.add_argument("-n", "--nodaemon", action="store_true", help=SUPPRESS)


def _capture(given: Namespace) -> Iterator[str]:
    size = "" if given.max_size is None else f":max_size={quoteStringArgument(given.max_size)}"
    sink = f"capture:path={quoteStringArgument(given.file)}{size}"
    hidden = f"mqhooks: {hide_urls(sink)}: "
    typed = {f"{hidden}max_size: ": "mqhooks: --max-size: ", f"{hidden}path: ": "mqhooks: FILE: "}
    return _twistd("mqhooks", [f"--sink={sink}", "--admin-port=0", *words_of(tap.Options, given)], typed)


def _twistd(command: str, words: Sequence[str], typed: Mapping[str, str] | None = None) -> Iterator[str]:
    """
    Run one of twistd's commands.

    :param typed: the beginnings of its errors, each with one that names what the user typed; longer ones come first.
    """
    from twisted.scripts.twistd import run

    sys.argv = ["twistd", "-n", "--pidfile=", command, *words]
    try:
        run()
    except SystemExit as error:
        if not typed or not isinstance(error.code, str):
            raise
        pattern = "|".join(map(re.escape, typed))
        raise SystemExit(re.sub(f"^(?:{pattern})", lambda match: typed[match[0]], error.code, flags=re.MULTILINE)) from None
    yield from ()
