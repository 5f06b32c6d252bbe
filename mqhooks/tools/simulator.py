"""
A simulator of VerneMQ: makes up clients and sends their events, in any of the ways that VerneMQ has.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from random import Random, SystemRandom
from typing import Any, cast
from urllib.parse import urlsplit

from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.usage import UsageError

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, Event, Message
from mqhooks.sources.sidecar.decode import decode
from mqhooks.sources.sidecar.encode import encode
from mqhooks.support.options import CommandOptions, number, one_of, speed, whole
from mqhooks.support.output import occupy
from mqhooks.support.redact import hide_url
from mqhooks.tools.calls import CallPool, call_of
from mqhooks.tools.model import DEFAULT_MIX, Generation, SessionModel
from mqhooks.tools.pool import SenderPool
from mqhooks.tools.replay import Capture, Replay
from mqhooks.tools.sender import CHUNK, Pool, Sender, framed

TICK = 0.01
"""Seconds between two writes when the rate is limited."""

CATCH_UP = 1.0
"""After a stall, the most events that are sent at once, in seconds' worth at the rate."""


def frame(message: Message | None) -> bytes:
    """
    Encode one hook call as VerneMQ does.

    :param message: of one of the classes in :data:`mqhooks.events.HOOKS`; ``None`` for a call that the encoder does not know.
    :returns: the length and a ``google.protobuf.Any``; just the length 0 for ``None``.
    """
    if message is None:
        return framed(b"")
    return framed(encode(message))


