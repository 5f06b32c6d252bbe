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

ANSWERS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The bounds of histograms of response times, in seconds."""
