"""
Make the requests that an event causes, in the shapes that the rules give them.

- Events are chosen as in :class:`~mqhooks.nanomq.rules.Rules`. Where several rules want the same event, the first of them gives
  the request its shape: an event still causes one request for each of its names.
- A request that cannot be sent is made all the same, with the reason: the outbox counts it, and it becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mqhooks.delivery import Variation
from mqhooks.errors import ConfigError
from mqhooks.events import Event
from mqhooks.nanomq.bodies import Bodies, hook_body
from mqhooks.nanomq.events import CAUSES, TOPIC_EVENTS
from mqhooks.nanomq.rules import REFUSED
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.nanomq.topics import compile_filter
from mqhooks.shapes.cloudevents import JSON, CloudEvents
from mqhooks.shapes.settings import CloudEventsSettings, Shape
from mqhooks.shapes.templates import BodyTemplate, Unsendable, header_maker, url_maker

Made = tuple[str, bytes, Variation | None]
"""The parts of a delivery: its id, its body, and the differences between its request and the webhook's others."""


class ShapedRules:
    """
    The rules of one webhook, with their shapes.

    :param settings: the webhook's rules, and the settings of NanoMQ's bodies.
    :param cloudevents: how events become CloudEvents; ``None`` if they don't.
    :param next_id: makes the id of the next delivery.
    :raises mqhooks.errors.ConfigError: when a topic filter or a template is not valid.
    """

    def __init__(self, settings: BodySettings, cloudevents: CloudEventsSettings | None, next_id: Callable[[], str]) -> None:
        self._plans: dict[str, list[_Plan]] = {}
        bodies = Bodies(settings)
        for hook in CAUSES:
            plans = []
            for name in (*CAUSES[hook], hook):
                rules = [rule for rule in settings.rules if rule.event == name]
                if rules:
                    plain = _hook_maker(settings) if name == hook else _nanomq_maker(bodies, name, hook)
                    plans.append(_Plan(hook, name, [(rule, Maker(rule, plain, cloudevents, next_id)) for rule in rules]))
            if plans:
                self._plans[hook] = plans
        self._single = {hook: plans[0].always for hook, plans in self._plans.items() if len(plans) == 1 and plans[0].always}

    def requests(self, event: Event) -> Iterable[Made]:
        """Make an event's requests one by one, when asked for, in the order of :meth:`mqhooks.nanomq.rules.Rules.bodies`."""
        make = self._single.get(event.hook)
        return self._each(event) if make is None else (make(event, None),)

    def _each(self, event: Event) -> Iterator[Made]:
        for plan in self._plans.get(event.hook, ()):
            for make, item in plan.wanted(event):
                yield make(event, item)


