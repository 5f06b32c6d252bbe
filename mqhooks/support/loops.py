"""
Call functions again and again, also after they have failed: Twisted's ``LoopingCall`` ends for good then, and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.support.ratelimit import RateLimit


class Loop:
    """
    Calls a function at intervals. An error is logged with its traceback, each kind at most once a minute, and the loop goes on.

    :param clock: for the intervals.
    :param what: what the function does, for the log: ``checking the connections``.
    :param function: may be a coroutine function or return a ``Deferred``: the next call waits until it has ended.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, what: str, function: Callable[[], Any]) -> None:
        self._what = what
        self._complaints = RateLimit(clock)
        self._loop = LoopingCall(lambda: maybeDeferred(function).addErrback(self._failed))
        self._loop.clock = clock

    @property
    def running(self) -> bool:
        """Whether it is started and not stopped."""
        return self._loop.running

    def start(self, interval: float, *, now: bool = False) -> None:
        """
        Begin.

        :param interval: from one call to the next, in seconds.
        :param now: whether the first call is made at once.
        """
        self._loop.start(interval, now=now)

    def stop(self) -> None:
        """Make no more calls, if it is running."""
        if self._loop.running:
            self._loop.stop()

    def _failed(self, failure: Failure) -> None:
        if self._complaints.allow(failure.type) is not None:
            self.log.failure("{what} failed, and goes on", failure, what=self._what)
