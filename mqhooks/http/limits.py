"""
Limits on responses that every transport keeps.

They bound memory and time whatever an endpoint sends; a response that exceeds them costs its connection, not its status.
"""

from __future__ import annotations

KEEP = 1024
"""How many bytes of a response's body are kept, to show why a request was refused."""

MAX_HEAD = 64 << 10
"""How many bytes a response may have besides its body: status line, headers, framing."""

MAX_BODY = 1 << 20
"""How many bytes of a response's body are read. The rest of a longer one stays unread, and the connection is closed."""