class Maker:
    """
    Makes the requests of one rule.

    :param rule: the rule, with its shape.
    :param plain: makes the body of a rule without a template.
    :param cloudevents: how events become CloudEvents; ``None`` if they don't.
    :param next_id: makes the id of the next delivery.
    :raises mqhooks.errors.ConfigError: when a template is not valid; the key is ``url``, ``headers.…`` or ``body``.
    """

    def __init__(
        self,
        rule: Rule,
        plain: Callable[[Event, Any], bytes],
        cloudevents: CloudEventsSettings | None,
        next_id: Callable[[], str],
    ) -> None:
        shape = rule.shape if isinstance(rule.shape, Shape) else Shape()
        event, encoding = rule.event, shape.encoding
        self._next_id = next_id
        self._method = None if shape.method == "POST" else shape.method
        with _At("url"):
            self._url = None if shape.url is None else url_maker(shape.url, event, encoding)
        self._headers = []
        for name, value in shape.headers:
            with _At(f"headers.{name}"):
                self._headers.append((f"headers.{name}", name, header_maker(value, event, encoding)))
        self._body = plain
        self.json = self.members = True
        if shape.body is not None:
            with _At("body"):
                template = BodyTemplate(shape.body, event, encoding, plain=shape.plain)
            self._body, self.json, self.members = template.make, template.json, template.members
        self._binary = cloudevents is not None and cloudevents.mode == "binary"
        own = next((value for name, value in shape.headers if name.lower() == "content-type"), None)
        content_type = own or (JSON if self.json else "text/plain")
        self._cloudevents = None if cloudevents is None else CloudEvents(cloudevents, event, content_type, is_json=self.json)
        if cloudevents is not None and not self._binary:
            self._headers = [pair for pair in self._headers if pair[1].lower() != "content-type"]
        # Only JSON objects can share a request.
        alone = not self.members and (cloudevents is None or self._binary)
        self._varies = bool(self._method or self._url or self._headers or self._binary or alone)

    def __call__(self, event: Event, item: Any) -> Made:
        """Make the request of an event and, for an event of a subscription, its topic."""
        body, id_ = self._body(event, item), self._next_id()
        more: tuple[tuple[str, str], ...] = ()
        if self._cloudevents is None:
            pass
        elif self._binary:
            more = self._cloudevents.binary(event, item, id_)
        else:
            body = self._cloudevents.structured(event, item, id_, body)
        return id_, body, self._variation(event, item, more) if self._varies else None

    def _variation(self, event: Event, item: Any, more: tuple[tuple[str, str], ...]) -> Variation:
        where = "url"
        try:
            url = None if self._url is None else self._url(event, item)
            for key, name, make in self._headers:
                where = key
                more = (*more, (name, make(event, item)))
        except Unsendable as error:
            return Variation(self._method, problem=f"{where}: {error}")
        return Variation(self._method, url, more)


class _At:
    """Adds a template's key to its errors."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, _traceback: object) -> None:
        if isinstance(error, ConfigError):
            raise ConfigError(error.message, key=self._key) from None


Wanted = Iterable[tuple[Maker, Any]]


class _Plan:
    """Finds the rule that gives the events of one name their shape."""

    def __init__(self, hook: str, name: str, rules: list[tuple[Rule, Maker]]) -> None:
        self.always: Maker | None = None
        self._granted = name == "on_session_subscribed"
        self._first = rules[0][1]
        topical = name in TOPIC_EVENTS
        self._makers = [
            (compile_filter(rule.topic) if topical and rule.topic is not None else None, maker) for rule, maker in rules
        ]
        self.wanted: Callable[[Event], Wanted]
        if name in CAUSES["on_subscribe"]:
            self.wanted = self._each_info
        elif name in CAUSES["on_unsubscribe"]:
            self.wanted = self._each_topic
        elif self._makers[0][0] is None:
            self.wanted = self._always
            self.always = self._first
        else:
            self.wanted = self._by_topics

    def _pick(self, topic: str) -> Maker | None:
        return next((maker for matches, maker in self._makers if matches is None or matches(topic)), None)

    def _always(self, _event: Event) -> Wanted:
        return ((self._first, None),)

    def _by_topics(self, event: Event) -> Wanted:
        for matches, maker in self._makers:
            if matches is None or any(map(matches, event.topics)):
                return ((maker, None),)
        return ()

    def _each_info(self, event: Event) -> Wanted:
        for info in event.message.topics:
            maker = self._pick(info.topic)
            if maker is not None and not (self._granted and info.qos == REFUSED):
                yield maker, info

    def _each_topic(self, event: Event) -> Wanted:
        for topic in event.message.topics:
            maker = self._pick(topic)
            if maker is not None:
                yield maker, topic


def _nanomq_maker(bodies: Bodies, name: str, hook: str) -> Callable[[Event, Any], bytes]:
    make = getattr(bodies, name.removeprefix("on_"))
    if hook in ("on_subscribe", "on_unsubscribe"):
        return lambda event, item: make(event, item)
    return lambda event, _item: make(event)


def _hook_maker(settings: BodySettings) -> Callable[[Event, Any], bytes]:
    encoding, details = settings.encoding, settings.details
    return lambda event, _item: hook_body(event, encoding, details=details)
