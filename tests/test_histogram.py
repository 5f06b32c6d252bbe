"""Counting how long things take."""

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.support.histogram import Histogram


class HistogramTests(SynchronousTestCase):
    def test_a_limit_is_within_its_bucket(self):
        histogram = Histogram((0.1, 1.0))
        for seconds in (0.0, 0.1, 0.10001, 1.0, 1.5, 100.0):
            histogram.observe(seconds)
        self.assertEqual(histogram.counts, [2, 2, 2])
        self.assertEqual(histogram.count, 6)
        self.assertAlmostEqual(histogram.sum, 102.70001)

    def test_before_the_first(self):
        histogram = Histogram((1,))
        histogram.observe(-5.0)
        self.assertEqual((histogram.counts, histogram.sum), ([1, 0], -5.0))
