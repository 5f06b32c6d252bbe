"""
Making a sink plugin from a function.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink, ISinkPlugin


@implementer(IPlugin, ISinkPlugin)
class SinkMaker:
    """
    A sink plugin for :func:`~mqhooks.sinks.sinkFromString` whose arguments are those of a function.

    :param prefix: the description's part before the first colon.
    :param usage: the arguments on one line, for help and errors.
    :param make: called with the reactor and the description's arguments, as strings; returns the sink. It may raise
        :class:`~mqhooks.errors.ConfigError` with the argument's name as its ``key``.
    """

    def __init__(self, prefix: str, usage: str, make: Callable[..., object]) -> None:
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
            problem = str(error).replace("got an unexpected keyword argument", "there is no argument")
            raise ConfigError(f"{problem}; write it like {self.usage}") from None
        made: Any = self._make(*bound.args, **bound.kwargs)
        sink: IEventSink = made
        return sink
