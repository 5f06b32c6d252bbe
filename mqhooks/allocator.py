"""
Giving large blocks of memory back as soon as they are free.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_MMAP_THRESHOLD = -3
"""What ``mallopt`` of the GNU C library calls the size from which a block is mapped by itself."""

LARGE = 1 << 20
"""How many bytes such a block has at the least."""


def return_large_blocks() -> None:
    """
    Have the C library give each large block back when it is freed.

    By itself the GNU C library raises the size at which it does so with each larger block that is freed, to 32 MiB: a few long
    frames would leave holes behind that the next ones don't fit into. Other C libraries are left as they are.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
