"""
Shared code of the peers: the same frames become the same bodies, and the requests carry the same headers.

The peers are what one writes in an afternoon: nothing durable, no retries, and no order.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import time
import uuid

from google.protobuf.any_pb2 import Any as AnyMessage

from mqhooks.pb.on_publish_pb2 import OnPublish

AT_ONCE = 32
"""Most requests in flight."""

WAITING = 1000
"""Events that may wait in memory before the stream is no longer read."""


class Renderer:
    """
    Makes a request's body and headers from a frame.

    :param secret: signs each request by Standard Webhooks; ``None`` for unsigned requests.
    """

    def __init__(self, secret: str | None) -> None:
        self._key = None if secret is None else base64.b64decode(secret.removeprefix("whsec_"))

    def body(self, frame: bytes) -> bytes:
        """
        Make NanoMQ's body of ``on_message_publish``.

        :param frame: the frame without its length.
        """
        message = OnPublish.FromString(AnyMessage.FromString(frame).value)
        body = {
            "ts": message.timestamp.ToMilliseconds(),
            "topic": message.topic,
            "retain": message.retain,
            "qos": message.qos,
            "action": "message_publish",
            "from_username": message.username,
            "from_client_id": message.client_id,
            "payload": message.payload.decode(),
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def headers(self, body: bytes) -> dict[str, str]:
        """Make the headers that go with a body."""
        headers = {"content-type": "application/json"}
        if self._key is not None:
            id_, timestamp = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
            signed = hmac.digest(self._key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256)
            signature = f"v1,{base64.b64encode(signed).decode()}"
            headers |= {"webhook-id": id_, "webhook-timestamp": timestamp, "webhook-signature": signature}
        return headers


def arguments(name: str) -> argparse.ArgumentParser:
    """
    Make the command line of a peer.

    :param name: the name of its module.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--port", type=int, required=True, help="where to listen for VerneMQ")
    parser.add_argument("--url", required=True, help="where the requests go")
    parser.add_argument("--secret", help="sign them with it")
    parser.add_argument("--authority", help="a PEM file with the certificate of who may vouch for the endpoint")
    return parser
