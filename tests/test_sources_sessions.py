"""Usernames remembered from registrations."""

import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.events import Event, Registration
from mqhooks.nanomq.rules import Rules, needs_addresses
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.sources.sessions import SessionTable
from mqhooks.testing import make_event


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


class AddressTests(SynchronousTestCase):
    """Where clients came from, for rules that need it."""

    def setUp(self):
        self.table = SessionTable(100, 1 << 16, addresses=True)

    def register(self, timestamp, address="10.0.0.7", port=1883, **more):
        self.table.see(make_event("on_register", timestamp=timestamp, peer_addr=address, peer_port=port, **more))

    def end(self, hook, timestamp):
        return self.table.see(make_event(hook, timestamp=timestamp, username=""))

    def test_the_end_of_a_connection_knows_its_beginning(self):
        self.register(5)
        for hook in ("on_client_offline", "on_client_gone"):
            ended = self.end(hook, 9)
            self.assertEqual((ended.registration, ended.username), (Registration(5, "10.0.0.7", 1883), "user-1"))
        self.assertEqual((len(self.table), self.table.used), (0, 0))
        self.assertIsNone(self.end("on_client_gone", 10).registration)

    def test_without_a_username(self):
        self.register(5, "2001:db8::7", 65535, username="")
        ended = self.end("on_client_gone", 9)
        self.assertEqual((ended.registration, ended.username), (Registration(5, "2001:db8::7", 65535), ""))

    def test_with_the_username_in_the_message(self):
        self.register(5)
        ended = self.table.see(make_event("on_client_gone", timestamp=6, username="other"))
        self.assertEqual((ended.registration.peer_port, ended.username), (1883, "other"))

    def test_a_later_connection_is_another(self):
        self.register(5)
        self.assertIsNone(self.end("on_client_gone", 4).registration)
        self.assertEqual(self.end("on_client_gone", 6).registration.timestamp, 5)

    def test_addresses_of_all_kinds(self):
        for address, known in (("", False), ("x" * 253, True), ("x" * 254, False), ("größe", True)):
            self.register(5, address)
            ended = self.end("on_client_gone", 6)
            self.assertEqual((ended.registration is not None, ended.username), (known, "user-1"), address)

    def test_only_while_it_is_needed(self):
        self.table.limit(100, 1 << 16, needed=True)
        self.register(5)
        self.table.limit(100, 1 << 16, needed=True, addresses=True)
        ended = self.end("on_client_offline", 6)
        self.assertEqual((ended.registration, ended.username), (None, "user-1"))
        self.register(7)
        self.table.limit(100, 1 << 16, needed=True)
        ended = self.end("on_client_offline", 8)
        self.assertEqual((ended.registration, ended.username), (None, "user-1"))

    def test_bounded_in_bytes(self):
        self.table = SessionTable(1_000_000, 1 << 16, addresses=True)
        for number in range(2000):
            self.register(number, client_id=f"c{number}", username="")
            self.assertLessEqual(self.table.used, 1 << 16)
        self.assertGreater(len(self.table), 300)

    def test_a_session_takes_what_is_told(self):
        text = (Path(__file__).parent.parent / "docs" / "sizing.rst").read_text()
        more, alone = map(int, re.search(r"about\s+(\d+) bytes more for each session, and about (\d+) for", text).groups())
        taken = {}
        for addresses in (False, True):
            for username in ("u" * 20, ""):
                self.table = SessionTable(addresses=addresses)
                self.register(1, "192.168.100.7", client_id="c" * 20, username=username)
                taken[addresses, bool(username)] = self.table.used
        self.assertApproximates(taken[True, True] - taken[False, True], more, 3)
        self.assertApproximates(taken[True, False], alone, 10)
        self.assertEqual(taken[False, False], 0)

    def test_details_have_it(self):
        settings = BodySettings((Rule("on_client_disconnected"), Rule("on_session_terminated")), details=True)
        self.assertTrue(needs_addresses(settings))
        self.assertFalse(needs_addresses(replace(settings, details=False)))
        self.assertFalse(needs_addresses(replace(settings, rules=(Rule("on_publish"),))))
        self.register(1_767_225_600_123_000_000)
        ended = self.end("on_client_gone", 1_767_225_660_123_999_999)
        for body in Rules(settings).bodies(ended):
            said = json.loads(body)
            self.assertEqual(
                [said[key] for key in ("ipaddress", "port", "connected_at", "duration", "username")],
                ["10.0.0.7", 1883, 1_767_225_600_123, 60_000, "user-1"],
            )
        (plain, _) = Rules(replace(settings, details=False)).bodies(ended)
        self.assertNotIn("ipaddress", json.loads(plain))
        (body, _) = Rules(settings).bodies(make_event("on_client_gone"))
        self.assertNotIn("duration", json.loads(body))
