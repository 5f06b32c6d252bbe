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
    Read a file, or the beginning of what a device gives. A FIFO does not block this.

    :param limit: bytes to read at most.
    :raises OSError: when it cannot be read, or is a longer file.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
        return file.read(limit) or b""
