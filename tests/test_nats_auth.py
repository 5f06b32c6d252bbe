"""Seeds, credentials, and where a server is."""

from base64 import urlsafe_b64decode
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import ConfigError
from mqhooks.nats.auth import Auth, public_key, read_seed
from mqhooks.nats.settings import Server, server
from tests.natscluster import ACCOUNT, NKey, credentials


class Seeds(SynchronousTestCase):
    def test_known_pair(self):
        """The pair of the reference implementation's documentation."""
        key = read_seed("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY")
        self.assertEqual(public_key(key), "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4")

    def test_signature(self):
        pair = NKey()
        answer = Auth(seed=f" {pair.seed}\n").answer("a nonce")
        self.assertEqual(answer["nkey"], pair.public)
        pair.key.public_key().verify(urlsafe_b64decode(answer["sig"] + "=="), b"a nonce")

    @given(st.text(max_size=70))
    def test_anything_else(self, text):
        self.assertRaises(ValueError, read_seed, text)

    @given(st.integers(0, 57), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
    def test_every_mistyped_letter_is_noticed(self, at, letter):
        seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
        mistyped = seed[:at] + letter + seed[at + 1 :]
        # Of the last letter only some bits count.
        if mistyped[:-1] != seed[:-1]:
            error = self.assertRaises(ValueError, read_seed, mistyped)
            self.assertNotIn(mistyped[4:-4], str(error))

    def test_seeds_of_others(self):
        self.assertRaises(ValueError, read_seed, NKey(ACCOUNT).seed)
        self.assertRaises(ValueError, read_seed, NKey().public)


class Settings(SynchronousTestCase):
    def file(self, content):
        path = Path(self.mktemp())
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def mistake(self, **given):
        error = self.assertRaises(ConfigError, Auth(**given, where="m.conf", path="outbox.auth").check)
        self.assertTrue(str(error).isprintable())
        return str(error)

    def test_one_way(self):
        Auth().check()
        Auth("me", "").check()
        Auth(token="t").check()
        self.assertEqual(Auth(token="t").answer(""), {"auth_token": "t"})
        self.assertIn("m.conf: outbox.auth.token: user is also set", self.mistake(user="u", password="p", token="t"))
        self.assertIn("outbox.auth.user: user and password need each other", self.mistake(user="u"))
        self.assertIn("need each other", self.mistake(password="p"))

    def test_secrets_are_not_shown(self):
        shown = repr(Auth("me", "s3cret", "t0ken", NKey().seed))
        for secret in ("s3cret", "t0ken", "SU"):
            self.assertNotIn(secret, shown)
        self.assertNotIn("s3cret", repr(server("nats://me:s3cret@h")))

    def test_credentials(self):
        pair = NKey()
        for text in (credentials("ey.J.x", pair.seed), credentials("ey.J.x", pair.seed).replace("\n", "\r\n")):
            answer = Auth(credsfile=self.file(text)).answer("n")
            self.assertEqual(answer["jwt"], "ey.J.x")
            pair.key.public_key().verify(urlsafe_b64decode(answer["sig"] + "=="), b"n")

    def test_file_is_read_again(self):
        first, second = NKey(), NKey()
        path = self.file(f"# a comment\n{first.seed}\n")
        auth = Auth(seedfile=path)
        self.assertEqual(auth.answer("n")["nkey"], first.public)
        Path(path).write_text(second.seed)
        self.assertEqual(auth.answer("n")["nkey"], second.public)

    def test_files_that_are_something_else(self):
        token = credentials("ey.J.x", "SUXX")
        for content in (b"", b"\x00\xff" * 1000, "hello", token.partition("*****")[0], NKey(ACCOUNT).seed):
            path = self.file(content)
            self.assertIn(f"outbox.auth.credsfile: {path} holds no user JWT", self.mistake(credsfile=path))
            self.assertIn(f"outbox.auth.seedfile: {path}: this is not a user's nkey seed", self.mistake(seedfile=path))
        path = self.file(token)
        self.assertIn(f"credsfile: {path}: this is not a user's nkey seed", self.mistake(credsfile=path))
        self.assertIn("credsfile: /nowhere cannot be read: No such file", self.mistake(credsfile="/nowhere"))
        self.assertIn("seed: this is not a user's nkey seed", self.mistake(seed="hello"))

    def test_servers(self):
        for url, expected in (
            ("nats://h", Server("h")),
            ("h:1", Server("h", 1)),
            ("tls://h.example:4443/", Server("h.example", 4443, tls=True)),
            ("nats://[::1]:5", Server("::1", 5)),
            ("nats://my_host", Server("my_host")),
            ("nats://a%40b:p%3A@h", Server("h", auth=Auth("a@b", "p:"))),
            ("nats://t0ken@h", Server("h", auth=Auth(token="t0ken"))),
        ):
            self.assertEqual(server(url), expected)
        self.assertEqual(str(server("nats://u:p@[::1]")), "[::1]:4222")

    def test_what_is_no_server(self):
        for url in (
            "",
            "http://h",
            "nats://",
            "nats://h:x",
            "nats://h:99999",
            "nats://h/path",
            "ws://h",
            "nats://[::1",
            "nats://h?x=1",
            "nats://h:0",
            "nats://h ost",
            "nats://h\x00",
            "nats://u:s3cret@h:x",
        ):
            error = self.assertRaises(ConfigError, server, url, "m.conf", "outbox.servers")
            self.assertIn("m.conf: outbox.servers: ", str(error))
            self.assertIn("is not a NATS server: write it like nats://host:4222", str(error))
            self.assertNotIn("s3cret", str(error))
