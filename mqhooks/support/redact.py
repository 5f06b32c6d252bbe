"""
URLs without the secrets in them.
"""

from __future__ import annotations


def hide_url(url: str) -> str:
    """
    Remove from a URL what may be a credential: user, password and query.
    """
    url, mark, _ = url.partition("?")
    scheme, slashes, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}{'?…' if mark else ''}"


def hide(text: str, url: str) -> str:
    """
    Remove the credentials of a URL from a text that contains it.
    """
    return text.replace(url, hide_url(url))
