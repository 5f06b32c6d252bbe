"""
Reads the ``sources {}`` block: where events come from, besides or instead of the sidecar's stream.
"""

from __future__ import annotations

import re
from typing import Any, cast, get_args

from mqhooks.admin.settings import TOKEN
from mqhooks.app.settings import DEFAULTS, SIDECAR_PORT, SidecarListening, SourcesSettings
from mqhooks.errors import ConfigError
from mqhooks.nanomq.block import Block, suggest
from mqhooks.sources.grpc.settings import GRPC_LISTEN, GRPC_PORT, GrpcSettings
from mqhooks.sources.webhooks.listener import check
from mqhooks.sources.webhooks.settings import LISTEN, PORT, PayloadEncoding, WebhooksSettings
from mqhooks.support.redact import hide_urls

SOURCES = ("sidecar", "webhooks", "grpc")
"""The sources' blocks."""

_HINTS = {
    "port": "; write listen = tcp:PORT",
    "interface": '; write listen = "tcp:PORT:interface=ADDRESS"',
    "url": "; write where to listen, listen = tcp:PORT",
    "enable": "; write listen = off to turn this source off",
}
"""Hints about keys that other blocks and other programs have, but sources do not."""


def sources(block: Block) -> SourcesSettings:
    """
    Read the block; mistakes are noted with it.

    :raises mqhooks.errors.ConfigError: at the first mistake, if the block does not take notes.
    """
    sidecar = block.block("sidecar")
    settings = SourcesSettings(
        sidecar=SidecarListening(_listen(sidecar, None, SIDECAR_PORT)),
        grpc=_grpc(block.block("grpc"), (GRPC_LISTEN,) if "grpc" in block else ()),
        webhooks=_webhooks(block.block("webhooks"), (LISTEN,) if "webhooks" in block else ()),
    )
    for key in ("max_frame", "max_sessions", "max_sessions_size", "gather"):
        if key in sidecar:
            sidecar.fail(sidecar.error(key, f"does not belong here: write it in mqhooks {{ sidecar {{ {key} = … }} }}"))
    sidecar.close(_HINTS)
    # Ignoring an unknown key would open the wrong ports.
    for key in block.unread:
        block.fail(
            block.error(key, f"there is no such source: the sources are sidecar, webhooks and grpc{suggest(key, SOURCES)}")
        )
    return settings


def _webhooks(block: Block, listen: tuple[str, ...]) -> WebhooksSettings:
    defaults = DEFAULTS.sources.webhooks
    settings = WebhooksSettings(
        listen=_listen(block, listen, PORT) or (),
        path=_path(block, defaults.path),
        token=_token(block),
        user=block.string("user", None),
        password=block.secret("password"),
        max_body=block.size("max_body", defaults.max_body, least=1 << 10, most=256 << 20),
        payload_encoding=cast(
            PayloadEncoding, block.choice("payload_encoding", defaults.payload_encoding, get_args(PayloadEncoding))
        ),
    )
    for one, other in (("user", "password"), ("password", "user")):
        if one in block and other not in block:
            block.fail(block.missing(other, f"{one} needs it"))
    if settings.user is not None and (not settings.user or ":" in settings.user):
        block.fail(block.error("user", "is empty or has a colon, which Basic authentication does not allow in a user name"))
    if settings.password == "":
        block.fail(block.error("password", "is empty: set one that nobody can guess"))
    # A secret that could not be read is already a mistake.
    if not any(key in block for key in ("token", "user")):
        try:
            check(settings)
        except ConfigError as error:
            block.fail(block.error("listen", error.message))
    block.close(_HINTS)
    return settings


def _grpc(block: Block, listen: tuple[str, ...]) -> GrpcSettings:
    settings = GrpcSettings(_listen(block, listen, GRPC_PORT) or (), block.boolean("insecure", default=False))
    unlocked = "; VerneMQ's gRPC client cannot authenticate"
    block.close({**_HINTS, "token": unlocked, "user": unlocked, "password": unlocked})
    return settings


def _listen(block: Block, default: tuple[str, ...] | None, port: int) -> tuple[str, ...] | None:
    entries = block.entries("listen")
    if entries is None:
        return default
    if [str(entry).lower() for entry in entries] == ["off"]:
        return ()
    problem = next(filter(None, (_problem(entry, port) for entry in entries)), None) if entries else _problem("", port)
    if problem is not None:
        block.fail(block.error("listen", problem))
        return default
    return tuple(entries)


def _problem(entry: Any, port: int) -> str | None:
    if not isinstance(entry, str) or not entry:
        return f"is not an address like tcp:{port}, a list of them, or off"
    bare = re.fullmatch(r"(?:([\d.]+|localhost):)?(\d+)", entry)
    if bare is not None:
        interface = f":interface={bare[1]}" if bare[1] else ""
        return f'{entry} is not a listening endpoint: write "tcp:{bare[2]}{interface}"'
    if ":" not in entry or "://" in entry:
        return f"{hide_urls(entry)!r} is not a listening endpoint: write it like tcp:{port}, or off"
    return None


def _path(block: Block, default: str) -> str:
    path = block.string("path", default)
    if not re.fullmatch(r"/[^\s?#\0-\x1f\x7f]*", path):
        block.fail(block.error("path", "is not a path like /vernemq: it begins with a slash, and has no space, ? or #"))
        return default
    return path


def _token(block: Block) -> str | None:
    token = block.secret("token")
    if token is not None and not TOKEN.fullmatch(token):
        remedy = "make one with openssl rand -hex 24, and put it in quotes"
        block.fail(block.error("token", f"is not 16 or more ASCII characters without spaces: {remedy}"))
    return token
