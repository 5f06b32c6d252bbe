"""
Find, make and close a webhook's streams. Another number of partitions gets streams of its own: a further generation.

- A former generation is closed: its streams take no more deliveries. Once all of them are empty, the next one is delivered.
- A generation counts once its partition 0 is there, which is made last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from mqhooks.errors import JetStreamError, OutboxError
from mqhooks.nats.jetstream import NO_STREAM, JetStream
from mqhooks.outbox.jetstream.layout import Names, differing, raised, webhook_of

NO_STORAGE = frozenset({10002, 10028, 10047})
"""JetStream's errors for a stream that a server, or the account, has no storage for."""

MAKING = 10.0
"""Seconds that making a stream may take."""

ASKING = 2.0
"""Seconds that asking for a stream may take: a new one has no leader yet, and nobody answers."""


async def generations(stream: JetStream, prefix: str) -> dict[str, list[int]]:
    """
    List webhooks that have streams.

    :param stream: reads.
    :param prefix: the beginning of all names.
    :returns: the generations of each, oldest first.
    """
    pattern = re.compile(rf"{re.escape(prefix)}_(.+?)(?:=g([0-9]+))?_0")
    found: defaultdict[str, list[int]] = defaultdict(list)
    for name in await stream.stream_names(f"{prefix}.own.*.0"):
        match = pattern.fullmatch(name)
        if match is not None:
            found[webhook_of(match[1])].append(int(match[2] or 1))
    return {webhook: sorted(numbers) for webhook, numbers in sorted(found.items())}


async def newest(stream: JetStream, prefix: str, webhook: str) -> tuple[Names, int]:
    """
    Find the streams that take a webhook's deliveries.

    :returns: their names, and the number of partitions.
    :raises mqhooks.errors.OutboxError: when there are none.
    """
    numbers = (await generations(stream, prefix)).get(webhook)
    if not numbers:
        raise OutboxError(f"webhook {webhook} has no streams in JetStream; start mqhooks with it first")
    names = Names(prefix, webhook, numbers[-1])
    return names, await partitions_of(stream, names)


async def partitions_of(stream: JetStream, names: Names) -> int:
    """
    Return the number of partitions of a generation.

    :raises mqhooks.errors.OutboxError: when its streams are not ours.
    """
    info = await stream.stream_info(names.stream(0))
    try:
        return int(info["config"]["metadata"]["mqhooks-partitions"])
    except (KeyError, TypeError, ValueError):
        raise OutboxError(f"stream {names.stream(0)} was not made by mqhooks: give outbox.prefix another value") from None


async def ensure(stream: JetStream, config: dict[str, Any]) -> None:
    """
    Make a stream, or check the existing one and raise its limits.

    :param config: in JetStream's format.
    :raises mqhooks.errors.OutboxError: when it cannot be made, or the existing one differs.
    """
    name = config["name"]
    try:
        info = await stream.call(f"STREAM.INFO.{name}", None, ASKING)
    except JetStreamError as error:
        if error.err_code != NO_STREAM:
            raise
        try:
            info = await stream.call(f"STREAM.CREATE.{name}", config, MAKING)
        except JetStreamError as problem:
            raise OutboxError(_explained(name, problem)) from None
    different = differing(name, config, info.get("config", {}))
    if different is not None:
        raise OutboxError(different)
    higher = raised(config, info["config"])
    if higher:
        try:
            await stream.call(f"STREAM.UPDATE.{name}", {**info["config"], **higher}, MAKING)
        except JetStreamError as problem:
            raise OutboxError(_explained(name, problem)) from None


async def close(stream: JetStream, names: Names, partitions: int) -> None:
    """Stop a generation's streams from taking deliveries; they still take leases and checkpoints."""
    for number in range(partitions):
        try:
            config = (await stream.stream_info(names.stream(number)))["config"]
        except JetStreamError as error:
            if error.err_code != NO_STREAM:
                raise
            continue
        if names.log(number) in config["subjects"]:
            left = {key: value for key, value in config.items() if key != "republish"}
            await stream.call(f"STREAM.UPDATE.{names.stream(number)}", {**left, "subjects": [names.own(number)]}, MAKING)


def _explained(name: str, error: JetStreamError) -> str:
    if error.err_code in NO_STORAGE or "storage" in error.description:
        return f"stream {name} cannot be made, there is too little storage ({error}): raise max_file, or lower outbox.max_size"
    if error.err_code in (10005, 10074):
        return f"stream {name} cannot be made, there are too few servers ({error}): lower outbox.replicas, or add servers"
    return f"stream {name} cannot be made: {error}"
