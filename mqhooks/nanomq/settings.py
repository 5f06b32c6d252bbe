"""
The settings of one webhook's rules and bodies.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

Encoding = Literal["plain", "base64", "base62", "json", "omit"]
"""Encodings of a payload in a body. The first three are NanoMQ's; ``omit`` leaves the payload out."""


@dataclass(frozen=True, slots=True)
class Rule:
    """
    A rule: the events that are sent.

    :param event: one of the 12 NanoMQ events or of the 13 VerneMQ hooks, in lower case.
    :param topic: an MQTT topic filter; ``None`` for every topic.
    :param shape: the shape of its requests, opaque to this package; ``None`` for NanoMQ's.
    :param names_user: whether a request of that shape names the user.
    """

    event: str
    topic: str | None = None
    shape: Hashable | None = None
    names_user: bool = False


@dataclass(frozen=True, slots=True)
class BodySettings:
    """
    The settings of a webhook's bodies.

    :param rules: without any, nothing is sent.
    :param encoding: the encoding of a message's payload in the body.
    :param details: whether to append VerneMQ's further fields to NanoMQ's keys.
    :param proto_ver: the protocol version to report where the stream does not carry it.
    :param keepalive: the keep-alive time to report, in seconds; the stream never carries it.
    """

    rules: tuple[Rule, ...]
    encoding: Encoding = "plain"
    details: bool = False
    proto_ver: int | None = None
    keepalive: int | None = None
