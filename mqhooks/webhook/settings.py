"""
The settings of one webhook, validated and frozen.

:class:`WebhookSettings` is flat, as the API shows it. Each part of the program takes what it needs: NanoMQ's rules and bodies
take :attr:`WebhookSettings.bodies`, the transport ``tls``, the dispatcher ``retry`` and ``batch``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from mqhooks.errors import ConfigError
from mqhooks.http.tls import TLSSettings
from mqhooks.nanomq.settings import BodySettings, Encoding, Rule

Ordering = Literal["client", "none"]

BatchFormat = Literal["array", "ndjson"]
Compression = Literal["none", "gzip"]

Refusals = Literal["hold", "bury"]
Transport = Literal["pooled", "treq"]


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """
    When a delivery that did not arrive is tried again.

    :param initial: seconds before the second attempt.
    :param multiplier: the factor by which the backoff grows with each attempt.
    :param maximum: the longest backoff in seconds, before jitter.
    :param jitter: the share of a backoff by which it may be longer or shorter, so that deliveries that failed together are not
        retried together.
    :param max_age: seconds after which a delivery is given up.
    :param max_attempts: how often a delivery is tried at most; 0 for no limit.
    :param on: the statuses after which it is tried again; ``3xx``, ``4xx`` and ``5xx`` stand for a hundred each.
    :param refusals: what happens when an endpoint refuses delivery after delivery with a status like 401, 404 or 410:
        ``hold`` keeps them and probes until the endpoint accepts one, ``bury`` makes dead letters of them.
    """

    initial: float = 1.0
    multiplier: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.2
    max_age: float = 72 * 3600.0
    max_attempts: int = 0
    # 501 and 505 say that the endpoint cannot do what is asked: RFC 9110, section 15.6.
    on: tuple[int | str, ...] = (408, 425, 429, *(status for status in range(500, 600) if status not in (501, 505)))
    refusals: Refusals = "hold"


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """
    How several events share a request.

    :param size: how many at most.
    :param linger: how many seconds the first of a request waits for others.
    :param max_bytes: how many bytes the bodies of a request have at most, unless a single one has more.
    :param format: ``array``: a JSON array. ``ndjson``: one JSON object per line.
    :param compression: how the request's body is compressed.
    """

    size: int = 100
    linger: float = 0.05
    max_bytes: int = 1 << 20
    format: BatchFormat = "array"
    compression: Compression = "none"


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """
    Defaults for every webhook whose own block does not say otherwise.

    :param retry: when deliveries are tried again.
    :param ordering: ``client`` keeps each client's events in order, ``none`` lets them overtake each other.
    :param merge_window: how many seconds an event waits for earlier ones of its client; 0 for not at all.
    """

    retry: RetrySettings = RetrySettings()
    ordering: Ordering = "client"
    merge_window: float = 0.05


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """
    One endpoint and what it receives.

    :param name: its name in logs and counters: ``webhook`` for the block of that name, else its key under ``webhooks``.
    :param url: an absolute ``http`` or ``https`` URL.
    :param rules: at least one for anything to be sent.
    :param headers: sent with each request, in this order, names as they were written.
    :param encoding: how a message's payload becomes a JSON string.
    :param pool_size: how many connections are open at most.
    :param cancel_timeout: seconds until a request without a whole answer is given up.
    :param tls: ``None`` for the system's authorities and no client certificate.
    :param details: whether what else VerneMQ knows is appended to NanoMQ's bodies.
    :param proto_ver: what stands for the protocol version where the stream doesn't give it.
    :param keepalive: what stands for the keep-alive time in seconds, which the stream never gives.
    :param retry: when deliveries are tried again.
    :param ordering: ``client`` keeps each client's events in order, ``none`` lets them overtake each other.
    :param merge_window: how many seconds an event waits for earlier ones of its client; 0 for not at all.
    :param batch: how several events share a request; ``None`` when each has one of its own.
    :param secrets: requests are signed with each of them, in the form of :func:`secret_key`; if there are none, not at all.
    :param transport: ``pooled`` sends over mqhooks' own connections, ``treq`` through treq and Twisted's ``Agent``.
    """

    name: str
    url: str
    rules: tuple[Rule, ...]
    headers: tuple[tuple[str, str], ...] = ()
    encoding: Encoding = "plain"
    pool_size: int = 32
    cancel_timeout: float = 5.0
    tls: TLSSettings | None = None
    details: bool = False
    proto_ver: int | None = None
    keepalive: int | None = None
    retry: RetrySettings = RetrySettings()
    ordering: Ordering = "client"
    merge_window: float = 0.05
    batch: BatchSettings | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    transport: Transport = "pooled"

    @property
    def bodies(self) -> BodySettings:
        """What the rules and bodies need: the part that is NanoMQ's."""
        return BodySettings(self.rules, self.encoding, self.details, self.proto_ver, self.keepalive)


def check_url(url: str) -> str:
    """
    Check where requests are to be sent.

    :returns: the URL, its scheme in lower case.
    :raises mqhooks.errors.ConfigError: when requests cannot be sent there; only the message is set.
    """
    shown = re.sub(r"//[^/]*@", "//…@", url)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{shown!r} has characters that a URL cannot have: percent-encode them")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{shown!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"{shown!r} is not a URL like http://host:8080/path")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("a URL's user and password are not sent: set headers.authorization instead")
    if parts.fragment:
        raise ConfigError(f"{shown!r} has a fragment (#…), which is never sent: remove it")
    return parts.scheme + url[len(parts.scheme) :]
