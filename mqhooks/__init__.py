"""
Relay MQTT broker events as webhooks: in order for each client, retried, counted.

VerneMQ's events sidecar sends int32-framed protobuf (:mod:`mqhooks.sources.sidecar`); the endpoints receive what NanoMQ's
``webhook {}`` block would send them (:mod:`mqhooks.nanomq`, :mod:`mqhooks.webhook`).
"""

from importlib.metadata import version

__version__ = version("mqhooks")
