"""A NATS server whose words the test decides, over a real connection."""

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

INFO = b'INFO {"server_id":"X","server_name":"fake","version":"2.15.1","proto":1,"headers":true,"max_payload":1048576%b}\r\n'
WELL = INFO % b""


class Fake(Factory):
    """
    Listens on loopback until the test case ends.

    :param case: the test case.
    :param greeting: the first bytes sent to each client.
    :param answers: the answer to each line, by its verb; by default a pong to each ping.
    :ivar received: the bytes that all clients have sent.
    """

    noisy = False

    def __init__(self, case, greeting=WELL, **answers):
        self.greeting = greeting
        self.answers = {"PING": b"PONG\r\n", **answers}
        self.received = b""
        self.connections = []
        self.port = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.number = self.port.getHost().port
        case.addCleanup(self.end)

    def buildProtocol(self, address):
        return Line(self)

    async def end(self):
        await self.port.stopListening()
        for connection in self.connections:
            connection.transport.abortConnection()


class Line(Protocol):
    def __init__(self, fake):
        self.fake = fake
        self.rest = b""

    def connectionMade(self):
        self.fake.connections.append(self)
        self.transport.write(self.fake.greeting)

    def dataReceived(self, data):
        self.fake.received += data
        *lines, self.rest = (self.rest + data).split(b"\r\n")
        for line in lines:
            self.transport.write(self.fake.answers.get(line.partition(b" ")[0].decode("latin-1"), b""))
