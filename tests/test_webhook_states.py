"""
The state diagrams of docs/states.svg, walked at random from outside the sink: what it is given, what it sends, how that ends.

:class:`Model` follows each delivery and the breaker, and fails on every transition that the diagrams don't have.
"""

import re
from pathlib import Path
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryTimeout
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.webhook.settings import BatchSettings, RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.webhooks import URL, FakeTransport, publish, respond

DELIVERY = {
    ("pending", "in flight"),
    ("in flight", "delivered"),
    ("in flight", "dead"),
    ("in flight", "parked"),
    ("in flight", "pending"),
    ("parked", "in flight"),
}

BREAKER = {
    ("closed", "open"),
    ("open", "probing"),
    ("open", "closed"),
    ("probing", "open"),
    ("probing", "closed"),
}

LANE = {
    ("empty", "lingering"),
    ("empty", "held"),
    ("empty", "in flight"),
    ("lingering", "held"),
    ("lingering", "in flight"),
    ("held", "lingering"),
    ("held", "in flight"),
    ("in flight", "empty"),
    ("in flight", "lingering"),
    ("in flight", "held"),
}
"""Seen where there is one lane."""

SETTLED = ("delivered", "dead")

INITIAL, MAXIMUM, MAX_AGE, RETRY_AFTER = 1.0, 8.0, 60.0, 20.0

IN_A_ROW = 10

DIAGRAMS = {"delivery": DELIVERY, "breaker": BREAKER, "lane": LANE}

RESULTS = {
    "delivered": lambda: 204,
    "failing": lambda: 503,
    "busy": lambda: respond(429, [(b"Retry-After", b"%d" % RETRY_AFTER)]),
    "refused": lambda: 400,
    "unauthorized": lambda: 401,
    "redirected": lambda: 302,
    "no connection": lambda: ConnectFailed("refused"),
    "timeout": lambda: DeliveryTimeout("late"),
    "broken": lambda: ConnectionBroken("lost"),
    "garbage": lambda: BadAnswer("not HTTP"),
}

WHOLESALE = ("unauthorized", "redirected")


