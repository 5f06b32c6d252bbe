"""
Signatures of requests: both schemes of Standard Webhooks 1.0, HMAC-SHA256 with a shared secret and ed25519 with a pair of keys.

Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import hmac
import re
from binascii import Error, a2b_base64, b2a_base64
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqhooks.errors import BadSignature, ConfigError

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"

SECRET_PREFIX = "whsec_"
PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"

_MAKE_SECRET = f"echo {SECRET_PREFIX}$(openssl rand -base64 24)"

_SEED = 32
"""Length of a private key, and of a public key, in bytes."""


def secret_key(secret: str) -> bytes:
    """
    Decode a secret: ``whsec_`` and the key in base64.

    :returns: the key, 24 to 64 bytes.
    :raises mqhooks.errors.ConfigError: when it is not a secret; the message does not reveal any of it.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ConfigError(f"does not begin with {SECRET_PREFIX}: make one with {_MAKE_SECRET}")
    key = _decoded(secret, SECRET_PREFIX)
    if not 24 <= len(key) <= 64:
        raise ConfigError(f"is the base64 of {len(key)} bytes: it has to be 24 to 64, random; make one with {_MAKE_SECRET}")
    return key


def private_key(secret: str) -> Ed25519PrivateKey:
    """
    Decode a private key: ``whsk_`` and the base64 of its 32 bytes, or of these and the 32 of the public key.

    :raises mqhooks.errors.ConfigError: when it is not one; the message does not reveal any of it.
    """
    if not secret.startswith(PRIVATE_PREFIX):
        made = f"echo {PRIVATE_PREFIX}$(openssl rand -base64 {_SEED})"
        raise ConfigError(f"does not begin with {PRIVATE_PREFIX}: make one with {made}")
    key = _decoded(secret, PRIVATE_PREFIX)
    if len(key) not in (_SEED, 2 * _SEED):
        raise ConfigError(f"is the base64 of {len(key)} bytes: an ed25519 key has 32, or 64 with its public half")
    private = Ed25519PrivateKey.from_private_bytes(key[:_SEED])
    if key[_SEED:] not in (b"", _raw(private.public_key())):
        raise ConfigError("is not an ed25519 key: its second half is not the public key of the first; copy all of it again")
    return private


def public_key(text: str) -> Ed25519PublicKey:
    """
    Decode a public key: ``whpk_`` and the base64 of its 32 bytes.

    :raises mqhooks.errors.ConfigError: when it is not one.
    """
    if not text.startswith(PUBLIC_PREFIX):
        raise ConfigError(f"does not begin with {PUBLIC_PREFIX}: twistd mqhooks --check shows the public key")
    key = _decoded(text, PUBLIC_PREFIX)
    if len(key) != _SEED:
        raise ConfigError(f"is the base64 of {len(key)} bytes: an ed25519 public key has 32")
    return Ed25519PublicKey.from_public_bytes(key)


def public_form(secret: str) -> str:
    """
    Return the public key that belongs to a private one.

    :param secret: ``whsk_…``.
    :returns: ``whpk_…``.
    :raises mqhooks.errors.ConfigError: when it is not a private key.
    """
    return PUBLIC_PREFIX + _base64(_raw(private_key(secret).public_key()))


def check_signing(secret: str) -> None:
    """
    Check that a text can sign: it is a secret or a private key.

    :raises mqhooks.errors.ConfigError: when it cannot; the message does not reveal any of it.
    """
    if secret.startswith(PUBLIC_PREFIX):
        raise ConfigError(f"is a public key, which cannot sign: write the private one, {PRIVATE_PREFIX}…")
    if secret.startswith(PRIVATE_PREFIX):
        private_key(secret)
    else:
        secret_key(secret)


def check_verifying(secret: str) -> None:
    """
    Check that a text can verify: it is a secret or a public key.

    :raises mqhooks.errors.ConfigError: when it cannot; the message does not reveal any of it.
    """
    if secret.startswith(PRIVATE_PREFIX):
        raise ConfigError(f"is a private key, which only the sender has: give the public one, {PUBLIC_PREFIX}…")
    if secret.startswith(PUBLIC_PREFIX):
        public_key(secret)
    else:
        secret_key(secret)


