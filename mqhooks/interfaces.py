"""
The interfaces between the rooms.

An event goes :class:`IEventSource` → :class:`IEventSink` → :class:`IOutbox` → :class:`IWebhookTransport` → endpoint; only
"accepted" and "wait" (backpressure) flow back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from mqhooks.delivery import Counts, Delivery, Request, Response
    from mqhooks.errors import DeliveryError
    from mqhooks.events import Event


class IEventSink(IService):
    """Where events go: a service that accepts them in batches."""

    def receive(events: Sequence[Event]) -> Deferred[None] | None:
        """
        Accept events.

        A sink never raises or fails because of an event: it takes every event, and counts those that it cannot use. The caller
        may pass further batches before an earlier one is accepted. It stops reading its source while too much is unaccepted,
        unless the sink holds it (:class:`IHolding`).

        :param events: a batch, usually what one turn of the reactor has read, in the order read. It may be empty. The sink must
            not change it.
        :returns: ``None`` when the batch was accepted at once, else a ``Deferred`` that fires with ``None`` once it is. For a
            durable sink "accepted" means committed to disk.
        """


class IBoundedSink(IEventSink):
    """
    A sink for sources that answer each event: it reports separately when events are committed, and whether it has room.

    ``receive`` combines the two, for sources that can only stop reading.
    """

    full: bool = Attribute("Whether it has no room, so that a source refuses events rather than let them wait.")

    def store(events: Sequence[Event]) -> Deferred[None] | None:
        """
        Accept events, whether or not there is room for more.

        :param events: as for ``receive``.
        :returns: ``None`` when they are committed already, else a ``Deferred`` that fires with ``None`` once they are.
        """


class IHolding(Interface):
    """
    A sink or an outbox that may hold events in memory for a while when they cannot be committed.

    The amount is bounded. Held events are not accepted, so a kill loses them. A sink around another provides this only if that
    one does, since nothing but its source bounds what it has not accepted.
    """

    holds: bool = Attribute(
        "Whether it does so now, and has memory for more: sources that cannot refuse events go on reading, however much is not "
        "accepted yet."
    )


class IEventSource(IService):
    """
    Where events come from: a service that listens, and hands the events that it reads to its sink.

    It starts after the sink and stops before it.
    """

    via: str = Attribute("How events come: ``sidecar``, ``webhooks`` or ``grpc``; a name for metrics and the page.")
    addresses: Sequence[Any] = Attribute("Where it listens, as Twisted's addresses; empty when it does not.")
    counters: Any = Attribute("What has come in: a :class:`mqhooks.sources.counters.SourceCounters`.")

    def watch(watcher: Callable[[Sequence[Event]], object] | None) -> None:
        """
        Show each batch to a watcher before the sink gets it.

        :param watcher: called with the batch, which it must not change; it must not raise. It replaces the previous watcher;
            ``None`` for none.
        """


class IShownSink(IEventSink):
    """A sink with details for the status page, which shows only the name and state of other sinks."""

    def shown() -> Mapping[str, str | float | bool | None]:
        """
        Return details for the status page, by name: some numbers and short texts, no secrets.

        Called each second while somebody watches. It must neither block nor raise; if it does raise, the page says so.
        """


class IOutbox(Interface):
    """
    The deliveries that one webhook has accepted and not yet settled.

    ``accepted = delivered + dead + dropped + handed + pending`` at every moment: only the outbox counts. A delivery arrives at
    least once. Methods that return a ``Deferred`` may answer later, since the storage may be a remote server.
    """

    durable: bool = Attribute("Whether what is pending outlives the process.")
    counts: Counts = Attribute("What was accepted since the process began and what became of it: a snapshot.")
    oldest: int | None = Attribute("About when the oldest pending delivery was accepted, in milliseconds since 1970.")
    waiting_since: float | None = Attribute(
        "When the oldest delivery that is not committed, and so cannot be claimed yet, was appended; in the reactor's seconds."
    )
    used: int = Attribute("How many bytes are used.")
    max_size: int = Attribute("How many bytes may be used.")
    letters: int = Attribute("How many dead letters are kept.")
    full: bool = Attribute("Whether callers of append() wait for room, or would: backpressure.")
    gate: IGate | None = Attribute("Asked before claimed deliveries are sent; ``None`` when they always may be.")

    def append(deliveries: Sequence[Delivery], *, room: bool = True) -> Deferred[None] | None:
        """
        Accept deliveries, in this order. They count as accepted once they are committed, and not earlier.

        :param room: whether the answer also waits until there is room for more.
        :returns: ``None`` when they are accepted and, if asked for, there is room; else a ``Deferred`` that fires with ``None``
            when that holds.
        """

    def claim(limit: int, size: int) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """
        Hand out deliveries that were appended and not yet claimed, oldest first, at least for each client. A claimed delivery
        stays pending until it is acknowledged or buried. One claim may wait at a time.

        :param limit: most deliveries to hand out; 1 or more.
        :param size: about the most bytes of bodies; the first delivery is handed out however long it is.
        :returns: at least one delivery, or a ``Deferred`` that fires with at least one as soon as there is one. If the
            ``Deferred`` is cancelled, it fails with ``CancelledError``, and nothing is claimed.
        """

    def shelve(places: Iterable[int]) -> None:
        """
        Note that the caller keeps only the places of these claimed deliveries, and recalls them before it sends them. Of all
        claimed deliveries, only shelved ones may be dropped to make room.

        :param places: each delivery's ``place``.
        """

    def recall(places: Iterable[int]) -> Sequence[Delivery] | Deferred[Sequence[Delivery]]:
        """
        Hand out claimed deliveries again, in this order, to a caller that kept only their places.

        :param places: each delivery's ``place``.
        :returns: the deliveries. One that is missing is no longer pending: it was dropped to make room, or is lost.
        :raises mqhooks.errors.OutboxError: when they cannot be read now; try again later. A ``Deferred`` may fail with it.
        """

    def acknowledge(deliveries: Sequence[Delivery]) -> None:
        """
        Forget claimed deliveries that have arrived. Deliveries that are no longer pending are left as they are.

        The write is repeated until it succeeds. After a crash before that, they are sent again: at least once.
        """

    def bury(delivery: Delivery, url: str, reason: str, status: int, answer: bytes, died: int) -> None:
        """
        Turn a claimed delivery into a dead letter: it is not tried again. One that is no longer pending is left as it is.

        :param url: the URL that it was for.
        :param reason: why it is given up.
        :param status: the last answer's status; 0 when there was no answer.
        :param answer: the beginning of the last answer's body.
        :param died: now, in milliseconds since 1970.
        """

    def reclaim() -> None:
        """
        Hand out again the deliveries that were claimed and are still pending, in the order in which they were appended and
        before all others. Whoever claimed them before must no longer acknowledge or bury them. A waiting claim is cancelled.
        """

    def abandon() -> None:
        """
        Note that nobody claims until :meth:`reclaim`: cancel the waiting claim, and let nobody wait for room meanwhile.
        """


class IGate(Interface):
    """Decides what may be sent when processes share an outbox: by then another process may own a delivery."""

    def enter(deliveries: list[Delivery]) -> list[Delivery]:
        """
        Ask before claimed deliveries are sent.

        :returns: those that may be sent, in this order. The others are no longer the caller's, and it forgets them. Their
            owner, which may be the same process, claims them again.
        """

    def leave(deliveries: Sequence[Delivery]) -> None:
        """Note that an attempt to send these has ended, whatever its outcome."""


class IWebhookTransport(Interface):
    """One request in, one response or typed failure out. It does not follow redirects."""

    def send(request: Request) -> Deferred[Response]:
        """
        Send a request, and wait for its response until the transport's timeout, which includes the wait for a connection.

        :returns: a ``Deferred`` that may have fired already. It fires with the response, whatever its status, or fails with a
            :class:`~mqhooks.errors.DeliveryError`: ``ConnectFailed`` when the endpoint got no byte of the request (no route,
            connection refused, a failed TLS handshake, the transport closed before sending), ``DeliveryTimeout``,
            ``ConnectionBroken`` or ``BadAnswer``.
        """

    def close() -> Deferred[None]:
        """
        Close all connections. Requests in flight fail with a :class:`~mqhooks.errors.DeliveryError`.

        :returns: a ``Deferred`` that fires when no connection is left.
        """


class ICallbackTransport(IWebhookTransport):
    """A transport that can do without a ``Deferred`` for each request, which costs a tenth of a delivery."""

    def submit(request: Request, done: Callable[[Response | DeliveryError], object]) -> None:
        """
        Send a request like :meth:`~IWebhookTransport.send`. It raises nothing.

        :param done: called once with the response, or with the error of a failed ``send``, possibly before this returns.
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
        Make the sink that a description names. It opens and connects nothing before it is started.

        :param reactor: for timers, connections and listening.
        :param args: the description's positional parts, unescaped.
        :param kwargs: its ``key=value`` parts, unescaped.
        :raises mqhooks.errors.ConfigError: when an argument is wrong; the message needs no prefix, the caller adds it.
        """
