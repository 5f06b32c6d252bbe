"""
Writes the log as JSON lines, wherever twistd would write it, and reopens a log file that was renamed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import IO, Any

from twisted.logger import FileLogObserver, ILogObserver, LogEvent, Logger, formatEvent, textFileLogObserver
from twisted.python.logfile import LogFile

from mqhooks.errors import ConfigError
from mqhooks.support.hangup import on_hangup

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

    :param reactor: rotates the file at SIGUSR1, as twistd does with its own log, and reopens it at SIGHUP.
    :param twistd: twistd's own options: ``--logfile``, ``--syslog``, ``--logger`` and ``-n``.
    :param log_format: one of :data:`FORMATS`.
    :param stdout_taken: whether a sink writes to standard output.
    :returns: a function that makes the observer when the log begins; ``None`` to leave that to twistd.
    :raises mqhooks.errors.ConfigError: when twistd is asked for a format other than JSON, or for standard output in a daemon.
    """
    options: Mapping[str, Any] = twistd or {}
    elsewhere = options.get("logfile") or options.get("syslog") or options.get("logger")
    if log_format == "text":
        return (lambda: textFileLogObserver(sys.stderr)) if stdout_taken and not elsewhere else None
    for other in ("syslog", "logger"):
        if options.get(other):
            raise ConfigError(f"twistd's --{other} has its own format: leave out one of the two", "--log-format")
    if not options.get("nodaemon") and options.get("logfile") == "-":
        raise ConfigError("a daemon has no standard output: give --logfile a file, or run twistd -n", "--logfile")
    return lambda: FileLogObserver(_file(reactor, options, stdout_taken=stdout_taken), json_line)


def text_file_observer_for(reactor: Any, twistd: Mapping[str, Any] | None) -> Callable[[], ILogObserver] | None:
    """
    Take over twistd's log file, which twistd would not reopen.

    :param reactor: see :func:`observer_for`.
    :param twistd: twistd's own options.
    :returns: a function that makes the observer when the log begins, or raises :class:`~mqhooks.errors.ConfigError`; ``None``
        when the log does not go to a file.
    """
    if twistd is None or twistd.get("syslog") or twistd.get("logger") or _file_name(twistd) in (None, "-"):
        return None
    return lambda: textFileLogObserver(_file(reactor, twistd, stdout_taken=False))


class ReopenedLogFile(LogFile):
    """
    A log file that notices when another program has renamed it.

    :param name: its name.
    :param directory: where it is.
    """

    log = Logger()

    def __init__(self, name: str, directory: str) -> None:
        super().__init__(name, directory)
        self._opened = self._found()

    def rotate(self) -> None:
        """Rename the file, unless that was done already, and begin a new one."""
        if self._found() != self._opened:
            self.reopen()
            return
        super().rotate()
        self._opened = self._found()

    def reopen(self) -> None:
        """Open the file's name again. If that fails, keep the file that is open."""
        try:
            # Try first: LogFile closes the old file before it opens the new one.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            os.close(os.open(self.path, flags, 0o666 if self.defaultMode is None else self.defaultMode))
        except OSError as error:
            # The line below goes to this file, which would try to rotate it again before it takes the line.
            self.size = 0
            self.log.error(
                "{path}: cannot be opened ({reason}); still writing to the file that is open",
                path=self.path,
                reason=error.strerror,
            )
            return
        super().reopen()
        self._opened = self._found()

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _file(reactor: Any, options: Mapping[str, Any], *, stdout_taken: bool) -> IO[Any]:
    """Open the file or stream that twistd would log to."""
    name = _file_name(options)
    if not name or name == "-":
        return sys.stderr if stdout_taken and not name else sys.stdout
    try:
        file: Any = ReopenedLogFile.fromFullPath(name)
    except OSError as error:
        remedy = "create its directory and let this user write there, or give another file"
        raise ConfigError(f"{name} cannot be written ({error.strerror}): {remedy}", "--logfile") from None
    on_hangup(lambda: reactor.callFromThread(file.reopen))
    if signal.getsignal(signal.SIGUSR1) in (None, signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return file  # type: ignore[no-any-return]


def _file_name(options: Mapping[str, Any]) -> str | None:
    name: str | None = options.get("logfile")
    return name or (None if options.get("nodaemon") else "twistd.log")


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
