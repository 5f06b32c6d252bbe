"""
Reads a ``tls {}`` block.
"""

from __future__ import annotations

import os

from mqhooks.nanomq.block import Block
from mqhooks.support.tls import TLSSettings


def read_tls(tls: Block, *, used: bool) -> TLSSettings | None:
    """
    Read which authorities to trust, and our own certificate and key.

    :param tls: the block; an unknown key in it is a warning.
    :param used: whether it takes effect; if not, the files need not exist.
    :returns: ``None`` when it takes no effect.
    """
    files = {key: tls.file(key, None) for key in ("cacertfile", "certfile", "keyfile")}
    password = tls.secret("key_password")
    tls.close()
    if not used:
        return None
    for key, path in files.items():
        if path is not None and not os.access(path, os.R_OK):
            problem = "may not be read by this user" if os.path.exists(path) else "does not exist"
            tls.fail(tls.error(key, f"{path} {problem}"))
    for one, other in (("certfile", "keyfile"), ("keyfile", "certfile")):
        if files[one] is not None and files[other] is None:
            tls.fail(tls.missing(other, f"{one} needs it"))
    return TLSSettings(**files, key_password=password, where=tls.where, path=tls.path("enable").rpartition(".")[0])
