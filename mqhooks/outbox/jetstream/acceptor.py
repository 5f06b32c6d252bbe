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
from mqhooks.errors import JetStreamError, NATSError, NATSTooLong, NATSUnavailable
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


_Part = tuple[Delivery, Accepting | None, float]


class _Both:
    """Two that are accepted together."""

    def __init__(self, first: Accepting | None, second: Accepting) -> None:
        self._first = first
        self._second = second

    def landed(self) -> None:
        if self._first is not None:
            self._first.landed()
        self._second.landed()


class Acceptor:
    """
    Writes one partition's log.

    :param reactor: for timers.
    :param stream: writes.
    :param subject: of the log.
    :param name: begins the ids of messages; of this process and partition only.
    :param acknowledged: called with the sequence number of a message, and whose last deliveries were in it.
    :param failed: called with what keeps a message from being stored, whenever it is tried in vain.
    :param refused: called with a delivery that can never be stored, why, and what to call once it is a dead letter.
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
        refused: Callable[[Delivery, str, Callable[[], object]], object],
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
        self._waiting: deque[_Part] = deque()
        self._number = 0
        # The message without an acknowledgement: its content, and what it was made of.
        self._flying: tuple[bytes, list[_Part]] | None = None
        # Whether it may be stored, under its id, already; and how many may be in the next one.
        self._sent = False
        self._most = BATCH
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
        batch: list[_Part] = []
        size = 0
        waiting = self._waiting
        while waiting and len(batch) < self._most and (not batch or size + len(waiting[0][0].body) <= BATCH_BYTES):
            batch.append(waiting.popleft())
            size += len(batch[-1][0].body)
        try:
            data = encode([delivery for delivery, _, _ in batch])
        except UNENCODABLE:
            batch = self._without_unstorable(batch)
            data = encode([delivery for delivery, _, _ in batch])
        self._most = BATCH
        if not batch:
            self.go_on()
            return
        self._number += 1
        self._sent = False
        self._flying = data, batch
        self._fly()

    def _without_unstorable(self, batch: list[_Part]) -> list[_Part]:
        kept: list[_Part] = []
        for part in batch:
            delivery, accepting, _ = part
            problem = encodable(delivery)
            if problem is None:
                kept.append(part)
            elif kept and accepting is not None:
                # What its caller has appended before it is accepted with the last of that.
                self._refused(delivery, problem, _nothing)
                before, whose, at = kept[-1]
                kept[-1] = before, _Both(whose, accepting), at
            else:
                self._refuse(part, problem)
        return kept

    def _refuse(self, part: _Part, problem: str) -> None:
        delivery, accepting, _ = part
        self._refused(delivery, problem, _nothing if accepting is None else accepting.landed)

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
        data, batch = self._flying
        sent = self._stream.publish(
            self._subject,
            data,
            message_id=f"{self._name}.{self._number}",
            headers={COUNT: str(len(batch))},
            timeout=TIMEOUT,
        )
        sent.addCallbacks(self._stored, self._missed)

    def _stored(self, ack: Ack) -> None:
        flying, self._flying = self._flying, None
        assert flying is not None
        self.refused = False
        self.since = self._waiting[0][2] if self._waiting else None
        self._acknowledged(ack.seq, [accepting for _, accepting, _ in flying[1] if accepting is not None])
        self.go_on()

    def _missed(self, failure: Any) -> None:
        failure.trap(NATSError)
        error = failure.value
        if isinstance(error, NATSTooLong) and not self._sent and self._flying is not None:
            self._divide(self._flying[1], str(error))
            return
        self._sent = self._sent or not isinstance(error, NATSUnavailable)
        self.refused = isinstance(error, JetStreamError) and error.err_code in NO_ROOM
        if not self._stopped:
            self._later(AGAIN, self._fly)
            self._failed(error)

    def _divide(self, batch: list[_Part], problem: str) -> None:
        """Send fewer at once: clients' names, headers and paths may be long too."""
        self._flying = None
        if len(batch) == 1:
            self._refuse(batch[0], problem)
        else:
            self._waiting.extendleft(reversed(batch))
            self._most = len(batch) // 2
        self.since = self._waiting[0][2] if self._waiting else None
        self._next = 0.0
        self.go_on()


def _nothing() -> None:
    pass
