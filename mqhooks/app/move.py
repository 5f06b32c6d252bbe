"""
``mqhooks outbox move``: moves everything from one outbox to another, in a file or in JetStream.

Deliveries keep their order and their ids, and the old outbox forgets them once the new one has accepted them. So an interrupted
move can be run again; the deliveries that were under way, a thousand at most, may then be there twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import structs
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater

from mqhooks.app.configuration import outbox_path
from mqhooks.app.engine import engine_settings, outbox_limits, waited
from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.errors import MqhooksError, OutboxError
from mqhooks.interfaces import IOutbox
from mqhooks.outbox.deadletters import ANY
from mqhooks.outbox.jetstream.outbox import JetStreamOutbox
from mqhooks.outbox.jetstream.store import SPILL, JetStreamStore
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.support.output import complain
from mqhooks.support.printable import listed, printable

PIECE = 1000
"""Deliveries, or dead letters, moved at a time."""

PIECE_BYTES = 8 << 20
"""Approximate size of their bodies, in bytes."""

PATIENCE = 30.0
"""Seconds that an outbox may take to answer."""

_Store = SqliteStore | JetStreamStore


def move(source: str, target: str) -> Iterator[str]:
    """
    Move everything in one outbox to another, while no mqhooks uses either.

    :param source: the configuration with the outbox to move from.
    :param target: the configuration with the outbox to move to.
    :returns: lines for a terminal.
    :raises mqhooks.errors.MqhooksError: when one of them cannot be used.
    """
    if _place(source) == _place(target):
        raise MqhooksError(f"move: {source} and {target} name the same outbox")
    left: list[int] = []
    moved = waited(lambda reactor: Mover(reactor, source, target, left).move())
    if left:
        problem = "dead letters are damaged, or were stored without their bodies, and stay where they are"
        complain(f"mqhooks: move: {len(left)} {problem}: {listed(left)}\n")
    for name, (deliveries, letters) in sorted(moved.items()):
        yield f"move: webhook {printable(name, 60)}: {deliveries} deliveries, {letters} dead letters"
    yield "move: done" if moved else "move: there was nothing to move"


def _place(config: str) -> object:
    engine = engine_settings(config)
    return os.path.realpath(outbox_path(config)) if engine is None else (engine.nats.servers, engine.prefix)


def _store(reactor: Any, config: str, *, old: bool = False) -> _Store:
    """Make the store that a configuration names, with the limits set there; an old one has room for what was handed over."""
    engine = engine_settings(config)
    max_size, dead_max, path = outbox_limits(config, "sqlite" if engine is None else "jetstream")
    if engine is None:
        room = 1 << 62 if old else max_size
        return SqliteStore(reactor, outbox_path(config), sync="full", max_size=room, dead_max=dead_max)
    spill = path + SPILL
    return JetStreamStore(
        reactor,
        engine,
        max_size=max_size,
        dead_max=dead_max,
        spill=spill if os.path.exists(spill) else None,
    )


class Mover:
    """
    Moves everything from one outbox to another.

    :param reactor: a running reactor.
    :param source: the configuration with the outbox to move from.
    :param target: the configuration with the outbox to move to.
    :param left: gets the numbers of the dead letters that cannot be moved.
    """

    def __init__(self, reactor: Any, source: str, target: str, left: list[int]) -> None:
        self._reactor = reactor
        self._source, self._target = _store(reactor, source, old=True), _store(reactor, target)
        self._moved: dict[str, tuple[int, int]] = {}
        self._left = left
        _, self._dead_max, _ = outbox_limits(target, "sqlite" if isinstance(self._target, SqliteStore) else "jetstream")

    async def move(self) -> dict[str, tuple[int, int]]:
        """
        Move everything.

        :returns: the numbers of deliveries and dead letters moved, by webhook.
        :raises mqhooks.errors.MqhooksError: when one of the outboxes cannot be used.
        """
        begun: list[_Store] = []
        try:
            for store in (self._source, self._target):
                store.startService()
                begun.append(store)
            for name in await self._names():
                deliveries = await self._deliveries(name)
                if deliveries:
                    self._moved[name] = deliveries, 0
            await self._letters()
        finally:
            for store in reversed(begun):
                await store.stopService()
        return self._moved

    async def _names(self) -> list[str]:
        source = self._source
        if isinstance(source, SqliteStore):
            # Otherwise what was handed over since mqhooks stopped would stay behind.
            while left := source.untaken:
                await self._until(lambda: source.untaken < left, source)
            return list(source.names)
        await self._until(lambda: self._connected(source), source)
        return await source.letters.webhooks()

    def _connected(self, store: _Store) -> bool:
        return isinstance(store, JetStreamStore) and not store.away

    async def _deliveries(self, name: str) -> int:
        source, target = self._source.outbox(name), self._target.outbox(name)
        if isinstance(source, JetStreamOutbox):
            await self._until(lambda: source.started, self._source)
            # Other bridges announce themselves twice a second.
            await deferLater(self._reactor, 1.0)
            if source.others:
                raise OutboxError("move: another mqhooks is using the outbox in JetStream: stop all of them first")
        elif not source.counts.pending:
            return 0
        if isinstance(target, JetStreamOutbox):
            await self._until(lambda: target.started, self._target)
        count = 0
        while True:
            if not source.counts.pending:
                if not isinstance(source, JetStreamOutbox) or source.caught_up:
                    return count
                await self._until(lambda: source.counts.pending or source.caught_up, self._source)
                continue
            claimed = await self._in_time(source.claim(PIECE, PIECE_BYTES), self._source)
            self._check(claimed, target)
            copies = [structs.replace(delivery, place=0, attempts=0) for delivery in claimed]
            await self._in_time(target.append(copies, room=False), self._target)
            source.acknowledge(claimed)
            await self._forgotten()
            count += len(claimed)

    def _check(self, deliveries: Sequence[Delivery], target: IOutbox) -> None:
        for delivery in deliveries:
            if isinstance(target, JetStreamOutbox) and not target.takes(delivery):
                problem = f"delivery {delivery.id} has a body of {len(delivery.body)} bytes, which is too long for NATS"
                raise OutboxError(f"move: {problem}: raise max_payload of the servers, and run this again for the rest")

    async def _letters(self) -> None:
        source = self._source
        after: int | None = 0
        while after is not None:
            if isinstance(source, SqliteStore):
                letters = source.dead_letters(after=after, limit=PIECE)
                after = letters[-1].number if letters else None
            else:
                letters, after = await source.letters.read(ANY, after, PIECE)
            good = [letter for letter in letters if not letter.damage]
            self._left += [letter.number for letter in letters if letter.damage]
            await self._keep(good)
            numbers = [letter.number for letter in good]
            if isinstance(source, SqliteStore):
                source.purge(numbers)
                await self._forgotten()
            else:
                await source.letters.purge(numbers)
            for letter in good:
                deliveries, dead = self._moved.get(letter.webhook, (0, 0))
                self._moved[letter.webhook] = deliveries, dead + 1

    async def _keep(self, letters: Sequence[DeadLetter]) -> None:
        target = self._target
        if isinstance(target, SqliteStore):
            self._check_letters(letters, {name: target.outbox(name).letters for name in {each.webhook for each in letters}})
            for letter in letters:
                target.outbox(letter.webhook).take_over_letter(structs.replace(letter, number=0))
            await self._in_time(target.flushed(), target)
            while target.failing is not None:
                # The disk has no room for them: the old outbox must not forget them yet.
                await self._until(lambda: target.failing is None, target)
                await self._in_time(target.flushed(), target)
        elif letters:
            target.outbox(letters[0].webhook)
            await self._until(lambda: target.failing is None, target)
            self._check_letters(letters, await target.letters.counts())
            await target.letters.put(letters)

    def _check_letters(self, letters: Sequence[DeadLetter], kept: Mapping[str, int]) -> None:
        """Check that the new outbox has place for more dead letters: otherwise it would discard its oldest."""
        for name, count in Counter([letter.webhook for letter in letters]).items():
            if kept.get(name, 0) + count > self._dead_max:
                problem = f"webhook {name}: the new outbox keeps at most {self._dead_max} dead letters (outbox.dead_max)"
                raise OutboxError(f"move: {problem}: raise that, or purge some, and run this again for the rest")

    async def _forgotten(self) -> None:
        """Wait until a file has forgotten what was moved."""
        if isinstance(self._source, SqliteStore):
            await self._in_time(self._source.flushed(), self._source)

    async def _in_time(self, answer: Any, store: _Store) -> Any:
        if not isinstance(answer, Deferred):
            return answer
        try:
            return await answer.addTimeout(PATIENCE, self._reactor)
        except Late:
            raise OutboxError(f"move: {self._problem(store)}; run this again for the rest") from None

    async def _until(self, condition: Callable[[], object], store: _Store) -> None:
        end = self._reactor.seconds() + PATIENCE
        while not condition():
            if self._reactor.seconds() > end:
                raise OutboxError(f"move: {self._problem(store)}")
            await deferLater(self._reactor, 0.02)

    def _problem(self, store: _Store) -> str:
        where = store.path if isinstance(store, SqliteStore) else "JetStream"
        return f"{where}: {store.failing or 'has no room, or does not answer'}"
