"""
Bodies with long payloads, made piece by piece.

As JSON a payload may be six times as long as it was, and as a string of Python's four times; there is no need to have either.
"""

from __future__ import annotations

from binascii import b2a_base64
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import Any

import msgspec

LONG_PAYLOAD = 1 << 20
"""A payload of more bytes makes a long body."""

PIECE = 192 << 10
"""How many bytes of a payload are encoded at a time: a multiple of three."""

_encode = msgspec.json.Encoder().encode
_decoder = getincrementaldecoder("utf-8")


class PayloadBody:
    """
    A JSON object with a message's payload in it.

    :param message: has the payload. It is what all bodies of an event share, so that each of them need not hold it.
    :param head: the object up to the quotation mark with which the payload begins.
    :param tail: the object from the quotation mark with which it ends.
    :param text: whether the payload is encoded as the text that it is, or in base64.
    """

    def __init__(self, message: Any, head: bytes, tail: bytes, *, text: bool) -> None:
        self._message = message
        self._head = head
        self._tail = tail
        self._text = text
        self._length = sum(map(len, self.pieces()))

    def __len__(self) -> int:
        return self._length

    def pieces(self) -> Iterator[bytes]:
        """Make it."""
        yield self._head
        yield from _text(self._message.payload) if self._text else _base64(self._message.payload)
        yield self._tail


def is_text(payload: bytes) -> bool:
    """Say whether a payload is UTF-8."""
    decoder = _decoder()
    try:
        for piece in _cut(payload):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _cut(payload: bytes) -> Iterator[memoryview]:
    view = memoryview(payload)
    return (view[at : at + PIECE] for at in range(0, len(view), PIECE))


def _text(payload: bytes) -> Iterator[bytes]:
    decoder = _decoder()
    for piece in _cut(payload):
        yield _encode(decoder.decode(piece))[1:-1]


def _base64(payload: bytes) -> Iterator[bytes]:
    for piece in _cut(payload):
        yield b2a_base64(piece, newline=False)
