"""
Sinks made of other sinks, which they start and stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import translate
from hashlib import blake2b
from re import compile as compile_pattern

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, Event
from mqhooks.interfaces import IBoundedSink, IEventSink, IHolding, IShownSink
from mqhooks.nanomq.topics import compile_filter


@implementer(IShownSink, IBoundedSink, IHolding)
class FanOut(MultiService):
    """
    Passes each batch to several sinks. A batch is accepted once all have accepted it. The sinks stop concurrently.

    A sink that breaks its contract and fails does not affect the others: the failure is counted in :attr:`failures`, and the
    1st, 10th, 100th … is logged.

    :param sinks: started in this order.
    """

    log = Logger()

    def __init__(self, sinks: Iterable[IEventSink]) -> None:
        super().__init__()
        self._sinks = tuple(sinks)
        for sink in self._sinks:
            sink.setServiceParent(self)
        self.failures = 0
        # Batches that are not accepted by sinks that never hold any.
        self._lagging = 0

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Pass the batch on; see :meth:`mqhooks.interfaces.IEventSink.receive`."""
        return self._pass_to_all(events, room=True)

    @property
    def full(self) -> bool:
        """Whether one of the sinks has no room."""
        return any(_full(sink) for sink in self._sinks)

    @property
    def lags(self) -> bool:
        """Whether a sink that never holds any, at any depth, has not accepted all events."""
        return bool(self._lagging) or any(map(_lags, self._sinks))

    @property
    def holds(self) -> bool:
        """Whether a sink holds events that it cannot accept yet, and the sinks that never hold any have accepted all."""
        return not self.lags and any(map(_holds, self._sinks))

    def store(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Pass the batch on; see :meth:`mqhooks.interfaces.IBoundedSink.store`."""
        return self._pass_to_all(events, room=False)

    def _pass_to_all(self, events: Sequence[Event], *, room: bool) -> Deferred[None] | None:
        waiting: list[Deferred[None]] = []
        for sink in self._sinks:
            accepted = self.pass_on(sink, events, room=room)
            if accepted is not None:
                waiting.append(accepted)
        if not waiting:
            return None
        return waiting[0] if len(waiting) == 1 else gatherResults(waiting).addCallback(_nothing)

    def shown(self) -> dict[str, str | float | bool | None]:
        """Return details for the status page; see :meth:`mqhooks.interfaces.IShownSink.shown`."""
        return {"failures": self.failures}

    def pass_on(self, sink: IEventSink, events: Sequence[Event], *, room: bool = True) -> Deferred[None] | None:
        """Pass a batch on to one sink, and if asked, wait for room too. An error is counted, not raised."""
        try:
            accepted = sink.receive(events) if room or not IBoundedSink.providedBy(sink) else sink.store(events)
            if accepted is None:
                return None
            accepted.addErrback(self._failed, sink, len(events))
            if not IHolding.providedBy(sink):
                self._lagging += 1
                accepted.addCallback(self._caught_up)
            return accepted
        except Exception:
            self._failed(Failure(), sink, len(events))
            return None

    def _caught_up(self, _: None) -> None:
        self._lagging -= 1

    def _failed(self, failure: Failure, sink: IEventSink, count: int) -> None:
        self.failures += 1
        if str(self.failures).strip("0") == "1":
            self.log.failure(
                "{sink} failed on a batch of {count} events ({failures} failures so far)",
                failure,
                sink=sink,
                count=count,
                failures=self.failures,
            )


def _nothing(_: object) -> None:
    return None


def _full(sink: IEventSink) -> bool:
    return IBoundedSink.providedBy(sink) and bool(sink.full)


def _holds(sink: IEventSink) -> bool:
    return IHolding.providedBy(sink) and bool(sink.holds)


def _lags(sink: IEventSink) -> bool:
    return isinstance(sink, (FanOut, _Selection)) and sink.lags


@implementer(IShownSink, IBoundedSink)
class _Selection(MultiService):
    """
    Passes on the events that pass a test, and counts the others in :attr:`filtered`. It provides
    :class:`~mqhooks.interfaces.IHolding` if the other sink does.
    """

    def __init__(self, sink: IEventSink, passes: Callable[[Event], bool]) -> None:
        super().__init__()
        sink.setServiceParent(self)
        self._sink = sink
        self._passes = passes
        self.filtered = 0
        if IHolding.providedBy(sink):
            alsoProvides(self, IHolding)

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Pass on the events that pass the test; see :meth:`mqhooks.interfaces.IEventSink.receive`."""
        passed = self._select(events)
        return self._sink.receive(passed) if passed else None

    @property
    def full(self) -> bool:
        """Whether the other sink has no room."""
        return _full(self._sink)

    @property
    def holds(self) -> bool:
        """Whether the other sink holds events that it cannot accept yet."""
        return _holds(self._sink)

    @property
    def lags(self) -> bool:
        """Whether the other sink is made of sinks, one of which never holds events and has not accepted all."""
        return _lags(self._sink)

    def store(self, events: Sequence[Event]) -> Deferred[None] | None:
        """Pass on the events that pass the test; see :meth:`mqhooks.interfaces.IBoundedSink.store`."""
        passed = self._select(events)
        if not passed:
            return None
        return self._sink.store(passed) if IBoundedSink.providedBy(self._sink) else self._sink.receive(passed)

    def _select(self, events: Sequence[Event]) -> list[Event]:
        passes = self._passes
        passed = [event for event in events if passes(event)]
        self.filtered += len(events) - len(passed)
        return passed

    def shown(self) -> dict[str, str | float | bool | None]:
        """Return details for the status page; see :meth:`mqhooks.interfaces.IShownSink.shown`."""
        return {"filtered": self.filtered}


class FilterSink(_Selection):
    """
    Passes on the events that match every criterion given. A criterion is one string, or several, one of which has to match.

    :param sink: gets the events that match.
    :param hooks: hooks by VerneMQ's names, for example ``on_publish``.
    :param topics: MQTT topic filters. A subscription matches when one of its topics does; an event without topics never does.
    :param clients: client ids, globs: ``*`` matches any characters, ``?`` one and ``[abc]`` one of these.
    :param mountpoints: mountpoints; the default one is ``""``.
    :raises mqhooks.errors.ConfigError: when a hook does not exist, or a topic filter is malformed.
    """

    def __init__(
        self,
        sink: IEventSink,
        *,
        hooks: str | Iterable[str] | None = None,
        topics: str | Iterable[str] | None = None,
        clients: str | Iterable[str] | None = None,
        mountpoints: str | Iterable[str] | None = None,
    ) -> None:
        criteria: list[Callable[[Event], bool]] = []
        if hooks is not None:
            criteria.append(_hook_criterion(_several(hooks)))
        if mountpoints is not None:
            criteria.append(_mountpoint_criterion(_several(mountpoints)))
        if clients is not None:
            criteria.append(_client_criterion(_several(clients)))
        if topics is not None:
            criteria.append(_topic_criterion(_several(topics)))
        super().__init__(sink, criteria[0] if len(criteria) == 1 else lambda event: all(fits(event) for fits in criteria))


def _several(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _hook_criterion(hooks: Iterable[str]) -> Callable[[Event], bool]:
    wanted = frozenset(hooks)
    for hook in sorted(wanted - HOOKS.keys()):
        near = get_close_matches(hook, HOOKS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(HOOKS)}"
        raise ConfigError(f"VerneMQ has no hook {hook!r}; {hint}", key="hooks")
    return lambda event: event.hook in wanted


def _mountpoint_criterion(mountpoints: Iterable[str]) -> Callable[[Event], bool]:
    wanted = frozenset(mountpoints)
    return lambda event: event.mountpoint in wanted


def _client_criterion(globs: Iterable[str]) -> Callable[[Event], bool]:
    wanted = [compile_pattern(translate(glob)).match for glob in globs]
    return lambda event: any(match(event.client_id) for match in wanted)


def _topic_criterion(filters: Iterable[str]) -> Callable[[Event], bool]:
    try:
        matches = compile_filter(*filters)
    except ConfigError as error:
        raise ConfigError(error.message, key="topics") from None
    return lambda event: any(map(matches, event.topics))


class SampleSink(_Selection):
    """
    Passes on all events of some of the clients.

    Only a client's mountpoint and id decide, so the choice is the same in every process and after a restart, and a larger share
    only adds clients.

    :param sink: gets the events of those clients.
    :param share: the share of the clients, more than 0 and at most 1.
    :raises mqhooks.errors.ConfigError: when the share is out of range.
    """

    def __init__(self, sink: IEventSink, share: float) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"{share:g} is not a share of the clients; give one above 0 and up to 1", key="share")
        limit = int(share * 2**64)
        super().__init__(sink, lambda event: _position(event) < limit)


def _position(event: Event) -> int:
    """Hash a client to a number, evenly spread over 0 to 2 ** 64 - 1."""
    client = f"{event.mountpoint}\0{event.client_id}".encode()
    return int.from_bytes(blake2b(client, digest_size=8, person=b"mqhooks.sample").digest())
