"""
Requests of VerneMQ's webhooks plugin: some that its own code made, and a function that makes others.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).parent / "data"
NEXT = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n{"result":"next"}'


class Recorded(NamedTuple):
    """A recorded request."""

    hook: str
    case: str
    vernemq: str
    request: bytes
    body: bytes

    @property
    def values(self) -> dict[str, Any]:
        """The body, decoded from JSON."""
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded


def recorded() -> Iterator[Recorded]:
    """Yield every recorded request."""
    with (DATA / "vernemq-webhooks.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            body = b64decode(record["body_b64"])
            headers = "".join(f"{name}: {value}\r\n" for name, value in record["headers"])
            head = f"{record['method']} {record['path']} {record['version']}\r\n{headers}\r\n"
            yield Recorded(record["hook"], record["case"], record["vernemq"], head.encode() + body, body)


def request(
    hook: str | None = "on_publish",
    body: bytes | None = None,
    *headers: str,
    url: str = "/vernemq",
    method: str = "POST",
    version: str = "HTTP/1.1",
    length: int | None = None,
    **values: object,
) -> bytes:
    """Make a request; without ``body``, for a message with ``values`` in place of the defaults."""
    if body is None:
        message = {"username": None, "mountpoint": "", "client_id": "c", "qos": 1, "topic": "t", "payload": "", "retain": False}
        body = json.dumps(message | values).encode()
    lines = [f"{method} {url} {version}", "content-type: application/json"]
    if hook is not None:
        lines.append(f"vernemq-hook: {hook}")
    if not any(header.lower().startswith("transfer-encoding") for header in headers):
        lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body
