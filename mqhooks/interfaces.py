"""
What the rooms know of each other.

An event goes ``sidecar`` → :class:`IEventSink` → :class:`IOutbox` → endpoint; nothing flows back but "I have it" and "wait".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from twisted.application.service import IService
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from mqhooks.outbox.delivery import Delivery
    from mqhooks.outbox.totals import Totals
    from mqhooks.sources.sidecar.events import Event


class IEventSink(IService):
    """Where events go: a service that accepts them in batches."""

    def receive(events: Sequence[Event]) -> Deferred[None] | None:
        """
        Accept events.

        A sink never raises and never fails for the events' sake: it takes what it is given, and what it cannot use it counts.
        Whoever calls may go on calling before an earlier batch was accepted; it stops reading its source while too much is
        unaccepted.

        :param events: a batch, usually what one turn of the reactor has read, in the order read. It may be empty. The sink must
            not change it.
        :returns: ``None`` when the batch was accepted at once, else a ``Deferred`` that fires with ``None`` when it was. For a
            durable sink "accepted" means committed to disk.
        """


class IOutbox(Interface):
    """
    The deliveries that one webhook has accepted and not yet settled.

    ``appended = settled + buried + pending`` holds at every moment, but for what a durable one had to give up: it counts that.
    """

    durable: bool = Attribute("Whether what is pending outlives the process.")
    pending: int = Attribute("How many deliveries were appended and are not settled.")
    totals: Totals = Attribute("What was taken over since the process began, and what became of it.")
    oldest: int | None = Attribute("About when the oldest pending one was accepted, in milliseconds since 1970.")
    used: int = Attribute("How many bytes of its room are used.")
    max_size: int = Attribute("How many bytes of room it has.")
    letters: int = Attribute("How many dead letters it keeps.")
    more: Callable[[], object] | None = Attribute("Called when there may be more to claim or to recall than before.")

    waiting_since: float | None = Attribute("When the oldest delivery was appended that cannot be claimed yet.")
    overflow: Callable[[int], object] | None = Attribute("Called with how many bytes of claimed ones to discard.")

    def append(deliveries: Sequence[Delivery]) -> Deferred[None] | None:
        """
        Take deliveries over, in this order. A long body may be kept elsewhere; the delivery's then says where.

        :returns: ``None`` when they are accepted and there is room for more; else a ``Deferred`` that fires with ``None`` when
            both hold.
        """

    def claim(limit: int) -> Sequence[Delivery]:
        """
        Hand out what was appended and not claimed before, oldest first. What was claimed stays pending until it is settled.

        :param limit: how many at most; fewer when their bodies are large.
        :returns: the deliveries; none when nothing waits.
        """

    def recall(places: Iterable[int]) -> Sequence[Delivery]:
        """
        Hand claimed deliveries out once more, for who did not keep them.

        :param places: their ``place``, of pending ones only.
        :returns: the deliveries in this order; those that are lost are missing, and pending no more.
        :raises mqhooks.errors.OutboxError: when they cannot be read now; :attr:`more` is called when they may be.
        """

    def reclaim() -> None:
        """
        Hand out anew what was claimed and is not settled, in the order in which it was appended, before what was not claimed.
        Whoever has claimed it must not settle it any more.
        """

    def abandon() -> None:
        """
        Keep what is pending for whoever calls :meth:`reclaim`. Until then nobody waits for room here.
        """

    def settle(*deliveries: Delivery) -> None:
        """
        Forget claimed deliveries: they have arrived.
        """

    def discard(*deliveries: Delivery) -> None:
        """
        Forget claimed deliveries for want of room.
        """

    def bury(delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """
        Make a dead letter of a claimed delivery: nobody will try it again.

        :param url: where it was to go.
        :param reason: why it is given up.
        :param status: the last answer's status; 0 when there was none.
        :param answer: the beginning of the last answer's body.
        :param died: now, in milliseconds since 1970.
        """


class ISinkPlugin(Interface):
    """
    A kind of sink that ``--sink`` and :func:`mqhooks.sinks.sinkFromString` know by its prefix.

    Ship an object that provides it (and ``twisted.plugin.IPlugin``) in a module under ``twisted/plugins/``.
    """

    prefix: str = Attribute("What stands before the first colon of the description, for example ``log``.")
    usage: str = Attribute("The arguments on one line, for example ``log:path=FILE``, as the help shows them.")

    def build(reactor: object, /, *args: str, **kwargs: str) -> IEventSink:
        """
        Make the sink that a description asks for. Nothing is opened or connected before the sink is started.

        :param reactor: for timers, connections and listening.
        :param args: the description's positional parts, unescaped.
        :param kwargs: its ``key=value`` parts, unescaped.
        :raises mqhooks.errors.ConfigError: when an argument is wrong; the message needs no prefix, the caller adds it.
        """