class Model:
    """
    A sink, and what is known of it from outside.

    :ivar state: of each delivery, by its number.
    :ivar seen: the transitions that have happened, by the name of their diagram.
    """

    def __init__(self, *, pool_size=3, max_attempts=0, refusals="hold", batch=None):
        self.clock, self.transport, self.outbox = Clock(), FakeTransport(), MemoryOutbox()
        self.pool_size, self.max_attempts, self.refusals, self.batch = pool_size, max_attempts, refusals, batch
        retry = RetrySettings(
            initial=INITIAL, maximum=MAXIMUM, jitter=0, max_age=MAX_AGE, max_attempts=max_attempts, refusals=refusals
        )
        self.sink = WebhookSink(
            self.clock,
            WebhookSettings(
                "w", URL, (Rule("on_message_publish"),), pool_size=pool_size, merge_window=0, retry=retry, batch=batch
            ),
            self.outbox,
            self.transport,
            random=Random(0),
            now=self.clock.seconds,
        )
        self.sink.startService()
        self.seen = {"delivery": set(), "breaker": set(), "lane": set()}
        self.state, self.client, self.accepted, self.attempts, self.due = {}, {}, {}, {}, {}
        self.clients = {}
        self.breaker, self.lane, self.limit = "closed", "empty", pool_size
        self.requests = []
        self.ended = 0
        # Since the last 2xx: requests that failed and that were refused wholesale, and by whom.
        self.failures = self.refused = 0
        self.newly_failing, self.ever_failing = set(), set()
        self.refused_requests, self.refused_clients = set(), set()

    # What is done to the sink.

    def receive(self, clients, *, long=False):
        events = []
        for client in clients:
            number = len(self.state)
            self.state[number], self.client[number], self.attempts[number] = "pending", client, 0
            self.accepted[number] = int(self.clock.seconds() * 1000)
            self.clients.setdefault(client, []).append(number)
            events.append(publish(client, number, **({"username": "u" * 5000} if long else {})))
        assert self.sink.receive(events) is None
        self.look()

    def advance(self, seconds):
        self.clock.advance(seconds)
        self.look()

    def pause(self):
        self.sink.pause()
        self.look()

    def resume(self):
        self.sink.resume()
        self.look()

    def end(self, kind, index=0):
        """End an attempt that is in flight."""
        numbers = self.numbers(self.transport.in_flight[index])
        self.requests.remove(numbers)
        self.note(kind, numbers)
        self.transport.end(RESULTS[kind](), index)
        self.check_opening(kind)
        answered = kind == "refused" or (kind in WHOLESALE and self.refusals == "bury")
        if (kind == "delivered" or (answered and not self.refusing)) and self.limit < self.pool_size:
            self.limit = min(self.pool_size, max(1, self.limit * 2))
        self.settle(kind, numbers)
        self.look()

    def end_all(self, kind):
        """End what is in flight, and not what follows."""
        for _ in range(len(self.transport.in_flight)):
            self.end(kind)

    # What is seen of it.

    @staticmethod
    def numbers(attempt):
        return [int(body["payload"]) for body in attempt.bodies]

    @property
    def down(self):
        return self.sink.down_since is not None

    def move(self, number, state):
        self.go("delivery", self.state[number], state)
        self.state[number] = state

    def go(self, diagram, before, after):
        assert (before, after) in DIAGRAMS[diagram], f"{diagram}: {before} -> {after}"
        self.seen[diagram].add((before, after))

    def note(self, kind, numbers):
        """Note what an attempt says about the endpoint, before the sink hears of it."""
        self.refusing = self.sink.refusing
        self.ended += len(numbers)
        first = self.client[numbers[0]]
        if kind == "delivered":
            self.failures = self.refused = 0
            self.newly_failing.clear()
            self.refused_requests.clear()
            self.refused_clients.clear()
        elif kind in WHOLESALE and self.refusals == "hold":
            self.refused += 1
            self.refused_requests.add(numbers[0])
            self.refused_clients.update(self.client[number] for number in numbers)
            self.ever_failing.update(self.client[number] for number in numbers)
        elif kind in ("refused", *WHOLESALE):
            # An answer: the endpoint works, unless it refuses everything.
            self.newly_failing.clear()
        else:
            self.failures += 1
            if first not in self.ever_failing:
                self.newly_failing.add(first)
            self.ever_failing.add(first)

    def check_opening(self, kind):
        """The breaker opens when it must, and never without a reason."""
        if kind == "no connection":
            assert self.down
        if len(self.newly_failing) >= IN_A_ROW:
            assert self.down
        if min(len(self.refused_requests), len(self.refused_clients)) >= IN_A_ROW:
            assert self.down
            assert self.sink.refusing
        if self.down and self.breaker == "closed":
            enough = self.failures >= IN_A_ROW or self.refused >= IN_A_ROW
            assert kind == "no connection" or enough, f"opened after {kind}"

    def settle(self, kind, numbers):
        """Work out what the end of an attempt has to mean for each of its deliveries."""
        now = self.clock.seconds()
        if kind == "delivered":
            return [self.move(number, "delivered") for number in numbers]
        held = kind in WHOLESALE and self.refusals == "hold" and self.down
        if kind in ("refused", *WHOLESALE) and not held:
            # Several are tried again in halves.
            return [self.move(number, "dead" if len(numbers) == 1 else "pending") for number in numbers]
        for number in numbers:
            self.attempts[number] += not self.down
        delay = min(INITIAL * 2 ** (max(*(self.attempts[number] for number in numbers), 1) - 1), MAXIMUM)
        for number in numbers:
            tired = 0 < self.max_attempts <= self.attempts[number]
            if tired or now - self.accepted[number] / 1000 > MAX_AGE:
                self.move(number, "dead")
            elif kind == "no connection":
                self.move(number, "pending")
            else:
                self.move(number, "parked")
                self.due[number] = now + (max(delay, RETRY_AFTER) if kind == "busy" else delay)
        return None

    def look(self):
        """See what the sink has done, and check that it may."""
        before, self.breaker = self.breaker, self.breaker_now()
        if self.breaker != before:
            self.go("breaker", before, self.breaker)
            self.limit = {"open": 0, "probing": 1}.get(self.breaker, self.limit)
        requests = [self.numbers(attempt) for attempt in self.transport.in_flight]
        started = [numbers for numbers in requests if numbers not in self.requests]
        self.requests = requests
        if started:
            assert not self.sink.paused
            assert self.breaker != "open"
            assert len(requests) <= self.limit
        for numbers in started:
            for number in numbers:
                self.check_turn(number, numbers)
                self.move(number, "in flight")
        lane = self.lane_now()
        if lane != self.lane:
            self.go("lane", self.lane, lane)
            self.lane = lane
        self.check()

    def breaker_now(self):
        if not self.down:
            return "closed"
        return "probing" if self.sink.next_probe is None else "open"

    def lane_now(self):
        if self.pool_size > 1 or not (self.requests or self.ready()):
            return "empty"
        if self.requests:
            return "in flight"
        return "held" if self.sink.paused or self.breaker == "open" else "lingering"

    def check_turn(self, number, together):
        """A delivery is sent when all earlier ones of its client are settled, and not before its backoff is over."""
        for earlier in self.clients[self.client[number]]:
            if earlier == number:
                break
            assert self.state[earlier] in SETTLED or earlier in together, f"{number} overtakes {earlier}"
        if self.state[number] == "parked":
            assert self.clock.seconds() >= self.due[number] - 1e-6

    def check(self):
        in_flight = [number for numbers in self.requests for number in numbers]
        assert len(self.requests) <= self.pool_size
        assert sorted(in_flight) == sorted(self.having("in flight"))
        owners = [{self.client[number] for number in numbers} for numbers in self.requests]
        assert len(set().union(*owners)) == sum(map(len, owners)), "two requests of one client"
        counts, counters = self.outbox.counts, self.sink.counters
        assert counts.accepted == len(self.state)
        assert counts.accepted == counts.delivered + counts.dead + counts.dropped + counts.pending
        assert counts.delivered == len(self.having("delivered")) == counters.arrived
        assert counts.dead == len(self.having("dead")) == self.outbox.letters
        assert counters.attempts == counters.arrived + counters.refused + counters.failed == self.ended
        if self.breaker == "closed" and not self.sink.paused and self.batch is None and not in_flight:
            assert not self.ready(), "nothing is sent, though something may be"

    def having(self, state):
        return [number for number, each in self.state.items() if each == state]

    def ready(self):
        """The first of each client that might be sent."""
        heads = [next((n for n in numbers if self.state[n] not in SETTLED), None) for numbers in self.clients.values()]
        now = self.clock.seconds()
        return [head for head in heads if head is not None and (self.state[head] != "parked" or now > self.due[head] + 1e-6)]

    def drain(self):
        """The endpoint recovers: everything that is not dead arrives."""
        # Where everything was buried, the breaker stays open until there is something to probe with.
        self.receive(["somebody"])
        self.resume()
        for _ in range(100):
            while self.transport.in_flight:
                self.end("delivered")
            self.advance(MAXIMUM + RETRY_AFTER)
            if not self.outbox.counts.pending:
                break
        assert set(self.state.values()) <= set(SETTLED), self.state
        assert self.breaker == "closed"


