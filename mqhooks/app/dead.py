"""
``mqhooks dead``: lists, shows, replays, purges, exports and imports dead letters.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import closing
from time import time
from typing import IO, TYPE_CHECKING

import msgspec

from mqhooks.admin.plain import HIDDEN
from mqhooks.app.outboxes import add_outbox
from mqhooks.app.parser import CommandParser
from mqhooks.delivery import DeadLetter
from mqhooks.errors import MqhooksError
from mqhooks.outbox.deadletters import Filter, Letters, status_range
from mqhooks.outbox.exchange import described, exported
from mqhooks.support.output import complain
from mqhooks.support.printable import listed, printable
from mqhooks.support.redact import hide, hide_url
from mqhooks.support.times import moment, written

if TYPE_CHECKING:
    from mqhooks.app.engine import EngineLetters

NAME = 60
"""Characters of a name shown in a list."""

_encode = msgspec.json.Encoder().encode


def add(parser: CommandParser) -> None:
    """Add the commands of ``mqhooks dead``."""
    for name, command, description in (
        ("list", _list, "list dead letters, oldest first"),
        ("show", _show, "show dead letters in full, with the request and the last answer"),
        ("replay", _ask, "deliver dead letters again, after the deliveries that already wait"),
        ("purge", _ask, "remove dead letters for good"),
        ("export", _export, "write dead letters to a file as JSON lines, in full, with all secrets"),
        ("import", _import, "deliver the contents of an exported file, after the deliveries that already wait"),
    ):
        action = parser.command(name, description, metavar="ACTION")
        add_outbox(action)
        action.set_defaults(command=command, action=name)
        if name == "import":
            action.add_argument("--as-dead", action="store_true", help="import them as dead letters, and deliver nothing")
        else:
            _add_filter(action)
        if name in ("list", "show"):
            action.add_argument("--json", action="store_true", help="a JSON object on each line")
        if name == "list":
            action.add_argument("--groups", action="store_true", help="group those with the same reason, and count them")
        if name in ("replay", "purge"):
            action.add_argument("--all", action="store_true", help="all, or all of one webhook")
        if name == "show":
            action.add_argument("--reveal", action="store_true", help="show secrets in the URL too")
        if name in ("show", "replay", "purge"):
            action.add_argument("number", nargs="*", type=_number, help="their numbers")
        if name in ("export", "import"):
            stream = "standard output" if name == "export" else "standard input"
            action.add_argument("file", metavar="FILE", help=f"the file; - for {stream}")


def _add_filter(action: CommandParser) -> None:
    action.add_argument("--webhook", metavar="NAME", help="only those of this webhook")
    action.add_argument("--client", metavar="ID", help="only those of this client id, or MOUNTPOINT/ID")
    action.add_argument("--reason", metavar="TEXT", help="only those whose reason contains this")
    action.add_argument(
        "--status", metavar="STATUS", type=_status, help="only after this status, like 503 or 5xx; 0: no answer"
    )
    time_ = "a time like 2026-01-31T12:00:00Z, or an age like 90s, 2h or 3d"
    action.add_argument("--since", metavar="TIME", type=_moment, help=f"only those given up since then: {time_}")
    action.add_argument("--until", metavar="TIME", type=_moment, help="only those given up before then")


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ArgumentTypeError(f"{text!r} is not a dead letter's number, as mqhooks dead list shows it")
    return int(text)


def _moment(text: str) -> int:
    try:
        return moment(text, time())
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _status(text: str) -> tuple[int, int]:
    try:
        return status_range(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _opened(options: Namespace) -> Letters | EngineLetters:
    """Open the outbox's dead letters, in a file or in JetStream."""
    if options.outbox or not options.config:
        return Letters(options.outbox_path(options))
    # This imports the reactor, which a file does not need.
    from mqhooks.app.engine import EngineLetters, engine_settings

    engine = engine_settings(options.config)
    return Letters(options.outbox_path(options)) if engine is None else EngineLetters(engine)


