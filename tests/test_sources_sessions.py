"""Usernames remembered from registrations."""

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.events import Event
from mqhooks.sources.sessions import SessionTable


def event(hook, timestamp, client_id="c", username="", mountpoint=""):
    return Event(hook, None, timestamp, mountpoint, client_id, username)


class SessionTableTests(SynchronousTestCase):
    """What is remembered, and when it is forgotten."""

    def setUp(self):
        self.table = SessionTable(3)

    def register(self, timestamp, client_id="c", username="u", mountpoint=""):
        self.table.see(event("on_register", timestamp, client_id, username, mountpoint))

    def name(self, hook, timestamp, **more):
        return self.table.see(event(hook, timestamp, **more)).username

    def test_names_the_disconnected(self):
        self.register(1)
        self.assertEqual(self.name("on_client_offline", 2), "u")
        self.assertEqual(self.name("on_client_wakeup", 3), "u")
        self.assertEqual(self.name("on_session_expired", 4), "u")
        self.assertEqual(len(self.table), 0)

    def test_the_message_knows_better(self):
        self.register(1)
        self.assertEqual(self.name("on_client_gone", 2, username="other"), "other")
        self.assertEqual(len(self.table), 0)

    def test_mountpoints_are_apart(self):
        self.register(1, username="a")
        self.register(1, username="b", mountpoint="m")
        self.assertEqual(self.name("on_client_gone", 2, mountpoint="m"), "b")
        self.assertEqual(self.name("on_client_gone", 2), "a")

    def test_an_end_read_late_spares_the_next_session(self):
        self.register(1, username="first")
        self.register(5, username="second")
        self.name("on_client_gone", 3)
        self.assertEqual(self.name("on_client_gone", 7), "second")
        self.assertEqual(self.name("on_client_gone", 8), "")

    def test_only_hooks_that_name_nobody_are_completed(self):
        self.register(1)
        for hook in ("on_publish", "on_subscribe", "on_deliver", "on_register_failed"):
            self.assertEqual(self.name(hook, 2), "")

    def test_anonymous_clients_cost_nothing(self):
        self.register(1)
        self.register(2, username="")
        self.assertEqual(len(self.table), 0)
        self.assertEqual(self.name("on_client_gone", 3), "")

    def test_bounded(self):
        for number in range(5):
            self.register(number, client_id=f"c{number}")
        self.assertEqual(len(self.table), 3)
        names = [self.name("on_client_offline", 9, client_id=f"c{number}") for number in range(5)]
        self.assertEqual(names, ["", "", "u", "u", "u"])

    def test_registering_again_renews(self):
        for client in ("a", "b", "c", "a", "d"):
            self.register(1, client_id=client)
        self.assertEqual([self.name("on_client_offline", 2, client_id=client) for client in "abcd"], ["u", "", "u", "u"])

    def test_switched_off(self):
        self.table = SessionTable(0)
        self.register(1)
        self.assertEqual(self.name("on_client_gone", 2), "")

    def test_times_before_1970(self):
        self.register(-5)
        self.assertEqual(self.name("on_client_gone", -4), "u")
        self.assertEqual(len(self.table), 0)

    def test_bounded_in_bytes(self):
        self.table = SessionTable(1_000_000, 1 << 20)
        for number in range(200):
            self.register(number, client_id=f"c{number}", username="u" * 60_000)
            self.assertLessEqual(self.table.used, 1 << 20)
        self.assertGreater(len(self.table), 10)
        self.assertEqual(len(self.name("on_client_offline", 999, client_id="c199")), 60_000)
        self.assertEqual(self.name("on_client_offline", 999, client_id="c0"), "")

    def test_bytes_are_those_that_it_takes(self):
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.table = SessionTable()
        for number in range(50_000):
            self.register(number, client_id=f"client-{number:013}", username="user-" + "x" * 15)
        taken = tracemalloc.get_traced_memory()[0]
        self.assertLess(taken, self.table.used)
        self.assertLess(self.table.used, 2 * taken)

    def test_one_session_larger_than_the_table_costs_no_other(self):
        self.table = SessionTable(10, 2000)
        self.register(1, client_id="a")
        self.register(1, client_id="b", username="u" * 3000)
        self.assertEqual((self.name("on_client_offline", 2, client_id="a"), len(self.table)), ("u", 1))

    def test_nothing_is_remembered_when_nobody_needs_it(self):
        self.table = SessionTable(needed=False)
        self.register(1)
        self.assertEqual((len(self.table), self.name("on_client_gone", 2)), (0, ""))
        self.table.limit(10, 2000, needed=True)
        self.register(3)
        self.assertEqual(self.name("on_client_offline", 4), "u")
        self.table.limit(10, 2000, needed=False)
        self.assertEqual((len(self.table), self.table.used), (0, 0))

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["on_register", "on_client_gone", "on_client_offline"]),
                st.integers(0, 20),
                st.sampled_from("abcdefgh"),
                st.sampled_from(["", "u", "u" * 300, "\u00e9" * 40, "u" * 900]),
                st.sampled_from(["", "m"]),
            )
        )
    )
    def test_bounds_hold_whatever_comes(self, steps):
        table = SessionTable(5, 2000)
        for hook, timestamp, client_id, username, mountpoint in steps:
            table.see(event(hook, timestamp, client_id, username, mountpoint))
            self.assertLessEqual(len(table), 5)
            self.assertLessEqual(table.used, 2000)
            self.assertEqual(table.used == 0, len(table) == 0)
