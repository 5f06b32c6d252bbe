"""
Frames for tests: those made by VerneMQ's own encoder, and the means to make others.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

DATA = Path(__file__).parent / "data"


class Golden(NamedTuple):
    """A recorded frame, without its length prefix."""

    case: str
    encoder: str
    hook: str
    type_url: str | None
    frame: bytes
    decoded: dict[str, Any] | None


def golden_frames() -> Iterator[Golden]:
    """Every recorded frame."""
    with (DATA / "sidecar-frames.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            framed = b64decode(record["frame_b64"])
            assert int.from_bytes(framed[:4], "big") == len(framed) - 4
            yield Golden(record["case"], record["encoder"], record["hook"], record["type_url"], framed[4:], record["decoded"])


def framed(content: bytes) -> bytes:
    """Put a frame's length before it."""
    return len(content).to_bytes(4, "big") + content


def envelope(message: Message, type_name: str | None = None) -> bytes:
    """Make a frame's content of a message."""
    name = type_name or message.DESCRIPTOR.full_name
    return AnyMessage(type_url=f"type.googleapis.com/{name}", value=message.SerializeToString()).SerializeToString()
