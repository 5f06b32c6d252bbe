"""
Name look-ups that cannot hold up other endpoints.

- The reactor looks names up in ten shared threads. A few dozen connections to one name whose server is silent use them all up.
  So here each endpoint makes one look-up at a time, in its own daemon thread, and shares the result among all waiters. The
  system call cannot be interrupted, so waiters give up before it does.
- Names go to the resolver as written. ``HostnameEndpoint`` on its own rejects names that IDNA does not allow, such as
  ``my_consumer``, which Docker Compose assigns.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorThreads,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

FRESH = 1.0
"""Seconds for which a name's addresses are used without another look-up."""

LookUp = Callable[[str], Sequence[str]]


def look_up(host: str) -> list[str]:
    """
    Ask the system for a name's addresses. This blocks.

    :raises OSError: when it has none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def endpoint(reactor: Any, host: str, port: int, timeout: float, by: LookUp = look_up) -> IStreamClientEndpoint:
    """
    Make an endpoint that connects to the first of a host's addresses that answers.

    :param timeout: seconds allowed for connecting, including the look-up.
    :param by: looks the name up; called in a thread.
    """
    if isIPAddress(host) or isIPv6Address(host) or not IReactorThreads.providedBy(reactor):
        return HostnameEndpoint(reactor, host, port, timeout=timeout)
    return _Endpoint(reactor, NameLookup(reactor, host, timeout, by), port, timeout)


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Twisted's endpoint for names, with our own look-up, which is cancelled when connecting fails."""

    def __init__(self, reactor: Any, lookup: NameLookup, port: int, timeout: float) -> None:
        self._lookup = lookup
        # This name is never looked up: the resolver uses its own.
        self._endpoint = HostnameEndpoint(_Reactor(reactor, lookup), "endpoint.invalid", port, timeout=timeout)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        connecting: Deferred[Any] = self._endpoint.connect(protocolFactory)
        resolution = self._lookup.latest

        def end(failure: Failure) -> Failure:
            if resolution is not None:
                resolution.cancel()
            return failure

        return connecting.addErrback(end)


@implementer(IReactorPluggableNameResolver)
class _Reactor:
    """A reactor with our own resolver."""

    def __init__(self, reactor: Any, resolver: NameLookup) -> None:
        self._reactor = reactor
        self.nameResolver = resolver

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        raise NotImplementedError("it looks up one name, in one way")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IHostnameResolver)
class NameLookup:
    """
    Looks up the same name whichever one it is asked for.

    :param reactor: tells the time, and takes results from the thread.
    :param host: the name.
    :param limit: seconds after which waiters are told that there is no address.
    :param by: looks the name up; it may block, and raise an OSError.
    :ivar latest: the latest resolution requested.
    """

    def __init__(self, reactor: Any, host: str, limit: float, by: LookUp) -> None:
        self._reactor = reactor
        self._host = host
        self._limit = limit
        self._by = by
        self._waiting: dict[_Resolution, IResolutionReceiver] = {}
        self._running = False
        self._found: Sequence[str] = ()
        self._fresh_until = 0.0
        self.latest: _Resolution | None = None

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See :class:`twisted.internet.interfaces.IHostnameResolver`."""
        resolution = self.latest = _Resolution(self._host, portNumber, self._forget)
        resolutionReceiver.resolutionBegan(resolution)
        self._waiting[resolution] = resolutionReceiver
        if self._reactor.seconds() < self._fresh_until:
            self._tell(resolution, self._found)
            return resolution
        resolution.limit = self._reactor.callLater(self._limit, self._tell, resolution, ())
        if not self._running:
            self._running = True
            Thread(target=self._run, name=f"look up {self._host}", daemon=True).start()
        return resolution

    def _run(self) -> None:
        found: Sequence[str] = ()
        try:
            found = self._by(self._host)
        except (OSError, UnicodeError):
            # The result stays empty.
            pass
        finally:
            self._reactor.callFromThread(self._take, found)

    def _take(self, found: Sequence[str]) -> None:
        self._running = False
        if found:
            self._found = found
            self._fresh_until = self._reactor.seconds() + FRESH
        for resolution in list(self._waiting):
            self._tell(resolution, found)

    def _tell(self, resolution: _Resolution, found: Sequence[str]) -> None:
        receiver = self._forget(resolution)
        if receiver is None:
            return
        for address in found:
            kind = IPv6Address if ":" in address else IPv4Address
            receiver.addressResolved(kind("TCP", address, resolution.port))
        receiver.resolutionComplete()

    def _forget(self, resolution: _Resolution) -> IResolutionReceiver | None:
        if resolution.limit is not None and resolution.limit.active():
            resolution.limit.cancel()
        return self._waiting.pop(resolution, None)


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str, port: int, forget: Callable[[_Resolution], object]) -> None:
        self.name = name
        self.port = port
        self.limit: Any = None
        self._forget = forget

    def cancel(self) -> None:
        self._forget(self)


def connect_problem(error: BaseException | None, host: str) -> str:
    """Explain why connecting failed."""
    if isinstance(error, DNSLookupError):
        return f"no address was found for {host}: the name is unknown, or its name server does not answer"
    return in_words(error)


def in_words(error: BaseException | None) -> str:
    """Return an error's text for use in a sentence, without the full stop that ends Twisted's connection errors."""
    return str(error).removesuffix(".") or type(error).__name__
