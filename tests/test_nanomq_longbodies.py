"""Bodies made piece by piece are those that are made at once."""

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.nanomq import base62, bodies, longbodies
from mqhooks.nanomq.longbodies import PayloadBody
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.testing import make_event

EVENTS = [
    ("on_publish", "on_message_publish"),
    ("on_deliver", "on_message_delivered"),
    ("on_delivery_complete", "on_message_acked"),
    ("on_publish", "on_publish"),
    ("on_message_drop", "on_message_drop"),
    ("on_offline_message", "on_offline_message"),
]
PAYLOADS = st.one_of(
    st.binary(min_size=8), st.text(min_size=8).map(lambda text: text.encode("utf-8", "ignore")), st.just("€".encode() * 5)
)


class LongBodyTests(SynchronousTestCase):
    def setUp(self):
        # It takes a second, and no long payload is in base62.
        self.patch(base62, "prepare", lambda: None)

    def make(self, hook, name, payload, **options):
        rules = Rules(BodySettings((Rule(name),), **options))
        (body,) = rules.bodies(make_event(hook, payload=payload))
        return body

    @given(st.sampled_from(EVENTS), PAYLOADS, st.sampled_from(["plain", "base64", "base62"]), st.booleans())
    def test_the_same_bytes(self, event, payload, encoding, details):
        options = {"encoding": encoding, "details": details}
        with patch.object(bodies, "BASE62_LIMIT", 0):
            expected = self.make(*event, payload, **options)
        with patch.object(bodies, "LONG_PAYLOAD", 1), patch.object(longbodies, "PIECE", 3):
            body = self.make(*event, payload, **options)
            if len(payload) > 1:
                self.assertIsInstance(body, PayloadBody)
                for _ in range(2):
                    self.assertEqual(b"".join(body.pieces()), expected)
                self.assertEqual(len(body), len(expected))

    def test_pieces_are_short(self):
        body = self.make("on_publish", "on_message_publish", b"\x01" * (2 << 20))
        self.assertEqual(len(body), len(self.make("on_publish", "on_message_publish", b"")) + (12 << 20))
        self.assertLessEqual(max(map(len, body.pieces())), 6 * longbodies.PIECE)

    def test_a_character_that_is_cut_off(self):
        body = self.make("on_publish", "on_message_publish", b"x" * (2 << 20) + "é".encode()[:1])
        self.assertTrue(b"".join(body.pieces()).endswith(b'eHjD","payload_encoding":"base64"}'))
