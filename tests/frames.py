"""
Frames for tests: some that VerneMQ's own encoder made, and functions that make others.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from mqhooks.events import Message as Values
from mqhooks.sources.sidecar.encode import encode

TYPE_URL = "type.googleapis.com/"
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
    """Yield every recorded frame."""
    with (DATA / "sidecar-frames.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            framed = b64decode(record["frame_b64"])
            assert int.from_bytes(framed[:4], "big") == len(framed) - 4
            yield Golden(record["case"], record["encoder"], record["hook"], record["type_url"], framed[4:], record["decoded"])


def framed(content: bytes) -> bytes:
    """Put a frame's length before it."""
    return len(content).to_bytes(4, "big") + content


def envelope(message: Message | Values, type_name: str | None = None) -> bytes:
    """Make a frame's content from a message, either protobuf's or an event's."""
    if isinstance(message, Values):
        made = AnyMessage.FromString(encode(message))
    else:
        made = AnyMessage(type_url=TYPE_URL + message.DESCRIPTOR.full_name, value=message.SerializeToString())
    if type_name is not None:
        made.type_url = TYPE_URL + type_name
    return made.SerializeToString()
