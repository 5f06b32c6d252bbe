"""
Track the processes that share the partitions of one webhook: each announces itself twice a second.

All members sort their names and take the partitions in turn. This only shares out the work; the leases keep it safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.interfaces import IDelayedCall

from mqhooks.errors import NATSError
from mqhooks.nats.client import NATSClient, Subscription
from mqhooks.nats.message import NATSMessage

ANNOUNCE = 0.5
"""Seconds between two signs of life."""

GONE = 2.0
"""Seconds without a sign of life after which a member is gone."""

PROVEN = 1.0
"""Seconds that a newcomer must have been there before anything is given up to it."""

LISTEN = 0.2
"""Seconds that a newcomer listens for others before it takes anything."""


LONELY = 5.0
"""Seconds until it is reported that nobody delivers."""


class Share(msgspec.Struct, array_like=True, frozen=True):
    """
    An owner's report on a partition.

    :param partition: its number.
    :param pending: number of its unsettled deliveries.
    :param oldest: about when the oldest of them was accepted, in milliseconds since 1970; ``None`` when none is known.
    :param leader: the server that leads its stream; empty while unknown.
    :param replicas: number of servers that have all of it; 0 while unknown.
    """

    partition: int
    pending: int
    oldest: int | None = None
    leader: str = ""
    replicas: int = 0


class _Sign(msgspec.Struct, array_like=True):
    who: str
    asks: bool
    leaves: bool
    full: list[int]
    shares: list[Share] = []
    freed: list[int] = []
    delivers: bool = True
    digest: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Sign).decode


class Members:
    """
    The processes that share a webhook.

    :param reactor: for timers.
    :param client: publishes and subscribes.
    :param subject: where members announce themselves.
    :param me: this process's name.
    :param monotonic: a monotonic clock, in seconds.
    :param full: returns those of our partitions that have no room.
    :param others: called with those of the others that have no room.
    :param shares: returns the reports on our partitions.
    :param freed: called with partitions that another member has just given up.
    :ivar delivers: whether partitions may be ours.
    :ivar digest: identifies the webhook's configuration here.
    """

    def __init__(
        self,
        reactor: Any,
        client: NATSClient,
        subject: str,
        me: str,
        monotonic: Callable[[], float],
        full: Callable[[], list[int]],
        others: Callable[[set[int]], object],
        shares: Callable[[], list[Share]],
        freed: Callable[[list[int]], object],
        *,
        delivers: bool = True,
    ) -> None:
        self._reactor = reactor
        self._client = client
        self._subject = subject
        self._me = me
        self._monotonic = monotonic
        self._full = full
        self._others = others
        self._shares = shares
        self._freed = freed
        self.delivers = delivers
        self.digest = ""
        # When each was first and last heard, and its last sign of life.
        self._heard: dict[str, tuple[float, float, _Sign]] = {}
        self._since = 0.0
        self._retreating = False
        self._subscription: Subscription | None = None
        self._timer: IDelayedCall | None = None

    def start(self, listened: Callable[[], object]) -> None:
        """
        Join the others.

        :param listened: called once we know them.
        """
        self._since = self._monotonic()
        self._subscription = self._client.subscribe(self._subject, self._hear)
        self._say(asks=True)

        def begin() -> None:
            self._timer = self._reactor.callLater(ANNOUNCE, self._announce)
            listened()

        self._timer = self._reactor.callLater(LISTEN, begin)

    def stop(self) -> None:
        """Leave the others."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._subscription is not None:
            self._say(leaves=True)
            self._client.unsubscribe(self._subscription)
            self._subscription = None

    def freed(self, partition: int) -> None:
        """Tell the others that a partition was given up, so that they need not find out."""
        self._say(leaves=self._subscription is None or self._retreating, freed=[partition])

    def retreat(self) -> None:
        """Leave all partitions to the others, if there are any."""
        self._retreating = True

    def stay(self) -> None:
        """Share the partitions again, after :meth:`retreat`."""
        self._retreating = False

    def preferred(self, partition: int) -> bool:
        """Return whether a partition should be ours."""
        now = self._monotonic()
        proven = [
            who
            for who, (first, last, sign) in self._heard.items()
            if sign.delivers and now - last < GONE and (last - first >= PROVEN or first - self._since < GONE)
        ]
        if not self.delivers or (self._retreating and proven):
            return False
        there = sorted([*proven, self._me])
        return there[partition % len(there)] == self._me

    def there(self) -> dict[str, list[Share]]:
        """Return all members, this one included, with the reports on their partitions."""
        now = self._monotonic()
        others = {who: sign.shares for who, (_, last, sign) in self._heard.items() if now - last < GONE}
        return dict(sorted({**others, self._me: self._shares()}.items()))

    @property
    def others(self) -> list[str]:
        """The other members."""
        now = self._monotonic()
        return [who for who, (_, last, _) in self._heard.items() if now - last < GONE]

    def sharing(self, digest: str) -> str | None:
        """
        Find another member that delivers, with this configuration of the webhook.

        :returns: its name; the digest when we have not listened for long enough; ``None`` when there is no such member.
        """
        now = self._monotonic()
        there = [
            who for who, (_, last, sign) in self._heard.items() if sign.delivers and sign.digest == digest and now - last < GONE
        ]
        return there[0] if there else digest if now - self._since < GONE else None

    @property
    def alone(self) -> bool:
        """Whether nobody delivers, as far as we know after listening for long enough."""
        now = self._monotonic()
        return (
            not self.delivers
            and now - self._since > LONELY
            and not any(sign.delivers and now - last < GONE for _, last, sign in self._heard.values())
        )

    def _announce(self) -> None:
        self._timer = self._reactor.callLater(ANNOUNCE, self._announce)
        if not self._retreating:
            self._say()
        self._tell()

    def _say(self, *, asks: bool = False, leaves: bool = False, freed: Sequence[int] = ()) -> None:
        try:
            self._client.publish(
                self._subject,
                _encode(_Sign(self._me, asks, leaves, self._full(), self._shares(), list(freed), self.delivers, self.digest)),
            )
        except NATSError:
            # Without a connection nobody hears us, and nothing can be owned.
            pass

    def _hear(self, message: NATSMessage) -> None:
        try:
            sign = _decode(message.payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if sign.who == self._me:
            return
        if sign.leaves:
            self._heard.pop(sign.who, None)
            self._tell()
        else:
            self._note(sign)
        self._freed(sign.freed)

    def _note(self, sign: _Sign) -> None:
        now = self._monotonic()
        first, last, _ = self._heard.get(sign.who, (now, now, sign))
        self._heard[sign.who] = first if now - last < GONE else now, now, sign
        if sign.asks and not self._retreating:
            self._say()
        self._tell()

    def _tell(self) -> None:
        now = self._monotonic()
        self._heard = {who: heard for who, heard in self._heard.items() if now - heard[1] < 10 * GONE}
        self._others({number for _, last, sign in self._heard.values() if now - last < GONE for number in sign.full})
