"""
``mqhooks outbox repartition``: changes the number of partitions of webhooks in JetStream.

It makes the new streams and closes the old ones. The bridges drain the old ones first, then deliver from the new ones.
Meanwhile events are accepted into the new ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from mqhooks.app.engine import Engine, engine_settings, outbox_limits
from mqhooks.errors import MqhooksError
from mqhooks.nats.jetstream import JetStream
from mqhooks.outbox.jetstream.generations import close, ensure, generations, partitions_of
from mqhooks.outbox.jetstream.layout import HEADROOM, Names, log_config
from mqhooks.outbox.jetstream.store import JetStreamSettings
from mqhooks.support.printable import printable


def repartition(config: str) -> Iterator[str]:
    """
    Repartition all webhooks whose number of partitions differs from the configuration's.

    :param config: the configuration.
    :returns: lines for a terminal.
    :raises mqhooks.errors.MqhooksError: when JetStream cannot be used, or has no room for more streams.
    """
    settings = engine_settings(config)
    if settings is None:
        raise MqhooksError(f"{config}: mqhooks.outbox.kind: is not jetstream: only such an outbox has partitions")
    max_size, _, _ = outbox_limits(config, "jetstream")
    engine = Engine(settings)
    try:
        found = engine.wait(lambda: generations(engine.stream, settings.prefix))
        for name, numbers in found.items():
            before, after = engine.wait(lambda: _divide(engine.stream, settings, name, numbers, max_size))  # noqa: B023
            what = f"{after} partitions already" if before == after else f"{after} partitions in place of {before}"
            yield f"repartition: webhook {printable(name, 60)} has {what}"
        if not found:
            yield "repartition: no webhook has streams in JetStream"
    finally:
        engine.close()


async def _divide(
    stream: JetStream, settings: JetStreamSettings, name: str, numbers: list[int], max_size: int
) -> tuple[int, int]:
    """Repartition one webhook, or resume that; return its number of partitions before and after."""
    latest = Names(settings.prefix, name, numbers[-1])
    before, after = await partitions_of(stream, latest), settings.partitions
    former = numbers[:-1]
    if before != after:
        former = numbers
        share = max_size // after + HEADROOM
        names = Names(settings.prefix, name, numbers[-1] + 1)
        # Partition 0 comes last: the generation takes effect once it exists.
        for number in (*range(1, after), 0):
            await ensure(stream, log_config(names, number, after, settings.replicas, share))
    for number in former:
        names = Names(settings.prefix, name, number)
        await close(stream, names, await partitions_of(stream, names))
    return before, after
