"""
Making sinks from strings, as Twisted makes its endpoints: ``log:path=/var/log/mqhooks.jsonl``.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from twisted.plugin import getPlugins

from mqhooks.errors import ConfigError
from mqhooks.interfaces import IEventSink, ISinkPlugin
from mqhooks.support.redact import hide_urls

_PART = re.compile(r"(?:[^\\:]|\\.)*", re.DOTALL)
_KEY = re.compile(r"([a-z_][a-z0-9_]*)=", re.ASCII)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def sinkFromString(reactor: object, description: str) -> IEventSink:
    """
    Make the sink that a description names, as Twisted's ``serverFromString`` does for endpoints.

    :param reactor: passed to the plugin that makes the sink.
    :param description: ``prefix:argument:key=value``; see :func:`parse`. The prefix is that of an
        :class:`~mqhooks.interfaces.ISinkPlugin` under ``twisted/plugins/``.
    :raises mqhooks.errors.ConfigError: when no plugin has the prefix, or an argument is wrong, missing or unknown.
    """
    prefix, args, kwargs = parse(description)
    plugins = {plugin.prefix: plugin for plugin in getPlugins(ISinkPlugin)}
    plugin = plugins.get(prefix)
    if plugin is None:
        near = get_close_matches(prefix, plugins, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no sink is called {prefix!r}; {hint}Known: {', '.join(sorted(plugins))}", hide_urls(description))
    try:
        return plugin.build(reactor, *args, **kwargs)
    except ConfigError as error:
        raise ConfigError(error.message, error.where or hide_urls(description), error.key) from error


def parse(description: str) -> tuple[str, list[str], dict[str, str]]:
    r"""
    Parse a description.

    Colons separate its parts. A part that begins with a word and ``=`` is a keyword argument, the others are positional. A
    backslash escapes the character after it: a description within a description has its colons written ``\:`` and its
    backslashes ``\\``, as :func:`twisted.internet.endpoints.quoteStringArgument` does.

    :returns: the first part, the positional arguments, and the keyword arguments.
    :raises mqhooks.errors.ConfigError: when a keyword is given twice, or the last character is a lone backslash.
    """
    args: list[str] = []
    kwargs: dict[str, str] = {}
    end = -1
    while end < len(description):
        part = _PART.match(description, end + 1)
        assert part is not None
        end = part.end()
        if description[end : end + 1] == "\\":
            raise ConfigError("ends with a lone backslash; write \\\\ for one", hide_urls(description))
        raw = part.group()
        keyed = _KEY.match(raw)
        if keyed is None or not args:
            args.append(_ESCAPE.sub(r"\1", raw))
        elif keyed[1] in kwargs:
            raise ConfigError("is given twice; leave one out", hide_urls(description), keyed[1])
        else:
            kwargs[keyed[1]] = _ESCAPE.sub(r"\1", raw[keyed.end() :])
    return args[0], args[1:], kwargs
