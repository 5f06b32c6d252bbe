"""
Making the request of an attempt, from one delivery or several.

- What all requests of a webhook share is worked out once; an attempt adds its ids, its signature and the body.
- A signature covers the body before it is compressed, and the time of the attempt.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b

import mqhooks
from mqhooks.delivery import Delivery, Head, Request
from mqhooks.support.signatures import ID, SIGNATURE, TIMESTAMP, Signer
from mqhooks.webhook.settings import WebhookSettings

USER_AGENT = f"mqhooks/{mqhooks.__version__}"

GZIP_LEVEL = 1
"""Higher levels take three times as long to save a tenth."""

GZIP = 16 + zlib.MAX_WBITS
"""What zlib calls gzip's format."""


class RequestMaker:
    """
    Makes the requests of one webhook.

    :param settings: the endpoint, its headers, its secrets, and how events share a request. A ``content-type`` and a
        ``user-agent`` are added where none is configured.
    :param now: the time of day, in seconds since 1970.
    :ivar head: what all of the requests share.
    """

    def __init__(self, settings: WebhookSettings, now: Callable[[], float]) -> None:
        self._now = now
        self._signer = Signer(settings.secrets) if settings.secrets else None
        self._together = settings.batch is not None
        self._lines = settings.batch is not None and settings.batch.format == "ndjson"
        self._gzip = settings.batch is not None and settings.batch.compression == "gzip"
        configured = {name.lower() for name, _ in settings.headers}
        content_type = "application/x-ndjson" if self._lines else "application/json"
        defaults = (("content-type", content_type), ("user-agent", USER_AGENT))
        encoding = (("content-encoding", "gzip"),) if self._gzip else ()
        headers = (*settings.headers, *(pair for pair in defaults if pair[0] not in configured), *encoding)
        self.head = Head("POST", settings.url, headers)

    def make(self, deliveries: Sequence[Delivery]) -> Request:
        """
        Make the request of an attempt that is made now.

        :param deliveries: one, or where events share requests at least one, each of them a JSON object.
        """
        if self._together:
            return self._batch(deliveries)
        delivery = deliveries[0]
        headers = [(ID, delivery.id)] if self._signer is None else self.identify(delivery.id, delivery.body)
        request = Request(self.head, headers, delivery.body)
        variation = delivery.variation
        if variation is not None:
            request.method, request.path = variation.method, variation.path
            request.headers += variation.headers
        return request

    def identify(self, webhook_id: str, body: bytes) -> list[tuple[str, str]]:
        """
        Make the headers that belong to one attempt.

        :returns: the ``webhook-id``, and a timestamp and a signature when there are secrets.
        """
        if self._signer is None:
            return [(ID, webhook_id)]
        timestamp = int(self._now())
        return [(ID, webhook_id), (TIMESTAMP, str(timestamp)), (SIGNATURE, self._signer.sign(webhook_id, timestamp, body))]

    def _batch(self, deliveries: Sequence[Delivery]) -> Request:
        """Make one request of several deliveries, each with its id as its last member. A batch sent again has the same id."""
        digest = blake2b("\n".join([delivery.id for delivery in deliveries]).encode(), digest_size=12)
        members = [b'%b,"webhook_id":"%b"}' % (delivery.body[:-1], delivery.id.encode()) for delivery in deliveries]
        body = _lines(members) if self._lines else b"[%b]" % b",".join(members)
        headers = self.identify(f"batch_{digest.hexdigest()}", body)
        return Request(self.head, headers, zlib.compress(body, GZIP_LEVEL, wbits=GZIP) if self._gzip else body)


def _lines(members: Sequence[bytes]) -> bytes:
    """Write a line for each member."""
    body = b"\n".join([*members, b""])
    if body.count(b"\n") > len(members) or b"\r" in body:
        # A payload that is JSON may have line breaks, all of them between its values.
        body = b"\n".join([*(member.replace(b"\n", b" ").replace(b"\r", b" ") for member in members), b""])
    return body
