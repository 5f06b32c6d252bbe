"""
The outboxes of all webhooks, in one SQLite file: accepted deliveries survive the process.

- This is where the parts come together: the lock, the file, the store that commits, and a queue for each webhook.
- A damaged file is set aside at the start, and an empty one takes its place; ``mqhooks outbox salvage`` recovers the damaged
  one while the bridge runs. Damage found later stops the process, so there is only one way to repair.
- Other processes put their requests into the file, which is polled once a second: no port, no second owner.
"""

from __future__ import annotations

import os
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from time import time
from typing import Any, Literal

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IDelayedCall, IReactorThreads
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.errors import OutboxDamaged, OutboxError, OutboxUnavailable
from mqhooks.outbox import aside, schema
from mqhooks.outbox.deadletters import Filter, count_dead, list_dead, stretch
from mqhooks.outbox.diskspace import DiskSpace
from mqhooks.outbox.file import OutboxFile
from mqhooks.outbox.ledger import READY_BYTES
from mqhooks.outbox.lock import Lock
from mqhooks.outbox.queue import FileLimits, OnFull, SqliteOutbox, Surroundings
from mqhooks.outbox.store import TOO_FULL, UNWRITTEN, Store
from mqhooks.outbox.stored import LONGEST, VERSION, checksum, decode_handed, decode_row
from mqhooks.support.ratelimit import RateLimit

CLOSING_TIME = 5.0
"""Seconds that stopping waits for the last transaction."""

ALL_READY_BYTES = 16 << 20
"""Bytes of unclaimed bodies that all outboxes of a file keep in memory, approximately, and a row more each."""

REQUESTS = 50
"""Requests of other processes that go into one transaction."""


