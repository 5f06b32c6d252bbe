"""Bridges' outboxes in JetStream, as stores of the test's own process."""

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred

from mqhooks.nats.client import NATSClient
from mqhooks.nats.jetstream import JetStream
from mqhooks.nats.settings import NATSSettings
from mqhooks.outbox.jetstream.store import JetStreamSettings, JetStreamStore
from tests.natscluster import Cluster
from tests.waiting import until


class JetStreamMixin:
    """Starts a server, and stores on it."""

    timeout = 60

    async def begin(self, size=1, **options):
        """Start servers, and ask them directly with ``js``."""
        self.nodes = await Cluster(self, size, **options).start()
        self.client = NATSClient(reactor, NATSSettings(self.nodes.servers))
        self.addCleanup(self.client.close)
        self.client.start()
        await self.client.when_connected()
        self.js = JetStream(self.client)

    def store(self, *names, max_size=8 << 20, dead_max=10, nats=None, **options):
        """Make a store with outboxes of these names and start it; returns it and the first outbox."""
        settings = JetStreamSettings(
            nats or NATSSettings(self.nodes.servers), **{"replicas": 1, "partitions": 1, "synced": True, **options}
        )
        store = JetStreamStore(reactor, settings, max_size=max_size, dead_max=dead_max)
        outboxes = [store.outbox(name) for name in names or ("w",)]
        store.startService()
        self.addCleanup(store.abort)
        return store, outboxes[0]

    async def claim(self, outbox, count):
        """Claim so many."""
        claimed = []
        while len(claimed) < count:
            claimed += await maybeDeferred(outbox.claim, count - len(claimed), 1 << 30)
        return claimed

    async def ready(self, outbox):
        """Wait until an outbox owns everything."""
        await until(lambda: outbox.ready_to_claim)
