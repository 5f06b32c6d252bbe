"""
Cutting an HTTP/2 connection's bytes into whole frames, before ``h2`` sees them.

``h2`` implements the protocol, and this module bounds what it does not: ``h2`` collects a frame of any length before it refuses
it, works off all its input in one go, and no longer answers calls once the peer has said that it opens no more.
"""

from __future__ import annotations

from mqhooks.errors import MqhooksError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes that a client sends."""

MAX_FRAME = 1 << 14
"""Longest frame, in bytes: HTTP/2's default, which we don't raise."""

MAX_HEADERS = 8 << 10
"""Most bytes of a call's headers on the wire; VerneMQ sends 300. A byte may cost as much as two microseconds."""

TURN = 64
"""Frames of a connection that are worked off in one turn of the reactor; each 128 bytes of headers count as one more."""

SMALL = 64
"""Shortest data frame, in bytes, that never counts as idle."""

_DATA, _HEADERS, _PRIORITY, _GOAWAY, _CONTINUATION = 0, 1, 2, 7, 9
_END_STREAM, _END_HEADERS = 1, 4

PROTOCOL_ERROR, FRAME_SIZE_ERROR, ENHANCE_YOUR_CALM = 1, 6, 11


class Unacceptable(MqhooksError):
    """
    Raised when a connection cannot go on.

    :param code: HTTP/2's error code.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Frames:
    """
    Cuts one connection's bytes, after its preface, into frames.

    :ivar idle: frames that did not advance a call; the owner lowers it with time and with each answered call.
    :ivar leaving: whether the peer has said that it opens no further calls.
    """

    def __init__(self) -> None:
        self.idle = 0
        self.leaving = False
        self._buffer = bytearray()
        self._headers = 0

    def add(self, data: bytes) -> None:
        """Add bytes that were read."""
        self._buffer += data

    def cut(self) -> tuple[bytes, bool]:
        """
        Cut off the next frames, at most :data:`TURN`, leaving out those that ``h2`` does not need.

        :returns: the frames, and whether there may be more.
        :raises Unacceptable: at a frame that is too long, or a call with too many bytes of headers.
        """
        buffer = self._buffer
        at = start = count = 0
        kept = b""
        end = len(buffer)
        while end - at >= 9 and count < TURN:
            length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            kind, flags = buffer[at + 3], buffer[at + 4]
            try:
                self._check(kind, length)
            except Unacceptable:
                if not count:
                    raise
                # The calls before it come first.
                count = TURN
                break
            after = at + 9 + length
            if after > end:
                break
            if kind in (_HEADERS, _CONTINUATION):
                count += length >> 7
            if kind == _HEADERS:
                self._headers = 0 if flags & _END_HEADERS else length
            elif kind != _DATA or (length < SMALL and not flags & _END_STREAM):
                self.idle += 1
                if kind == _CONTINUATION:
                    self._headers = 0 if flags & _END_HEADERS else self._headers + length
                elif kind in (_PRIORITY, _GOAWAY) or kind > _CONTINUATION:
                    self.leaving = self.leaving or kind == _GOAWAY
                    kept += buffer[start:at]
                    start = after
            at = after
            count += 1
        kept += buffer[start:at]
        del buffer[:at]
        return kept, count >= TURN

    def _check(self, kind: int, length: int) -> None:
        if length > MAX_FRAME:
            raise Unacceptable(FRAME_SIZE_ERROR, f"a frame claims to have {length} bytes, but at most {MAX_FRAME} are allowed")
        if kind in (_HEADERS, _CONTINUATION):
            size = length if kind == _HEADERS else self._headers + length
            if size > MAX_HEADERS:
                raise Unacceptable(ENHANCE_YOUR_CALM, f"the headers of a call have more than {MAX_HEADERS} bytes")


def goaway(last: int, code: int = 0) -> bytes:
    """
    Make the frame that ends a connection once the calls up to ``last`` are answered; ``h2`` would end it at once.

    :param last: the last call's number.
    :param code: HTTP/2's error code.
    """
    return b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4, "big") + code.to_bytes(4, "big")
