"""
Handing events over to the sink: what all sources do with what they have decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.events import Event
from mqhooks.interfaces import IBoundedSink, IEventSink, IHolding
from mqhooks.sources.counters import SourceCounters

Watcher = Callable[[Sequence[Event]], object]


class Handover:
    """
    Counts events, shows them to whoever watches, and gives them to the sink.

    A sink that breaks its contract and fails is logged; the source goes on, and tells its caller if it has one.

    :param sink: gets the events. It is not started or stopped here.
    :param counters: the source's.
    :ivar watcher: called with each batch before the sink gets it; ``None`` for nobody.
    """

    log = Logger()

    def __init__(self, sink: IEventSink, counters: SourceCounters) -> None:
        self.watcher: Watcher | None = None
        self._sink = sink
        self._bounded: IBoundedSink | None = sink if IBoundedSink.providedBy(sink) else None
        self._holding: IHolding | None = sink if IHolding.providedBy(sink) else None
        self._counters = counters

    @property
    def full(self) -> bool:
        """Whether the sink has no room: sources that can refuse events do so."""
        return self._bounded is not None and self._bounded.full

    @property
    def holds(self) -> bool:
        """Whether the sink holds what it cannot accept yet: sources that cannot refuse events go on reading."""
        return self._holding is not None and self._holding.holds

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """
        Have the sink accept a batch.

        :returns: fires when it is accepted and there is room for more; ``None`` when that is so already.
        """
        return self._pass_on(events, self._sink.receive)

    def store(self, events: Sequence[Event]) -> Deferred[None] | None:
        """
        Have the sink commit a batch, whether there is room for more or not.

        :returns: fires when it is committed, or fails when the sink does; ``None`` when it is committed already.
        """
        return self._pass_on(events, self._sink.receive if self._bounded is None else self._bounded.store, telling=True)

    def _pass_on(
        self, events: Sequence[Event], receive: Callable[[Sequence[Event]], Deferred[None] | None], *, telling: bool = False
    ) -> Deferred[None] | None:
        hooks = self._counters.hooks
        for event in events:
            hooks[event.hook] += 1
        if self.watcher is not None:
            self.watcher(events)
        try:
            accepted = receive(events)
        except Exception:
            self.log.failure("the sink raised an error; {count} events are lost", count=len(events))
            return fail() if telling else None
        if accepted is not None:
            accepted.addErrback(self._failed, len(events), telling=telling)
        return accepted

    def _failed(self, failure: Failure, count: int, *, telling: bool) -> Failure | None:
        self.log.failure("the sink did not accept {count} events; they are lost", failure, count=count)
        return failure if telling else None
