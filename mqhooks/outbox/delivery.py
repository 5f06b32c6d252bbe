"""
One webhook request that has to arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import msgspec

from mqhooks.errors import OutboxError

LONG_BODY = 1 << 20
"""A body of more bytes may be a :class:`LongBody`."""


class LongBody(Protocol):
    """
    A body that is too long to be held in memory: it is made or read anew, piece by piece, whenever it is needed.
    """

    def __len__(self) -> int:
        """Say how many bytes it has."""

    def pieces(self) -> Iterator[bytes]:
        """
        Go through it.

        :raises mqhooks.errors.OutboxError: when it can no longer be read.
        """


if TYPE_CHECKING:
    Body = bytes | LongBody
else:
    # msgspec has to know of no other: a long one is written apart from its delivery.
    Body = bytes


class Delivery(msgspec.Struct, gc=False, array_like=True):
    """
    A body on its way to one webhook.

    :param id: unique among all deliveries of all webhooks, the same in every attempt: the ``webhook-id`` header.
    :param client: whose order counts: deliveries with the same value are delivered one after the other.
    :param timestamp: when the event happened, in nanoseconds since 1970.
    :param body: the request's body, byte for byte.
    :param accepted: when it was taken over, in milliseconds since 1970.
    :param attempts: how often it was tried since the process began.
    :param place: where its outbox keeps it.
    """

    id: str
    client: str
    timestamp: int
    body: Body
    accepted: int = 0
    attempts: int = 0
    place: int = 0


def pieces(body: Body) -> Iterator[bytes]:
    """Go through a body of either kind."""
    return iter((body,)) if isinstance(body, bytes) else body.pieces()


def whole(body: Body) -> bytes:
    """Take all of a body into memory."""
    return body if isinstance(body, bytes) else b"".join(body.pieces())


def beginning(body: Body, size: int) -> bytes:
    """Take the first bytes of a body into memory, ``size`` at most."""
    found = b""
    for piece in pieces(body):
        found += piece[: size - len(found)]
        if len(found) == size:
            break
    return found


class DeadLetter(msgspec.Struct, frozen=True):
    """
    A delivery that nobody will try again unless asked to.

    :param number: its number in the outbox; 0 until it has one.
    :param webhook: the webhook's name.
    :param delivery: what was to be delivered.
    :param url: where.
    :param reason: why it was given up, in a few words.
    :param status: the last answer's status; 0 when there was none.
    :param answer: the first KiB of the last answer's body.
    :param died: when, in milliseconds since 1970.
    :param damage: what is wrong with its delivery as it is stored; an empty one stands here then.
    """

    number: int
    webhook: str
    delivery: Delivery
    url: str
    reason: str
    status: int
    answer: bytes
    died: int
    damage: str = ""

    def check(self) -> None:
        """
        Check that there is a delivery.

        :raises mqhooks.errors.OutboxError: when there is none.
        """
        if self.damage:
            raise OutboxError(f"dead letter {self.number} is damaged ({self.damage}); it can only be purged")
