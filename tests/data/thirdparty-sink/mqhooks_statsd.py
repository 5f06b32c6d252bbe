"""
Counts VerneMQ's events in StatsD: one counter for each hook.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress
from twisted.internet.protocol import DatagramProtocol
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink
from mqhooks.sinks import SinkMaker
from mqhooks.sources.sidecar.events import Event


@implementer(IEventSink)
class StatsDSink(Service):
    """
    Sends one datagram for each batch, which says how often each hook was called: ``mqtt.on_publish:3|c``.

    :param reactor: sends.
    :param host: an IP address.
    :param port: StatsD's UDP port.
    """

    def __init__(self, reactor: Any, host: str, port: int) -> None:
        self.lost = 0
        self._reactor = reactor
        self._address = (host, port)
        self._socket: Any = None

    def startService(self) -> None:
        """Open the socket."""
        super().startService()
        self._socket = self._reactor.listenUDP(0, DatagramProtocol())

    def stopService(self) -> Any:
        """Close the socket."""
        super().stopService()
        socket, self._socket = self._socket, None
        return socket.stopListening()

    def receive(self, events: Sequence[Event]) -> None:
        """Count a batch. What StatsD does with it nobody knows, so it is accepted at once."""
        counts = Counter(event.hook for event in events)
        if not counts:
            return
        datagram = "\n".join(f"mqtt.{hook}:{count}|c" for hook, count in counts.items())
        try:
            self._socket.write(datagram.encode(), self._address)
        except OSError:
            self.lost += len(events)


def make_sink(reactor: object, host: str = "127.0.0.1", port: str = "8125") -> IEventSink:
    """Make the sink of a description: everything in it is a string, and what is wrong is said in one line."""
    if not isIPAddress(host):
        raise ConfigError(f"{host!r} is no IPv4 address; write one like 127.0.0.1", key="host")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{port!r} is no port; give a number from 1 to 65535", key="port")
    return StatsDSink(reactor, host, int(port))


statsd = SinkMaker("statsd", "statsd:host=127.0.0.1:port=8125", make_sink)
