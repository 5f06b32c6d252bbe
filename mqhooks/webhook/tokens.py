"""
Get tokens from an OAuth 2.0 server, by the client credentials grant: RFC 6749, section 4.4.

- A webhook has one token. It is fetched when a request first needs it. The first request after three quarters of its lifetime
  has it renewed, and the old one is used meanwhile. While nothing is sent, nothing is fetched.
- A server's answer is not trusted: with any fault in it there is no token. The waiting attempts fail with the reason, and the
  token is fetched again when the circuit breaker lets the next attempt through.
- A token that the endpoint refuses is renewed once. Unless something is accepted after that, refusals are believed for a while,
  so that an endpoint that refuses everything does not cause a token request for each of its answers.
"""

from __future__ import annotations

import re
from base64 import b64encode
from math import isfinite
from typing import Any
from urllib.parse import quote_plus, urlencode

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.delivery import Head, Request, Response
from mqhooks.errors import DeliveryError, NotAuthenticated
from mqhooks.interfaces import IWebhookTransport
from mqhooks.support.ratelimit import RateLimit
from mqhooks.support.redact import hide_url
from mqhooks.webhook.auth import MAX_TOKEN, TOKEN, Use
from mqhooks.webhook.settings import OAuth2Settings

FETCH_TIME = 10.0
"""Timeout of a token request, in seconds."""

MAX_ANSWER = 2 * MAX_TOKEN
"""Longest answer of the server, in bytes."""

RENEWED_AFTER = 0.75
"""Share of its lifetime after which a token is renewed."""

UNKNOWN_LIFE = 3600.0
"""Lifetime of a token if the server gives none, in seconds."""

PAUSE = 10.0
"""Seconds between a failed renewal and the next while the old token is still good."""

BELIEVED = 30.0
"""Seconds after the renewal of a refused token during which a refusal does not renew it again."""

_NUMBER = re.compile(r"\s*-?[0-9]{1,18}(\.[0-9]*)?\s*")
_ERROR = re.compile("[a-z_]{1,40}")


class _Answer(msgspec.Struct):
    access_token: str = ""
    token_type: str = "bearer"
    expires_in: Any = None


class _Refusal(msgspec.Struct):
    error: str = ""


