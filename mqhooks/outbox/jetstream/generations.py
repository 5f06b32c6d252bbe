"""
Which streams a webhook has. They are made anew, as a further generation, when their number changes.
"""

from __future__ import annotations

import re
from collections import defaultdict

from mqhooks.errors import OutboxError
from mqhooks.nats.jetstream import JetStream
from mqhooks.outbox.jetstream.layout import Names, webhook_of


async def generations(stream: JetStream, prefix: str) -> dict[str, list[int]]:
    """
    List webhooks that have streams.

    :param stream: reads.
    :param prefix: what all names begin with.
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

    :returns: their names, and how many partitions there are.
    :raises mqhooks.errors.OutboxError: when there are none.
    """
    numbers = (await generations(stream, prefix)).get(webhook)
    if not numbers:
        raise OutboxError(f"webhook {webhook} has no streams in JetStream; start mqhooks with it first")
    names = Names(prefix, webhook, numbers[-1])
    return names, await partitions_of(stream, names)


async def partitions_of(stream: JetStream, names: Names) -> int:
    """
    Say how many partitions a generation has.

    :raises mqhooks.errors.OutboxError: when its streams are not ours.
    """
    info = await stream.stream_info(names.stream(0))
    try:
        return int(info["config"]["metadata"]["mqhooks-partitions"])
    except (KeyError, TypeError, ValueError):
        raise OutboxError(f"stream {names.stream(0)} is not one of mqhooks: give outbox.prefix another value") from None
