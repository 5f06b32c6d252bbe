"""
The sinks that ship with mqhooks, for ``--sink`` and :func:`mqhooks.sinks.sinkFromString`.
"""

from mqhooks.sinks.plugins import fanout, filter_, log, sample, webhook

__all__ = ["fanout", "filter_", "log", "sample", "webhook"]
