"""
The settings of a NATS client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from mqhooks.errors import ConfigError
from mqhooks.nats.auth import Auth
from mqhooks.support.redact import hide_url
from mqhooks.support.tls import TLSSettings, host_and_port

PORT = 4222
"""A server's usual port."""


NOBODY = Auth()
"""No credentials, for servers that let everybody in."""


@dataclass(frozen=True, slots=True)
class Server:
    """
    The address of a server.

    :param tls: whether it must speak TLS.
    :param auth: the credentials in its URL, if any.
    """

    host: str
    port: int = PORT
    tls: bool = False
    auth: Auth | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class NATSSettings:
    """
    The settings of a client. Times are in seconds, sizes in bytes.

    :param servers: any servers of one cluster; they are tried in random order.
    :param auth: our credentials.
    :param tls: certificates; with these, every server has to speak TLS. With ``None``, TLS is used if a server demands it or
        its URL begins with ``tls://``, and the system's authorities are trusted.
    :param tls_first: begin with TLS instead of waiting for the server's first line; for servers with ``handshake_first``.
    :param name: our name in the servers' lists of connections.
    :param inbox: the prefix of the subjects for answers.
    :param discover: whether to connect also to the servers that a server names. Their certificates have to match the addresses
        that it gives.
    :param ping_interval: time between two pings; a server that says nothing from one to the next is given up.
    :param connect_timeout: for connecting, and again for the login.
    :param min_backoff: the first wait after all servers have been tried in vain.
    :param max_backoff: the longest wait.
    :param max_rounds: rounds through all servers before the client gives up; ``None`` to try for ever.
    :param max_pending: maximum number of bytes that may wait to be sent.
    :param max_message: longest message from the server.
    :param oldest: the oldest version of the server that is accepted.
    """

    servers: tuple[Server, ...]
    auth: Auth = NOBODY
    tls: TLSSettings | None = None
    tls_first: bool = False
    name: str = "mqhooks"
    inbox: str = "_INBOX"
    discover: bool = False
    ping_interval: float = 1.0
    connect_timeout: float = 2.0
    min_backoff: float = 0.1
    max_backoff: float = 2.0
    max_rounds: int | None = None
    max_pending: int = 32 << 20
    max_message: int = 8 << 20
    oldest: tuple[int, int] = (2, 11)


def server(url: str, where: str = "", key: str = "") -> Server:
    """
    Read a server's URL: ``nats://host:4222``, ``tls://host``, ``host``, and ``user:password@`` or ``token@`` before the host.

    :param where: the source of the URL; for errors.
    :param key: its key in there; for errors.
    :raises mqhooks.errors.ConfigError: when it is not such a URL.
    """
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        port = parts.port
        host = parts.hostname or ""
        if not re.fullmatch(r"[^\s\x00-\x20]+", host) or port == 0 or parts.scheme not in ("nats", "tls"):
            raise ValueError
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError
    except ValueError:
        shown = hide_url(url) if "://" in url else hide_url(f"nats://{url}")
        raise ConfigError(f"{shown} is not a NATS server: write it like nats://host:{PORT} or tls://host", where, key) from None
    auth = None
    if parts.username is not None:
        user, password = unquote(parts.username), parts.password
        auth = Auth(token=user) if password is None else Auth(user, unquote(password))
    return Server(host, PORT if port is None else port, parts.scheme == "tls", auth)
