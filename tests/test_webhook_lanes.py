"""Each client's deliveries in order, many in flight at a time, one or several in a request."""

from collections import defaultdict
from itertools import cycle
from operator import attrgetter
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.errors import OutboxError
from mqhooks.webhook.lanes import Lanes
from mqhooks.webhook.outcomes import AGAIN, ARRIVED, DEAD, HALVE, PARK
from mqhooks.webhook.settings import BatchSettings


class LaneCase(SynchronousTestCase):
    """Lanes over an outbox that is a dictionary; attempts end as told."""

    def make(self, count=1, batch=None):
        self.clock = Clock()
        self.in_flight, self.finished, self.unreadable = [], [], []
        self.outbox, self.shelved = {}, set()
        self.answers, self.late = lambda: "now", []
        self.lanes = Lanes(
            count,
            lambda batch, settle: self.in_flight.append((batch, settle)),
            self,
            self.unreadable.append,
            key=attrgetter("client"),
            clock=self.clock,
            batch=batch,
        )
        self.addCleanup(self.lanes.stop)
        return self.lanes

    def delivery(self, client, number, size=0):
        place = len(self.outbox) + 1
        self.outbox[place] = (f"{client}-{number}", client, 0, b"x" * size)
        return Delivery(*self.outbox[place], place=place)

    def deliveries(self, *names, size=0):
        return [self.delivery(*name.split("-"), size=size) for name in names]

    def shelve(self, places):
        self.shelved |= set(places)

    def recall(self, places):
        # As an outbox on disk does: it makes the deliveries anew.
        self.shelved -= set(places)
        found = [Delivery(*self.outbox[place], place=place) for place in places if place in self.outbox]
        answer = self.answers()
        if answer == "fails":
            self.shelved |= set(places)
            raise OutboxError("cannot be read")
        if answer == "later":
            self.late.append((Deferred(), found))
            return self.late[-1][0]
        return found

    def names(self):
        return [[one.id for one in batch] for batch, _ in self.in_flight]

    def end(self, *fates, index=0):
        """End an attempt: all of it with one fate, or each of its deliveries with its own."""
        batch, settle = self.in_flight.pop(index)
        self.finished += [one.id for one in batch]
        if len(fates) > 1:
            settle(list(fates))
        else:
            settle(fates[0] if fates else ARRIVED)

    def end_all(self):
        while self.in_flight:
            self.end()

    def assert_empty(self):
        lanes = self.lanes
        self.assertEqual((lanes.parked, lanes.load, lanes.size, lanes.in_flight, lanes.runs), (0, 0, 0, 0, 0))


