"""The simulator: sessions that make sense, sent as VerneMQ's pool sends them."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory
from twisted.internet.testing import EventLoggingObserver, MemoryReactorClock, StringTransport
from twisted.logger import globalLogPublisher
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS, M5_HOOKS, Event, Publish
from mqhooks.sources.sidecar.decode import decode
from mqhooks.support.options import duration, number, share, whole
from mqhooks.tools.model import DEFAULT_MIX, SessionModel
from mqhooks.tools.pool import PoolConnection, SenderPool
from mqhooks.tools.simulator import Options, Simulator, frame, from_options, makeService
from tests.ports import kept_port
from tests.processes import Twistd
from tests.waiting import until

NOW = 1_800_000_000_000_000_000

mixes = st.dictionaries(st.sampled_from(list(HOOKS)), st.floats(1.0, 5.0), min_size=1)
models = st.builds(
    lambda seed, clients, mix, generation: SessionModel(
        random.Random(seed), lambda: NOW, clients=clients, mix=mix, generation=generation
    ),
    st.integers(0, 1000),
    st.integers(1, 30),
    mixes,
    st.sampled_from([2024, 2026]),
)


def model(seed=1, **options):
    return SessionModel(random.Random(str(seed)), lambda: NOW, **options)


class Follower:
    """Follows one client through its events, knowing only MQTT."""

    def __init__(self):
        self.state = "absent"
        self.session = ""
        self.resuming = False
        self.filters: set[str] = set()
        self.unacknowledged: list[tuple[str, int]] = []

    def follow(self, event: Event):
        if self.resuming and event.hook != "on_register_failed":
            # A session that is not woken up after its client was offline is a new one.
            self.resuming = False
            if event.hook != "on_client_wakeup":
                self.filters.clear()
        getattr(self, event.hook)(event.message)
        session = getattr(event.message, "session_id", "")
        assert session == self.session or event.hook == "on_register_failed", event

    def expect(self, *states: str):
        assert self.state in states, self.state

    def on_register(self, message):
        self.expect("absent", "offline")
        self.resuming = self.state == "offline"
        self.state = "online"
        self.session = message.session_id
        self.unacknowledged.clear()

    def on_register_failed(self, message):
        assert message is None or message.reason > 0

    def on_client_wakeup(self, message):
        self.expect("online")

    def on_publish(self, message):
        self.expect("online")
        assert message.client_id in message.topic

    def on_subscribe(self, message):
        self.expect("online")
        granted = {info.topic for info in message.topics if info.qos != 128}
        assert granted
        self.filters |= granted

    def on_unsubscribe(self, message):
        self.expect("online")
        assert self.filters.issuperset(message.topics)
        self.filters.difference_update(message.topics)

    def on_deliver(self, message):
        self.expect("online")
        self.receive(message)
        if message.qos:
            self.unacknowledged.append((message.topic, message.qos))

    def on_delivery_complete(self, message):
        self.expect("online")
        self.unacknowledged.remove((message.topic, message.qos))

    def on_offline_message(self, message):
        self.expect("offline")
        self.receive(message)

    def on_message_drop(self, message):
        self.expect("online", "offline")
        self.receive(message)
        assert message.matched_acl.name
        assert not message.matched_acl.pattern

    def receive(self, message):
        prefixes = {name.split("+")[0].split("#")[0] for name in self.filters}
        assert any(message.topic.startswith(prefix) for prefix in prefixes), (message.topic, self.filters)

    def on_client_offline(self, message):
        self.expect("online")
        assert message.reason > 0
        self.state = "offline"

    def on_client_gone(self, message):
        self.expect("online")
        assert message.reason > 0
        self.state = "absent"
        self.filters.clear()

    def on_session_expired(self, message):
        self.expect("offline")
        self.state = "absent"
        self.filters.clear()


class SessionModelTests(SynchronousTestCase):
    @settings(max_examples=60)
    @given(models)
    def test_sessions_make_sense(self, events: SessionModel):
        followers: dict[str, Follower] = {}
        for event in islice(events, 300):
            followers.setdefault(event.client_id, Follower()).follow(event)

    @settings(max_examples=30)
    @given(mixes, st.integers(1, 30))
    def test_what_has_a_weight_occurs(self, mix: dict[str, float], clients: int):
        seen = {event.hook for event in islice(model(clients=clients, mix=mix), 8000)}
        self.assertLessEqual(set(mix), seen)

    def test_all_hooks_occur_in_the_default_mix(self):
        self.assertEqual(set(DEFAULT_MIX), set(HOOKS))
        for clients in (1, 1000):
            seen = {event.hook for event in islice(model(clients=clients), 5000)}
            self.assertEqual(seen, set(HOOKS))

    def test_all_clients_occur(self):
        seen = {event.client_id for event in islice(model(clients=10, mix={"on_publish": 1}), 500)}
        self.assertEqual(len(seen), 10)

    def test_weights(self):
        seen = Counter(event.hook for event in islice(model(clients=5, mix={"on_publish": 9, "on_register_failed": 1}), 5000))
        self.assertEqual(set(seen), {"on_publish", "on_register_failed", "on_register"})
        self.assertLess(abs(seen["on_publish"] / seen["on_register_failed"] - 9), 1.5)

    @settings(max_examples=30)
    @given(st.text(), st.integers(1, 1000))
    def test_same_seed_same_frames(self, seed: str, clients: int):
        first, second = ([frame(e.message) for e in islice(model(seed, clients=clients), 200)] for _ in range(2))
        self.assertEqual(first, second)

    def test_other_seed_other_frames(self):
        first, second = ([frame(e.message) for e in islice(model(seed), 20)] for seed in ("a", "b"))
        self.assertNotEqual(first, second)

    @settings(max_examples=30)
    @given(st.lists(st.integers(-5, 5), min_size=100, max_size=100), st.sampled_from([NOW, 999_999_999, -10, 0]))
    def test_timestamps_rise_whatever_the_clock_does(self, steps: list[int], start: int):
        clock = iter(steps)
        events = SessionModel(random.Random(1), lambda: start + next(clock), clients=3)
        last = 0
        for event in islice(events, len(steps)):
            self.assertGreater(event.timestamp, last)
            last = event.timestamp
            self.assertEqual(event.message.timestamp, event.timestamp)

    def test_payloads_count(self):
        counted: Counter[str] = Counter()
        numbers = []
        for event in islice(model(clients=20, payload_size=100), 3000):
            payload = getattr(event.message, "payload", None)
            if payload is None:
                continue
            self.assertEqual(len(payload), 100)
            fields = json.loads(payload)
            counted[event.client_id] += 1
            self.assertEqual((fields["client"], fields["seq"]), (event.client_id, counted[event.client_id]))
            numbers.append(fields["n"])
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
        self.assertGreater(len(numbers), 1000)

    def test_a_payload_is_whole_however_small_its_size(self):
        for event in islice(model(clients=1, payload_size=0, mix={"on_publish": 1}), 1, 10):
            self.assertEqual(json.loads(event.message.payload)["client"], event.client_id)

    def test_registers_vary(self):
        registers = [e.message for e in islice(model(clients=100), 500) if e.hook == "on_register"]
        self.assertTrue(all(m.peer_addr.startswith("10.") and 32768 <= m.peer_port < 61000 for m in registers))
        self.assertTrue(any(m.user_properties for m in registers))
        self.assertTrue(any(not m.user_properties for m in registers))
        self.assertTrue(any(not m.username for m in registers))
        self.assertEqual(len({m.session_id for m in registers}), len(registers))

    def test_the_encoder_of_2024(self):
        seen = set()
        for event in islice(model(clients=50, generation=2024), 5000):
            seen.add(event.hook)
            if event.hook == "on_register_failed":
                self.assertIsNone(event.message)
                continue
            self.assertEqual(getattr(event.message, "session_id", ""), "")
            if event.hook != "on_register":
                self.assertFalse(getattr(event.message, "user_properties", None))
            if event.hook in ("on_client_offline", "on_client_gone"):
                self.assertEqual((event.message.username, event.username), ("", ""))
        self.assertEqual(seen, set(HOOKS))

    def test_messages_of_some_clients_have_user_properties(self):
        seen = {hook: set() for hook in M5_HOOKS}
        for event in islice(model(clients=8), 3000):
            if event.hook in seen:
                seen[event.hook].add(bool(event.message.user_properties))
        self.assertEqual(seen, {hook: {True, False} for hook in M5_HOOKS})

    def test_the_encoder_of_2026(self):
        for event in islice(model(clients=8), 3000):
            if event.hook != "on_register_failed":
                self.assertEqual(len(event.message.session_id), 36)
            if event.hook in ("on_client_offline", "on_client_gone"):
                self.assertTrue(event.message.username)


class FrameTests(SynchronousTestCase):
    def test_every_hook_is_decoded_to_the_same_event(self):
        for event in islice(model(clients=20), 3000):
            encoded = frame(event.message)
            self.assertEqual(int.from_bytes(encoded[:4], "big"), len(encoded) - 4)
            self.assertEqual(decode(encoded[4:]), event)

    def test_lengths_of_several_bytes(self):
        for size in (0, 1, 100, 127, 128, 16_000, 16_383, 16_384, 3_000_000):
            message = Publish(payload=b"x" * size, client_id="c")
            self.assertEqual(decode(frame(message)[4:]).message, message)

    def test_what_the_encoder_does_not_know_is_an_empty_frame(self):
        self.assertEqual(frame(None), b"\0\0\0\0")


class OptionTests(SynchronousTestCase):
    def test_defaults(self):
        options = Options()
        options.parseOptions([])
        self.assertEqual(
            {key: options[key] for key in ("target", "connections", "clients", "rate", "count", "payload-size", "generation")},
            {
                "target": "tcp:127.0.0.1:8890",
                "connections": 100,
                "clients": 1000,
                "rate": 100.0,
                "count": 0,
                "payload-size": 100,
                "generation": 2026,
            },
        )

    def test_values(self):
        options = Options()
        options.parseOptions(["--mix", "on_publish=10, on_deliver=0.5", "--generation=2024", "--rate=0.5", "--count=7"])
        self.assertEqual(options["mix"], {"on_publish": 10.0, "on_deliver": 0.5})
        self.assertEqual((options["generation"], options["rate"], options["count"]), (2024, 0.5, 7))

    def test_mistakes_are_one_line_that_names_the_option(self):
        mistakes = {
            ("--mix", "on_publsh=1"): "--mix: 'on_publsh' is unknown; did you mean on_publish?",
            ("--mix", "zzz=1"): f"--mix: 'zzz' is unknown; known are {', '.join(HOOKS)}",
            ("--mix", "on_publish"): "--mix: 'on_publish' has no weight; write it like on_publish=10,on_deliver=5",
            ("--mix", "on_publish=-1"): "--mix: '-1' is not a number of 0 or more",
            ("--mix", "on_publish=1,on_publish=2"): "--mix: on_publish is given twice",
            ("--mix", "on_publish=0"): "--mix: all weights are 0; give one hook at least a weight above 0",
            ("--connections", "0"): "--connections: '0' is not a whole number from 1 to 10000",
            ("--clients", "many"): "--clients: 'many' is not a whole number from 1 to 10000000",
            ("--count", "-1"): "--count: '-1' is not a whole number of 0 or more",
            ("--rate", "nan"): "--rate: 'nan' is not a number of 0 or more",
            ("--payload-size", "268435456"): "--payload-size: '268435456' is not a whole number from 0 to 268435455",
            ("--generation", "2025"): "--generation: '2025' is unknown; did you mean 2026?",
        }
        for given_options, message in mistakes.items():
            error = self.assertRaises(UsageError, Options().parseOptions, list(given_options))
            self.assertIn(str(error), {message, message.replace("mean 2026", "mean 2024")})

    def test_a_target_that_is_none(self):
        options = Options()
        options.parseOptions(["--target", "tpc:localhost:1"])
        error = self.assertRaises(ConfigError, from_options, MemoryReactorClock(), options)
        self.assertEqual(
            str(error),
            "--target: tpc:localhost:1: not a client endpoint (Unknown endpoint type: 'tpc'); write it like tcp:127.0.0.1:8890",
        )
        ended = self.assertRaises(SystemExit, makeService, options)
        self.assertEqual(str(ended), f"mqhooks-simulate: {error}")

    @given(st.integers(0, 10**6))
    def test_durations(self, milliseconds: int):
        parse = duration("--delay")
        for text in (f"{milliseconds}ms", str(milliseconds), f"{milliseconds / 1000:.3f}s"):
            self.assertAlmostEqual(parse(text), milliseconds / 1000)

    @given(st.integers(0, 100))
    def test_shares(self, percent: int):
        self.assertEqual(share("--fail")(f"{percent}%"), percent / 100)

    @given(st.text(max_size=8))
    def test_any_text_is_a_value_or_a_usage_error(self, text: str):
        for parse in (duration("--x"), share("--x"), number("--x"), whole("--x", 0)):
            try:
                value = parse(text)
            except UsageError as error:
                self.assertTrue(str(error).startswith(f"--x: {text!r} is not a"))
            else:
                self.assertGreaterEqual(value, 0)

    def test_mistaken_durations_and_shares(self):
        for text in ("", "s", "ms", "5m", "-1s", "1e3"):
            self.assertRaises(UsageError, duration("--delay"), text)
        for text in ("", "%", "10", "101%", "-1%"):
            self.assertRaises(UsageError, share("--fail"), text)


def observe(case):
    """
    Observe the log.

    :returns: a function that gives the lines of a level.
    """
    observer = EventLoggingObserver.createWithCleanup(case, globalLogPublisher)

    def lines(level):
        return [
            e["log_format"].format(**e) for e in observer if e["log_level"].name == level and "mqhooks" in e["log_namespace"]
        ]

    return lines


class SenderPoolTests(SynchronousTestCase):
    def setUp(self):
        self.log = observe(self)
        self.reactor = MemoryReactorClock()
        endpoint = clientFromString(self.reactor, "tcp:127.0.0.1:8890")
        self.pool = SenderPool(self.reactor, endpoint, "the sidecar", 3, random.Random(1))
        self.woken = 0
        self.pool.wake = self.wake

    def wake(self):
        self.woken += 1

    def connect(self, attempt):
        protocol = self.reactor.tcpClients[attempt][2].buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    def refuse(self, attempt):
        self.reactor.tcpClients[attempt][2].clientConnectionFailed(None, Failure(ConnectError(string="nobody listens")))

    def test_a_connection_is_a_push_producer(self):
        verifyObject(IPushProducer, PoolConnection(self.pool))

    def test_opened_when_each_was_tried(self):
        opened = self.pool.open()
        self.connect(0)
        self.connect(1)
        self.assertNoResult(opened)
        self.refuse(2)
        self.successResultOf(opened)
        self.assertEqual((len(self.pool.ready), self.woken), (2, 1))
        self.assertEqual(self.log("warn"), [])

    def test_a_peer_that_is_away_is_told_once(self):
        opened = self.pool.open()
        refused = 0
        for _ in range(60):
            while refused < len(self.reactor.tcpClients):
                self.refuse(refused)
                refused += 1
            self.reactor.advance(1)
        self.successResultOf(opened)
        attempts = len(self.reactor.tcpClients)
        self.assertGreater(attempts, 15)
        self.assertLess(attempts, 60)
        self.assertEqual(
            self.log("warn"),
            ["no connection to the sidecar (An error occurred while connecting: nobody listens); retrying"],
        )
        self.reactor.advance(12)
        self.connect(len(self.reactor.tcpClients) - 1)
        self.assertEqual(self.log("info"), ["connected to the sidecar"])
        self.assertEqual(len(self.pool.ready), 1)

    def test_what_does_not_read_is_not_ready(self):
        self.pool.open()
        (_, transport), _ = self.connect(0), self.connect(1)
        producer = transport.producer
        producer.pauseProducing()
        producer.pauseProducing()
        self.assertEqual(len(self.pool.ready), 1)
        producer.resumeProducing()
        producer.resumeProducing()
        self.assertEqual((len(self.pool.ready), self.woken), (2, 1))

    def test_one_that_is_lost_is_opened_again(self):
        self.pool.open()
        protocol, _ = self.connect(0)
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.pool.ready, self.pool.lost), ([], 1))
        self.assertEqual(len(self.reactor.tcpClients), 3)
        self.reactor.advance(2)
        self.assertEqual(len(self.reactor.tcpClients), 4)
        self.connect(3)
        self.assertEqual((len(self.pool.ready), self.woken), (1, 2))

    def test_closing(self):
        self.pool.open()
        protocol, transport = self.connect(0)
        self.refuse(1)
        closed = self.pool.close()
        self.assertEqual((transport.disconnecting, transport.producer, self.pool.ready), (True, None, []))
        self.assertNoResult(closed)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(closed)
        self.reactor.advance(60)
        self.assertEqual((len(self.reactor.tcpClients), self.pool.lost), (3, 0))

    def test_aborting(self):
        self.pool.open()
        _, transport = self.connect(0)
        self.pool.close()
        self.assertFalse(transport.disconnected)
        self.pool.abort()
        self.assertTrue(transport.disconnected)


class PacingTests(SynchronousTestCase):
    def setUp(self):
        self.reactor = MemoryReactorClock()
        self.pool = SenderPool(self.reactor, clientFromString(self.reactor, "tcp:h:1"), "peer", 1, random.Random(1))

    def simulator(self, rate: float):
        simulator = Simulator(self.reactor, self.pool, model(), random.Random(1), rate=rate)
        simulator.startService()
        self.protocol = self.reactor.tcpClients[0][2].buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)
        return simulator

    def advance(self, seconds: float, step: float = 0.01):
        self.reactor.pump([step] * round(seconds / step))

    def test_rate(self):
        for rate in (0.5, 3.0, 100.0, 5000.0):
            self.setUp()
            simulator = self.simulator(rate)
            self.advance(10)
            self.assertLess(abs(simulator.sent.total() - rate * 10), rate * 0.02 + 1.5)

    def test_a_stall_is_not_made_up_for_at_once(self):
        simulator = self.simulator(100.0)
        self.advance(1)
        self.transport.producer.pauseProducing()
        before = simulator.sent.total()
        self.advance(60)
        self.assertEqual(simulator.sent.total(), before)
        self.transport.producer.resumeProducing()
        self.advance(1)
        self.assertLess(simulator.sent.total() - before, 210)
        self.assertGreater(simulator.sent.total() - before, 150)

    def test_nothing_turns_while_no_connection_is_ready(self):
        self.simulator(1000)
        self.advance(0.05)
        self.transport.producer.pauseProducing()
        self.advance(0.02)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stopping_waits_for_a_peer_that_does_not_read_with_a_bound(self):
        simulator = self.simulator(1000)
        stopped = simulator.stopService()
        self.advance(4.9)
        self.assertFalse(self.transport.disconnected)
        self.assertNoResult(stopped)
        self.advance(0.2)
        self.assertTrue(self.transport.disconnected)
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class Reader(Int32StringReceiver):
    MAX_LENGTH = 1 << 24
    factory: Peer

    def connectionMade(self):
        self.frames = 0
        self.factory.readers.append(self)
        if self.factory.asleep:
            self.transport.pauseProducing()

    def stringReceived(self, string: bytes):
        self.frames += 1
        self.factory.received(self, string)

    def connectionLost(self, reason: Failure):
        self.factory.ended.append(reason)
        if len(self.factory.ended) == len(self.factory.readers):
            self.factory.all_ended.callback(None)


class Peer(Factory):
    """What the simulator connects to."""

    noisy = False
    protocol = Reader

    def __init__(self, *, asleep: bool = False):
        self.asleep = asleep
        self.readers: list[Reader] = []
        self.ended: list[Failure] = []
        self.all_ended: Deferred[None] = Deferred()
        self.events: list[Event] = []
        self.empty = 0

    def received(self, reader: Reader, string: bytes):
        if string:
            self.events.append(decode(string))
        else:
            self.empty += 1


async def listen(case, peer):
    """Listen on loopback until the test case ends; returns the endpoint to connect to."""
    port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1:backlog=256").listen(peer)
    case.addCleanup(port.stopListening)
    return f"tcp:127.0.0.1:{port.getHost().port}"


class SimulatorTests(TestCase):
    timeout = 120

    def build(self, target: str, *, count: int, connections: int, rate: float = 0, **options):
        self.done: Deferred[None] = Deferred()
        self.pool = SenderPool(reactor, clientFromString(reactor, target), target, connections, random.Random(1))
        return Simulator(
            reactor,
            self.pool,
            islice(model(**options), count),
            random.Random(1),
            rate=rate,
            when_done=lambda: self.done.callback(None),
        )

    async def test_all_arrive_over_all_connections_which_close(self):
        log = observe(self)
        peer = Peer()
        simulator = self.build(await listen(self, peer), count=5000, connections=20, generation=2024)
        simulator.startService()
        await self.done
        await peer.all_ended
        self.assertEqual(len(peer.readers), 20)
        self.assertGreater(min(reader.frames for reader in peer.readers), 100)
        self.assertTrue(all(reason.check(ConnectionDone) for reason in peer.ended))
        expected = list(islice(model(generation=2024), 5000))
        self.assertEqual(simulator.sent, Counter(event.hook for event in expected))
        self.assertEqual(peer.empty, simulator.sent["on_register_failed"])
        self.assertEqual(
            sorted(peer.events, key=lambda event: event.timestamp), [event for event in expected if event.message is not None]
        )
        [line] = log("info")
        self.assertIn("sent 5000 events over 20 connections in ", line)
        self.assertIn(f"on_publish {simulator.sent['on_publish']}", line)
        self.assertNotIn("lost", line)
        await simulator.stopService()
        self.assertEqual(len(log("info")), 1)

    async def test_one_connection_keeps_the_order(self):
        peer = Peer()
        self.build(await listen(self, peer), count=2000, connections=1).startService()
        await self.done
        await peer.all_ended
        self.assertEqual(peer.events, list(islice(model(), 2000)))

    async def test_a_peer_that_does_not_read_is_waited_for(self):
        peer = Peer(asleep=True)
        simulator = self.build(await listen(self, peer), count=1000, connections=2, payload_size=100_000, mix={"on_publish": 1})
        simulator.startService()
        await until(lambda: simulator.sent and not self.pool.ready)
        sent = simulator.sent.total()
        # The sockets' buffers take some, and there is nothing else that could grow.
        self.assertLess(sent, 500)
        self.assertNoResult(self.done)
        for reader in peer.readers:
            reader.transport.resumeProducing()
        await self.done
        await peer.all_ended
        self.assertEqual(len(peer.events), 1000)

    async def test_others_go_on_when_a_connection_is_lost(self):
        log = observe(self)
        peer = Peer()
        simulator = self.build(await listen(self, peer), count=3000, connections=3, rate=20_000)

        def lose(reader: Reader, string: bytes):
            Peer.received(peer, reader, string)
            if len(peer.events) == 500:
                reader.transport.abortConnection()

        peer.received = lose
        simulator.startService()
        await self.done
        self.assertEqual(simulator.sent.total(), 3000)
        self.assertIn("connections lost: 1", log("info")[-1])
        await peer.all_ended
        self.assertGreater(len(peer.events), 1500)

    async def test_stopping_closes_the_connections(self):
        peer = Peer()
        simulator = self.build(await listen(self, peer), count=10**9, connections=5, rate=1000)
        simulator.startService()
        await until(lambda: len(peer.events) >= 50)
        await simulator.stopService()
        await peer.all_ended
        self.assertEqual(len(peer.events) + peer.empty, simulator.sent.total())
        self.assertNoResult(self.done)

    async def test_nobody_there(self):
        log = observe(self)
        target = f"tcp:127.0.0.1:{kept_port(self)}"
        simulator = self.build(target, count=10, connections=10)
        simulator.startService()
        await until(lambda: log("warn"))
        [line] = log("warn")
        self.assertRegex(line, rf"^no connection to {target} \(Connection was refused by other side.*[^.]\); retrying$")
        await simulator.stopService()


class PluginTests(TestCase):
    timeout = 120

    def test_twistd_lists_it(self):
        twistd = Twistd(self, "--help")
        return twistd.until(r"mqhooks-simulate +Stand in for VerneMQ").addCallback(lambda _: twistd.ended)

    async def test_it_runs_until_all_is_sent(self):
        peer = Peer()
        target = await listen(self, peer)
        twistd = Twistd(
            self,
            "mqhooks-simulate",
            "--target",
            target,
            "--count=500",
            "--rate=0",
            "--connections=10",
            "--seed=x",
            "--clients=20",
        )
        result = await twistd.ended
        self.assertEqual((result.exitCode, twistd.stderr), (0, ""))
        await peer.all_ended
        self.assertEqual(len(peer.events), 500)
        self.assertEqual(len(peer.readers), 10)
        self.assertIn(f"sending to {target} with --seed x", twistd.stdout)
        self.assertIn("sent 500 events over 10 connections", twistd.stdout)
        expected = Counter(event.hook for event in islice(model("x", clients=20), 500))
        self.assertEqual(Counter(event.hook for event in peer.events), expected)

    async def test_it_stops_when_told(self):
        peer = Peer()
        twistd = Twistd(self, "mqhooks-simulate", "--target", await listen(self, peer), "--connections=3", "--rate=200")
        await until(lambda: len(peer.events) >= 20)
        twistd.process.signalProcess("TERM")
        await twistd.ended
        await peer.all_ended
        self.assertIn(f"sent {len(peer.events)} events over 3 connections", twistd.stdout)
        self.assertNotIn("Traceback", twistd.stdout + twistd.stderr)

    async def test_a_bad_option(self):
        twistd = Twistd(self, "mqhooks-simulate", "--mix=on_publich=1")
        result = await twistd.ended
        self.assertEqual(result.exitCode, 1)
        self.assertEqual(twistd.stderr, "mqhooks-simulate: --mix: 'on_publich' is unknown; did you mean on_publish?\n")
        self.assertEqual(twistd.stdout, "")

    async def test_a_bad_target(self):
        twistd = Twistd(self, "mqhooks-simulate", "--target=localhost")
        result = await twistd.ended
        self.assertEqual(result.exitCode, 1)
        self.assertEqual(twistd.stderr.count("\n"), 1)
        self.assertIn("mqhooks-simulate: --target: localhost: not a client endpoint", twistd.stderr)
