"""
Describes a configuration in words, for ``--check``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mqhooks.admin.settings import ADMIN_LISTEN
from mqhooks.app.sample import sample
from mqhooks.app.settings import OutboxSettings, Settings, SidecarListening, SourcesSettings
from mqhooks.errors import told
from mqhooks.events import HOOKS, M5_HOOKS
from mqhooks.nanomq.rules import hooks_for
from mqhooks.outbox.jetstream.store import SPILL
from mqhooks.shapes.settings import Shape
from mqhooks.sources.webhooks.instructions import instructions
from mqhooks.support.listening import complete, interface_of, is_local
from mqhooks.support.redact import hide_url, hide_urls
from mqhooks.support.signatures import PRIVATE_PREFIX, public_form
from mqhooks.webhook.retry import span
from mqhooks.webhook.settings import AuthSettings, BasicSettings, OAuth2Settings, RetrySettings, WebhookSettings


def describe(settings: Settings, descriptions: Sequence[str], sinks: Sequence[str], *, samples: bool = False) -> str:
    """
    Describe where mqhooks would listen, what it would send where, and which of VerneMQ's hooks that takes.

    :param descriptions: where to listen for VerneMQ's stream.
    :param sinks: the descriptions of the other sinks.
    :param samples: whether to show a request for each rule of a webhook.
    :returns: lines for a terminal, without header values, passwords and secrets, and without those in URLs.
    """
    return "\n".join(_lines(settings, descriptions, sinks, samples=samples))


def _lines(settings: Settings, descriptions: Sequence[str], sinks: Sequence[str], *, samples: bool) -> Iterator[str]:
    for warning in settings.warnings:
        yield f"warning: {told(warning)}"
    role = settings.outbox.role
    if role == "deliver":
        sources = settings.sources
        left = [*descriptions, *sources.webhooks.listen, *sources.grpc.listen]
        yield "role    deliver: takes no events, delivers what other bridges accept"
        yield f"        left out: {', '.join(map(complete, left))}" if left else "        left out: nothing"
        settings, descriptions = replace(settings, sources=SourcesSettings(SidecarListening(()))), ()
        for sink in sinks:
            yield f"        left out: sink {hide_urls(sink)}, since this bridge takes no events"
        sinks = ()
    elif role == "accept":
        yield "role    accept: takes events, leaves deliveries to other bridges, and connects to no endpoint"
    for description in descriptions:
        yield f"listen  {complete(description)}"
    webhooks = settings.sources.webhooks
    for description in webhooks.listen:
        locked = "" if not webhooks.locked else ", with a token" if webhooks.token is not None else ", with a password"
        yield f"listen  {complete(description)}, for vmq_webhooks on {webhooks.path}{locked}"
    for description in settings.sources.grpc.listen:
        yield f"grpc    {complete(description)}"
        yield from _grpc_lines(complete(description))
    others = [name for name, on in (("sidecar", descriptions), ("grpc", settings.sources.grpc.listen)) if on]
    if webhooks.listen and others:
        ways = " and ".join(["webhooks", *others])
        plugins = "vmq_webhooks and vmq_events_sidecar"
        yield f"note    {ways} are on: a broker with both {plugins} sends each event twice; turn one off"
    if settings.admin.listen != "off":
        locked = "" if settings.admin.token is None else ", with a token"
        yield f"page    {complete(settings.admin.listen or ADMIN_LISTEN)}{locked}"
    for webhook in settings.webhooks:
        yield from _webhook(webhook)
    if settings.webhooks:
        yield _outbox(settings.outbox)
    notify = settings.notify
    if notify.url:
        signed = f", signed with {len(notify.secret)} secret{'s' if len(notify.secret) > 1 else ''}" if notify.secret else ""
        yield f"notify  POST {hide_url(notify.url)} on {', '.join(notify.on)}{signed}"
    for sink in sinks:
        yield f"sink    {hide_urls(sink)}"
    if not settings.webhooks and not sinks and role != "deliver":
        yield "sink    JSON lines to standard output"
    if samples:
        for webhook in settings.webhooks:
            yield from sample(webhook)
    # Sinks other than webhooks get every event.
    rules = [] if sinks else [webhook.bodies for webhook in settings.webhooks]
    wanted = set[str]().union(*map(hooks_for, rules)) if rules else set(HOOKS)
    if descriptions or settings.sources.grpc.listen:
        yield from _sidecar(descriptions, wanted)
    if webhooks.listen and wanted:
        yield "hooks   what vernemq.conf needs for this, with VerneMQ's own webhooks:"
        for line in instructions(webhooks, wanted):
            yield f"        {line}"
    yield "The configuration is good."


def _sidecar(descriptions: Sequence[str], wanted: set[str]) -> Iterator[str]:
    names = [name for hook in HOOKS if hook in wanted for name in ((hook, f"{hook}_m5") if hook in M5_HOOKS else (hook,))]
    if not names:
        return
    yield "hooks   what vernemq.conf needs for this:"
    yield "        plugins.vmq_events_sidecar = on"
    kinds = [interface_of(description) for description in descriptions]
    for _, interface, port in [parts for parts in kinds if parts[2]][:1]:
        host = "the address of this machine" if interface in ("", "0.0.0.0", "::") else interface
        yield f"        vmq_events_sidecar.hostname = {host}"
        yield f"        vmq_events_sidecar.port = {port}"
    yield f"        vmq_events_sidecar.hooks = {','.join(names)}"
    if wanted.intersection(M5_HOOKS):
        yield "        # those with _m5 are for clients of MQTT 5, with their user properties; only newer versions of"
        yield "        # VerneMQ's fork know them: leave them out for older ones"


def _webhook(webhook: WebhookSettings) -> Iterator[str]:
    methods = [rule.shape.method if isinstance(rule.shape, Shape) else "POST" for rule in webhook.rules] or ["POST"]
    yield f"webhook {webhook.name}: {' and '.join(sorted(set(methods)))} {hide_url(webhook.url)}"
    yield (
        f"        at most {webhook.pool_size} connections{' (treq)' if webhook.transport == 'treq' else ''}, "
        f"{webhook.cancel_timeout:g} s for a request, "
        f"payload as {webhook.encoding}{', with details' if webhook.details else ''}"
    )
    yield f"        {_retry(webhook.retry)}"
    if webhook.ordering == "none":
        yield "        in no particular order"
    elif webhook.merge_window:
        yield f"        each client's events in order, waiting up to {webhook.merge_window * 1000:g} ms for late ones"
    else:
        yield "        each client's events in the order they are read"
    if webhook.limit is not None:
        yield f"        at most {webhook.limit.rate:g} requests a second, {webhook.limit.burst} of them at once"
    if webhook.batch is not None:
        batch = webhook.batch
        packed = f", {batch.compression}" if batch.compression != "none" else ""
        kind = f"{batch.format}{packed}"
        yield f"        in batches of at most {batch.size} ({kind}), after {batch.linger * 1000:g} ms at the latest"
    if webhook.cloudevents is not None:
        ce = webhook.cloudevents
        asked = ", after a handshake" if ce.handshake else ""
        yield f"        as CloudEvents, {ce.mode}, from {ce.source or f'//{ce.origin}'}{asked}"
    if webhook.secrets:
        yield f"        signed with {len(webhook.secrets)} secret{'s' if len(webhook.secrets) > 1 else ''}"
        for secret in webhook.secrets:
            if secret.startswith(PRIVATE_PREFIX):
                yield f"        public key {public_form(secret)}"
    if webhook.auth is not None:
        yield f"        authenticates {_auth(webhook.auth)}"
    if webhook.proxy is not None:
        yield f"        through the proxy {webhook.proxy.name}{', with a user' if webhook.proxy.username else ''}"
    if webhook.headers:
        yield f"        headers {', '.join(name for name, _ in webhook.headers)}"
    if webhook.tls is not None:
        trusted = webhook.tls.cacertfile or "the system's authorities"
        ours = f", as {webhook.tls.certfile}" if webhook.tls.certfile else ""
        yield f"        trusts {trusted}{ours}"
    for rule, method in zip(webhook.rules, methods, strict=False):
        topic = f" on {rule.topic}" if rule.topic is not None else ""
        yield f"        {rule.event}{topic}{f', {method}' if len(set(methods)) > 1 else ''}"


def _auth(auth: AuthSettings) -> str:
    if isinstance(auth, BasicSettings):
        return f"as user {auth.username}"
    if isinstance(auth, OAuth2Settings):
        return f"with a token from {hide_url(auth.token_url)}, as client {auth.client_id}"
    return "with a token" if auth.token_file is None else f"with the token in {auth.token_file}"


def _retry(retry: RetrySettings) -> str:
    attempts = f", {retry.max_attempts} times at most" if retry.max_attempts else ""
    statuses = f"; again after {', '.join(['no answer', *map(str, retry.on)])}" if retry.on != RetrySettings().on else ""
    buried = "; refusals are buried" if retry.refusals == "bury" else ""
    waits = f"waits of {span(retry.initial)} to {span(retry.maximum)}"
    return f"tried for {span(retry.max_age)}{attempts}, with {waits}{statuses}{buried}"


def _outbox(outbox: OutboxSettings) -> str:
    size = f"at most {outbox.max_size >> 20} MiB for each webhook"
    if outbox.kind == "memory":
        return f"outbox  in memory, {size}; {outbox.dead_max} dead letters"
    if outbox.jetstream is not None:
        servers = ", ".join(map(str, outbox.jetstream.nats.servers))
        shared = f"{outbox.jetstream.partitions} partitions, {outbox.jetstream.replicas} replicas"
        spill = "no spill" if outbox.jetstream.spill == "none" else f"spill {outbox.path}{SPILL}"
        return f"outbox  in JetStream at {servers}, {shared}, {size}; {spill}; {outbox.dead_max} dead letters"
    full = "mqhooks stops reading events" if outbox.on_full == "pause" else "the oldest delivery is dropped"
    return f"outbox  {outbox.path}, sync {outbox.sync}, {size}; when it is full, {full}; {outbox.dead_max} dead letters"


def _grpc_lines(description: str) -> Iterator[str]:
    """Yield VerneMQ's settings for a gRPC endpoint, or say that it cannot connect there."""
    kind, host, port = interface_of(description)
    if kind not in ("tcp", "tcp6", "systemd"):
        yield "        # VerneMQ cannot connect to it: its gRPC client supports only TCP"
        return
    address = host if is_local(description) else "the address of this machine"
    yield f"        vmq_events_sidecar.grpc_endpoint = {address}"
    unknown = "that of the socket unit" if kind == "systemd" else "the port that the log names"
    yield f"        vmq_events_sidecar.grpc_port = {port or unknown}"
    # VerneMQ reads whatever follows a value on its line as part of the value.
    yield "        # newer versions, at boot only"
    yield "        vmq_events_sidecar.grpc_enabled = on"
    yield "        # v4.4.0-grpc and v5.1.0-grpc: the share of events; the others go to the TCP port"
    yield "        vmq_events_sidecar.grpc_percentage = 100"
