"""
The ``mqhooks`` command's access to an outbox in JetStream.

The commands block until each answer is there, while a private reactor runs in its own thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from signal import SIGINT, signal
from tempfile import TemporaryFile
from threading import Thread, current_thread, main_thread
from time import time
from typing import IO, Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.error import ReactorNotRunning
from twisted.internet.threads import blockingCallFromThread
from twisted.python.failure import Failure

from mqhooks.app.jetstreamblock import jetstream
from mqhooks.app.reactor import private
from mqhooks.app.settings import DEFAULTS, OUTBOX_LETTERS, OUTBOX_SIZES, OutboxKind, Settings
from mqhooks.delivery import DeadLetter
from mqhooks.errors import ConfigError, OutboxError, together
from mqhooks.nanomq.block import Block
from mqhooks.nanomq.hocon import read
from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import JetStream
from mqhooks.outbox.deadletters import ANY, Action, Filter, Group, grouped
from mqhooks.outbox.exchange import check_lines, read_checked
from mqhooks.outbox.handed import pieces
from mqhooks.outbox.jetstream.examination import Found, examine
from mqhooks.outbox.jetstream.letters import READ, SharedLetters
from mqhooks.outbox.jetstream.store import JetStreamSettings

PATIENCE = 10.0
"""Seconds allowed for connecting."""

PIECE = 1000
"""Dead letters replayed, or lines imported, at a time."""

_T = TypeVar("_T")


def engine_settings(path: str) -> JetStreamSettings | None:
    """
    Read the settings of an outbox in JetStream, and nothing else, so that variables with other secrets need not be set.

    :returns: ``None`` when the outbox is of another kind.
    :raises mqhooks.errors.ConfigError: when the file cannot be read, or these settings are wrong.
    """
    errors: list[ConfigError] = []
    values = read(path, required=False).values
    block = Block(values, path, "", [], errors).block("mqhooks").block("outbox")
    if str(block.string("kind", None)).lower() != "jetstream":
        return None
    for key in ("servers", "prefix", "user", "password", "token", "seed", "seedfile", "credsfile"):
        entries = block.entries(key) or () if key == "servers" else (block.string(key, None),)
        if any("${" in str(entry) for entry in entries):
            block.fail(block.error(key, "set the environment variable that it refers to"))
    settings = None if errors else jetstream(block, wanted=True)
    if settings is None or errors:
        raise together(errors)
    return settings


def outbox_limits(path: str, kind: OutboxKind) -> tuple[int, int, str]:
    """Read ``max_size``, ``dead_max`` and ``path`` of the outbox, and nothing else."""
    block = Block(read(path, required=False).values, path, "", []).block("mqhooks").block("outbox")
    max_size = block.size("max_size", OUTBOX_SIZES[kind], least=1 << 20)
    dead_max = block.integer("dead_max", OUTBOX_LETTERS[kind], least=0)
    return max_size, dead_max, block.file("path", DEFAULTS.outbox.path)


def examined(settings: Settings) -> Found:
    """Check whether the outbox in JetStream can be used; this takes a few seconds at most."""
    outbox, engine = settings.outbox, settings.outbox.jetstream
    names = [webhook.name for webhook in settings.webhooks]
    return waited(lambda reactor: examine(reactor, engine, names, outbox.max_size, outbox.dead_max))


def waited(make: Callable[[Any], Awaitable[_T]]) -> _T:
    """
    Call a coroutine function with its own reactor, wait for it, and return its result or raise its error.

    When Ctrl-C or a damaged outbox stops the reactor before the end, the coroutine is cancelled, and may clean up.

    :raises KeyboardInterrupt: after Ctrl-C.
    :raises mqhooks.errors.OutboxError: when an outbox turned out to be damaged, which was logged.
    """
    reactor = private()
    results: list[Any] = []
    interrupted = False

    def stop(_: object = None) -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        reactor.callFromThread(stop)

    def begin() -> None:
        work = ensureDeferred(_awaited(lambda: make(reactor)))
        work.addBoth(results.append)

        def cancel() -> Deferred[Any]:
            work.cancel()
            return work

        reactor.addSystemEventTrigger("before", "shutdown", cancel)
        work.addBoth(stop)

    reactor.callWhenRunning(begin)
    # Only the main thread handles signals.
    handles = current_thread() is main_thread()
    previous = signal(SIGINT, interrupt) if handles else None
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        if handles:
            signal(SIGINT, previous)
    (result,) = results
    if interrupted:
        raise KeyboardInterrupt
    if isinstance(result, Failure):
        if result.check(CancelledError):
            raise OutboxError("stopped before the end: an outbox is damaged; run this again, and salvage what it sets aside")
        result.raiseException()
    return cast(_T, result)


class Engine:
    """
    A connection to JetStream for programs that block.

    :param settings: where it is.
    :ivar stream: reads and writes; use it only in :meth:`wait`.
    :raises mqhooks.errors.OutboxError: when there is no connection.
    """

    def __init__(self, settings: JetStreamSettings) -> None:
        self._reactor = private()
        self._thread = Thread(target=self._reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
        self._thread.start()
        self._client = NATSClient(self._reactor, settings.nats)
        self.stream = JetStream(self._client)
        try:
            self.wait(self._connect)
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        self._client.start()
        try:
            await self._client.when_connected().addTimeout(PATIENCE, self._reactor)
        except Late:
            raise OutboxError(str(self._client.problem or f"no connection to NATS within {PATIENCE:g} s")) from None

    def wait(self, make: Callable[[], Awaitable[_T]]) -> _T:
        """Call a coroutine function in the reactor's thread, wait for it, and return its result."""
        return cast(_T, blockingCallFromThread(self._reactor, lambda: ensureDeferred(_awaited(make))))

    def close(self) -> None:
        """Close the connection."""
        self.wait(self._client.close)
        self._reactor.callFromThread(self._reactor.stop)
        self._thread.join()