def _filter(letters: Letters | EngineLetters, options: Namespace) -> Filter:
    name = options.webhook
    if name is not None:
        known = letters.webhooks()
        if name not in known:
            names = ", ".join(printable(each, NAME) for each in known) or "none"
            raise MqhooksError(f"the outbox has no webhook {printable(name, NAME)}; it has {names}")
    for option in ("reason", "client"):
        try:
            (getattr(options, option) or "").encode()
        except UnicodeEncodeError:
            raise MqhooksError(f"--{option}: is not UTF-8") from None
    return Filter(name, options.reason or None, options.client, options.status, options.since, options.until)


def _list(options: Namespace) -> Iterator[str]:
    with closing(_opened(options)) as letters:
        only = _filter(letters, options)
        if options.groups:
            for group in letters.groups(only):
                reason = hide(group.reason, group.url)
                first, last = _time(group.first), _time(group.last)
                if options.json:
                    row = {"count": group.letters, "first": first, "last": last, "webhook": group.webhook}
                    yield _encode(row | {"status": group.status, "reason": reason}).decode()
                else:
                    when = first if first == last else f"{first} - {last}"
                    yield "  ".join((str(group.letters), when, printable(group.webhook, NAME), printable(reason, 200)))
            return
        for letter in letters.of(only):
            if options.json:
                yield _json(letter)
                continue
            client = letter.delivery.client.replace("\0", "/")
            reason = hide(letter.reason, letter.url)
            parts = (str(letter.number), _time(letter.died), letter.webhook, letter.delivery.id, client, reason)
            yield "  ".join(printable(part, NAME if part is not reason else 200) for part in parts)


def _json(letter: DeadLetter, *, whole: bool = False, reveal: bool = False) -> str:
    shown = described(letter) | {"answer": letter.answer.decode("utf-8", "replace"), "size": len(letter.delivery.body)}
    if not reveal:
        shown |= {"url": hide_url(letter.url)} | {key: hide(shown[key], letter.url) for key in ("reason", "answer")}
        variation = letter.delivery.variation
        if variation is not None:
            path = None if variation.path is None else hide_url(f"http://h{variation.path}").removeprefix("http://h")
            shown["variation"] = {
                "method": variation.method,
                "path": path,
                "headers": [[name, HIDDEN] for name, _ in variation.headers],
            }
    if whole:
        shown["body"] = letter.delivery.body
    return _encode(shown | {"damage": letter.damage}).decode()


def _show(options: Namespace) -> Iterator[str]:
    with closing(_opened(options)) as letters:
        for letter in _chosen(letters, options):
            if options.number:
                letter.check()
            if options.json:
                yield _json(letter, whole=True, reveal=options.reveal)
            else:
                yield from _described(letter, reveal=options.reveal)


def _ask(options: Namespace) -> Iterator[str]:
    replay = options.action == "replay"
    with closing(_opened(options)) as letters:
        found = _chosen(letters, options)
        if options.number:
            # Look at all of them first: if one number is wrong, nothing is done.
            chosen = []
            for letter in found:
                if replay:
                    letter.check()
                chosen.append(letter.number)
            count = letters.ask(options.action, chosen)
        else:
            count = letters.ask(options.action, (letter.number for letter in found if not (replay and letter.damage)))
        if count:
            yield f"{options.action}: requested for {count}; {letters.done}"
            return
        whose = f" of webhook {printable(options.webhook, NAME)}" if options.webhook else ""
        like = " like these" if _filter(letters, options).narrow else ""
        yield f"{options.action}: there are no dead letters{whose}{like}{' that can be replayed' if replay else ''}"


