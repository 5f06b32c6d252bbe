"""
Counting the receiver's requests and answers, and describing them in readable lines.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime

from mqhooks.support.printable import printable

FIELD_LIMIT = 80
"""Most characters of a name that are shown."""

BODY_LIMIT = 240
"""Most characters of a body that are shown."""

UNPACK_LIMIT = 1 << 20
"""Most bytes that a compressed body is unpacked to: it could become a thousand times as long."""


@dataclass(frozen=True, slots=True)
class Received:
    """
    A request that the receiver got.

    :param time: when it was complete, in seconds since 1970.
    :param method: for example ``POST``.
    :param path: the request target, with its query.
    :param headers: in the order in which they came, names as Twisted writes them.
    :param body: byte for byte.
    :param status: the status it was answered with; ``None`` when the connection was closed instead.
    :param problem: the fault of its signature; ``None`` when it is right, or was not verified.
    """

    time: float
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    status: int | None
    problem: str | None = None

    @property
    def webhook_id(self) -> str | None:
        """The ``webhook-id`` header, if there is one."""
        return next((value for name, value in self.headers if name.lower() == "webhook-id"), None)

    def describe(self, *, headers: bool = False) -> str:
        """
        Describe the request in a line. Unprintable characters are escaped, so that the sender cannot control the terminal.

        :param headers: whether to add a line for each header.
        """
        parts = [
            datetime.fromtimestamp(self.time).strftime("%H:%M:%S.%f")[:-3],
            printable(self.method, FIELD_LIMIT),
            printable(self.path, FIELD_LIMIT),
            "dropped" if self.status is None else str(self.status),
        ]
        if self.problem is not None:
            parts.append(f"({self.problem})")
        text, packed = self._unpacked()
        parts += _summary(text)
        if self.webhook_id is not None:
            parts.append(f"id={printable(self.webhook_id, FIELD_LIMIT)}")
        parts.append(printable(text[: 4 * BODY_LIMIT].decode("utf-8", "backslashreplace"), BODY_LIMIT))
        if packed or len(self.body) > BODY_LIMIT:
            parts.append(f"({len(self.body)} bytes{packed})")
        lines = [" ".join(parts)]
        if headers:
            lines += [f"    {printable(name, FIELD_LIMIT)}: {printable(value, BODY_LIMIT)}" for name, value in self.headers]
        return "\n".join(lines)

    def _unpacked(self) -> tuple[bytes, str]:
        """Return the uncompressed body, at most its first :data:`UNPACK_LIMIT` bytes, and a remark about the compression."""
        encodings = [value.strip().lower() for name, value in self.headers if name.lower() == "content-encoding"]
        if encodings != ["gzip"]:
            return self.body, ""
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            text = unpacker.decompress(self.body, UNPACK_LIMIT)
        except zlib.error:
            return self.body, ", not the gzip that its header says"
        return text, ", gzip" if unpacker.eof or unpacker.unconsumed_tail else ", gzip that ends too early"


class Tally:
    """
    Counts the receiver's requests and answers.

    :param keep: number of latest requests to keep in :attr:`received`; ``None`` for all.
    :param remember: number of latest webhook-ids to remember, to notice duplicates; ``None`` for all.
    """

    def __init__(self, keep: int | None = 0, remember: int | None = 100_000) -> None:
        self._remember = remember
        self._ids: dict[str, None] = {}
        self.received: deque[Received] = deque(maxlen=keep)
        """The latest requests, oldest first."""
        self.requests = 0
        """Requests received."""
        self.answers: Counter[int] = Counter()
        """Requests answered, by status."""
        self.dropped = 0
        """Requests answered by closing the connection."""
        self.forged = 0
        """Requests refused for a missing or wrong signature."""
        self.abandoned = 0
        """Requests whose client left before they were answered."""
        self.distinct = 0
        """Different webhook-ids answered with 2xx."""
        self.duplicates = 0
        """Requests answered with 2xx whose webhook-id had been answered so before."""
        self.connections = 0
        """Connections opened."""
        self.open = 0
        """Connections open now."""
        self.most_open = 0
        """The most connections open at once."""

    def arrived(self, received: Received) -> None:
        """Count and keep a request."""
        self.requests += 1
        self.received.append(received)

    def answered(self, received: Received) -> None:
        """Count the answer to a request."""
        status = received.status
        if status is None:
            self.dropped += 1
            return
        self.answers[status] += 1
        if received.problem is not None:
            self.forged += 1
        webhook_id = received.webhook_id
        if 200 <= status < 300 and webhook_id is not None:
            self._succeeded(webhook_id)

    def connected(self) -> None:
        """Count a new connection."""
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)

    def disconnected(self) -> None:
        """Count the end of a connection."""
        self.open -= 1

    def describe(self) -> str:
        """Sum up the counts in one line."""
        parts = [f"{count} answered {status}" for status, count in sorted(self.answers.items())]
        if self.forged:
            parts.append(f"{self.forged} with a wrong signature")
        if self.dropped:
            parts.append(f"{self.dropped} dropped")
        if self.abandoned:
            parts.append(f"{self.abandoned} abandoned")
        if self.distinct:
            parts.append(f"{self.distinct} different webhook-ids, {self.duplicates} repeated")
        return ", ".join([f"{self.requests} requests over {self.connections} connections", *parts])

    def _succeeded(self, webhook_id: str) -> None:
        if webhook_id in self._ids:
            self.duplicates += 1
            return
        self.distinct += 1
        self._ids[webhook_id] = None
        if self._remember is not None and len(self._ids) > self._remember:
            del self._ids[next(iter(self._ids))]


def _summary(body: bytes) -> list[str]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(fields, dict):
        return []
    action = fields.get("action")
    client = next((fields[key] for key in ("clientid", "from_client_id", "client_id") if key in fields), None)
    topic = fields.get("topic")
    parts = [printable(action, FIELD_LIMIT)] if isinstance(action, str) else []
    if isinstance(client, str):
        parts.append(f"client={printable(client, FIELD_LIMIT)}")
    if isinstance(topic, str):
        parts.append(f"topic={printable(topic, FIELD_LIMIT)}")
    return parts
