"""
List, replay and purge dead letters within the bridge's own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.plain import HIDDEN
from mqhooks.admin.replies import Refused
from mqhooks.delivery import DeadLetter
from mqhooks.errors import NATSError, OutboxError
from mqhooks.outbox.deadletters import Filter
from mqhooks.outbox.jetstream.letters import READ, SharedLetters
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.support.redact import hide, hide_url
from mqhooks.webhook.request import RequestMaker

CHUNK = 50
"""Dead letters read, replayed or purged in one reactor turn."""

PAGE_BYTES = 4 << 20
"""Approximate bytes of bodies read for one list: longer bodies make the list shorter."""

BODY_LIMIT = 1 << 20
"""Bytes of a body shown."""


class DeadLetters:
    """
    The dead letters of a bridge. Those of an outbox in memory cannot be listed.

    :param bridge: the bridge.
    :param clock: long work yields to the reactor through it.
    """

    def __init__(self, bridge: Bridge, clock: IReactorTime) -> None:
        self._bridge = bridge
        self._clock = clock

    async def page(self, only: Filter, after: int, limit: int) -> dict[str, Any]:
        """
        List dead letters, oldest first. No reactor turn takes long, even when few of very many match.

        :param only: the filter.
        :param after: only those with a higher number.
        :param limit: the most to list.
        """
        shared = self._shared
        if shared is not None:
            return await self._shared_page(shared, only, after, limit)
        store = self._bridge.store
        found: list[dict[str, Any]] = []
        size = 0
        upto = None
        while store is not None and len(found) < limit and size < PAGE_BYTES:
            upto = store.stretch_of_dead(after)
            wanted = min(CHUNK, limit - len(found))
            chunk = store.dead_letters(after=after, upto=upto, limit=wanted, only=only)
            found += map(_line, chunk)
            size += sum(len(letter.delivery.body) for letter in chunk)
            if upto is None:
                break
            after = chunk[-1].number if chunk else upto
            await deferLater(self._clock, 0)
        total = 0 if store is None else await self._count(store, only)
        return {"letters": found, "total": total, "next": None if upto is None else after}

    @property
    def _shared(self) -> SharedLetters | None:
        return None if self._bridge.engine is None else self._bridge.engine.letters

    async def _shared_page(self, shared: SharedLetters, only: Filter, after: int, limit: int) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        size = 0
        following: int | None = after
        while following is not None and len(found) < limit and size < PAGE_BYTES:
            chunk, following = await shared.read(only, following, min(CHUNK, limit - len(found)))
            found += map(_line, chunk)
            size += sum(len(letter.delivery.body) for letter in chunk)
        if only.narrow:
            total = 0
            last = await shared.last()
            at: int | None = 0
            while at is not None:
                fitting, at = await shared.read(only, at, READ, last)
                total += len(fitting)
        else:
            total = sum(count for name, count in (await shared.counts()).items() if only.webhook in (None, name))
        return {"letters": found, "total": total, "next": following}

    async def _count(self, store: SqliteStore, only: Filter) -> int:
        if not only.narrow:
            return store.count_dead(only=only)
        after = count = 0
        while (upto := store.stretch_of_dead(after)) is not None:
            count += store.count_dead(after=after, upto=upto, only=only)
            after = upto
            await deferLater(self._clock, 0)
        return count

    async def _one(self, number: int) -> DeadLetter | None:
        shared, store = self._shared, self._bridge.store
        if shared is not None:
            return await shared.get(number)
        return None if store is None else store.dead_letter(number)

    async def get(self, number: int) -> dict[str, Any]:
        """
        Show one with its request and the last response to it.

        :raises Refused: when there is no such letter, or it is damaged.
        """
        letter = await self._one(number)
        if letter is None:
            raise _missing(number)
        _check(letter)
        body = letter.delivery.body
        return _line(letter) | {
            "url": hide_url(letter.address),
            "request": {
                "method": letter.method,
                "headers": self._headers(letter),
                "body": body[:BODY_LIMIT].decode("utf-8", "replace"),
                "truncated": len(body) > BODY_LIMIT,
            },
            "answer": {"status": letter.status, "body": _hidden(letter)},
        }

    async def settle(self, number: int, *, replay: bool) -> int:
        """
        Replay or purge one.

        :returns: 1.
        :raises Refused: when there is no such letter, or it is damaged and cannot be replayed.
        """
        letter = await self._one(number)
        if letter is not None and replay:
            _check(letter)
        if letter is None or not await self._settle([number], replay=replay):
            raise _missing(number)
        return 1

    async def _settle(self, numbers: list[int], *, replay: bool) -> int:
        shared, store = self._shared, self._bridge.store
        if shared is not None:
            return await (shared.replay(numbers) if replay else shared.purge(numbers))
        if store is None:
            return 0
        return store.replay(numbers) if replay else store.purge(numbers)

    async def settle_all(self, only: Filter, *, replay: bool) -> int:
        """
        Replay or purge all that match now, at most :data:`CHUNK` in each reactor turn. Damaged ones are not replayed.

        :param only: the filter.
        :returns: the number replayed or purged.
        :raises Refused: when the outbox cannot be written.
        """
        shared, store = self._shared, self._bridge.store
        if shared is not None:
            return await self._settle_all_shared(shared, only, replay=replay)
        if store is None:
            return 0
        # A replayed delivery may meanwhile become a dead letter again, which is not replayed.
        last = store.last_dead()
        after = count = 0
        while after < last:
            if store.failing is not None:
                raise Refused(503, f"the outbox cannot be written ({store.failing}); {count} were done before that")
            upto = store.stretch_of_dead(after)
            if upto is None:
                break
            chunk = store.dead_letters(after=after, upto=upto, limit=CHUNK, only=only)
            after = chunk[-1].number if chunk else upto
            numbers = [letter.number for letter in chunk if letter.number <= last and not (replay and letter.damage)]
            if numbers:
                count += await self._settle(numbers, replay=replay)
                await store.flushed()
            await deferLater(self._clock, 0)
        return count

    async def _settle_all_shared(self, shared: SharedLetters, only: Filter, *, replay: bool) -> int:
        last = await shared.last()
        after: int | None = 0
        count = 0
        while after is not None:
            chunk, after = await shared.read(only, after, CHUNK, last)
            count += await self._carry_out([letter for letter in chunk if not (replay and letter.damage)], count, replay=replay)
        return count

    async def _carry_out(self, letters: list[DeadLetter], done: int, *, replay: bool) -> int:
        try:
            return await self._settle([letter.number for letter in letters], replay=replay)
        except (NATSError, OutboxError) as error:
            raise Refused(503, f"the outbox cannot be written ({error}); {done} were done before that") from None

    async def settle_some(self, wanted: Sequence[int], *, replay: bool) -> int:
        """
        Replay or purge some by their numbers, :data:`CHUNK` in each reactor turn. Those that are gone, and damaged ones that
        would be replayed, are left out.

        :returns: the number replayed or purged.
        :raises Refused: when the outbox cannot be written.
        """
        store, failing = self._bridge.store, self._bridge.failing
        if store is None and self._shared is None:
            return 0
        count = 0
        for begin in range(0, len(wanted), CHUNK):
            if failing is not None:
                raise Refused(503, f"the outbox cannot be written ({failing}); {count} were done before that")
            found = [await self._one(number) for number in dict.fromkeys(wanted[begin : begin + CHUNK])]
            letters = [letter for letter in found if letter is not None and not (replay and letter.damage)]
            count += await self._carry_out(letters, count, replay=replay)
            if store is not None:
                await store.flushed()
            await deferLater(self._clock, 0)
            failing = self._bridge.failing
        return count

    def _headers(self, letter: DeadLetter) -> list[list[str]]:
        """List the request's headers if the webhook is still configured; configured values and the request's own are hidden."""
        variation = letter.delivery.variation
        varied = [[name, HIDDEN] for name, _ in (() if variation is None else variation.headers)]
        for sink in self._bridge.webhooks:
            if sink.settings.name == letter.webhook:
                maker = RequestMaker(sink.settings, lambda: 0.0)
                own = {name for name, _ in sink.settings.headers}
                beside = {name.lower() for name, _ in varied}
                return [
                    *(
                        [name, HIDDEN if name in own else value]
                        for name, value in maker.head.headers
                        if name.lower() not in beside
                    ),
                    *([name, value] for name, value in maker.identify(letter.delivery.id, b"")[:1]),
                    *varied,
                ]
        return [["webhook-id", letter.delivery.id], *varied]


def _hidden(letter: DeadLetter) -> str:
    """Return the answer without the URL's secrets, since it may repeat the URL."""
    return hide(hide(letter.answer.decode("utf-8", "replace"), letter.url), letter.address)


def _missing(number: int) -> Refused:
    return Refused(404, f"there is no dead letter {number}")


def _check(letter: DeadLetter) -> None:
    try:
        letter.check()
    except OutboxError as error:
        raise Refused(409, str(error)) from None


def _line(letter: DeadLetter) -> dict[str, Any]:
    delivery = letter.delivery
    return {
        "id": letter.number,
        "webhook": letter.webhook,
        "client": delivery.client.rpartition("\0")[2],
        "accepted": delivery.accepted / 1000,
        "died": letter.died / 1000,
        "attempts": delivery.attempts,
        "reason": hide(letter.reason, letter.url),
        "status": letter.status,
    }
