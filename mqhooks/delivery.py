"""
Deliveries, the requests that carry them, and what becomes of them.

Everything here is a plain value: made in one room, handed to the next, and owned by its current holder.
"""

from __future__ import annotations

import re

import msgspec

from mqhooks.errors import OutboxError


class Variation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    How the request of one delivery differs from those of its webhook's others.

    :param method: ``None`` for POST.
    :param path: path and query; ``None`` for the webhook's.
    :param headers: sent in place of the webhook's of the same name, and in addition to the others.
    :param problem: why there is no such request, so that it cannot be sent; ``None`` when there is.
    """

    method: str | None = None
    path: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    problem: str | None = None


class Delivery(msgspec.Struct, gc=False, array_like=True):
    """
    A body on its way to one webhook.

    :param id: unique among all deliveries of all webhooks and the same in every attempt: the idempotency key, ``webhook-id``.
    :param client: whose delivery it is.
    :param timestamp: when the event happened, in nanoseconds since 1970.
    :param body: the request's body, byte for byte.
    :param accepted: when it was accepted, in milliseconds since 1970.
    :param attempts: how often it was tried since the process began.
    :param place: where its outbox keeps it.
    :param window: whether it waits in the merge window.
    :param variation: how its request differs from the webhook's others.
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
    Stands for a claimed delivery of which only the place is kept, and what its order depends on.

    :param client: the delivery's; likewise ``timestamp``, ``place`` and ``id``.
    :param size: bytes of its body.
    :param body: none, whatever the delivery's is.
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

    @property
    def address(self) -> str:
        """The URL of its request: path and query are the delivery's own, if it has some."""
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
    """Get the URL of a request whose path and query are its own."""
    host = re.match(r"[^:]*://[^/?#]*", url)
    return f"{host[0] if host else ''}{path}"


class Counts(msgspec.Struct, frozen=True):
    """
    What one outbox has accepted since the process began, and what became of it:
    ``accepted = delivered + dead + dropped + handed + pending`` at every moment.

    :param appended: made of events.
    :param resumed: left by an earlier process, or accepted by another one.
    :param replayed: dead letters that were put back.
    :param delivered: those that have arrived.
    :param dead: those that became dead letters, counted each time.
    :param dropped: those dropped to make room, or lost.
    :param pending: those that wait, or are in flight.
    :param forgotten: dead letters discarded to make room for newer ones.
    :param handed: those that another process delivers now.
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
        """All that were accepted."""
        return self.appended + self.resumed + self.replayed


class Head(msgspec.Struct, frozen=True):
    """
    What all requests of one webhook have in common.

    :param method: for example ``POST``.
    :param url: absolute.
    :param headers: no ``Content-Length``, ``Host`` or ``webhook-*`` among them.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]


class Request(msgspec.Struct, gc=False):
    """
    One attempt.

    :param head: what its webhook's requests have in common.
    :param headers: this attempt's own: ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``, and a variation's.
    :param body: as it is sent.
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
    What an endpoint answered.

    :param status: the status code.
    :param headers: names and values as they came.
    :param body: its first KiB.
    :param length: how many bytes of the body were read.
    :param complete: whether these are all bytes of the body.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    length: int
    complete: bool
