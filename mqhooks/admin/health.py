"""
Readiness, for load balancers and monitoring.
"""

from __future__ import annotations

from typing import Any

from mqhooks.admin.bridge import Bridge
from mqhooks.support.listening import address_name


def ready(bridge: Bridge) -> tuple[bool, dict[str, Any]]:
    """
    Check whether events can be received and stored, and whether every endpoint accepts deliveries.

    An endpoint that is down may recover on its own, so it is left to alerts. One that refuses everything needs an operator.

    :returns: whether all checks pass, and the checks with their reasons.
    """
    addresses = [address_name(address) for source in bridge.sources for address in source.addresses]
    deaf = [source.via for source in bridge.sources if not source.addresses]
    failing = bridge.failing
    listening = bool(addresses) and not deaf
    heard = f"for VerneMQ on {', '.join(addresses)}" if listening else "not for VerneMQ"
    if bridge.settings.outbox.role == "deliver":
        listening, heard = True, "not for VerneMQ: outbox.role is deliver"
    checks = {
        "listening": (listening, heard),
        "outbox": (failing is None, "writable" if failing is None else f"cannot be written: {failing}"),
    }
    for sink in bridge.webhooks:
        if sink.refusing and sink.failure is not None:
            reason = f"the endpoint refuses everything: {sink.failure.reason}"
            checks[f"webhook {sink.settings.name}"] = (False, reason)
    good = all(fine for fine, _ in checks.values())
    reasons = {name: {"ok": fine, "reason": reason} for name, (fine, reason) in checks.items()}
    return good, {"status": "ready" if good else "not ready", "checks": reasons}
