"""
Handing decoded events over to the sink, for all sources.

A sink that raises, or whose ``Deferred`` fails, breaks its contract. That is logged and costs its batch; the source goes on.
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
    Counts events, shows them to the watcher, and gives them to the sink.

    :meth:`receive` keeps a sink's failure from its caller; :meth:`store` reports it.

    :param sink: gets the events. It is neither started nor stopped here.
    :param counters: the source's counters.
    :ivar watcher: called with each batch before the sink gets it; ``None`` for no watcher.
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
        """Whether the sink has no room. Sources that can refuse events then do."""
        return self._bounded is not None and self._bounded.full

    @property
    def holds(self) -> bool:
        """Whether the sink holds events that it cannot accept yet. Sources that cannot refuse events then go on reading."""
        return self._holding is not None and self._holding.holds

    def receive(self, events: Sequence[Event]) -> Deferred[None] | None:
        """
        Have the sink accept a batch.

        :returns: fires when the batch is accepted and there is room for more; ``None`` if both hold already.
        """
        return self._pass_on(events, self._sink.receive)

    def store(self, events: Sequence[Event], *, room: bool = False) -> Deferred[None] | None:
        """
        Have the sink commit a batch.

        :param room: whether to wait until there is room for more, too.
        :returns: fires when the batch is committed, or fails when the sink does; ``None`` if it is committed already.
        """
        receive = self._sink.receive if room or self._bounded is None else self._bounded.store
        return self._pass_on(events, receive, telling=True)

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
