"""
Twisted endpoints for the transports: see :mod:`mqhooks.support.names`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from mqhooks.support import names
from mqhooks.support.names import LookUp, NameLookup, connect_problem, in_words, look_up

__all__ = ["SHARE", "NameLookup", "connect_problem", "endpoint", "in_words", "look_up"]

SHARE = 0.9
"""The share of a request's timeout that connecting may take, so that a failure to connect is reported as one."""


def endpoint(reactor: Any, host: str, port: int, timeout: float, by: LookUp = look_up) -> IStreamClientEndpoint:
    """
    Make an endpoint that connects to the first of a host's addresses that answers.

    :param timeout: the request's timeout in seconds; connecting may take :data:`SHARE` of it.
    :param by: looks the name up, in a thread.
    """
    return names.endpoint(reactor, host, port, timeout * SHARE, by)
