"""
A webhook endpoint whose answers the test decides, byte by byte if necessary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol

from tests.ports import kept_port


@dataclass
class Request:
    """A request that arrived."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: Connection = field(repr=False)

    def header(self, name):
        """Return the value of a header that may occur once; ``None`` without it."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, values
        return values[0] if values else None


class Connection(Protocol):
    """Parses requests with a Content-Length, or without a body."""

    def connectionMade(self):
        self.buffer = b""
        self.closed = Deferred()
        self.factory.connections.append(self)
        self.factory.open += 1
        self.factory.most_open = max(self.factory.most_open, self.factory.open)
        self.factory.on_connect(self)

    def connectionLost(self, reason):
        self.factory.open -= 1
        self.closed.callback(None)

    def dataReceived(self, data):
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("utf-8").split("\r\n")
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            method, path, _ = first.split(" ")
            request = Request(method, path, headers, rest[:length], self)
            self.factory.requests.append(request)
            self.factory.answer(request)

    def send(self, data):
        self.transport.write(data)

    def reply(self, status=200, body=b"", headers=()):
        lines = [
            f"HTTP/1.1 {status} Whatever",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)


class Endpoint(Factory):
    """
    Keeps the requests that arrive.

    :param answer: called with each request; the default answers with 200.
    """

    protocol = Connection
    noisy = False

    def __init__(self, answer=None):
        self.answer = answer or (lambda request: request.connection.reply())
        self.on_connect = lambda connection: None
        self.requests = []
        self.connections = []
        self.open = 0
        self.most_open = 0

    def listen(self, case, reactor, port=0, listen=None):
        """
        Listen on loopback until the test case ends, and return the URL.

        :param port: the port of an earlier call. Nobody else gets it after that one has stopped.
        """
        port = (listen or reactor.listenTCP)(port or kept_port(case), self, interface="127.0.0.1")
        case.addCleanup(self.stop, port)
        self.port = port
        return f"http://127.0.0.1:{port.getHost().port}/hook"

    async def stop(self, port):
        await maybeDeferred(port.stopListening)
        for connection in self.connections:
            if not connection.closed.called:
                connection.transport.abortConnection()
        for connection in self.connections:
            await connection.closed
