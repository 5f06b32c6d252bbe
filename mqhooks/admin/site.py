"""
Routes the admin port's requests to their handlers, and sends the replies.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mqhooks.admin.api import Api
from mqhooks.admin.connections import MAX_BODY, AdminConnections, AdminRequest
from mqhooks.admin.deadletters import DeadLetters
from mqhooks.admin.guard import RESPONSE_HEADERS, AdminGuard
from mqhooks.admin.metrics import Metrics
from mqhooks.admin.reading import Page
from mqhooks.admin.replies import AdminCall, Handler, Refused, Reply, json_reply
from mqhooks.admin.status import Status
from mqhooks.admin.stream import Stream
from mqhooks.errors import NATSError, OutboxError

CONNECTIONS = 256
"""Most open connections."""

VARIES = "*"
"""Matches any text in a part of a path."""

_TYPES = {"css": "text/css", "js": "text/javascript"}


@dataclass(frozen=True)
class Route:
    """
    One method of one path.

    :param method: the method; ``GET`` includes ``HEAD``.
    :param path: the parts of the path; :data:`VARIES` matches any.
    :param handler: replies to the call.
    :param public: whether no token is needed.
    """

    method: str
    path: tuple[str, ...]
    handler: Handler
    public: bool = False

    def matches(self, path: tuple[str, ...]) -> bool:
        """Return whether a path matches."""
        return len(path) == len(self.path) and all(
            pattern in (VARIES, part) for pattern, part in zip(self.path, path, strict=True)
        )

    def arguments(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Get the variable parts of a path."""
        return tuple(part for pattern, part in zip(self.path, path, strict=True) if pattern == VARIES)


def routes(status: Status, stream: Stream, clock: IReactorTime) -> list[Route]:
    """
    List all routes.

    :param status: the state of the bridge.
    :param stream: the event stream.
    :param clock: long work yields to the reactor through it.
    """
    dead = DeadLetters(status.bridge, clock)
    api = Api(status, dead)
    letters = ("api", "dead-letters")
    webhook = ("api", "webhooks", VARIES)
    return [
        *_static(),
        Route("GET", ("",), Page(_read("page.html").decode(), status, dead), public=True),
        Route("GET", ("healthz",), api.health, public=True),
        Route("GET", ("readyz",), api.ready),
        Route("GET", ("metrics",), Metrics(status)),
        Route("GET", ("api", "status"), api.status),
        Route("GET", ("api", "config"), api.config),
        Route("GET", ("api", "stream"), stream.join),
        Route("GET", letters, api.letters),
        Route("POST", (*letters, "replay"), api.replay_all),
        Route("POST", (*letters, "purge"), api.purge_all),
        Route("GET", (*letters, VARIES), api.letter),
        Route("DELETE", (*letters, VARIES), api.purge),
        Route("POST", (*letters, VARIES, "replay"), api.replay),
        Route("POST", (*letters, VARIES, "purge"), api.purge),
        Route("POST", (*webhook, "pause"), api.pause),
        Route("POST", (*webhook, "resume"), api.resume),
        Route("POST", (*webhook, "try"), api.try_now),
        Route("POST", (*webhook, "test"), api.test),
        Route("GET", (*webhook, "attempts"), api.attempts),
    ]


def _static() -> list[Route]:
    found = []
    for file in files("mqhooks.admin").joinpath("static").iterdir():
        type_ = _TYPES.get(file.name.rpartition(".")[2])
        if type_ is not None:
            found.append(_file(file.name, Reply(file.read_bytes(), f"{type_}; charset=utf-8")))
    return found


def _read(name: str) -> bytes:
    return files("mqhooks.admin").joinpath("static", name).read_bytes()


def _file(name: str, reply: Reply) -> Route:
    # Public: static files reveal nothing about this bridge, and the page is where the token is entered.
    return Route("GET", (name,), lambda _: reply, public=True)


class Root(Resource):
    """
    Finds the route of a request and sends the reply.

    :param table: the routes.
    :param guard: admits or refuses requests.
    """

    isLeaf = True
    log = Logger()

    def __init__(self, table: list[Route], guard: AdminGuard) -> None:
        super().__init__()
        self._routes = table
        self._guard = guard

    def render(self, request: HTTPRequest) -> int:
        """Reply to a request, now or later."""
        try:
            result = self._handle(request)
        except Exception:
            self._failed(Failure(), request)
            return NOT_DONE_YET
        if isinstance(result, Reply):
            _send(request, result)
        elif result is not None:
            gone: list[object] = []
            request.notifyFinish().addBoth(gone.append)
            replied = ensureDeferred(result)
            replied.addCallback(lambda reply: None if gone else _send(request, reply))
            replied.addErrback(lambda failure: None if gone else self._failed(failure, request))
        return NOT_DONE_YET

    def _handle(self, request: HTTPRequest) -> Any:
        for name, value in RESPONSE_HEADERS.items():
            request.setHeader(name, value)
        if getattr(request, "oversized", False):
            raise Refused(413, f"the body is longer than {MAX_BODY} bytes")
        path = tuple(unquote_to_bytes(part).decode("utf-8", "surrogateescape") for part in request.path[1:].split(b"/"))
        method = b"GET" if request.method == b"HEAD" else request.method
        here = [route for route in self._routes if route.matches(path)]
        route = next((route for route in here if route.method.encode() == method), None)
        self._guard.check(request, public=route is not None and route.public)
        if route is not None:
            return route.handler(AdminCall(request, route.arguments(path), self._guard.trusts(request)))
        if not here:
            raise Refused(404, "there is nothing here; the API is under /api/")
        allowed = ", ".join(sorted({route.method for route in here}))
        raise Refused(405, f"this path takes only {allowed}", {"Allow": allowed})

    def _failed(self, failure: Failure, request: HTTPRequest) -> None:
        error = failure.value
        if isinstance(error, Refused):
            _send(request, json_reply({"error": error.message}, error.status, error.headers))
        elif isinstance(error, (OutboxError, NATSError, sqlite3.DatabaseError)):
            _send(request, json_reply({"error": f"the outbox cannot be read: {error}"}, 503))
        else:
            self.log.failure("a request for {path} failed", failure, path=request.path.decode("latin-1"))
            _send(request, json_reply({"error": "the request failed; the log has the reason"}, 500))


def _send(request: HTTPRequest, reply: Reply) -> None:
    request.setResponseCode(reply.status)
    headers: Mapping[str, str] = {"Content-Type": reply.type, "Content-Length": str(len(reply.body)), **reply.headers}
    for name, value in headers.items():
        request.setHeader(name, value)
    request.write(reply.body)
    request.finish()


class _AdminSite(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """Log no requests: the page makes many."""


class AdminFactory(AdminConnections):
    """
    Makes the HTTP connections.

    :param clock: for timeouts.
    :param root: replies to all requests.
    """

    def __init__(self, clock: IReactorTime, root: Root) -> None:
        super().__init__(clock, _AdminSite(root, requestFactory=AdminRequest, reactor=clock, timeout=None))

    def buildProtocol(self, addr: Any) -> Any:
        """Make the protocol of a connection; ``None`` when too many are open and none makes room."""
        return super().buildProtocol(addr) if self.room(CONNECTIONS) else None
