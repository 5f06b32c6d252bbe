"""
Commit the changes of all queues: decide when, and what a failed commit means.

- A queue with something to write asks for a commit within a time limit; everything asked for until then goes into one
  transaction. With ``sync = full`` a thread writes it, and the reactor goes on.
- A failed transaction is retried each second, without whatever is at fault: unstorable deliveries are taken out, and when the
  disk is full, new ones are postponed, so that acknowledgements fit into the reserve.
- Damage is reported to the owner, who stops the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from mqhooks.delivery import Delivery
from mqhooks.errors import OutboxDamaged, OutboxError, OutboxNoRoom, Unstorable
from mqhooks.outbox.checkpoints import Checkpoints
from mqhooks.outbox.diskspace import DiskSpace
from mqhooks.outbox.file import Changes, OutboxFile

RETRY = 1.0
"""Seconds before a failed transaction is retried."""

LITTLE = 256 << 10
"""Unless the disk has room for this many bytes of bodies, nothing new is written."""

TOO_FULL = "the disk has too little free space"

UNWRITTEN = 8 << 20
"""Bytes of bodies that may wait for the end of a turn, unless a single append brings more."""


class Queue(Protocol):
    """A source of changes to write: the outbox of one webhook."""

    @property
    def unwritten(self) -> int:
        """Bytes of bodies that wait for the next transaction."""

    def plan(self, most: int) -> Changes:
        """Plan the next transaction, with about ``most`` bytes of new bodies; 0: nothing that takes more room."""

    def written(self, changes: Changes) -> None:
        """Account for the committed transaction."""

    def postpone(self, changes: Changes) -> None:
        """Take back everything that needs much room, for a later transaction."""

    def refuse(self, changes: Changes, deliveries: list[tuple[Delivery, str]]) -> None:
        """Bury unstorable deliveries in this transaction, for the reasons given."""


class Store:
    """
    Commits the changes of queues.

    :param reactor: for the time, timers and callbacks from threads.
    :param damaged: called with the error when a transaction finds the file damaged.
    :param failed: called with the error when a transaction fails in another way.
    :ivar failing: why the last transaction failed; ``None`` when it did not.
    :ivar file: the file while it is open.
    """

    def __init__(
        self, reactor: Any, *, damaged: Callable[[OutboxError], object], failed: Callable[[BaseException], object]
    ) -> None:
        self.failing: str | None = None
        self.file: OutboxFile | None = None
        self._reactor = reactor
        self._damaged = damaged
        self._failed = failed
        self._threads: ThreadPool | None = None
        self._checkpoints: Checkpoints | None = None
        self._space: DiskSpace | None = None
        self._held = False
        self._dirty: dict[Queue, None] = {}
        self._timer: IDelayedCall | None = None
        self._due = 0.0
        self._changes: list[tuple[Queue, Changes]] | None = None
        # Numbers of requests and inbox rows that are done: for the next transaction, and in the one being written.
        self._requests: list[int] = []
        self._inbox: list[int] = []
        self._writing: tuple[list[int], list[int]] = ([], [])
        # Callers of flushed() that wait for the transaction being written, and for the next one.
        self._flushing: list[Deferred[None]] = []
        self._flushed: list[Deferred[None]] = []

    def open(self, file: OutboxFile, space: DiskSpace, threads: ThreadPool | None, *, full: bool) -> None:
        """
        Start writing to a file.

        :param threads: a pool with a single thread, or ``None``.
        :param full: whether the thread writes transactions; otherwise it only moves the write-ahead log.
        """
        self.file, self._space = file, space
        if full:
            self._threads = threads
        elif threads is not None:
            self._checkpoints = Checkpoints(self._reactor, file, space, threads)
        if self._dirty:
            self._schedule(0.0)

    def close(self) -> None:
        """Stop writing."""
        if self._checkpoints is not None:
            self._checkpoints.stop()
        self._checkpoints = self._threads = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.file = self._timer = None

    @property
    def busy(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._dirty or self._requests or self._inbox) or self._changes is not None

    @property
    def writing(self) -> bool:
        """Whether a transaction is being written, or has failed and is to be retried."""
        return self._changes is not None

    @property
    def holding(self) -> bool:
        """Whether nothing new is written because the disk has too little free space."""
        return self._held

    def seconds(self) -> float:
        """Return the reactor's time."""
        seconds: float = self._reactor.seconds()
        return seconds

    def commit(self, queue: Queue, within: float) -> None:
        """
        Commit a queue's changes.

        :param within: seconds; 0 for the end of this turn of the reactor, or at once when there is much to write.
        """
        self._dirty[queue] = None
        if self._changes is not None:
            # This goes into the next transaction, which follows at once.
            return
        much = not within and queue.unwritten > UNWRITTEN
        if much and self._threads is None and self.file is not None and not self._held:
            self._unschedule()
            self._flush()
        else:
            self._schedule(within)

    def done(self, *, requests: list[int] | None = None, inbox: list[int] | None = None) -> None:
        """Have the next transaction delete requests and inbox rows that are done."""
        self._requests += requests or []
        self._inbox += inbox or []
        self._schedule(0.0)

    @property
    def undone(self) -> bool:
        """Whether anything passed to :meth:`done` is not committed yet."""
        return bool(self._requests or self._inbox or self._writing != ([], []))

    def flushed(self) -> Deferred[None]:
        """Wait until everything so far is committed, except for what the disk has no room for."""
        flushed: Deferred[None] = Deferred()
        if self._dirty or self._requests or self._inbox:
            self._flushed.append(flushed)
            self._schedule(RETRY if self._held else 0.0)
        elif self._changes is not None:
            self._flushing.append(flushed)
        else:
            flushed.callback(None)
        return flushed

    def give_up(self) -> None:
        """Release all callers of :meth:`flushed`."""
        self._flushing += self._flushed
        self._flushed = []
        self._tell_flushed()

    def look(self) -> None:
        """Check whether there is room again. Called once a second."""
        if not self._held or self._changes is not None or self.file is None or self._space is None:
            return
        try:
            self.file.shrink_log()
            if self._space.spent:
                self._space.renew(self.file.free())
            self._held = not self._space.enough(min(self._unwritten(), LITTLE), self.file.free)
        except OutboxError:
            return
        if not self._held and self._dirty:
            self._schedule(0.0)

    def _unwritten(self) -> int:
        return sum([queue.unwritten for queue in self._dirty])

    def _allowed(self) -> int:
        """Return the bytes of new bodies that there is room for now; 0 when new deliveries have to wait."""
        if self._held or self._space is None or self.file is None:
            return 0
        allowed = max(self._unwritten(), 1)
        try:
            while not self._space.enough(allowed, self.file.free):
                if allowed <= LITTLE:
                    self._held = True
                    self._failed(OutboxNoRoom(TOO_FULL))
                    return 0
                allowed = max(allowed // 2, LITTLE)
        except OutboxError:
            # Writing will show what is wrong.
            pass
        return allowed

    def _schedule(self, within: float) -> None:
        if self.file is None or self._changes is not None:
            return
        due = self._reactor.seconds() + within
        if self._timer is None:
            self._timer = self._reactor.callLater(within, self._flush)
        elif due < self._due:
            self._timer.reset(within)
        else:
            return
        self._due = due

    def _unschedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        self._timer = None
        if self._checkpoints is not None and self._checkpoints.holds(self._resume):
            return
        if self._changes is None:
            allowed = self._allowed()
            dirty, self._dirty = self._dirty, {}
            self._changes = []
            for queue in dirty:
                self._changes.append((queue, queue.plan(allowed)))
                if queue.unwritten:
                    self._dirty[queue] = None
            self._flushing, self._flushed = self._flushed, []
            self._writing, self._requests, self._inbox = (self._requests, self._inbox), [], []
            if not allowed:
                self._put_off()
        if self._threads is None:
            try:
                self._write()
            except Exception:
                self._not_written(Failure())
            else:
                self._written(None)
        else:
            deferToThreadPool(self._reactor, self._threads, self._write).addCallbacks(self._written, self._not_written)

    def _resume(self) -> None:
        self._unschedule()
        self._flush()

    def _write(self) -> None:
        file = self.file
        if file is None:
            return
        if self.failing is not None:
            file.checkpoint()
        file.write([changes for _, changes in self._changes or ()], *self._writing)

    def _written(self, _: None) -> None:
        self.failing = None
        self._writing = ([], [])
        if self.file is not None:
            # Those who are told may ask for another commit: it must not begin before all queues have been told.
            for queue, changes in self._changes or ():
                queue.written(changes)
        if self._checkpoints is not None:
            self._checkpoints.wrote(sum([changes.pages for _, changes in self._changes or ()]))
        self._changes = None
        if self._dirty or self._requests or self._inbox:
            self._schedule(RETRY if self._held else 0.0)
        self._tell_flushed()

    def _tell_flushed(self) -> None:
        flushing, self._flushing = self._flushing, []
        for deferred in flushing:
            deferred.callback(None)

    def _not_written(self, failure: Failure) -> None:
        if self.file is None:
            return
        error = failure.value
        self.failing = failure.getErrorMessage() or type(error).__name__
        assert error is not None
        again = RETRY
        if isinstance(error, Unstorable):
            again = 0.0 if self._leave_out() else RETRY
        elif isinstance(error, OutboxNoRoom):
            again = 0.0 if self._spend() else RETRY
        elif isinstance(error, OutboxDamaged):
            self._damaged(error)
        if again:
            self._failed(error)
        self._timer = self._reactor.callLater(again, self._flush)

    def _leave_out(self) -> bool:
        """Take out unstorable deliveries, so that the rest of the transaction can be committed."""
        assert self.file is not None
        found = False
        for queue, changes in self._changes or ():
            before = list(changes.letters)
            try:
                deliveries = self.file.leave_out(changes)
            except OutboxError:
                # The retry will run into it.
                continue
            if deliveries:
                queue.refuse(changes, deliveries)
            found = found or bool(deliveries) or before != changes.letters
        return found

    def _spend(self) -> bool:
        """
        Give up the reserve, and postpone everything new.

        :returns: whether that changed anything.
        """
        if self._space is None:
            return False
        held, self._held = self._held, True
        spent = self._space.spend()
        if not held:
            self._put_off()
        return spent or not held

    def _put_off(self) -> None:
        requests, inbox = self._writing
        self._writing = ([], [])
        self._requests = requests + self._requests
        self._inbox = inbox + self._inbox
        for queue, changes in self._changes or ():
            queue.postpone(changes)
            self._dirty[queue] = None
