"""
The dead letters of all webhooks, for any connected process: their numbers are those of the stream's messages.

- A dead letter is replayed by putting its delivery into the log of its partition, under an id made from its number, and then
  deleted: two processes that replay it at once store it once.
- Imports note their progress in the same stream, so an interrupted one goes on where it stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import structs
from twisted.internet.defer import DeferredList, ensureDeferred

from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.errors import JetStreamError, NATSError, NATSTooLong, OutboxError
from mqhooks.nats.jetstream import NO_STREAM, JetStream, Stored
from mqhooks.outbox.deadletters import Filter
from mqhooks.outbox.handed import Handed
from mqhooks.outbox.jetstream.generations import generations, newest
from mqhooks.outbox.jetstream.layout import (
    BATCH,
    BATCH_BYTES,
    COUNT,
    HEADROOM,
    REPLAYED,
    Names,
    encode,
    partition_of,
    webhook_of,
)
from mqhooks.outbox.stored import client_of, decode_handed, encode_handed, joined

READ = 256
"""Maximum number of dead letters per read request."""

READ_BYTES = 1 << 20
"""Bytes per read request, approximately."""

AT_ONCE = 64
"""Requests in flight at once."""

MISSING = frozenset({10037, 10043, 10057})
"""JetStream's errors for a message that is not there."""