CLIENTS = st.sampled_from([f"client-{number}" for number in range(16)])


class States(RuleBasedStateMachine):
    """Does to a sink what a broker, an endpoint and an operator may do."""

    @initialize(
        pool_size=st.sampled_from([1, 2, 5, 12]),
        max_attempts=st.sampled_from([0, 2]),
        refusals=st.sampled_from(["hold", "bury"]),
        batch=st.sampled_from([None, None, BatchSettings(size=4, linger=0.05), BatchSettings(size=3, linger=0)]),
    )
    def begin(self, **options):
        self.model = Model(**options)

    @rule(clients=st.lists(CLIENTS, min_size=1, max_size=6), long=st.booleans())
    def events_come(self, clients, long):
        self.model.receive(clients, long=long)

    @rule()
    def everybody_publishes(self):
        self.model.receive([f"client-{number}" for number in range(16)])

    @precondition(lambda self: self.model.transport.in_flight)
    @rule(kind=st.sampled_from(sorted(RESULTS)), index=st.integers(0, 11))
    def attempt_ends(self, kind, index):
        self.model.end(kind, index % len(self.model.transport.in_flight))

    @precondition(lambda self: self.model.transport.in_flight)
    @rule(kind=st.sampled_from(sorted(RESULTS)), count=st.integers(2, 20))
    def attempts_end_alike(self, kind, count):
        for _ in range(count):
            if self.model.transport.in_flight:
                self.model.end(kind)

    @rule(seconds=st.sampled_from([0, 0.05, 0.5, 1, 1, 2, 8, 70]))
    def time_passes(self, seconds):
        self.model.advance(seconds)

    @rule()
    def operator_pauses(self):
        self.model.pause()

    @rule()
    def operator_resumes(self):
        self.model.resume()

    @invariant()
    def counts_add_up(self):
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self):
        if hasattr(self, "model"):
            self.model.drain()


