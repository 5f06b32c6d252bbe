"""
Calls of the API and the replies to them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from twisted.web.http import Request

JSON = "application/json"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Reply:
    """
    The answer to a call.

    :param body: the response's body.
    :param type: its content type.
    :param status: the HTTP status.
    :param headers: further headers.
    """

    body: bytes
    type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """
    Raised to refuse a call.

    :param status: the HTTP status.
    :param message: why, and what to do about it.
    :param headers: further headers of the response.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@dataclass(frozen=True)
class AdminCall:
    """
    A request to one of the routes.

    :param request: Twisted's request.
    :param arguments: the variable parts of the path.
    :param trusted: whether the caller may see the bridge's state, even where the route needs no token.
    """

    request: Request
    arguments: tuple[str, ...]
    trusted: bool = False

    def query(self, name: str) -> str | None:
        """
        Get a query parameter; ``None`` when it is missing or empty.

        :raises Refused: when it is given twice or is not UTF-8.
        """
        values = (self.request.args or {}).get(name.encode(), [])
        if len(values) > 1:
            raise Refused(400, f"{name} is given {len(values)} times: give it once")
        try:
            return values[0].decode() or None if values else None
        except UnicodeDecodeError:
            raise Refused(400, f"{name} is not UTF-8") from None

    def number(self, name: str, default: int, most: int) -> int:
        """
        Get a query parameter that is a whole number, 0 or more.

        :param most: larger numbers are cut to this.
        :raises Refused: when it is anything else.
        """
        text = self.query(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Refused(400, f"{name} is not a whole number of 0 or more")
        return min(int(text), most)

    def json(self, *, empty: bool = False) -> dict[str, Any]:
        """
        Get the body, which has to be a JSON object.

        :param empty: whether an empty body counts as an object without members.

        :raises Refused: when it is anything else.
        """
        content = self.request.content
        body = b"" if content is None else content.read()
        if empty and not body:
            return {}
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body is not a JSON object")
        return value


Handler = Callable[[AdminCall], Reply | Coroutine[Any, Any, Reply] | None]
"""Replies to a call now or later, or returns ``None`` when it has taken the request over."""


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Reply with a value as JSON."""
    return Reply(_encode(value), JSON, status, headers or {})
