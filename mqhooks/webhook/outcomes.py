"""
What the result of an attempt means: arrived, try again, park the client, bury, or open the circuit breaker.

No I/O and no timers: time and randomness are passed in. Two decisions are behind it:

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
"""How many keys are parked at most. Without order each delivery is one, however few clients they have."""


class Fate(Enum):
    """What becomes of a delivery after an attempt."""

    ARRIVED = "arrived"
    """It was acknowledged."""

    DEAD = "dead"
    """It becomes a dead letter."""

    PARK = "park"
    """It waits for its retry, and later deliveries of its client wait behind it."""

    AGAIN = "again"
    """It stays first in its lane, to be tried when the breaker allows attempts again."""

    HALVE = "halve"
    """It shared its request with others, which are tried again in halves."""


# Python 3.11 runs code of its own whenever a member is looked up.
ARRIVED, DEAD, PARK, AGAIN, HALVE = Fate.ARRIVED, Fate.DEAD, Fate.PARK, Fate.AGAIN, Fate.HALVE


@dataclass(slots=True)
class Outcome:
    """
    What a failed attempt means for the deliveries that shared its request.

    :param fates: what becomes of each.
    :param reasons: why each is dead; ``None`` for the others.
    :param delay: seconds until those that are parked are tried again.
    :param probe: the breaker is open: seconds until the next probe. ``None`` when it is closed.
    :param early: whether the probe may go out early for a client that has never failed.
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

    :param settings: when deliveries are tried again.
    :param most: how many requests may be in flight while the endpoint works.
    :param random: the source of jitter.
    :ivar breaker: says how many may be in flight now.
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
        """Say whether a response that is not 2xx is final."""
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

        :param deliveries: what shared the request.
        :param result: a response that is not 2xx, or why there is none.
        :param now: seconds since 1970.
        :param parked: how many keys are parked.
        :param waits_beside: says whether any client other than these has something waiting.
        """
        breaker = self.breaker
        was_down = breaker.down
        if isinstance(result, Response) and self.refused(result):
            # One that has a URL or headers of its own is refused for these.
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
            # This delivery is at fault, which says nothing about the others.
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
        """Have deliveries wait for another attempt, or give up those that have been tried for long enough."""
        reachable = not isinstance(result, ConnectFailed)
        pause = retry_after(result.headers, now) if isinstance(result, Response) else None
        reasons = []
        for delivery in deliveries:
            delivery.attempts += not down
            reasons.append(self._policy.exhausted(delivery.attempts, now - delivery.accepted / 1000))
        # Park it, so that the next probe is another client's: one poisoned message could keep a healthy endpoint down.
        waits = PARK if not down or (reachable and not crowded) else AGAIN
        outcome = Outcome([waits if reason is None else DEAD for reason in reasons], reasons, opened=down and not was_down)
        if down:
            if None in reasons:
                outcome.probe = max(self._policy.delay(self.breaker.probes + 1, self._random), pause or 0.0)
                outcome.early = reachable and not pause
            else:
                outcome.probe = 0.0
        made = max(delivery.attempts for delivery in deliveries)
        outcome.delay = max(self._policy.delay(max(made, 1), self._random), pause or 0.0)
        return outcome


def _is_apart(delivery: Delivery) -> bool:
    """Say whether a request has a URL or headers of its own, beside what says how its body is to be read."""
    own = delivery.variation
    if own is None:
        return False
    return own.path is not None or not all(name.startswith("ce-") or name.lower() == "content-type" for name, _ in own.headers)
