"""
Attempts as the status page shows them.
"""

from __future__ import annotations

from typing import Any

from mqhooks.delivery import address
from mqhooks.support.redact import hide
from mqhooks.webhook.counters import Attempt


def shown_attempt(attempt: Attempt) -> dict[str, Any]:
    """Show an attempt in plain JSON values, without anything in its URL that may be a credential."""
    text = attempt.said.decode("utf-8", "replace")
    for url in (attempt.url, attempt.path and address(attempt.url, attempt.path)):
        text = hide(text, url) if url else text
    return {
        "at": attempt.at,
        "seconds": round(attempt.seconds, 4),
        "id": attempt.id,
        "client": attempt.client.rpartition("\0")[2],
        "together": attempt.together,
        "status": attempt.status,
        "said": text,
    }
