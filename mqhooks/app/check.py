"""
``mqhooks check``: what a configuration would do, what VerneMQ needs for it, and every mistake in it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from twisted.python.usage import UsageError

from mqhooks.app import tap
from mqhooks.app.describe import describe
from mqhooks.app.parser import Parser, words_of
from mqhooks.app.reactor import install
from mqhooks.errors import MqhooksError


def add(parser: Parser) -> None:
    """Add the options of ``mqhooks check``."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="the configuration, the same as --config FILE")
    parser.take_over(tap.Options, without=("check", "sample", "log-format"))
    parser.add_argument("--sample", action="store_true", help="print a request for each rule, too")
    parser.add_argument("--strict", action="store_true", help="take warnings for mistakes")
    parser.epilog = "Exit status: 0 the configuration is good, 1 there are mistakes."
    parser.set_defaults(command=_check)


def _check(given: Namespace) -> Iterator[str]:
    if given.file is not None and given.config is not None:
        raise MqhooksError("check: FILE and --config are the same: give one of them")
    given.config = given.config if given.file is None else given.file
    options = tap.Options()
    sample, given.sample = given.sample, False
    try:
        options.parseOptions(words_of(tap.Options, given))
    except UsageError as error:
        raise MqhooksError(f"check: {error}") from None
    planned = tap.plan(install(), options)
    if given.strict and planned.settings.warnings:
        raise MqhooksError("; ".join(planned.settings.warnings))
    yield from describe(planned.settings, planned.sidecars, options["sink"], samples=sample).splitlines()
