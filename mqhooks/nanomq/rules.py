"""
Apply a webhook's rules: choose the bodies that an event causes.

The rules are compiled in advance for each hook, so an event costs a look-up and a match of its topics. Bodies of many topics
are made one by one, when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mqhooks.events import Event
from mqhooks.nanomq.bodies import Bodies, hook_body
from mqhooks.nanomq.events import CAUSES, NAMELESS, TOPIC_EVENTS
from mqhooks.nanomq.settings import BodySettings
from mqhooks.nanomq.topics import compile_filter

REFUSED = 128
"""The QoS of a subscription that was not granted (MQTT 3.1.1, section 3.9.3)."""

_Step = Callable[[Event], Iterable[bytes]]
_Matcher = Callable[[str], bool]


class Rules:
    """
    The rules of one webhook, compiled for each hook.

    :param settings: the webhook's rules, and the settings of its bodies.
    :raises mqhooks.errors.ConfigError: when a topic filter is not valid.
    """

    def __init__(self, settings: BodySettings) -> None:
        steps = {hook: list(_steps(settings, hook)) for hook in CAUSES}
        self._plans = {hook: _in_turn(found) for hook, found in steps.items() if found}

    def bodies(self, event: Event) -> Iterable[bytes]:
        """
        Make the bodies that an event causes.

        :returns: one for each NanoMQ event that the hook causes and a rule wants, in the order of
            :data:`~mqhooks.nanomq.events.CAUSES` (for a subscription's events, one for each topic); then the event in VerneMQ's
            words, when a rule names the hook. Nothing when no rule matches. Bodies of many topics are made one by one, when
            they are asked for: together they may be a thousand times as long as the event.
        """
        plan = self._plans.get(event.hook)
        return [] if plan is None else plan(event)


def needs_usernames(settings: BodySettings) -> bool:
    """
    Return whether a webhook sends usernames that VerneMQ's message may lack, so they must be remembered from registrations.
    """
    return any(rule.event in NAMELESS or rule.names_user for rule in settings.rules)


def needs_addresses(settings: BodySettings) -> bool:
    """Return whether a webhook sends the address of a client that is gone, which only its registration carries."""
    return settings.details and any(rule.event in CAUSES["on_client_gone"] for rule in settings.rules)


def hooks_for(settings: BodySettings) -> set[str]:
    """
    List the VerneMQ hooks that a webhook needs: those that its rules name, those that cause the events that its rules name, and
    ``on_register`` where usernames have to be remembered.
    """
    named = {rule.event for rule in settings.rules}
    hooks = {hook for hook, events in CAUSES.items() if named.intersection(events) or hook in named}
    return hooks | {"on_register"} if needs_usernames(settings) else hooks


def _steps(settings: BodySettings, hook: str) -> Iterator[_Step]:
    bodies = Bodies(settings)
    for name in CAUSES[hook]:
        wanted, matches = _wanted(settings, name)
        if wanted:
            yield _nanomq_step(hook, name, getattr(bodies, name.removeprefix("on_")), matches)
    wanted, matches = _wanted(settings, hook)
    if wanted:
        yield _hook_step(settings, matches)


def _wanted(settings: BodySettings, name: str) -> tuple[bool, _Matcher | None]:
    """Return whether a rule names an event, and a matcher for its topics: ``None`` for all topics, or for an event without."""
    topics = [rule.topic for rule in settings.rules if rule.event == name]
    filters = [topic for topic in topics if topic is not None]
    if len(filters) < len(topics) or name not in TOPIC_EVENTS:
        return bool(topics), None
    return bool(topics), compile_filter(*filters)


def _nanomq_step(hook: str, name: str, make: Callable[..., bytes], matches: _Matcher | None) -> _Step:
    if hook == "on_subscribe":
        granted = name == "on_session_subscribed"

        def wants(info: Any) -> bool:
            return (matches is None or matches(info.topic)) and not (granted and info.qos == REFUSED)

        return lambda event: (make(event, info) for info in event.message.topics if wants(info))
    if hook == "on_unsubscribe":
        return lambda event: (make(event, topic) for topic in event.message.topics if matches is None or matches(topic))
    if matches is None:
        return lambda event: [make(event)]
    return lambda event: [make(event)] if matches(event.message.topic) else []


def _hook_step(settings: BodySettings, matches: _Matcher | None) -> _Step:
    encoding, details = settings.encoding, settings.details
    if matches is None:
        return lambda event: [hook_body(event, encoding, details=details)]
    return lambda event: [hook_body(event, encoding, details=details)] if any(map(matches, event.topics)) else []


def _in_turn(steps: list[_Step]) -> _Step:
    if len(steps) == 1:
        return steps[0]
    return lambda event: (body for step in steps for body in step(event))
