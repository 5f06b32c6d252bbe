"""
Admits or refuses requests, and defines the security headers of responses.

Another site's page can make a browser send requests here. That page must neither read a response nor change anything. So a
request has to name this host (against DNS rebinding), and a request that changes something needs a custom header, which a
foreign page can set only after a CORS preflight, and preflights are never allowed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from hmac import compare_digest
from typing import Any

from twisted.web.http import Request

from mqhooks.admin.replies import Refused
from mqhooks.support.listening import ip_of, is_loopback

HEADER = "X-Mqhooks"
"""Required header, with any value, of every request that changes something."""

RESPONSE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "mqhooks",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""The headers of every response."""

_NETLOC = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)


class AdminGuard:
    """
    Admits or refuses requests.

    :param token: the token that requests have to carry; ``None`` for none.
    :param hosts: host names, in lower case, that requests may name besides the loopback's and the address connected to.
    """

    def __init__(self, token: str | None, hosts: Collection[str] = ()) -> None:
        self.change(token, hosts)

    def change(self, token: str | None, hosts: Collection[str]) -> None:
        """Replace the token and the hosts."""
        self._token = None if token is None else token.encode()
        self._hosts = frozenset(hosts)

    def check(self, request: Request, *, public: bool) -> None:
        """
        Check a request.

        :param public: whether the route needs no token.
        :raises Refused: when the request is not admitted.
        """
        netloc = _header(request, "host")
        if not self._is_here(netloc, request.getHost()):
            raise Refused(403, "the request's host name is not allowed: add it to mqhooks.admin.hosts")
        origin = _header(request, "origin")
        if origin and origin.partition("://")[2].lower() != netloc.lower():
            raise Refused(403, "requests from other sites' pages are refused")
        if request.method not in (b"GET", b"HEAD") and not request.requestHeaders.hasHeader(HEADER):
            raise Refused(403, f"a request that changes something needs the header {HEADER}: 1")
        if not public and not self.trusts(request):
            challenge = {"WWW-Authenticate": 'Bearer realm="mqhooks"'}
            raise Refused(401, "the token is missing or wrong: send Authorization: Bearer and mqhooks.admin.token", challenge)

    def trusts(self, request: Request) -> bool:
        """Return whether a request carries the token; always ``True`` when there is none."""
        kind, _, token = _header(request, "authorization").partition(" ")
        return self._token is None or (kind.lower() == "bearer" and compare_digest(token.strip().encode(), self._token))

    def _is_here(self, netloc: str, local: Any) -> bool:
        match = _NETLOC.fullmatch(netloc)
        if match is None:
            return False
        name = match[1].strip("[]").rstrip(".").lower()
        if name == "localhost" or name in self._hosts:
            return True
        return is_loopback(name) or (ip_of(name) is not None and ip_of(name) == ip_of(getattr(local, "host", "")))


def _header(request: Request, name: str) -> str:
    """Get a header that may be given only once; if repeated, it matches nothing."""
    values = request.requestHeaders.getRawHeaders(name.encode()) or [b""]
    return values[0].strip().decode("latin-1") if len(values) == 1 else "?"
