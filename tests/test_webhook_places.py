"""Places in order, of which consecutive ones take the room of one."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.webhook.places import Places


class PlacesTests(SynchronousTestCase):
    @given(st.lists(st.tuples(st.sampled_from(["append", "appendleft", "popleft"]), st.integers(0, 20))))
    def test_same_as_a_deque(self, steps):
        places, same = Places(), deque()
        for name, place in steps:
            if name != "popleft":
                getattr(places, name)(place)
                getattr(same, name)(place)
            elif same:
                self.assertEqual(places.popleft(), same.popleft())
            self.assertEqual(bool(places), bool(same))
            if same:
                self.assertEqual((places.first, places.last), (same[0], same[-1]))

    def test_a_million_in_a_row(self):
        places = Places()
        for place in range(1_000_000, 2_000_000):
            places.append(place)
        places.appendleft(999_999)
        self.assertEqual((places.runs, places.first, places.last), (1, 999_999, 1_999_999))
