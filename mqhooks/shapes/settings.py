"""
The settings of a request's shape, as text: what is wrong with them is found when they are compiled.
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
    How the requests of a rule differ from NanoMQ's.

    :param method: the request's.
    :param url: path and query with placeholders; ``None`` for the webhook's.
    :param headers: sent in place of the webhook's of the same name; names as they were written, values with placeholders.
    :param body: a body with placeholders; ``None`` for NanoMQ's.
    :param encoding: what ``{{payload}}`` becomes; ``json``: the value that it is, else text.
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

    :param source: where they come from, a URI reference; ``""`` for this host and the client's mountpoint.
    :param origin: who we are: the host in the default source, and what a handshake says.
    :param mode: ``structured``: an event is a JSON object; ``binary``: its attributes are headers; ``batch``: several in
        a JSON array.
    :param handshake: whether the endpoint is asked whether it wants the events.
    """

    source: str = ""
    origin: str = "localhost"
    mode: Mode = "structured"
    handshake: bool = False
