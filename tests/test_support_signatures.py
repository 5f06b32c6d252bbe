"""Signatures, against those of the standardwebhooks package."""

from base64 import b64encode
from datetime import UTC, datetime
from time import time

from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import BadSignature, ConfigError
from mqhooks.support.signatures import Signer, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "QUJD" * 16
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
NOW = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
"""What the specification's own libraries are tested with."""

ids = st.from_regex(r"msg_[0-9a-f]{1,40}", fullmatch=True)


def signed(signature=SIGNATURE, *, webhook_id=ID, timestamp=NOW):
    return [("Webhook-Id", webhook_id), ("WEBHOOK-TIMESTAMP", str(timestamp)), ("webhook-signature", signature), ("host", "h")]


class SignerTests(SynchronousTestCase):
    def test_published_example(self):
        self.assertEqual(Signer([SECRET]).sign(ID, NOW, BODY), SIGNATURE)

    def test_rotation(self):
        one, other = Signer([OTHER, SECRET]).sign(ID, NOW, BODY).split(" ")
        self.assertEqual((one, other), (Signer([OTHER]).sign(ID, NOW, BODY), SIGNATURE))

    def test_no_secret(self):
        self.assertRaises(ConfigError, Signer, ["whsec_"])

    @given(ids, st.integers(0, 2**32), st.text(), st.binary(min_size=24, max_size=64))
    def test_as_the_package_signs(self, webhook_id, timestamp, body, key):
        package = Webhook(key)
        secret = "whsec_" + b64encode(key).decode()
        expected = package.sign(webhook_id, datetime.fromtimestamp(timestamp, UTC), body)
        self.assertEqual(Signer([secret]).sign(webhook_id, timestamp, body.encode()), expected)

    def test_the_package_verifies(self):
        now = int(time())
        for secrets in ((SECRET,), (OTHER, SECRET), (SECRET, OTHER)):
            signature = Signer(secrets).sign(ID, now, BODY)
            Webhook(SECRET).verify(BODY, dict(signed(signature, timestamp=now)))


class VerifyTests(SynchronousTestCase):
    def refused(self, headers, body=BODY, *, secrets=(SECRET,), now=NOW):
        return str(self.assertRaises(BadSignature, verify, secrets, headers, body, now))

    def test_good(self):
        verify([SECRET], signed(), BODY, NOW)
        verify([OTHER, SECRET], signed(), BODY, NOW)
        verify([SECRET], signed(f"v1a,x v1,eHg= {SIGNATURE} v2,y"), BODY, NOW)

    def test_anything_else(self):
        wrong = "no webhook-signature matches this secret and this body"
        self.assertEqual(self.refused(signed(), BODY + b" "), wrong)
        self.assertEqual(self.refused(signed(webhook_id=ID + "x")), wrong)
        self.assertEqual(self.refused(signed(timestamp=NOW + 1)), wrong)
        self.assertEqual(self.refused(signed(), secrets=[OTHER]), wrong)
        self.assertEqual(self.refused(signed(), secrets=[]), wrong)
        for signature in ("", SIGNATURE[:-1], SIGNATURE[3:], SIGNATURE.replace("v1", "v2"), "v1,é", "v1,", ","):
            self.assertEqual(self.refused(signed(signature)), wrong)

    def test_headers(self):
        for index, name in enumerate(("webhook-id", "webhook-timestamp", "webhook-signature")):
            headers = signed()
            headers.append(headers[index])
            self.assertEqual(self.refused(headers), f"2 {name} headers instead of one")
            headers = signed()
            del headers[index]
            self.assertEqual(self.refused(headers), f"0 {name} headers instead of one")

    def test_time(self):
        for now in (NOW - 300, NOW + 300):
            verify([SECRET], signed(), BODY, now)
        for now in (NOW - 301, NOW + 301):
            self.assertEqual(self.refused(signed(), now=now), "webhook-timestamp differs from the time here by more than 300 s")
        for timestamp in ("", "x", "-1", "1.5", "9" * 5000, "\u0661"):
            self.assertEqual(self.refused(signed(timestamp=timestamp)), "webhook-timestamp is not a number of seconds")

    @given(ids, st.binary(), st.sampled_from([(SECRET,), (OTHER,), (SECRET, OTHER)]), st.sampled_from([(SECRET,), (OTHER,)]))
    def test_whoever_knows_one_of_the_secrets(self, webhook_id, body, ours, theirs):
        headers = signed(Signer(ours).sign(webhook_id, NOW, body), webhook_id=webhook_id)
        if set(ours) & set(theirs):
            verify(theirs, headers, body, NOW)
        else:
            self.assertRaises(BadSignature, verify, theirs, headers, body, NOW)

    @given(
        st.lists(st.tuples(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text())), st.binary()
    )
    def test_nothing_else_is_raised(self, headers, body):
        self.assertRaises(BadSignature, verify, [SECRET], headers, body, NOW)
