"""
The StatsD sink, against a real socket.
"""

from typing import Any

from mqhooks_statsd import StatsDSink, make_sink
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from mqhooks.errors import ConfigError
from mqhooks.sinks import sinkFromString
from mqhooks.testing import make_event, verify_sink

reactor: Any = installed_reactor


class StatsD(DatagramProtocol):
    """Keeps the first datagram."""

    def __init__(self) -> None:
        self.first: Deferred[bytes] = Deferred()

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        if not self.first.called:
            self.first.callback(datagram)


class StatsDSinkTests(TestCase):
    def setUp(self) -> None:
        self.statsd = StatsD()
        port = reactor.listenUDP(0, self.statsd, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.sink = make_sink(reactor, port=str(port.getHost().port))
        self.sink.startService()
        self.addCleanup(self.sink.stopService)

    def test_contract(self) -> Deferred[None]:
        return verify_sink(self.sink)

    async def test_counts_hooks(self) -> None:
        self.sink.receive([make_event("on_publish"), make_event("on_deliver"), make_event("on_publish")])
        self.assertEqual(await self.statsd.first, b"mqtt.on_publish:2|c\nmqtt.on_deliver:1|c")

    def test_description(self) -> None:
        self.assertIsInstance(sinkFromString(reactor, "statsd:host=127.0.0.1:port=8125"), StatsDSink)

    def test_mistakes(self) -> None:
        for description in ("statsd:host=localhost", "statsd:port=x", "statsd:prot=8125"):
            self.assertRaises(ConfigError, sinkFromString, reactor, description)