class Signer:
    """
    Signs with every secret, so that an endpoint may know either the old or the new one during a rotation.

    :param secrets: ``whsec_…`` for a ``v1`` signature, ``whsk_…`` for a ``v1a`` one; the ``v1a`` signatures come last.
    :raises mqhooks.errors.ConfigError: when one is neither.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        given = list(secrets)
        for secret in given:
            check_signing(secret)
        private = [secret for secret in given if secret.startswith(PRIVATE_PREFIX)]
        self._private = [private_key(secret) for secret in private]
        # Copying a keyed HMAC costs a third of making one.
        self._keyed = [hmac.new(secret_key(secret), digestmod="sha256") for secret in given if secret not in private]

    def sign(self, webhook_id: str, timestamp: int, body: bytes) -> str:
        """
        Sign a request.

        :param webhook_id: the ``webhook-id``.
        :param timestamp: the ``webhook-timestamp``: when the request is sent, in seconds since 1970.
        :returns: the ``webhook-signature``.
        """
        head = f"{webhook_id}.{timestamp}.".encode()
        signatures = []
        for keyed in self._keyed:
            digest = keyed.copy()
            digest.update(head)
            digest.update(body)
            signatures.append("v1," + b2a_base64(digest.digest(), newline=False).decode("ascii"))
        if self._private:
            signed = head + body
            signatures += ["v1a," + _base64(private.sign(signed)) for private in self._private]
        return " ".join(signatures)


def verify(
    secrets: Iterable[str], headers: Iterable[tuple[str, str]], body: bytes, now: float, tolerance: float = 300.0
) -> None:
    """
    Verify that a request comes from someone who knows one of the secrets or private keys, and is not a replayed old one.

    :param secrets: ``whsec_…``, or a public key, ``whpk_…``.
    :param headers: the request's headers, names in any case.
    :param body: the request's body, byte for byte.
    :param now: seconds since 1970.
    :param tolerance: largest difference allowed between the request's time and ``now``, in seconds.
    :raises mqhooks.errors.BadSignature: when the signature or the time is wrong.
    :raises mqhooks.errors.ConfigError: when a secret is neither.
    """
    shared, public = [], []
    for secret in secrets:
        check_verifying(secret)
        if secret.startswith(PUBLIC_PREFIX):
            public.append(public_key(secret))
        else:
            shared.append(secret)
    pairs = list(headers)
    webhook_id, timestamp, signatures = (_single(pairs, name) for name in (ID, TIMESTAMP, SIGNATURE))
    if not re.fullmatch(r"[0-9]{1,15}", timestamp):
        raise BadSignature(f"{TIMESTAMP} is not a number of seconds")
    if abs(now - int(timestamp)) > tolerance:
        raise BadSignature(f"{TIMESTAMP} differs from the time here by more than {tolerance:g} s")
    expected = Signer(shared).sign(webhook_id, int(timestamp), body).encode().split()
    given = signatures.encode().split()
    # Compare all of them, even after a match, so that the time taken reveals nothing.
    if sum(hmac.compare_digest(one, other) for one in expected for other in given):
        return
    signed = f"{webhook_id}.{int(timestamp)}.".encode() + body if public else b""
    if not any(_matches(key, signature, signed) for key in public for signature in given):
        raise BadSignature(f"no {SIGNATURE} matches this {'key' if public and not shared else 'secret'} and this body")


def _matches(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    version, _, text = signature.partition(b",")
    if version != b"v1a":
        return False
    try:
        key.verify(a2b_base64(text, strict_mode=True), signed)
    except (Error, InvalidSignature):
        return False
    return True


def _decoded(secret: str, prefix: str) -> bytes:
    text = secret.removeprefix(prefix).rstrip("=")
    try:
        return a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (Error, ValueError):
        raise ConfigError(f"is not base64 after {prefix}: copy all of it again") from None


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def _single(headers: list[tuple[str, str]], wanted: str) -> str:
    values = [value for name, value in headers if name.lower() == wanted]
    if len(values) != 1:
        raise BadSignature(f"{len(values)} {wanted} headers instead of one")
    return values[0]
