"""
The state of all bridges that share outboxes in one JetStream, as this bridge knows it.

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
    A webhook's outbox, across all bridges.

    :param name: the webhook's name.
    :param partitions: the number of partitions.
    :param owned: the partitions that have an owner, by number: the owner's name, and its report.
    """

    name: str
    partitions: int
    owned: dict[int, tuple[str, Share]]

    @property
    def pending(self) -> int:
        """Pending deliveries in all partitions that have an owner."""
        return sum([share.pending for _, share in self.owned.values()])

    @property
    def oldest(self) -> int | None:
        """Time at which the oldest of them was accepted, in milliseconds since 1970."""
        return min([share.oldest for _, share in self.owned.values() if share.oldest is not None], default=None)

    @property
    def unowned(self) -> int:
        """Partitions without an owner that this bridge has heard of."""
        return self.partitions - len(self.owned)

    @property
    def replicas(self) -> int | None:
        """Complete replicas of the partition that has the fewest; ``None`` while that is not known."""
        return min([share.replicas for _, share in self.owned.values() if share.replicas], default=None)


@dataclass(frozen=True, slots=True)
class Cluster:
    """
    All bridges.

    :param me: this bridge's name.
    :param server: the server of NATS that it is connected to.
    :param replicas: servers that should have each partition.
    :param members: the bridges that share an outbox with it, itself included.
    :param webhooks: the outboxes.
    """

    me: str
    server: str | None
    replicas: int
    members: Sequence[str]
    webhooks: Sequence[Shared]

    def of(self, member: str) -> Iterator[Share]:
        """Go through a member's reports on its partitions."""
        return (share for webhook in self.webhooks for who, share in webhook.owned.values() if who == member)

    @property
    def pending(self) -> int:
        """Pending deliveries in all outboxes."""
        return sum([webhook.pending for webhook in self.webhooks])


def look(engine: JetStreamStore, names: Sequence[str]) -> Cluster:
    """
    Put together everything that this bridge knows.

    :param names: the webhooks' names.
    """
    members = {engine.me}
    webhooks = []
    for name in names:
        owned = {}
        for who, shares in engine.outbox(name).there().items():
            members.add(who)
            # While a partition changes hands, two may claim it for a moment.
            owned.update({share.partition: (who, share) for share in shares})
        webhooks.append(Shared(name, engine.settings.partitions, dict(sorted(owned.items()))))
    return Cluster(engine.me, engine.server, engine.settings.replicas, sorted(members), webhooks)
