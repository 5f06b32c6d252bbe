"""An endpoint that records requests and answers, and whose behaviour can be changed at any moment."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random

from twisted.internet.defer import maybeDeferred

from tests.endpoints import Connection, Endpoint

ANSWER = b"HTTP/1.1 200 Whatever\r\nContent-Length: 5\r\n\r\nhello"
HEAD = ANSWER.index(b"hello")


@dataclass(slots=True, eq=False)
class Arrival:
    """
    One request.

    :param run: number of the bridge's process that sent it, from 0.
    :param life: number of the producer's connection that the event was sent over.
    :param number: number of the event on that connection, from 0.
    :param sequence: number of the event among its client's, from 1.
    :param ended: when it was answered, or broken off by either side; ``None`` while it is in flight.
    :param status: the answer's status; 0 without an answer, or without a complete head.
    :param whole: whether the complete answer was sent.
    """

    run: int
    webhook: str
    id: str
    client: str
    life: int
    number: int
    sequence: int
    body: bytes
    arrived: float
    ended: float | None = None
    status: int = 0
    whole: bool = False
    retry_after: float = 0.0
    connection: Connection | None = field(default=None, repr=False)

    @property
    def settled(self):
        """Whether the answer was final: a success or a refusal."""
        return self.whole and (200 <= self.status < 300 or self.status == 410)


class Recorder:
    """
    Listens on one port, and records arrivals.

    :param reactor: listens and tells the time.
    :param number: the port.
    :ivar behave: answers an arrival.
    :ivar run: the ``run`` of arrivals over connections made from now on.
    """

    def __init__(self, reactor, number):
        self._reactor = reactor
        self._endpoint = Endpoint(self._arrived)
        self._endpoint.on_connect = self._connected
        self._listening = None
        self.number = number
        self.arrivals = []
        self.run = 0
        self.behave = self.accept

    @property
    def connections(self):
        """The number of open connections."""
        return self._endpoint.open

    def open(self):
        """Listen."""
        self._listening = self._reactor.listenTCP(self.number, self._endpoint, interface="127.0.0.1")

    async def close(self):
        """Refuse connections, and break off those that wait for an answer. Answers already given still go out."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await maybeDeferred(listening.stopListening)
        connections, self._endpoint.connections = self._endpoint.connections, []
        for connection in connections:
            if connection.arrival is None:
                connection.transport.loseConnection()
            else:
                connection.transport.abortConnection()
        for connection in connections:
            await connection.closed
        self._endpoint.requests.clear()

    def _connected(self, connection):
        connection.run = self.run
        connection.arrival = None
        connection.closed.addCallback(lambda _: self._end(connection.arrival) if connection.arrival else None)

    def _arrived(self, request):
        self._endpoint.requests.clear()
        body = json.loads(request.body)
        event = json.loads(body["payload"])
        arrival = Arrival(
            run=request.connection.run,
            webhook=request.path.strip("/"),
            id=request.header("webhook-id"),
            client=body["from_client_id"],
            life=event["life"],
            number=event["number"],
            sequence=event["sequence"],
            body=request.body,
            arrived=self._reactor.seconds(),
            connection=request.connection,
        )
        request.connection.arrival = arrival
        self.arrivals.append(arrival)
        self.behave(arrival)

    def _end(self, arrival, status=None, *, whole=False):
        if arrival.ended is None:
            arrival.ended = self._reactor.seconds()
            arrival.whole = whole
            if status is not None:
                arrival.status = status
            arrival.connection.arrival = arrival.connection = None

    # Behaviours.

    def accept(self, arrival):
        """Answer 200."""
        self.answer(arrival, 200)

    def answer(self, arrival, status, *headers):
        """Answer at once."""
        if arrival.ended is None:
            arrival.connection.reply(status, headers=headers)
            self._end(arrival, status, whole=True)

    def after(self, seconds):
        """Make a behaviour: answer 200, later."""
        return lambda arrival: self._reactor.callLater(seconds, self.answer, arrival, 200)

    def shares(self, random: Random, shares):
        """Make a behaviour: answer shares of the requests with other statuses than 200."""

        def behave(arrival):
            luck = random.random()
            for status, share in shares.items():
                luck -= share
                if luck < 0:
                    self.answer(arrival, status)
                    return
            self.answer(arrival, 200)

        return behave

    def busy(self, random: Random, share, seconds):
        """Make a behaviour: answer a share of the requests with 429 and a ``Retry-After``."""

        def behave(arrival):
            if random.random() < share:
                arrival.retry_after = float(seconds)
                self.answer(arrival, 429, ("Retry-After", str(seconds)))
            else:
                self.answer(arrival, 200)

        return behave

    def reset(self, *, head):
        """Make a behaviour: break the connection off within the answer's head, or after it."""

        def behave(arrival):
            arrival.connection.send(ANSWER[:HEAD] if head else ANSWER[: HEAD // 2])
            arrival.status = 200 if head else 0
            # Later, because a reset may overtake bytes sent before it.
            self._reactor.callLater(0.02, abort, arrival)

        def abort(arrival):
            if arrival.ended is None:
                arrival.connection.transport.abortConnection()

        return behave

    def silence(self, arrival):
        """Never answer."""

    def garbage(self, arrival):
        """Answer with something that is not HTTP."""
        arrival.connection.send(b"\x16\x03\x01 220 mail.example.org ESMTP\r\n\r\n\r\n")

    def drip(self, interval):
        """Make a behaviour: answer 200, byte by byte."""

        def behave(arrival, sent=0):
            if arrival.ended is not None:
                return
            if sent < len(ANSWER):
                arrival.connection.send(ANSWER[sent : sent + 1])
                if sent + 1 == HEAD:
                    arrival.status = 200
                self._reactor.callLater(interval, behave, arrival, sent + 1)
            else:
                self._end(arrival, 200, whole=True)

        return behave
