"""
Encode deliveries and dead letters for storage: as MessagePack, with a version and a checksum beside it.

- The checksum also covers a row's number: a page that a disk has put in the wrong place is damage too.
- An unstorable delivery, one with too long a body for example, becomes a dead letter without its body rather than an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import msgspec

from mqhooks.delivery import DeadLetter, Delivery

VERSION = 1
"""The version of the format."""

LONGEST = 990_000_000
"""Longest body, in bytes: SQLite takes no row of more than 1,000,000,000."""

LONGEST_CLIENT = 1 << 16
"""Characters of a client id that a dead letter without its body keeps; MQTT allows no more bytes."""

CLIENT_BYTES = 1 << 20
"""Bytes at the beginning of an encoded delivery that hold its id and its client."""

UNENCODABLE = (OverflowError, ValueError, TypeError)
"""Errors that :func:`encode` raises for a delivery that cannot be encoded."""

encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(list[Delivery | None]).decode
_decode_one = msgspec.msgpack.Decoder(Delivery).decode
_decode_handed = msgspec.msgpack.Decoder(tuple[str, str, int, bytes, int, str, bytes]).decode
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)


def checksum(number: int, version: int, *parts: bytes | str) -> int:
    """Return the checksum of data that is stored under a number."""
    value = crc32(b"%d %d" % (number, version))
    for part in parts:
        value = crc32(part if isinstance(part, bytes) else part.encode(errors="replace"), value)
    return value


def decode_row(number: int, version: object, check: object, data: object) -> Sequence[Delivery | None] | None:
    """
    Decode the deliveries of a row.

    :returns: the deliveries, ``None`` in the places of those that were thinned out; a single ``None`` when it is damaged.
    """
    if version != VERSION or not isinstance(data, bytes) or checksum(number, VERSION, data) != check:
        return None
    try:
        return _decode_row(data)
    except _UNDECODABLE:
        return None


def decode_delivery(webhook: str, version: object, check: object, data: object) -> Delivery:
    """
    Decode the delivery of a dead letter.

    :raises ValueError: when it is damaged.
    """
    if version != VERSION or not isinstance(data, bytes) or checksum(0, VERSION, webhook, data) != check:
        raise ValueError("its checksum does not match")
    try:
        return _decode_one(data)
    except _UNDECODABLE as error:
        raise ValueError(str(error)) from None


def client_of(data: bytes) -> str | None:
    """
    Read the client of a delivery from the first :data:`CLIENT_BYTES` of it.

    :returns: ``None`` when it is damaged.
    """
    # An array: its header, the id and the client, each text with its length before it.
    place = 1 if data[:1] < b"\xdc" else 3
    found = b""
    for _ in range(2):
        head = data[place : place + 1]
        digits = {b"\xd9": 1, b"\xda": 2, b"\xdb": 4}.get(head)
        if digits is None:
            if not b"\xa0" <= head < b"\xc0":
                return None
            length = head[0] & 31
        else:
            length = int.from_bytes(data[place + 1 : place + 1 + digits], "big")
        place += 1 + (digits or 0)
        found = data[place : place + length]
        if len(found) < length:
            return None
        place += length
    return found.decode(errors="replace")


def is_client(data: object, wanted: str) -> bool:
    """Return whether a delivery is of a client, given as its id, or as its mountpoint, a slash, and its id."""
    client = client_of(data) if isinstance(data, bytes) else None
    return client is not None and wanted in (client.rpartition("\0")[2], client.replace("\0", "/"))


def encode_letter(letter: DeadLetter) -> bytes:
    """
    Encode the delivery of a dead letter.

    :raises OverflowError, ValueError: when it cannot be encoded.
    """
    delivery = letter.delivery
    place, delivery.place = delivery.place, 0
    try:
        return encode(delivery)
    finally:
        delivery.place = place


def joined(deliveries: Sequence[bytes]) -> bytes:
    """Join encoded deliveries, up to 65,535, into a row."""
    # The header of a MessagePack array, and its elements.
    return b"\xdc" + len(deliveries).to_bytes(2, "big") + b"".join(deliveries)


def encode_handed(letter: DeadLetter) -> bytes:
    """Encode a dead letter that one process hands over to another."""
    how = (letter.url, letter.reason, letter.status, letter.answer, letter.died, letter.damage)
    return encode((*how, encode_letter(letter)))


def decode_handed(webhook: str, data: bytes) -> DeadLetter:
    """
    Decode a dead letter that another process has handed over.

    :raises ValueError: when it cannot be decoded.
    """
    try:
        url, reason, status, answer, died, damage, delivery = _decode_handed(data)
        return DeadLetter(0, webhook, _decode_one(delivery), url, reason, status, answer, died, damage)
    except _UNDECODABLE as error:
        raise ValueError(str(error)) from None


def encodable(delivery: Delivery) -> str | None:
    """Return why a delivery cannot be encoded; ``None`` if it can."""
    try:
        encode(delivery)
    except UNENCODABLE as error:
        return str(error)
    return None


def without_body(letter: DeadLetter, reason: str) -> DeadLetter:
    """
    Make a dead letter that can be stored in any case, and cannot be replayed.

    :param reason: why it is stored without its body; the delivery's id, client and size are added.
    """
    delivery = letter.delivery
    id_, client, url = (_text(value) for value in (delivery.id, delivery.client, letter.url))
    numbers = (delivery.timestamp, delivery.accepted, letter.status, letter.died)
    timestamp, accepted, status, died = (value if 0 <= value < 1 << 63 else 0 for value in numbers)
    bare = Delivery(id_, client[:LONGEST_CLIENT], timestamp, b"", accepted, delivery.attempts)
    more = f"stored without its body: id {id_[:256]}, client {client[:256]!r}, {len(delivery.body)} bytes"
    reason = f"{_text(reason)} ({more})"
    return DeadLetter(0, letter.webhook, bare, url[:4096], reason, status, letter.answer[:1024], died, more)


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
