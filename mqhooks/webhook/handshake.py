"""
CloudEvents' handshake: asks an endpoint whether it wants our events, before the first delivery and from time to time:
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md, section 4.

Nothing is sent before the endpoint says yes. Its yes holds until it says no: while it cannot be asked, deliveries are sent and
retried as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mqhooks.delivery import Head, Request, Response
from mqhooks.errors import DeliveryError
from mqhooks.webhook.retry import RetryPolicy

AGAIN = 3600.0
"""Seconds between a yes and the next question."""

ORIGIN = "WebHook-Request-Origin"
ALLOWED = b"webhook-allowed-origin"

Submit = Callable[[Request, Callable[[Response | DeliveryError], object]], object]


class Handshake:
    """
    The handshake with one endpoint.

    :param clock: times the next question.
    :param origin: the name that we give ourselves: a host's.
    :param head: the head that the webhook's requests share.
    :param submit: sends a request.
    :param policy: sets the wait before the next question after a no, or after no answer.
    :param random: the source of jitter.
    :param changed: called with ``None`` when the endpoint says yes and had not before, and with the reason after every result
        that is not a yes.
    :ivar allows: whether the endpoint wants our events.
    """

    def __init__(
        self,
        clock: IReactorTime,
        origin: str,
        head: Head,
        submit: Submit,
        policy: RetryPolicy,
        random: Random,
        changed: Callable[[str | None], object],
    ) -> None:
        self.allows = False
        self._clock = clock
        self._origin = origin
        self._head = head
        self._submit = submit
        self._policy = policy
        self._random = random
        self._changed = changed
        self._timer: IDelayedCall | None = None
        self._asked = 0
        self._running = False

    def start(self) -> None:
        """Ask now, and again from time to time."""
        self._running = True
        self._ask()

    def stop(self) -> None:
        """Stop asking, and ignore an answer that is still to come."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def try_now(self) -> bool:
        """Ask now if the endpoint has not said yes; return whether a later question was moved up."""
        if self.allows or self._timer is None:
            return False
        self._timer.reset(0)
        return True

    def _ask(self) -> None:
        self._timer = None
        self._asked += 1
        self._submit(Request(self._head, [(ORIGIN, self._origin)], b"", method="OPTIONS"), self._answered)

    def _answered(self, result: Response | DeliveryError) -> None:
        if not self._running:
            return
        reason = self._refusal(result)
        if reason is None:
            self._asked = 0
            allowed, self.allows = self.allows, True
            self._timer = self._clock.callLater(AGAIN, self._ask)
            if not allowed:
                self._changed(None)
            return
        if isinstance(result, Response) and not self._policy.retries(result.status):
            self.allows = False
        self._timer = self._clock.callLater(self._policy.delay(self._asked, self._random), self._ask)
        self._changed(reason)

    def _refusal(self, result: Response | DeliveryError) -> str | None:
        """Return the reason why a result is not a yes; ``None`` if it is one."""
        if not isinstance(result, Response):
            return str(result)
        if not 200 <= result.status < 300:
            return f"{self._head.url} answered {result.status} to OPTIONS"
        for name, value in result.headers:
            if name.lower() == ALLOWED and value.strip().decode("latin-1").lower() in ("*", self._origin.lower()):
                return None
        return f"{self._head.url} does not allow {self._origin} in the WebHook-Allowed-Origin of its answer to OPTIONS"
