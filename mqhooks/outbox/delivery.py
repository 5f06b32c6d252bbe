"""
One webhook request that has to arrive.
"""

from __future__ import annotations

import msgspec

from mqhooks.errors import OutboxError


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
    body: bytes
    accepted: int = 0
    attempts: int = 0
    place: int = 0


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
    :param damage: why its delivery cannot be replayed: it is damaged, or was stored without its body.
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
        Check that it can be replayed.

        :raises mqhooks.errors.OutboxError: when it cannot.
        """
        if self.damage:
            raise OutboxError(f"dead letter {self.number} cannot be replayed ({self.damage}); it can only be purged")
