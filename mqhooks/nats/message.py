"""
Messages, subjects and headers of NATS.

Headers look like those of HTTP. They are kept as they came, and parsed only when somebody reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

VERSION = b"NATS/1.0"
"""The beginning of a block of headers; a status may follow it on the same line."""

MAX_SUBJECT = 1024
"""Longest subject, in bytes. A server's limit is 4,096 for the whole line."""

_SUBJECT = re.compile(r"[^\s\x00-\x20.]+(?:\.[^\s\x00-\x20.]+)*")
_STATUS = re.compile(rb"NATS/1\.0[ \t]+([0-9]{3})([^\r\n]*)")
_NAME = re.compile(r"[!-9;-~]+")
_VALUE = re.compile(r"[^\r\n]*")


class NATSMessage:
    """
    A message for a subscription or a request.

    :ivar raw_subject: the subject that it was published to, as it came.
    :ivar raw_reply: the subject for an answer, or empty.
    :ivar block: the headers as they came, or empty.
    :ivar payload: the content.
    """

    __slots__ = ("block", "payload", "raw_reply", "raw_subject")

    def __init__(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        self.raw_subject = subject
        self.raw_reply = reply
        self.block = block
        self.payload = payload

    @property
    def subject(self) -> str:
        """The subject that it was published to."""
        return self.raw_subject.decode("utf-8", "surrogateescape")

    @property
    def reply(self) -> str:
        """The subject for an answer, or empty."""
        return self.raw_reply.decode("utf-8", "surrogateescape")

    @property
    def headers(self) -> dict[str, str]:
        """Headers by name; of several with the same name, the first. Lines that are not headers are left out."""
        found: dict[str, str] = {}
        for line in self.block.split(b"\r\n")[1:]:
            name, colon, value = line.partition(b":")
            if colon:
                found.setdefault(name.decode("utf-8", "replace"), value.strip().decode("utf-8", "replace"))
        return found

    @property
    def status(self) -> int:
        """The status of a server's answer that is not a message, for example 503; 0 without a status."""
        found = _STATUS.match(self.block)
        return int(found[1]) if found else 0

    @property
    def description(self) -> str:
        """The text behind the status."""
        found = _STATUS.match(self.block)
        return found[2].decode("utf-8", "replace").strip() if found else ""


@lru_cache(4096)
def encode_subject(subject: str) -> bytes:
    """
    Encode a subject.

    :raises ValueError: when it is empty, too long, or contains an empty token, white space or control characters.
    """
    encoded = subject.encode("utf-8", "surrogateescape")
    if _SUBJECT.fullmatch(subject) is None or len(encoded) > MAX_SUBJECT:
        raise ValueError(f"not a subject: {subject[:80]!r}")
    return encoded


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """
    Encode headers.

    :raises ValueError: when a name or a value cannot be encoded.
    """
    lines = [VERSION.decode("ascii")]
    for name, value in headers.items():
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise ValueError(f"not a header: {name[:80]!r}")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
