"""
Limit the rate of a webhook's requests with a token bucket.

It only computes: times are passed in, and the dispatcher sets the timers.
"""

from __future__ import annotations

from math import inf

from mqhooks.webhook.settings import LimitSettings

LATER = 1e-6
"""Seconds added to each wait, so that rounding never ends it too early."""


class Rate:
    """
    A token bucket: in any ``t`` seconds there are at most ``rate * t + burst`` requests.

    :param settings: the rate, and the size of the bucket, which is full at first.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self._interval = 1 / settings.rate
        self._ahead = (settings.burst - 1) * self._interval
        # The time when the bucket is full again, and the time before which nothing may be sent whatever is in it.
        self._full_at = self._held_until = -inf

    def take(self, now: float) -> None:
        """Take a token for a request that is sent now."""
        self._full_at = max(self._full_at, now) + self._interval

    def hold(self, until: float) -> None:
        """Forbid sending before a time."""
        self._held_until = max(self._held_until, until)

    def release(self, now: float) -> bool:
        """
        Undo :meth:`hold`.

        :returns: whether it was still in force.
        """
        held, self._held_until = self._held_until > now, -inf
        return held

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 if it may be sent now."""
        until = max(self._full_at - self._ahead, self._held_until)
        return until - now + LATER if until > now else 0.0
