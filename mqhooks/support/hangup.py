"""
SIGHUP, shared by everything that reopens files.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType


class _Hangup:
    """
    The handler of SIGHUP while anything listens for it. It holds the callbacks itself, so the process's signal table is the
    only global state.

    :param previous: the handler that it replaced, and calls last.
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
        """Remove a callback; after the last one, restore the previous handler."""
        previous = self.previous or signal.SIG_DFL
        self.callbacks.remove(callback)
        if not self.callbacks and signal.getsignal(signal.SIGHUP) is self:
            signal.signal(signal.SIGHUP, previous)


def on_hangup(callback: Callable[[], object]) -> Callable[[], None]:
    """
    Call a function at each SIGHUP, in addition to the handler set before. Outside the main thread, where Python handles no
    signals, this does nothing.

    :param callback: called in the main thread, between any two bytecodes.
    :returns: a function that undoes this. After the last one the previous handler is restored.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    current = signal.getsignal(signal.SIGHUP)
    handler = current if isinstance(current, _Hangup) else _Hangup(current)
    signal.signal(signal.SIGHUP, handler)
    handler.callbacks.append(callback)
    return partial(handler.forget, callback)
