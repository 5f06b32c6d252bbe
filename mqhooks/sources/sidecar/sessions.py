"""
Who is behind a client id.

The older encoder does not say whose connection ended, and neither encoder says whose session expired. The registration did.
"""

from __future__ import annotations

from itertools import islice

from msgspec.structs import replace

from mqhooks.sources.sidecar.events import Event

_ENDS = frozenset({"on_client_gone", "on_session_expired"})
_NAMELESS = _ENDS | {"on_client_offline", "on_client_wakeup", "on_offline_message", "on_message_drop"}
"""The hooks whose messages don't name the user, in both generations or in the older one."""

CONCERNED = _NAMELESS | {"on_register"}
"""The hooks whose events the table learns from or completes; it leaves all others as they are."""


class SessionTable:
    """
    The usernames of registered clients, by mountpoint and client id.

    A session with names of 20 characters costs about 200 bytes; one without a username costs nothing. When the table is full
    the sessions that registered first are forgotten.

    VerneMQ's connections are read in no certain order, so an end may be read after the registration that followed it: it
    forgets only a session that registered before.

    :param limit: how many sessions are remembered at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # The registration's time and the username share one bytes object: less than half of what a tuple of the two costs.
        self._sessions: dict[str | tuple[str, str], bytes] = {}

    def limit(self, limit: int) -> None:
        """Remember so many sessions at most from now on."""
        self._limit = limit
        for oldest in list(islice(self._sessions, max(0, len(self._sessions) - limit))):
            del self._sessions[oldest]

    def __len__(self) -> int:
        return len(self._sessions)

    def see(self, event: Event) -> Event:
        """
        Learn from an event, and complete it.

        :returns: the event, with its username when its message names none but the client's registration did.
        """
        hook = event.hook
        if hook == "on_register":
            self._remember(event)
        elif hook in _NAMELESS:
            key = _key(event)
            entry = self._sessions.get(key)
            if entry is not None:
                if hook in _ENDS and int.from_bytes(entry[:8], "big", signed=True) <= event.timestamp:
                    del self._sessions[key]
                if not event.username:
                    return replace(event, username=entry[8:].decode())
        return event

    def _remember(self, event: Event) -> None:
        sessions = self._sessions
        key = _key(event)
        older = sessions.pop(key, None)
        if older is not None and int.from_bytes(older[:8], "big", signed=True) > event.timestamp:
            # Read after the registration that followed it.
            sessions[key] = older
            return
        if not event.username or not self._limit:
            return
        if len(sessions) >= self._limit:
            # A dict finds its first key by passing over those deleted before it: some at a time keep that cheap.
            for oldest in list(islice(sessions, max(1, self._limit // 64))):
                del sessions[oldest]
        sessions[key] = event.timestamp.to_bytes(8, "big", signed=True) + event.username.encode()


def _key(event: Event) -> str | tuple[str, str]:
    return (event.mountpoint, event.client_id) if event.mountpoint else event.client_id