class Simulator(Sender):
    """
    Sends events at a steady rate.

    :param clock: for the pace.
    :param pool: not yet opened.
    :param events: the events to send; at the end the connections are closed.
    :param random: picks connections.
    :param rate: events per second; 0 for as fast as the peer reads.
    :param when_done: called when all events are sent and all connections are closed.
    :param encode: turns a frame into the item that the pool sends; ``None`` for a frame that it cannot send.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        pool: Pool,
        events: Iterator[Event],
        random: Random,
        *,
        rate: float = 0.0,
        when_done: Callable[[], object] = lambda: None,
        encode: Callable[[bytes], Any] = framed,
    ) -> None:
        super().__init__(clock, pool, random, when_done)
        self._events = events
        self._rate = rate
        self._encode = encode
        self._credit = 1.0
        self._credited: float | None = None

    def _send(self) -> float:
        self._write(min(self._allowance(), CHUNK))
        return self._pause()

    def _write(self, count: int) -> None:
        written = 0
        try:
            while written < count and self._pool.ready:
                event = next(self._events)
                written += 1
                item = self._encode(b"" if event.message is None else encode(event.message))
                if item is not None:
                    self._put(event.hook, item)
        finally:
            self._credit -= written

    def _allowance(self) -> int:
        if not self._rate:
            return CHUNK
        now = self._clock.seconds()
        if self._credited is not None:
            self._credit += (now - self._credited) * self._rate
            self._credit = min(self._credit, max(1.0, self._rate * CATCH_UP))
        self._credited = now
        return int(self._credit)

    def _pause(self) -> float:
        if not self._rate or self._credit >= 1.0:
            return 0.0
        return max(TICK, (1.0 - self._credit) / self._rate)


_PLAIN = re.compile("[!-~]*")

TARGETS = {"sidecar": "tcp:127.0.0.1:8890", "webhooks": "http://127.0.0.1:8892/vernemq", "grpc": "tcp:127.0.0.1:8893"}
"""The address that mqhooks listens on by default, for each way to send."""


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


class Options(CommandOptions):
    """The options of ``twistd mqhooks-simulate``."""

    synopsis = "[options]"
    longdesc = "Sends events as VerneMQ does, of made-up clients or from a capture."
    optParameters = [
        ["via", None, "sidecar", f"How to send them: {', '.join(TARGETS)}.", lambda text: one_of("--via", text, TARGETS)],
        [
            "target",
            None,
            None,
            "Where to send them: a Twisted client endpoint, or the URL of webhooks. [default: where mqhooks listens]",
        ],
        ["connections", None, 100, "How many connections to spread the events over.", whole("--connections", 1, 10_000)],
        ["clients", None, 1000, "How many MQTT clients to make up.", whole("--clients", 1, 10_000_000)],
        ["rate", None, 100.0, "Events per second; 0 for as fast as the peer reads.", number("--rate")],
        ["count", None, 0, "How many events to send; 0 for no limit.", whole("--count", 0)],
        ["mix", None, None, "Weights by hook, like on_publish=10,on_deliver=5. Events that others require are added.", _mix],
        ["seed", None, None, "Any text; the same text gives the same events, apart from the times."],
        ["payload-size", None, 100, "Bytes per payload.", whole("--payload-size", 0, (256 << 20) - 1)],
        ["replay", None, None, "Replay this capture file instead of made-up events."],
        ["speed", None, None, "How fast to replay: 10x, 0.5x, or max. [default: 1x]", speed("--speed")],
        ["generation", None, 2026, "Which of VerneMQ's encoders to simulate, 2024 or 2026.", _generation],
    ]

    def postOptions(self) -> None:
        """
        Check the options against each other, and complete them.

        :raises UsageError: when options contradict each other.
        """
        self["target"] = self["target"] or TARGETS[self["via"]]
        if self["speed"] is not None and self["replay"] is None:
            raise UsageError("--speed goes with --replay FILE; for made-up events use --rate")


def makeService(options: Options) -> Sender:
    """
    Make the simulator that the options describe. It ends the process once everything is sent.

    :raises SystemExit: when the target is not an endpoint, or there is no capture to replay.
    """
    occupy()
    from twisted.internet import reactor

    try:
        return from_options(reactor, options)
    except ConfigError as error:
        raise SystemExit(f"mqhooks-simulate: {error}") from None


def from_options(reactor: Any, options: Options) -> Sender:
    """
    Make the simulator that the options describe.

    :param reactor: connects, tells the time, and is stopped once everything is sent.
    :raises mqhooks.errors.ConfigError: when the target is not an endpoint, or there is no capture to replay.
    """
    via, target = options["via"], options["target"]
    seed = options["seed"] or f"{SystemRandom().getrandbits(32):08x}"
    pool = _pool(reactor, via, target, options["connections"], Random(seed))
    if options["replay"] is not None:
        return _replay(reactor, options, pool, Random(seed))
    model = SessionModel(
        Random(seed),
        time.time_ns,
        clients=options["clients"],
        mix=options["mix"] or DEFAULT_MIX,
        payload_size=options["payload-size"],
        generation=options["generation"],
    )
    events = islice(model, options["count"] or None)
    simulator = Simulator(
        reactor, pool, events, Random(seed), rate=options["rate"], when_done=reactor.stop, encode=_encoder(via)
    )
    simulator.log.info("sending to {target} with --seed {seed}", target=_shown(options), seed=seed)
    return simulator


def _encoder(via: str) -> Callable[[bytes], Any]:
    """Return the function that encodes a frame for a way to send; it returns ``None`` for hooks that this way lacks."""
    if via == "webhooks":
        return lambda frame: call_of(decode(frame)) if frame else None
    if via == "grpc":
        from mqhooks.tools.grpccalls import message_of

        return message_of
    return framed


def _pool(reactor: Any, via: str, target: str, size: int, random: Random) -> Pool:
    if via == "webhooks":
        if not _is_url(target):
            raise ConfigError(f"not a URL; write it like {TARGETS[via]}", "--target", hide_url(target))
        return CallPool(reactor, target, size)
    try:
        endpoint = clientFromString(reactor, target)
    except Exception as error:
        raise ConfigError(f"not a client endpoint ({error}); write it like {TARGETS[via]}", "--target", target) from error
    if via == "sidecar":
        return SenderPool(reactor, endpoint, target, size, random)
    try:
        from mqhooks.tools.grpccalls import connections
    except ImportError:
        raise ConfigError("needs h2, which is not installed: run pip install h2", "--via grpc") from None
    return SenderPool(reactor, endpoint, target, size, random, connections(reactor, size))


def _is_url(text: str) -> bool:
    """Return whether a text is a URL that requests can be sent to."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and _PLAIN.fullmatch(text) is not None
        )
    except ValueError:
        return False


def _shown(options: Options) -> str:
    """Return the target without credentials."""
    target: str = options["target"]
    return hide_url(target) if options["via"] == "webhooks" else target


def _replay(reactor: Any, options: Options, pool: Pool, random: Random) -> Replay:
    try:
        capture = Capture(options["replay"])
    except ConfigError as error:
        raise ConfigError(str(error), "--replay") from None
    pace = options["speed"] or 1.0
    records = islice(capture.records(), options["count"] or None)
    encode = _encoder(options["via"])
    replay = Replay(reactor, pool, records, random, speed=pace, when_done=reactor.stop, encode=encode)
    replay.log.info(
        "replaying {count} frames over {span:.1f} s from {path} to {target}, {how}",
        target=_shown(options),
        count=capture.count,
        span=capture.span,
        path=options["replay"],
        how="as fast as the peer reads" if pace == inf else f"at {pace:g}x",
    )
    return replay
