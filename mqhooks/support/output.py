"""
Standard streams: a full disk ends in one line; a reader that has gone, or a stream that is closed, is no mistake.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO

from mqhooks.errors import MqhooksError


def occupy() -> None:
    """
    Have standard streams that are closed lead nowhere.

    Otherwise the next file or connection would get their descriptors, and what is meant for people. Call this before anything
    is opened; :func:`closed` remembers.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order they get their own descriptors.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def closed() -> bool:
    """Return whether standard output was closed when the process began."""
    return sys.__stdout__ is None


def complain(text: str) -> None:
    """Write lines to standard error. If that fails, the exit status has to do."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _give_up_on(sys.stderr)


def put(write: Callable[[], object]) -> None:
    """
    Call what writes to standard output, or flushes it.

    :raises BrokenPipeError: when its reader has gone.
    :raises mqhooks.errors.MqhooksError: when it cannot be written for another reason.
    """
    try:
        write()
    except OSError as error:
        _give_up_on(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise MqhooksError(f"standard output cannot be written: {error.strerror}") from None


def _give_up_on(stream: TextIO) -> None:
    # Without this, Python would try to write the rest of its buffer at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
