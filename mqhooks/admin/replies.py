"""
What a request asks for, and what it is answered.
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
class Answer:
    """
    An answer.

    :param body: its bytes.
    :param type: what they are.
    :param status: the HTTP status.
    :param headers: further headers.
    """

    body: bytes
    type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """
    A request that is not answered with what it asks for.

    :param status: the HTTP status.
    :param message: why, and what to do.
    :param headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@dataclass(frozen=True)
class Call:
    """
    A request.

    :param request: Twisted's.
    :param arguments: the parts of the path that vary.
    """

    request: Request
    arguments: tuple[str, ...]

    def query(self, name: str) -> str | None:
        """
        Get a parameter of the URL; ``None`` when it is not there or empty.

        :raises Refused: when it is there twice or is not UTF-8.
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
        Get a parameter of the URL that is a whole number of 0 or more.

        :param most: what a larger one is taken for.
        :raises Refused: when it is something else.
        """
        text = self.query(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Refused(400, f"{name} is not a whole number of 0 or more")
        return min(int(text), most)

    def json(self) -> dict[str, Any]:
        """
        Get the body, which is a JSON object.

        :raises Refused: when it is something else.
        """
        content = self.request.content
        body = b"" if content is None else content.read()
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body is not a JSON object")
        return value


Handler = Callable[[Call], Answer | Coroutine[Any, Any, Answer] | None]
"""Answers a call now or later, or has taken the request over (``None``)."""


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Make an answer of what JSON has."""
    return Answer(_encode(value), JSON, status, headers or {})
