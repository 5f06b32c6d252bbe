"""
Show a configuration without its secrets.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from mqhooks.support.redact import hide_url

HIDDEN = "(hidden)"
"""Shown in place of a secret."""

_SECRET = {"key_password", "password", "secrets", "token"}


def plain(settings: object) -> Any:
    """
    Turn settings into plain JSON values, with :data:`HIDDEN` in place of tokens, secrets, passwords and header values.
    """
    if is_dataclass(settings):
        return {
            field.name: _shown(field.name, getattr(settings, field.name), secret=not field.repr)
            for field in fields(settings)
            # A field that is not compared says where a setting was read; it is not a setting itself.
            if field.compare
        }
    if isinstance(settings, (tuple, list)):
        return [plain(item) for item in settings]
    if isinstance(settings, dict):
        return {str(key): plain(value) for key, value in settings.items()}
    return settings if isinstance(settings, (str, int, float, bool, type(None))) else str(settings)


def _shown(name: str, value: Any, *, secret: bool) -> Any:
    if secret or name in _SECRET:
        return HIDDEN if value else None
    if name == "headers":
        return [[header, HIDDEN] for header, _ in value]
    return hide_url(value) if name in ("url", "token_url") else plain(value)
