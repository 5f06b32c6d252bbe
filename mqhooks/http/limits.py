"""
The limits that every transport keeps.
"""

from __future__ import annotations

KEEP = 1024
"""How many bytes of a response's body are kept, for whoever wants to know why a request was refused."""

MAX_HEAD = 64 << 10
"""How many bytes a response may have besides its body: status line, headers, framing."""

MAX_BODY = 1 << 20
"""How many bytes of a response's body are read. The rest of a longer one stays unread, and the connection is closed."""
