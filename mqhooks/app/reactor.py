"""
A reactor whose timers ignore changes of the system clock.

Twisted's reactors schedule by ``time.time``: when somebody sets the clock, timers stall, or all of them expire at once.
mqhooks depends on timers (backoff, timeouts, batches), so it runs on a subclass of the platform's default reactor that
schedules by ``time.monotonic``. A reactor that is installed already, such as one chosen with ``twistd --reactor``, stays.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from twisted.internet.main import installReactor

if TYPE_CHECKING:
    from twisted.internet.epollreactor import EPollReactor as DefaultReactor
else:
    try:
        from twisted.internet.epollreactor import EPollReactor as DefaultReactor
    except ImportError:
        if sys.platform == "darwin":
            # Its poll() does not support all file descriptors.
            from twisted.internet.selectreactor import SelectReactor as DefaultReactor
        else:
            from twisted.internet.pollreactor import PollReactor as DefaultReactor


class MonotonicReactor(DefaultReactor):
    """The platform's default reactor, with timers that ignore changes of the system clock."""

    # The function itself, without a method around it: it is called four times for each delivery.
    seconds = staticmethod(time.monotonic)


def private() -> Any:
    """
    Make a :class:`MonotonicReactor` without installing it, for work before or beside the installed one.
    """
    return MonotonicReactor()


def install() -> Any:
    """
    Install a :class:`MonotonicReactor`, unless a reactor is installed already.

    In a ``.tac`` file, use this instead of ``from twisted.internet import reactor``.

    :returns: the reactor that is installed now.
    """
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(MonotonicReactor())
    return importlib.import_module("twisted.internet.reactor")
