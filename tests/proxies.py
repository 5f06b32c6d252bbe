"""
An HTTP proxy for tests, with tunnels and forwarded requests.
"""

from __future__ import annotations

from base64 import b64encode

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol

from mqhooks.http.proxy import ProxySettings
from tests.waiting import until


def end(protocol, reason):
    """End a connection in the way that its peer has ended."""
    if reason.check(ConnectionDone):
        protocol.transport.loseConnection()
    else:
        protocol.transport.abortConnection()


class _Upstream(Protocol):
    """The proxy's connection to an endpoint."""

    def __init__(self, client):
        self.client = client

    def dataReceived(self, data):
        self.client.transport.write(data)

    def connectionLost(self, reason):
        self.client.upstream = None
        end(self.client, reason)


class _Client(Protocol):
    """A connection to the proxy."""

    def connectionMade(self):
        self.factory.connections.append(self)
        self.buffer = b""
        self.upstream = None
        self.connecting = None
        self.tunnel = False

    def connectionLost(self, reason):
        self.factory.ended += 1
        if self.connecting is not None:
            self.connecting.cancel()
        if self.upstream is not None:
            end(self.upstream, reason)

    def dataReceived(self, data):
        self.buffer += data
        self.go_on()

    def go_on(self):
        if self.tunnel and self.upstream is not None:
            self.upstream.transport.write(self.buffer)
            self.buffer = b""
        while self.connecting is None and not self.tunnel and b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            line, *fields = head.decode("utf-8").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            method, place, _ = line.split(" ")
            if self.upstream is None or method == "CONNECT":
                self.factory.requests.append((method, place, headers))
                if self.refused(headers):
                    return
                self.connect(place if method == "CONNECT" else place.split("/")[2], tunnel=method == "CONNECT")
                return
            self.buffer = rest[length:]
            kept = [field for field in fields if not field.lower().startswith("proxy-")]
            path = "/" + place.split("/", 3)[3]
            self.upstream.transport.write("\r\n".join([f"{method} {path} HTTP/1.1", *kept, "", ""]).encode() + rest[:length])

    def refused(self, headers):
        factory = self.factory
        if factory.answer is not None:
            self.transport.write(factory.answer)
        elif factory.credentials and headers.get("proxy-authorization") != factory.credentials:
            self.transport.write(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\nProxy-Authenticate: Basic realm=p\r\n\r\n")
        else:
            return False
        self.buffer = b""
        return True

    def connect(self, place, *, tunnel):
        host, _, port = place.rpartition(":")
        endpoint = HostnameEndpoint(self.factory.reactor, host.strip("[]"), int(port))
        self.connecting = connectProtocol(endpoint, _Upstream(self))
        self.connecting.addCallbacks(self.reached, self.not_reached, (tunnel,), {}, (), {})

    def reached(self, upstream, tunnel):
        self.connecting = None
        self.upstream = upstream
        if tunnel:
            self.tunnel = True
            self.buffer = self.buffer.partition(b"\r\n\r\n")[2]
            self.transport.write(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
        self.go_on()

    def not_reached(self, failure):
        self.connecting = None
        self.buffer = b""
        self.transport.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


class Proxy(Factory):
    """
    Keeps the requests that it gets.

    :param user: the name and password that it demands.
    :param answer: bytes to answer with instead of connecting.
    """

    protocol = _Client
    noisy = False

    def __init__(self, reactor, user=None, answer=None):
        self.reactor = reactor
        self.credentials = user and "Basic " + b64encode(":".join(user).encode()).decode()
        self.answer = answer
        self.requests = []
        self.connections = []
        self.ended = 0

    def listen(self, case):
        """Listen on loopback until the test case ends, and return the port."""
        port = self.reactor.listenTCP(0, self, interface="127.0.0.1")
        case.addCleanup(self.stop, port)
        self.port = port
        return port.getHost().port

    def settings(self, case, **more):
        """Listen, and return the settings for using this proxy."""
        return ProxySettings("127.0.0.1", self.listen(case), **more)

    async def stop(self, port):
        await maybeDeferred(port.stopListening)
        for connection in self.connections:
            connection.transport.abortConnection()
            if connection.upstream is not None:
                connection.upstream.transport.abortConnection()
        await until(lambda: self.ended == len(self.connections) and not any(each.upstream for each in self.connections))
