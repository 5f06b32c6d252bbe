"""
Check whether an outbox can be in a JetStream, before a bridge needs it. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import TimeoutError as Late

from mqhooks.errors import JetStreamError, NATSError, NATSNoResponders, NATSRefused, NATSUnavailable, OutboxError
from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import NO_STREAM, JetStream
from mqhooks.outbox.jetstream.generations import generations
from mqhooks.outbox.jetstream.layout import (
    HEADROOM,
    Names,
    differing,
    letters_config,
    log_config,
)

PATIENCE = 5.0
"""Seconds that connecting may take."""

UNSYNCED = (
    "unless the NATS servers have sync_interval: always, a power failure can undo what they have acknowledged; "
    "if they have it, set sync = full"
)
"""The warning unless the operator has declared that the servers sync always."""


@dataclass
class Found:
    """
    The results of an examination.

    :param problems: reasons why the outbox cannot work, one line each.
    :param notes: anything else worth knowing.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def examine(reactor: Any, settings: Any, webhooks: Iterable[str], max_size: int, dead_max: int) -> Found:
    """
    Examine servers, permissions, streams and storage.

    :param reactor: the running reactor.
    :param settings: :class:`~mqhooks.outbox.jetstream.store.JetStreamSettings`.
    :param webhooks: their names.
    :param max_size: bytes of deliveries, for each webhook; likewise ``dead_max``.
    """
    found = Found() if settings.synced else Found(notes=[UNSYNCED])
    refused: list[str] = []
    client = NATSClient(reactor, replace(settings.nats, max_rounds=1), warned=lambda error: refused.append(str(error)))
    client.start()
    try:
        await client.when_connected().addTimeout(PATIENCE, reactor)
        await _look(client, settings, list(webhooks), max_size, dead_max, found)
    except (Late, NATSUnavailable) as error:
        reason = client.problem or error
        if client.info is None and not isinstance(reason, NATSRefused):
            found.notes.append(f"{reason or f'no connection within {PATIENCE:g} s'}; the streams were not checked")
        elif not refused:
            found.problems.append(str(reason))
    except (NATSError, OutboxError) as error:
        if not refused:
            found.problems.append(str(error))
    finally:
        found.problems += dict.fromkeys(refused)
        await client.close()
    return found


async def _look(client: NATSClient, settings: Any, webhooks: list[str], max_size: int, dead_max: int, found: Found) -> None:
    stream = JetStream(client)
    names = Names(settings.prefix, "check")
    try:
        account = await stream.account_info()
    except NATSNoResponders:
        found.problems.append(f"NATS server {client.server} has no JetStream: add a jetstream block to its configuration")
        return
    client.subscribe(names.alive, lambda _: None)
    client.publish(names.alive)
    await client.flush()
    share = max_size // settings.partitions + HEADROOM
    known = await generations(stream, settings.prefix)
    wanted = [letters_config(names, settings.replicas, dead_max, max_size)]
    for webhook in webhooks:
        its = Names(settings.prefix, webhook, known.get(webhook, [1])[-1])
        wanted += [
            log_config(its, number, settings.partitions, settings.replicas, share) for number in range(settings.partitions)
        ]
    missing = 0
    for config in wanted:
        try:
            info = await stream.stream_info(config["name"])
        except JetStreamError as error:
            if error.err_code != NO_STREAM:
                raise
            missing += int(config["max_bytes"])
            continue
        problem = differing(config["name"], config, info.get("config", {}))
        if problem is not None:
            found.problems.append(problem)
    limit = int((account.get("limits") or {}).get("max_storage", -1))
    reserved = int(account.get("reserved_storage", 0))
    if missing and 0 <= limit < reserved + missing:
        left = max(limit - reserved, 0) >> 20
        problem = f"{missing >> 20} MiB are needed, and {left} MiB of {limit >> 20} MiB are left"
        remedy = "raise its max_store, or lower outbox.max_size"
        found.problems.append(f"the NATS account has too little storage: {problem}: {remedy}")
    elif missing:
        found.notes.append(
            f"{missing >> 20} MiB will be reserved on each of {settings.replicas} servers, within their max_file"
        )
