"""
Rate limiting of log lines.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

KEYS = 1024
"""Most keys remembered; beyond that all are forgotten, and each is allowed again."""


class RateLimit:
    """
    Allows each key once per interval.

    :param clock: tells the time.
    :param interval: in seconds.
    """

    def __init__(self, clock: IReactorTime, interval: float = 60.0) -> None:
        self._clock = clock
        self._interval = interval
        self._last: dict[object, tuple[float, int]] = {}

    def allow(self, key: object) -> int | None:
        """
        Decide whether to log a line now.

        :param key: what the line is about.
        :returns: how often it was suppressed since it was last allowed; ``None`` to suppress it now.
        """
        now = self._clock.seconds()
        allowed, suppressed = self._last.get(key, (None, 0))
        if allowed is not None and now - allowed < self._interval:
            self._last[key] = (allowed, suppressed + 1)
            return None
        if allowed is None and len(self._last) >= KEYS:
            self._last.clear()
        self._last[key] = (now, 0)
        return suppressed
