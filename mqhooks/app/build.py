"""
Builds the bridge: the service tree that ``twistd mqhooks`` runs, from settings and a reactor.

- A ``.tac`` file that calls :func:`build` gets the same tree: durable outbox, status page, summary and SIGHUP included.
- The children start in the order in which they need each other, with the listener last, and stop in the reverse order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import IService
from twisted.internet.defer import Deferred

import mqhooks
from mqhooks.admin.bridge import Bridge
from mqhooks.admin.server import AdminService
from mqhooks.admin.settings import ADMIN_LISTEN
from mqhooks.admin.sinks import shown_description
from mqhooks.app.group import WebhookGroup
from mqhooks.app.notify import Notifier
from mqhooks.app.reload import Reloader
from mqhooks.app.sendtest import make_test
from mqhooks.app.settings import SIDECAR_PORT as SIDECAR_PORT
from mqhooks.app.settings import OutboxSettings, Settings, SidecarListening, SourcesSettings
from mqhooks.app.summary import SummaryService
from mqhooks.errors import ConfigError, together
from mqhooks.interfaces import IEventSink, IEventSource, IOutbox
from mqhooks.nanomq.rules import needs_addresses, needs_usernames
from mqhooks.outbox.jetstream.store import SPILL, JetStreamStore
from mqhooks.outbox.memory import MemoryStore
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.sinks.compose import FanOut
from mqhooks.sources.sessions import SessionTable
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.sources.webhooks.factory import WebhooksFactory
from mqhooks.sources.webhooks.listener import WebhooksService
from mqhooks.support.listening import same_place
from mqhooks.support.redact import hide_url
from mqhooks.support.services import OrderedService

if TYPE_CHECKING:
    from mqhooks.app.supervisor import Supervisor
    from mqhooks.sources.grpc.listener import GrpcService

T = TypeVar("T")


class BridgeService(OrderedService):
    """
    The whole bridge as one service; :func:`build` makes it.

    :ivar bridge: its parts, for the status page.
    :ivar reloader: reloads the configuration.
    :ivar admin: the status page; ``None`` when there is none.
    :ivar supervisor: reports to systemd; ``None`` when nothing listens for that.
    """

    def __init__(
        self,
        children: Sequence[IService],
        bridge: Bridge,
        reloader: Reloader,
        admin: AdminService | None,
        supervisor: Supervisor | None,
    ) -> None:
        super().__init__(children)
        self.supervisor = supervisor
        self.bridge = bridge
        self.reloader = reloader
        self.admin = admin

    def privilegedStartService(self) -> None:
        """Log the version, and each webhook with its URL; then start the privileged part of all children."""
        settings = self.bridge.settings
        webhooks = [(webhook.name, hide_url(webhook.url)) for webhook in settings.webhooks]
        self.log.info(
            "mqhooks {version}: {_webhooks}",
            version=mqhooks.__version__,
            webhooks=[{"webhook": name, "url": url} for name, url in webhooks],
            _webhooks=", ".join(f"webhook {name} to {url}" for name, url in webhooks) or "no webhooks",
        )
        super().privilegedStartService()

    def startService(self) -> None:
        """Start all children, and tell the supervisor."""
        super().startService()
        if self.supervisor is not None:
            self.supervisor.started()

    def stopService(self) -> Deferred[Any]:
        """Tell the supervisor, and stop all children."""
        if self.supervisor is not None:
            self.supervisor.stopping()
        return super().stopService()


def build(
    settings: Settings,
    reactor: Any,
    *,
    sidecars: Sequence[str] | None = None,
    sinks: Sequence[IEventSink] = (),
    descriptions: Sequence[str] = (),
    sources: Sequence[Callable[[IEventSink], IEventSource]] = (),
    outbox: Callable[[str], IOutbox] | None = None,
    load: Callable[[], Settings] | None = None,
) -> BridgeService:
    """
    Build the bridge. Nothing is opened, connected or listened on before the service starts.

    :param settings: the webhooks, the outbox, the status page.
    :param reactor: for all parts; :func:`mqhooks.app.reactor.install` returns one whose timers ignore changes of the clock.
    :param sidecars: where to listen for VerneMQ's stream: Twisted endpoint strings, on the loopback interface unless they name
        another. ``None`` to follow the settings: by default ``tcp:8890``, unless events come by webhooks.
    :param sinks: sinks that get every event, besides the webhooks.
    :param descriptions: the ``--sink`` descriptions of the first of them; the others go by their service's name or their class.
    :param sources: makers of further sources, each called with the sink that gets its events.
    :param outbox: returns the outbox for a webhook's name, in place of the one in the settings.
    :param load: reads the settings again at SIGHUP; ``None`` when they cannot change.
    :raises mqhooks.errors.ConfigError: when a setting is wrong.
    """
    role = settings.outbox.role if outbox is None else "both"
    # A bridge that only delivers needs no broker.
    heard = settings.sources if role != "deliver" else SourcesSettings(SidecarListening(()))
    if role == "deliver":
        sidecars, sources = None, ()
    store = _store(settings, reactor) if outbox is None else None
    outboxes = outbox or (_refuse if store is None else store.outbox)
    errors: list[ConfigError] = []
    delivers = role != "accept"
    make_group = partial(WebhookGroup, reactor, outbox=outboxes, drain_time=settings.shutdown_timeout, delivers=delivers)
    try:
        webhooks = make_group(settings.webhooks)
    except ConfigError as error:
        errors += error.mistakes
        webhooks = make_group(())
    # A reload may add a webhook even if there is none now.
    receivers = [webhooks, *sinks] if settings.webhooks or load is not None else list(sinks)
    if not receivers:
        raise ConfigError("there is neither a webhook nor a sink: events would go nowhere")
    sink = receivers[0] if len(receivers) == 1 else FanOut(receivers)
    sessions = SessionTable()
    sidecar = SidecarFactory(reactor, sink, sessions=sessions)
    requests = WebhooksFactory(reactor, sink, settings.sources.webhooks, sessions=sessions)
    streams = heard.sidecars if sidecars is None else sidecars
    sidecar_key = "mqhooks.sources.sidecar.listen" if sidecars is None else ""
    made: list[IEventSource | None] = []
    if streams:
        made.append(_keyed(sidecar_key, lambda: SidecarService(reactor, streams, sidecar), errors))
    calls = _grpc(heard, reactor, sink, sessions, errors)
    made.append(calls)
    if heard.webhooks.listen:
        make = partial(WebhooksService, reactor, heard.webhooks, requests)
        made.append(_keyed("mqhooks.sources.webhooks.listen", make, errors))
    listening = [source for source in made if source is not None]
    listening += [maker(sink) for maker in sources]
    if not listening and not errors and role != "deliver":
        raise ConfigError("there is no source: give one an address, like sidecar { listen = tcp:8890 }", key="mqhooks.sources")

    def limit(new: Settings) -> None:
        bounds = new.sidecar
        needed = _needs_usernames(new, others=bool(sinks))
        addresses = any(needs_addresses(webhook.bodies) for webhook in new.webhooks)
        sessions.limit(bounds.max_sessions, bounds.max_sessions_size, needed=needed, addresses=addresses)
        sidecar.limit(max_frame=bounds.max_frame, gather=new.gather)
        requests.change(new.sources.webhooks)
        if calls is not None:
            calls.limit(max_frame=bounds.max_frame)
        notifier.change(new.notify)
        if engine is not None:
            engine.configure({webhook.name: webhook.digest for webhook in new.webhooks})

    file = store if isinstance(store, SqliteStore) else None
    engine = store if isinstance(store, JetStreamStore) else None
    bridge = Bridge(settings, listening, webhooks.sinks, file, _named(sinks, descriptions), engine, make_test)
    notifier = Notifier(reactor, bridge, settings.notify)
    limit(settings)
    admin = _admin(settings, reactor, bridge, errors)
    page = settings.admin.listen or ADMIN_LISTEN
    _check_apart(
        [("mqhooks.admin.listen", page if admin is not None else "off")]
        + [(sidecar_key or "--sidecar-port or --sidecar", description) for description in streams]
        + [("mqhooks.sources.webhooks.listen", description) for description in heard.webhooks.listen]
        + [("mqhooks.sources.grpc.listen", description) for description in heard.grpc.listen],
        errors,
    )
    if errors:
        raise together(errors)
    supervisor = _supervisor(reactor, bridge)
    reloader = Reloader(reactor, load, bridge, webhooks, partial(_resize, store), admin, limit, supervisor)
    summary = SummaryService(reactor, [source.counters for source in listening], lambda: bridge.webhooks)
    # An unhandled SIGHUP ends the process, so the reloader starts first and stops last. The supervisor is next to last, so that
    # the watchdog is fed until the end.
    parts = (reloader, supervisor, file, engine, summary, sink, notifier, admin, *listening)
    return BridgeService([part for part in parts if part is not None], bridge, reloader, admin, supervisor)


def _supervisor(reactor: Any, bridge: Bridge) -> Supervisor | None:
    if not os.environ.get("NOTIFY_SOCKET"):
        return None
    from mqhooks.app.supervisor import Supervisor

    return Supervisor(reactor, bridge, os.environ)


def _grpc(
    sources: SourcesSettings, reactor: Any, sink: IEventSink, sessions: SessionTable, errors: list[ConfigError]
) -> GrpcService | None:
    if not sources.grpc.listen:
        return None
    try:
        # h2 is an extra: only a bridge that takes calls needs it.
        from mqhooks.sources.grpc.factory import GrpcFactory
        from mqhooks.sources.grpc.listener import GrpcService
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        problem = f"gRPC needs {library}, which is not installed: run pip install {library}"
        errors.append(ConfigError(problem, key="mqhooks.sources.grpc.listen"))
        return None
    make = partial(GrpcService, reactor, sources.grpc, GrpcFactory(reactor, sink, sessions=sessions))
    return _keyed("mqhooks.sources.grpc.listen", make, errors)


def _keyed(key: str, make: Callable[[], T], errors: list[ConfigError]) -> T | None:
    """Make something, or note the mistake under its key."""
    try:
        return make()
    except ConfigError as error:
        errors.append(ConfigError(str(error), key=key))
        return None


def _check_apart(places: Sequence[tuple[str, str]], errors: list[ConfigError]) -> None:
    """Check that no two of these addresses, each with its key, need the same port or socket."""
    for (first, taken), (second, wanted) in combinations(places, 2):
        if same_place(taken, wanted):
            problem = f"{wanted}: {first} already uses this port: give each its own"
            errors.append(ConfigError(problem, key=second))


def _needs_usernames(settings: Settings, *, others: bool) -> bool:
    # Sinks other than webhooks may need anything.
    return others or any(needs_usernames(webhook.bodies) for webhook in settings.webhooks)


def _named(sinks: Sequence[IEventSink], descriptions: Sequence[str]) -> dict[str, IEventSink]:
    named: dict[str, IEventSink] = {}
    for index, sink in enumerate(sinks):
        described = index < len(descriptions)
        name = shown_description(descriptions[index]) if described else sink.name or type(sink).__qualname__
        named[name if name not in named else f"{name} ({index + 1})"] = sink
    return named


def _store(settings: Settings, reactor: Any) -> SqliteStore | MemoryStore | JetStreamStore | None:
    outbox = settings.outbox
    if outbox.kind == "memory":
        return MemoryStore(outbox.max_size, outbox.dead_max)
    if not settings.webhooks:
        return None
    if outbox.kind == "jetstream":
        if outbox.jetstream is None:
            raise ConfigError("names no server", key="mqhooks.outbox.servers")
        spill = None if outbox.jetstream.spill == "none" else f"{outbox.path}{SPILL}"
        return JetStreamStore(reactor, outbox.jetstream, max_size=outbox.max_size, dead_max=outbox.dead_max, spill=spill)
    return SqliteStore(
        reactor,
        outbox.path,
        sync=outbox.sync,
        max_size=outbox.max_size,
        on_full=outbox.on_full,
        dead_max=outbox.dead_max,
    )


def _refuse(name: str) -> IOutbox:
    raise ConfigError(f"there was no webhook at the start, so webhook {name} has no outbox: restart mqhooks")


def _resize(store: SqliteStore | MemoryStore | JetStreamStore | None, outbox: OutboxSettings) -> None:
    if isinstance(store, SqliteStore):
        store.resize(outbox.max_size, outbox.on_full, outbox.dead_max)
    elif store is not None:
        store.resize(outbox.max_size, outbox.dead_max)


def _admin(settings: Settings, reactor: Any, bridge: Bridge, errors: list[ConfigError]) -> AdminService | None:
    if settings.admin.listen == "off":
        return None
    return _keyed("mqhooks.admin.listen", lambda: AdminService(reactor, bridge, settings.admin), errors)
