"""
Helpers for testing sinks: made-up events, a sink that records, and a check of the contract of
:class:`~mqhooks.interfaces.IEventSink`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mqhooks.events import FAILURES, HOOKS, REASONS, Event, UserProperties
from mqhooks.interfaces import IEventSink

TIMESTAMP = 1_767_225_600_123_000_000
"""The default time of an event, in nanoseconds: 2026-01-01 00:00:00.123 UTC."""

_DEFAULTS: dict[str, Any] = {
    "client_id": "client-1",
    "username": "user-1",
    "peer_addr": "127.0.0.1",
    "peer_port": 51883,
    "topic": "a/b",
    "qos": 1,
    "payload": b"hello",
    "matched_acl": {"name": "default", "pattern": "#"},
}
_REASONS: dict[str, Any] = {
    "on_client_gone": "normal_disconnect",
    "on_client_offline": "tcp_closed",
    "on_register_failed": "invalid_credentials",
    "on_message_drop": "queue_full",
}
_TOPICS: dict[str, Any] = {
    "on_subscribe": [{"topic": "a/b", "qos": 1, "matched_acl": {"name": "default", "pattern": "#"}}],
    "on_unsubscribe": ["a/b"],
}


def make_event(hook: str, /, *, timestamp: int = TIMESTAMP, **fields: Any) -> Event:
    """
    Make an event like those that VerneMQ sends.

    :param hook: the hook's name, a key of :data:`mqhooks.events.HOOKS`.
    :param timestamp: nanoseconds since 1970.
    :param fields: fields of the hook's message by their names in the proto file, for example ``client_id``, ``topic`` or
        ``payload``; the others have defaults. A nested message may be a dictionary. A reason is a number or VerneMQ's name for
        it, with or without ``REASON_``. ``username`` may be given for every hook: if the message has no such field, it is the
        one remembered from the client's registration.
    :raises ValueError: when there is no such hook, its message has no such field, or a field has the wrong type.
    """
    message_type = HOOKS.get(hook)
    if message_type is None:
        raise ValueError(f"VerneMQ has no hook {hook!r}")
    names = message_type.__struct_fields__
    defaults = _DEFAULTS | {"reason": _REASONS.get(hook), "topics": _TOPICS.get(hook)}
    values = {name: value for name, value in defaults.items() if name in names} | fields
    username = values["username"] if "username" in names else values.pop("username", "")
    if not isinstance(username, str):
        raise ValueError(f"{hook}: username is {username!r}; give a string")
    for name in values:
        if name not in names:
            raise ValueError(f"{hook} has no field {name!r}")
    if "reason" in names and hook != "on_message_drop":
        values["reason"] = _number(hook, values["reason"])
    try:
        message: Any = msgspec.convert(values | {"timestamp": timestamp}, message_type)
    except msgspec.ValidationError as error:
        # Older versions of msgspec don't derive it from ValueError.
        raise ValueError(f"{hook}: {error}") from error
    if "user_properties" in values:
        message = msgspec.structs.replace(message, user_properties=UserProperties(message.user_properties))
    return Event(hook, message, timestamp, message.mountpoint, message.client_id, username)


def _number(hook: str, reason: Any) -> Any:
    """Return the number of a reason that is given by its name."""
    if not isinstance(reason, str):
        return reason
    names: tuple[str, ...] = FAILURES if hook == "on_register_failed" else REASONS
    begin = "registration_" if hook == "on_register_failed" else ""
    for number, name in enumerate(names):
        if reason.lower() in (name, f"reason_{name}", f"{begin}{name}", f"{begin}reason_{name}"):
            return number
    raise ValueError(f"{hook} has no reason {reason!r}; give its number, or one of {', '.join(names)}")


@implementer(IEventSink)
class RecordingSink(Service):
    """
    A sink that records what it receives.

    :ivar batches: every batch received, in order.
    :ivar error: raised by ``receive`` instead of accepting, which no real sink may do; ``None`` to accept.
    :ivar waiting: the Deferreds that ``receive`` returned while acceptance was on hold. Fire or fail them in any order.
    """

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.error: Exception | None = None
        self.waiting: list[Deferred[None]] = []
        self._on_hold = False

    @property
    def events(self) -> list[Event]:
        """The events of all batches, in order."""
        return [event for batch in self.batches for event in batch]

    def hold(self) -> None:
        """Put acceptance on hold: ``receive`` returns a ``Deferred`` and adds it to :attr:`waiting`."""
        self._on_hold = True

    def release(self) -> None:
        """Accept the batches on hold, oldest first, and from now on each batch at once."""
        self._on_hold = False
        waiting, self.waiting = self.waiting, []
        for accepted in waiting:
            if not accepted.called:
                accepted.callback(None)

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Record a batch."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        self.batches.append(list(events))
        if not self._on_hold:
            return None
        accepted: Deferred[None] = Deferred()
        self.waiting.append(accepted)
        return accepted


def verify_sink(sink: object, events: Sequence[Event] | None = None) -> Deferred[None]:
    """
    Verify that a sink keeps the contract of :class:`~mqhooks.interfaces.IEventSink`: it provides the interface, receives an
    empty batch and full ones without waiting for acceptance in between, returns ``None`` or a ``Deferred``, and does not change
    the batch.

    :param sink: the sink, started if it needs that.
    :param events: the batch; one event of each hook by default.
    :returns: a ``Deferred`` that fires with ``None`` when everything was accepted, and fails when an acceptance failed or had
        another result than ``None``.
    :raises AssertionError: when the sink breaks the contract at once.
    :raises zope.interface.exceptions.Invalid: when it does not provide the interface.
    """
    verifyObject(IEventSink, sink)
    full = [make_event(hook) for hook in HOOKS] if events is None else list(events)
    waiting = [_receive(sink, batch) for batch in ([], full, full)]
    return Deferred.fromCoroutine(_all_accepted([accepted for accepted in waiting if accepted is not None]))


def _receive(sink: Any, events: Sequence[Event]) -> Deferred[None] | None:
    batch = list(events)
    try:
        accepted = sink.receive(batch)
    except Exception as error:
        raise AssertionError(f"{sink!r} raised {error!r} for a batch of {len(events)} events; a sink never raises") from error
    if batch != events:
        raise AssertionError(f"{sink!r} changed its batch of {len(events)} events")
    if accepted is not None and not isinstance(accepted, Deferred):
        raise AssertionError(f"{sink!r} returned {accepted!r}; a sink returns None or a Deferred")
    return accepted


async def _all_accepted(waiting: Sequence[Deferred[Any]]) -> None:
    for accepted in waiting:
        result = await accepted
        if result is not None:
            raise AssertionError(f"acceptance fired with {result!r}; it has to fire with None")
