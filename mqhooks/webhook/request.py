"""
The bytes of a webhook's requests.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b

import msgspec
from twisted.web.client import URI

import mqhooks
from mqhooks.outbox.delivery import Delivery
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.signature import ID, SIGNATURE, TIMESTAMP, Signer

USER_AGENT = f"mqhooks/{mqhooks.__version__}"

GZIP_LEVEL = 1
"""More takes three times as long, to save a tenth."""

GZIP = 16 + zlib.MAX_WBITS
"""What zlib calls gzip's format."""


class Batch(msgspec.Struct, frozen=True):
    """
    What several deliveries have in common when they share a request.

    :param id: made of their ids: the same for the same deliveries in the same order.
    :param body: what they are together.
    :param sent: the body as it is sent, compressed or not.
    """

    id: str
    body: bytes
    sent: bytes


class RequestTemplate:
    """
    What all requests of one webhook share, and how a delivery or a batch completes it.

    :param settings: the endpoint, its headers, its secrets, and how events are put together. A ``content-type`` and a
        ``user-agent`` are added when none is configured.
    :param now: tells the time that requests are signed with, in seconds since 1970.
    """

    def __init__(self, settings: WebhookSettings, now: Callable[[], float]) -> None:
        self._now = now
        self._signer = Signer(settings.secrets) if settings.secrets else None
        self._lines = settings.batch is not None and settings.batch.format == "ndjson"
        self._gzip = settings.batch is not None and settings.batch.compression == "gzip"
        uri = URI.fromBytes(settings.url.encode("ascii"))
        configured = {name.lower() for name, _ in settings.headers}
        content_type = "application/x-ndjson" if self._lines else "application/json"
        defaults = (("content-type", content_type), ("user-agent", USER_AGENT))
        encoding = (("content-encoding", "gzip"),) if self._gzip else ()
        self.headers = (*settings.headers, *(pair for pair in defaults if pair[0] not in configured), *encoding)
        lines = [f"{name}: {value}" for name, value in self.headers]
        self._start = b"\r\n".join(
            [b"POST %b HTTP/1.1" % uri.originForm, b"Host: " + uri.netloc, *(line.encode() for line in [*lines, f"{ID}: "])]
        )

    def identify(self, delivery: Delivery | Batch) -> list[tuple[str, str]]:
        """
        Make the headers that are this attempt's alone. What is signed is the body before it is compressed.

        :returns: the ``webhook-id``, and a time and a signature when there are secrets.
        """
        headers = [(ID, delivery.id)]
        if self._signer is not None:
            timestamp, signature = self._sign(self._signer, delivery)
            headers += [(TIMESTAMP, str(timestamp)), (SIGNATURE, signature)]
        return headers

    def render(self, delivery: Delivery | Batch, sent: bytes) -> bytes:
        """
        Write a request out, for an attempt now.

        :param sent: the body as it is sent, compressed or not.
        """
        if self._signer is None:
            return b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (self._start, delivery.id.encode(), len(sent), sent)
        timestamp, signature = self._sign(self._signer, delivery)
        signed = f"{delivery.id}\r\n{TIMESTAMP}: {timestamp}\r\n{SIGNATURE}: {signature}"
        return b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (self._start, signed.encode(), len(sent), sent)

    def batch(self, deliveries: Sequence[Delivery]) -> Batch:
        """
        Put deliveries together, each with its id as a last member, ``webhook_id``.

        :param deliveries: at least one, each a JSON object.
        """
        digest = blake2b("\n".join([delivery.id for delivery in deliveries]).encode(), digest_size=12)
        members = [b'%b,"webhook_id":"%b"}' % (delivery.body[:-1], delivery.id.encode()) for delivery in deliveries]
        body = b"\n".join([*members, b""]) if self._lines else b"[%b]" % b",".join(members)
        return Batch(f"batch_{digest.hexdigest()}", body, _compressed(body) if self._gzip else body)

    def _sign(self, signer: Signer, delivery: Delivery | Batch) -> tuple[int, str]:
        timestamp = int(self._now())
        return timestamp, signer.sign(delivery.id, timestamp, delivery.body)


def _compressed(body: bytes) -> bytes:
    return zlib.compress(body, GZIP_LEVEL, wbits=GZIP)
