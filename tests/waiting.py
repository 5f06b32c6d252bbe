"""Waiting on conditions."""

from inspect import getsource

from twisted.internet import reactor
from twisted.internet.task import deferLater


class Ahead:
    """
    The reactor, with a clock that can be set ahead; its timers stay where they are.

    :ivar ahead: by how many seconds.
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
    :param seconds: fail after so many. They are many: a busy machine may not get to anything for long.
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
