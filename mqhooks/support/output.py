"""
Write to standard output: a full disk ends in one line, a reader that has gone is no mistake.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from mqhooks.errors import MqhooksError


def flush() -> None:
    """Flush standard output, if it is open at all."""
    if sys.stdout is not None:
        sys.stdout.flush()


def put(write: Callable[[], object]) -> None:
    """
    Call what writes to standard output, or flushes it.

    :raises BrokenPipeError: when its reader has gone.
    :raises mqhooks.errors.MqhooksError: when it cannot be written for another reason.
    """
    try:
        write()
    except OSError as error:
        # Without this, Python would try to write the rest of its buffer at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise MqhooksError(f"standard output cannot be written: {error.strerror}") from None
