"""
The short way through a TLS connection.

Twisted's TLS makes the handshake, verifies, and ends the connection. What it does in between for each write (a buffer, a
delayed call, a turn of the reactor) and for each read (it asks until OpenSSL raises that there is no more) costs more than the
encryption: requests and answers that are one record each need neither.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Any

from OpenSSL.SSL import Connection, Error, WantReadError, ZeroReturnError
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

RECORD = 1 << 14
"""How many bytes a record carries at most (RFC 8446, section 5.1)."""

HEADER = 5
"""How many bytes of a record stand before its contents."""

MARGIN = 256
"""By how many bytes, at most, a record is longer than what it carries, its header included."""

APPLICATION_DATA = 23
"""The type of records with an application's data."""


class TLSChannel:
    """
    Encrypts straight to the socket, and decrypts what came from it.

    :param tls: whose handshake is over, and for which nothing waits in any buffer.
    :param deliver: gets what was decrypted.
    :param close: called when the other side has ended the connection.
    :ivar socket: what to receive from.
    """

    def __init__(self, tls: TLSMemoryBIOProtocol, deliver: Callable[[bytes], None], close: Callable[[], None]) -> None:
        tcp: Any = tls.transport
        self.socket: socket = tcp.getHandle()
        self._tls = tls
        self._tcp = tcp
        self._connection: Connection = tls.getHandle()
        self._deliver = deliver
        self._close = close
        self._direct = True
        # Whether what comes next begins a record, which is certain as long as each was received by itself.
        self._between = True

    def send(self, data: bytes) -> int:
        """
        Encrypt and send.

        :returns: how many bytes were taken: all of them, for what the socket has no room for is left to Twisted.
        """
        length = len(data)
        # The last answer is over.
        self._between = True
        if not self._direct:
            TLSMemoryBIOProtocol.write(self._tls, data)
            return length
        taken = 0
        try:
            while taken < length:
                taken += self._connection.send(data if length <= RECORD else data[taken : taken + RECORD])
        except Error:
            # Twisted finds out as well, and knows what to do.
            self._direct = False
            self._tcp.write(self._encrypted(length))
            TLSMemoryBIOProtocol.write(self._tls, data[taken:])
            return length
        encrypted = self._encrypted(length)
        try:
            sent = self.socket.send(encrypted)
        except OSError:
            sent = 0
        if sent < len(encrypted):
            # The rest may still be in the transport's buffer when more is to be sent: from now on all goes through it.
            self._direct = False
            self._tcp.write(encrypted[sent:])
        return length

    def _encrypted(self, length: int) -> bytes:
        """Take what is to be sent for so many bytes, and whatever else is."""
        size = length + MARGIN
        pieces: list[bytes] = []
        try:
            while not pieces or len(pieces[-1]) == size:
                pieces.append(self._connection.bio_read(size))
        except WantReadError:
            # That was all.
            pass
        return b"".join(pieces)

    def received(self, data: bytes) -> None:
        """Decrypt what came, and deliver it."""
        whole = HEADER + int.from_bytes(data[3:HEADER], "big") == len(data)
        if not (whole and self._between and data[0] == APPLICATION_DATA):
            self._between = False
            self._tls.dataReceived(data)
            return
        try:
            self._connection.bio_write(data)
            decrypted = self._connection.recv(len(data))
        except WantReadError:
            # A ticket for another session.
            return
        except ZeroReturnError:
            self._close()
        except Error:
            self._tls.failVerification(Failure())
        else:
            self._deliver(decrypted)
