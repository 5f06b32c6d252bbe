"""
Limits on responses, which every transport enforces.

They bound memory and time whatever an endpoint sends. A response that exceeds them costs its connection, not its status.
"""

from __future__ import annotations

KEEP = 1024
"""Bytes of a response's body to keep, to show why a request was refused."""

MAX_HEAD = 64 << 10
"""Maximum number of bytes of a response besides its body: status line, headers, framing."""

MAX_BODY = 1 << 20
"""Bytes of a response's body to read. The rest of a longer one stays unread, and the connection is closed."""
