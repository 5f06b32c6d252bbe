"""A stand-in for VerneMQ that numbers its events, so that each can be recognized."""

from __future__ import annotations

import json
from base64 import b64encode
from time import time_ns

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.task import LoopingCall

from mqhooks.events import Publish
from mqhooks.tools.simulator import frame
from tests.vernemq import NEXT, request

TICK = 0.01


class Producer:
    """
    Sends events over several connections, and reopens each that breaks. A client's events go over the same connection.

    :param reactor: connects and paces.
    :param port: of 127.0.0.1.
    :param connections: number of connections.
    :param clients: clients of each connection.
    :param rate: events a second, over all connections.
    :param size: bytes of padding in a payload.
    :param name: returns a client's name for the number of its connection and its own.
    :param first: the number of its first connection, if several producers send to one endpoint.
    :ivar sent: events written to each connection, by the number of every connection ever made.
    :ivar open: the connections that are open.
    :ivar whole: the connections that were closed in order, after everything was written.
    """

    webhooks = False

    def __init__(self, reactor, port, *, connections=4, clients=10, rate=1000, size=20, name="client-{}-{}".format, first=0):
        self.reactor = reactor
        self.port = port
        self.clients = clients
        self.name = name
        self.first = first
        self.each = rate * TICK / connections
        self.padding = "x" * size
        self.sent = {}
        self.open = set()
        self.whole = set()
        self.stopped = False
        self.sequences = {}
        self._open = connections
        self._closed = Deferred()
        for index in range(connections):
            _Link(self, index).connect()

    @property
    def total(self):
        """The number of events written, arrived or not."""
        return sum(self.sent.values())

    @property
    def next_life(self):
        """The number of the next connection."""
        return self.first + len(self.sent)

    def stop(self):
        """Send nothing more, close the connections, and return a ``Deferred`` that fires when they are closed."""
        self.stopped = True
        return self._closed

    def ended(self):
        """Note that a connection will not be opened again."""
        self._open -= 1
        if not self._open:
            self._closed.callback(None)


class _Link(ClientFactory):
    """Makes one of the connections, and those that replace it."""

    noisy = False

    def __init__(self, producer, index):
        self.producer = producer
        self.index = index
        self.names = [producer.name(index, number) for number in range(producer.clients)]

    def connect(self):
        self.producer.reactor.connectTCP("127.0.0.1", self.producer.port, self)

    def buildProtocol(self, addr):
        life = self.producer.next_life
        self.producer.sent[life] = 0
        line = _Poster if self.producer.webhooks else _Line
        return line(self.producer, self, life)

    def clientConnectionFailed(self, connector, reason):
        self.again()

    def clientConnectionLost(self, connector, reason):
        self.again()

    def again(self):
        if self.producer.stopped:
            self.producer.ended()
        else:
            self.producer.reactor.callLater(0.02, self.connect)


class _Line(Protocol):
    """One connection."""

    def __init__(self, producer, link, life):
        self.producer = producer
        self.link = link
        self.life = life
        self.credit = 0.0
        self.paused = False
        self.loop = LoopingCall(self.turn)
        self.loop.clock = producer.reactor

    def connectionMade(self):
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self.producer.open.add(self.life)
        self.loop.start(TICK)

    def connectionLost(self, reason):
        self.producer.open.discard(self.life)
        if self.loop.running:
            self.loop.stop()

    def pauseProducing(self):
        self.paused = True

    def resumeProducing(self):
        self.paused = False

    def stopProducing(self):
        self.paused = True

    def turn(self):
        producer = self.producer
        if producer.stopped:
            producer.whole.add(self.life)
            self.loop.stop()
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            return
        if self.paused:
            return
        self.credit += producer.each
        while self.credit >= 1:
            self.credit -= 1
            self.transport.write(self.next())

    def next(self):
        producer = self.producer
        number = producer.sent[self.life]
        producer.sent[self.life] += 1
        # Successive events usually belong to different clients, and now and then to the same one.
        client = self.link.names[number * 7 // 9 % len(self.link.names)]
        sequence = producer.sequences[client] = producer.sequences.get(client, 0) + 1
        payload = json.dumps({"life": self.life, "number": number, "sequence": sequence, "padding": producer.padding})
        return self.encode(Publish(timestamp=time_ns(), client_id=client, topic="campaign", payload=payload.encode()))

    def encode(self, message):
        return frame(message)


class Poster(Producer):
    """
    Posts to webhooks instead. Each connection sends a request only after the answer to the one before.

    :ivar answered: connection and number of each event that was answered with 200.
    :ivar refused: all other answers.
    """

    webhooks = True

    def __init__(self, *args, **settings):
        self.answered = set()
        self.refused = []
        super().__init__(*args, **settings)


class _Poster(_Line):
    """One connection, which posts an event and waits for the answer."""

    waiting = False
    came = b""

    def turn(self):
        if self.waiting:
            return
        if self.producer.stopped or self.paused:
            super().turn()
            return
        self.credit = min(self.credit + self.producer.each, 10.0)
        self.ask()

    def ask(self):
        if self.credit >= 1 and not self.producer.stopped:
            self.credit -= 1
            self.waiting = True
            self.transport.write(self.next())

    def encode(self, message):
        return request(client_id=message.client_id, topic=message.topic, payload=b64encode(message.payload).decode())

    def dataReceived(self, data):
        self.came += data
        if not self.came.endswith(b"}"):
            return
        answer, self.came = self.came, b""
        self.waiting = False
        if answer == NEXT:
            self.producer.answered.add((self.life, self.producer.sent[self.life] - 1))
        else:
            self.producer.refused.append(answer)
        self.ask()
