"""
The sinks that ship with mqhooks, for ``--sink`` and :func:`mqhooks.sinks.sinkFromString`.
"""

from mqhooks.sinks.plugins import capture, fanout, filter_, log, sample, webhook

__all__ = ["capture", "fanout", "filter_", "log", "sample", "webhook"]
