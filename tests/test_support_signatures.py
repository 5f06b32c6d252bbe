"""Signatures, against those of the standardwebhooks package and published ones."""

from base64 import b64decode, b64encode
from datetime import UTC, datetime
from time import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import BadSignature, ConfigError
from mqhooks.support.signatures import Signer, check_signing, check_verifying, public_form, public_key, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "QUJD" * 16
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
NOW = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
"""What the specification's own libraries are tested with."""

PRIVATE = "whsk_VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk="
SIGNATURE_A = "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5WqyeFiL8Ag=="
"""Likewise, for ed25519."""

RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
"""Private key, public key, message and signature, in hexadecimal: tests 1 to 3 of RFC 8032, section 7.1."""

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


class KeyPairTests(SynchronousTestCase):
    def test_published_example(self):
        self.assertEqual(Signer([PRIVATE]).sign(ID, NOW, BODY), SIGNATURE_A)
        verify([public_form(PRIVATE)], signed(SIGNATURE_A), BODY, NOW)

    def test_keys_of_the_rfc(self):
        for private, public, message, signature in RFC_8032:
            seed, other = bytes.fromhex(private), bytes.fromhex(public)
            shown = "whpk_" + b64encode(other).decode()
            for key in (seed, seed + other):
                secret = "whsk_" + b64encode(key).decode()
                self.assertEqual(public_form(secret), shown)
                ours = b64decode(Signer([secret]).sign(ID, NOW, BODY).removeprefix("v1a,"))
                self.assertEqual(ours, Ed25519PrivateKey.from_private_bytes(seed).sign(f"{ID}.{NOW}.".encode() + BODY))
            public_key(shown).verify(bytes.fromhex(signature), bytes.fromhex(message))

    def test_both_schemes_beside_each_other(self):
        for secrets in ((SECRET, PRIVATE), (PRIVATE, SECRET)):
            signatures = Signer(secrets).sign(ID, NOW, BODY)
            self.assertEqual(signatures, f"{SIGNATURE} {SIGNATURE_A}")
            for known in (SECRET, public_form(PRIVATE)):
                verify([known], signed(signatures), BODY, NOW)
            verify([OTHER, public_form(PRIVATE)], signed(signatures), BODY, NOW)

    def test_the_package_verifies_its_own_among_them(self):
        now = int(time())
        Webhook(SECRET).verify(BODY, dict(signed(Signer([PRIVATE, SECRET]).sign(ID, now, BODY), timestamp=now)))

    def test_anything_else(self):
        public = public_form(PRIVATE)
        other = public_form("whsk_" + b64encode(bytes(32)).decode())
        raw = SIGNATURE_A.removeprefix("v1a,")
        for signature in (
            "v1a,",
            "v1a",
            raw,
            f"v1,{raw}",
            f"v1A,{raw}",
            f"v1a,{raw[:-4]}",
            f"v1a,{raw} x"[:-3],
            "v1a,é",
            "v1a,eHg=",
        ):
            told = self.assertRaises(BadSignature, verify, [public], signed(signature), BODY, NOW)
            self.assertEqual(str(told), "no webhook-signature matches this key and this body")
        for headers, body, key in (
            (signed(SIGNATURE_A), BODY + b" ", public),
            (signed(SIGNATURE_A), BODY, other),
            (signed(SIGNATURE_A, timestamp=NOW + 1), BODY, public),
            (signed(SIGNATURE_A, webhook_id=ID + "x"), BODY, public),
            (signed(SIGNATURE_A), BODY, SECRET),
            (signed(), BODY, public),
        ):
            self.assertRaises(BadSignature, verify, [key], headers, body, NOW)
        verify([public], signed(f"v1a,x v2,y {SIGNATURE} {SIGNATURE_A}"), BODY, NOW)

    @given(st.binary(), st.binary(min_size=32, max_size=32))
    def test_whoever_has_the_public_key(self, body, seed):
        secret = "whsk_" + b64encode(seed).decode()
        verify([public_form(secret)], signed(Signer([secret]).sign(ID, NOW, body)), body, NOW)

    def test_wrong_keys(self):
        pair = b64encode(bytes(32) + b"x" * 32).decode()
        for check, secret, mistake in (
            (check_signing, "whsk_QUJD", "is the base64 of 3 bytes: an ed25519 key has 32, or 64 with its public half"),
            (
                check_signing,
                f"whsk_{'QUJD' * 16}QQ",
                "is the base64 of 49 bytes: an ed25519 key has 32, or 64 with its public half",
            ),
            (check_signing, "whsk_A-B", "is not base64 after whsk_: copy all of it again"),
            (
                check_signing,
                f"whsk_{pair}",
                "is not an ed25519 key: its second half is not the public key of the first; copy all of it again",
            ),
            (check_signing, public_form(PRIVATE), "is a public key, which cannot sign: write the private one, whsk_…"),
            (check_verifying, PRIVATE, "is a private key, which only the sender has: give the public one, whpk_…"),
            (check_verifying, "whpk_QUJD", "is the base64 of 3 bytes: an ed25519 public key has 32"),
            (check_verifying, "whpk_Ü", "is not base64 after whpk_: copy all of it again"),
            (public_form, SECRET, "does not begin with whsk_: make one with echo whsk_$(openssl rand -base64 32)"),
        ):
            told = self.assertRaises(ConfigError, check, secret)
            self.assertEqual(told.message, mistake)
        self.assertRaises(ConfigError, Signer, [public_form(PRIVATE)])
        self.assertRaises(ConfigError, verify, [PRIVATE], signed(SIGNATURE_A), BODY, NOW)


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