class Walks(SynchronousTestCase):
    def test_only_the_transitions_of_the_diagrams_happen(self):
        run_state_machine_as_test(States, settings=settings(deadline=None, max_examples=150, stateful_step_count=30))

    def refusing(self, **options):
        """Give a model whose endpoint refuses everything, after the first probe was sent."""
        model = Model(**options)
        model.receive([f"client-{number}" for number in range(16)])
        for _ in range(10):
            model.end("redirected")
        model.advance(1)
        return model

    def test_pause_ends_after_a_refusal_that_is_the_deliverys_own(self):
        model = self.refusing(pool_size=1)
        model.pause()
        model.end("refused")
        model.resume()
        model.drain()

    def test_success_after_a_refusal_that_is_the_deliverys_own(self):
        model = self.refusing(pool_size=5)
        model.end("refused")
        model.end("delivered")
        model.drain()

    def test_breaker_stays_open_while_there_is_nothing_to_probe_with(self):
        model = Model()
        model.receive(["client"])
        model.advance(MAX_AGE + 1)
        model.end("no connection")
        assert (model.having("dead"), model.breaker) == ([0], "open")
        model.advance(MAXIMUM)
        assert model.breaker == "probing"
        model.drain()

    def test_every_transition_of_the_diagrams_happens(self):
        model = Model(pool_size=3, max_attempts=2)
        model.receive(["a", "b", "c", "d", "e", "f", "g"])
        model.end("delivered")
        model.end("refused")
        model.end("failing")
        model.advance(1)
        model.end_all("no connection")
        model.advance(1)
        model.end("timeout")
        model.advance(8)
        model.end("delivered")
        model.receive(["a", "b", "c", "d", "e", "f", "g"])
        model.end("delivered")
        model.end("no connection")
        model.end("delivered")
        model.drain()
        self.assertEqual((model.seen["delivery"], model.seen["breaker"]), (DELIVERY, BREAKER))

    def test_every_transition_of_a_lane_happens(self):
        model = Model(pool_size=1, batch=BatchSettings(size=2, linger=0.1))
        model.receive(["a"])
        model.pause()
        model.resume()
        model.advance(0.1)
        model.receive(["b"])
        model.end("delivered")
        model.advance(0.1)
        model.end("delivered")
        model.receive(["c", "d"])
        model.receive(["e", "f"])
        model.pause()
        model.end("delivered")
        model.resume()
        model.end("delivered")
        model.pause()
        model.receive(["g"])
        model.drain()
        self.assertEqual(model.seen["lane"], LANE)

    def test_ten_clients_that_fail_open_the_breaker(self):
        model = Model(pool_size=12)
        model.receive([f"client-{number}" for number in range(12)])
        for number in range(IN_A_ROW):
            self.assertEqual((number, model.breaker), (number, "closed"))
            model.end("failing")
        self.assertEqual(model.breaker, "open")
        model.drain()

    def test_ten_refusals_of_everything_open_the_breaker(self):
        model = Model(pool_size=12)
        model.receive([f"client-{number}" for number in range(12)])
        for number in range(IN_A_ROW):
            self.assertEqual((number, model.breaker), (number, "closed"))
            model.end("unauthorized")
        self.assertEqual((model.breaker, len(model.having("dead"))), ("open", IN_A_ROW - 1))
        model.drain()

    def test_documentation_has_the_same_transitions(self):
        text = (Path(__file__).parent.parent / "docs" / "architecture.rst").read_text()
        told = {name: set() for name in DIAGRAMS}
        for name, before, after in re.findall(r"^   \* - (delivery|breaker|lane)\n     - (\S.*?) → (\S.*)$", text, re.M):
            # An outbox in memory drops nothing.
            if after != "dropped":
                told[name].add((before, after))
        self.assertEqual(told, DIAGRAMS)
