"""
Split a webhook's URL, and render requests as bytes.

The bytes that all requests of a webhook share, which are most of them, are rendered once.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from twisted.internet.interfaces import IStreamClientEndpoint

from mqhooks.delivery import Head, Request
from mqhooks.errors import ConnectFailed
from mqhooks.http import lookups
from mqhooks.http.proxy import ProxyEndpoint, ProxySettings, TunnelEndpoint

_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})


class Target(NamedTuple):
    """
    A URL's parts.

    :param scheme: ``http`` or ``https``.
    :param host: a name or an address, IPv6 without brackets.
    :param port: the scheme's default when the URL names none.
    :param authority: host and port as written, for the ``Host`` header.
    :param path: path and query as sent.
    """

    scheme: str
    host: str
    port: int
    authority: str
    path: str

    @property
    def origin(self) -> str:
        """The URL without path and query, for messages."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole URL."""
        return self.origin + self.path


def target(url: str) -> Target:
    """Split a checked URL. Its path is never empty (RFC 9112, section 3.2.1)."""
    parts = urlsplit(url)
    authority = parts.netloc.rpartition("@")[2]
    path = origin_form(parts.path + (f"?{parts.query}" if parts.query else ""))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Target(parts.scheme, parts.hostname or "", port, authority, path)


def endpoint_for(reactor: Any, at: Target, timeout: float, proxy: ProxySettings | None) -> IStreamClientEndpoint:
    """
    Make the Twisted endpoint that connects to a target.

    :param timeout: a request's timeout in seconds.
    :param proxy: the proxy for requests; ``None`` to connect directly.
    """
    if proxy is None:
        return lookups.endpoint(reactor, at.host, at.port, timeout)
    if at.scheme == "https":
        return TunnelEndpoint(reactor, proxy, timeout, at.host, at.port)
    return ProxyEndpoint(reactor, proxy, timeout)


def unwritable(name: str, error: UnicodeError) -> ConnectFailed:
    """
    Return the error for a request that cannot be written as bytes.

    :param name: the endpoint's.
    """
    return ConnectFailed(f"{name}: the request cannot be written ({error}): mend the webhook's URL or its headers")


def origin_form(path: str) -> str:
    """Prepend the slash that a request line needs, if it is missing."""
    return path if path.startswith("/") else f"/{path}"


class Renderer:
    """
    Renders the requests that share a head; the constant bytes are made once.

    :param head: the shared head.
    :param proxy: the proxy that gets the requests, and so has to see the whole URL; ``None`` for the endpoint itself.
    :ivar asks_for_head: whether the head's method is ``HEAD``.
    """

    def __init__(self, head: Head, proxy: ProxySettings | None = None) -> None:
        self.head = head
        at = target(head.url)
        self._path = at.path
        self._origin = "" if proxy is None else at.origin
        headers = [("Host", at.authority), *([] if proxy is None else proxy.headers), *head.headers]
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
        self._start = self._line(head.method, at.path) + self._fields
        self._bodiless = head.method in _BODILESS
        self.asks_for_head = head.method == "HEAD"

    def render(self, request: Request) -> bytes:
        """Render a request."""
        headers, body = request.headers, request.body
        if request.method is None and request.path is None:
            start, bodiless = self._start, self._bodiless
        else:
            method = request.method or self.head.method
            path = self._path if request.path is None else origin_form(request.path)
            start, bodiless = self._line(method, path) + self._fields, method in _BODILESS
        if len(headers) == 1:
            ((name, value),) = headers
            lines = f"{name}: {value}\r\n"
        elif len(headers) == 2:
            (name, value), (second, its) = headers
            lines = f"{name}: {value}\r\n{second}: {its}\r\n"
        elif len(headers) == 3:
            (name, value), (second, its), (third, last) = headers
            lines = f"{name}: {value}\r\n{second}: {its}\r\n{third}: {last}\r\n"
        else:
            lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        if bodiless and not body:
            return b"%b%b\r\n" % (start, lines.encode())
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (start, lines.encode(), len(body), body)

    def _line(self, method: str, path: str) -> bytes:
        return f"{method} {self._origin}{path} HTTP/1.1\r\n".encode()
