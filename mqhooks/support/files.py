"""
Read files that an operator names. Such a name may lead to a FIFO, a device or a huge file.
"""

from __future__ import annotations

import errno
import os

LIMIT = 4 << 20
"""Bytes read from a file at most; certificates have a few thousand."""


def read_bounded(path: str, limit: int = LIMIT) -> bytes:
    """
    Read a file. A FIFO does not block this, and a device does not fill the memory.

    :param limit: bytes that it may have.
    :raises OSError: when it cannot be read, or has more.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        data = file.read(limit + 1) or b""
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return data
