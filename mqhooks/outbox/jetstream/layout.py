"""
Names and formats in JetStream. All of them outlive the process, so other versions have to agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec

from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.errors import OutboxError
from mqhooks.outbox.stored import encode_handed

FORMAT = "1"
"""The version of these names and formats; streams carry it in their metadata."""

PREFIX = r"[0-9A-Za-z_-]{1,32}"
"""A regular expression for the prefix of the names of streams and subjects."""

COUNT = "Mqhooks-Count"
"""The header with the number of deliveries in a message."""

REPLAYED = "Mqhooks-Replayed"
"""The header of a message whose deliveries were dead letters."""

ACCEPTORS = 64
"""Acceptors whose last stored delivery a checkpoint notes."""

BATCH = 256
"""Maximum number of deliveries in a message."""

BATCH_BYTES = 256 << 10
"""Bytes of bodies in a message, approximately, unless a single one is longer."""

OVERHEAD = 2048
"""Bytes that a delivery and its message may take besides body and client."""

HEADROOM = 8 << 20
"""Bytes that a stream may have beyond its share of ``max_size``: the lease must find room in a full one."""

LONGEST_NAME = 255
"""Most characters in the name of a stream."""

encode = msgspec.msgpack.Encoder().encode
_decode_log = msgspec.msgpack.Decoder(list[Delivery]).decode


def partition_of(client: str, partitions: int) -> int:
    """
    Return the partition of a client's deliveries: by the CRC-32 of its id in UTF-8, times 0x9E3779B1, modulo 2 ** 32.

    The CRCs of names that differ in a digit or two differ in few bits; the product spreads them over all partitions. Its high
    bits choose the partition, so a process that owns only one has work for all its lanes, which go by the CRC itself.
    """
    return (crc32(client.encode("utf-8", "surrogatepass")) * 0x9E3779B1 & 0xFFFFFFFF) * partitions >> 32


class Names:
    """
    The names of one webhook's streams and subjects.

    :param prefix: the beginning of all names.
    :param webhook: its name; bytes that NATS does not allow are written as ``=`` and two hexadecimal digits.
    :param generation: the generation of its streams.
    """

    def __init__(self, prefix: str, webhook: str, generation: int = 1) -> None:
        self.prefix = prefix
        self.webhook = webhook
        self.generation = generation
        token = re.sub(rb"[^0-9A-Za-z_-]", lambda found: b"=%02X" % found[0][0], webhook.encode()).decode()
        self.dead = f"{prefix}.dead.{token}"
        self.note = f"{prefix}.note.webhook.{token}"
        # No webhook's own name can look like this.
        self.token = token if generation == 1 else f"{token}=g{generation}"
        self.alive = f"{prefix}.alive.{self.token}"

    def stream(self, partition: int) -> str:
        """Return the name of a partition's stream."""
        return f"{self.prefix}_{self.token}_{partition}"

    def log(self, partition: int) -> str:
        """Return the subject of a partition's deliveries."""
        return f"{self.prefix}.log.{self.token}.{partition}"

    def own(self, partition: int) -> str:
        """Return the subject of a partition's lease and checkpoint."""
        return f"{self.prefix}.own.{self.token}.{partition}"

    def new(self, partition: int) -> str:
        """Return the subject, outside the stream, on which the leader announces each message that it has stored."""
        return f"{self.prefix}.new.{self.token}.{partition}"

    @property
    def letters(self) -> str:
        """The stream of all webhooks' dead letters."""
        return f"{self.prefix}_DEAD"


