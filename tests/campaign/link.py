"""A TCP proxy that stands for a network: it can be slow, hold everything back, or be cut."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol


class _End(Protocol):
    """One of the two connections that a link joins."""

    def __init__(self, link, other=None):
        self.link = link
        self.other = other
        self.waiting = deque()
        if other is not None:
            other.other = self

    def connectionMade(self):
        self.transport.setTcpNoDelay(True)
        self.link.ends.add(self)
        if self.other is None:
            self.link.reactor.connectTCP("127.0.0.1", self.link.target, _Onward(self))
        else:
            self.other.pump()

    def dataReceived(self, data):
        self.waiting.append((self.link.reactor.seconds() + self.link.delay, data))
        self.pump()

    def pump(self):
        """Pass on the data that is due, in order."""
        if self.link.held or self.other is None or not self.other.transport:
            return
        while self.waiting:
            left = self.waiting[0][0] - self.link.reactor.seconds()
            if left > 0:
                self.link.reactor.callLater(left, self.pump)
                return
            self.other.transport.write(self.waiting.popleft()[1])

    def connectionLost(self, reason):
        self.link.ends.discard(self)
        self.waiting.clear()
        if self.other is not None:
            self.other.transport.loseConnection()


class _Onward(ClientFactory):
    noisy = False

    def __init__(self, end):
        self.end = end

    def buildProtocol(self, addr):
        return _End(self.end.link, self.end)

    def clientConnectionFailed(self, connector, reason):
        self.end.transport.abortConnection()


class Link(Factory):
    """
    Listens on its own port, and passes data on to another.

    :param reactor: for everything.
    :param target: the port of 127.0.0.1 that it leads to.
    :ivar delay: seconds that data takes, in each direction.
    :ivar held: whether data is held back, to be passed on later, as TCP does after an interruption.
    :ivar broken: whether it is cut: open connections were aborted, and new ones are refused.
    """

    noisy = False

    def __init__(self, reactor, target):
        self.reactor = reactor
        self.target = target
        self.delay = 0.0
        self.held = self.broken = False
        self.ends = set()
        self._port = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.number = self._port.getHost().port

    def buildProtocol(self, addr):
        return None if self.broken else _End(self)

    def cut(self):
        """Abort all connections, and refuse new ones."""
        self.broken = True
        for end in list(self.ends):
            end.transport.abortConnection()

    def hold(self):
        """Let nothing through."""
        self.held = True

    def slow(self, delay):
        """Delay everything."""
        self.delay = delay

    def mend(self):
        """Let everything through again."""
        self.delay = 0.0
        self.held = self.broken = False
        for end in list(self.ends):
            end.pump()

    async def close(self):
        """Stop listening, and abort all connections."""
        await maybeDeferred(self._port.stopListening)
        self.cut()
