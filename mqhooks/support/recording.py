"""
The file format of captures: the ``capture`` sink writes it, the simulator replays it.

The first line is ``mqhooks-capture 1``; the number is the version of the format. Each further line is a record of three words
separated by spaces: the CRC-32 of the rest of the line, in eight hexadecimal digits; the time at which the event arrived, in
nanoseconds since 1970; and the frame, a ``google.protobuf.Any`` without its length, in base64. The first line may be repeated
further down, so that files can be concatenated. A last line without a line end was cut off.
"""

from __future__ import annotations

import os
from binascii import a2b_base64, b2a_base64, crc32
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mqhooks.errors import ConfigError

VERSION = 1
"""The version of the format."""

HEADER = b"mqhooks-capture %d\n" % VERSION
"""The first line."""

LONGEST = 400 << 20
"""The longest line: MQTT's largest payload and an envelope, in base64."""

_NAME = b"mqhooks-capture "


class Record(NamedTuple):
    """
    One recorded frame.

    :param time: when it arrived, in nanoseconds since 1970.
    :param frame: a serialised ``google.protobuf.Any``.
    """

    time: int
    frame: bytes


def line(record: Record) -> bytes:
    """
    Format a record.

    :returns: its line, with the line end.
    """
    rest = b"%d %b" % (record.time, b2a_base64(record.frame))
    return b"%08x %b" % (crc32(rest[:-1]), rest)


def check_header(first: bytes, path: str) -> None:
    """
    Check that a file is a capture of a version that we can read.

    :param first: its first bytes, up to the first line end if there is one.
    :param path: the file's name, for errors.
    :raises mqhooks.errors.ConfigError: when it is not.
    """
    if HEADER.startswith(first):
        return
    version = first.removeprefix(_NAME).removesuffix(b"\n")
    if first.startswith(_NAME) and version.isdigit():
        raise ConfigError(
            f"is a capture of version {int(version)}, and this mqhooks reads version {VERSION}: use a newer mqhooks", path
        )
    raise ConfigError("is not an mqhooks capture; give another file", path)


def read(file: BinaryIO, path: str, end: int | None = None) -> Iterator[Record]:
    """
    Read a capture.

    :param file: positioned at its beginning.
    :param path: the file's name, for errors.
    :param end: the byte at which to stop; ``None`` for the end of the file.
    :returns: the records, without one that is cut off at the end of the file.
    :raises mqhooks.errors.ConfigError: when it is not a capture or is damaged.
    """
    first = file.readline(64)
    check_header(first, path)
    offset = len(first)
    while end is None or offset < end:
        text = file.readline(LONGEST)
        if not text.endswith(b"\n") and len(text) < LONGEST:
            return
        if text.startswith(_NAME):
            check_header(text, path)
        else:
            yield _parsed(text, offset, path)
        offset += len(text)


def resume(descriptor: int, path: str) -> int:
    """
    Prepare a file for appending: write the first line of a new one, and remove a last record that was cut off.

    :param descriptor: open for reading and appending.
    :param path: the file's name, for errors.
    :returns: the file's size in bytes.
    :raises mqhooks.errors.ConfigError: when it is not a capture.
    :raises OSError: when it cannot be written.
    """
    first, found, _ = os.pread(descriptor, 64, 0).partition(b"\n")
    check_header(first + found, path)
    if not found:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, HEADER)
    end = size = os.fstat(descriptor).st_size
    block = 1 << 16
    while end:
        start = max(0, end - block)
        kept = os.pread(descriptor, end - start, start).rfind(b"\n") + 1
        if kept:
            if start + kept < size:
                os.ftruncate(descriptor, start + kept)
            return start + kept
        end = start
    return 0


def _parsed(text: bytes, offset: int, path: str) -> Record:
    code, _, rest = text[:-1].partition(b" ")
    time, _, frame = rest.partition(b" ")
    try:
        if int(code, 16) == crc32(rest):
            return Record(int(time), a2b_base64(frame))
    except ValueError:
        pass
    raise ConfigError(f"is damaged at byte {offset}; head -c {offset} keeps what comes before", path)
