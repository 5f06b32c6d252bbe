"""
SIGHUP, shared by all who reopen files.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType


class _Hangup:
    """
    Python's handler of SIGHUP while somebody listens for it. Who listens is kept here, so that the signal table itself is the
    only state.

    :param previous: what it took the place of, and calls last.
    """

    def __init__(self, previous: signal._HANDLER) -> None:
        self.previous = previous
        self.callbacks: list[Callable[[], object]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        for callback in self.callbacks:
            callback()
        if callable(self.previous):
            self.previous(number, frame)

    def forget(self, callback: Callable[[], object]) -> None:
        """Leave a callback out; after the last one, give the signal back to who had it before."""
        previous = self.previous or signal.SIG_DFL
        self.callbacks.remove(callback)
        if not self.callbacks and signal.getsignal(signal.SIGHUP) is self:
            signal.signal(signal.SIGHUP, previous)


def on_hangup(callback: Callable[[], object]) -> Callable[[], None]:
    """
    Have a function called at each SIGHUP, besides what was done at it before. Outside the main thread, where Python does not
    let anyone handle signals, this does nothing.

    :param callback: is called in the main thread, between any two steps of what it does.
    :returns: a function that undoes it. When nobody listens any more, the previous handler is back.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    current = signal.getsignal(signal.SIGHUP)
    handler = current if isinstance(current, _Hangup) else _Hangup(current)
    signal.signal(signal.SIGHUP, handler)
    handler.callbacks.append(callback)
    return partial(handler.forget, callback)
