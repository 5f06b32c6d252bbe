"""
``mqhooks send-test``: sends one made-up delivery to a webhook's endpoint, and shows the answer.

It bypasses the outbox, but uses the same rules, requests and transport as any other delivery: what works here works there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from secrets import token_hex
from time import time
from typing import Any

from twisted.python.failure import Failure

from mqhooks.app.configuration import load
from mqhooks.app.parser import CommandParser
from mqhooks.app.reactor import install
from mqhooks.app.sample import HIDDEN, SHOWN
from mqhooks.app.webhooks import transport_for
from mqhooks.delivery import Delivery, Request, Response, address
from mqhooks.errors import DeliveryError, MqhooksError
from mqhooks.events import HOOKS
from mqhooks.nanomq.block import suggest
from mqhooks.nanomq.events import CAUSES, RULE_EVENTS
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import Rule
from mqhooks.shapes.rules import ShapedRules
from mqhooks.support.printable import printable
from mqhooks.support.redact import hide, hide_url
from mqhooks.testing import make_event
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.settings import WebhookSettings

CLIENT = "mqhooks-test"
"""The client id in the event."""

_DEFAULT = "on_message_publish"


def add(parser: CommandParser) -> None:
    """Add the options of ``mqhooks send-test``."""
    parser.add_argument("--config", "-c", metavar="FILE", required=True, help="the configuration")
    parser.add_argument("--webhook", metavar="NAME", help="the webhook, if there are several")
    parser.add_argument("--event", metavar="EVENT", help="the event to send, like on_message_publish")
    parser.epilog = "2xx is success. The outbox is not used."
    parser.set_defaults(command=lambda given: send_test(given.config, given.webhook, given.event))


def send_test(config: str, name: str | None, event: str | None) -> Iterator[str]:
    """
    Send a test delivery, and describe the answer.

    :param config: the configuration.
    :param name: the webhook; ``None`` for the only one.
    :param event: one of :data:`mqhooks.nanomq.events.RULE_EVENTS`; ``None`` for one that the webhook has a rule for.
    :returns: lines for a terminal.
    :raises mqhooks.errors.MqhooksError: when nothing can be sent, or the answer is not 2xx.
    """
    settings = _webhook(load(config).webhooks, config, name)
    rule = _rule(settings, event)
    request = make_request(settings, rule)
    reactor = install()
    transport = transport_for(reactor, settings)
    shown = hide_url(settings.url)
    yield f"{request.method or request.head.method} {shown}, webhook {settings.name}, event {rule.event}"
    for header, value in (*request.head.headers, *request.headers):
        yield f"  {header}: {printable(value, 1000) if header.lower() in SHOWN else HIDDEN}"
    since = reactor.seconds()
    ended: list[Any] = []

    def end(result: Any) -> None:
        ended.append(result)
        transport.close().addBoth(lambda _: reactor.stop())

    def begin() -> None:
        transport.send(request).addBoth(end)

    reactor.callWhenRunning(begin)
    reactor.run()
    milliseconds = (reactor.seconds() - since) * 1000
    if not ended:
        raise MqhooksError("send-test: stopped before an answer came")
    own = settings.url if request.path is None else address(settings.url, request.path)
    yield from _described(ended[0], settings.url, own, milliseconds)


def make_test(settings: WebhookSettings) -> tuple[Delivery, Request]:
    """
    Make a delivery for an event that a webhook has a rule for, and its request.

    :raises mqhooks.errors.MqhooksError: see :func:`make_request`.
    """
    delivery = make_delivery(settings, _rule(settings, None))
    return delivery, RequestMaker(settings, time).make([delivery])


def make_request(settings: WebhookSettings, rule: Rule) -> Request:
    """
    Make the request that a made-up event would cause now.

    :param rule: the rule to use, for any topic.
    :raises mqhooks.errors.MqhooksError: when its URL or headers cannot be made from that event.
    """
    return RequestMaker(settings, time).make([make_delivery(settings, rule)])


def make_delivery(settings: WebhookSettings, rule: Rule) -> Delivery:
    """
    Make the delivery that a made-up event would cause now.

    :param rule: the rule to use, for any topic.
    :raises mqhooks.errors.MqhooksError: when its URL or headers cannot be made from that event.
    """
    hook = rule.event if rule.event in HOOKS else next(hook for hook, events in CAUSES.items() if rule.event in events)
    now = time()
    fields = {"client_id": CLIENT} if "client_id" in HOOKS[hook].__struct_fields__ else {}
    only = replace(settings, rules=(replace(rule, topic=None),))
    made, id_, variation = make_event(hook, timestamp=int(now * 1e9), **fields), f"test_{token_hex(12)}", None
    if settings.shaped:
        (_, body, variation), *_ = ShapedRules(only.bodies, settings.cloudevents, lambda: id_).requests(made)
        if variation is not None and variation.problem is not None:
            raise MqhooksError(f"send-test: the made-up event cannot be sent: {variation.problem}")
    else:
        (body, *_) = Rules(only.bodies).bodies(made)
    return Delivery(id_, CLIENT, int(now * 1e9), body, int(now * 1000), variation=variation)


def _webhook(webhooks: tuple[WebhookSettings, ...], config: str, name: str | None) -> WebhookSettings:
    names = [webhook.name for webhook in webhooks]
    if not webhooks:
        raise MqhooksError(f"{config}: no webhook is enabled")
    if name is None and len(webhooks) > 1:
        raise MqhooksError(f"send-test: to which webhook? Give --webhook with one of {', '.join(names)}")
    if name is not None and name not in names:
        raise MqhooksError(f"{config} has no webhook {printable(name, 60)}; it has {', '.join(names)}")
    return webhooks[0] if name is None else webhooks[names.index(name)]


def _rule(settings: WebhookSettings, event: str | None) -> Rule:
    wanted = event and event.lower()
    if wanted is not None and wanted not in RULE_EVENTS:
        raise MqhooksError(f"send-test: there is no event {printable(wanted, 60)!r}{suggest(wanted, RULE_EVENTS)}")
    rules = {rule.event: rule for rule in reversed(settings.rules)}
    if wanted is None:
        wanted = _DEFAULT if _DEFAULT in rules or not rules else settings.rules[0].event
    return rules.get(wanted, Rule(wanted))


def _described(result: Any, url: str, own: str, milliseconds: float) -> Iterator[str]:
    def hidden(text: str) -> str:
        return hide(hide(text, url), own)

    shown = hide_url(url)
    if isinstance(result, Failure):
        error = result.value
        reason = str(error) if isinstance(error, DeliveryError) else f"{type(error).__name__}: {error}"
        raise MqhooksError(f"send-test: no answer after {milliseconds:.0f} ms: {printable(hidden(reason), 1000)}")
    assert isinstance(result, Response)
    yield f"{result.status} after {milliseconds:.0f} ms"
    for name, value in result.headers:
        text = hidden(f"{name.decode('latin-1')}: {value.decode('latin-1')}")
        yield f"  {printable(text, 1000)}"
    if result.body:
        more = "" if result.complete and len(result.body) == result.length else " (its beginning)"
        yield f"  body{more}:"
        for line in hidden(result.body.decode("utf-8", "backslashreplace")).splitlines():
            yield f"    {printable(line, 1024)}"
    if not 200 <= result.status < 300:
        raise MqhooksError(f"send-test: {shown} answered {result.status}, which is not 2xx")
