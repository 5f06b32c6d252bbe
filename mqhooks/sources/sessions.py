"""
Remembering each client's username and, where needed, its address.

- VerneMQ's older encoder does not say which user's connection ended, and neither encoder says whose session expired. The
  registration named the user, so the table remembers the username from there. Neither encoder says where the client came from:
  if a rule's details include the address, the table remembers that too.
- The table is bounded by count and by bytes, because clients choose how long their names are.
"""

from __future__ import annotations

from itertools import islice
from sys import getsizeof
from typing import Any

from msgspec.structs import replace

from mqhooks.events import Event, Registration

_ENDS = frozenset({"on_client_gone", "on_session_expired"})
_NAMELESS = _ENDS | {"on_client_offline", "on_client_wakeup", "on_offline_message", "on_message_drop"}
"""The hooks whose messages don't name the user, in both generations of the encoder or in the older one."""

_DISCONNECTED = frozenset({"on_client_gone", "on_client_offline"})

CONCERNED = _NAMELESS | {"on_register"}
"""The hooks whose events the table learns from or completes; it leaves all others as they are."""

MAX_SESSIONS = 1_000_000
"""Default limit on the sessions that are remembered."""

MAX_SIZE = 64 << 20
"""Default limit on the bytes that they take: enough for 330,000 sessions with names of 20 characters."""

ENTRY = 72 + getsizeof(b"")
"""Bytes that a session takes besides its names: its place in the dict, averaged over its growth, and a header."""


_END = 9
"""Offset of the address in an entry."""

_LONGEST = 253
"""Longest address, in bytes: together with the two bytes of port it must fit a length of one byte."""


class SessionTable:
    """
    The usernames of registered clients, by mountpoint and client id.

    A session with names of 20 characters costs about 200 bytes; one without a username costs nothing. With addresses each costs
    about 15 more, and one without a username about 200. When the table is full, it forgets the sessions that registered first.

    VerneMQ's connections are read in no particular order, so a session's end may be read after the registration that followed
    it. An end therefore forgets only a session that registered before it.

    :param limit: most sessions to remember; 0 for none.
    :param size: most bytes that they may take.
    :param needed: whether any sink needs usernames; if not, nothing is remembered.
    :param addresses: whether any sink needs the clients' addresses and the times of their registrations.
    :ivar used: bytes that the sessions take.
    """

    def __init__(
        self, limit: int = MAX_SESSIONS, size: int = MAX_SIZE, *, needed: bool = True, addresses: bool = False
    ) -> None:
        # The registration's time, the length of the address, the address with two bytes of port before it, and the username
        # share one bytes object: less than half of what a tuple of two costs.
        self._sessions: dict[str | tuple[str, str], bytes] = {}
        self.used = 0
        self.limit(limit, size, needed=needed, addresses=addresses)

    def limit(self, limit: int, size: int, *, needed: bool, addresses: bool = False) -> None:
        """Replace the bounds. Names and addresses that were not needed until now are learned at the next registration."""
        self._addresses = addresses
        self._limit = limit if needed else 0
        self._size = size
        self._shrink()

    def __len__(self) -> int:
        return len(self._sessions)

    def see(self, event: Event) -> Event:
        """
        Learn the username from a registration, or add it to an event that lacks one.

        :returns: the event; if its message names no user but the client's registration did, with that username.
        """
        hook = event.hook
        if hook == "on_register":
            if self._limit:
                self._remember(event)
        elif hook in _NAMELESS and self._sessions:
            key = _key(event)
            entry = self._sessions.get(key)
            if entry is not None:
                if hook in _ENDS and int.from_bytes(entry[:8], "big", signed=True) <= event.timestamp:
                    self._forget(key)
                at = _END + entry[_END - 1]
                if self._addresses and at > _END and hook in _DISCONNECTED:
                    event = _with_registration(event, entry[:at])
                if not event.username:
                    return replace(event, username=entry[at:].decode())
        return event

    def _remember(self, event: Event) -> None:
        sessions = self._sessions
        key = _key(event)
        entry = None
        address = _address(event.message) if self._addresses else b""
        if event.username or address:
            entry = b"%b%c%b%b" % (
                event.timestamp.to_bytes(8, "big", signed=True),
                len(address),
                address,
                event.username.encode(),
            )
        older = sessions.pop(key, None)
        if older is not None:
            if int.from_bytes(older[:8], "big", signed=True) > event.timestamp:
                # This registration was read after the one that followed it.
                entry = older
            self.used -= len(older)
            if entry is None:
                self.used -= _cost(key)
        elif entry is not None:
            self.used += _cost(key)
        if entry is None:
            return
        sessions[key] = entry
        self.used += len(entry)
        if len(sessions) > self._limit or self.used > self._size:
            if _cost(key) + len(entry) > self._size:
                self._forget(key)
            self._shrink()

    def _forget(self, key: str | tuple[str, str]) -> None:
        self.used -= _cost(key) + len(self._sessions.pop(key))

    def _shrink(self) -> None:
        """
        If there are too many sessions, forget the oldest, and a 64th of the limit more.

        A dict finds its first key by skipping the deleted ones before it, so forgetting many at a time is cheaper.
        """
        sessions = self._sessions
        if len(sessions) <= self._limit and self.used <= self._size:
            return
        count, size = self._limit - self._limit // 64, self._size - self._size // 64
        while len(sessions) > count or self.used > size:
            for key in list(islice(sessions, max(64, len(sessions) - count))):
                if len(sessions) <= count and self.used <= size:
                    break
                self._forget(key)


def _address(message: Any) -> bytes:
    """Encode the port in two bytes, followed by the address; nothing if there is no address, or it is too long."""
    address: bytes = message.peer_addr.encode()
    return (message.peer_port & 0xFFFF).to_bytes(2, "big") + address if 0 < len(address) <= _LONGEST else b""


def _with_registration(event: Event, entry: bytes) -> Event:
    timestamp = int.from_bytes(entry[:8], "big", signed=True)
    if timestamp > event.timestamp:
        # The registration belongs to a later connection.
        return event
    address = entry[_END + 2 :].decode()
    return replace(event, registration=Registration(timestamp, address, int.from_bytes(entry[_END : _END + 2], "big")))


def _key(event: Event) -> str | tuple[str, str]:
    return (event.mountpoint, event.client_id) if event.mountpoint else event.client_id


def _cost(key: str | tuple[str, str]) -> int:
    """Return the bytes that a session takes, except for its entry."""
    return ENTRY + (getsizeof(key) if isinstance(key, str) else getsizeof(key) + sum(map(getsizeof, key)))
