"""Waiting on conditions."""

from inspect import getsource

from twisted.internet import reactor
from twisted.internet.task import deferLater


class Ahead:
    """
    The reactor, with a clock that can be set ahead; its timers stay where they are.

    :ivar ahead: seconds by which the clock is ahead.
    """

    def __init__(self):
        self.ahead = 0.0

    def __getattr__(self, name):
        return getattr(reactor, name)

    def seconds(self):
        return reactor.seconds() + self.ahead


async def until(condition, seconds=60.0):
    """
    Wait until a condition holds, and return what it returned.

    :param condition: called again and again; may be a coroutine function.
    :param seconds: time limit. It is generous, because a busy machine may be slow to get to anything.
    """
    end = reactor.seconds() + seconds
    while True:
        held = condition()
        if hasattr(held, "__await__"):
            held = await held
        if held:
            return held
        assert reactor.seconds() < end, f"not within {seconds:g} s: {getsource(condition).strip()}"
        await deferLater(reactor, 0.005)
