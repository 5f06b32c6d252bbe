"""
Connect through an HTTP proxy, beneath both transports.

- For an ``https`` endpoint the proxy opens a tunnel (CONNECT: RFC 9110, section 9.3.6). Inside, everything is as usual: TLS
  verifies the endpoint's name, and the proxy sees neither requests nor credentials.
- For an ``http`` endpoint requests go to the proxy itself, with the whole URL in their first line (RFC 9112, section 3.2.2).
- A refusal by the proxy itself is a failure to connect, and its message names the proxy.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http import UNAUTHORIZED
from zope.interface import implementer

from mqhooks.http import lookups
from mqhooks.http.limits import MAX_HEAD

AUTHENTICATION_REQUIRED = 407
"""A proxy's status for a missing or wrong user and password."""

_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?= |\r?\n)")


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """
    An HTTP proxy.

    :param host: its name or address, IPv6 without brackets.
    :param port: its port.
    :param username: our user there; empty for none.
    :param password: its password.
    """

    host: str
    port: int
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """Host and port, for messages."""
        return _at(self.host, self.port)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The additional headers of a request to the proxy: our user and password, if it needs any."""
        if not self.username:
            return []
        pair = b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")
        return [("Proxy-Authorization", f"Basic {pair}")]

    def unauthorized(self, status: int = AUTHENTICATION_REQUIRED) -> str:
        """Explain that the proxy requires a user and a password, or does not accept ours."""
        if self.username:
            return f"the proxy {self.name} does not accept our user and password ({status})"
        return f"the proxy {self.name} requires a user and a password ({status}): write http://user:password@{self.name}"


class ProxyFailed(ConnectError):
    """The proxy cannot be reached, or does not do as asked."""

    def __init__(self, problem: str) -> None:
        super().__init__(string=problem)
        self._problem = problem

    def __str__(self) -> str:
        return self._problem


@implementer(IStreamClientEndpoint)
class ProxyEndpoint:
    """
    Connects to a proxy.

    :param reactor: for connections.
    :param proxy: the proxy.
    :param timeout: a request's timeout in seconds; connecting may take :data:`mqhooks.http.lookups.SHARE` of it.
    """

    def __init__(self, reactor: Any, proxy: ProxySettings, timeout: float) -> None:
        self._proxy = proxy
        self._endpoint = lookups.endpoint(reactor, proxy.host, proxy.port, timeout)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See :class:`twisted.internet.interfaces.IStreamClientEndpoint`."""
        connecting: Deferred[Any] = self._endpoint.connect(protocolFactory)
        return connecting.addErrback(self._explain)

    def _explain(self, failure: Failure) -> Failure:
        if failure.check(CancelledError):
            return failure
        problem = lookups.connect_problem(failure.value, self._proxy.host)
        return Failure(ProxyFailed(f"the proxy {self._proxy.name} cannot be reached: {problem}"))


@implementer(IStreamClientEndpoint)
class TunnelEndpoint:
    """
    Connects to an endpoint through a proxy's tunnel.

    :param reactor: for connections and time.
    :param proxy: opens the tunnel.
    :param timeout: a request's timeout in seconds; all of this may take :data:`mqhooks.http.lookups.SHARE` of it.
    :param host: the endpoint's name or address, IPv6 without brackets; the proxy looks it up.
    :param port: the endpoint's port.
    """

    def __init__(self, reactor: Any, proxy: ProxySettings, timeout: float, host: str, port: int) -> None:
        self._clock = reactor
        self._proxy = proxy
        self._limit = timeout * lookups.SHARE
        self._endpoint = ProxyEndpoint(reactor, proxy, timeout)
        self._goal = _at(host, port)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See :class:`twisted.internet.interfaces.IStreamClientEndpoint`."""
        end = self._clock.seconds() + self._limit
        connecting = self._endpoint.connect(_Tunnels(self._proxy, self._goal, protocolFactory))
        return connecting.addCallback(lambda tunnel: tunnel.open(self._clock, end))


class _Tunnels(Factory):
    noisy = False

    def __init__(self, proxy: ProxySettings, goal: str, inner: IProtocolFactory) -> None:
        self._made = proxy, goal, inner

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Tunnel(*self._made)


class _Tunnel(Protocol):
    """Asks for the tunnel. Once it is open, it only passes on received bytes; sent bytes bypass it."""

    def __init__(self, proxy: ProxySettings, goal: str, factory: IProtocolFactory) -> None:
        self._proxy = proxy
        self._goal = goal
        self._factory = factory
        self._inner: Any = None
        self._opened: Deferred[Any] | None = None
        self._problem = ""
        self._timer: IDelayedCall | None = None
        self._head = b""

    def open(self, clock: IReactorTime, end: float) -> Deferred[Any]:
        """
        Ask for the tunnel.

        :param end: when to give up, in the clock's seconds.
        :returns: a ``Deferred`` that fires with the protocol at our end of the tunnel.
        """
        fields = "".join(f"{name}: {value}\r\n" for name, value in [("Host", self._goal), *self._proxy.headers])
        opened = self._opened = Deferred(lambda _: self._close())
        if self._problem:
            opened.errback(ProxyFailed(self._problem))
            return opened
        transport: Any = self.transport
        transport.write(f"CONNECT {self._goal} HTTP/1.1\r\n{fields}\r\n".encode())
        self._timer = clock.callLater(max(end - clock.seconds(), 0.0), self._fail, "does not answer CONNECT in time")
        return opened

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        if self._problem:
            return
        self._head += data
        while self._inner is None and not self._problem:
            if not self._head.startswith(b"HTTP/"[: len(self._head)]):
                self._fail("does not speak HTTP: is it an HTTP proxy?")
            elif (end := _END.search(self._head)) is not None:
                status = _STATUS.match(self._head)
                self._head = self._head[end.end() :]
                self._answered(0 if status is None else int(status[1]))
            elif len(self._head) > MAX_HEAD:
                self._fail(f"answers CONNECT with more than {MAX_HEAD} bytes")
            else:
                break

    def _answered(self, status: int) -> None:
        if 100 <= status < 200:
            # An interim answer; the final one follows.
            return
        if 200 <= status < 300:
            rest, self._head = self._head, b""
            self._begin(rest)
        elif status in (AUTHENTICATION_REQUIRED, UNAUTHORIZED):
            # Tinyproxy answers a wrong password with 401.
            self._end(self._proxy.unauthorized(status))
        elif 400 <= status < 500:
            self._fail(f"refuses to connect to {self._goal}: it answered {status}")
        else:
            self._fail(f"cannot connect to {self._goal}: it answered {status:03}")

    def _begin(self, rest: bytes) -> None:
        opened = self._opened
        if opened is None:
            self._fail("answered CONNECT before it was sent")
            return
        self._stop_waiting()
        transport: Any = self.transport
        self._inner = self._factory.buildProtocol(transport.getPeer())
        self._inner.makeConnection(transport)
        opened.callback(self._inner)
        if rest:
            self._inner.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        else:
            self._fail(f"closed the connection instead of connecting to {self._goal}: {lookups.in_words(reason.value)}")

    def _fail(self, problem: str) -> None:
        self._end(f"the proxy {self._proxy.name} {problem}")

    def _end(self, problem: str) -> None:
        if not self._problem:
            self._problem = problem
            self._close()
            if self._opened is not None and not self._opened.called:
                self._opened.errback(ProxyFailed(problem))

    def _close(self) -> None:
        self._stop_waiting()
        transport: Any = self.transport
        transport.abortConnection()

    def _stop_waiting(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
