"""
Making requests like VerneMQ's webhooks plugin: one for each event, and one at a time for each client.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from random import Random
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from zlib import crc32

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from mqhooks.delivery import Head, Request, Response
from mqhooks.errors import DeliveryError
from mqhooks.events import Event
from mqhooks.http.pooled import PooledTransport

WAITING = 1000
"""Calls that may wait for earlier ones of their clients; in VerneMQ the sessions themselves wait."""

TIMEOUT = 5.0
"""Seconds that an answer may take: VerneMQ's ``response_timeout``."""

_encode = msgspec.json.Encoder().encode

_TOPIC = ("qos", "topic", "payload", "retain")
_USER = ("username", "mountpoint", "client_id")
_PEER = ("peer_addr", "peer_port", "mountpoint", "client_id", "username")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "on_register": _PEER,
    "on_publish": _USER + _TOPIC,
    "on_subscribe": (*_USER, "topics"),
    "on_unsubscribe": (*_USER, "topics"),
    "on_deliver": _USER + _TOPIC,
    "on_offline_message": ("mountpoint", "client_id", *_TOPIC),
    "on_client_wakeup": ("mountpoint", "client_id"),
    "on_client_offline": ("mountpoint", "client_id"),
    "on_client_gone": ("mountpoint", "client_id"),
    "on_session_expired": ("mountpoint", "client_id"),
}
_FOR_BOTH = {"on_offline_message", "on_client_wakeup", "on_client_offline", "on_client_gone", "on_session_expired"}


class HookCall(NamedTuple):
    """
    One request.

    :param hook: its header ``vernemq-hook``.
    :param client: mountpoint and id of the event's client.
    :param body: a JSON object.
    """

    hook: str
    client: tuple[str, str]
    body: bytes


def call_of(event: Event) -> HookCall | None:
    """
    Make the request of an event, with the keys in VerneMQ's order.

    Half of the clients speak MQTT 5, whose hooks have their own names. A payload is in base64.

    :returns: ``None`` for a hook that the plugin does not have.
    """
    keys = _KEYS.get(event.hook)
    if keys is None:
        return None
    newer = event.hook not in _FOR_BOTH and crc32(event.client_id.encode()) % 2 == 0
    body = {key: _value(key, event.message, newer=newer) for key in keys}
    if newer or event.hook == "on_deliver":
        body["properties"] = {}
    return HookCall(f"{event.hook}_m5" if newer else event.hook, (event.mountpoint, event.client_id), _encode(body))


def _value(key: str, message: Any, *, newer: bool) -> Any:
    if key == "retain" and hasattr(message, "is_retain"):
        return message.is_retain
    value = getattr(message, key)
    if key == "payload":
        return b64encode(value).decode()
    if key == "username":
        return value or None
    if key == "topics" and value and not isinstance(value[0], str):
        options = {"no_local": False, "rap": False, "retain_handling": "send_retain"} if newer else {}
        return [{"topic": topic.topic, "qos": topic.qos, **options} for topic in value]
    return value


class CallPool:
    """
    Makes calls over a number of connections, one at a time for each client, and counts the answers.

    :param reactor: connects, and tells the time.
    :param url: the URL to call, which may hold credentials.
    :param size: most calls in flight.
    :ivar answers: answers by status; ``no answer`` for calls that got none.
    """

    log = Logger()

    def __init__(self, reactor: Any, url: str, size: int) -> None:
        self.size = size
        self.answers: Counter[str] = Counter()
        self.wake: Callable[[], None] = lambda: None
        parts = urlsplit(url)
        headers = [("Content-Type", "application/json"), ("User-Agent", "hackney/4.7.4")]
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers.append(("Authorization", f"Basic {b64encode(pair.encode()).decode()}"))
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._head = Head("POST", url, tuple(headers))
        # VerneMQ makes no call twice.
        self._transport = PooledTransport(reactor, url, size=size, timeout=TIMEOUT, resend=False)
        self._clients: dict[tuple[str, str], deque[HookCall]] = {}
        self._turn: deque[tuple[str, str]] = deque()
        self._under_way = 0
        self._waiting = 0
        self._complained = False
        self._idle: list[Deferred[None]] = []

    @property
    def outcome(self) -> str:
        """The number of answers of each status."""
        return ", ".join(f"{answer}: {count}" for answer, count in self.answers.most_common())

    @property
    def ready(self) -> bool:
        """Whether it takes another call."""
        return self._waiting < WAITING and len(self._turn) < self.size

    def open(self) -> Deferred[None]:
        """Do nothing: connections are made when they are needed."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """
        Wait for all answers, and close the connections.

        :returns: a ``Deferred`` that fires when they are closed.
        """
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        self._go_on()
        return idle.addCallback(lambda _: self._transport.close())

    def abort(self) -> None:
        """Make no more calls, and wait for no answers."""
        self._clients.clear()
        self._turn.clear()
        self._waiting = 0
        # Calls that end now are not worth a warning.
        self._complained = True
        self._transport.close()
        self._go_on()

    def put(self, call: HookCall, _: Random) -> None:
        """Make a call, after earlier ones of its client."""
        waiting = self._clients.get(call.client)
        if waiting is None:
            self._clients[call.client] = waiting = deque()
            self._turn.append(call.client)
        waiting.append(call)
        self._waiting += 1
        self._go_on()

    def _go_on(self) -> None:
        while self._turn and self._under_way < self.size:
            client = self._turn.popleft()
            self._waiting -= 1
            self._start(self._clients[client].popleft())
        if not self._under_way and not self._turn:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)
        elif self.ready:
            self.wake()

    def _start(self, call: HookCall) -> None:
        self._under_way += 1
        request = Request(self._head, [("vernemq-hook", call.hook)], call.body)
        self._transport.submit(request, partial(self._answered, call.client))

    def _answered(self, client: tuple[str, str], answer: Response | DeliveryError) -> None:
        self._under_way -= 1
        if isinstance(answer, Response):
            self.answers[str(answer.status)] += 1
            if answer.status == HTTPStatus.OK:
                self._complained = False
        else:
            self.answers["no answer"] += 1
            if not self._complained:
                self._complained = True
                self.log.warn("no answer: {reason}", reason=answer)
        waiting = self._clients.get(client)
        if waiting:
            self._turn.append(client)
        elif waiting is not None:
            del self._clients[client]
        self._go_on()
