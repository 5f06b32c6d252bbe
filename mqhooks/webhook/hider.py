"""
Hide the credentials that an endpoint repeats in its answer, before anything keeps or shows the answer.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from msgspec import structs

from mqhooks.delivery import Response
from mqhooks.nanomq.scanner import CONFIDENTIAL
from mqhooks.shapes.settings import Shape
from mqhooks.webhook.settings import WebhookSettings

SHORT = 4
"""Shortest part of a secret, in characters, that is hidden: shorter ones are part of many words."""

_HIDDEN = "…".encode()


class Hider:
    """
    Hides secrets in the bodies of answers.

    :param secrets: the secrets; in JSON and in URLs they are found, too.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = [(each, json.dumps(each)[1:-1], quote(each, safe="", errors="surrogatepass")) for each in secrets if each]
        written = {form.encode("utf-8", "surrogatepass") for each in forms for form in each}
        # A whole one goes before its parts.
        self._written = sorted(written, key=len, reverse=True)

    def hide(self, response: Response) -> Response:
        """Return an answer without the secrets in its body."""
        body = response.body
        if not (body and self._written):
            return response
        for secret in self._written:
            body = body.replace(secret, _HIDDEN)
        if not response.complete or response.length > len(response.body):
            body = self._without_end(body)
        return response if body == response.body else structs.replace(response, body=body)

    def _without_end(self, body: bytes) -> bytes:
        """Hide the beginning of a secret at the end of a body: the transport keeps only the beginning of a long answer."""
        for secret in self._written:
            at = body.find(secret[:SHORT], max(len(body) - len(secret), 0))
            while at >= 0:
                if secret.startswith(body[at:]):
                    return body[:at] + _HIDDEN
                at = body.find(secret[:SHORT], at + 1)
        return body


def hider_for(settings: WebhookSettings) -> Hider | None:
    """Make the hider of what is confidential among a webhook's headers; ``None`` when nothing is."""
    headers = list(settings.headers)
    for rule in settings.rules:
        if isinstance(rule.shape, Shape):
            headers += rule.shape.headers
    values = [value for name, value in headers if CONFIDENTIAL.search(name)]
    secrets = [secret for value in values for secret in credentials(value) if len(secret) >= SHORT]
    return Hider(secrets) if secrets else None


def credentials(value: str) -> Iterator[str]:
    """
    List the secrets in the value of a header, such as ``Bearer TOKEN``.

    :returns: the value, the credentials without their scheme, and the user and the password in those of ``Basic``.
    """
    yield value
    scheme, _, rest = value.partition(" ")
    yield rest
    if scheme.lower() == "basic":
        try:
            pair = b64decode(rest, validate=True).decode()
        except ValueError:
            return
        yield pair
        password = pair.partition(":")[2]
        if len(password) >= SHORT:
            yield password
