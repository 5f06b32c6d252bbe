"""
Naming an address without what is secret in it.
"""

from __future__ import annotations


def hide_url(url: str) -> str:
    """
    Take out of a URL what may be a credential: its user, its password and its query.
    """
    url, mark, _ = url.partition("?")
    scheme, slashes, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}{'?…' if mark else ''}"


def hide(text: str, url: str) -> str:
    """
    Take out of a text the credentials of a URL that stands in it.
    """
    return text.replace(url, hide_url(url))
