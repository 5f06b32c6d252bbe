"""
Puts deliveries into the log of one partition.

- One message at a time is without an acknowledgement: two could change places over an election.
- It is repeated under the same id until it is acknowledged, so a lost acknowledgement stores nothing twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall

from mqhooks.delivery import Delivery
from mqhooks.errors import JetStreamError, NATSError
from mqhooks.nats.jetstream import Ack, JetStream
from mqhooks.outbox.jetstream.layout import BATCH, BATCH_BYTES, COUNT, encode
from mqhooks.outbox.stored import UNENCODABLE, encodable

LINGER = 0.02
"""How many seconds lie between two messages of a partition, unless one is full: batches are what makes it cheap."""

AGAIN = 0.1
"""How many seconds after a message was not acknowledged it is sent again."""

TIMEOUT = 1.0
"""How many seconds an acknowledgement may take."""

NO_ROOM = frozenset({10047, 10077})
"""JetStream's errors for a stream or a server without room."""


class Accepting(Protocol):
    """Some deliveries that a caller has appended."""

    def landed(self) -> None:
        """Note that all of them which are in one partition are accepted."""


class Acceptor:
    """
    Writes one partition's log.

    :param reactor: for timers.
    :param stream: writes.
    :param subject: of the log.
    :param name: begins the ids of messages; of this process and partition only.
    :param acknowledged: called with the sequence number of a message, and whose last deliveries were in it.
    :param failed: called with what keeps a message from being stored, whenever it is tried in vain.
    :param refused: called with a delivery that can never be stored, and why.
    :ivar since: when the oldest delivery that is not acknowledged was appended, in the reactor's seconds.
    :ivar refused: whether the last attempt found no room.
    :ivar held: whether nothing may be sent: the stream is not known to be there, or its owner has said that it has no room.
    """

    def __init__(
        self,
        reactor: Any,
        stream: JetStream,
        subject: str,
        name: str,
        acknowledged: Callable[[int, list[Accepting]], object],
        failed: Callable[[NATSError], object],
        refused: Callable[[Delivery, str], object],
    ) -> None:
        self.since: float | None = None
        self.refused = False
        self.held = True
        self._reactor = reactor
        self._stream = stream
        self._subject = subject
        self._name = name
        self._acknowledged = acknowledged
        self._failed = failed
        self._refused = refused
        self._waiting: deque[tuple[Delivery, Accepting | None, float]] = deque()
        self._number = 0
        # The message without an acknowledgement: its content, how many are in it, and whose last ones.
        self._flying: tuple[bytes, int, list[Accepting]] | None = None
        self._next = 0.0
        self._timer: IDelayedCall | None = None
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether there is something that is not acknowledged."""
        return bool(self._waiting) or self._flying is not None

    def put(self, deliveries: list[Delivery], accepting: Accepting) -> None:
        """Append some; the caller has checked that each can be stored."""
        now = self._reactor.seconds()
        if self.since is None:
            self.since = now
        self._waiting.extend([(delivery, None, now) for delivery in deliveries[:-1]])
        self._waiting.append((deliveries[-1], accepting, now))
        self.go_on()

    def go_on(self) -> None:
        """Send what may be sent."""
        if self._flying is not None or not self._waiting or self._stopped or self.held:
            return
        left = self._next - self._reactor.seconds()
        if left > 0 and len(self._waiting) < BATCH:
            if self._timer is None:
                self._later(left, self.go_on)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next = self._reactor.seconds() + LINGER
        batch: list[Delivery] = []
        accepting: list[Accepting] = []
        size = 0
        waiting = self._waiting
        while waiting and len(batch) < BATCH and (not batch or size + len(waiting[0][0].body) <= BATCH_BYTES):
            delivery, whose, _ = waiting.popleft()
            batch.append(delivery)
            size += len(delivery.body)
            if whose is not None:
                accepting.append(whose)
        try:
            data = encode(batch)
        except UNENCODABLE:
            batch = [delivery for delivery in batch if not self._unstorable(delivery)]
            data = encode(batch)
        self._number += 1
        self._flying = data, len(batch), accepting
        self._fly()

    def _unstorable(self, delivery: Delivery) -> bool:
        problem = encodable(delivery)
        if problem is not None:
            self._refused(delivery, problem)
        return problem is not None

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _later(self, delay: float, function: Callable[[], None]) -> None:
        def now() -> None:
            self._timer = None
            function()

        self._timer = self._reactor.callLater(delay, now)

    def _fly(self) -> None:
        if self._flying is None or self._stopped:
            return
        data, count, _ = self._flying
        sent = self._stream.publish(
            self._subject,
            data,
            message_id=f"{self._name}.{self._number}",
            headers={COUNT: str(count)},
            timeout=TIMEOUT,
        )
        sent.addCallbacks(self._stored, self._missed)

    def _stored(self, ack: Ack) -> None:
        flying, self._flying = self._flying, None
        assert flying is not None
        self.refused = False
        self.since = self._waiting[0][2] if self._waiting else None
        self._acknowledged(ack.seq, flying[2])
        self.go_on()

    def _missed(self, failure: Any) -> None:
        failure.trap(NATSError)
        error = failure.value
        self.refused = isinstance(error, JetStreamError) and error.err_code in NO_ROOM
        if not self._stopped:
            self._later(AGAIN, self._fly)
            self._failed(error)
