"""
Logging what may happen a million times.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

KEYS = 1024
"""How many keys are told apart; when there are more, all are forgotten, and each may speak again."""


class RateLimit:
    """
    Lets each key through once in an interval.

    :param clock: tells the time.
    :param interval: seconds.
    """

    def __init__(self, clock: IReactorTime, interval: float = 60.0) -> None:
        self._clock = clock
        self._interval = interval
        self._last: dict[object, tuple[float, int]] = {}

    def allow(self, key: object) -> int | None:
        """
        Ask whether to speak about something now.

        :param key: what to speak about.
        :returns: how many times it was held back since it last spoke, or ``None`` to hold it back.
        """
        now = self._clock.seconds()
        spoke, held = self._last.get(key, (None, 0))
        if spoke is not None and now - spoke < self._interval:
            self._last[key] = (spoke, held + 1)
            return None
        if spoke is None and len(self._last) >= KEYS:
            self._last.clear()
        self._last[key] = (now, 0)
        return held
