"""Times in words."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.support.times import moment, read, written

NOON = 1_767_268_800


class TimesTests(SynchronousTestCase):
    @given(st.integers(0, (1 << 63) - 1))
    def test_what_is_written_can_be_read(self, nanoseconds):
        self.assertEqual(read(written(nanoseconds, 9)), nanoseconds)
        self.assertEqual(read(written(nanoseconds)), nanoseconds // 10**9 * 10**9)

    def test_forms_of_rfc_3339(self):
        self.assertEqual(datetime.fromtimestamp(NOON, UTC).isoformat(), "2026-01-01T12:00:00+00:00")
        for text in (
            "2026-01-01T12:00:00Z",
            "2026-01-01t12:00:00z",
            "2026-01-01 12:00:00Z",
            "2026-01-01T14:00:00+02:00",
            "2026-01-01T11:30:00-00:30",
            "2026-01-01T12:00:00.000Z",
            "2026-01-01T11:59:60Z",
        ):
            self.assertEqual(read(text), NOON * 10**9, text)
        self.assertEqual(read("2026-01-01T12:00:00.1234567899Z"), NOON * 10**9 + 123_456_789)

    def test_what_is_no_time(self):
        for text in (
            "",
            "2026-01-01",
            "2026-02-30T12:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T12:00:61Z",
            "2026-01-01T12:00:00",
        ):
            self.assertRaises(ValueError, read, text)
            self.assertRaises(ValueError, moment, text, NOON)
        for text in ("1969-12-31T23:59:59Z", "2026-01-01T12:00:00+25:00", "\uff12026-01-01T12:00:00Z"):
            self.assertRaises(ValueError, read, text)

    def test_what_lies_outside_is_written_as_the_nearest(self):
        self.assertEqual(written(-5), "1970-01-01T00:00:00Z")
        self.assertEqual(written(1 << 80, 3), "9999-12-31T23:59:59.000Z")

    def test_durations_are_so_long_ago(self):
        for text, ago in (
            ("90s", 90),
            ("2h", 7200),
            ("1.5h", 5400),
            ("3d", 259_200),
            ("5 min", 300),
            ("5m", 300),
            ("250ms", 0.25),
        ):
            self.assertEqual(moment(text, NOON), int((NOON - ago) * 1000), text)
        self.assertEqual(moment("999999w", NOON), 0)
        self.assertEqual(moment("1767268800.5", 0), NOON * 1000 + 500)
        for text in ("2x", "-2h", "h", "1e3s", "2h30m"):
            self.assertIn("nor a duration like", str(self.assertRaises(ValueError, moment, text, NOON)))
