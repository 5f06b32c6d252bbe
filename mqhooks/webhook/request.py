"""
The bytes of a webhook's requests.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.client import URI

import mqhooks
from mqhooks.nanomq.settings import WebhookSettings
from mqhooks.outbox.delivery import Delivery
from mqhooks.webhook.signature import ID, SIGNATURE, TIMESTAMP, Signer

USER_AGENT = f"mqhooks/{mqhooks.__version__}"


class RequestTemplate:
    """
    What all requests of one webhook share, and how one delivery completes it.

    :param settings: the endpoint, its headers and its secrets. A ``content-type`` and a ``user-agent`` are added when none is
        configured.
    :param now: tells the time that requests are signed with, in seconds since 1970.
    """

    def __init__(self, settings: WebhookSettings, now: Callable[[], float]) -> None:
        self._now = now
        self._signer = Signer(settings.secrets) if settings.secrets else None
        uri = URI.fromBytes(settings.url.encode("ascii"))
        configured = {name.lower() for name, _ in settings.headers}
        defaults = (("content-type", "application/json"), ("user-agent", USER_AGENT))
        self.headers = (*settings.headers, *(pair for pair in defaults if pair[0] not in configured))
        lines = [f"{name}: {value}" for name, value in self.headers]
        self._head = b"\r\n".join(
            [b"POST %b HTTP/1.1" % uri.originForm, b"Host: " + uri.netloc, *(line.encode() for line in lines), b""]
        )

    def identify(self, delivery: Delivery) -> list[tuple[str, str]]:
        """
        Make the headers that are this attempt's alone.

        :returns: the ``webhook-id``, and a time and a signature when there are secrets.
        """
        headers = [(ID, delivery.id)]
        if self._signer is not None:
            timestamp = int(self._now())
            headers.append((TIMESTAMP, str(timestamp)))
            headers.append((SIGNATURE, self._signer.sign(delivery.id, timestamp, delivery.body)))
        return headers

    def render(self, delivery: Delivery) -> bytes:
        """
        Write a delivery's request out, for an attempt now.

        :returns: its head and its body.
        """
        body = delivery.body
        if self._signer is None:
            identity = f"{ID}: {delivery.id}"
        else:
            identity = "\r\n".join([f"{name}: {value}" for name, value in self.identify(delivery)])
        return b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, identity.encode(), len(body), body)
