"""What is tried again, and when."""

from datetime import UTC, datetime
from email.utils import formatdate
from random import Random
from sys import float_info

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.webhook.retry import MAX_RETRY_AFTER, RetryPolicy, retry_after, span
from mqhooks.webhook.settings import RetrySettings

NOW = datetime(1994, 11, 6, 8, 49, 0, tzinfo=UTC).timestamp()


def policy(**settings):
    return RetryPolicy(RetrySettings(**settings))


class StatusTests(SynchronousTestCase):
    """Which responses that are not 2xx are a reason to try again."""

    def retried(self, **settings):
        return set(filter(policy(**settings).retries, range(300, 600)))

    def test_unless_said_otherwise(self):
        self.assertEqual(self.retried(), {408, 425, 429} | set(range(500, 600)) - {501, 505})

    def test_statuses_and_classes(self):
        self.assertEqual(self.retried(on=(307, "4xx")), {307, *range(400, 500)})
        self.assertEqual(self.retried(on=()), set())


class DelayTests(SynchronousTestCase):
    """Exponential, bounded, jittered."""

    def test_grows_up_to_the_maximum(self):
        waits = policy(initial=1, multiplier=2, maximum=10, jitter=0)
        self.assertEqual([waits.delay(attempts, Random()) for attempts in range(1, 7)], [1, 2, 4, 8, 10, 10])

    def test_reaches_the_maximum_however_slowly(self):
        self.assertEqual(policy(multiplier=1.01, jitter=0).delay(1000, Random()), 300)

    @given(st.integers(1, 10**9), st.floats(1, 100), st.floats(0, 1), st.integers())
    @example(1, 2.0, 5.483708792431487e-16, 0)
    def test_stays_within_its_jitter(self, attempts, multiplier, jitter, seed):
        plain = policy(multiplier=multiplier, jitter=0).delay(attempts, Random())
        jittered = policy(multiplier=multiplier, jitter=jitter).delay(attempts, Random(seed))
        self.assertTrue(1 <= plain <= 300)
        # One plus a tiny jitter is rounded to a float.
        self.assertLessEqual(abs(jittered - plain), plain * (jitter * 1.000001 + float_info.epsilon))

    def test_what_failed_together_is_not_tried_together(self):
        random = Random(1)
        self.assertEqual(len({policy().delay(3, random) for _ in range(100)}), 100)


class ExhaustedTests(SynchronousTestCase):
    """Nothing is tried for ever."""

    def test_age(self):
        self.assertIsNone(policy().exhausted(10**6, 72 * 3600))
        self.assertEqual(policy().exhausted(1, 72 * 3600 + 0.1), "older than max_age (72 h)")

    def test_attempts(self):
        self.assertIsNone(policy(max_attempts=5).exhausted(4, 0))
        self.assertEqual(policy(max_attempts=5).exhausted(5, 0), "max_attempts (5) reached")

    def test_span(self):
        self.assertEqual([span(s) for s in (0.5, 90, 300, 5400, 3600)], ["0.5 s", "90 s", "5 min", "90 min", "1 h"])


class RetryAfterTests(SynchronousTestCase):
    """Both forms, all three kinds of dates."""

    def read(self, value, now=NOW):
        return retry_after([(b"Content-Length", b"0"), (b"retry-AFTER", value)], now)

    def test_seconds(self):
        for value, seconds in (
            (b"0", 0),
            (b"120", 120),
            (b" 7\t", 7),
            (b"3601", 3600),
            (b"9" * 5000, 3600),
            (b"0" * 19 + b"5", 5),
        ):
            self.assertEqual(self.read(value), seconds)

    def test_dates(self):
        for value in (b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"):
            self.assertEqual(self.read(value), 37)
            self.assertEqual(self.read(value, NOW + 60), 0)
            self.assertEqual(self.read(value, NOW - 86400), MAX_RETRY_AFTER)

    def test_years_of_two_digits_are_the_nearest(self):
        now = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
        self.assertEqual(self.read(b"Thursday, 01-Jan-26 00:00:09 GMT", now), 9)
        self.assertEqual(self.read(b"Wednesday, 01-Jan-76 00:00:00 GMT", now), MAX_RETRY_AFTER)
        self.assertEqual(self.read(b"Saturday, 01-Jan-77 00:00:00 GMT", now), 0)

    def test_leap_seconds(self):
        self.assertEqual(self.read(b"Sun, 06 Nov 1994 08:49:60 GMT"), 59)

    def test_what_means_nothing(self):
        for value in (
            b"",
            b"-1",
            b"1.5",
            b"soon",
            b"\xb2",
            b"1 2",
            b"Sun, 31 Feb 1994 08:49:37 GMT",
            b"Sun, 06 Xyz 1994 08:49:37 GMT",
            b"Sun, 06 Nov 1994 24:49:37 GMT",
            b"Sun, 06 Nov 0000 08:49:37 GMT",
            b"Sun, 06 Nov 1994 08:49:37 +0100",
        ):
            self.assertIsNone(self.read(value), value)
        self.assertIsNone(retry_after([], NOW))

    @given(st.integers(0, 2**33), st.floats(-7200, 7200))
    def test_every_date(self, then, ahead):
        now = then - ahead
        expected = min(max(then - now, 0), MAX_RETRY_AFTER)
        self.assertAlmostEqual(self.read(formatdate(then, usegmt=True).encode(), now), expected, places=3)

    @given(st.binary() | st.text("0123456789SunNov,-: GMT").map(str.encode))
    def test_nothing_ends_in_an_error(self, value):
        seconds = self.read(value)
        self.assertTrue(seconds is None or 0 <= seconds <= MAX_RETRY_AFTER)
