"""
A sidecar on Twisted, with its stock HTTP client: one ``treq.post`` for each event, or one request of
``twisted.web``'s ``Agent``.

At most 32 requests are in flight, over a pool of persistent connections.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.protocols.basic import Int32StringReceiver
from twisted.python import log
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, FileBodyProducer, HTTPConnectionPool, readBody
from twisted.web.http_headers import Headers

from benchmarks.peer import AT_ONCE, WAITING, Renderer, arguments

Send = Callable[[bytes, dict[str, str]], Deferred[Any]]


def client(reactor: Any, kind: str, url: str, authority: str | None) -> Send:
    """
    Return the function that sends a request and reads its answer.

    :param kind: ``treq`` or ``agent``.
    :param authority: a PEM file.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = AT_ONCE
    policy = BrowserLikePolicyForHTTPS()
    if authority is not None:
        certificate = Certificate.loadPEM(Path(authority).read_bytes())
        policy = BrowserLikePolicyForHTTPS(trustRoot=trustRootFromCertificates([certificate]))
    agent = Agent(reactor, policy, pool=pool)

    def post(body: bytes, headers: dict[str, str]) -> Deferred[Any]:
        fields = Headers({name: [value] for name, value in headers.items()})
        return treq.post(url, body, headers=fields, agent=agent).addCallback(treq.content)

    def request(body: bytes, headers: dict[str, str]) -> Deferred[Any]:
        fields = Headers({name: [value] for name, value in headers.items()})
        answer = agent.request(b"POST", url.encode(), fields, FileBodyProducer(BytesIO(body)))
        return answer.addCallback(readBody)

    return post if kind == "treq" else request


class Stream(Int32StringReceiver):
    """One of VerneMQ's connections."""

    factory: Relay
    MAX_LENGTH = 1 << 28

    def connectionMade(self) -> None:
        """Join the connections that are paused and resumed."""
        self.factory.streams.add(self)

    def connectionLost(self, reason: Any = None) -> None:
        """Leave the connections that are paused and resumed."""
        self.factory.streams.discard(self)

    def stringReceived(self, string: bytes) -> None:
        """Relay a frame."""
        self.factory.relay(string)


class Relay(ServerFactory):
    """
    Holds the events that wait, and sends requests.

    :param send: sends a request.
    """

    protocol: Any = Stream
    noisy = False

    def __init__(self, renderer: Renderer, send: Send) -> None:
        self.streams: set[Stream] = set()
        self._renderer = renderer
        self._send = send
        self._waiting: deque[bytes] = deque()
        self._under_way = 0
        self._paused = False

    def relay(self, frame: bytes) -> None:
        """Send a frame's event, or let it wait."""
        self._waiting.append(self._renderer.body(frame))
        if len(self._waiting) >= WAITING and not self._paused:
            self._paused = True
            for stream in self.streams:
                stream.pauseProducing()
        self._next()

    def _next(self) -> None:
        while self._waiting and self._under_way < AT_ONCE:
            self._under_way += 1
            body = self._waiting.popleft()
            self._send(body, self._renderer.headers(body)).addErrback(_complain).addCallback(self._done)
        if self._paused and len(self._waiting) < WAITING // 2:
            self._paused = False
            for stream in list(self.streams):
                stream.resumeProducing()

    def _done(self, _: Any) -> None:
        self._under_way -= 1
        self._next()


def _complain(failure: Failure) -> None:
    log.err(failure, "lost an event")


def main() -> None:
    """Read the command line and relay."""
    from twisted.internet import reactor

    log.startLogging(sys.stderr, setStdout=False)
    parser = arguments("peer_twisted")
    parser.add_argument("--client", choices=["treq", "agent"], required=True)
    options = parser.parse_args()
    send = client(reactor, options.client, options.url, options.authority)
    listening: Any = reactor
    listening.listenTCP(options.port, Relay(Renderer(options.secret), send), interface="127.0.0.1")
    listening.run()


if __name__ == "__main__":
    main()
