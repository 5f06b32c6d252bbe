"""
Choose the proxy for requests: the one that ``proxy`` names, or the environment's, read as curl reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

from mqhooks.errors import ConfigError
from mqhooks.http.proxy import ProxySettings
from mqhooks.webhook.settings import check_url


def read_proxy(text: str) -> ProxySettings:
    """
    Read a proxy's URL; ``http://`` may be left out.

    :raises mqhooks.errors.ConfigError: when it is not one; only the message is set, and it shows none of the URL.
    """
    text = text.strip()
    if "://" not in text:
        text = f"http://{text}"
    scheme, _, rest = text.partition("://")
    if scheme.lower() != "http" and scheme.isalnum():
        raise ConfigError(f"is a proxy with {scheme}://: only http:// is supported")
    user, _, place = rest.removesuffix("/").rpartition("@")
    try:
        parts = urlsplit(check_url(f"http://{place}"))
        port, host = parts.port, parts.hostname or ""
        if parts.path or parts.query:
            raise ValueError
        name, _, password = (unquote(piece, errors="strict") for piece in user.partition(":"))
        if ":" in name or not (name + password).isprintable() or (user and not name) or "/" in user:
            raise ValueError
    except (ConfigError, ValueError):
        # Show none of it: any part may be a password.
        form = "http://proxy:3128 or http://user:password@proxy:3128"
        encoded = "with special characters in user and password percent-encoded"
        raise ConfigError(f"is not a proxy's URL: write it like {form}, {encoded}") from None
    if port is None:
        raise ConfigError("names no port, and there is no common default: add one, as in http://proxy:3128")
    return ProxySettings(host, port, name, password)


def from_environment(url: str, environ: Mapping[str, str]) -> ProxySettings | None:
    """
    Find the proxy that the environment names for a URL: ``https_proxy`` or ``http_proxy`` by the URL's scheme, unless
    ``no_proxy`` excludes its host. An upper-case name counts if the lower-case one is not set, except for ``HTTP_PROXY``, which
    a CGI client could set.

    :raises mqhooks.errors.ConfigError: when the variable holds something else; only the message is set.
    """
    parts = urlsplit(url)
    name = f"{parts.scheme}_proxy"
    value = environ.get(name) or (environ.get(name.upper()) if parts.scheme == "https" else None)
    if not value or _excepted(parts.hostname or "", environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    try:
        return read_proxy(value)
    except ConfigError as error:
        raise ConfigError(f"env: the environment variable {name} {error.message}") from None


def _excepted(host: str, exceptions: str) -> bool:
    host = host.rstrip(".")
    return any(_matches(host, entry) for entry in _entries(exceptions))


def _entries(exceptions: str) -> Iterator[str]:
    for entry in exceptions.replace(",", " ").split():
        yield entry if entry == "*" else entry.lower().strip("[]").removeprefix("*").strip(".")


def _matches(host: str, entry: str) -> bool:
    if entry == "*":
        return True
    with suppress(ValueError):
        address = ip_address(host)
        # An address is not a name, so it has no domain.
        with suppress(ValueError):
            return address in ip_network(entry, strict=False)
        return False
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))
