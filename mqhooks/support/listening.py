"""
Listen on an endpoint that an operator has configured.

A socket that systemd has opened (``systemd:``) is adopted here. Twisted's endpoint would trust the description's ``domain`` and
close the descriptor, but each reload has to find out whether other machines can reach the socket.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.errors import ConfigError, ListenError

BACKLOG = 1024
"""VerneMQ opens its whole pool within milliseconds; connections beyond the backlog would wait a second or more."""

_log = Logger()

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

    :param description: for Twisted's ``serverFromString``; returned unchanged if it has further positional arguments.
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
        self._reactor = reactor
        if _kind(description) == "systemd":
            if not _well_formed(description):
                form = "systemd:domain=INET:name=NAME, with the socket unit's FileDescriptorName=, or :index=0"
                raise ConfigError(f"not a listening endpoint; write it like {form}; domain is INET or INET6", description)
            return
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

        :raises mqhooks.errors.ListenError: when the address is taken, not allowed, or not one of this machine's, or when
            systemd has passed no such socket.
        """
        if _kind(self.description) == "systemd":
            return self._adopt(factory)
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

    def _adopt(self, factory: IProtocolFactory) -> IListeningPort:
        passed = _passed(self.description)
        if passed is None:
            raise ListenError(
                f"cannot listen on {self.description}: systemd has passed no such socket; "
                "start the socket unit, and have its FileDescriptorName= and this agree"
            )
        # Twisted would open a Unix socket to everybody, and delete it at the end.
        if not passed.listening or passed.family not in _DOMAINS.values():
            raise ListenError(
                f"cannot listen on {self.description}: what systemd has passed is not a TCP socket that listens; "
                "the socket unit needs ListenStream= with a port, and Accept=no"
            )
        os.set_blocking(passed.descriptor, False)
        port: IListeningPort = self._reactor.adoptStreamPort(passed.descriptor, passed.family, factory)
        return port

    def _remedy(self, cause: Any) -> str:
        number = getattr(cause, "errno", 0)
        if number in (errno.EACCES, errno.EPERM) and _port(self.description) is not None:
            return "get the privilege that a port below 1024 needs or "
        return _REMEDIES.get(number, "")


def stop_listening(port: IListeningPort) -> Deferred[Any]:
    """
    Stop listening. If a Unix socket's file cannot be removed, because somebody else has done that or this user may not, it is
    logged, and stopping goes on.

    :returns: a ``Deferred`` that fires when the port is closed.
    """
    return maybeDeferred(port.stopListening).addErrback(_not_removed, address_name(port.getHost()))


def _not_removed(failure: Failure, address: str) -> None:
    failure.trap(OSError)
    reason = getattr(failure.value, "strerror", "")
    _log.warn("the socket {address} cannot be removed: {reason}", address=address, reason=reason)


_DOMAINS = {"INET": socket.AF_INET, "INET6": socket.AF_INET6}


class _Passed(NamedTuple):
    """
    A socket from systemd.

    :param listening: whether it is a stream socket that listens.
    :param address: as ``getsockname`` returns it.
    """

    descriptor: int
    family: int
    listening: bool
    address: Any


def _kind(description: str) -> str:
    return description.partition(":")[0]


def _well_formed(description: str) -> bool:
    """Return whether a description names a socket from systemd, and is written correctly."""
    parts = [part.partition("=") for part in description.split(":")[1:]]
    named = {key: value for key, _, value in parts}
    known = len(named) == len(parts) == 2 and named.get("domain") in _DOMAINS
    return known and bool(named.get("name") or re.fullmatch("[0-9]+", named.get("index", "")))


def _passed(description: str) -> _Passed | None:
    """Find the socket that a description names; ``None`` when systemd has not passed it, for example to ``--check``."""
    if not _well_formed(description):
        return None
    try:
        # No reactor: only the endpoint's descriptor is needed.
        descriptor: int = getattr(serverFromString(None, description), "fileno")  # noqa: B009 - only this kind has it
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            listening = copy.type == socket.SOCK_STREAM and bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            return _Passed(descriptor, copy.family, listening, copy.getsockname())
    except (LookupError, OSError):
        return None


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
    Return whether only this machine can connect to a listening endpoint; ``False`` for unknown kinds of endpoint.

    :param description: for Twisted's ``serverFromString``, completed by :func:`complete`.
    """
    kind, interface, _ = interface_of(description)
    return kind == "unix" or (kind in ("tcp", "tcp6", "ssl") and (interface == "localhost" or is_loopback(interface)))


def can_be_reached(description: str) -> bool:
    """
    Return whether other machines can connect to a listening endpoint, as far as is known. Nobody can connect to a socket that
    systemd has not passed, because nothing listens on it.

    :param description: for Twisted's ``serverFromString``, completed by :func:`complete`.
    """
    return not is_local(description) and interface_of(description)[0] != "systemd"


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address."""
    address = ip_of(host)
    return address is not None and address.is_loopback


def ip_of(host: str) -> Any:
    """Read an IP address, and an IPv4-mapped IPv6 address as IPv4; ``None`` for anything else."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def interface_of(description: str) -> tuple[str, str, int | None]:
    """
    Split a listening endpoint into kind, interface and port.

    :param description: for Twisted's ``serverFromString``, completed by :func:`complete`.
    :returns: the kind; the interface, empty for all interfaces or if there is none; and the port, ``None`` if there is none. A
        TCP socket that systemd has passed is of kind ``tcp`` or ``tcp6``; any other ``systemd:`` description is ``systemd``.
    """
    passed = _passed(description) if _kind(description) == "systemd" else None
    if passed is not None and passed.family in _DOMAINS.values():
        host, port, *_ = passed.address
        return "tcp" if passed.family == socket.AF_INET else "tcp6", host, port
    kind, *parts = re.split(r"(?<!\\):", complete(description))
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return kind, named.get("interface", "").replace("\\", ""), _port(description)


def same_place(one: str, other: str) -> bool:
    """
    Return whether two listening endpoints need the same port or the same socket.
    """
    (kind, first, port), (_, second, same) = interface_of(one), interface_of(other)
    if port:
        return port == same and (first == second or bool({first, second} & {"", "0.0.0.0", "::"}))
    return one == other and kind in ("unix", "systemd")
