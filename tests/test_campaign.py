"""What the campaign is made of: the links that stand for a network, and the bridges that it stops and reloads."""

from pathlib import Path
from socket import create_connection
from types import SimpleNamespace

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from tests.campaign.cluster import FAULTS, RELOADED, Member
from tests.campaign.link import Link
from tests.waiting import until


class Peer(Protocol):
    """Keeps what it reads, and how it ended."""

    def __init__(self):
        self.read = b""
        self.ended = None

    def dataReceived(self, data):
        self.read += data

    def connectionLost(self, reason):
        self.ended = reason


class LinkTests(TestCase):
    """A connection's end takes the same way as its data."""

    timeout = 60

    def listen(self):
        """Make a link to a new port."""
        self.accepted = []
        factory = Factory()
        factory.buildProtocol = lambda _: self.accepted.append(Peer()) or self.accepted[-1]
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.link = Link(reactor, port.getHost().port)
        self.addCleanup(self.link.close)

    async def join(self):
        """Have a link join two peers."""
        self.listen()
        self.near = Peer()
        factory = ClientFactory()
        factory.noisy = False
        factory.buildProtocol = lambda _: self.near
        reactor.connectTCP("127.0.0.1", self.link.number, factory)
        await until(lambda: self.near.connected and len(self.link.ends) == 2 and self.accepted)
        (self.far,) = self.accepted
        self.addCleanup(self.end)

    async def end(self):
        for peer in (self.near, self.far):
            peer.transport.abortConnection()
        await until(lambda: self.near.ended and self.far.ended)

    def leave(self, peer):
        peer.transport.write(b"goodbye")
        peer.transport.loseConnection()

    async def test_what_is_held_back_comes_before_the_end(self):
        for close in ("near", "far"):
            await self.join()
            closer, other = (self.near, self.far) if close == "near" else (self.far, self.near)
            self.link.hold()
            self.leave(closer)
            await until(lambda: closer.ended)  # noqa: B023
            self.assertEqual((other.read, other.ended), (b"", None))
            self.link.mend()
            await until(lambda: other.ended)  # noqa: B023
            self.assertEqual(other.read, b"goodbye")
            self.assertIsNotNone(other.ended.check(ConnectionDone))
            self.assertEqual(self.link.ends, set())

    async def test_on_a_slow_link_the_end_is_as_slow_as_the_data(self):
        await self.join()
        self.link.slow(0.1)
        self.leave(self.near)
        await until(lambda: self.far.ended)
        self.assertEqual(self.far.read, b"goodbye")

    async def test_an_end_before_the_other_side_is_there(self):
        self.listen()
        with create_connection(("127.0.0.1", self.link.number)) as near:
            near.sendall(b"goodbye")
        await until(lambda: self.accepted and self.accepted[0].ended)
        self.assertEqual((self.accepted[0].read, self.link.ends), (b"goodbye", set()))

    async def test_a_reset_drops_what_is_held_back(self):
        await self.join()
        self.link.hold()
        self.near.transport.write(b"lost")
        await until(lambda: any(end.waiting for end in self.link.ends))
        self.near.transport.abortConnection()
        await until(lambda: any(end.waiting and end.waiting[0][1] is None for end in self.link.ends))
        self.link.mend()
        await until(lambda: self.far.ended)
        self.assertEqual(self.far.read, b"")

    async def test_a_cut_passes_nothing_on_and_leaves_nothing(self):
        await self.join()
        self.link.slow(60.0)
        self.near.transport.write(b"lost")
        await until(lambda: any(end.waiting for end in self.link.ends))
        self.link.cut()
        await until(lambda: self.near.ended and self.far.ended)
        self.assertEqual((self.far.read, self.link.ends), (b"", set()))


class Bridge:
    """Stands for a process."""

    def __init__(self, heard):
        self.stdout = self.stderr = ""
        self.ended = Deferred()
        self.process = SimpleNamespace(signalProcess=lambda signal: heard(self, signal.name.removeprefix("SIG")))


class MemberTests(TestCase):
    """A bridge of the cluster, whose process is not there."""

    def setUp(self):
        self.broken, self.heard = [], []
        self.nodes = SimpleNamespace(clients=[])
        self.endpoint = SimpleNamespace(number=1)
        self.reactor = Clock()
        self.home = Path(self.mktemp())
        self.home.mkdir()

    async def until(self, condition, what, seconds=30.0):
        if not condition():
            self.broken.append(what)
        return bool(condition())

    def member(self, heard):
        member = Member(self, 0, "both")
        member.process = Bridge(heard)
        return member

    async def test_the_log_is_kept_once(self):
        def kill(bridge, signal):
            bridge.stdout += f"{signal}\n"
            if signal == "KILL":
                bridge.ended.callback(None)

        member = self.member(kill)
        await member.terminate()
        self.assertEqual((member.log, self.broken), ("TERM\nKILL\n", ["the end in order"]))

        def stop(bridge, signal):
            bridge.stdout += f"{signal}: Server Shut Down.\n"
            bridge.ended.callback(None)

        member = self.member(stop)
        await member.terminate()
        self.assertEqual((member.log, len(self.broken)), ("TERM: Server Shut Down.\n", 1))

    async def test_each_reload_finds_another_configuration(self):
        seen = []

        def reload(bridge, signal):
            self.assertEqual(signal, "HUP")
            text = member.config.read_text(encoding="utf-8")
            if text != seen[-1]:
                bridge.stdout += f"{RELOADED}\n"
            seen.append(text)

        member = self.member(reload)
        seen.append(member.config.read_text(encoding="utf-8"))
        self.members = [member]
        fault, _ = FAULTS["configurations reloaded"]
        for _ in range(3):
            await fault(self)
        self.assertEqual((self.broken, len(seen), len(set(seen))), ([], 4, 2))
