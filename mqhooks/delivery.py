"""
Deliveries, the requests that carry them, and their results.

Everything here is a plain value: made in one room, handed to the next, and owned by its current holder.
"""

from __future__ import annotations

import re

import msgspec

from mqhooks.errors import OutboxError


class Variation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    One delivery's deviations from its webhook's usual request.

    :param method: ``None`` for POST.
    :param path: path and query; ``None`` for the webhook's.
    :param headers: sent in addition to the webhook's headers, replacing those of the same name.
    :param problem: why the request cannot be made, so that nothing can be sent; ``None`` when it can.
    """

    method: str | None = None
    path: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    problem: str | None = None


class Delivery(msgspec.Struct, gc=False, array_like=True):
    """
    A body on its way to one webhook.

    :param id: unique among all deliveries of all webhooks and the same in every attempt: the idempotency key, ``webhook-id``.
    :param client: the client whose order it keeps.
    :param timestamp: when the event happened, in nanoseconds since 1970.
    :param body: the request's body, byte for byte.
    :param accepted: when it was accepted, in milliseconds since 1970.
    :param attempts: attempts since the process began.
    :param place: where its outbox keeps it.
    :param window: whether it waits in the merge window.
    :param variation: its request's deviations from the webhook's usual one.
    """

    id: str
    client: str
    timestamp: int
    body: bytes
    accepted: int = 0
    attempts: int = 0
    place: int = 0
    window: bool = True
    variation: Variation | None = None


class Shelved(msgspec.Struct, frozen=True, gc=False):
    """
    Stands for a claimed delivery of which only the place is kept, and the values that decide its order.

    :param client: the delivery's; likewise ``timestamp``, ``place`` and ``id``.
    :param size: bytes of the delivery's body.
    :param body: always empty.
    """

    client: str
    timestamp: int
    place: int
    size: int
    id: str
    body: bytes = b""


class DeadLetter(msgspec.Struct, frozen=True):
    """
    A delivery that is not tried again unless it is replayed.

    :param number: its number in the outbox; 0 until it has one.
    :param webhook: the webhook's name.
    :param delivery: the delivery that was given up.
    :param url: the URL that it was for.
    :param reason: why it was given up, in a few words.
    :param status: the last answer's status; 0 when there was no answer.
    :param answer: the first KiB of the last answer's body.
    :param died: when it was given up, in milliseconds since 1970.
    :param damage: why it cannot be replayed: it is damaged, or was stored without its body; empty when it can.
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

    @property
    def address(self) -> str:
        """The URL of its request, with the delivery's own path and query if it has them."""
        own = self.delivery.variation
        return self.url if own is None or own.path is None else address(self.url, own.path)

    @property
    def method(self) -> str:
        """The method of its request."""
        own = self.delivery.variation
        return "POST" if own is None or own.method is None else own.method

    def check(self) -> None:
        """
        Check that it can be replayed.

        :raises mqhooks.errors.OutboxError: when it cannot.
        """
        if self.damage:
            raise OutboxError(f"dead letter {self.number} cannot be replayed ({self.damage}); it can only be purged")


def address(url: str, path: str) -> str:
    """Return the URL of a request that has its own path and query."""
    host = re.match(r"[^:]*://[^/?#]*", url)
    return f"{host[0] if host else ''}{path}"


class Counts(msgspec.Struct, frozen=True):
    """
    The deliveries that one outbox has accepted since the process began, by their fate:
    ``accepted = delivered + dead + dropped + handed + pending`` at every moment.

    :param appended: made from events.
    :param resumed: left by an earlier process, or accepted by another one.
    :param replayed: dead letters that were put back.
    :param delivered: arrived.
    :param dead: turned into dead letters, counted each time.
    :param dropped: dropped to make room, or lost.
    :param pending: waiting, or in flight.
    :param forgotten: dead letters discarded to make room for newer ones.
    :param handed: handed to another process, which delivers them now.
    """

    appended: int
    resumed: int
    replayed: int
    delivered: int
    dead: int
    dropped: int
    pending: int
    forgotten: int = 0
    handed: int = 0

    @property
    def accepted(self) -> int:
        """All deliveries that were accepted."""
        return self.appended + self.resumed + self.replayed


class Head(msgspec.Struct, frozen=True):
    """
    The common part of one webhook's requests.

    :param method: for example ``POST``.
    :param url: absolute.
    :param headers: without ``Content-Length``, ``Host`` and ``webhook-*``.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]


class Request(msgspec.Struct, gc=False):
    """
    One attempt's request.

    :param head: the common part of its webhook's requests.
    :param headers: this attempt's own: ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``, and a variation's.
    :param body: the body as it is sent.
    :param method: a variation's; ``None`` for the head's.
    :param path: a variation's path and query; ``None`` for those of the head's URL.
    """

    head: Head
    headers: list[tuple[str, str]]
    body: bytes
    method: str | None = None
    path: str | None = None


class Response(msgspec.Struct, frozen=True, gc=False):
    """
    An endpoint's answer.

    :param status: the status code.
    :param headers: names and values as they came.
    :param body: its first KiB.
    :param length: bytes of the body that were read.
    :param complete: whether that is the whole body.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    length: int
    complete: bool
