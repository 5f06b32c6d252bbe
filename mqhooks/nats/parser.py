"""
Cuts what a server sends into messages and control lines.

One split of its line finds a message, which goes straight to who subscribed: 1.3 microseconds. What is not complete is kept in
pieces until it is, so that a long message is not copied with each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.logger import Logger

from mqhooks.errors import NATSMalformed
from mqhooks.nats.message import VERSION, NATSMessage
from mqhooks.support.printable import printable

MAX_LINE = 64 << 10
"""How many bytes a line may have. Only INFO, which may name many servers, has more than a few hundred."""

Receiver = Callable[[NATSMessage], object]


class Parser:
    """
    Parses what comes over one connection.

    :param control: is called with the verb of each line that is no message, in upper case, and with what follows it.
    :param max_message: how many bytes of headers and content a message may have.
    :ivar receivers: whom to call, by the subscription's number. Messages for others are left out.
    :ivar stopped: set this to have what follows kept.
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
        """How many bytes are kept: something is not complete, or the parser is stopped."""
        return sum(map(len, self._pieces))

    def feed(self, data: bytes) -> None:
        """
        Take what has come, divided anyhow.

        :raises mqhooks.errors.NATSMalformed: when it is not NATS; without naming the server.
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
                raise _malformed("a line that is no message's", data[at:end]) from None
            if verb not in (b"MSG", b"HMSG") and verb.upper() not in (b"MSG", b"HMSG"):
                raise _malformed("a line that is no message's", data[at:end])
            if not 0 <= block <= total:
                raise _malformed("a message with a size that cannot be", data[at:end])
            if total > self._max_message:
                raise NATSMalformed(f"it sends a message of {total} bytes, and {self._max_message} are accepted at most")
            start, middle, stop = end + 2, end + 2 + block, end + 2 + total
            if stop + 2 > length:
                self._keep(data[at:], stop + 2 - at)
                return
            if data[stop : stop + 2] != b"\r\n" or (block and not data.startswith(VERSION, start)):
                raise _malformed("a message that is not as long as it says, or whose headers are none", data[at:end])
            at = stop + 2
            receiver = self.receivers.get(sid)
            if receiver is not None:
                try:
                    receiver(NATSMessage(subject, reply, data[start:middle], data[middle:stop]))
                except Exception:
                    self.log.failure("what receives messages of {subject} failed", subject=printable(repr(subject), 200))

    def _keep(self, rest: bytes, need: int) -> None:
        self._pieces.append(rest)
        self._have, self._need = len(rest), need


def _malformed(what: str, data: bytes) -> NATSMalformed:
    return NATSMalformed(f"it sends {what}: {printable(data[:80].decode('utf-8', 'backslashreplace'), 80)!r}")
