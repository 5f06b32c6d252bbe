"""
How many requests a webhook may send in a time: a token bucket.

It only computes: times are passed in, and timers are the dispatcher's.
"""

from __future__ import annotations

from math import inf

from mqhooks.webhook.settings import LimitSettings

LATER = 1e-6
"""How many seconds a wait is longer than it has to be, so that rounding never makes it end too early."""


class Rate:
    """
    A token bucket: in any ``t`` seconds there are at most ``rate * t + burst`` requests.

    :param settings: the rate, and the size of the bucket, which is full at first.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self._interval = 1 / settings.rate
        self._ahead = (settings.burst - 1) * self._interval
        # When the bucket is full again, and until when nothing may be sent whatever is in it.
        self._full_at = self._held_until = -inf

    def take(self, now: float) -> None:
        """Take a token for a request that is sent now."""
        self._full_at = max(self._full_at, now) + self._interval

    def hold(self, until: float) -> None:
        """Let nothing be sent before a time."""
        self._held_until = max(self._held_until, until)

    def release(self, now: float) -> bool:
        """
        Forget what :meth:`hold` was told.

        :returns: whether that changes anything.
        """
        held, self._held_until = self._held_until > now, -inf
        return held

    def wait(self, now: float) -> float:
        """Say how many seconds it takes until a request may be sent; 0 if it may be now."""
        until = max(self._full_at - self._ahead, self._held_until)
        return until - now + LATER if until > now else 0.0
