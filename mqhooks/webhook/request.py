"""
Make the request of an attempt, from one delivery or several.

- The head that all requests of a webhook share is made once; an attempt adds its ids, its signature and the body.
- A signature covers the body before it is compressed, and the time of the attempt.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b

import mqhooks
from mqhooks.delivery import Delivery, Head, Request
from mqhooks.shapes.cloudevents import BATCH, STRUCTURED
from mqhooks.support.signatures import ID, SIGNATURE, TIMESTAMP, Signer
from mqhooks.webhook.settings import WebhookSettings

USER_AGENT = f"mqhooks/{mqhooks.__version__}"

GZIP_LEVEL = 1
"""Higher levels take three times as long to save a tenth."""

MOST_HEADS = 256
"""Maximum number of entries to remember about deliveries' own headers: names that replace nothing, and heads."""

_CONTENT_TYPES: dict[str | None, str] = {"structured": STRUCTURED, "batch": BATCH}

GZIP = 16 + zlib.MAX_WBITS
"""zlib's ``wbits`` for the gzip format."""


class RequestMaker:
    """
    Makes the requests of one webhook.

    :param settings: the endpoint, its headers, its secrets, and its batches. A ``content-type`` and a ``user-agent`` are added
        where none is configured.
    :param now: returns the time of day, in seconds since 1970.
    :ivar head: the head that all requests share.
    """

    def __init__(self, settings: WebhookSettings, now: Callable[[], float]) -> None:
        self._now = now
        self._signer = Signer(settings.secrets) if settings.secrets else None
        self._together = settings.batch is not None
        self._lines = settings.batch is not None and settings.batch.format == "ndjson"
        self._gzip = settings.batch is not None and settings.batch.compression == "gzip"
        mode = None if settings.cloudevents is None else settings.cloudevents.mode
        self._with_ids = mode != "batch"
        configured = {name.lower() for name, _ in settings.headers}
        content_type = _CONTENT_TYPES.get(mode, "application/x-ndjson" if self._lines else "application/json")
        defaults = (("content-type", content_type), ("user-agent", USER_AGENT))
        encoding = (("content-encoding", "gzip"),) if self._gzip else ()
        headers = (*settings.headers, *(pair for pair in defaults if pair[0] not in configured), *encoding)
        # Deliveries that were accepted before the URL had placeholders are sent with the placeholders as literal text.
        self.head = Head("POST", settings.url.replace("{", "%7B").replace("}", "%7D"), headers)
        # Deliveries' own headers: names that replace none of the head's, and the heads that remain for combinations that do.
        self._beside: set[str] = set()
        self._heads: dict[tuple[str, ...], Head] = {}

    def make(self, deliveries: Sequence[Delivery]) -> Request:
        """
        Make the request of an attempt that starts now.

        :param deliveries: one; or where events share requests, at least one. Several must each be a JSON object without a
            variation.
        """
        delivery = deliveries[0]
        if self._together and delivery.variation is None:
            return self._batch(deliveries)
        headers = [(ID, delivery.id)] if self._signer is None else self.identify(delivery.id, delivery.body)
        request = Request(self.head, headers, delivery.body)
        variation = delivery.variation
        if variation is not None:
            request.method, request.path = variation.method, variation.path
            if variation.headers:
                request.headers += variation.headers
                request.head = self._head_beside(variation.headers)
            if self._gzip:
                request.body = zlib.compress(request.body, GZIP_LEVEL, wbits=GZIP)
        return request

    def _head_beside(self, headers: Sequence[tuple[str, str]]) -> Head:
        """Return the shared head of the requests that have these headers of their own."""
        beside = self._beside
        for name, _ in headers:
            if name not in beside:
                break
        else:
            return self.head
        names = tuple([name for name, _ in headers])
        head = self._heads.get(names)
        if head is None:
            own = {name.lower() for name in names}
            others = tuple(pair for pair in self.head.headers if pair[0].lower() not in own)
            known = len(beside) + len(self._heads)
            if len(others) == len(self.head.headers):
                if known < MOST_HEADS:
                    beside.update(names)
                return self.head
            # The transport renders a head again whenever it gets a different object, so equal heads are one object.
            head = Head(self.head.method, self.head.url, others)
            if known < MOST_HEADS:
                self._heads[names] = head
        return head

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
        if self._with_ids:
            members = [b'%b,"webhook_id":"%b"}' % (delivery.body[:-1], delivery.id.encode()) for delivery in deliveries]
        else:
            members = [delivery.body for delivery in deliveries]
        body = _lines(members) if self._lines else b"[%b]" % b",".join(members)
        headers = self.identify(f"batch_{digest.hexdigest()}", body)
        return Request(self.head, headers, zlib.compress(body, GZIP_LEVEL, wbits=GZIP) if self._gzip else body)


def _lines(members: Sequence[bytes]) -> bytes:
    """Return one line for each member."""
    body = b"\n".join([*members, b""])
    if body.count(b"\n") > len(members) or b"\r" in body:
        # A JSON payload may contain line breaks, but only between its tokens.
        body = b"\n".join([*(member.replace(b"\n", b" ").replace(b"\r", b" ") for member in members), b""])
    return body