def webhook_of(token: str) -> str:
    """Return the webhook whose names have this token."""
    plain = re.sub("=([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), token)
    return plain.encode("latin-1", "replace").decode("utf-8", "replace")


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    A partition's owner and progress.

    :param owner: the process that delivers, for two seconds from now on; ``None`` when it has given the partition up.
    :param turn: tells an owner's checkpoints apart.
    :param upto: a sequence number: up to there, the whole log is settled except for ``open``; beyond, nothing is.
    :param open: the unsettled messages up to there: by sequence number, a bit for each settled delivery, in hexadecimal.
    :param tail: the sequence number up to which the log is counted.
    :param pending: number of unsettled deliveries up to ``tail``.
    :param size: bytes of the unsettled messages up to ``tail``.
    :param accepted: for each of the latest acceptors, the id of the last delivery up to ``tail`` that it has stored.
    """

    owner: str | None = None
    turn: int = 0
    upto: int = 0
    open: dict[int, str] = {}
    tail: int = 0
    pending: int = 0
    size: int = 0
    accepted: dict[str, str] = {}


_checkpoint = msgspec.json.Decoder(Checkpoint).decode


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Encode a checkpoint."""
    return msgspec.json.encode(checkpoint)


def decode_checkpoint(data: bytes) -> Checkpoint:
    """
    Decode a checkpoint.

    :raises ValueError: when the data is not one.
    """
    try:
        return _checkpoint(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def shortened(checkpoint: Checkpoint) -> Checkpoint:
    """Leave out half of the open messages, the last ones: from the first of these on, nothing counts as settled."""
    opened = sorted(checkpoint.open)
    kept = opened[: len(opened) // 2]
    return msgspec.structs.replace(checkpoint, upto=opened[len(kept)] - 1, open={seq: checkpoint.open[seq] for seq in kept})


def accepted_by(message_id: str) -> tuple[str, str] | None:
    """Return the acceptor of a message, and the id of the last delivery in it; ``None`` when it is not from an acceptor."""
    name, _, delivery = message_id.partition("/")
    return (name, delivery) if name.startswith("a-") and delivery else None


def decode_batch(data: bytes) -> list[Delivery] | None:
    """Decode the deliveries of a message; ``None`` when they cannot be decoded."""
    try:
        return _decode_log(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def encode_letter(letter: DeadLetter) -> bytes:
    """
    Encode a dead letter.

    :raises OverflowError, ValueError: when it cannot be encoded.
    """
    return encode_handed(letter)


def log_config(names: Names, partition: int, partitions: int, replicas: int, max_bytes: int) -> dict[str, Any]:
    """
    Return the configuration of a partition's stream, in JetStream's format.

    :raises mqhooks.errors.OutboxError: when the webhook's name is too long.
    """
    name = names.stream(partition)
    if len(name) > LONGEST_NAME:
        limit = f"the name of its stream would have {len(name)} characters, and NATS takes {LONGEST_NAME}"
        raise OutboxError(f"webhook {names.webhook[:40]}… has too long a name for JetStream: {limit}: give it a shorter name")
    return {
        "name": name,
        "subjects": [names.log(partition), names.own(partition)],
        "num_replicas": replicas,
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_bytes": max_bytes,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "duplicate_window": 120 * 10**9,
        "republish": {"src": names.log(partition), "dest": names.new(partition)},
        "metadata": {"mqhooks-format": FORMAT, "mqhooks-partitions": str(partitions)},
    }


def letters_config(names: Names, replicas: int, dead_max: int, max_bytes: int) -> dict[str, Any]:
    """Return the configuration of the stream of dead letters, and of notes about imports and webhooks' configurations."""
    return {
        "name": names.letters,
        "subjects": [f"{names.prefix}.dead.*", f"{names.prefix}.note.>"],
        "num_replicas": replicas,
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_msgs_per_subject": max(dead_max, 1),
        "max_bytes": max_bytes,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "duplicate_window": 120 * 10**9,
        "metadata": {"mqhooks-format": FORMAT},
    }


LIMITS = ("max_bytes", "max_msgs_per_subject")
"""Settings that are raised in a stream that has less, and left in one that has more."""


def raised(wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the limits to raise in a stream."""
    return {key: wanted[key] for key in LIMITS if key in wanted and 0 < found.get(key, 0) < wanted[key]}


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> Sequence[str]:
    """
    Compare a stream with what it should be, apart from its :data:`LIMITS`.

    :returns: each setting that differs, with both values.
    """
    differing = []
    for key, value in wanted.items():
        there = found.get(key)
        if key == "metadata":
            for name, text in value.items():
                got = (there or {}).get(name)
                if got != text:
                    differing.append(f"{name} is {got}, not {text}")
        elif key == "republish":
            got = {name: (there or {}).get(name) for name in value}
            if got != value:
                differing.append(f"{key} is {got}, not {value}")
        elif key in LIMITS:
            continue
        elif there != value:
            differing.append(f"{key} is {there}, not {value}")
    return differing


def differing(name: str, wanted: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Describe how a stream differs from what it should be, and what to do; ``None`` when it does not."""
    different = differences(wanted, found)
    if not different:
        return None
    remedy = "give outbox the settings that it was made with, another prefix, or change it with nats stream edit"
    if len(different) == 1 and different[0].startswith("mqhooks-partitions"):
        remedy = "give outbox.partitions the value that it was made with, or run mqhooks outbox repartition"
    return f"stream {name} is not as configured: {', '.join(different)}: {remedy}"
