"""
NanoMQ's webhook events, and the VerneMQ hooks that cause them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mqhooks.events import HOOKS

CAUSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "on_register": ("on_client_connect", "on_client_connack", "on_client_connected"),
        "on_register_failed": ("on_client_connect", "on_client_connack"),
        "on_client_offline": ("on_client_disconnected",),
        "on_client_gone": ("on_client_disconnected", "on_session_terminated"),
        "on_session_expired": ("on_session_terminated",),
        "on_subscribe": ("on_client_subscribe", "on_session_subscribed"),
        "on_unsubscribe": ("on_client_unsubscribe", "on_session_unsubscribed"),
        "on_publish": ("on_message_publish",),
        "on_deliver": ("on_message_delivered",),
        "on_delivery_complete": ("on_message_acked",),
        "on_client_wakeup": (),
        "on_offline_message": (),
        "on_message_drop": (),
    }
)
"""The NanoMQ events that each hook causes, in the order in which they are sent."""

NANOMQ_EVENTS = tuple(dict.fromkeys(event for events in CAUSES.values() for event in events))
"""The 12 events that NanoMQ knows."""

RULE_EVENTS = (*NANOMQ_EVENTS, *HOOKS)
"""The events that a rule may name."""

_CARRIERS = frozenset(hook for hook, message in HOOKS.items() if {"topic", "topics"} & set(message.__struct_fields__))

TOPIC_EVENTS = _CARRIERS | {event for hook in _CARRIERS for event in CAUSES[hook]}
"""The rule events that carry topics."""

NAMELESS = frozenset({"on_client_offline", "on_client_gone", *CAUSES["on_client_gone"]})
"""The rule events whose bodies name a user though VerneMQ's message may not."""
