"""
Reports the bridge's state to systemd, or whatever else listens on ``NOTIFY_SOCKET``: sd_notify(3) in Python.

- The protocol is a datagram of ``NAME=value`` lines. The libraries for it are unmaintained (sdnotify) or need a compiler and
  systemd's headers (systemd-python), so these lines are our own.
- All of it runs in the reactor, and nothing waits: a supervisor that does not listen costs one warning.
- A reactor that is stuck no longer sends ``WATCHDOG=1``, and is restarted.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mqhooks.admin.bridge import Bridge
from mqhooks.support.listening import address_name
from mqhooks.support.loops import Loop

EVERY = 1.0
"""Seconds between two looks at the state, which is reported when it has changed."""

PATIENCE = 60.0
"""
Seconds to wait for an outbox on other machines: less than the 90 of systemd's ``TimeoutStartSec``, since no restart brings
those machines back, and VerneMQ may be waiting.
"""

LONGEST = 256
"""Most characters in a status."""

LONGEST_NUMBER = 20
"""Most digits in the watchdog's limit: it has 64 bits."""


class Supervisor(Service):
    """
    Reports that the bridge is ready, reloads or stops, its status, and that the reactor runs.

    :param reactor: tells the time.
    :param bridge: the bridge to report on.
    :param environ: has ``NOTIFY_SOCKET``, a path or ``@`` and an abstract name, and may have ``WATCHDOG_USEC`` and
        ``WATCHDOG_PID``. Bad values are logged and ignored.
    """

    log = Logger()

    def __init__(self, reactor: Any, bridge: Bridge, environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._bridge = bridge
        self._place = environ["NOTIFY_SOCKET"]
        self._environ = environ
        self._socket: socket.socket | None = None
        self._heard = True
        self._ready = False
        self._stopping = False
        self._status = ""
        self._failed = False
        self._deadline = 0.0
        self._first: IDelayedCall | None = None
        self._looks = Loop(reactor, "reporting the state to the supervisor", self._look)
        self._beats = Loop(reactor, "notifying the watchdog", lambda: self._tell("WATCHDOG=1"))

    def startService(self) -> None:
        """Begin to report that the reactor runs."""
        super().startService()
        self._ready = self._stopping = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - socket's own
        limit = self._watchdog()
        if limit:
            self._beats.start(limit / 2)

    def started(self) -> None:
        """Report that the bridge is ready, once the reactor runs and an outbox on other machines is connected."""
        self._deadline = self._reactor.seconds() + PATIENCE
        self._first = self._reactor.callLater(0, partial(self._looks.start, EVERY, now=True))

    def reloading(self) -> None:
        """Report that a reload begins."""
        if self._ready and not self._stopping:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, *, well: bool) -> None:
        """
        Report that a reload has ended.

        :param well: whether the new configuration is in use.
        """
        self._failed = not well
        if self._ready and not self._stopping:
            self._tell_ready()

    def stopping(self) -> None:
        """Report that the bridge begins to stop."""
        self._stopping = True
        if self._first is not None and self._first.active():
            self._first.cancel()
        self._looks.stop()
        self._tell("STOPPING=1", "STATUS=waiting for requests in flight")

    def stopService(self) -> None:
        """Fall silent, once everything else has stopped."""
        super().stopService()
        self._beats.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _watchdog(self) -> float:
        """Return the watchdog's limit in seconds; 0 when there is no watchdog."""
        text = self._environ.get("WATCHDOG_USEC", "")
        if self._environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not text:
            return 0
        if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
            self.log.warn("WATCHDOG_USEC is {text!r}, not a number of microseconds: watchdog notifications are off", text=text)
            return 0
        return int(text) / 1e6

    def _look(self) -> None:
        if not self._ready and (self._waits_for() is None or self._reactor.seconds() >= self._deadline):
            self._tell_ready()
            return
        status = self._describe()
        if status != self._status and self._tell(f"STATUS={status}"):
            self._status = status

    def _tell_ready(self) -> None:
        # If this does not arrive, the next look sends it again.
        self._status = self._describe()
        self._ready = self._tell("READY=1", f"STATUS={self._status}")

    def _waits_for(self) -> str | None:
        # A file is open once the bridge has started, even if its disk is full.
        return None if self._bridge.engine is None else self._bridge.engine.failing

    def _describe(self) -> str:
        bridge = self._bridge
        addresses = [address_name(address) for source in bridge.sources for address in source.addresses]
        parts = [
            *([f"listening on {', '.join(addresses)}"] if addresses else []),
            *([f"{sum(webhook.outbox.counts.pending for webhook in bridge.webhooks)} pending"] if bridge.webhooks else []),
            *([f"the outbox cannot be written: {bridge.failing}"] if bridge.failing is not None else []),
            *(["the last reload failed: the log says why"] if self._failed else []),
        ]
        parts += [
            f"webhook {webhook.settings.name} {'refuses everything' if webhook.refusing else 'is down'}"
            for webhook in bridge.webhooks
            if webhook.refusing or webhook.down_since is not None
        ]
        return " ".join("; ".join(parts).split())[:LONGEST]

    def _tell(self, *lines: str) -> bool:
        """Send lines, and return whether the supervisor got them."""
        if self._socket is None:
            return False
        place = f"\0{self._place[1:]}" if self._place.startswith("@") else self._place
        try:
            self._socket.sendto("\n".join(lines).encode(errors="backslashreplace"), place)
        except (OSError, ValueError) as error:
            if self._heard:
                reason = getattr(error, "strerror", None) or error
                self.log.warn(
                    "cannot notify the supervisor on {place}, which NOTIFY_SOCKET names: {reason}; it may restart mqhooks",
                    place=self._place,
                    reason=str(reason),
                )
            self._heard = False
            return False
        self._heard = True
        return True
