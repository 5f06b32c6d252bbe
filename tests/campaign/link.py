"""A TCP proxy that stands for a network: it can be slow, hold everything back, or be cut."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import ClientFactory, Factory, Protocol


class _End(Protocol):
    """
    One of the two connections that a link joins.

    :ivar waiting: what is on its way from here to the other one, and when it is due: data, or ``None`` for the end.
    """

    def __init__(self, link, other=None):
        self.link = link
        self.other = other
        self.waiting = deque()
        self._timer = None
        if other is not None:
            other.other = self

    def connectionMade(self):
        self.transport.setTcpNoDelay(True)
        self.link.ends.add(self)
        if self.other is None:
            self.link.reactor.connectTCP("127.0.0.1", self.link.target, _Onward(self))
        elif self.other in self.link.ends:
            self.other.pump()
        else:
            self.drop()

    def dataReceived(self, data):
        self._put(data)

    def connectionLost(self, reason):
        if self not in self.link.ends:
            return
        if not reason.check(ConnectionDone):
            # A reset discards what was sent before.
            self.waiting.clear()
        self._put(None)

    def _put(self, data):
        self.waiting.append((self.link.reactor.seconds() + self.link.delay, data))
        self.pump()

    def pump(self):
        """Pass on what is due, in order."""
        self._stop_timer()
        if self.link.held or self.other is None or not self.other.transport:
            return
        while self.waiting:
            left = self.waiting[0][0] - self.link.reactor.seconds()
            if left > 0:
                self._timer = self.link.reactor.callLater(left, self.pump)
                return
            data = self.waiting.popleft()[1]
            if data is None:
                self.link.ends.discard(self)
                self.other.transport.loseConnection()
            else:
                self.other.transport.write(data)

    def drop(self):
        """Abort the connection, and pass nothing more on."""
        self.link.ends.discard(self)
        self._stop_timer()
        self.waiting.clear()
        self.transport.abortConnection()

    def _stop_timer(self):
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class _Onward(ClientFactory):
    noisy = False

    def __init__(self, end):
        self.end = end

    def buildProtocol(self, addr):
        return _End(self.end.link, self.end)

    def clientConnectionFailed(self, connector, reason):
        self.end.drop()


class Link(Factory):
    """
    Listens on its own port, and passes data on to another.

    :param reactor: for everything.
    :param target: the port of 127.0.0.1 that it leads to.
    :ivar delay: seconds that data takes, in each direction.
    :ivar held: whether data is held back, to be passed on later, as TCP does after an interruption. A connection's end comes
        after its data.
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
            end.drop()

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
