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
from mqhooks.events import Event
from mqhooks.interfaces import IEventSink
from mqhooks.sinks import SinkMaker


@implementer(IEventSink)
class StatsDSink(Service):
    """
    Sends one datagram for each batch, with the count of each hook: ``mqtt.on_publish:3|c``.

    :param reactor: opens the socket.
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
        """Count a batch. StatsD acknowledges nothing, so it is accepted at once."""
        counts = Counter(event.hook for event in events)
        if not counts:
            return
        datagram = "\n".join(f"mqtt.{hook}:{count}|c" for hook, count in counts.items())
        try:
            self._socket.write(datagram.encode(), self._address)
        except OSError:
            self.lost += len(events)


def make_sink(reactor: object, host: str = "127.0.0.1", port: str = "8125") -> StatsDSink:
    """Make the sink of a description: all arguments are strings, and a mistake is one line."""
    if not isIPAddress(host):
        raise ConfigError(f"{host!r} is not an IPv4 address; write one like 127.0.0.1", key="host")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{port!r} is not a port; give a number from 1 to 65535", key="port")
    return StatsDSink(reactor, host, int(port))


statsd = SinkMaker("statsd", "statsd:host=127.0.0.1:port=8125", make_sink)
