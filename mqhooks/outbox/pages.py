"""
Read a damaged SQLite file page by page.

- SQLite gives up on a table at the first page that it cannot read; this reads all pages that are left. It follows a table's
  tree as far as possible, and looks for the pages below a lost one among those that belong to nothing else.
- Nothing here proves that a row is right: the caller has to verify each by a checksum of its own.

The format: https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

PAGE_SIZE = 4096
"""Bytes in a page, SQLite's default."""

INTERIOR_INDEX, INTERIOR, LEAF_INDEX, LEAF = 2, 5, 10, 13
"""The kinds of tree pages, by their first byte."""

MOST_COLUMNS = 100
"""More columns than any table here has."""

Value = int | bytes | None
"""A column's value; text is left as bytes."""

_INTS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Cell(NamedTuple):
    """
    The location of a row.

    :param id: its number.
    :param page: the page that it begins on.
    :param at: its offset on the page.
    """

    id: int
    page: int
    at: int


class DamagedPage(Exception):
    """A page is not as SQLite writes it."""


class Pages:
    """
    The pages of a file, each in its newest version, which may be in the write-ahead log.

    :param path: the file; its write-ahead log may be beside it.
    :raises OSError: when it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._log: int | None = None
        self._logged: dict[int, int] = {}
        try:
            self.count = os.fstat(self._file).st_size // PAGE_SIZE
            if os.path.exists(f"{path}-wal"):
                self._log = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                self._read_log(self._log)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
        if self._log is not None:
            os.close(self._log)

    def _read_log(self, log: int) -> None:
        """Find the pages of all complete transactions in the log."""
        header = os.pread(log, 32, 0)
        if len(header) < 32 or int.from_bytes(header[8:12], "big") != PAGE_SIZE:
            return
        magic = int.from_bytes(header[:4], "big")
        words = f"{'>' if magic & 1 else '<'}{{}}I"
        sums = _log_checksum(words, header[:24], (0, 0))
        if magic & ~1 != 0x377F0682 or struct.unpack(">2I", header[24:]) != sums:
            return
        at, pending = 32, {}
        while True:
            head, page = os.pread(log, 24, at), os.pread(log, PAGE_SIZE, at + 24)
            if len(page) < PAGE_SIZE or head[8:16] != header[16:24]:
                return
            sums = _log_checksum(words, head[:8] + page, sums)
            if struct.unpack(">2I", head[16:]) != sums:
                return
            number, size = struct.unpack(">2I", head[:8])
            pending[number] = at + 24
            at += 24 + PAGE_SIZE
            if size:
                # The last frame of a transaction.
                self._logged.update(pending)
                self.count = max(self.count, size)
                pending = {}

    def page(self, number: int) -> bytes:
        """
        Read a page.

        :param number: counted from 1.
        :raises DamagedPage: when it is not there or cannot be read.
        """
        if not 0 < number <= self.count:
            raise DamagedPage(f"there is no page {number}")
        at = self._logged.get(number)
        try:
            if at is not None and self._log is not None:
                data = os.pread(self._log, PAGE_SIZE, at)
            else:
                data = os.pread(self._file, PAGE_SIZE, (number - 1) * PAGE_SIZE)
        except OSError as error:
            raise DamagedPage(f"page {number} cannot be read: {error.strerror}") from None
        if len(data) < PAGE_SIZE:
            raise DamagedPage(f"page {number} is cut off")
        return data

    def tree(self, root: int, seen: set[int]) -> Iterator[int]:
        """
        Follow a tree.

        :param root: its root page.
        :param seen: the pages of the trees followed so far; those of this tree are added.
        :returns: the pages with rows; 0 for each page that is lost.
        """
        left = [root]
        while left:
            number = left.pop()
            if number in seen:
                continue
            try:
                page = self.page(number)
                kind = page[_start(number)]
                if kind in (LEAF, LEAF_INDEX):
                    seen.add(number)
                    yield number
                elif kind in (INTERIOR, INTERIOR_INDEX):
                    children = list(_children(page, _start(number)))
                    seen.add(number)
                    if kind == INTERIOR_INDEX:
                        yield number
                    left += reversed(children)
                else:
                    yield 0
            except (DamagedPage, IndexError, struct.error):
                yield 0

    def orphans(self, seen: set[int]) -> Iterator[int]:
        """
        Find pages with rows that belong to no tree and are not free.

        :param seen: the pages of all trees.
        """
        free = set(self._free())
        for number in range(2, self.count + 1):
            if number not in seen and number not in free:
                try:
                    if self.page(number)[0] == LEAF:
                        yield number
                except DamagedPage:
                    continue

    def _free(self) -> Iterator[int]:
        """Follow the list of free pages, as far as it goes."""
        trunk, followed = 0, set()
        try:
            head = self.page(1)
            if head.startswith(b"SQLite format 3\0"):
                trunk = int.from_bytes(head[32:36], "big")
            while trunk and trunk not in followed:
                followed.add(trunk)
                yield trunk
                page = self.page(trunk)
                trunk, count = struct.unpack(">2I", page[:8])
                yield from struct.unpack(
                    f">{min(count, PAGE_SIZE // 4 - 2)}I", page[8 : 8 + 4 * min(count, PAGE_SIZE // 4 - 2)]
                )
        except DamagedPage:
            return

    def cells(self, number: int) -> Iterator[Cell]:
        """List the rows of a page, as far as they can be found."""
        try:
            page = self.page(number)
            for at in _cells(page, _start(number)):
                try:
                    _, after = _varint(page, at)
                    yield Cell(_varint(page, after)[0], number, at)
                except IndexError:
                    continue
        except (DamagedPage, IndexError, struct.error):
            return

    def row(self, cell: Cell) -> list[Value] | None:
        """Read a row; ``None`` when it cannot be read."""
        try:
            page = self.page(cell.page)
            length, at = _varint(page, cell.at)
            _, at = _varint(page, at)
            return _columns(self._payload(page, at, length, PAGE_SIZE - 35))
        except (DamagedPage, IndexError, struct.error):
            return None

    def entries(self, number: int) -> Iterator[list[Value]]:
        """Read the entries of a page of an index, as far as they can be read."""
        try:
            page = self.page(number)
            start = _start(number)
            skip = 4 if page[start] == INTERIOR_INDEX else 0
            for at in _cells(page, start):
                try:
                    length, after = _varint(page, at + skip)
                    yield _columns(self._payload(page, after, length, (PAGE_SIZE - 12) * 64 // 255 - 23))
                except (DamagedPage, IndexError, struct.error):
                    continue
        except (DamagedPage, IndexError, struct.error):
            return

    def _payload(self, page: bytes, at: int, length: int, most: int) -> bytes:
        if length <= most:
            local = length
        else:
            least = (PAGE_SIZE - 12) * 32 // 255 - 23
            local = least + (length - least) % (PAGE_SIZE - 4)
            local = local if local <= most else least
        if at + local > PAGE_SIZE or length > PAGE_SIZE * self.count:
            raise DamagedPage("a row is longer than its page")
        if local == length:
            return page[at : at + local]
        parts = [page[at : at + local]]
        following = int.from_bytes(page[at + local : at + local + 4], "big")
        left = length - local
        while left > 0:
            further = self.page(following)
            following = int.from_bytes(further[:4], "big")
            parts.append(further[4 : 4 + left])
            left -= PAGE_SIZE - 4
        return b"".join(parts)


def _log_checksum(words: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    values = struct.unpack(words.format(len(data) // 4), data)
    for one, other in zip(values[::2], values[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def _start(number: int) -> int:
    # The first page begins with the file's header.
    return 100 if number == 1 else 0


def _cells(page: bytes, start: int) -> tuple[int, ...]:
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    at = start + (12 if page[start] in (INTERIOR, INTERIOR_INDEX) else 8)
    count = min(count, (PAGE_SIZE - at) // 2)
    return struct.unpack(f">{count}H", page[at : at + 2 * count])


def _children(page: bytes, start: int) -> Iterator[int]:
    for at in _cells(page, start):
        yield int.from_bytes(page[at : at + 4], "big")
    yield int.from_bytes(page[start + 8 : start + 12], "big")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(9):
        byte = data[at + count]
        if count == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value, at + count + 1


def _columns(payload: bytes) -> list[Value]:
    end, at = _varint(payload, 0)
    kinds: list[int] = []
    while at < end and len(kinds) < MOST_COLUMNS:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Value] = []
    at = end
    for kind in kinds:
        size = _INTS.get(kind, 0) if kind < 12 else (kind - 12) // 2
        piece = payload[at : at + size]
        if len(piece) < size:
            raise DamagedPage("a row is cut off")
        at += size
        if kind >= 12:
            values.append(piece)
        elif kind in _INTS:
            values.append(int.from_bytes(piece, "big", signed=True))
        else:
            values.append({8: 0, 9: 1}.get(kind))
    return values
