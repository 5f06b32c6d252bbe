"""
What is where in JetStream, and how it is written. All of it outlives the process, so other versions have to agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec

from mqhooks.delivery import DeadLetter, Delivery
from mqhooks.outbox.stored import encode_handed

FORMAT = "1"
"""The version of all that is here; streams carry it in their metadata."""

PREFIX = r"[0-9A-Za-z_-]{1,32}"
"""What the names of streams and subjects may begin with, as a regular expression."""

COUNT = "Mqhooks-Count"
"""The header that says how many deliveries are in a message."""

BATCH = 256
"""How many deliveries a message has at most."""

BATCH_BYTES = 256 << 10
"""About how many bytes of bodies it has, unless a single one is longer."""

OVERHEAD = 2048
"""How many bytes a delivery and its message may take besides body and client."""

encode = msgspec.msgpack.Encoder().encode
_decode_log = msgspec.msgpack.Decoder(list[Delivery]).decode


def partition_of(client: str, partitions: int) -> int:
    """
    Say in which partition a client's deliveries are: by the CRC-32 of its id in UTF-8, times 0x9E3779B1, modulo 2 ** 32.

    The CRCs of names that differ in a digit or two differ in few bits; the product spreads them over all partitions. Its high
    bits count, so that a process that owns one partition has work for all of its lanes, which go by the CRC itself.
    """
    return (crc32(client.encode("utf-8", "surrogatepass")) * 0x9E3779B1 & 0xFFFFFFFF) * partitions >> 32


class Names:
    """
    The names of one webhook's streams and subjects.

    :param prefix: what all names begin with.
    :param webhook: its name; what NATS does not allow is written as ``=`` and two hexadecimal digits for each byte.
    """

    def __init__(self, prefix: str, webhook: str) -> None:
        self.prefix = prefix
        self.token = re.sub(rb"[^0-9A-Za-z_-]", lambda found: b"=%02X" % found[0][0], webhook.encode()).decode()
        self.alive = f"{prefix}.alive.{self.token}"
        self.dead = f"{prefix}.dead.{self.token}"

    def stream(self, partition: int) -> str:
        """A partition's stream."""
        return f"{self.prefix}_{self.token}_{partition}"

    def log(self, partition: int) -> str:
        """The subject of its deliveries."""
        return f"{self.prefix}.log.{self.token}.{partition}"

    def own(self, partition: int) -> str:
        """The subject of its lease and checkpoint."""
        return f"{self.prefix}.own.{self.token}.{partition}"

    def new(self, partition: int) -> str:
        """The subject, outside the stream, on which the leader tells what it has stored."""
        return f"{self.prefix}.new.{self.token}.{partition}"

    @property
    def letters(self) -> str:
        """The stream of all webhooks' dead letters."""
        return f"{self.prefix}_DEAD"


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    Who owns a partition, and how far it has come.

    :param owner: the process that delivers, for two seconds from now on; ``None`` when it has given the partition up.
    :param turn: tells an owner's checkpoints apart.
    :param upto: a sequence number: of the log up to there, only what is in ``open`` is not settled; beyond, nothing is.
    :param open: messages that are not settled: by sequence number, a bit for each delivery of it that is, in hexadecimal.
    :param tail: up to which sequence number the log is counted.
    :param pending: how many deliveries up to there are not settled.
    :param size: how many bytes the messages up to there have that are not settled.
    """

    owner: str | None = None
    turn: int = 0
    upto: int = 0
    open: dict[int, str] = {}
    tail: int = 0
    pending: int = 0
    size: int = 0


_checkpoint = msgspec.json.Decoder(Checkpoint).decode


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Write a checkpoint."""
    return msgspec.json.encode(checkpoint)


def decode_checkpoint(data: bytes) -> Checkpoint:
    """
    Read a checkpoint.

    :raises ValueError: when it is none.
    """
    return _checkpoint(data)


def decode_batch(data: bytes) -> list[Delivery] | None:
    """Read the deliveries of a message; ``None`` when it cannot be read."""
    try:
        return _decode_log(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def encode_letter(letter: DeadLetter) -> bytes:
    """
    Write a dead letter.

    :raises OverflowError, ValueError: when it cannot be encoded.
    """
    return encode_handed(letter)


def log_config(names: Names, partition: int, partitions: int, replicas: int, max_bytes: int) -> dict[str, Any]:
    """Describe a partition's stream as JetStream has it."""
    return {
        "name": names.stream(partition),
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
    """Describe the stream of dead letters."""
    return {
        "name": names.letters,
        "subjects": [f"{names.prefix}.dead.*"],
        "num_replicas": replicas,
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_msgs_per_subject": max(dead_max, 1),
        "max_bytes": max_bytes,
        "allow_direct": True,
        "duplicate_window": 120 * 10**9,
        "metadata": {"mqhooks-format": FORMAT},
    }


LIMITS = ("max_bytes", "max_msgs_per_subject")
"""What is raised in a stream that has less, and left in one that has more."""


def raised(wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Find the limits that a stream needs raised."""
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
