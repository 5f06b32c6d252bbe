"""
Authenticate attempts: a transport that adds ``authorization`` to the requests of another transport.

- Authentication belongs to the attempt. It is never stored with a delivery, so a retry uses the value that is valid then.
- The value goes into the head that all requests share. That head is rebuilt only when the value changes.
- Without a value nothing is sent: the attempt fails as if there were no endpoint, with the reason, and deliveries wait.
- A request that is answered with 401 is sent again if there is another value by then.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import UNAUTHORIZED
from zope.interface import implementer

from mqhooks.delivery import Head, Request, Response
from mqhooks.errors import DeliveryError, NotAuthenticated
from mqhooks.interfaces import ICallbackTransport, IWebhookTransport
from mqhooks.support.files import read_bounded
from mqhooks.webhook.hider import Hider, credentials
from mqhooks.webhook.settings import BasicSettings, BearerSettings, WebhookSettings
from mqhooks.webhook.submit import Done, submitter

TOKEN = re.compile(r"[\x21-\x7e]+")
"""A valid token: only characters that a header can carry."""

READ_AGAIN = 1.0
"""Seconds until a token's file is read again."""

MAX_TOKEN = 64 << 10
"""Longest token, in bytes. Servers accept 8 to 64 KiB of headers."""

Use = Callable[[str | DeliveryError], object]
"""Takes the value of ``authorization``, or the reason why there is no value."""


class Credentials(Protocol):
    """Supplies the value of ``authorization``."""

    def get(self, use: Use) -> None:
        """
        Get the value of ``authorization``.

        :param use: called once, now or later.
        """

    def renew(self, refused: str, use: Use) -> None:
        """
        Get another value, after the endpoint has answered 401.

        :param refused: the value that the endpoint has refused.
        :param use: called once, now or later; with the same value when there is no other.
        """

    def accepted(self) -> None:
        """Note that an endpoint has answered something other than 401."""

    def close(self) -> Deferred[None]:
        """Cancel whatever is under way. Everyone who waits for a value gets an error."""


class Constant:
    """
    The same value for all requests.

    :param value: the value of ``authorization``.
    """

    def __init__(self, value: str) -> None:
        self._value = value

    def get(self, use: Use) -> None:
        """See :class:`Credentials`."""
        use(self._value)

    def renew(self, refused: str, use: Use) -> None:
        """See :class:`Credentials`."""
        use(self._value)

    def accepted(self) -> None:
        """See :class:`Credentials`."""

    def close(self) -> Deferred[None]:
        """See :class:`Credentials`."""
        return succeed(None)


class TokenFile:
    """
    A token in a file, which is read repeatedly because another program renews it.

    :param path: the file; white space around the token is ignored.
    :param seconds: returns the time.
    """

    def __init__(self, path: str, seconds: Callable[[], float]) -> None:
        self._path = path
        self._seconds = seconds
        self._read_at = float("-inf")
        self._value: str | None = None
        self._problem = ""

    def get(self, use: Use) -> None:
        """See :class:`Credentials`. A changed file is noticed within a second."""
        if self._seconds() - self._read_at >= READ_AGAIN:
            self._read()
        use(NotAuthenticated(f"no token: {self._path} {self._problem}") if self._value is None else self._value)

    def renew(self, refused: str, use: Use) -> None:
        """See :class:`Credentials`."""
        self._read_at = float("-inf")
        self.get(use)

    def accepted(self) -> None:
        """See :class:`Credentials`."""

    def close(self) -> Deferred[None]:
        """See :class:`Credentials`."""
        return succeed(None)

    def _read(self) -> None:
        self._read_at = self._seconds()
        self._value = None
        try:
            token = read_bounded(self._path).decode("ascii", "replace").strip()
        except (OSError, ValueError) as error:
            self._problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            return
        if not token:
            self._problem = "is empty: write the token into it"
        elif len(token) > MAX_TOKEN or not TOKEN.fullmatch(token):
            self._problem = "does not hold a single token: write one into it, without spaces or anything before it"
        else:
            self._value = f"Bearer {token}"


def basic(settings: BasicSettings) -> str:
    """Encode a name and a password as the value of ``authorization``: RFC 7617."""
    return "Basic " + b64encode(f"{settings.username}:{settings.password}".encode()).decode("ascii")


def credentials_for(clock: IReactorTime, settings: BasicSettings | BearerSettings) -> Credentials:
    """Return the credentials of a webhook that needs no token server."""
    if isinstance(settings, BasicSettings):
        return Constant(basic(settings))
    if settings.token_file is not None:
        return TokenFile(settings.token_file, clock.seconds)
    return Constant(f"Bearer {settings.token}")


@implementer(ICallbackTransport)
class AuthenticatedTransport:
    """
    Adds ``authorization`` to each request.

    :param transport: sends the requests; closed with this one.
    :param credentials: closed with this one, too.
    :param settings: the webhook's settings, for messages.
    """

    log = Logger()

    def __init__(self, transport: IWebhookTransport, credentials: Credentials, settings: WebhookSettings) -> None:
        self._transport = transport
        self._submit = submitter(transport, settings.name, settings.url, self.log)
        self._credentials = credentials
        self._plain: Head | None = None
        self._value = ""
        self._head = Head("", "", ())
        self._hidden = ""
        self._hider = Hider(())

    def send(self, request: Request) -> Deferred[Response]:
        """See :class:`~mqhooks.interfaces.IWebhookTransport`."""
        answered: Deferred[Response] = Deferred()

        def done(result: Response | DeliveryError) -> None:
            if isinstance(result, Response):
                answered.callback(result)
            else:
                answered.errback(result)

        self.submit(request, done)
        return answered

    def submit(self, request: Request, done: Done) -> None:
        """See :class:`~mqhooks.interfaces.ICallbackTransport`."""
        self._credentials.get(partial(self._begin, request, done))

    def close(self) -> Deferred[None]:
        """See :class:`~mqhooks.interfaces.IWebhookTransport`."""
        closed: Deferred[Any] = gatherResults([self._credentials.close(), self._transport.close()], consumeErrors=True)
        return closed.addCallback(lambda _: None)

    def _begin(self, request: Request, done: Done, value: str | DeliveryError) -> None:
        if isinstance(value, DeliveryError):
            done(value)
        else:
            self._submit(self._authorized(request, value), partial(self._answered, request, value, done))

    def _answered(self, request: Request, value: str, done: Done, result: Response | DeliveryError) -> None:
        if not isinstance(result, Response) or result.status != UNAUTHORIZED:
            self._end(value, done, result)
        else:
            self._credentials.renew(value, partial(self._again, request, value, done, result))

    def _again(self, request: Request, refused: str, done: Done, answer: Response, value: str | DeliveryError) -> None:
        if isinstance(value, DeliveryError):
            done(value)
        elif value == refused:
            self._end(value, done, answer)
        else:
            self._submit(self._authorized(request, value), partial(self._end, value, done))

    def _end(self, value: str, done: Done, result: Response | DeliveryError) -> None:
        if isinstance(result, Response):
            if result.status != UNAUTHORIZED:
                self._credentials.accepted()
            if value != self._hidden:
                self._hidden, self._hider = value, Hider(credentials(value))
            # Answers are shown on the status page and in the API.
            result = self._hider.hide(result)
        done(result)

    def _authorized(self, request: Request, value: str) -> Request:
        head = request.head
        if head is not self._plain or value != self._value:
            self._plain, self._value = head, value
            self._head = Head(head.method, head.url, (*head.headers, ("authorization", value)))
        return Request(self._head, request.headers, request.body, request.method, request.path)
