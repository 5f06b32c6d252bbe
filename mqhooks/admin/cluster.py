"""
What all bridges have in common whose outboxes are in one JetStream, as any of them knows it.

Each owner of a partition tells the others twice a second how much of it is pending, so this asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mqhooks.outbox.jetstream.members import Share
from mqhooks.outbox.jetstream.store import JetStreamStore


@dataclass(frozen=True, slots=True)
class Shared:
    """
    A webhook's outbox over all bridges.

    :param name: the webhook's.
    :param partitions: how many there are.
    :param owned: by number, those that have an owner: who it is, and what it tells.
    """

    name: str
    partitions: int
    owned: dict[int, tuple[str, Share]]

    @property
    def pending(self) -> int:
        """How many deliveries are pending in all partitions that have an owner."""
        return sum([share.pending for _, share in self.owned.values()])

    @property
    def oldest(self) -> int | None:
        """When the oldest of them was accepted, in milliseconds since 1970."""
        return min([share.oldest for _, share in self.owned.values() if share.oldest is not None], default=None)

    @property
    def unowned(self) -> int:
        """How many partitions have no owner that this bridge has heard of."""
        return self.partitions - len(self.owned)

    @property
    def replicas(self) -> int | None:
        """How many servers have all of the partition that the fewest have; ``None`` while that is not known."""
        return min([share.replicas for _, share in self.owned.values() if share.replicas], default=None)


@dataclass(frozen=True, slots=True)
class Cluster:
    """
    All bridges.

    :param me: what this one calls itself.
    :param server: the server of NATS that it is connected to.
    :param replicas: how many servers should have each partition.
    :param members: who shares an outbox with it, itself included.
    :param webhooks: the outboxes.
    """

    me: str
    server: str | None
    replicas: int
    members: Sequence[str]
    webhooks: Sequence[Shared]

    def of(self, member: str) -> Iterator[Share]:
        """What a member tells of its partitions."""
        return (share for webhook in self.webhooks for who, share in webhook.owned.values() if who == member)

    @property
    def pending(self) -> int:
        """How many deliveries are pending over all."""
        return sum([webhook.pending for webhook in self.webhooks])


def look(engine: JetStreamStore, names: Sequence[str]) -> Cluster:
    """
    Put together what this bridge knows.

    :param names: of the webhooks.
    """
    members = {engine.me}
    webhooks = []
    for name in names:
        owned = {}
        for who, shares in engine.outbox(name).there().items():
            members.add(who)
            # Two may say so for a moment while a partition changes hands.
            owned.update({share.partition: (who, share) for share in shares})
        webhooks.append(Shared(name, engine.settings.partitions, dict(sorted(owned.items()))))
    return Cluster(engine.me, engine.server, engine.settings.replicas, sorted(members), webhooks)
