"""
Authenticate to a server: by user and password, token, nkey, or a credentials file, which holds a JWT and the nkey it is for.

An nkey is an Ed25519 key. Its seed and its public key are written in base32, with a prefix for their kind, and a checksum. The
seed is never sent: with it we sign the server's nonce, which differs for each connection.
"""

from __future__ import annotations

import re
from base64 import b32decode, b32encode, urlsafe_b64encode
from binascii import crc_hqx
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqhooks.errors import ConfigError
from mqhooks.support.files import read_bounded

_SEED = 18 << 3
_USER = 20 << 3
_PART = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s+([\w.=-]+?)\s+-{3,}END")


@dataclass(frozen=True, slots=True)
class Auth:
    """
    Credentials for a server, of one kind or none.

    :param user: needs ``password``.
    :param token: instead of a user.
    :param seed: a user's nkey seed, which begins with ``SU``.
    :param seedfile: a file that holds such a seed.
    :param credsfile: a credentials file, as written by ``nsc``.
    :param where: the source of these settings, for example a file; for errors.
    :param path: their key in there; for errors.

    Files are read again for each connection, so that they can be replaced.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    seed: str | None = field(default=None, repr=False)
    seedfile: str | None = None
    credsfile: str | None = None
    where: str = field(default="", repr=False, compare=False)
    path: str = field(default="", repr=False, compare=False)

    def check(self) -> None:
        """
        Find mistakes.

        :raises mqhooks.errors.ConfigError: when two kinds are set, or a seed or a file is not what it should be.
        """
        given = [key for key in ("user", "token", "seed", "seedfile", "credsfile") if getattr(self, key) is not None]
        if len(given) > 1:
            raise self._mistake(given[1], f"{given[0]} is also set: choose one of them")
        if (self.user is None) != (self.password is None):
            raise self._mistake("user", "user and password need each other: set both")
        self.answer("")

    def answer(self, nonce: str) -> dict[str, str]:
        """
        Make the members of CONNECT that authenticate us.

        :param nonce: the server's nonce, to be signed.
        :raises mqhooks.errors.ConfigError: when a file cannot be read or holds something else.
        """
        if self.user is not None:
            return {"user": self.user, "pass": self.password or ""}
        if self.token is not None:
            return {"auth_token": self.token}
        if self.credsfile is not None:
            parts = {kind.rpartition(b" ")[2]: value for kind, value in _PART.findall(self._read("credsfile", self.credsfile))}
            if not parts.keys() >= {b"JWT", b"SEED"}:
                raise self._mistake("credsfile", f"{self.credsfile} holds no user JWT with its seed: write it with nsc")
            key = self._key("credsfile", parts[b"SEED"].decode("ascii", "replace"))
            return {"jwt": parts[b"JWT"].decode("ascii", "replace"), "sig": _sign(key, nonce)}
        if self.seedfile is not None:
            lines = self._read("seedfile", self.seedfile).decode("ascii", "replace").split()
            key = self._key("seedfile", next((line for line in lines if line.startswith("SU")), ""))
        elif self.seed is not None:
            key = self._key("seed", self.seed)
        else:
            return {}
        return {"nkey": public_key(key), "sig": _sign(key, nonce)}

    @property
    def signs(self) -> bool:
        """Whether the server has to send a nonce to sign."""
        return (self.seed or self.seedfile or self.credsfile) is not None

    def _key(self, key: str, seed: str) -> Ed25519PrivateKey:
        try:
            return read_seed(seed)
        except ValueError as error:
            file = getattr(self, key) + ": " if key != "seed" else ""
            raise self._mistake(key, f"{file}{error}") from None

    def _read(self, key: str, path: str) -> bytes:
        try:
            return read_bounded(path)
        except OSError as error:
            raise self._mistake(key, f"{path} cannot be read: {error.strerror}") from None

    def _mistake(self, key: str, message: str) -> ConfigError:
        return ConfigError(message, self.where, ".".join(filter(None, (self.path, key))))


def read_seed(seed: str) -> Ed25519PrivateKey:
    """
    Read the seed of a user's nkey.

    :raises ValueError: when it is not such a seed; the message doesn't repeat it.
    """
    seed = seed.strip()
    try:
        raw = b32decode(seed + "=" * (-len(seed) % 8))
    except ValueError:
        raw = b""
    # Of the first two bytes, five bits mean a seed, eight say whose, and three are unused.
    if len(raw) != 36 or raw[0] & 0xF8 != _SEED or (raw[0] & 7) << 5 | raw[1] >> 3 != _USER:
        raise ValueError("this is not a user's nkey seed: one begins with SU and has 58 characters")
    if crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise ValueError("this nkey seed is mistyped or cut off: its checksum is wrong")
    return Ed25519PrivateKey.from_private_bytes(raw[2:34])


def public_key(key: Ed25519PrivateKey) -> str:
    """Return a user's public nkey as text."""
    raw = bytes([_USER]) + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return b32encode(raw + crc_hqx(raw, 0).to_bytes(2, "little")).decode("ascii").rstrip("=")


def _sign(key: Ed25519PrivateKey, nonce: str) -> str:
    return urlsafe_b64encode(key.sign(nonce.encode())).decode("ascii").rstrip("=")
