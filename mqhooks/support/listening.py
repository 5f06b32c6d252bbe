"""
Listening on an endpoint that an operator has configured.
"""

from __future__ import annotations

import errno
import re
from ipaddress import IPv6Address, ip_address
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure

from mqhooks.errors import ConfigError, ListenError

BACKLOG = 1024
"""VerneMQ opens its whole pool within milliseconds; connections beyond the backlog would wait a second or more."""

_DEFAULTS: dict[str, dict[str, object]] = {
    "tcp": {"interface": "127.0.0.1", "backlog": BACKLOG},
    "tcp6": {"interface": "\\:\\:1", "backlog": BACKLOG},
    "ssl": {"interface": "127.0.0.1", "backlog": BACKLOG},
    "unix": {"backlog": BACKLOG},
}

_REMEDIES = {
    errno.EACCES: "let this user write to its directory or ",
    errno.EADDRINUSE: "stop what uses the address or ",
    errno.EADDRNOTAVAIL: "this machine has no such address: ",
    errno.ENOENT: "make its directory or ",
}


def complete(description: str) -> str:
    """
    Fill in our defaults for a listening endpoint: the loopback interface and a backlog of :data:`BACKLOG`.

    :param description: for Twisted's ``serverFromString``. One with further positional arguments is returned as it is.
    """
    kind, *parts = re.split(r"(?<!\\):", description)
    given = {part.partition("=")[0] for part in parts if "=" in part}
    if len(parts) - len(given) > 1:
        return description
    defaults = _DEFAULTS.get(kind, {})
    return ":".join([description, *(f"{key}={value}" for key, value in defaults.items() if key not in given)])


class Listener:
    """
    An address to listen on.

    :param reactor: listens.
    :param description: for Twisted's ``serverFromString``, completed by :func:`complete`.
    :raises mqhooks.errors.ConfigError: when the description is wrong.
    """

    def __init__(self, reactor: Any, description: str) -> None:
        self.description = description
        try:
            self._endpoint = serverFromString(reactor, complete(description))
        except Exception as error:
            raise ConfigError(
                f"not a listening endpoint ({error}); write it like tcp:8890 or unix:/run/mqhooks.sock", description
            ) from error
        port = _port(description)
        if port is not None and not 0 <= port <= 65_535:
            raise ConfigError(f"there is no port {port}: ports are from 1 to 65535, and 0 is any free one", description)

    def listen(self, factory: IProtocolFactory) -> IListeningPort:
        """
        Listen at once.

        :raises mqhooks.errors.ListenError: when the address is taken, not allowed, or not one of this machine.
        """
        results: list[Any] = []
        self._endpoint.listen(factory).addBoth(results.append)
        if not results:
            raise ListenError(f"cannot listen on {self.description}: this kind of endpoint does not listen immediately")
        if isinstance(results[0], Failure):
            error = results[0].value
            cause = error.socketError if isinstance(error, CannotListenError) else error
            reason = getattr(cause, "strerror", None) or str(cause)
            raise ListenError(f"cannot listen on {self.description}: {reason}; {self._remedy(cause)}give another one")
        port: IListeningPort = results[0]
        return port

    def _remedy(self, cause: Any) -> str:
        number = getattr(cause, "errno", 0)
        if number in (errno.EACCES, errno.EPERM) and _port(self.description) is not None:
            return "get the privilege that a port below 1024 needs or "
        return _REMEDIES.get(number, "")


def _port(description: str) -> int | None:
    kind, *parts = re.split(r"(?<!\\):", description)
    if kind not in ("tcp", "tcp6", "ssl"):
        return None
    text = next((part.removeprefix("port=") for part in parts if "=" not in part or part.startswith("port=")), "")
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None


def address_name(address: Any) -> str:
    """
    Format an address: ``127.0.0.1:8890``, or a path.
    """
    if hasattr(address, "port"):
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"
    name = getattr(address, "name", None)
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name or "unix")


def is_local(description: str) -> bool:
    """
    Whether only this machine can connect to a listening endpoint; ``False`` for unknown kinds of endpoint.

    :param description: for Twisted's ``serverFromString``, completed by :func:`complete`.
    """
    kind, interface, _ = interface_of(description)
    return kind == "unix" or (kind in ("tcp", "tcp6", "ssl") and (interface == "localhost" or is_loopback(interface)))


def is_loopback(host: str) -> bool:
    """Whether an address belongs to the loopback."""
    address = ip_of(host)
    return address is not None and address.is_loopback


def ip_of(host: str) -> Any:
    """Read an IP address, one of IPv4 as such even where IPv6 carries it; ``None`` for anything else."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def interface_of(description: str) -> tuple[str, str, int | None]:
    """
    Take a listening endpoint apart.

    :param description: for Twisted's ``serverFromString``, completed by :func:`complete`.
    :returns: its kind, the interface (empty for all, or where there is none), and the port; ``None`` where there is none.
    """
    kind, *parts = re.split(r"(?<!\\):", complete(description))
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return kind, named.get("interface", "").replace("\\", ""), _port(description)
