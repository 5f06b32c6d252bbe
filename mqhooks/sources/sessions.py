"""
Remembering the username behind each client id.

- VerneMQ's older encoder does not say which user's connection ended, and neither encoder says whose session expired. The
  registration did, so its username is remembered.
- The table is bounded by count and by bytes, because clients choose how long their names are.
"""

from __future__ import annotations

from itertools import islice
from sys import getsizeof

from msgspec.structs import replace

from mqhooks.events import Event

_ENDS = frozenset({"on_client_gone", "on_session_expired"})
_NAMELESS = _ENDS | {"on_client_offline", "on_client_wakeup", "on_offline_message", "on_message_drop"}
"""The hooks whose messages don't name the user, in both generations of the encoder or in the older one."""

CONCERNED = _NAMELESS | {"on_register"}
"""The hooks whose events the table learns from or completes; it leaves all others as they are."""

MAX_SESSIONS = 1_000_000
"""How many sessions are remembered by default."""

MAX_SIZE = 64 << 20
"""How many bytes they may take by default: what 330,000 sessions take with names of 20 characters."""

ENTRY = 72 + getsizeof(b"")
"""How many bytes a session takes besides its names: its place in the dict, averaged over its growth, and a header."""


class SessionTable:
    """
    The usernames of registered clients, by mountpoint and client id.

    A session with names of 20 characters costs about 200 bytes; one without a username costs nothing. When the table is full
    the sessions that registered first are forgotten.

    VerneMQ's connections are read in no particular order, so an end may be read after the registration that followed it: it
    forgets only a session that registered before.

    :param limit: how many sessions are remembered at most; 0 for none.
    :param size: how many bytes they may take.
    :param needed: whether any sink needs usernames; if not, nothing is remembered.
    :ivar used: how many bytes they take.
    """

    def __init__(self, limit: int = MAX_SESSIONS, size: int = MAX_SIZE, *, needed: bool = True) -> None:
        # The registration's time and the username share one bytes object: less than half of what a tuple of the two costs.
        self._sessions: dict[str | tuple[str, str], bytes] = {}
        self.used = 0
        self.limit(limit, size, needed=needed)

    def limit(self, limit: int, size: int, *, needed: bool) -> None:
        """Replace the bounds. Usernames that were not needed so far are unknown until the next registration."""
        self._limit = limit if needed else 0
        self._size = size
        self._shrink()

    def __len__(self) -> int:
        return len(self._sessions)

    def see(self, event: Event) -> Event:
        """
        Learn the username from a registration, or add it to an event that lacks it.

        :returns: the event, with its username when its message names none but the client's registration did.
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
                if not event.username:
                    return replace(event, username=entry[8:].decode())
        return event

    def _remember(self, event: Event) -> None:
        sessions = self._sessions
        key = _key(event)
        entry = None
        if event.username:
            entry = event.timestamp.to_bytes(8, "big", signed=True) + event.username.encode()
        older = sessions.pop(key, None)
        if older is not None:
            if int.from_bytes(older[:8], "big", signed=True) > event.timestamp:
                # This one was read after the registration that followed it.
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
        Forget the oldest sessions when there are too many, and a 64th more.

        A dict finds its first key by passing over those deleted before it, so some are forgotten at a time.
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


def _key(event: Event) -> str | tuple[str, str]:
    return (event.mountpoint, event.client_id) if event.mountpoint else event.client_id


def _cost(key: str | tuple[str, str]) -> int:
    """Say how many bytes a session takes, but for those in its entry."""
    return ENTRY + (getsizeof(key) if isinstance(key, str) else getsizeof(key) + sum(map(getsizeof, key)))
