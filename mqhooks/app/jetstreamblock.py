"""
Reads the NATS JetStream settings of an ``outbox {}`` block.
"""

from __future__ import annotations

import re
from typing import cast, get_args

from mqhooks.app.tlsblock import read_tls
from mqhooks.errors import ConfigError
from mqhooks.nanomq.block import Block
from mqhooks.nats.auth import Auth
from mqhooks.nats.settings import NATSSettings, Server, server
from mqhooks.outbox.jetstream.layout import PREFIX
from mqhooks.outbox.jetstream.store import JetStreamSettings, Role, Spill
from mqhooks.support.tls import client_context

KEYS = (
    "servers",
    "replicas",
    "partitions",
    "prefix",
    "role",
    "spill",
    "user",
    "password",
    "token",
    "seed",
    "seedfile",
    "credsfile",
    "tls",
)
"""The keys that only ``kind = jetstream`` knows."""

MOST_PARTITIONS = 256
"""Most partitions of a webhook: each is a Raft group."""


def jetstream(block: Block, *, wanted: bool) -> JetStreamSettings | None:
    """
    Read which JetStream to use, and how to keep deliveries there.

    :param block: the ``outbox`` block.
    :param wanted: whether the outbox is of this kind.
    :returns: ``None`` when it is not, or when no server is named.
    """
    servers = _servers(block)
    auth = _auth(block)
    own = block.block("tls")
    tls = read_tls(own, used=own.boolean("enable", default=True) and "tls" in block)
    replicas = block.integer("replicas", 3, least=1, most=5)
    partitions = block.integer("partitions", 16, least=1, most=MOST_PARTITIONS)
    prefix = block.string("prefix", "MQ")
    chosen = cast(Spill, block.choice("spill", "sqlite", get_args(Spill)))
    spill = chosen if "spill" in block else None
    role = cast(Role, block.choice("role", "both", get_args(Role)))
    if not wanted:
        for key in KEYS:
            if key in block:
                block.warn(key, "applies only to kind = jetstream, and is ignored here")
        return None
    if replicas % 2 == 0:
        block.fail(block.error("replicas", f"{replicas} is not 1, 3 or 5: an even number survives no more failures"))
    if not re.fullmatch(PREFIX, prefix):
        block.fail(block.error("prefix", f"{prefix[:80]!r} is not 1 to 32 letters, digits, - and _, like MQ"))
    if not servers:
        if "servers" not in block:
            remedy = 'write servers = ["nats://host:4222", …], all of one cluster'
            block.fail(block.error("servers", f"is missing: kind = jetstream needs it: {remedy}"))
        return None
    try:
        auth.check()
    except ConfigError as error:
        block.fail(error)
    try:
        client_context(tls)
    except ConfigError as error:
        block.fail(error)
    synced = block.string("sync", None) == "full"
    return JetStreamSettings(NATSSettings(servers, auth, tls), replicas, partitions, prefix, synced, role, spill)


def _servers(block: Block) -> tuple[Server, ...]:
    found = []
    for url in block.entries("servers") or ():
        try:
            if not isinstance(url, str):
                raise block.error("servers", f"{url!r} is not a server's address: write it like nats://host:4222")
            found.append(server(url, block.where, block.path("servers")))
        except ConfigError as error:
            block.fail(error)
    if "servers" in block and not block.entries("servers"):
        block.fail(block.error("servers", "is empty: name at least one server, like nats://host:4222"))
    return tuple(found)


def _auth(block: Block) -> Auth:
    return Auth(
        user=block.string("user", None),
        password=block.secret("password"),
        token=block.secret("token"),
        seed=block.secret("seed"),
        seedfile=block.file("seedfile", None),
        credsfile=block.file("credsfile", None),
        where=block.where,
        path=block.path("user").rpartition(".")[0],
    )
