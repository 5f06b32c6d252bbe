"""Each client's deliveries in order, many at a time."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import OutboxError
from mqhooks.outbox.delivery import Delivery
from mqhooks.webhook import lanes as lanes_module
from mqhooks.webhook.lanes import Lanes, Verdict


def delivery(client, number):
    return Delivery(f"{client}-{number}", client, 0, b"")


class Transport:
    """Collects attempts, and ends them when told."""

    def __init__(self):
        self.under_way = []
        self.order = []

    def send(self, delivery, done):
        self.under_way.append((delivery, done))

    def end(self, index, result):
        _, done = self.under_way.pop(index)
        done(result)


class LanesTests(SynchronousTestCase):
    """One lane and several."""

    def make(self, count):
        self.transport = Transport()
        self.finished = []

        def finished(delivery, result):
            self.finished.append((delivery.id, result))
            if isinstance(result, Verdict):
                return result
            return Verdict.DONE if result else Verdict.PARK

        self.outbox = {}
        self.lanes = Lanes(count, self.transport.send, finished, lambda places: [self.outbox[place] for place in places])
        return self.lanes

    def test_one_after_the_other(self):
        lanes = self.make(1)
        lanes.push([delivery("a", 1), delivery("b", 1), delivery("a", 2)])
        for _ in range(3):
            self.assertEqual(len(self.transport.under_way), 1)
            self.transport.end(0, True)
        self.assertEqual(self.finished, [("a-1", True), ("b-1", True), ("a-2", True)])
        self.assertEqual((lanes.load, lanes.under_way), (0, 0))

    def test_a_retry_parks_its_client_only(self):
        lanes = self.make(1)
        lanes.push([delivery("a", 1), delivery("a", 2), delivery("b", 1), delivery("a", 3)])
        self.transport.end(0, False)
        self.transport.end(0, True)
        self.assertEqual(self.finished, [("a-1", False), ("b-1", True)])
        self.assertEqual((self.transport.under_way, lanes.load), ([], 0))
        lanes.push([delivery("a", 4), delivery("b", 2)])
        lanes.unpark("a")
        for _ in range(5):
            self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished[2:]], ["b-2", "a-1", "a-2", "a-3", "a-4"])
        self.assertEqual((lanes.parked, lanes.clients, lanes.load), (0, 0, 0))

    def test_what_is_pushed_while_parked_waits_behind_what_stands_in_the_lane(self):
        lanes = self.make(1)
        lanes.push([delivery("a", 1), delivery("b", 1), delivery("a", 2)])
        self.transport.end(0, False)
        lanes.push([delivery("a", 3)])
        self.transport.end(0, True)
        lanes.unpark("a")
        for _ in range(3):
            self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished], ["a-1", "b-1", "a-1", "a-2", "a-3"])

    def test_lanes_are_independent(self):
        lanes = self.make(8)
        lanes.push([delivery(f"c{number}", 1) for number in range(100)])
        self.assertEqual((len(self.transport.under_way), lanes.under_way, lanes.load), (8, 8, 100))

    def test_results_that_come_at_once_do_not_nest(self):
        sent = []

        def send(delivery, done):
            sent.append(delivery.id)
            done(True)

        lanes = Lanes(1, send, lambda delivery, result: Verdict.DONE, list)
        lanes.push([delivery("a", number) for number in range(100_000)])
        self.assertEqual(len(sent), 100_000)

    def test_what_is_pushed_while_an_attempt_ends_waits_behind_it(self):
        lanes = self.make(1)
        lanes.push([delivery("a", 1)])
        original = lanes.finished

        def finished(ended, result):
            lanes.push([delivery("a", 2)])
            return original(ended, result)

        lanes.finished = finished
        self.transport.end(0, False)
        self.assertEqual(self.transport.under_way, [])
        lanes.finished = original
        lanes.unpark("a")
        self.transport.end(0, True)
        self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished], ["a-1", "a-1", "a-2"])

    def test_the_limit(self):
        lanes = self.make(4)
        lanes.limit = 0
        lanes.push([delivery(f"c{number}", 1) for number in range(20)])
        self.assertEqual(self.transport.under_way, [])
        lanes.limit = 2
        lanes.admit()
        self.assertEqual(lanes.under_way, 2)
        for _ in range(20):
            self.transport.end(0, True)
            self.assertLessEqual(lanes.under_way, 2)
        self.assertEqual((len(self.finished), lanes.load, lanes.under_way), (20, 0, 0))

    def test_again_is_the_first_to_be_tried(self):
        lanes = self.make(1)
        lanes.push([delivery("a", 1), delivery("b", 1), delivery("a", 2)])
        lanes.limit = 0
        self.transport.end(0, Verdict.AGAIN)
        self.assertEqual((self.transport.under_way, lanes.load), ([], 3))
        lanes.limit = 1
        lanes.admit()
        for _ in range(3):
            self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished[1:]], ["a-1", "b-1", "a-2"])

    def test_again_of_a_parked_client(self):
        lanes = self.make(1)
        lanes.push([delivery("a", 1), delivery("a", 2)])
        self.transport.end(0, False)
        lanes.unpark("a")
        lanes.limit = 0
        self.transport.end(0, Verdict.AGAIN)
        lanes.push([delivery("a", 3)])
        lanes.limit = 1
        lanes.admit()
        for _ in range(3):
            self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished[2:]], ["a-1", "a-2", "a-3"])
        self.assertEqual((lanes.parked, lanes.clients, lanes.load), (0, 0, 0))

    def test_many_parked_deliveries_are_not_kept_in_memory(self):
        self.patch(lanes_module, "PARKED", 10)
        lanes = self.make(1)
        for number in range(1, 201):
            one = delivery("a", number)
            one.place = number
            self.outbox[number] = one
            lanes.push([one])
            if number == 1:
                self.transport.end(0, False)
        self.assertEqual((lanes.parked, lanes.load), (10, 0))
        lanes.push([delivery("b", 1)])
        self.transport.end(0, True)
        lanes.unpark("a")
        for _ in range(200):
            self.transport.end(0, True)
            self.assertLess(lanes.parked, 100)
        self.assertEqual([name for name, _ in self.finished[2:]], [f"a-{number}" for number in range(1, 201)])
        self.assertEqual((lanes.parked, lanes.clients, lanes.load), (0, 0, 0))

    def test_shed(self):
        self.patch(lanes_module, "PARKED", 5)
        lanes = self.make(1)
        for number in range(1, 41):
            one = Delivery(f"a-{number}", "a", 0, b"x" * 10, place=number)
            self.outbox[number] = one
            lanes.push([one])
            if number == 1:
                self.transport.end(0, False)
        shed = lanes.shed(200)
        self.assertGreaterEqual(len(shed), 20)
        self.assertEqual([one.place for one in shed], list(range(2, 2 + len(shed))))
        lanes.unpark("a")
        for _ in range(40 - len(shed)):
            self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished[1:]], ["a-1", *(f"a-{n}" for n in range(2 + len(shed), 41))])
        self.assertEqual(lanes.shed(1000), [])
        self.assertEqual((lanes.parked, lanes.clients, lanes.load, lanes.size), (0, 0, 0, 0))

    def test_how_often_a_delivery_was_tried_is_not_forgotten(self):
        self.patch(lanes_module, "PARKED_SIZE", 10)
        lanes = self.make(1)
        large = Delivery("a-1", "a", 0, b"x" * 100, place=1)
        # As an outbox on disk does: it makes the delivery anew.
        lanes.recall = lambda places: [Delivery("a-1", "a", 0, b"x" * 100, place=place) for place in places]
        lanes.push([large])
        for attempt in range(1, 5):
            self.transport.under_way[0][0].attempts += 1
            self.assertEqual(self.transport.under_way[0][0].attempts, attempt)
            self.transport.end(0, False)
            self.assertEqual(lanes.parked, 0)
            lanes.unpark("a")
        self.transport.end(0, True)
        self.assertEqual((lanes.parked, lanes.clients, lanes.load, lanes.size), (0, 0, 0, 0))

    def test_parked_deliveries_that_can_no_longer_be_read(self):
        self.patch(lanes_module, "PARKED", 1)
        lanes = self.make(1)
        lanes.recall = lambda places: []
        lanes.push([delivery("a", 1), delivery("a", 2)])
        self.transport.end(0, False)
        lanes.unpark("a")
        self.transport.end(0, True)
        lanes.push([delivery("a", 3)])
        self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished], ["a-1", "a-1", "a-3"])
        self.assertEqual((lanes.parked, lanes.clients, lanes.load), (0, 0, 0))

    def test_parked_deliveries_that_cannot_be_read_now(self):
        self.patch(lanes_module, "PARKED", 1)
        lanes = self.make(1)
        recall, failures = lanes.recall, []

        def fail(places):
            failures.append(list(places))
            raise OutboxError("disk I/O error")

        lanes.recall = fail
        for number in range(1, 13):
            one = Delivery(f"a-{number}", "a", 0, b"", place=number)
            self.outbox[number] = one
            lanes.push([one])
            if number == 1:
                self.transport.end(0, False)
        self.assertEqual(lanes.shed(1), [])
        lanes.unpark("a")
        self.transport.end(0, True)
        for _ in range(2):
            self.assertEqual((self.transport.under_way, lanes.clients, list(lanes.unread)), ([], 1, ["a"]))
            lanes.recall_again()
        lanes.push([delivery("b", 1)])
        self.transport.end(0, True)
        self.assertEqual(failures, [list(range(2, 10))] * 4)
        lanes.recall = recall
        lanes.recall_again()
        for _ in range(11):
            self.transport.end(0, True)
        self.assertEqual([name for name, _ in self.finished], ["a-1", "a-1", "b-1", *[f"a-{n}" for n in range(2, 13)]])
        self.assertEqual((lanes.parked, lanes.clients, lanes.load, lanes.unread), (0, 0, 0, {}))

    @settings(max_examples=300, deadline=None)
    @given(st.integers(1, 2), st.lists(st.integers(0, 3), max_size=40), st.data())
    def test_order_holds_whatever_fails(self, count, clients, data):
        self.patch(lanes_module, "PARKED", data.draw(st.sampled_from([0, 3, 4096])))
        lanes = self.make(count)
        numbers = defaultdict(int)
        parked = set()
        arrived = defaultdict(list)
        waiting = []
        for client in clients:
            numbers[client] += 1
            waiting.append(delivery(str(client), numbers[client]))
            waiting[-1].place = len(waiting)
            self.outbox[len(waiting)] = waiting[-1]
        while waiting or self.transport.under_way or parked or lanes.load or lanes.clients:
            step = data.draw(st.integers(0, 4))
            if step == 0 and waiting:
                lanes.push([waiting.pop(0)])
            elif step == 1 and parked:
                lanes.unpark(parked.pop())
            elif step == 2:
                lanes.limit = data.draw(st.integers(0, count))
                lanes.admit()
            elif self.transport.under_way:
                index = data.draw(st.integers(0, len(self.transport.under_way) - 1))
                tried = self.transport.under_way[index][0]
                self.assertNotIn(tried.client, parked)
                verdict = data.draw(st.sampled_from([Verdict.DONE, Verdict.DONE, Verdict.PARK, Verdict.AGAIN]))
                if verdict is Verdict.DONE:
                    arrived[tried.client].append(tried.id)
                elif verdict is Verdict.PARK:
                    parked.add(tried.client)
                self.transport.end(index, verdict)
            elif waiting:
                lanes.push([waiting.pop(0)])
            elif parked:
                lanes.unpark(parked.pop())
            else:
                # Everything that is left is held by the limit.
                lanes.limit = count
                lanes.admit()
                if not (waiting or self.transport.under_way or parked) and (lanes.load or lanes.clients):
                    self.fail("nothing goes on")
        for client, number in numbers.items():
            self.assertEqual(arrived[str(client)], [f"{client}-{index}" for index in range(1, number + 1)])
        self.assertEqual((lanes.load, lanes.under_way), (0, 0))
