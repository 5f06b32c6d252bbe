"""Looking names up: one at a time for each transport, with a limit, in nobody's way."""

from threading import Event

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from mqhooks.delivery import Head, Request
from mqhooks.errors import ConnectFailed
from mqhooks.http.lookups import endpoint
from mqhooks.http.pooled import PooledTransport
from mqhooks.http.treqtransport import TreqTransport
from mqhooks.support.names import NameLookup, look_up
from tests.endpoints import Endpoint
from tests.waiting import until


class Receiver:
    def __init__(self):
        self.addresses = []
        self.complete = Deferred()

    def resolutionBegan(self, resolution):
        self.resolution = resolution

    def addressResolved(self, address):
        self.addresses.append((address.host, address.port))

    def resolutionComplete(self):
        self.complete.callback(self.addresses)


class LookupTests(TestCase):
    timeout = 120

    def lookup(self, by, limit=5.0):
        return NameLookup(reactor, "h_1", limit, by)

    def ask(self, lookup):
        receiver = Receiver()
        lookup.resolveHostName(receiver, "endpoint.invalid", 80)
        return receiver

    async def test_all_who_wait_share_one_lookup(self):
        asked, gate = [], Event()

        def by(host):
            asked.append(host)
            gate.wait()
            return ["127.0.0.1", "::1"]

        lookup = self.lookup(by)
        verifyObject(IHostnameResolver, lookup)
        receivers = [self.ask(lookup) for _ in range(32)]
        gate.set()
        found = await gatherResults([receiver.complete for receiver in receivers])
        self.assertEqual(found, [[("127.0.0.1", 80), ("::1", 80)]] * 32)
        self.assertEqual(asked, ["h_1"])
        # Fresh enough to be used once more.
        self.assertEqual(await self.ask(lookup).complete, found[0])
        self.assertEqual(asked, ["h_1"])

    async def test_unknown_name(self):
        asked = []

        def by(host):
            asked.append(host)
            raise OSError("no such name")

        lookup = self.lookup(by)
        for _ in range(2):
            self.assertEqual(await self.ask(lookup).complete, [])
        self.assertEqual(len(asked), 2)

    async def test_silent_name_server_holds_nobody_else_up(self):
        asked, gate = [], Event()
        self.addCleanup(gate.set)

        def by(host):
            asked.append(host)
            gate.wait()
            return []

        lookup = self.lookup(by, limit=0.1)
        receivers = [self.ask(lookup) for _ in range(32)]
        await until(lambda: asked)
        # The reactor's threads are free.
        await gatherResults([deferToThread(int) for _ in range(20)])
        self.assertEqual(await gatherResults([receiver.complete for receiver in receivers]), [[]] * 32)
        self.assertEqual(await self.ask(lookup).complete, [])
        self.assertEqual(asked, ["h_1"])

    async def test_cancelled(self):
        lookup = self.lookup(lambda host: ["127.0.0.1"])
        first, second = self.ask(lookup), self.ask(lookup)
        first.resolution.cancel()
        self.assertEqual(await second.complete, [("127.0.0.1", 80)])
        self.assertFalse(first.complete.called)

    def test_the_system_knows_localhost(self):
        self.assertIn("127.0.0.1", look_up("localhost"))


class TransportTests(TestCase):
    timeout = 120

    async def test_name_with_an_underscore(self):
        served = Endpoint()
        url = served.listen(self, reactor)
        port = served.port.getHost().port
        asked = []

        def by(host):
            asked.append(host)
            return ["127.0.0.1"]

        made = endpoint(reactor, "my_consumer", port, 5.0, by)
        transport = PooledTransport(reactor, url.replace("127.0.0.1", "my_consumer"), endpoint=made)
        self.addCleanup(transport.close)
        head = Head("POST", url.replace("127.0.0.1", "my_consumer"), ())
        self.assertEqual((await transport.send(Request(head, [], b"{}"))).status, 200)
        self.assertEqual(asked, ["my_consumer"])
        self.assertEqual(served.requests[0].header("host"), f"my_consumer:{port}")

    async def test_unknown_name_is_told_in_words(self):
        url = "http://no_such_name.invalid/hook"
        for make in (PooledTransport, TreqTransport):
            # The system may ask a name server that takes its time.
            transport = make(reactor, url, timeout=60.0)
            error = await self.assertFailure(transport.send(Request(Head("POST", url, ()), [], b"{}")), ConnectFailed)
            self.assertIn("no address was found for no_such_name.invalid", str(error))
            await transport.close()

    async def test_silent_name_server_is_no_connection(self):
        gate = Event()
        self.addCleanup(gate.set)

        def by(host):
            gate.wait()
            return []

        url = "http://silent/hook"
        transport = PooledTransport(reactor, url, timeout=0.3, endpoint=endpoint(reactor, "silent", 80, 0.3, by))
        self.addCleanup(transport.close)
        sent = [transport.send(Request(Head("POST", url, ()), [], b"{}")) for _ in range(40)]
        for answered in sent:
            await self.assertFailure(answered, ConnectFailed)