async def _awaited(make: Callable[[], Awaitable[Any]]) -> Any:
    return await make()


class EngineLetters:
    """
    The dead letters in JetStream, in place of :class:`~mqhooks.outbox.deadletters.Letters`. Requests are carried out at once.

    :param settings: where they are.
    :raises mqhooks.errors.MqhooksError: when JetStream cannot be used.
    """

    done = "done"

    def __init__(self, settings: JetStreamSettings) -> None:
        self._engine = Engine(settings)
        self._letters = SharedLetters(self._engine.stream, settings.prefix, lambda: int(time() * 1000))

    def __iter__(self) -> Iterator[DeadLetter]:
        """Go through all of them, oldest first."""
        return self.of(ANY)

    def of(self, only: Filter) -> Iterator[DeadLetter]:
        """Go through those that match and exist now, oldest first."""
        last = self._engine.wait(self._letters.last)
        after: int | None = 0
        while after is not None:
            begin = after
            found, after = self._engine.wait(lambda: self._letters.read(only, begin, READ, last))  # noqa: B023 - it is waited for
            yield from found

    def groups(self, only: Filter) -> Iterator[Group]:
        """Count those that match, by webhook, URL, status and reason, the most frequent first."""
        yield from grouped(self.of(only))

    def webhooks(self) -> list[str]:
        """List the webhooks that have streams."""
        return self._engine.wait(self._letters.webhooks)

    def get(self, number: int) -> DeadLetter:
        """
        Get one.

        :raises mqhooks.errors.OutboxError: when there is none with that number.
        """
        letter = self._engine.wait(lambda: self._letters.get(number))
        if letter is None:
            raise OutboxError(f"there is no dead letter {number}")
        return letter

    def ask(self, action: Action, numbers: Iterable[int]) -> int:
        """
        Replay or purge dead letters.

        :returns: the number of dead letters replayed or purged.
        """
        carry_out = self._letters.replay if action == "replay" else self._letters.purge
        remaining, count = iter(numbers), 0
        while some := list(islice(remaining, PIECE)):
            count += self._engine.wait(lambda: carry_out(some))
        return count

    def take_in(self, file: IO[bytes], name: str, now: int, *, dead: bool) -> int:
        """Accept the deliveries in exported lines, as ``import_lines`` in ``mqhooks.outbox.exchange`` does."""
        known = set(self.webhooks())
        try:
            with TemporaryFile() as checked:
                source = check_lines(file, name, checked, known, now, dead=dead)
                done, count = self._engine.wait(lambda: self._letters.progress(source)), 0
                for some in pieces((each for each in read_checked(checked) if each.number > done), PIECE):
                    count += self._engine.wait(lambda: self._letters.take_in(source, some, dead=dead))  # noqa: B023
                return count
        except OSError as error:
            raise OutboxError(f"{name}: cannot be read, or copied to a temporary file ({error.strerror or error})") from None

    def close(self) -> None:
        """Close the connection."""
        self._engine.close()