class SharedLetters:
    """
    Dead letters in JetStream. Every method may raise :class:`~mqhooks.errors.NATSError` when JetStream cannot be asked.

    :param stream: reads and writes.
    :param prefix: the beginning of all names.
    :param now: returns the time in milliseconds since 1970.
    """

    def __init__(self, stream: JetStream, prefix: str, now: Callable[[], int]) -> None:
        self._js = stream
        self._prefix = prefix
        self._now = now
        self._stream = Names(prefix, "").letters

    async def webhooks(self) -> list[str]:
        """List the webhooks that have streams."""
        return list(await generations(self._js, self._prefix))

    async def counts(self) -> dict[str, int]:
        """Count the dead letters of each webhook."""
        subject = f"{self._prefix}.dead.*"
        try:
            info = await self._js.call(f"STREAM.INFO.{self._stream}", {"subjects_filter": subject})
        except JetStreamError as error:
            raise self._explained(error) from None
        found = info.get("state", {}).get("subjects") or {}
        return {webhook_of(name.rpartition(".")[2]): int(count) for name, count in found.items()}

    async def last(self) -> int:
        """Get the highest number that a dead letter has by now; 0 when there never was one."""
        try:
            info = await self._js.stream_info(self._stream)
        except JetStreamError as error:
            raise self._explained(error) from None
        # The last message of a subject is not always found once the newest one is deleted: see JetStream.last.
        return int(info["state"]["last_seq"])

    async def read(self, only: Filter, after: int, limit: int, upto: int | None = None) -> tuple[list[DeadLetter], int | None]:
        """
        Read some dead letters, oldest first.

        :param only: only those that match.
        :param after: only those with a higher number.
        :param limit: maximum number to look at.
        :param upto: only those with this number at most.
        :returns: those of them that match, and the number after which to go on; ``None`` at the end.
        """
        subject = f"{self._prefix}.dead.*" if only.webhook is None else Names(self._prefix, only.webhook).dead
        messages: Sequence[Stored] = ()
        try:
            batch = await self._js.direct_batch(self._stream, after + 1, subject, limit=min(limit, READ), max_bytes=READ_BYTES)
            messages = batch.messages
        except NATSError:
            # Some replica does not answer; the leader may.
            pass
        if not messages:
            # A replica may be behind; the leader knows.
            try:
                found = await self._js.get(self._stream, after + 1, subject=subject)
            except JetStreamError as error:
                raise self._explained(error) from None
            messages = () if found is None else (found,)
        within = [message for message in messages if upto is None or message.sequence <= upto]
        letters = [letter for letter in map(_letter, within) if only.wants(letter)]
        ended = not within or len(within) < len(messages)
        return letters, None if ended else within[-1].sequence

    async def get(self, number: int) -> DeadLetter | None:
        """Get a dead letter; ``None`` when none has that number."""
        if number < 1:
            return None
        try:
            found = await self._js.get(self._stream, number)
        except JetStreamError as error:
            if error.err_code in MISSING:
                return None
            raise self._explained(error) from None
        return None if found is None or not found.subject.startswith(f"{self._prefix}.dead.") else _letter(found)

    async def purge(self, numbers: Iterable[int]) -> int:
        """
        Remove dead letters for good.

        :returns: the number removed.
        """
        count = 0
        remaining = list(numbers)
        for begin in range(0, len(remaining), AT_ONCE):
            count += sum(await _all([self._purge(number) for number in remaining[begin : begin + AT_ONCE]]))
        return count

    async def _purge(self, number: int) -> bool:
        return await self.get(number) is not None and await self._delete(number)

    async def _delete(self, number: int) -> bool:
        try:
            await self._js.delete_message(self._stream, number)
        except JetStreamError as error:
            if error.err_code not in MISSING:
                raise
            return False
        return True

    async def replay(self, numbers: Iterable[int]) -> int:
        """
        Replay dead letters: put them back behind the pending deliveries. Their ids stay, their age starts at zero.

        :returns: the number replayed.
        :raises mqhooks.errors.OutboxError: when one cannot be replayed, or there is no room; others may be replayed.
        """
        count = 0
        remaining = list(numbers)
        for begin in range(0, len(remaining), AT_ONCE):
            found = await _all([self.get(number) for number in remaining[begin : begin + AT_ONCE]])
            letters = [letter for letter in found if letter is not None]
            for letter in letters:
                letter.check()
            count += await self._replay(letters)
        return count

    async def _replay(self, letters: Sequence[DeadLetter]) -> int:
        now = self._now()
        logs: defaultdict[tuple[str, str], list[tuple[int, bytes]]] = defaultdict(list)
        places: dict[str, tuple[Names, int]] = {}
        for letter in letters:
            if letter.webhook not in places:
                places[letter.webhook] = await newest(self._js, self._prefix, letter.webhook)
            names, partitions = places[letter.webhook]
            partition = partition_of(letter.delivery.client, partitions)
            again = structs.replace(letter.delivery, attempts=0, accepted=now, place=0)
            logs[names.stream(partition), names.log(partition)].append((letter.number, encode([again])))

        async def one_log(stream: str, log: str, content: list[tuple[int, bytes]]) -> int:
            await self._check_room(stream)
            count = 0
            for number, data in content:
                await self._js.publish(log, data, message_id=f"replay/{number}", headers={COUNT: "1", REPLAYED: "1"})
                count += await self._delete(number)
            return count

        return sum(await _all([one_log(*log, content) for log, content in logs.items()]))

    async def _check_room(self, stream: str) -> None:
        """Check that a stream has room, without the part that only the lease may use."""
        info = await self._js.stream_info(stream)
        if int(info["state"]["bytes"]) > int(info["config"]["max_bytes"]) - HEADROOM:
            raise OutboxError(f"stream {stream} is full: wait until more is delivered, and repeat this for the rest")

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Store dead letters from another outbox."""
        for begin in range(0, len(letters), AT_ONCE):
            await _all([self._put(letter) for letter in letters[begin : begin + AT_ONCE]])

    async def _put(self, letter: DeadLetter) -> None:
        data = encode_handed(letter)
        message_id = f"move/{blake2b(letter.webhook.encode() + data, digest_size=16).hexdigest()}"
        await self._js.publish(Names(self._prefix, letter.webhook).dead, data, message_id=message_id)

    # Importing.

    async def progress(self, source: str) -> int:
        """
        Get the progress of an earlier import of the same lines.

        :param source: a hash of the lines.
        :returns: the number of the last one imported; 0 for none.
        """
        try:
            found = await self._js.last(self._stream, self._note(source))
        except JetStreamError as error:
            raise self._explained(error) from None
        return 0 if found is None else int(found.payload)

    async def take_in(self, source: str, piece: Sequence[Handed], *, dead: bool) -> int:
        """
        Import some lines, and note the progress.

        :param piece: a single delivery or dead letter each, in order.
        :param dead: whether they become dead letters.
        :returns: the number imported.
        :raises mqhooks.errors.OutboxError: when there is no room.
        """
        if dead:
            for begin in range(0, len(piece), AT_ONCE):
                await _all(
                    [
                        self._js.publish(
                            Names(self._prefix, each.webhook).dead, each.content, message_id=f"{source}/{each.number}"
                        )
                        for each in piece[begin : begin + AT_ONCE]
                    ]
                )
        else:
            await self._accept(source, piece)
        await self._js.publish(self._note(source), b"%d" % piece[-1].number, rollup="sub")
        return len(piece)

    async def _accept(self, source: str, piece: Sequence[Handed]) -> None:
        logs: defaultdict[tuple[str, str], list[Handed]] = defaultdict(list)
        places: dict[str, tuple[Names, int]] = {}
        for each in piece:
            if each.webhook not in places:
                places[each.webhook] = await newest(self._js, self._prefix, each.webhook)
            names, partitions = places[each.webhook]
            partition = partition_of(client_of(each.content) or "", partitions)
            logs[names.stream(partition), names.log(partition)].append(each)

        async def one_log(stream: str, log: str, content: list[Handed]) -> None:
            await self._check_room(stream)
            for batch in batches(content):
                data = joined([each.content for each in batch])
                headers = {COUNT: str(len(batch))}
                try:
                    await self._js.publish(log, data, message_id=f"{source}/{batch[-1].number}", headers=headers)
                except NATSTooLong as error:
                    raise OutboxError(f"line {batch[-1].number}: {error}; remove it, and import the rest") from None

        await _all([one_log(*log, content) for log, content in logs.items()])

    def _note(self, source: str) -> str:
        return f"{self._prefix}.note.import.{source}"

    def _explained(self, error: JetStreamError) -> Exception:
        if error.err_code == NO_STREAM:
            return OutboxError(f"there is no stream {self._stream}: mqhooks makes it when it starts; check outbox.prefix")
        return error


def batches(content: Iterable[Handed]) -> Iterable[list[Handed]]:
    """Divide the deliveries for one log into messages."""
    batch: list[Handed] = []
    size = 0
    for each in content:
        if batch and (len(batch) == BATCH or size + len(each.content) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += len(each.content)
    if batch:
        yield batch


def _letter(message: Stored) -> DeadLetter:
    webhook = webhook_of(message.subject.rpartition(".")[2])
    try:
        return structs.replace(decode_handed(webhook, message.payload), number=message.sequence)
    except ValueError as error:
        problem = f"its message cannot be read: {error}"
        return DeadLetter(message.sequence, webhook, Delivery("", "", 0, b""), "", problem, 0, b"", 0, problem)


async def _all(awaitables: Iterable[Any]) -> list[Any]:
    """Wait for all of them, even when one fails."""
    asked = [each if hasattr(each, "addBoth") else ensureDeferred(each) for each in awaitables]
    results: list[tuple[bool, Any]] = await DeferredList(asked, consumeErrors=True)
    for done, result in results:
        if not done:
            result.raiseException()
    return [result for _, result in results]
