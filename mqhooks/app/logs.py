"""
Writes the log as JSON lines, wherever twistd would write it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import IO, Any

from twisted.logger import FileLogObserver, ILogObserver, LogEvent, formatEvent, textFileLogObserver
from twisted.python.logfile import LogFile

from mqhooks.errors import ConfigError

FORMATS = ("text", "json")
"""The formats of the log."""

_OWN = {"time", "level", "logger", "text", "traceback"}
_LEGACY = {"message", "format", "system", "isError", "failure", "why"}


def json_line(event: LogEvent) -> str:
    """
    Format a log event.

    :returns: a JSON object and a line end, all ASCII: ``time`` (RFC 3339, in UTC), ``level``, ``logger``, ``text``, and the
        event's fields that are plain values, or lists and dictionaries of them. ``traceback`` holds a failure.
    """
    level = event.get("log_level")
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(event.get("log_time", 0.0), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "level": "info" if level is None else level.name,
        "logger": event.get("log_namespace", ""),
        "text": formatEvent(event),
    }
    line |= {name: value for name, value in event.items() if _is_field(name) and _plain(value)}
    if "log_failure" in event:
        line["traceback"] = event["log_failure"].getTraceback()
        line["text"] = line["text"] or event["log_failure"].getErrorMessage()
    return json.dumps(line) + "\n"


def observer_for(
    reactor: Any, twistd: Mapping[str, Any] | None, log_format: str, *, stdout_taken: bool = False
) -> Callable[[], ILogObserver] | None:
    """
    Choose the log observer.

    :param reactor: rotates the file at SIGUSR1, as twistd does with its own log.
    :param twistd: twistd's own options: ``--logfile``, ``--syslog``, ``--logger`` and ``-n``.
    :param log_format: one of :data:`FORMATS`.
    :param stdout_taken: whether a sink writes to standard output.
    :returns: makes the observer when the log begins; ``None`` to leave that to twistd.
    :raises mqhooks.errors.ConfigError: when twistd's options ask for another format than JSON.
    """
    options: Mapping[str, Any] = twistd or {}
    elsewhere = options.get("logfile") or options.get("syslog") or options.get("logger")
    if log_format == "text":
        return (lambda: textFileLogObserver(sys.stderr)) if stdout_taken and not elsewhere else None
    for other in ("syslog", "logger"):
        if options.get(other):
            raise ConfigError(f"twistd's --{other} has a format of its own: leave one of the two out", "--log-format")
    return lambda: FileLogObserver(_file(reactor, options, stdout_taken=stdout_taken), json_line)


def _file(reactor: Any, options: Mapping[str, Any], *, stdout_taken: bool) -> IO[Any]:
    """Open what twistd would open."""
    name = options.get("logfile")
    if not name and not options.get("nodaemon"):
        name = "twistd.log"
    if not name or name == "-":
        return sys.stderr if stdout_taken and not name else sys.stdout
    file: Any = LogFile.fromFullPath(name)
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return file  # type: ignore[no-any-return]


def _is_field(name: str) -> bool:
    return not name.startswith(("log_", "_")) and name not in _OWN and name not in _LEGACY


def _plain(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return isinstance(value, (str, int, bool, type(None)))
