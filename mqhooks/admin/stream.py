"""
The live stream of the status page: server-sent events.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.http import Request
from zope.interface import implementer

from mqhooks.admin.replies import AdminCall, Refused
from mqhooks.admin.status import Status
from mqhooks.events import Event

INTERVAL = 0.25
"""Seconds between two samples of the newest events; the status goes out with every fourth."""

EVENTS = 5
"""Events in a sample: 20 a second."""

WATCHERS = 32
"""Most watchers at a time."""

STALLED = 240
"""Missed samples after which a watcher that does not read is cut off: a minute."""

PAYLOAD = 4096
"""Bytes of a payload shown."""

TEXT = 256
"""Characters of a client id, a username or a topic shown."""

TOPICS = 8
"""Topics of a subscription shown."""

_encode = msgspec.json.Encoder().encode


class Stream:
    """
    Sends watchers the status every second and a sample of the events as they pass. Without watchers it costs nothing.

    :param status: the state of the bridge.
    :param clock: for timers.
    """

    def __init__(self, status: Status, clock: IReactorTime) -> None:
        self._status = status
        self._clock = clock
        self._watchers: dict[_Watcher, None] = {}
        self._events: list[Event] = []
        self._samples = 0
        self._timer: IDelayedCall | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._watchers)

    def join(self, call: AdminCall) -> None:
        """
        Take over a request: its response goes on until the client leaves.

        :raises Refused: when there are too many watchers, or the method is HEAD.
        """
        if call.request.method == b"HEAD":
            raise Refused(405, "this path takes only GET", {"Allow": "GET"})
        if self._closed or len(self._watchers) >= WATCHERS:
            raise Refused(503, f"{len(self._watchers)} pages are already watching: close one", {"Retry-After": "5"})
        request = call.request
        watcher = _Watcher(request, payload=call.query("payload") == "1")
        request.setHeader("Content-Type", "text/event-stream; charset=utf-8")
        request.setHeader("X-Accel-Buffering", "no")
        request.registerProducer(watcher, True)  # noqa: FBT003 - as Twisted has it
        request.notifyFinish().addBoth(lambda _: self._leave(watcher))
        self._watchers[watcher] = None
        request.write(b"retry: 2000\n\n" + _message(b"status", self._status.snapshot()))
        if self._timer is None:
            self._watch(self._passed)
            self._timer = self._clock.callLater(INTERVAL, self._sample)

    def close(self) -> None:
        """End all streams, and begin no more."""
        self._closed = True
        self.dismiss()

    def dismiss(self) -> None:
        """End all streams; clients that may still watch reconnect."""
        for watcher in list(self._watchers):
            watcher.end()

    def _leave(self, watcher: _Watcher) -> None:
        self._watchers.pop(watcher, None)
        if not self._watchers and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._watch(None)
            self._events.clear()

    def _watch(self, watcher: Callable[[Sequence[Event]], object] | None) -> None:
        for source in self._status.bridge.sources:
            source.watch(watcher)

    def _passed(self, events: Sequence[Event]) -> None:
        room = EVENTS - len(self._events)
        if room > 0:
            self._events.extend(events[-room:])

    def _sample(self) -> None:
        self._timer = self._clock.callLater(INTERVAL, self._sample)
        self._samples += 1
        message = _message(b"status", self._status.snapshot()) if self._samples % 4 == 0 else b""
        events, self._events = self._events, []
        shown: dict[bool, bytes] = {}
        for watcher in list(self._watchers):
            if events and watcher.payload not in shown:
                shown[watcher.payload] = _message(b"events", [describe(event, payload=watcher.payload) for event in events])
            watcher.send(message + shown.get(watcher.payload, b""))


@implementer(IPushProducer)
class _Watcher:
    """A client of the stream. It misses messages while its connection is full."""

    def __init__(self, request: Request, *, payload: bool) -> None:
        self.payload = payload
        self._request = request
        self._full = False
        self._missed = 0

    def send(self, message: bytes) -> None:
        if self._full:
            self._missed += 1
            if self._missed > STALLED:
                channel: Any = self._request.channel
                channel.forceAbortClient()
        elif message:
            self._missed = 0
            self._request.write(message)

    def end(self) -> None:
        self._request.unregisterProducer()
        self._request.finish()

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False

    def stopProducing(self) -> None:
        self._full = True


def describe(event: Event, *, payload: bool) -> dict[str, Any]:
    """
    Turn an event into plain JSON values, with its texts cut short.

    :param payload: whether to include the payload, up to :data:`PAYLOAD` bytes: as text, or in base64 when it is not text.
    """
    content: bytes | None = getattr(event.message, "payload", None)
    described: dict[str, Any] = {
        "at": event.timestamp / 1e9,
        "hook": event.hook,
        "mountpoint": event.mountpoint[:TEXT],
        "client_id": event.client_id[:TEXT],
        "username": event.username[:TEXT],
        "topics": [topic[:TEXT] for topic in event.topics[:TOPICS]],
        "size": None if content is None else len(content),
    }
    if payload and content is not None:
        described["payload"] = _payload(content)
    return described


def _payload(content: bytes) -> dict[str, Any]:
    kept, truncated = content[:PAYLOAD], len(content) > PAYLOAD
    try:
        return {"text": kept.decode(), "truncated": truncated}
    except UnicodeDecodeError as error:
        # Cutting the last character in two does not make text binary.
        if truncated and error.start >= PAYLOAD - 3 and error.reason == "unexpected end of data":
            return {"text": kept[: error.start].decode(), "truncated": True}
    return {"base64": b64encode(kept).decode(), "truncated": truncated}


def _message(name: bytes, value: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, _encode(value))