def _chosen(letters: Letters | EngineLetters, options: Namespace) -> Iterator[DeadLetter]:
    """Return the dead letters that are meant: those with the given numbers, or those that match the filter."""
    only = _filter(letters, options)
    action, numbers = options.action, options.number
    everything = getattr(options, "all", False)
    if everything and numbers:
        raise MqhooksError(f"{action}: give --all or numbers, not both")
    if numbers and only != Filter():
        raise MqhooksError(f"{action}: give numbers or a filter such as --reason, not both")
    if numbers:
        return map(letters.get, numbers)
    if not (everything or only.narrow or (action == "show" and only.webhook)):
        remedy = "Give their numbers, a filter such as --reason or --since"
        remedy += ", or --all, or --all --webhook NAME" if action != "show" else ", or --webhook NAME"
        raise MqhooksError(f"{action}: which ones? {remedy}")
    return letters.of(only)


def _export(options: Namespace) -> Iterator[str]:
    with closing(_opened(options)) as letters:
        found = letters.of(_filter(letters, options))
        left: list[int] = []
        if options.file == "-":
            for letter in found:
                if letter.damage:
                    left.append(letter.number)
                else:
                    yield exported(letter).decode()
        else:
            yield f"export: {_write(options.file, found, left)} dead letters are in {printable(options.file, 4096)}"
        if left:
            problem = "are damaged, or were stored without their bodies, and are left out"
            complain(f"mqhooks: export: {len(left)} {problem}: {listed(left)}\n")


def _write(path: str, found: Iterator[DeadLetter], left: list[int]) -> int:
    """Write dead letters to a new file that only its owner may read."""
    count = 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise MqhooksError(f"{path}: already exists: give another name, or - for standard output") from None
    except (OSError, ValueError) as error:
        raise MqhooksError(f"{path}: cannot be created: {getattr(error, 'strerror', None) or error}") from None
    try:
        with open(descriptor, "wb") as file:
            for letter in found:
                if letter.damage:
                    left.append(letter.number)
                    continue
                file.write(exported(letter))
                file.write(b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise MqhooksError(f"{path}: cannot be written: {error.strerror}") from None
        raise
    return count


def _import(options: Namespace) -> Iterator[str]:
    # Open the outbox first, so that its problems are reported before a file is read.
    with closing(_opened(options)) as letters:
        now = int(time() * 1000)
        if options.file == "-":
            count = letters.take_in(sys.stdin.buffer, "standard input", now, dead=options.as_dead)
        else:
            with _open(options.file) as file:
                count = letters.take_in(file, options.file, now, dead=options.as_dead)
        if not count:
            yield "import: nothing to do: there are no lines, or the same lines were imported before"
            return
        yield f"import: {count} {'dead letters' if options.as_dead else 'deliveries'} were handed over; {letters.done}"


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise MqhooksError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _described(letter: DeadLetter, *, reveal: bool) -> Iterator[str]:
    delivery = letter.delivery
    limit = 1 << 20
    answer = letter.answer.decode("utf-8", "backslashreplace")
    url, reason = letter.address, letter.reason
    if not reveal:
        # The answer may repeat the requested URL.
        url, reason, answer = hide_url(url), hide(reason, letter.url), hide(hide(answer, letter.url), url)
    yield f"dead letter {letter.number}"
    yield f"  webhook   {printable(letter.webhook, limit)}"
    yield f"  id        {printable(delivery.id, limit)}"
    yield f"  client    {printable(delivery.client.replace(chr(0), '/'), limit)}"
    yield f"  accepted  {_time(delivery.accepted)}"
    yield f"  died      {_time(letter.died)}"
    yield f"  reason    {printable(reason, limit)}"
    yield f"  attempts  {delivery.attempts}"
    yield f"  request   {letter.method} {printable(url, limit)}"
    for name, value in () if delivery.variation is None else delivery.variation.headers:
        yield f"            {printable(f'{name}: {value if reveal else HIDDEN}', limit)}"
    yield f"            {printable(delivery.body[: 4 * limit + 4].decode('utf-8', 'backslashreplace'), limit)}"
    if letter.status:
        yield f"  answer    {letter.status}"
        if answer:
            yield f"            {printable(answer, limit)}"


def _time(milliseconds: int) -> str:
    return written(milliseconds * 10**6)
