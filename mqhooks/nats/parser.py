"""
Cuts a server's bytes into messages and control lines.

A single split of its first line parses a message, which goes straight to its subscriber: 1.3 microseconds. An incomplete
message is kept in pieces until its end has come, so that a long one is not copied with each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.logger import Logger

from mqhooks.errors import NATSMalformed
from mqhooks.nats.message import VERSION, NATSMessage
from mqhooks.support.printable import printable

MAX_LINE = 64 << 10
"""Longest line, in bytes. Only INFO, which may name many servers, has more than a few hundred."""

Receiver = Callable[[NATSMessage], object]


class NatsParser:
    """
    Parses the bytes of one connection.

    :param control: called for each line that is not a message, with its verb in upper case, and the rest of the line.
    :param max_message: longest message, in bytes of headers and content.
    :ivar receivers: the receiver for each subscription's number. Messages for other numbers are ignored.
    :ivar stopped: set this to keep further bytes instead of parsing them.
    """

    log = Logger()

    def __init__(self, control: Callable[[bytes, bytes], None], max_message: int) -> None:
        self.receivers: Mapping[bytes, Receiver] = {}
        self.stopped = False
        self._control = control
        self._max_message = max_message
        self._pieces: list[bytes] = []
        self._have = self._need = 0

    @property
    def pending(self) -> int:
        """Bytes that are kept, because a line or message is incomplete, or the parser is stopped."""
        return sum(map(len, self._pieces))

    def feed(self, data: bytes) -> None:
        """
        Take received bytes, divided in any way.

        :raises mqhooks.errors.NATSMalformed: when they are not NATS; the message does not name the server.
        """
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        at, length = 0, len(data)
        while at < length:
            if self.stopped:
                self._keep(data[at:], length - at + 1)
                return
            end = data.find(b"\r\n", at, at + MAX_LINE)
            if end < 0:
                if length - at >= MAX_LINE:
                    raise _malformed("a line without an end", data[at : at + 40])
                self._keep(data[at:], length - at + 1)
                return
            # M, H, m, h
            if data[at] not in b"MHmh":
                verb, *rest = data[at:end].split(None, 1) or (b"",)
                self._control(verb.upper(), rest[0].strip() if rest else b"")
                at = end + 2
                continue
            words = data[at:end].split()
            block = 0
            try:
                if len(words[0]) == 4:
                    verb, subject, sid, *maybe, first, last = words
                    block, total = int(first), int(last)
                else:
                    verb, subject, sid, *maybe, last = words
                    total = int(last)
                (reply,) = maybe or (b"",)
            except ValueError:
                raise _malformed("a line that is not a message", data[at:end]) from None
            if verb not in (b"MSG", b"HMSG") and verb.upper() not in (b"MSG", b"HMSG"):
                raise _malformed("a line that is not a message", data[at:end])
            if not 0 <= block <= total:
                raise _malformed("a message of an impossible size", data[at:end])
            if total > self._max_message:
                raise NATSMalformed(f"it sends a message of {total} bytes, but at most {self._max_message} are accepted")
            start, middle, stop = end + 2, end + 2 + block, end + 2 + total
            if stop + 2 > length:
                self._keep(data[at:], stop + 2 - at)
                return
            if data[stop : stop + 2] != b"\r\n" or (block and not data.startswith(VERSION, start)):
                raise _malformed("a message of the wrong length, or with malformed headers", data[at:end])
            at = stop + 2
            receiver = self.receivers.get(sid)
            if receiver is not None:
                try:
                    receiver(NATSMessage(subject, reply, data[start:middle], data[middle:stop]))
                except Exception:
                    self.log.failure("the receiver of messages on {subject} failed", subject=printable(repr(subject), 200))

    def _keep(self, rest: bytes, need: int) -> None:
        self._pieces.append(rest)
        self._have, self._need = len(rest), need


def _malformed(what: str, data: bytes) -> NATSMalformed:
    return NATSMalformed(f"it sends {what}: {printable(data[:80].decode('utf-8', 'backslashreplace'), 80)!r}")
