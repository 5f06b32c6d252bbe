"""Counting how long things take."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.support import histogram
from mqhooks.support.histogram import Histogram


class HistogramTests(SynchronousTestCase):
    def test_a_limit_is_within_its_bucket(self):
        found = Histogram((0.1, 1.0))
        for seconds in (0.0, 0.1, 0.10001, 1.0, 1.5, 100.0):
            found.observe(seconds)
        self.assertEqual(found.counts, [2, 2, 2])
        self.assertEqual(found.count, 6)
        self.assertAlmostEqual(found.sum, 102.70001)

    def test_before_the_first(self):
        found = Histogram((1,))
        found.observe(-5.0)
        self.assertEqual((found.counts, found.sum), ([1, 0], -5.0))

    @given(st.lists(st.floats(-1, 2), min_size=1, max_size=40), st.integers(1, 10))
    def test_sorted_in_groups_or_one_by_one_is_the_same(self, values, group):
        one_by_one = Histogram((0.1, 1.0))
        for seconds in values:
            one_by_one.observe(seconds)
            self.assertGreater(one_by_one.count, 0)
        self.patch(histogram, "RECENT", group)
        together = Histogram((0.1, 1.0))
        for seconds in values:
            together.observe(seconds)
        self.assertEqual(together.counts, one_by_one.counts)
        self.assertAlmostEqual(together.sum, one_by_one.sum)
