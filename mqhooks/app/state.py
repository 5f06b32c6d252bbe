"""
``mqhooks status``: the verdict on a running bridge, from its admin API.

One timeout covers everything, so that a hung bridge, or another program on its port, cannot hold up a health check.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mqhooks.app.parser import CommandParser
from mqhooks.app.statusview import StatusReply, shown
from mqhooks.errors import ConfigError, MqhooksError, NoAnswer
from mqhooks.support.output import put
from mqhooks.support.printable import printable
from mqhooks.support.redact import hide_url

URL = "http://127.0.0.1:8891"
"""Default address of the admin API."""

TIMEOUT = 5.0
"""Default time limit for all requests together, in seconds."""

INTERVAL = 2.0
"""Default wait of ``--watch``, in seconds."""

TOKEN = "MQHOOKS_ADMIN_TOKEN"
"""The environment variable that may hold the token."""

_MOST = 64 << 20


class Check(msgspec.Struct):
    """One condition of readiness."""

    ok: bool
    reason: str


class Ready(msgspec.Struct):
    """The parts of ``GET /readyz`` that are needed."""

    status: str
    checks: dict[str, Check]


def add(parser: CommandParser) -> None:
    """Add the options of ``mqhooks status``."""
    parser.add_argument("--config", "-c", metavar="FILE", help="the configuration that has the address and the token")
    parser.add_argument(
        "--url", metavar="URL", help=f"the address to ask, if not the one in the configuration [default: {URL}]"
    )
    parser.add_argument("--token-file", metavar="FILE", help=f"the file that holds the token; or set {TOKEN}")
    parser.add_argument("--cacertfile", metavar="FILE", help="the PEM file to check an https server's certificate with")
    timeout = f"how long to wait for an answer, in seconds [default: {TIMEOUT:g}]"
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=TIMEOUT, help=timeout)
    parser.add_argument("--ready", action="store_true", help="check only readiness, as /readyz does")
    parser.add_argument("--json", action="store_true", help="write the verdict and the whole state as a JSON object")
    watch = f"ask again every SECONDS seconds, until Ctrl-C [default: {INTERVAL:g}]"
    parser.add_argument("--watch", metavar="SECONDS", nargs="?", type=_seconds, const=INTERVAL, help=watch)
    parser.epilog = "Exit status: 0 all is well, 1 not ready or in trouble, 2 no answer."
    parser.set_defaults(command=_status)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text) or not float(text):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0, like {TIMEOUT:g} or 0.5")
    return float(text)


def _status(options: Namespace) -> Generator[str, None, int]:
    bridge = _bridge(options)
    while options.watch is not None:
        try:
            lines, _ = _asked(bridge, options)
        except NoAnswer as error:
            lines = [f"mqhooks: {error}"]
        # Move the cursor home and erase below it, so that the terminal does not flicker.
        yield from [f"\x1b[H\x1b[J{lines[0]}", *lines[1:]] if os.isatty(1) and not options.json else lines
        put(sys.stdout.flush)
        time.sleep(options.watch)
    lines, status = _asked(bridge, options)
    yield from lines
    return status


def _bridge(options: Namespace) -> _Bridge:
    """
    Return the bridge to ask.

    :raises mqhooks.errors.NoAnswer: when its address or the token cannot be found out, or cannot be used.
    """
    url, token = URL, os.environ.get(TOKEN) or None
    if options.config is not None:
        # This imports much of the program, which a health check need not wait for.
        from mqhooks.app.configuration import admin_access

        try:
            url, own = admin_access(options.config, options.url)
        except ConfigError as error:
            raise NoAnswer(error.told) from None
        token = own or token
    url = options.url or url
    if options.token_file is not None:
        token = _read(options.token_file)
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise NoAnswer("the token has spaces, or characters that no token has: copy all of it again")
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    where = url if url.startswith("unix:") else hide_url(url)
    return _Bridge(where, _connector(url, options), headers)


class _Bridge:
    """
    The admin API of a bridge.

    :ivar where: its address, as it is shown.
    """

    def __init__(self, where: str, connect: Callable[[], HTTPConnection], headers: dict[str, str]) -> None:
        self.where = where
        self._connect = connect
        self._headers = headers
        self._connection: HTTPConnection | None = None

    def ask(self, path: str) -> bytes:
        """
        Get a path, and return the body of the answer. This blocks.

        :raises mqhooks.errors.NoAnswer: when mqhooks refuses the request, or another program answers.
        """
        connection = self._connection = self._connect()
        try:
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            body = answer.read(_MOST)
        finally:
            connection.close()
        if answer.status == 401:
            raise NoAnswer("the token is missing or wrong: give --config, or --token-file")
        if answer.status == 403:
            raise NoAnswer("the host name is not allowed: use its address, or add the name to mqhooks.admin.hosts")
        if answer.status not in (200, 503):
            raise NoAnswer(f"{path} was answered with {answer.status}: another program uses this port")
        return body

    def give_up(self) -> None:
        """End an :meth:`ask` that is blocked in another thread."""
        sock = None if self._connection is None else self._connection.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise NoAnswer(f"--token-file: {printable(path, 4096)} cannot be read: {reason}") from None


def _connector(url: str, options: Namespace) -> Callable[[], HTTPConnection]:
    if url.startswith("unix:"):
        return partial(_UnixConnection, url.removeprefix("unix:"), options.timeout)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.path.strip("/") or parts.query:
        raise NoAnswer(f"--url: {hide_url(url)!r} is not an address like {URL}")
    if parts.scheme == "http":
        return partial(HTTPConnection, host, port, timeout=options.timeout)
    try:
        context = ssl.create_default_context(cafile=options.cacertfile)
    except OSError as error:
        path = printable(options.cacertfile or "the system's authorities", 4096)
        raise NoAnswer(f"--cacertfile: {path} cannot be used: {error.strerror or 'it holds no PEM certificate'}") from None
    return partial(HTTPSConnection, host, port, timeout=options.timeout, context=context)


def _asked(bridge: _Bridge, options: Namespace) -> tuple[list[str], int]:
    """Ask once, and return the lines to show and the exit status."""
    answers: list[Any] = []

    def ask_all() -> None:
        try:
            answers.append([bridge.ask("/readyz"), bridge.ask("/api/status")])
        except (OSError, HTTPException, MqhooksError, ValueError) as error:
            answers.append(error)

    # A peer that sends a byte now and then would hold up a read for ever.
    thread = Thread(target=ask_all, daemon=True)
    thread.start()
    thread.join(options.timeout)
    where = bridge.where
    if not answers or isinstance(answers[0], TimeoutError):
        bridge.give_up()
        raise NoAnswer(f"{where}: no answer within {options.timeout:g} s: mqhooks is hung, or another program uses its port")
    answer = answers[0]
    if isinstance(answer, Exception):
        raise NoAnswer(f"{where}: {_reason(answer)}")
    try:
        ready, status = msgspec.json.decode(answer[0], type=Ready), msgspec.json.decode(answer[1], type=StatusReply)
    except (msgspec.MsgspecError, ValueError):
        raise NoAnswer(f"{where}: the answer is not from mqhooks, or is from another version: check the address") from None
    well = ready.status == "ready" and (options.ready or status.verdict.level != "bad")
    if options.json:
        told = {"verdict": status.verdict, "ready": ready, "status": msgspec.Raw(answer[1])}
        return [msgspec.json.encode(told).decode()], int(not well)
    unready = [(name, check) for name, check in ready.checks.items() if not check.ok]
    readiness = [f"not ready: {printable(name, 80)}: {printable(check.reason, 1000)}" for name, check in unready]
    if options.ready and well:
        # Other problems are listed above this line, and the exit status is 0.
        readiness = ["ready: events can be received and kept, and no endpoint refuses everything"]
    return [*shown(status), *readiness], int(not well)


def _reason(error: Exception) -> str:
    if isinstance(error, NoAnswer):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}): give --cacertfile, and --url with the name in it"
    reason = printable(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200)
    return f"{reason}: is mqhooks running there? Give its address with --config or --url"


class _UnixConnection(HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
