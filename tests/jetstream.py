"""JetStream outboxes of several bridges, as stores in the test's own process."""

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol

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

    def store(self, *names, max_size=8 << 20, dead_max=10, nats=None, file=None, **options):
        """Make a store with outboxes of these names, start it, and return it and the first outbox."""
        settings = JetStreamSettings(
            nats or NATSSettings(self.nodes.servers), **{"replicas": 1, "partitions": 1, "synced": True, **options}
        )
        store = JetStreamStore(reactor, settings, max_size=max_size, dead_max=dead_max, spill=file)
        outboxes = [store.outbox(name) for name in names or ("w",)]
        store.startService()
        self.addCleanup(store.abort)
        return store, outboxes[0]

    async def claim(self, outbox, count):
        """Claim ``count`` deliveries."""
        claimed = []
        while len(claimed) < count:
            claimed += await maybeDeferred(outbox.claim, count - len(claimed), 1 << 30)
        return claimed

    async def ready(self, outbox):
        """Wait until an outbox owns all partitions."""
        await until(lambda: outbox.ready_to_claim)


class Link(Factory):
    """
    A proxy in front of a server, which can be cut.

    :param port: the server's port.
    :ivar mute: whether bytes from the server are lost.
    :ivar cut: whether all bytes are lost.
    """

    noisy = False

    def __init__(self, case, port):
        self.server = HostnameEndpoint(reactor, "127.0.0.1", port)
        self.mute = self.cut = False
        self.ends = []
        self.listening = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port = self.listening.getHost().port
        case.addCleanup(self.end)

    def buildProtocol(self, address):
        return End(self)

    def break_off(self):
        """Cut the link, and end the connections through it."""
        self.cut = True
        for end in self.ends:
            end.transport.abortConnection()

    async def end(self):
        self.break_off()
        await self.listening.stopListening()


class End(Protocol):
    """One end of a connection through a link; the other one is its peer."""

    def __init__(self, link, peer=None):
        self.link = link
        self.peer = peer
        self.of_server = peer is not None
        self.kept = b""

    def connectionMade(self):
        self.link.ends.append(self)
        if self.link.cut:
            self.transport.abortConnection()
        elif self.peer is None:
            # This is the client's end.
            connecting = connectProtocol(self.link.server, End(self.link, self))
            connecting.addCallbacks(self.reached, lambda _: self.transport.abortConnection())

    def reached(self, peer):
        self.peer = peer
        peer.transport.write(self.kept)

    def dataReceived(self, data):
        if self.peer is None:
            self.kept += data
        elif not (self.link.cut or (self.link.mute and self.of_server)):
            self.peer.transport.write(data)

    def connectionLost(self, reason):
        self.link.ends.remove(self)
        if self.peer is not None:
            self.peer.transport.loseConnection()
