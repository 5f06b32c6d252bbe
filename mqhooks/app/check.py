"""
``mqhooks check``: print what a configuration would do and what VerneMQ needs for it, or every mistake in it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Generator, Iterable
from importlib.resources import files

from twisted.python.usage import UsageError

from mqhooks.app import tap
from mqhooks.app.describe import describe
from mqhooks.app.parser import CommandParser, words_of
from mqhooks.app.reactor import install
from mqhooks.errors import ConfigError, MqhooksError, told
from mqhooks.support.output import complain


def add(parser: CommandParser) -> None:
    """Add the options of ``mqhooks check``."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="the configuration, the same as --config FILE")
    parser.take_over(tap.Options, without=("check", "sample", "log-format"))
    parser.add_argument("--sample", action="store_true", help="also print a request for each rule")
    parser.add_argument("--strict", action="store_true", help="treat warnings as mistakes")
    parser.epilog = "Exit status: 0 the configuration is good, 1 there are mistakes."
    parser.set_defaults(command=_check)


def _check(given: Namespace) -> Generator[str, None, int]:
    if given.file is not None and given.config is not None:
        raise MqhooksError("check: FILE and --config are the same: give one of them")
    given.config = given.config if given.file is None else given.file
    options = tap.Options()
    sample, given.sample = given.sample, False
    try:
        options.parseOptions(words_of(tap.Options, given))
    except UsageError as error:
        raise MqhooksError(f"check: {error}") from None
    warnings: list[str] = []
    try:
        planned = tap.plan(install(), options, warnings, looking=True)
        settings = tap.looked_at(planned.settings, options)
    except ConfigError as error:
        return _tell(error.mistakes, warnings)
    if given.strict and warnings:
        return _tell((), warnings)
    yield from describe(settings, planned.sidecars, options["sink"], samples=sample).splitlines()
    return 0


def _tell(mistakes: Iterable[ConfigError], warnings: Iterable[str]) -> int:
    lines = [*map(told, mistakes), *(f"warning: {told(warning)}" for warning in warnings)]
    complain("".join(f"mqhooks: {line}\n" for line in lines))
    return 1


def add_schema(parser: CommandParser) -> None:
    """Add ``mqhooks schema``, which has no options."""
    parser.set_defaults(command=lambda _: iter(files("mqhooks.app").joinpath("schema.json").read_text("utf-8").splitlines()))
