"""
Replaying the ``capture`` sink's recordings.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mqhooks.errors import ConfigError
from mqhooks.sources.sidecar.encode import hook_of
from mqhooks.support.recording import Record, read
from mqhooks.tools.sender import CHUNK, Pool, Sender, framed


class Capture:
    """
    A capture file, read once in advance to check it. Records appended afterwards are ignored.

    :param path: the file.
    :raises mqhooks.errors.ConfigError: when it cannot be read, is not a capture, is of a newer version, or is damaged.
    :ivar count: number of frames.
    :ivar span: seconds from the first frame to the latest.
    """

    def __init__(self, path: str) -> None:
        self.count = 0
        self._path = path
        try:
            mode = os.stat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ConfigError("is not a regular file; give a capture", path)
            self._file = open(path, "rb")  # noqa: SIM115 - read while frames are sent
            self._end = os.fstat(self._file.fileno()).st_size
            first = latest = None
            for time, _ in read(self._file, path, self._end):
                self.count += 1
                first = time if first is None else first
                latest = time if latest is None else max(time, latest)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a path must not contain NUL"
            raise ConfigError(f"cannot be read: {reason}", path) from None
        self.span = 0.0 if first is None or latest is None else (latest - first) / 1e9

    def records(self) -> Iterator[Record]:
        """Read the records. This works once: the file is closed at the end."""
        with self._file as file:
            file.seek(0)
            yield from read(file, self._path, self._end)


class Replay(Sender):
    """
    Sends recorded frames at the intervals at which they came. A frame that is late because the peer did not read goes at once.

    :param clock: for the pace.
    :param pool: not yet opened.
    :param records: the records to send; at the end the connections are closed.
    :param random: picks connections.
    :param speed: factor by which to send faster than they came; infinite for as fast as the peer reads.
    :param when_done: called when all frames are sent and all connections are closed.
    :param encode: turns a frame into the item that the pool sends; ``None`` for a frame that it cannot send.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        pool: Pool,
        records: Iterator[Record],
        random: Random,
        *,
        speed: float = 1.0,
        when_done: Callable[[], object] = lambda: None,
        encode: Callable[[bytes], Any] = framed,
    ) -> None:
        super().__init__(clock, pool, random, when_done)
        self._records = records
        self._speed = speed
        self._encode = encode
        self._next: Record | None = None
        self._origin: tuple[int, float] | None = None

    def _send(self) -> float:
        now = self._clock.seconds()
        for _ in range(CHUNK):
            if not self._pool.ready:
                break
            record = self._next or next(self._records)
            first, began = self._origin = self._origin or (record.time, now)
            early = began + (record.time - first) / 1e9 / self._speed - now
            if early > 0:
                self._next = record
                return early
            self._next = None
            item = self._encode(record.frame)
            if item is not None:
                self._put(hook_of(record.frame), item)
        return 0.0
