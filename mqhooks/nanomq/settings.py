"""
The settings of one webhook's rules and bodies.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

Encoding = Literal["plain", "base64", "base62", "json", "omit"]
"""What a payload becomes in a body. The first three are NanoMQ's; ``omit`` leaves it out."""


@dataclass(frozen=True, slots=True)
class Rule:
    """
    Which events are sent.

    :param event: one of the 12 NanoMQ events or of the 13 VerneMQ hooks, in lower case.
    :param topic: an MQTT topic filter; ``None`` for every topic.
    :param shape: what its requests look like, for those who make others than NanoMQ's; ``None`` for NanoMQ's.
    :param names_user: whether such a request names the user.
    """

    event: str
    topic: str | None = None
    shape: Hashable | None = None
    names_user: bool = False


@dataclass(frozen=True, slots=True)
class BodySettings:
    """
    Which bodies events become.

    :param rules: at least one for anything to be sent.
    :param encoding: what a message's payload becomes in the body.
    :param details: whether what else VerneMQ knows is appended to NanoMQ's keys.
    :param proto_ver: the protocol version to report where the stream does not carry it.
    :param keepalive: the keep-alive time to report, in seconds; the stream never carries it.
    """

    rules: tuple[Rule, ...]
    encoding: Encoding = "plain"
    details: bool = False
    proto_ver: int | None = None
    keepalive: int | None = None
