"""
Makes ``--sink statsd:host=127.0.0.1`` known to mqhooks.
"""

from mqhooks_statsd import statsd

__all__ = ["statsd"]
