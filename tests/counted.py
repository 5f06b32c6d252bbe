"""
A webhook for tests of the minute's summary, whose outbox really counts its deliveries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from twisted.internet.defer import Deferred

from mqhooks.delivery import Delivery
from mqhooks.interfaces import IOutbox
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.webhook.counters import WebhookCounters
from mqhooks.webhook.settings import WebhookSettings

PLENTY = 1 << 40


class CountedWebhook:
    """
    A webhook without a sink.

    :param name: its name.
    :param outbox: its outbox; ``None`` for one in memory.
    """

    def __init__(self, name: str, outbox: IOutbox | None = None) -> None:
        self.settings = WebhookSettings(name, "http://h/", ())
        self.counters = WebhookCounters()
        self.outbox: IOutbox = outbox or MemoryOutbox()
        self._numbers = count()

    def append(self, number: int, size: int = 2) -> None:
        """Accept deliveries."""
        self.outbox.append([Delivery(f"msg_{next(self._numbers)}", "c", 0, b"x" * size, 1000) for _ in range(number)])

    def settle(self, *, delivered: int = 0, dead: int = 0, pending: int = 0) -> None:
        """Accept deliveries, acknowledge some and bury some."""
        self.append(delivered + dead + pending)
        if delivered:
            self.outbox.acknowledge(self._claim(delivered))
        for delivery in self._claim(dead) if dead else ():
            self.outbox.bury(delivery, "http://h/", "refused", 410, b"", 2000)

    def _claim(self, number: int) -> Sequence[Delivery]:
        claimed = self.outbox.claim(number, PLENTY)
        assert not isinstance(claimed, Deferred)
        assert len(claimed) == number
        return claimed
