"""
The settings of one webhook, validated and frozen.

:class:`WebhookSettings` is flat, like the API's view of it. Each part of the program takes only what it needs: NanoMQ's rules
and bodies take :attr:`WebhookSettings.bodies`, the transport ``tls``, the dispatcher ``retry`` and ``batch``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from ipaddress import IPv6Address
from socket import inet_aton
from typing import Literal

from mqhooks.errors import ConfigError
from mqhooks.http.proxy import ProxySettings
from mqhooks.nanomq.settings import BodySettings, Encoding, Rule
from mqhooks.shapes.settings import CloudEventsSettings
from mqhooks.support.redact import hide_url
from mqhooks.support.tls import TLSSettings

Ordering = Literal["client", "none"]

BatchFormat = Literal["array", "ndjson"]
Compression = Literal["none", "gzip"]

Refusals = Literal["hold", "bury"]
Transport = Literal["pooled", "treq"]
CredentialsIn = Literal["header", "body"]

_URL = re.compile(r"(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?#]+)[^#]*(#.*)?")
_AUTHORITY = re.compile(r"(\[(?P<address>[^\[\]]*)\]|(?P<host>[^:\[\]]+))(:(?P<port>.*))?")
# The labels that the system's resolver accepts: underscores too, which names in Docker Compose may have.
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """
    When to retry a delivery that did not arrive.

    :param initial: seconds before the second attempt.
    :param multiplier: the factor by which the backoff grows with each attempt.
    :param maximum: the longest backoff in seconds, before jitter.
    :param jitter: the share of a backoff by which it may be longer or shorter, so that deliveries that failed together are not
        retried together.
    :param max_age: seconds until a delivery is given up.
    :param max_attempts: maximum number of attempts of a delivery; 0 for no limit.
    :param on: the statuses that are retried; ``3xx``, ``4xx`` and ``5xx`` stand for a hundred each.
    :param refusals: what happens when an endpoint refuses delivery after delivery with a status like 401, 404 or 410:
        ``hold`` keeps them and probes until the endpoint accepts one, ``bury`` turns them into dead letters.
    """

    initial: float = 1.0
    multiplier: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.2
    max_age: float = 72 * 3600.0
    max_attempts: int = 0
    # 501 and 505 mean that the endpoint does not support the request: RFC 9110, section 15.6.
    on: tuple[int | str, ...] = (408, 425, 429, *(status for status in range(500, 600) if status not in (501, 505)))
    refusals: Refusals = "hold"


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """
    How several events share a request.

    :param size: maximum number of events in a request.
    :param linger: seconds that the first event of a request waits for others.
    :param max_bytes: maximum size of a request's bodies in bytes, unless a single body is longer.
    :param format: ``array``: a JSON array. ``ndjson``: one JSON object per line.
    :param compression: how the request's body is compressed.
    """

    size: int = 100
    linger: float = 0.05
    max_bytes: int = 1 << 20
    format: BatchFormat = "array"
    compression: Compression = "none"


@dataclass(frozen=True, slots=True)
class BasicSettings:
    """
    Authentication by name and password: RFC 7617.

    :param username: without a colon.
    :param password: may be empty.
    """

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BearerSettings:
    """
    Authentication with a token that somebody else has made: RFC 6750. Exactly one of the two is set.

    :param token: sent as it is.
    :param token_file: the file that holds the token; read again when it changes.
    """

    token: str | None = field(default=None, repr=False)
    token_file: str | None = None


@dataclass(frozen=True, slots=True)
class OAuth2Settings:
    """
    Authentication with a token that an OAuth 2.0 server issues to us: RFC 6749, section 4.4.

    :param token_url: the server's token endpoint: an absolute ``http`` or ``https`` URL.
    :param client_id: our id at the server.
    :param client_secret: our secret at the server.
    :param scope: the scope to ask for, if the server needs one; likewise ``audience``.
    :param credentials: whether id and secret go into a ``header``, as RFC 6749 prefers, or into the ``body``.
    :param tls: for an ``https`` server; ``None`` for the system's authorities and no client certificate.
    :param proxy: the proxy to the server; ``None`` to connect directly.
    """

    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""
    audience: str = ""
    credentials: CredentialsIn = "header"
    tls: TLSSettings | None = None
    proxy: ProxySettings | None = None


AuthSettings = BasicSettings | BearerSettings | OAuth2Settings


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """
    The limit of a webhook's requests: in any ``t`` seconds at most ``rate * t + burst``.

    :param rate: requests per second; a batch counts once.
    :param burst: requests that may be sent at once.
    """

    rate: float
    burst: int


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """
    Defaults for every webhook whose own block does not say otherwise.

    :param retry: when deliveries are retried.
    :param ordering: ``client`` keeps each client's events in order, ``none`` lets them overtake each other.
    :param merge_window: seconds that an event waits for earlier events of its client; 0 for no wait.
    :param auth: how requests authenticate; ``None`` for no authentication.
    :param proxy: the proxy for requests; ``env`` takes it from the environment, ``None`` connects directly to the endpoint.
    """

    retry: RetrySettings = RetrySettings()
    ordering: Ordering = "client"
    merge_window: float = 0.05
    auth: AuthSettings | None = None
    proxy: ProxySettings | Literal["env"] | None = None


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """
    One endpoint, and the events that it receives.

    :param name: its name in logs and counters: ``webhook`` for the block of that name, else its key under ``webhooks``.
    :param url: an absolute ``http`` or ``https`` URL.
    :param rules: without any, nothing is sent.
    :param headers: sent with each request, in this order, with names as configured.
    :param encoding: the encoding of a message's payload in the body.
    :param pool_size: maximum number of open connections.
    :param cancel_timeout: seconds until a request without a whole answer is given up.
    :param tls: ``None`` for the system's authorities and no client certificate.
    :param details: whether to append VerneMQ's further fields to NanoMQ's bodies.
    :param proto_ver: the protocol version to report where the stream doesn't give it.
    :param keepalive: the keep-alive time to report, in seconds; the stream never gives it.
    :param retry: when deliveries are retried.
    :param ordering: ``client`` keeps each client's events in order, ``none`` lets them overtake each other.
    :param merge_window: seconds that an event waits for earlier events of its client; 0 for no wait.
    :param batch: how several events share a request; ``None`` when each has one of its own.
    :param limit: the limit of requests in a time; ``None`` for no limit.
    :param secrets: requests are signed with each of them, ``whsec_…`` or ``whsk_…``; without any, they are not signed.
    :param auth: how requests authenticate; ``None`` for no authentication.
    :param proxy: the proxy for requests; ``None`` to connect directly to the endpoint.
    :param cloudevents: how events become CloudEvents; ``None`` if they don't.
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
    limit: LimitSettings | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    transport: Transport = "pooled"
    auth: AuthSettings | None = None
    proxy: ProxySettings | None = None
    cloudevents: CloudEventsSettings | None = None

    @property
    def digest(self) -> str:
        """
        A digest of the settings that machines sharing this webhook must have in common: without its secrets, the values of
        its headers and the origin of its CloudEvents.
        """
        events = None if self.cloudevents is None else replace(self.cloudevents, origin="")
        alike = replace(self, headers=tuple((name, "") for name, _ in self.headers), cloudevents=events)
        return blake2b(repr(alike).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    @property
    def shaped(self) -> bool:
        """Whether requests have other shapes than NanoMQ's."""
        return self.cloudevents is not None or any(rule.shape is not None for rule in self.rules)

    @property
    def bodies(self) -> BodySettings:
        """The settings of NanoMQ's rules and bodies."""
        return BodySettings(self.rules, self.encoding, self.details, self.proto_ver, self.keepalive)


def check_url(url: str, instead: str = "webhook.auth") -> str:
    """
    Check the URL of an endpoint.

    :param instead: the key for the user and the password, which a URL must not have.
    :returns: the URL, its scheme in lower case.
    :raises mqhooks.errors.ConfigError: when requests can never be sent there; only the message is set, without the URL's
        secrets.
    """
    shown = hide_url(url)
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ConfigError(f"{shown!r} has white space or a control character in it: remove it, or percent-encode it as in %20")
    match = _URL.fullmatch(url)
    if match is None or match["scheme"].lower() not in ("http", "https"):
        raise ConfigError(f"{shown!r} is not a URL like http://host:8080/path")
    if "@" in match["authority"]:
        raise ConfigError(f"a URL's user and password are not sent: set {instead} instead")
    _check_authority(match["authority"], shown)
    if not url.isascii():
        raise ConfigError(f"{shown!r} has characters that a URL cannot have: percent-encode them")
    if "#" in url:
        raise ConfigError(f"{shown!r} has a fragment (#…), which is never sent: remove it")
    return match["scheme"].lower() + url[len(match["scheme"]) :]


def _check_authority(authority: str, shown: str) -> None:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ConfigError(f"{shown!r} is not a URL like http://host:8080/path or http://[::1]:8080/path")
    port = match["port"]
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 1 << 16):
        remedy = "write one, or leave the colon out"
        raise ConfigError(f"{shown!r} is not a URL: no port from 1 to 65535 follows the colon; {remedy}")
    problem = _address_problem(match["address"]) if match["host"] is None else _host_problem(match["host"])
    if problem is not None:
        raise ConfigError(f"{shown!r} is not a valid endpoint: {problem}")


def _address_problem(address: str) -> str | None:
    if "%" in address:
        return "an address with a zone (%…) is valid only on this machine: write the host's name or another of its addresses"
    try:
        IPv6Address(address)
    except ValueError:
        return f"{address!r} is not an IPv6 address: write only IPv6 addresses in brackets"
    return None


def _host_problem(host: str) -> str | None:
    if not host.isascii():
        try:
            plain = host.encode("idna").decode()
        except UnicodeError:
            plain = ""
        # Python's encoding maps some characters to a different host than browsers do.
        same = plain.encode().decode("idna") == host.lower()
        return f"write the host in its IDNA form, {plain if same else 'xn--…'}"
    if "\\" in host:
        return "write / in place of the backslash"
    labels = host.removesuffix(".").split(".")
    if not all(map(_LABEL.fullmatch, labels)) or len(host) > 253:
        return f"{host!r} is not a host name: write letters, digits, hyphens and underscores between its dots"
    if labels[-1].isdigit():
        # The system accepts 127.1 as an address, too.
        try:
            inet_aton(host)
        except OSError:
            return f"{host!r} is not an IPv4 address, and no name ends in a number: write four numbers of up to 255"
    return None