class Tokens:
    """
    The token of one webhook; it provides :class:`~mqhooks.webhook.auth.Credentials`.

    :param clock: for the time.
    :param settings: the server, and our credentials there.
    :param transport: sends to the server, and keeps :data:`MAX_ANSWER` bytes of its answer; closed with this object.
    :param name: the webhook's name, for the log.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, settings: OAuth2Settings, transport: IWebhookTransport, name: str) -> None:
        self._seconds = clock.seconds
        self._settings = settings
        self._transport = transport
        self._name = name
        self._request = _request(settings)
        self._value: str | None = None
        self._renew_at = 0.0
        self._expires = 0.0
        self._fetching = False
        self._forced = False
        self._believed_until = 0.0
        self._waiting: list[Use] = []
        self._complaints = RateLimit(clock)

    def get(self, use: Use) -> None:
        """See :class:`~mqhooks.webhook.auth.Credentials`."""
        now = self._seconds()
        if self._value is None or now >= self._expires:
            self._wait(use)
            return
        if now >= self._renew_at:
            self._fetch()
        use(self._value)

    def renew(self, refused: str, use: Use) -> None:
        """See :class:`~mqhooks.webhook.auth.Credentials`."""
        if self._value != refused:
            self.get(use)
        elif self._seconds() < self._believed_until:
            use(refused)
        else:
            self._forced = True
            self._wait(use)

    def accepted(self) -> None:
        """See :class:`~mqhooks.webhook.auth.Credentials`."""
        self._believed_until = 0.0

    def close(self) -> Deferred[None]:
        """See :class:`~mqhooks.webhook.auth.Credentials`."""
        return self._transport.close()

    def _wait(self, use: Use) -> None:
        self._waiting.append(use)
        self._fetch()

    def _fetch(self) -> None:
        if not self._fetching:
            self._fetching = True
            asked = self._seconds()
            self._transport.send(self._request).addCallback(self._read).addCallbacks(self._take, self._failed, (asked,))

    def _read(self, response: Response) -> tuple[str, float]:
        """Return the token and its lifetime from an answer."""
        if not 200 <= response.status < 300:
            raise NotAuthenticated(f"{self._server} answered {response.status}{self._told(response.body)}")
        if not response.complete:
            raise NotAuthenticated(f"the answer of {self._server} is too long, or is cut off")
        try:
            answer = msgspec.json.decode(response.body, type=_Answer)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Its text could hold the token.
            raise NotAuthenticated(f"the answer of {self._server} is not the JSON object that RFC 6749 demands") from None
        if not TOKEN.fullmatch(answer.access_token) or len(answer.access_token) > MAX_TOKEN:
            raise NotAuthenticated(f"the answer of {self._server} has no access_token that a header can carry")
        if answer.token_type.lower() != "bearer":
            raise NotAuthenticated(f"the token of {self._server} is not a Bearer token")
        life = lifetime(answer.expires_in)
        if life <= 0:
            raise NotAuthenticated(f"the token of {self._server} had already expired on arrival: its expires_in is not above 0")
        return answer.access_token, life

    def _take(self, found: tuple[str, float], asked: float) -> None:
        token, life = found
        self._value = f"Bearer {token}"
        self._renew_at, self._expires = asked + life * RENEWED_AFTER, asked + life
        if self._forced:
            self._believed_until = self._seconds() + BELIEVED
        self._end(self._value)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(DeliveryError):
            self.log.failure("webhook {name}: asking for a token failed in an unexpected way", failure, name=self._name)
        now = self._seconds()
        self._renew_at = now + PAUSE
        why = str(failure.value) or type(failure.value).__name__
        held = None if self._waiting else self._complaints.allow(why)
        if held is not None:
            self.log.warn(
                "webhook {name}: the token could not be renewed: {why}; the old one is good for another {left:.0f} s",
                name=self._name,
                why=why,
                left=max(self._expires - now, 0.0),
            )
        self._end(None, why)

    def _end(self, value: str | None, why: str = "") -> None:
        self._fetching = self._forced = False
        waiting, self._waiting = self._waiting, []
        for use in waiting:
            use(NotAuthenticated(f"no token: {why}") if value is None else value)

    @property
    def _server(self) -> str:
        return hide_url(self._settings.token_url)

    def _told(self, body: bytes) -> str:
        """Return the server's error code, unless the word could be something else: the server knows our secret."""
        try:
            word = msgspec.json.decode(body, type=_Refusal).error
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return ""
        secret = self._settings.client_secret
        return f" ({word})" if _ERROR.fullmatch(word) and secret not in word and word not in secret else ""


def lifetime(expires_in: object) -> float:
    """
    Return the lifetime of a token, in seconds.

    :param expires_in: the server's ``expires_in``: a number, or a number as text.
    :returns: :data:`UNKNOWN_LIFE` for anything else.
    """
    if isinstance(expires_in, str) and _NUMBER.fullmatch(expires_in):
        return float(expires_in)
    if isinstance(expires_in, (int, float)) and not isinstance(expires_in, bool):
        try:
            life = float(expires_in)
        except OverflowError:
            return UNKNOWN_LIFE
        return life if isfinite(life) else UNKNOWN_LIFE
    return UNKNOWN_LIFE


def _request(settings: OAuth2Settings) -> Request:
    fields = {"grant_type": "client_credentials", "scope": settings.scope, "audience": settings.audience}
    headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("accept", "application/json"),
        # The server would close the connection before it is needed again.
        ("connection", "close"),
    ]
    if settings.credentials == "body":
        fields |= {"client_id": settings.client_id, "client_secret": settings.client_secret}
    else:
        # Both are encoded like form fields first: RFC 6749, section 2.3.1.
        pair = f"{quote_plus(settings.client_id)}:{quote_plus(settings.client_secret)}"
        headers.append(("authorization", "Basic " + b64encode(pair.encode()).decode("ascii")))
    body = urlencode({name: value for name, value in fields.items() if value}).encode()
    return Request(Head("POST", settings.token_url, ()), headers, body)
