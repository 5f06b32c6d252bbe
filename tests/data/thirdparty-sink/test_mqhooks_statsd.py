"""
The StatsD sink, against a real socket.
"""

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from mqhooks.errors import ConfigError
from mqhooks.sinks import sinkFromString
from mqhooks.testing import make_event, verify_sink


class StatsD(DatagramProtocol):
    """Keeps the first datagram."""

    def __init__(self):
        self.first = Deferred()

    def datagramReceived(self, datagram, address):
        if not self.first.called:
            self.first.callback(datagram)


class StatsDSinkTests(TestCase):
    def setUp(self):
        self.statsd = StatsD()
        port = reactor.listenUDP(0, self.statsd, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.sink = sinkFromString(reactor, f"statsd:host=127.0.0.1:port={port.getHost().port}")
        self.sink.startService()
        self.addCleanup(self.sink.stopService)

    def test_contract(self):
        return verify_sink(self.sink)

    async def test_counts_hooks(self):
        self.sink.receive([make_event("on_publish"), make_event("on_deliver"), make_event("on_publish")])
        self.assertEqual(await self.statsd.first, b"mqtt.on_publish:2|c\nmqtt.on_deliver:1|c")

    def test_mistakes(self):
        for description in ("statsd:host=localhost", "statsd:port=x", "statsd:prot=8125"):
            self.assertRaises(ConfigError, sinkFromString, reactor, description)