class SqliteStore(Service):
    """
    All outboxes of one file. Start it before they are used, and stop it after their sinks.

    :param reactor: for the time, timers and threads.
    :param path: the file; its directory has to exist.
    :param sync: ``normal``: a power failure may undo the last seconds, the end of the process undoes nothing. ``full``:
        accepted deliveries are on the disk; the reactor does not wait for it.
    :param max_size: bytes of deliveries, for each webhook.
    :param on_full: ``pause``: nothing more is accepted until there is room. ``drop_oldest``: the oldest make room.
    :param dead_max: number of dead letters kept for each webhook; the oldest make room.
    :param longest: the longest body, in bytes; a delivery with a longer one becomes a dead letter without its body.
    :param now: returns the time to store, in seconds since 1970.
    :param open_file: opens the file, as :class:`~mqhooks.outbox.file.OutboxFile` does.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        *,
        sync: Literal["normal", "full"] = "normal",
        max_size: int = 1 << 30,
        on_full: OnFull = "pause",
        dead_max: int = 100_000,
        longest: int = LONGEST,
        now: Callable[[], float] = time,
        open_file: Callable[..., OutboxFile] = OutboxFile,
    ) -> None:
        # A process that uses a symbolic link must find the same lock.
        self.path = path = os.path.realpath(path)
        self._reactor = reactor
        self._now = now
        self._full = sync == "full"
        self._open_file = open_file
        self._complaints = RateLimit(reactor)
        self._limits = FileLimits(max_size, on_full, dead_max, longest)
        self._around = Surroundings(self._limits, self._milliseconds, path, self._complaints, self._unreadable)
        self._store = Store(reactor, damaged=self._damaged, failed=self._failed)
        self._lock = Lock(path)
        self._space = DiskSpace(path)
        self._file: OutboxFile | None = None
        self._threads: ThreadPool | None = None
        self._outboxes: dict[str, SqliteOutbox] = {}
        self._poll: IDelayedCall | None = None
        self._more: IDelayedCall | None = None
        # Numbers of the last request that was taken up, and of the last inbox row that was looked at.
        self._asked = self._looked_at = 0
        # Numbers of the inbox's rows that wait, oldest first, by webhook.
        self._waiting: dict[str, deque[int]] = {}
        self._changed = True
        # Requests carried out since this was last logged.
        self._carried_out: Counter[str] = Counter()

    def outbox(self, name: str) -> SqliteOutbox:
        """
        Get the outbox of a webhook.

        :param name: the webhook's name; the outbox holds whatever was left under it.
        :raises mqhooks.errors.OutboxError: when it is new, the file is open, and it cannot be added.
        """
        try:
            return self._outbox(name)
        except (OutboxUnavailable, OutboxDamaged) as error:
            raise OutboxError(f"{self.path}: cannot add webhook {name} ({error})") from None

    def _outbox(self, name: str) -> SqliteOutbox:
        if name not in self._outboxes:
            outbox = SqliteOutbox(self._store, name, self._around)
            if self._file is not None:
                outbox.load(self._file.load(name))
            self._outboxes[name] = outbox
            self._share()
        return self._outboxes[name]

    @property
    def names(self) -> list[str]:
        """The webhooks that have outboxes: those asked for, and, once the file is open, those that it knows."""
        return list(self._outboxes)

    @property
    def failing(self) -> str | None:
        """Why nothing is accepted: the last transaction failed, or the disk is too full; ``None`` when all is well."""
        return self._store.failing or (TOO_FULL if self._store.holding else None)

    @property
    def damaged(self) -> list[str]:
        """The damaged files beside this one that ``mqhooks outbox salvage`` has not handed over yet."""
        return aside.damaged_files(self.path)

    def resize(self, max_size: int, on_full: OnFull, dead_max: int) -> None:
        """Replace the constructor's limits."""
        self._limits.max_size, self._limits.on_full, self._limits.dead_max = max_size, on_full, dead_max
        for outbox in self._outboxes.values():
            outbox.release()

    # Starting and stopping.

    def startService(self) -> None:
        """
        Open or create the file; set a damaged one aside.

        :raises mqhooks.errors.OutboxError: when it is in use, not ours, of another version, or cannot be used.
        """
        wanted = set(self._outboxes)
        self._lock.take()
        try:
            self._open_or_begin()
        except BaseException:
            self._close()
            self._lock.withdraw()
            raise
        for outbox in self._outboxes.values():
            if outbox.counts.pending and outbox.name not in wanted:
                self.log.warn(
                    "{path}: holds {pending} deliveries of webhook {name}, which is not configured: they stay there",
                    path=self.path,
                    pending=outbox.counts.pending,
                    name=outbox.name,
                )
        super().startService()
        if IReactorThreads.providedBy(self._reactor):
            self._threads = ThreadPool(1, 1, "outbox")
            self._threads.start()
        assert self._file is not None
        self._store.open(self._file, self._space, self._threads, full=self._full)
        self._poll = self._reactor.callLater(1.0, self._look)

    def _open_or_begin(self) -> None:
        schema.check_regular(self.path)
        try:
            aside.finish(self.path)
            left = self.damaged
            self._open()
        except OutboxDamaged as error:
            self._close()
            if not self._lock.known:
                problem = f"is not an mqhooks outbox ({error}); give outbox.path another name"
                raise OutboxError(f"{self.path}: {problem}") from None
            self._set_aside(error)
            # After a crash from here on, the next start finds no file or a new one.
            self._lock.note_use()
            self._open()
        except OSError as error:
            raise OutboxError(f"{self.path}: cannot be used ({error})") from None
        self._lock.note_use()
        self._space.make()
        if left:
            self.log.warn(
                "{path}: damaged files have not been salvaged: {files}; run mqhooks outbox salvage FILE",
                path=self.path,
                files=", ".join(left),
            )

    def _open(self) -> None:
        if os.path.exists(self.path):
            if self._lock.damaged:
                raise OutboxDamaged("found when it was read")
            if self._lock.used and not os.path.getsize(self.path):
                raise OutboxDamaged("empty, though it was used before")
        schema.prepare(self.path)
        self._file = file = self._open_file(self.path, full=self._full)
        for name in dict.fromkeys([*file.webhooks(), *self._outboxes]):
            if name not in self._outboxes:
                self._outboxes[name] = SqliteOutbox(self._store, name, self._around)
            self._outboxes[name].load(file.load(name, alone=True))
        self._share()

    def _share(self) -> None:
        self._limits.ready = min(READY_BYTES, ALL_READY_BYTES // max(len(self._outboxes), 1))

    def _set_aside(self, error: OutboxDamaged) -> None:
        try:
            name = aside.set_aside(self.path)
        except OSError as problem:
            remedy = "move it away, or give outbox.path another name"
            raise OutboxError(f"{self.path}: is damaged ({error}) and cannot be set aside ({problem}); {remedy}") from None
        self.log.critical(
            "{path}: is damaged ({error}): it was set aside as {aside}, and an empty one created; "
            "mqhooks outbox salvage {aside} recovers what can still be read",
            path=self.path,
            error=error,
            aside=name,
        )

    def stopService(self) -> Deferred[None]:
        """
        Write whatever is left, and close the file; anything not written within :data:`CLOSING_TIME` is lost.

        :returns: a ``Deferred`` that fires when it is closed.
        """
        for timer in (self._poll, self._more):
            if timer is not None and timer.active():
                timer.cancel()
        self._poll = None
        self._tell_carried_out()
        return self._drain(self._reactor.callLater(CLOSING_TIME, self._give_up))

    def _drain(self, late: IDelayedCall) -> Deferred[None]:
        if late.active() and self._store.busy:
            return self._store.flushed().addCallback(lambda _: self._drain(late))
        if late.active():
            late.cancel()
        super().stopService()
        self._store.close()
        if self._threads is not None:
            self._threads.stop()
            self._threads = None
        self._close()
        self._lock.release()
        return succeed(None)

    def _give_up(self) -> None:
        self.log.critical("{path}: stopped before the last commit; what was not yet accepted is lost", path=self.path)
        self._store.give_up()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def flushed(self) -> Deferred[None]:
        """Wait until everything so far is committed, except for what the disk has no room for."""
        return self._store.flushed()

    # Dead letters.

    def dead_letters(
        self,
        webhook: str | None = None,
        *,
        after: int = 0,
        upto: int | None = None,
        limit: int = 100,
        reason: str | None = None,
        only: Filter | None = None,
    ) -> list[DeadLetter]:
        """
        List dead letters, oldest first. A list of long ones is shorter than asked for: go on after its last one.

        :param webhook: only those of this webhook.
        :param after: only those with a higher number.
        :param upto: only those with this number at most.
        :param reason: only those whose reason contains this.
        :param only: only those that match; replaces ``webhook`` and ``reason``.
        """
        return list_dead(self._opened.reader, only or Filter(webhook, reason), after, limit, upto)

    def stretch_of_dead(self, after: int) -> int | None:
        """
        Return how far one call should look for a few dead letters among many, so that it takes milliseconds.

        :returns: a number above ``after``; ``None`` when there is no dead letter there.
        """
        return stretch(self._opened.reader, after)

    def count_dead(
        self,
        webhook: str | None = None,
        reason: str | None = None,
        *,
        after: int = 0,
        upto: int | None = None,
        only: Filter | None = None,
    ) -> int:
        """
        Count dead letters.

        :param webhook: only those of this webhook.
        :param reason: only those whose reason contains this.
        :param after: only those with a higher number, and ``upto`` at most; ignored when all of a webhook are counted.
        :param only: only those that match; replaces ``webhook`` and ``reason``.
        """
        only = only or Filter(webhook, reason)
        if not only.narrow:
            return sum(outbox.letters for name, outbox in self._outboxes.items() if only.webhook in (None, name))
        return count_dead(self._opened.reader, only, after, upto)

    def last_dead(self) -> int:
        """Get the highest number of a dead letter; 0 when there are none."""
        return self._opened.last_letter()

    def dead_letter(self, number: int) -> DeadLetter | None:
        """Get a dead letter; ``None`` when none has that number."""
        found = self.dead_letters(after=number - 1, limit=1)
        return found[0] if found and found[0].number == number else None

    def replay(self, numbers: Iterable[int]) -> int:
        """
        Replay dead letters: put them back behind the pending deliveries. Their ids stay, their age starts at zero.

        :returns: the number replayed.
        :raises mqhooks.errors.OutboxError: when one cannot be replayed; those before it are replayed.
        """
        return self._resolve(numbers, replay=True)

    def purge(self, numbers: Iterable[int]) -> int:
        """
        Remove dead letters for good.

        :returns: the number removed.
        """
        return self._resolve(numbers, replay=False)

    def _resolve(self, numbers: Iterable[int], *, replay: bool) -> int:
        count = 0
        for number in numbers:
            letter = self.dead_letter(number)
            if letter is not None and replay:
                letter.check()
            if letter is not None and self.outbox(letter.webhook).resolve(letter, replay=replay):
                count += 1
        return count

    @property
    def _opened(self) -> OutboxFile:
        if self._file is None:
            raise OutboxError(f"{self.path}: is not open")
        return self._file

    @property
    def untaken(self) -> int:
        """Number of things that other processes have asked for or handed over and that are not carried out yet."""
        return self._opened.untaken()

    # Once a second.

    def _look(self) -> None:
        self._poll = self._reactor.callLater(1.0, self._look)
        self._store.look()
        for outbox in list(self._outboxes.values()):
            try:
                outbox.look()
            except OutboxDamaged as error:
                self._damaged(error)
        self._take_up()

    def _take_up(self) -> None:
        """Carry out some requests of other processes; the rest follows when these are committed."""
        if self._store.undone or self._file is None:
            return
        requests: list[int] = []
        inbox: list[int] = []
        more = False
        try:
            # Earlier requests may be waiting even if the file has not changed.
            self._changed = self._file.changed() or self._changed
            if not self._changed:
                return
            self._requests(self._file, requests)
            more = self._inbox(self._file, inbox)
            done = True
        except OutboxError as error:
            self._unreadable(error)
            done = False
        # Whatever was taken up before an error is not taken up again.
        if requests or inbox:
            self._store.done(requests=requests, inbox=inbox)
            self._store.flushed().addCallback(self._take_up_more)
        elif more:
            self._take_up_more(None)
        elif done:
            self._changed = bool(self._waiting) or self._store.holding
            self._tell_carried_out()

    def _take_up_more(self, _: None) -> None:
        if self._poll is not None:
            self._more = self._reactor.callLater(0, self._take_up)

    def _requests(self, file: OutboxFile, done: list[int]) -> None:
        """Carry out requests, and add their numbers to ``done``."""
        for number, action, dead in file.requests(self._asked, REQUESTS):
            self._do(action, dead)
            self._asked = number
            done.append(number)
            if self._unwritten() > UNWRITTEN:
                break

    def _do(self, action: Any, dead: Any) -> None:
        try:
            if action not in ("replay", "purge"):
                raise OutboxError("this mqhooks does not know it: update mqhooks, and ask again")
            if type(dead) is int and self._resolve([dead], replay=action == "replay"):
                self._carried_out[str(action)] += 1
        except (OutboxUnavailable, OutboxDamaged):
            raise
        except OutboxError as error:
            if self._complaints.allow(("request", action)) is not None:
                self.log.error("{path}: {action} was requested, but {error}", path=self.path, action=action, error=error)

    def _tell_carried_out(self) -> None:
        """Log the requests carried out: one line for each action, however many they are."""
        done, self._carried_out = self._carried_out, Counter()
        for action, count in done.items():
            self.log.info("{action} done as requested: {count} dead letters", action=action, count=count)

    def _inbox(self, file: OutboxFile, done: list[int]) -> bool:
        """
        Take over some of what another process hands over, and add the rows' numbers to ``done``.

        :returns: whether there may be more that was not looked at yet.
        """
        before = self._looked_at
        # Dead letters do not count as unwritten.
        size = count = 0
        handed = self._handed(file)
        while not self._store.holding:
            if count == REQUESTS or max(size, self._unwritten()) > UNWRITTEN:
                return self._looked_at != before
            row = next(handed, None)
            if row is None:
                return False
            number, webhook, version, letter, check, content = row
            count += 1
            size += len(content) if isinstance(content, bytes) else 0
            what = _decoded(webhook, version, letter, check, content)
            if what is None:
                self.log.critical("{path}: row {number} of inbox is damaged and is lost", path=self.path, number=number)
            if what is None or self._take_over(number, webhook, what):
                done.append(number)
        return False

    def _handed(self, file: OutboxFile) -> Iterator[tuple[int, Any, Any, Any, Any, Any]]:
        """Yield the inbox's rows that were not looked at yet, and then those that need not wait any longer."""
        while (row := file.inbox(self._looked_at)) is not None:
            self._looked_at = row[0]
            yield row
        for name in list(self._waiting):
            while (numbers := self._waiting.get(name)) and self._may_take(name):
                row = file.inbox(numbers[0] - 1)
                numbers.popleft()
                if not numbers:
                    del self._waiting[name]
                if row is not None:
                    yield row
                    if row[0] in self._waiting.get(name, ()):
                        break

    def _wait(self, number: int, webhook: str) -> None:
        numbers = self._waiting.pop(webhook, deque())
        insort(numbers, number)
        # The others have their turn first.
        self._waiting[webhook] = numbers

    def _may_take(self, name: str) -> bool:
        outbox = self._outboxes.get(name)
        return outbox is None or self._limits.on_full != "pause" or outbox.used + outbox.unwritten <= outbox.max_size

    def _take_over(self, number: int, webhook: str, what: DeadLetter | Sequence[Delivery]) -> bool:
        """
        Take over a row of the inbox. While its webhook has no room, or cannot be added, it waits, and those of others pass it.

        :returns: whether it was taken over.
        """
        older = self._waiting.get(webhook)
        problem = "it has no room (outbox.max_size)"
        try:
            if isinstance(what, DeadLetter):
                self._outbox(webhook).take_over_letter(what)
                return True
            if not (older and older[0] < number) and self._may_take(webhook):
                self._outbox(webhook).take_over(what)
                return True
        except OutboxUnavailable:
            self._wait(number, webhook)
            raise
        except OutboxError as error:
            problem = str(error).removeprefix(f"{self.path}: ")
        self._wait(number, webhook)
        if self._complaints.allow(("inbox", webhook in self._outboxes)) is not None:
            self.log.warn(
                "{path}: what was handed over for webhook {name} waits: {problem}",
                path=self.path,
                name=webhook,
                problem=problem,
            )
        return False

    def _unwritten(self) -> int:
        return sum([outbox.unwritten for outbox in self._outboxes.values()])

    # Failures.

    def _unreadable(self, error: OutboxError) -> None:
        if isinstance(error, OutboxDamaged):
            self._damaged(error)
        elif self._complaints.allow("read") is not None:
            self.log.error("{path}: cannot be read ({error}); trying again", path=self.path, error=error)

    def _damaged(self, error: OutboxError) -> None:
        """Stop the process; the next start sets the file aside."""
        self._lock.note_damage()
        if self._complaints.allow("damaged") is not None:
            self.log.critical(
                "{path}: is damaged ({error}); stopping, the next start sets it aside", path=self.path, error=error
            )
            # Damage may be found while the sinks are being started.
            self._reactor.callWhenRunning(self._stop_process)

    def _stop_process(self) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _failed(self, error: BaseException) -> None:
        if self._complaints.allow("write") is not None:
            self.log.error(
                "{path}: cannot be written ({reason}): nothing more is accepted until it can be; retrying every second",
                path=self.path,
                reason=error,
            )

    def _milliseconds(self) -> int:
        return int(self._now() * 1000)


def _decoded(webhook: Any, version: Any, letter: Any, check: Any, content: Any) -> DeadLetter | Sequence[Delivery] | None:
    """Decode a row of the inbox; return ``None`` when it is damaged."""
    if not isinstance(webhook, str):
        return None
    if not letter:
        deliveries = decode_row(0, version, check, content)
        return None if deliveries is None else [delivery for delivery in deliveries if delivery is not None]
    if version != VERSION or not isinstance(content, bytes) or checksum(0, VERSION, content) != check:
        return None
    try:
        return decode_handed(webhook, content)
    except ValueError:
        return None
