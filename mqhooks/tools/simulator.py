"""
A stand-in for VerneMQ: the events of simulated clients, spread over a pool of connections as its events sidecar does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random, SystemRandom
from struct import Struct
from typing import Any, cast

from google.protobuf.message import Message
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from mqhooks.errors import ConfigError
from mqhooks.sidecar.decode import TYPE_URL
from mqhooks.sidecar.events import HOOKS, Event
from mqhooks.tools.model import DEFAULT_MIX, Generation, SessionModel
from mqhooks.tools.options import number, one_of, whole
from mqhooks.tools.pool import ConnectionPool

CHUNK = 512
"""How many events are written before the reactor may turn to something else."""

TICK = 0.01
"""How many seconds lie between two writes when the rate is limited."""

CATCH_UP = 1.0
"""How many seconds of a limited rate are made up for at once after a stall."""

CLOSING_TIME = 5.0
"""How many seconds the peer gets to read what was written once the simulator is told to stop."""

_LENGTH = Struct("!I")


def frame(message: Message | None) -> bytes:
    """
    Encode one call of a hook as VerneMQ does.

    :param message: of one of the classes in :data:`mqhooks.sidecar.events.HOOKS`; ``None`` stands for a call that the encoder
        does not know.
    :returns: the length and a ``google.protobuf.Any``; the length 0 alone for ``None``.
    """
    if message is None:
        return _LENGTH.pack(0)
    value = message.SerializeToString()
    head = _HEADS[type(message)] + _varint(len(value))
    return _LENGTH.pack(len(head) + len(value)) + head + value


class Simulator(Service):
    """
    Writes events to the connections of a pool, each to one picked at random among those whose peer reads.

    It starts once each connection was tried, and waits while none is ready. What was written to a connection that breaks may be
    lost with it, as VerneMQ's events are.

    :param clock: paces.
    :param pool: not yet opened.
    :param events: what to send; when it ends, the connections are closed.
    :param random: picks connections.
    :param rate: events a second; 0 for as fast as the peer reads.
    :param when_done: called when all events are sent and all connections are closed.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        pool: ConnectionPool,
        events: Iterator[Event],
        random: Random,
        *,
        rate: float = 0.0,
        when_done: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._events = events
        self._random = random
        self._rate = rate
        self._when_done = when_done
        self._call: IDelayedCall | None = None
        self._credit = 1.0
        self._credited = 0.0
        self._started: float | None = None
        self._closed: Deferred[None] | None = None
        self.sent: Counter[str] = Counter()
        """How many events were written, by hook."""

    def startService(self) -> None:
        """Connect; the events follow."""
        super().startService()
        self._pool.wake = self._wake
        self._pool.open().addCallback(lambda _: self._begin())

    def stopService(self) -> Deferred[None]:
        """
        Stop sending and close the connections; a peer that doesn't read gets :data:`CLOSING_TIME` seconds.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        super().stopService()
        late = self._clock.callLater(CLOSING_TIME, self._pool.abort)
        return self._close().addCallback(lambda _: late.cancel() if late.active() else None)

    def _begin(self) -> None:
        self._started = self._credited = self._clock.seconds()
        self._wake()

    def _wake(self) -> None:
        if self._started is not None and self._closed is None and self._call is None and self._pool.ready:
            self._call = self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._call = None
        try:
            self._write(min(self._allowance(), CHUNK))
        except StopIteration:
            self._close().addCallback(lambda _: self._when_done() if self.running else None)
            return
        if self._pool.ready:
            self._call = self._clock.callLater(self._pause(), self._turn)

    def _write(self, count: int) -> None:
        ready = self._pool.ready
        written = 0
        try:
            while written < count and ready:
                event = next(self._events)
                written += 1
                self.sent[event.hook] += 1
                ready[int(self._random.random() * len(ready))].transport.write(frame(event.message))
        finally:
            self._credit -= written

    def _allowance(self) -> int:
        if not self._rate:
            return CHUNK
        now = self._clock.seconds()
        self._credit += (now - self._credited) * self._rate
        self._credit = min(self._credit, max(1.0, self._rate * CATCH_UP))
        self._credited = now
        return int(self._credit)

    def _pause(self) -> float:
        if not self._rate or self._credit >= 1.0:
            return 0.0
        return max(TICK, (1.0 - self._credit) / self._rate)

    def _close(self) -> Deferred[None]:
        if self._closed is None:
            if self._call is not None:
                self._call.cancel()
                self._call = None
            self._closed = self._pool.close().addCallback(lambda _: self._summarise())
        waiting: Deferred[None] = Deferred()
        self._closed.addCallback(lambda _: waiting.callback(None))
        return waiting

    def _summarise(self) -> None:
        began = self._clock.seconds() if self._started is None else self._started
        seconds = self._clock.seconds() - began
        total = self.sent.total()
        self.log.info(
            "sent {total} events over {size} connections in {seconds:.1f} s ({rate:.0f}/s){lost}: {hooks}",
            total=total,
            size=self._pool.size,
            seconds=seconds,
            rate=total / seconds if seconds > 0 else 0.0,
            lost=f", connections lost: {self._pool.lost}" if self._pool.lost else "",
            hooks=", ".join(f"{hook} {self.sent[hook]}" for hook in HOOKS if self.sent[hook]) or "none",
        )


def _mix(text: str) -> dict[str, float]:
    weigh = number("--mix")
    mix: dict[str, float] = {}
    for part in text.split(","):
        hook, equals, weight = part.strip().partition("=")
        if not equals:
            raise UsageError(f"--mix: {part.strip()!r} has no weight; write it like on_publish=10,on_deliver=5")
        if one_of("--mix", hook, HOOKS) in mix:
            raise UsageError(f"--mix: {hook} is given twice")
        mix[hook] = weigh(weight)
    if not any(mix.values()):
        raise UsageError("--mix: all weights are 0; give one hook at least a weight above 0")
    return mix


def _generation(text: str) -> Generation:
    return cast(Generation, int(one_of("--generation", text, ("2024", "2026"))))


class Options(UsageOptions):
    """The options of ``twistd mqhooks-simulate``."""

    synopsis = "[options]"
    longdesc = "Sends what VerneMQ's events sidecar would send, for clients that it makes up."
    optParameters = [
        ["target", None, "tcp:127.0.0.1:8890", "Where to connect: a Twisted client endpoint."],
        ["connections", None, 100, "How many connections to spread the events over.", whole("--connections", 1, 10_000)],
        ["clients", None, 1000, "How many MQTT clients to make up.", whole("--clients", 1, 10_000_000)],
        ["rate", None, 100.0, "Events a second; 0 for as fast as the peer reads.", number("--rate")],
        ["count", None, 0, "How many events to send before it ends; 0 for no end.", whole("--count", 0)],
        ["mix", None, None, "Weights by hook, like on_publish=10,on_deliver=5. What an event needs comes too.", _mix],
        ["seed", None, None, "Any text; the same text gives the same events, but for their time."],
        ["payload-size", None, 100, "How many bytes a payload has.", whole("--payload-size", 0, (256 << 20) - 1)],
        ["generation", None, 2026, "Which of VerneMQ's encoders to be, 2024 or 2026.", _generation],
    ]


def makeService(options: Options) -> Simulator:
    """
    Make the simulator that the options ask for. It ends the process once all is sent.

    :raises SystemExit: when the target is not an endpoint.
    """
    from twisted.internet import reactor

    try:
        return from_options(reactor, options)
    except ConfigError as error:
        raise SystemExit(f"mqhooks-simulate: {error}") from None


def from_options(reactor: Any, options: Options) -> Simulator:
    """
    Make the simulator that the options ask for.

    :param reactor: connects, tells the time, and is stopped once all is sent.
    :raises mqhooks.errors.ConfigError: when the target is not an endpoint.
    """
    target = options["target"]
    try:
        endpoint = clientFromString(reactor, target)
    except Exception as error:
        raise ConfigError(f"not a client endpoint ({error}); write it like tcp:127.0.0.1:8890", "--target", target) from error
    seed = options["seed"] or f"{SystemRandom().getrandbits(32):08x}"
    model = SessionModel(
        Random(seed),
        time.time_ns,
        clients=options["clients"],
        mix=options["mix"] or DEFAULT_MIX,
        payload_size=options["payload-size"],
        generation=options["generation"],
    )
    pool = ConnectionPool(reactor, endpoint, target, options["connections"], Random(seed))
    events = islice(model, options["count"] or None)
    simulator = Simulator(reactor, pool, events, Random(seed), rate=options["rate"], when_done=reactor.stop)
    simulator.log.info("sending to {target} with --seed {seed}", target=target, seed=seed)
    return simulator


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _head(message: type[Message]) -> bytes:
    url = (TYPE_URL + message.DESCRIPTOR.full_name).encode()
    return b"\x0a" + _varint(len(url)) + url + b"\x12"


_HEADS = {message: _head(message) for message in HOOKS.values()}
