"""
Moving SQLite's write-ahead log into the file, in a thread.

- SQLite has to wait until the moved pages are on the disk before it starts the log over. In the reactor's thread this made
  for a p99 latency of 4 ms at 5,000 events a second, where the median was 0.4 ms.
- Transactions go on meanwhile, but only a log that was moved whole is started over. So when it has grown beyond 64 MiB, the
  next transaction waits until the rest is moved, which is little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from mqhooks.outbox.diskspace import DiskSpace
from mqhooks.outbox.file import PAGE, OutboxFile

BEGIN = (4 << 20) // PAGE
"""After about how many pages of transactions the log is moved."""

LONG = (64 << 20) // PAGE
"""How many pages the log may have before transactions wait."""

SCARCE = 512 << 20
"""With fewer bytes free on the disk, the log is moved at once: how far it may grow depends on its being moved."""


class Checkpoints:
    """
    Decides when the log is moved.

    :param reactor: calls back.
    :param file: whose log it is.
    :param space: the disk's.
    :param threads: a single one.
    """

    def __init__(self, reactor: Any, file: OutboxFile, space: DiskSpace, threads: ThreadPool) -> None:
        self._reactor = reactor
        self._file = file
        self._space = space
        self._threads = threads
        self._pages = 0
        self._moving = False
        self._held = False
        self._ended = False
        self._resume: Callable[[], object] | None = None
        # Nobody else moves it, unless that takes far too long.
        file.keep_log(4 * LONG)

    def stop(self) -> None:
        """Move nothing more; what is being moved goes on."""
        self._ended = True

    def wrote(self, pages: int) -> None:
        """Note that a transaction of about so many pages was written."""
        self._pages += pages
        if self._pages >= BEGIN and not self._moving:
            self._move()

    def holds(self, resume: Callable[[], object]) -> bool:
        """
        Say whether the next transaction has to wait.

        :param resume: called when it need not wait any longer.
        """
        if self._held:
            self._resume = resume
        return self._held

    def _move(self) -> None:
        self._pages = 0
        if self._space.free() < SCARCE:
            self._moved(self._file.move_log())
            return
        self._moving = True
        deferToThreadPool(self._reactor, self._threads, self._file.move_log).addCallback(self._moved)

    def _moved(self, length: int) -> None:
        self._moving = False
        if self._ended:
            return
        held, self._held = self._held, length > LONG and not self._held
        if self._held:
            self._move()
        elif held and self._resume is not None:
            resume, self._resume = self._resume, None
            resume()
