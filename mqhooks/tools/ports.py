"""
Finding free ports for processes that are about to start.

The system takes the ports of outgoing connections from a certain range. A port in it that is free now may be taken by the time
that the process listens. So these ports are below it, and picked at random, so that two processes that look at the same time
find different ones.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from socket import socket

LOWEST = 10_000
"""Ports below this may belong to services."""

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(random: Random | None = None) -> int:
    """
    Find a port of 127.0.0.1 that nobody listens on.

    :raises OSError: when none is found.
    """
    upper = 32768
    with suppress(OSError, ValueError, IndexError):
        upper = max(int(_RANGE.read_text("ascii").split()[0]), LOWEST + 1)
    random = random or Random()
    error: OSError | None = None
    for _ in range(100):
        port = random.randrange(LOWEST, upper)
        try:
            with socket() as sock:
                sock.bind(("127.0.0.1", port))
            return port
        except OSError as problem:
            error = problem
    assert error is not None
    raise error
