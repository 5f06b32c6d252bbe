"""
Export dead letters as JSON lines, and import such lines, perhaps edited with ``jq``.

- A line holds everything, the body in base64, so that no byte of it is lost. Times are text, since ``jq`` rounds whole numbers
  of more than 53 bits.
- All lines are checked before the first is handed over: if one has a mistake, nothing is imported. Meanwhile they wait in a
  temporary file beside the outbox, so memory does not grow with their number, and a pipe can be imported too.
- Progress is noted under a hash of the lines, in the same transactions: the same lines are imported once, and an interrupted
  import goes on where it stopped.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from hashlib import blake2b
from os.path import dirname, realpath
from tempfile import TemporaryFile
from typing import IO, Any

import msgspec

from mqhooks.delivery import DeadLetter, Delivery, Variation
from mqhooks.errors import OutboxError
from mqhooks.outbox import schema
from mqhooks.outbox.handed import Handed, hand_over, progress
from mqhooks.outbox.ledger import ROW, ROW_BYTES
from mqhooks.outbox.stored import LONGEST, encode, encode_handed, joined
from mqhooks.support.times import read, written

LINE = 256 << 20
"""Longest line, in bytes."""

MISTAKES = 100
"""Maximum number of mistakes reported."""

_TEXT = 65_535
"""Bytes of UTF-8 that MQTT allows in a text."""

_ID = re.compile(r"[!-~]{1,256}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(r"/[!-~]*")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class _Variation(msgspec.Struct, forbid_unknown_fields=True):
    method: str | None = None
    path: str | None = None
    headers: list[tuple[str, str]] = []
    problem: str | None = None


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    webhook: str
    id: str
    client: str
    body: bytes
    mountpoint: str = ""
    timestamp: str | None = None
    accepted: str | None = None
    died: str | None = None
    attempts: int = 0
    url: str = ""
    reason: str = ""
    status: int = 0
    answer: bytes = b""
    variation: _Variation | None = None
    number: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


class ImportMistakes(OutboxError):
    """
    Lines that cannot be imported.

    :param mistakes: one line for each.
    """

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__(self.mistakes[0])


def described(letter: DeadLetter) -> dict[str, Any]:
    """Describe a dead letter, except its body, in plain values."""
    delivery = letter.delivery
    mountpoint, _, client = delivery.client.rpartition("\0")
    return {
        "number": letter.number,
        "webhook": letter.webhook,
        "id": delivery.id,
        "client": client,
        "mountpoint": mountpoint,
        "timestamp": written(delivery.timestamp, 9),
        "accepted": written(delivery.accepted * 10**6, 3),
        "died": written(letter.died * 10**6, 3),
        "attempts": delivery.attempts,
        "url": letter.url,
        "reason": letter.reason,
        "status": letter.status,
        "answer": letter.answer,
        "variation": None if delivery.variation is None else msgspec.structs.asdict(delivery.variation),
    }


def exported(letter: DeadLetter) -> bytes:
    """Encode an undamaged dead letter as a line, without the newline."""
    return _encode(described(letter) | {"body": letter.delivery.body})


def import_lines(file: IO[bytes], name: str, outbox: str, now: int, *, dead: bool) -> int:
    """
    Hand lines over to the process that owns an outbox: as deliveries that are as new as replayed ones, or as dead letters.

    :param file: JSON lines, as :func:`exported` writes them; empty ones are skipped.
    :param name: the file's name, for reporting mistakes.
    :param outbox: the outbox's path; a process may be using it.
    :param now: milliseconds since 1970.
    :param dead: whether they become dead letters.
    :returns: the number handed over: 0 when the same lines were imported before.
    :raises mqhooks.outbox.exchange.ImportMistakes: when lines are wrong; then none is imported.
    :raises mqhooks.errors.OutboxError: when the outbox cannot be used.
    """
    outbox = realpath(outbox)
    schema.check(outbox)
    try:
        with closing(schema.connect(outbox)) as target, TemporaryFile(dir=dirname(outbox)) as checked:
            known = {str(row[0]) for row in target.execute("SELECT name FROM webhook")}
            source = check_lines(file, name, checked, known, now, dead=dead)
            batch, letters = progress(target, source)
            if dead:
                return hand_over(target, source, "dead", (each for each in read_checked(checked) if each.number > letters))
            return hand_over(target, source, "batch", _rows(each for each in read_checked(checked) if each.number > batch))
    except sqlite3.Error as error:
        raise OutboxError(f"{outbox}: cannot be written ({error}); import again: it goes on where it stopped") from None
    except OSError as error:
        raise OutboxError(f"{name}: cannot be read, or copied beside {outbox} for the import ({error.strerror})") from None


def check_lines(file: IO[bytes], name: str, checked: IO[bytes], known: set[str], now: int, *, dead: bool) -> str:
    """
    Check all lines, and write their contents to another file.

    :param checked: that file, for :func:`read_checked`.
    :param known: the webhooks that the outbox knows.
    :returns: a hash of the lines.
    :raises mqhooks.outbox.exchange.ImportMistakes: when lines are wrong.
    """
    digest = blake2b(b"dead" if dead else b"pending", digest_size=16)
    mistakes: list[str] = []
    number = count = 0
    while line := file.readline(LINE + 1):
        number += 1
        if not line.strip():
            continue
        digest.update(line.rstrip(b"\r\n") + b"\n")
        letter, problems = _letter(line, known, now)
        if problems:
            count += len(problems)
            mistakes += [f"{name}:{number}: {problem}" for problem in problems[: MISTAKES - len(mistakes)]]
        elif letter is not None and not count:
            webhook, content = letter.webhook.encode(), encode_handed(letter) if dead else encode(letter.delivery)
            checked.write(
                b"%b%b%b" % (number.to_bytes(8, "big"), len(webhook).to_bytes(4, "big"), len(content).to_bytes(8, "big"))
            )
            checked.write(webhook)
            checked.write(content)
        if len(line) > LINE:
            # Don't look for its end.
            break
    if count:
        more = f"{count - len(mistakes)} more mistakes; " if count > len(mistakes) else ""
        raise ImportMistakes([*mistakes, f"{name}: {more}nothing was imported"])
    return f"import-{digest.hexdigest()}"


def _letter(line: bytes, known: set[str], now: int) -> tuple[DeadLetter | None, list[str]]:
    """Read a line; return its dead letter, or else what is wrong with it."""
    if len(line) > LINE:
        return None, [f"is longer than {LINE >> 20} MiB; nothing after it was checked"]
    try:
        value = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, [f"{error or 'is nested too deeply'}"]
    problems = list(_problems(value, known))
    times = []
    for key in ("timestamp", "accepted", "died"):
        text = getattr(value, key)
        try:
            times.append(now * 10**6 if text is None else read(text))
            if times[-1] >= 1 << 63:
                raise ValueError(f"{text!r} is after the year 2262")
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        return None, problems
    client = f"{value.mountpoint}\0{value.client}" if value.mountpoint else value.client
    variation = None
    if value.variation is not None:
        own = value.variation
        variation = Variation(own.method, own.path, tuple(own.headers), own.problem)
    # As new as a replayed delivery: its age counts from now.
    delivery = Delivery(value.id, client, times[0], value.body, now, variation=variation)
    died = times[2] // 10**6
    return DeadLetter(0, value.webhook, delivery, value.url, value.reason, value.status, value.answer[:1024], died), []


def _problems(value: _Line, known: set[str]) -> Iterator[str]:
    if value.webhook not in known:
        names = ", ".join(sorted(known)) or "none"
        yield f"webhook: the outbox has no webhook {value.webhook[:80]!r}; it has {names[:500]}"
    if not _ID.fullmatch(value.id):
        yield f"id: {value.id[:80]!r} is not 1 to 256 visible ASCII characters, which fit into a header"
    for key in ("client", "mountpoint"):
        text = getattr(value, key)
        if "\0" in text or len(text.encode()) > _TEXT:
            yield f"{key}: has a NUL character, or more than {_TEXT} bytes"
    if len(value.body) > LONGEST:
        yield f"body: has more than {LONGEST} bytes"
    if not (value.status == 0 or 100 <= value.status <= 999):
        yield f"status: {value.status} is neither a status nor 0"
    if not 0 <= value.attempts < 1 << 31:
        yield f"attempts: {value.attempts} is not a number of attempts"
    variation = value.variation
    if variation is not None:
        if variation.method is not None and not _TOKEN.fullmatch(variation.method):
            yield f"variation.method: {variation.method[:80]!r} is not a method like POST"
        if variation.path is not None and not _PATH.fullmatch(variation.path):
            yield f"variation.path: {variation.path[:80]!r} is not a path like /hook?a=b, percent-encoded"
        for header, text in variation.headers:
            if not (_TOKEN.fullmatch(header) and _VALUE.fullmatch(text)):
                yield f"variation.headers: {header[:80]!r} is not a header name, or its value has control characters"


def read_checked(checked: IO[bytes]) -> Iterator[Handed]:
    """Read back what :func:`check_lines` wrote: one delivery or dead letter at a time, with its line's number."""
    checked.seek(0)
    while head := checked.read(20):
        webhook = checked.read(int.from_bytes(head[8:12], "big")).decode()
        content = checked.read(int.from_bytes(head[12:], "big"))
        yield Handed(int.from_bytes(head[:8], "big"), webhook, 1, content, 1)


def _rows(deliveries: Iterable[Handed]) -> Iterator[Handed]:
    """Group consecutive encoded deliveries of the same webhook into rows."""
    row: list[Handed] = []
    size = 0
    for each in deliveries:
        if row and (each.webhook != row[0].webhook or len(row) >= ROW or size + len(each.content) > ROW_BYTES):
            yield _row(row)
            row, size = [], 0
        row.append(each)
        size += len(each.content)
    if row:
        yield _row(row)


def _row(deliveries: list[Handed]) -> Handed:
    content = joined([each.content for each in deliveries])
    return Handed(deliveries[-1].number, deliveries[0].webhook, 0, content, len(deliveries))
