"""Each client's events in the order in which they happened."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.webhook import merge
from mqhooks.webhook.merge import MergeWindow


def delivery(client, timestamp, accepted):
    return Delivery(f"{client}-{timestamp}-{accepted}", client, timestamp, b"", accepted)


class MergeWindowTests(SynchronousTestCase):
    def release(self, window, horizon, limit=1000):
        return [(one.client, one.timestamp) for one in window.release(horizon, limit)]

    def test_holds_for_the_window(self):
        window = MergeWindow(50)
        window.push([delivery("a", 1, 100)], 100)
        self.assertEqual(self.release(window, 149), [])
        self.assertEqual(self.release(window, 150), [("a", 1)])
        self.assertEqual(len(window), 0)

    def test_puts_a_client_in_order(self):
        window = MergeWindow(50)
        window.push([delivery("a", 3, 100), delivery("b", 9, 100)], 100)
        window.push([delivery("a", 1, 120)], 120)
        window.push([delivery("a", 2, 140)], 140)
        self.assertEqual(self.release(window, 151), [("a", 1), ("b", 9)])
        self.assertEqual(self.release(window, 300), [("a", 2), ("a", 3)])
        self.assertEqual(window.late, 0)

    def test_late(self):
        window = MergeWindow(50)
        window.push([delivery("a", 3, 100)], 100)
        window.release(200, 10)
        window.push([delivery("a", 2, 300), delivery("b", 1, 300)], 300)
        self.assertEqual(self.release(window, 400), [("a", 2), ("b", 1)])
        self.assertEqual(window.late, 1)

    def test_same_times_keep_their_order(self):
        window = MergeWindow(50)
        window.push([Delivery(str(number), "a", 5, b"", 100) for number in range(10)], 100)
        self.assertEqual([one.id for one in window.release(1000, 100)], [str(number) for number in range(10)])

    def test_limit(self):
        window = MergeWindow(50)
        window.push([delivery("a", number, 100) for number in range(10)], 100)
        self.assertEqual(len(window.release(1000, 4)), 4)
        self.assertEqual(len(window.release(1000, 100)), 6)

    def test_only_the_latest_clients_are_remembered(self):
        self.patch(merge, "REMEMBERED", 10)
        window = MergeWindow(0)
        for number in range(1000):
            window.push([delivery(f"c{number}", 1, 0)], 0)
            window.release(1, 10)
        for client, late in (("c0", 0), ("c970", 0), ("c999", 1)):
            window.push([delivery(client, 0, 0)], 0)
            self.assertEqual((client, window.late), (client, late))

    def test_order_holds_among_more_clients_than_are_remembered(self):
        window = MergeWindow(50)
        window.push([delivery(f"c{number}", 1, 0) for number in range(merge.REMEMBERED)], 0)
        window.release(50, 100_000)
        window.push([delivery("a", 3, 60)], 60)
        window.push([delivery(f"d{number}", 1, 70) for number in range(merge.REMEMBERED + 1)], 70)
        window.push([delivery("a", 2, 80)], 80)
        self.assertEqual(self.release(window, 110), [("a", 2)])

    @given(
        st.lists(
            st.one_of(
                st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=3),
                st.tuples(st.integers(1, 12), st.integers(1, 9)),
                st.integers(1, 4),
            ),
            max_size=40,
        )
    )
    def test_how_many_clients_are_remembered_does_not_change_the_order(self, steps):
        def released(remembered):
            self.patch(merge, "REMEMBERED", remembered)
            window = MergeWindow(10)
            now, gone = 0, []
            for number, step in enumerate(steps):
                if isinstance(step, list):
                    window.push([Delivery(f"{number}-{one}", f"c{one[0]}", one[1], b"", now) for one in step], now)
                elif isinstance(step, tuple):
                    now += step[0]
                    gone += window.release(now, step[1])
                else:
                    gone += window.release_oldest(step)
            return [one.id for one in gone + window.release(1 << 60, 1000)]

        self.assertEqual(released(0), released(1000))

    def test_what_was_displaced_goes_before_what_came_late_at_the_same_time(self):
        window = MergeWindow(50)
        window.push([Delivery(id_, "a", time, b"x", 100) for id_, time in [("1", 5), ("2", 5), ("3", 9)]], 100)
        window.push([Delivery(id_, "a", time, b"x", 120) for id_, time in [("4", 2), ("5", 5), ("6", 5)]], 120)
        self.assertEqual([one.id for one in window.release(1000, 100)], ["4", "1", "2", "5", "6", "3"])
        self.assertEqual((len(window), window.size, window.late), (0, 0, 0))

    @given(
        st.lists(
            st.one_of(
                st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)), max_size=8),
                st.tuples(st.integers(1, 30), st.integers(1, 9)),
            ),
            max_size=40,
        )
    )
    def test_lets_go_the_earliest_that_the_client_has_here(self, steps):
        window = MergeWindow(10)
        held = []  # By arrival; a slot's own delivery may have gone before it.
        slots = []
        last = {}
        now = late = number = 0
        for step in steps:
            if isinstance(step, list):
                pushed = []
                for client, time, size in step:
                    number += 1
                    pushed.append(Delivery(str(number), f"c{client}", time, b"x" * size, now))
                window.push(pushed, now)
                held += pushed
                slots += [(now, one.client) for one in pushed]
                expected = []
                limit = 0
            else:
                now += step[0]
                limit = step[1]
                expected = []
                while slots and len(expected) < limit and slots[0][0] <= now - 10:
                    client = slots.pop(0)[1]
                    first = min((one for one in held if one.client == client), key=lambda one: one.timestamp)
                    held.remove(first)
                    late += first.timestamp < last.get(client, 0)
                    last[client] = max(first.timestamp, last.get(client, 0))
                    expected.append(first.id)
            self.assertEqual([one.id for one in window.release(now, limit)], expected)
            self.assertEqual((len(window), window.size), (len(held), sum(len(one.body) for one in held)))
        window.release(1 << 60, 1000)
        for client in sorted({one.client for one in held}):
            for one in held:
                late += one.client == client and one.timestamp < last.get(client, 0)
        self.assertEqual(window.late, late)

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(-40, 40)), max_size=60), st.integers(1, 100))
    def test_nothing_is_late_within_the_window_and_nothing_is_lost(self, steps, window_size):
        # Each is accepted 10 ms after the one before it, and happened up to 40 ms earlier or later than that.
        window = MergeWindow(window_size)
        released = []
        for number, (client, skew) in enumerate(steps):
            accepted = 1000 + number * 10
            window.push([delivery(f"c{client}", accepted + skew, accepted)], accepted)
            released += window.release(accepted, 1000)
        released += window.release(1 << 60, 1000)
        self.assertEqual(len(released), len(steps))
        if window_size > 80:
            for client in range(4):
                times = [one.timestamp for one in released if one.client == f"c{client}"]
                self.assertEqual(times, sorted(times))
            self.assertEqual(window.late, 0)
