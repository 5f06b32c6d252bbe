"""
Deciding who may post events, and where.

- Tokens and passwords are compared in constant time, and each token in the query is tried.
- The token may come in the query, as a bearer token, or as the password of any user.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from hmac import compare_digest
from http import HTTPStatus
from urllib.parse import quote, unquote_to_bytes

from mqhooks.sources.webhooks.answers import problem
from mqhooks.sources.webhooks.settings import WebhooksSettings


class AccessGuard:
    """
    Checks a request's target, and its token or password.

    :param settings: the path, the token, user and password.
    """

    def __init__(self, settings: WebhooksSettings) -> None:
        self._path = settings.path.encode()
        self.locked = settings.locked
        self._token = None if settings.token is None else settings.token.encode()
        self._login = None if settings.user is None else f"{settings.user}:{settings.password or ''}".encode()
        post = f"VerneMQ's webhooks go to POST {quote(settings.path)}"
        self.elsewhere = problem(HTTPStatus.NOT_FOUND, f"there is nothing here: {post}")
        self.not_posted = problem(HTTPStatus.METHOD_NOT_ALLOWED, post, b"allow: POST\r\n")
        text = "the token or the password is missing or wrong: put mqhooks' token or password into the endpoint in vernemq.conf"
        self.unauthorized = problem(HTTPStatus.UNAUTHORIZED, text, b'www-authenticate: Basic realm="mqhooks"\r\n')

    def here(self, url: bytes) -> bool:
        """Return whether a request's target is the right one."""
        return url == self._path or unquote_to_bytes(url.partition(b"?")[0]) == self._path

    def allows(self, url: bytes, authorization: bytes) -> bool:
        """
        Return whether a request may pass.

        :param url: its target.
        :param authorization: its ``Authorization`` header; empty if it has none.
        """
        if not self.locked:
            return True
        scheme, _, value = authorization.partition(b" ")
        scheme, value = scheme.lower(), value.strip()
        allowed = False
        if scheme == b"basic":
            try:
                login = b64decode(value)
            except ValueError:
                login = b""
            allowed |= _same(login, self._login) | _same(login.partition(b":")[2], self._token)
        elif scheme == b"bearer":
            allowed |= _same(value, self._token)
        for token in _tokens(url):
            allowed |= _same(token, self._token)
        return allowed


def _tokens(url: bytes) -> Iterator[bytes]:
    for part in url.partition(b"?")[2].split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"token":
            yield unquote_to_bytes(value)


def _same(given: bytes, wanted: bytes | None) -> bool:
    return wanted is not None and compare_digest(given, wanted)
