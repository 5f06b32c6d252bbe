"""
Answers to VerneMQ's requests.

Every hook is told ``next``: mqhooks never grants or changes anything. VerneMQ treats every status except 200 as an error.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """
    An HTTP response.

    :param head: its status line and headers, each with its line end, but without the empty line after them.
    :param body: its body.
    """

    head: bytes
    body: bytes

    def write(self, *, connection: bytes = b"", bodiless: bool = False) -> bytes:
        """
        Encode the answer.

        :param connection: the ``Connection`` header's value, if it needs one.
        :param bodiless: whether to leave the body out, as for ``HEAD``.
        """
        further = b"connection: %b\r\n" % connection if connection else b""
        return b"%b%b\r\n%b" % (self.head, further, b"" if bodiless else self.body)


def _answer(status: HTTPStatus, body: bytes, further: bytes = b"") -> Answer:
    line = f"HTTP/1.1 {status.value} {status.phrase}".encode()
    head = b"%b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b" % (line, len(body), further)
    return Answer(head, body)


def problem(status: HTTPStatus, text: str, further: bytes = b"") -> Answer:
    """
    Make an answer that reports an error.

    :param further: more headers, each with its line end.
    """
    return _answer(status, msgspec.json.encode({"error": text}), further)


NEXT = _answer(HTTPStatus.OK, b'{"result":"next"}')
"""The answer to everything that is not refused."""

NEXT_BYTES = NEXT.write()
"""The same, encoded for an HTTP/1.1 connection that stays open."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Tells a client that waits for it to send its body."""
