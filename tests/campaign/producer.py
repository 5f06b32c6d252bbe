"""A stand-in for VerneMQ whose events can be told apart."""

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
    Sends events over several connections, and opens each anew when it breaks. A client's events go over the same connection.

    :param reactor: connects and paces.
    :param port: of 127.0.0.1.
    :param connections: how many.
    :param clients: how many clients each connection has.
    :param rate: how many events are sent in a second, over all of them.
    :param size: how many bytes of padding a payload has.
    :param name: names a client, by the number of its connection and its own.
    :param first: the number of its first connection, where several producers send to one endpoint.
    :ivar sent: how many events each connection that was ever made was given.
    :ivar open: which of these connections are open.
    :ivar whole: which of these connections were closed in order, once all was written.
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
        """How many events were written, arrived or not."""
        return sum(self.sent.values())

    @property
    def next_life(self):
        """The number of the connection that is made next."""
        return self.first + len(self.sent)

    def stop(self):
        """Send nothing more and close the connections; fires when they are closed."""
        self.stopped = True
        return self._closed

    def ended(self):
        """Note that a connection will not be opened again."""
        self._open -= 1
        if not self._open:
            self._closed.callback(None)


class _Link(ClientFactory):
    """One of the connections and those that follow it."""

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
        # Neighbours in the stream are of different clients, and of the same one now and then.
        client = self.link.names[number * 7 // 9 % len(self.link.names)]
        sequence = producer.sequences[client] = producer.sequences.get(client, 0) + 1
        payload = json.dumps({"life": self.life, "number": number, "sequence": sequence, "padding": producer.padding})
        return self.encode(Publish(timestamp=time_ns(), client_id=client, topic="campaign", payload=payload.encode()))

    def encode(self, message):
        return frame(message)


class Poster(Producer):
    """
    Calls webhooks instead: on each connection one at a time, the next when the one before is answered.

    :ivar answered: which events were answered 200: a connection and a number.
    :ivar refused: what else was answered.
    """

    webhooks = True

    def __init__(self, *args, **settings):
        self.answered = set()
        self.refused = []
        super().__init__(*args, **settings)


class _Poster(_Line):
    """One connection that asks and waits for the answer."""

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
