"""
The sinks that ship with mqhooks, for ``--sink`` and :func:`mqhooks.sinks.sinkFromString`.
"""

from mqhooks.app.plugins import capture, webhook
from mqhooks.sinks.plugins import fanout, filter_, log, sample

__all__ = ["capture", "fanout", "filter_", "log", "sample", "webhook"]
