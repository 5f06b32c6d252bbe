"""
The settings of a request's shape, as text: mistakes in them are found when they are compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mqhooks.nanomq.settings import Encoding

Method = Literal["POST", "PUT", "PATCH"]
Mode = Literal["structured", "binary", "batch"]


@dataclass(frozen=True, slots=True)
class Shape:
    """
    The differences between a rule's requests and NanoMQ's.

    :param method: the request's method.
    :param url: path and query with placeholders; ``None`` for the webhook's.
    :param headers: replace the webhook's headers of the same names; names as written, values with placeholders.
    :param body: a body with placeholders; ``None`` for NanoMQ's.
    :param encoding: the encoding of ``{{payload}}``; ``json`` inserts JSON as a value, anything else as text.
    :param plain: whether the body is text in which nothing is escaped.
    """

    method: Method = "POST"
    url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    encoding: Encoding = "json"
    plain: bool = False


@dataclass(frozen=True, slots=True)
class CloudEventsSettings:
    """
    How events become CloudEvents 1.0.

    :param source: the events' source, a URI reference; ``""`` for this host and the client's mountpoint.
    :param origin: our name: the host in the default source, and the origin in a handshake.
    :param mode: ``structured``: an event is a JSON object; ``binary``: its attributes are headers; ``batch``: several events
        are a JSON array.
    :param handshake: whether to ask the endpoint first whether it wants the events.
    """

    source: str = ""
    origin: str = "localhost"
    mode: Mode = "structured"
    handshake: bool = False
