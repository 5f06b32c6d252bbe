"""
Reading files that an operator names, which may be anything.
"""

from __future__ import annotations

import os

LIMIT = 4 << 20
"""How many bytes a file may have: certificates have a few thousand."""


def read_bounded(path: str, limit: int = LIMIT) -> bytes:
    """
    Read a file: neither a FIFO holds it up, nor does a device fill the memory.

    :param limit: how many bytes are read at most.
    :raises OSError: when it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(limit) or b""
