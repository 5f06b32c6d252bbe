"""
Sink plugins made of functions.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from twisted.plugin import IPlugin
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink, ISinkPlugin


@implementer(IPlugin, ISinkPlugin)
class SinkMaker:
    """
    A sink plugin for :func:`~mqhooks.sinks.sinkFromString` that takes its arguments from a function's signature.

    :param prefix: what stands before the first colon of the description.
    :param usage: the arguments on one line, as the help and the errors show them.
    :param make: gets the reactor, and the description's arguments as strings; returns the sink. It may raise
        :class:`~mqhooks.errors.ConfigError` with the argument's name as its ``key``.
    """

    def __init__(self, prefix: str, usage: str, make: Callable[..., IEventSink]) -> None:
        self.prefix = prefix
        self.usage = usage
        self._make = make

    def build(self, reactor: object, /, *args: str, **kwargs: str) -> IEventSink:
        """
        Call the function.

        :raises mqhooks.errors.ConfigError: when an argument is unknown, missing or wrong.
        """
        try:
            bound = signature(self._make).bind(reactor, *args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{error}; write it like {self.usage}") from None
        return self._make(*bound.args, **bound.kwargs)
