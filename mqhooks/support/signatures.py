"""
Signatures of requests: the symmetric scheme of Standard Webhooks 1.0.

Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import hmac
import re
from binascii import Error, a2b_base64, b2a_base64
from collections.abc import Iterable

from mqhooks.errors import BadSignature, ConfigError

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"

SECRET_PREFIX = "whsec_"


def secret_key(secret: str) -> bytes:
    """
    Decode a secret: ``whsec_`` and the key in base64.

    :returns: the key, 24 to 64 bytes.
    :raises mqhooks.errors.ConfigError: when it is not a secret; the message does not reveal any of it.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ConfigError(f"does not begin with {SECRET_PREFIX}: make one with echo {SECRET_PREFIX}$(openssl rand -base64 24)")
    text = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    try:
        key = a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (Error, ValueError):
        raise ConfigError(f"is not base64 after {SECRET_PREFIX}: copy it again, whole") from None
    if not 24 <= len(key) <= 64:
        raise ConfigError(f"is the base64 of {len(key)} bytes: it has to be 24 to 64, random")
    return key


class Signer:
    """
    Signs with every secret, so that an endpoint may know either the old or the new one during a rotation.

    :param secrets: ``whsec_…``.
    :raises mqhooks.errors.ConfigError: when one is not a secret.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # Copying a keyed HMAC costs a third of making one.
        self._keyed = [hmac.new(secret_key(secret), digestmod="sha256") for secret in secrets]

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
        return " ".join(signatures)


def verify(
    secrets: Iterable[str], headers: Iterable[tuple[str, str]], body: bytes, now: float, tolerance: float = 300.0
) -> None:
    """
    Verify that a request comes from someone who knows one of the secrets, and is not an old one replayed.

    :param secrets: ``whsec_…``.
    :param headers: the request's headers, names in any case.
    :param body: the request's body, byte for byte.
    :param now: seconds since 1970.
    :param tolerance: by how many seconds the request's time may differ.
    :raises mqhooks.errors.BadSignature: when the signature or the time is wrong.
    :raises mqhooks.errors.ConfigError: when a secret is not one.
    """
    pairs = list(headers)
    webhook_id, timestamp, signatures = (_single(pairs, name) for name in (ID, TIMESTAMP, SIGNATURE))
    if not re.fullmatch(r"[0-9]{1,15}", timestamp):
        raise BadSignature(f"{TIMESTAMP} is not a number of seconds")
    if abs(now - int(timestamp)) > tolerance:
        raise BadSignature(f"{TIMESTAMP} differs from the time here by more than {tolerance:g} s")
    expected = Signer(secrets).sign(webhook_id, int(timestamp), body).encode().split()
    given = signatures.encode().split()
    # All are compared, however early one matches, so that the time taken reveals nothing.
    if not sum(hmac.compare_digest(one, other) for one in expected for other in given):
        raise BadSignature(f"no {SIGNATURE} matches this secret and this body")


def _single(headers: list[tuple[str, str]], wanted: str) -> str:
    values = [value for name, value in headers if name.lower() == wanted]
    if len(values) != 1:
        raise BadSignature(f"{len(values)} {wanted} headers instead of one")
    return values[0]
