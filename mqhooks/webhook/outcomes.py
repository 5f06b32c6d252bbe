"""
Judge the result of an attempt: arrived, try again, park the client, bury, or open the circuit breaker.

There is no I/O and no timer: time and randomness are passed in. It rests on two rules:

- An attempt made while the endpoint is down says nothing about its delivery, so it does not count towards ``max_attempts``.
- A refusal is final for its delivery, unless the endpoint refuses everything: then the endpoint is at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

from mqhooks.delivery import Delivery, Response
from mqhooks.errors import ConnectFailed, DeliveryError
from mqhooks.webhook.breaker import WHOLESALE, Breaker
from mqhooks.webhook.retry import RetryPolicy, retry_after
from mqhooks.webhook.settings import RetrySettings

CROWD = 8192
"""When this many clients are parked, the endpoint is at fault rather than their messages."""

MOST = 1 << 16
"""When this many keys are parked, the breaker opens. Without order each delivery is a key, however few clients there are."""


class Fate(Enum):
    """The fate of a delivery after an attempt."""

    ARRIVED = "arrived"
    """It was acknowledged."""

    DEAD = "dead"
    """It becomes a dead letter."""

    PARK = "park"
    """It waits for its retry, and later deliveries of its client wait behind it."""

    AGAIN = "again"
    """It goes back to the front of its lane, and is tried when the breaker allows attempts again."""

    HALVE = "halve"
    """It shared its request with others, and the batch is tried again in halves."""


# Looking up a member through its class is slow in Python 3.11: it runs Python code.
ARRIVED, DEAD, PARK, AGAIN, HALVE = Fate.ARRIVED, Fate.DEAD, Fate.PARK, Fate.AGAIN, Fate.HALVE


@dataclass(slots=True)
class Outcome:
    """
    The consequences of a failed attempt for the deliveries that shared its request.

    :param fates: the fate of each delivery.
    :param reasons: the reason for each dead letter; ``None`` for the other deliveries.
    :param delay: seconds until the parked deliveries are tried again.
    :param probe: seconds until the next probe while the breaker is open; ``None`` while it is closed.
    :param early: whether the probe may go out early for a client whose last attempt did not fail.
    :param opened: whether this attempt opened the breaker.
    :param closed: whether this attempt closed it.
    """

    fates: list[Fate]
    reasons: list[str | None]
    delay: float = 0.0
    probe: float | None = None
    early: bool = False
    opened: bool = False
    closed: bool = False


class Outcomes:
    """
    Judges the attempts of one webhook.

    :param settings: the webhook's retry settings.
    :param most: the limit of requests in flight while the endpoint works.
    :param random: the source of jitter.
    :ivar breaker: limits the requests in flight.
    """

    def __init__(self, settings: RetrySettings, most: int, random: Random) -> None:
        self.breaker = Breaker(most)
        self._settings = settings
        self._policy = RetryPolicy(settings)
        self._random = random

    def arrived(self, deliveries: Sequence[Delivery]) -> bool:
        """
        Note that deliveries have arrived.

        :returns: whether that closed the breaker.
        """
        self.breaker.arrived(deliveries)
        return not self.breaker.well and self.breaker.succeeded()

    def refused(self, response: Response) -> bool:
        """Return whether a response that is not 2xx is final."""
        return not self._policy.retries(response.status)

    def failed(
        self,
        deliveries: Sequence[Delivery],
        result: Response | DeliveryError,
        now: float,
        parked: int,
        waits_beside: Callable[[Collection[str]], bool],
    ) -> Outcome:
        """
        Judge an attempt that did not deliver.

        :param deliveries: the deliveries that shared the request.
        :param result: a response that is not 2xx, or the reason why there is no response.
        :param now: seconds since 1970.
        :param parked: number of parked keys.
        :param waits_beside: returns whether any client other than these has a delivery waiting.
        """
        breaker = self.breaker
        was_down = breaker.down
        if isinstance(result, Response) and self.refused(result):
            # A request with a URL or headers of its own may be refused because of those.
            wholesale = result.status in WHOLESALE and self._settings.refusals == "hold" and not _is_apart(deliveries[0])
            if not (wholesale and breaker.refused(deliveries, waits_beside)):
                return self._refuse(deliveries, wholesale=wholesale)
            down = True
        else:
            down = breaker.failed(deliveries[0], result)
        crowded = min(parked, len(breaker.failing)) >= CROWD or parked >= MOST
        if crowded and not down:
            breaker.trip()
        return self._wait(deliveries, result, now, down=down or crowded, was_down=was_down, crowded=crowded)

    def _refuse(self, deliveries: Sequence[Delivery], *, wholesale: bool) -> Outcome:
        if len(deliveries) > 1:
            outcome = Outcome([HALVE] * len(deliveries), [None] * len(deliveries))
        else:
            deliveries[0].attempts += 1
            outcome = Outcome([DEAD], ["the endpoint refuses it"])
        if self.breaker.refusing:
            # This delivery is at fault, so the breaker stays open for the others: probe again at once.
            self.breaker.trip()
            outcome.probe = 0.0
        elif not wholesale and not self.breaker.well:
            outcome.closed = self.breaker.answered()
        return outcome

    def _wait(
        self,
        deliveries: Sequence[Delivery],
        result: Response | DeliveryError,
        now: float,
        *,
        down: bool,
        was_down: bool,
        crowded: bool,
    ) -> Outcome:
        """Let deliveries wait for another attempt, and give up those that have been tried for too long."""
        reachable = not isinstance(result, ConnectFailed)
        pause = retry_after(result.headers, now) if isinstance(result, Response) else None
        reasons = []
        for delivery in deliveries:
            delivery.attempts += not down
            reasons.append(self._policy.exhausted(delivery.attempts, now - delivery.accepted / 1000))
        # Park it, so that the next probe is another client's. Otherwise one poisoned message could keep the breaker open.
        waits = PARK if not down or (reachable and not crowded) else AGAIN
        outcome = Outcome([waits if reason is None else DEAD for reason in reasons], reasons, opened=down and not was_down)
        if down:
            if None in reasons:
                outcome.probe = max(self._policy.delay(self.breaker.probes + 1, self._random), pause or 0.0)
                outcome.early = reachable and not pause
            else:
                # They have died of age, so they need no backoff. A backlog of such deliveries goes one after the other.
                outcome.probe = pause or 0.0
        alive = (delivery for delivery, reason in zip(deliveries, reasons, strict=True) if reason is None)
        made = max((delivery.attempts for delivery in alive), default=1)
        outcome.delay = max(self._policy.delay(max(made, 1), self._random), pause or 0.0)
        return outcome


def _is_apart(delivery: Delivery) -> bool:
    """Return whether a request has a URL or headers of its own, other than content-type and ``ce-*``."""
    own = delivery.variation
    if own is None:
        return False
    return own.path is not None or not all(name.startswith("ce-") or name.lower() == "content-type" for name, _ in own.headers)
