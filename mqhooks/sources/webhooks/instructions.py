"""
Lines for ``vernemq.conf`` that make VerneMQ post its events here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from urllib.parse import quote

from mqhooks.sources.webhooks.decode import HOOKS
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.support.listening import interface_of

HIDDEN = "…"
"""The placeholder for a token or a password."""

_FORK = frozenset({"on_register_failed", "on_delivery_complete"})


def instructions(settings: WebhooksSettings, hooks: Collection[str]) -> Iterator[str]:
    """
    Write the lines for some hooks, in both variants where there is one for MQTT 5.

    :param hooks: names of the hooks whose events are wanted.
    :returns: lines of ``vernemq.conf``, with placeholders for token and password.
    """
    endpoint = address(settings)
    yield "plugins.vmq_webhooks = on"
    number = 0
    for name in (hook.decode() for hook in HOOKS):
        plain = name.removesuffix("_m5")
        if plain not in hooks or plain in _FORK:
            continue
        number += 1
        yield f"vmq_webhooks.mq{number}.hook = {name}"
        yield f"vmq_webhooks.mq{number}.endpoint = {endpoint}"
    missing = sorted(hook for hook in hooks if hook in _FORK or hook.encode() not in HOOKS)
    if missing:
        yield f"# VerneMQ's own webhooks do not report {', '.join(missing)}"


def address(settings: WebhooksSettings) -> str:
    """Return the URL that VerneMQ has to post to, with ``HOST`` and ``PORT`` where they are unknown here."""
    kinds = [interface_of(description) for description in settings.listen]
    kind, interface, port = next((parts for parts in kinds if parts[2] is not None), ("tcp", "", None))
    host = interface if interface not in ("", "0.0.0.0", "::") else "HOST"
    host = f"[{host}]" if ":" in host else host
    login = f"{quote(settings.user, safe='')}:{HIDDEN}@" if settings.user is not None else ""
    query = f"?token={HIDDEN}" if settings.token is not None and not login else ""
    return f"{'https' if kind == 'ssl' else 'http'}://{login}{host}:{port or 'PORT'}{quote(settings.path)}{query}"
