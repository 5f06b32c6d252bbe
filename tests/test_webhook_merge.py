"""Each client's events in the order in which they happened."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.outbox.delivery import Delivery
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

    def test_memory_of_clients_is_bounded(self):
        self.patch(merge, "REMEMBERED", 10)
        window = MergeWindow(0)
        for number in range(1000):
            window.push([delivery(f"c{number}", 1, 0)], 0)
            window.release(1, 10)
        self.assertLessEqual(len(window._last) + len(window._before), 22)

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