class LanesTests(LaneCase):
    """A delivery in each request."""

    def test_one_after_the_other(self):
        self.make().push(self.deliveries("a-1", "b-1", "a-2"))
        for _ in range(3):
            self.assertEqual(len(self.in_flight), 1)
            self.end()
        self.assertEqual(self.finished, ["a-1", "b-1", "a-2"])
        self.assert_empty()

    def test_a_retry_parks_its_client_only(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2", "b-1", "a-3"))
        self.end(PARK)
        self.end()
        self.assertEqual(self.finished, ["a-1", "b-1"])
        self.assertEqual((self.in_flight, lanes.load, lanes.parked), ([], 0, 1))
        lanes.push(self.deliveries("a-4", "b-2"))
        lanes.unpark("a")
        self.end_all()
        self.assertEqual(self.finished[2:], ["b-2", "a-1", "a-2", "a-3", "a-4"])
        self.assert_empty()

    def test_what_is_pushed_while_parked_waits_behind_what_stands_in_the_lane(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "b-1", "a-2"))
        self.end(PARK)
        lanes.push(self.deliveries("a-3"))
        self.end()
        lanes.unpark("a")
        self.end_all()
        self.assertEqual(self.finished, ["a-1", "b-1", "a-1", "a-2", "a-3"])

    def test_a_dead_letter_lets_its_client_go_on(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2"))
        self.end(PARK)
        lanes.unpark("a")
        self.end(DEAD)
        self.end_all()
        self.assertEqual(self.finished, ["a-1", "a-1", "a-2"])
        self.assert_empty()

    def test_lanes_are_independent(self):
        lanes = self.make(8)
        lanes.push(self.deliveries(*(f"c{number}-1" for number in range(100))))
        self.assertEqual((len(self.in_flight), lanes.in_flight, lanes.load), (8, 8, 100))

    def test_results_that_come_at_once_do_not_nest(self):
        sent = []
        lanes = self.make()

        def send(batch, settle):
            sent.extend(batch)
            settle(ARRIVED)

        lanes.send = send
        lanes.push([Delivery(str(number), "a", 0, b"") for number in range(100_000)])
        self.assertEqual(len(sent), 100_000)

    def test_the_limit(self):
        lanes = self.make(4)
        lanes.limit = 0
        lanes.push(self.deliveries(*(f"c{number}-1" for number in range(20))))
        self.assertEqual(self.in_flight, [])
        lanes.limit = 2
        lanes.admit()
        self.assertEqual(lanes.in_flight, 2)
        for _ in range(20):
            self.end()
            self.assertLessEqual(lanes.in_flight, 2)
        self.assertEqual(len(self.finished), 20)
        self.assert_empty()

    def test_with_few_requests_each_lane_has_its_turn(self):
        lanes = self.make(4)
        lanes.limit = 1
        lanes.push(self.deliveries(*(f"c{number}-{turn}" for turn in range(5) for number in range(20))))
        for _ in range(20):
            self.end()
        turns = [crc32(name.partition("-")[0].encode()) % 4 for name in self.finished]
        for begin in range(0, 20, 4):
            self.assertEqual(set(turns[begin : begin + 4]), {0, 1, 2, 3})
        self.end_all()
        self.assertEqual(len(self.finished), 100)
        self.assert_empty()

    def test_again_is_the_first_to_be_tried(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "b-1", "a-2"))
        lanes.limit = 0
        self.end(AGAIN)
        self.assertEqual((self.in_flight, lanes.load), ([], 3))
        lanes.limit = 1
        lanes.admit()
        self.end_all()
        self.assertEqual(self.finished[1:], ["a-1", "b-1", "a-2"])

    def test_again_of_a_parked_client(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2"))
        self.end(PARK)
        lanes.unpark("a")
        lanes.limit = 0
        self.end(AGAIN)
        lanes.push(self.deliveries("a-3"))
        lanes.limit = 1
        lanes.admit()
        self.end_all()
        self.assertEqual(self.finished[2:], ["a-1", "a-2", "a-3"])
        self.assert_empty()

    def test_of_what_is_parked_nothing_is_in_memory(self):
        lanes = self.make()
        lanes.push(self.deliveries(*(f"a-{number}" for number in range(1, 201)), size=100))
        self.end(PARK)
        self.assertEqual((lanes.parked, lanes.load, lanes.size), (1, 0, 0))
        lanes.push(self.deliveries("b-1"))
        self.end()
        lanes.unpark("a")
        for _ in range(200):
            self.assertEqual(lanes.size, 100)
            self.end()
        self.assertEqual(self.finished[2:], [f"a-{number}" for number in range(1, 201)])
        self.assert_empty()

    def test_how_often_a_delivery_was_tried_is_not_forgotten(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2"))
        for attempt in range(1, 5):
            (one,) = self.in_flight[0][0]
            one.attempts += 1
            self.assertEqual(one.attempts, attempt)
            self.end(PARK)
            lanes.unpark("a")
        self.end()
        self.assertEqual(self.in_flight[0][0][0].attempts, 0)

    def test_parked_deliveries_that_the_outbox_has_dropped(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2", "a-3", "a-4"))
        self.end(PARK)
        for place in (1, 2, 4):
            del self.outbox[place]
        lanes.unpark("a")
        self.end()
        self.assertEqual((self.finished, self.in_flight), (["a-1", "a-3"], []))
        lanes.push(self.deliveries("a-5"))
        self.end()
        self.assert_empty()

    def test_parked_deliveries_that_cannot_be_read_now(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2"))
        self.end(PARK)
        recall, self.recall = self.recall, self.fail_to_recall
        for count in (1, 2):
            lanes.unpark("a")
            self.assertEqual((self.in_flight, lanes.parked, self.unreadable), ([], 1, ["a"] * count))
        lanes.push(self.deliveries("b-1", "a-3"))
        self.end()
        self.recall = recall
        lanes.unpark("a")
        self.end_all()
        self.assertEqual(self.finished, ["a-1", "b-1", "a-1", "a-2", "a-3"])
        self.assert_empty()

    def fail_to_recall(self, places):
        raise OutboxError("disk I/O error")

    def test_parked_deliveries_that_come_back_later(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2"))
        self.end(PARK)
        answers = []
        recall = self.recall

        def later(places):
            answers.append((Deferred(), recall(places)))
            return answers[-1][0]

        self.recall = later
        lanes.unpark("a")
        lanes.push(self.deliveries("b-1", "a-3"))
        self.end()
        self.assertEqual((self.in_flight, len(answers)), ([], 1))
        answers[0][0].errback(OutboxError("no leader"))
        self.assertEqual(self.unreadable, ["a"])
        lanes.unpark("a")
        for number in (1, 2, 3):
            answer, found = answers[-1]
            answer.callback(found)
            self.assertEqual(self.names(), [[f"a-{number}"]])
            self.end()
        self.assert_empty()

    def test_shelving_makes_room_at_once(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2", "b-1", "a-3", size=10))
        lanes.limit = 0
        self.end(PARK)
        self.assertEqual((lanes.load, lanes.size), (3, 30))
        lanes.shelve()
        self.assertEqual((lanes.load, lanes.size), (1, 10))
        lanes.limit = 1
        lanes.admit()
        lanes.unpark("a")
        self.end_all()
        self.assertEqual(self.finished, ["a-1", "b-1", "a-1", "a-2", "a-3"])
        self.assert_empty()

    def test_newest_and_preferred(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "b-1", "c-1", "b-2", "d-1"))
        lanes.limit = 0
        self.assertIsNone(lanes.newest(lambda client: False), "the lane is busy")
        self.end(AGAIN)
        self.assertEqual(lanes.newest(lambda client: False), "d")
        newest = lanes.newest({"a", "d"}.__contains__)
        self.assertEqual(newest, "b")
        self.assertIsNone(lanes.newest(set("abcd").__contains__))
        self.assertTrue(lanes.waits_beside({"a", "b", "c"}))
        self.assertFalse(lanes.waits_beside(set("abcd")))
        lanes.prefer(newest)
        lanes.limit = 1
        lanes.admit()
        self.end_all()
        self.assertEqual(self.finished[1:], ["b-1", "a-1", "c-1", "b-2", "d-1"])

    def test_newest_and_preferred_among_parked_ones(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "b-1", "c-1", "b-2", "c-2"))
        self.end(PARK)
        self.end(PARK)
        lanes.limit = 0
        self.end(PARK)
        lanes.shelve()
        for key in "abc":
            lanes.unpark(key)
        self.assertEqual(lanes.newest({"c"}.__contains__), "b")
        self.assertIsNone(lanes.newest(set("abc").__contains__))
        self.assertFalse(lanes.waits_beside(set("abc")))
        lanes.prefer("b")
        lanes.limit = 1
        lanes.admit()
        self.end_all()
        self.assertEqual(self.finished[3:], ["b-1", "a-1", "c-1", "b-2", "c-2"])
        self.assert_empty()


class Gate:
    """Lets what it is told pass."""

    def __init__(self):
        self.shut = set()
        self.inside = []

    def enter(self, deliveries):
        entered = [each for each in deliveries if each.client not in self.shut]
        self.inside += entered
        return entered

    def leave(self, deliveries):
        for delivery in deliveries:
            self.inside.remove(delivery)


class GateTests(LaneCase):
    """What may not be sent is forgotten, and holds nothing up."""

    def make(self, count=1, batch=None):
        super().make(count, batch)
        self.gate = self.lanes.gate = Gate()
        return self.lanes

    def test_what_may_not_be_sent_is_forgotten(self):
        lanes = self.make()
        self.gate.shut = {"a"}
        lanes.push(self.deliveries("a-1", "b-1", "a-2", "b-2"))
        (batch, settle), *more = self.in_flight
        self.assertEqual(([each.id for each in batch], more, lanes.load), (["b-1"], [], 3))
        self.assertEqual(self.gate.inside, batch)
        settle(ARRIVED)
        self.assertEqual([each.id for each in self.in_flight[1][0]], ["b-2"])
        self.in_flight[1][1](ARRIVED)
        self.assertEqual((lanes.load, lanes.size, lanes.in_flight, self.gate.inside), (0, 0, 0, []))

    def test_the_rest_of_a_batch_is_sent(self):
        lanes = self.make(batch=BatchSettings(size=10, linger=0))
        self.gate.shut = {"a"}
        lanes.push(self.deliveries("a-1", "b-1", "a-2", "b-2"))
        self.assertEqual([each.id for each in self.in_flight[0][0]], ["b-1", "b-2"])
        self.assertEqual(lanes.load, 2)

    def test_a_parked_key_is_not_stuck(self):
        lanes = self.make()
        lanes.push(self.deliveries("a-1", "a-2", "b-1"))
        self.in_flight[0][1](PARK)
        self.in_flight[1][1](ARRIVED)
        self.gate.shut = {"a"}
        lanes.unpark("a")
        self.assertEqual((lanes.load, lanes.in_flight, lanes.parked), (0, 0, 0))
        self.gate.shut = set()
        lanes.push(self.deliveries("a-3"))
        self.assertEqual([each.id for each in self.in_flight[2][0]], ["a-3"])


class BatchTests(LaneCase):
    """Several deliveries in a request."""

    def make(self, count=1, **values):
        return super().make(count, BatchSettings(**{"size": 3} | values))

    def test_a_full_batch_goes_at_once(self):
        self.make().push(self.deliveries("a-1", "a-2", "a-3"))
        self.assertEqual(self.names(), [["a-1", "a-2", "a-3"]])

    def test_others_are_waited_for(self):
        lanes = self.make(linger=0.05)
        lanes.push([self.delivery("a", 1, 10)])
        self.clock.advance(0.04)
        lanes.push([self.delivery("b", 1, 10)])
        self.assertEqual(self.names(), [])
        self.clock.advance(0.01)
        self.assertEqual(self.names(), [["a-1", "b-1"]])
        self.assertEqual((lanes.load, lanes.size, lanes.in_flight), (2, 20, 1))
        self.end()
        self.assertEqual((lanes.load, lanes.size, lanes.in_flight), (0, 0, 0))

    def test_nothing_is_waited_for(self):
        lanes = self.make(linger=0)
        lanes.push([self.delivery("a", 1, 10), self.delivery("a", 2, 10)])
        self.assertEqual(self.names(), [["a-1", "a-2"]])
        lanes.push([self.delivery("a", 3, 10)])
        self.end()
        self.assertEqual(self.names(), [["a-3"]])

    def test_a_batch_has_a_limit_of_bytes(self):
        lanes = self.make(max_bytes=25)
        lanes.push(
            [self.delivery("a", 1, 10), self.delivery("a", 2, 10), self.delivery("a", 3, 10), self.delivery("a", 4, 1000)]
        )
        self.assertEqual(self.names(), [["a-1", "a-2"]])
        self.end()
        self.clock.advance(1)
        self.end()
        self.clock.advance(1)
        self.assertEqual(self.names(), [["a-4"]])

    def test_what_was_parked_keeps_to_the_limit_of_bytes(self):
        lanes = self.make(max_bytes=25)
        lanes.push(self.deliveries("a-1", "b-1", "c-1", "d-1", "e-1", size=10))
        for _ in range(3):
            self.clock.advance(1)
            self.end(PARK)
        lanes.limit = 0
        for client in "abcde":
            lanes.unpark(client)
        lanes.limit = 1
        lanes.admit()
        for names in (["a-1", "b-1"], ["c-1", "d-1"], ["e-1"]):
            self.assertEqual(self.names(), [names])
            self.end()
            self.clock.advance(1)
        self.assert_empty()

    def test_a_batch_that_is_refused_is_tried_in_halves(self):
        lanes = self.make(size=4)
        lanes.push(self.deliveries("a-1", "b-1", "c-1", "d-1"))
        lanes.push([self.delivery("e", 1, 10)])
        self.end(HALVE)
        self.assertEqual(self.names(), [["a-1", "b-1"]])
        self.end(HALVE)
        self.assertEqual(self.names(), [["a-1"]])
        self.end()
        self.assertEqual(self.names(), [["b-1"]])
        self.end()
        self.assertEqual(self.names(), [["c-1", "d-1"]])
        self.end()
        self.clock.advance(1)
        self.assertEqual(self.names(), [["e-1"]])

    def test_a_client_that_is_parked_between_the_halves(self):
        lanes = self.make(size=4)
        lanes.push([self.delivery("a", 1, 10), self.delivery("b", 1, 10), self.delivery("a", 2, 10), self.delivery("c", 1, 10)])
        self.end(HALVE)
        self.end(PARK, ARRIVED)
        self.assertEqual(self.names(), [["c-1"]])
        self.end()
        self.assertEqual(lanes.parked, 1)
        lanes.unpark("a")
        self.clock.advance(1)
        self.assertEqual(self.names(), [["a-1"]])
        self.end()
        self.clock.advance(1)
        self.assertEqual(self.names(), [["a-2"]])
        self.end()
        self.assert_empty()

    def test_what_was_held_up_goes_again_in_the_same_parts(self):
        lanes = self.make(size=4)
        lanes.push(self.deliveries("a-1", "b-1", "c-1", "d-1"))
        self.end(HALVE)
        lanes.limit = 0
        self.end(AGAIN, AGAIN)
        self.assertEqual(self.names(), [])
        lanes.limit = 1
        lanes.admit()
        self.assertEqual(self.names(), [["a-1", "b-1"]])


class OrderTests(LaneCase):
    """Whatever fails, a client's deliveries arrive in order."""

    @settings(max_examples=400, deadline=None)
    @given(st.integers(1, 2), st.integers(1, 4), st.lists(st.integers(0, 3), max_size=30), st.data())
    def test_order_holds_whatever_fails(self, count, size, clients, data):
        lanes = self.make(count, BatchSettings(size=size, linger=data.draw(st.sampled_from([0, 0.05])), max_bytes=150))
        numbers, arrived = defaultdict(int), defaultdict(list)
        waiting, parked = [], set()
        # Drawn beforehand: hypothesis must not raise anything within a Deferred's callback.
        answers = cycle([*data.draw(st.lists(st.sampled_from(["now", "later", "fails"]), max_size=20)), "now"])
        self.answers = lambda: next(answers)
        for client in clients:
            numbers[client] += 1
            waiting.append(self.delivery(str(client), numbers[client], data.draw(st.sampled_from([1, 100]))))
        for _ in range(2000):
            step = data.draw(st.integers(0, 9))
            if step == 0 and waiting:
                lanes.push([waiting.pop(0)])
            elif step in (8, 9):
                lanes.shorten(data.draw(st.integers(0, 2)))
            elif step == 6 and self.late:
                answered, found = self.late.pop()
                answered.callback(found)
            elif step == 7 and self.unreadable:
                lanes.reread(self.unreadable.pop())
            elif step == 1 and parked:
                lanes.unpark(parked.pop())
            elif step == 2 and data.draw(st.booleans()):
                lanes.limit = data.draw(st.integers(0, count))
                lanes.admit()
            elif step == 3:
                lanes.shelve()
            elif step == 5 and lanes.newest(lambda _: False):
                lanes.prefer(lanes.newest(lambda _: False))
                lanes.admit()
            elif self.in_flight:
                index = data.draw(st.integers(0, len(self.in_flight) - 1))
                batch, settle = self.in_flight.pop(index)
                self.assertLessEqual(len(batch), size)
                self.assertLessEqual(sum(len(one.body) for one in batch), 150)
                self.assertFalse(self.shelved & {one.place for one in batch}, "what is sent must not be dropped")
                self.assertFalse(parked & {one.client for one in batch})
                fate = data.draw(st.sampled_from([ARRIVED, ARRIVED, PARK, AGAIN, HALVE]))
                if fate is HALVE and len(batch) > 1:
                    settle(HALVE)
                    continue
                fates = [fate if fate in (PARK, AGAIN) and data.draw(st.booleans()) else ARRIVED for _ in batch]
                # What failed together failed from there on: the endpoint takes a client's events in order, or none.
                held = set()
                for place, one in enumerate(batch):
                    if fates[place] is not ARRIVED:
                        held.add(one.client)
                    elif one.client in held:
                        fates[place] = fate
                    if fates[place] is ARRIVED:
                        arrived[one.client].append(one.id)
                if fate is PARK:
                    parked |= held
                settle(fates)
            elif waiting:
                lanes.push([waiting.pop(0)])
            elif parked:
                lanes.unpark(parked.pop())
            elif self.late:
                answered, found = self.late.pop()
                answered.callback(found)
            elif self.unreadable:
                lanes.reread(self.unreadable.pop())
            else:
                self.answers = lambda: "now"
                lanes.limit = count
                lanes.admit()
                self.clock.advance(1)
                if not (self.in_flight or self.late or self.unreadable):
                    break
        for client, number in numbers.items():
            self.assertEqual(arrived[str(client)], [f"{client}-{index}" for index in range(1, number + 1)])
        self.assert_empty()
