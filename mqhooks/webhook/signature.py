"""
Signatures of requests: the symmetric ones of Standard Webhooks 1.0.

The specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import hmac
import re
from binascii import b2a_base64
from collections.abc import Iterable

from mqhooks.errors import BadSignature
from mqhooks.webhook.settings import secret_key

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"


class Signer:
    """
    Signs with every secret, so that an endpoint may know the old or the new one while they are changed.

    :param secrets: as they are written, ``whsec_…``.
    :raises mqhooks.errors.ConfigError: when one is no secret.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # Keyed once: a copy costs a third of what making one does.
        self._keyed = [hmac.new(secret_key(secret), digestmod="sha256") for secret in secrets]

    def sign(self, webhook_id: str, timestamp: int, body: bytes) -> str:
        """
        Sign a request.

        :param webhook_id: its ``webhook-id``.
        :param timestamp: its ``webhook-timestamp``: when it is sent, in seconds since 1970.
        :returns: its ``webhook-signature``.
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
    Make sure that a request comes from someone who knows one of the secrets, and that it is no old one sent again.

    :param secrets: as they are written, ``whsec_…``.
    :param headers: the request's, names in any case.
    :param body: byte for byte as it came.
    :param now: seconds since 1970.
    :param tolerance: by how many seconds the request's time may be another.
    :raises mqhooks.errors.BadSignature: when it is not so.
    :raises mqhooks.errors.ConfigError: when a secret is none.
    """
    pairs = list(headers)
    webhook_id, timestamp, signatures = (_single(pairs, name) for name in (ID, TIMESTAMP, SIGNATURE))
    if not re.fullmatch(r"[0-9]{1,15}", timestamp):
        raise BadSignature(f"{TIMESTAMP} is not a number of seconds")
    if abs(now - int(timestamp)) > tolerance:
        raise BadSignature(f"{TIMESTAMP} differs from the time here by more than {tolerance:g} s")
    expected = Signer(secrets).sign(webhook_id, int(timestamp), body).encode().split()
    given = signatures.encode().split()
    # All are compared, however early one matches: the time that it takes tells nothing.
    if not sum(hmac.compare_digest(one, other) for one in expected for other in given):
        raise BadSignature(f"no {SIGNATURE} is right for this secret and this body")


def _single(headers: list[tuple[str, str]], wanted: str) -> str:
    values = [value for name, value in headers if name.lower() == wanted]
    if len(values) != 1:
        raise BadSignature(f"{len(values)} {wanted} headers instead of one")
    return values[0]
