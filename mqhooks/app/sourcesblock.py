"""
Reads the ``sources {}`` block: where events come in besides, or instead of, the sidecar's stream.
"""

from __future__ import annotations

import re
from typing import cast, get_args

from mqhooks.admin.settings import TOKEN
from mqhooks.app.settings import DEFAULTS, SidecarListening, SourcesSettings
from mqhooks.errors import ConfigError
from mqhooks.nanomq.block import Block
from mqhooks.sources.grpc.settings import GRPC_PORT, GrpcSettings
from mqhooks.sources.webhooks.listener import check
from mqhooks.sources.webhooks.settings import LISTEN, PayloadEncoding, WebhooksSettings


def sources(block: Block) -> SourcesSettings:
    """
    Read the block; mistakes are noted with it.

    :raises mqhooks.errors.ConfigError: at the first mistake, if the block does not take notes.
    """
    sidecar = block.block("sidecar")
    settings = SourcesSettings(
        sidecar=SidecarListening(_listen(sidecar, None)),
        grpc=_grpc(block.block("grpc")),
        webhooks=_webhooks(block.block("webhooks"), (LISTEN,) if "webhooks" in block else ()),
    )
    for key in ("max_frame", "max_sessions", "max_sessions_size", "gather"):
        if key in sidecar:
            sidecar.fail(sidecar.error(key, f"stands elsewhere: mqhooks {{ sidecar {{ {key} = … }} }}"))
    for part in (sidecar, block):
        part.close()
    return settings


def _webhooks(block: Block, listen: tuple[str, ...]) -> WebhooksSettings:
    defaults = DEFAULTS.sources.webhooks
    settings = WebhooksSettings(
        listen=_listen(block, listen) or (),
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
            block.fail(block.error(other, f"is missing: {one} needs it"))
    if settings.user is not None and (not settings.user or ":" in settings.user):
        block.fail(block.error("user", "is empty or has a colon in it, which no user of Basic authentication has"))
    if settings.password == "":
        block.fail(block.error("password", "is empty: anybody could guess it"))
    # A secret that could not be read is a mistake of its own.
    if not any(key in block for key in ("token", "user")):
        try:
            check(settings)
        except ConfigError as error:
            block.fail(block.error("listen", error.message))
    block.close()
    return settings


def _grpc(block: Block) -> GrpcSettings:
    listen = block.entries("listen") or []
    for entry in listen:
        if not isinstance(entry, str) or not entry:
            block.fail(block.error("listen", f"is not an address or a list of them, like tcp:{GRPC_PORT}"))
    settings = GrpcSettings(tuple(map(str, listen)), block.boolean("insecure", default=False))
    block.close()
    return settings


def _listen(block: Block, default: tuple[str, ...] | None) -> tuple[str, ...] | None:
    entries = block.entries("listen")
    if entries is None:
        return default
    if any(not isinstance(entry, str) or not entry for entry in entries) or not entries:
        block.fail(block.error("listen", "is not an address like tcp:8892, a list of them, or off"))
        return default
    return () if [entry.lower() for entry in entries] == ["off"] else tuple(entries)


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
        block.fail(block.error("token", f"is not 16 or more characters of ASCII without spaces: {remedy}"))
    return token
