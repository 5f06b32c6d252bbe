"""
What VerneMQ is answered.

Every hook is told ``next``: mqhooks never grants or changes anything. VerneMQ takes every status but 200 for an error.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """
    An answer.

    :param head: its status line and headers, each with its end; what ends the head is missing.
    :param body: its body.
    """

    head: bytes
    body: bytes

    def write(self, *, connection: bytes = b"", bodiless: bool = False) -> bytes:
        """
        Put it into bytes.

        :param connection: the ``Connection`` header's value, if it needs one.
        :param bodiless: whether the body is left out, as for ``HEAD``.
        """
        further = b"connection: %b\r\n" % connection if connection else b""
        return b"%b%b\r\n%b" % (self.head, further, b"" if bodiless else self.body)


def _answer(status: HTTPStatus, body: bytes, further: bytes = b"") -> Answer:
    line = f"HTTP/1.1 {status.value} {status.phrase}".encode()
    head = b"%b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b" % (line, len(body), further)
    return Answer(head, body)


def problem(status: HTTPStatus, text: str, further: bytes = b"") -> Answer:
    """
    Make the answer that says what is wrong.

    :param further: further headers, each with its end.
    """
    return _answer(status, msgspec.json.encode({"error": text}), further)


NEXT = _answer(HTTPStatus.OK, b'{"result":"next"}')
"""Fine."""

NEXT_BYTES = NEXT.write()
"""The same, as HTTP/1.1 has it on a connection that goes on."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Have a client that waits for it send its body."""
