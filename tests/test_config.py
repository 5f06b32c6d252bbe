"""Configuration files: what they may say, and how mistakes are told."""

import os
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.admin.plain import plain
from mqhooks.app.configuration import for_url, load
from mqhooks.app.describe import describe
from mqhooks.app.proxies import from_environment
from mqhooks.app.settings import OutboxSettings, Settings, SidecarSettings
from mqhooks.errors import ConfigError
from mqhooks.events import HOOKS
from mqhooks.http.proxy import ProxySettings
from mqhooks.nanomq.events import NANOMQ_EVENTS, RULE_EVENTS, TOPIC_EVENTS
from mqhooks.nanomq.settings import BodySettings, Rule
from mqhooks.nats.auth import Auth
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.outbox.jetstream.store import JetStreamSettings
from mqhooks.support.signatures import public_form, secret_key
from mqhooks.support.tls import TLSSettings
from mqhooks.webhook.settings import (
    BasicSettings,
    BatchSettings,
    BearerSettings,
    LimitSettings,
    OAuth2Settings,
    RetrySettings,
    WebhookSettings,
)
from tests.frames import DATA

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
RULE = 'events = [ { event = "on_message_publish" } ]'


class ConfigCase(SynchronousTestCase):
    def write(self, text, name="mqhooks.conf"):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        path = directory / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def load(self, text):
        self.path = self.write(text)
        return load(self.path)

    def webhook(self, text="", *, url='url = "http://h/"', rules=RULE):
        loaded = self.load(f"webhook {{\n{url}\n{rules}\n{text}\n}}")
        self.warnings = loaded.warnings
        return loaded.webhooks[0]

    def mistake(self, text):
        error = self.assertRaises(ConfigError, self.load, text)
        self.assertNotIn("\n", str(error))
        self.assertTrue(str(error).startswith(self.path + ": "), str(error))
        return str(error).removeprefix(self.path + ": ")

    def webhook_mistake(self, text, **more):
        error = self.assertRaises(ConfigError, self.webhook, text, **more)
        self.assertNotIn("\n", str(error))
        self.assertTrue(str(error).startswith(self.path + ": webhook."), str(error))
        return str(error).removeprefix(self.path + ": webhook.")


class WholeFileTests(ConfigCase):
    def test_a_brokers_whole_file(self):
        loaded = load(str(DATA / "nanomq.conf"))
        self.assertEqual(
            loaded,
            Settings(
                webhooks=(
                    WebhookSettings(
                        name="webhook",
                        url="http://127.0.0.1:80",
                        rules=(Rule("on_message_publish", "a/b/c"), Rule("on_client_connack")),
                        headers=(("content-type", "application/json"),),
                        encoding="plain",
                        pool_size=32,
                        cancel_timeout=5.0,
                    ),
                )
            ),
        )

    def test_empty(self):
        self.assertEqual(self.load(""), Settings())

    def test_several_webhooks(self):
        loaded = self.load(
            f"""
            webhook {{ url = "http://a/", {RULE} }}
            webhooks {{
              billing {{ url = "http://b/", {RULE} }}
              audit {{ url = "http://c/", {RULE} }}
              off {{ enable = false }}
            }}
            """
        )
        self.assertEqual(
            [(webhook.name, webhook.url) for webhook in loaded.webhooks],
            [("webhook", "http://a/"), ("billing", "http://b/"), ("audit", "http://c/")],
        )

    def test_names_are_unique(self):
        mistake = self.mistake(
            f'webhook {{ url = "http://a/", {RULE} }}\nwebhooks {{ webhook {{ url = "http://b/", {RULE} }} }}'
        )
        self.assertIn("webhooks.webhook: ", mistake)

    def test_disabled(self):
        self.assertEqual(self.load("webhook { enable = false, url = 5 }"), Settings())

    def test_ours(self):
        loaded = self.load(
            """
            mqhooks {
              sidecar { max_frame = 1MiB, max_sessions = 10, max_sessions_size = 2MiB, gather = 2ms }
              outbox { kind = memory, max_size = 2GiB }
              shutdown_timeout = 30s
            }
            """
        )
        self.assertEqual(
            loaded,
            Settings(
                sidecar=SidecarSettings(max_frame=1 << 20, max_sessions=10, max_sessions_size=2 << 20, gather=0.002),
                outbox=OutboxSettings(kind="memory", max_size=2 << 30, dead_max=1_000),
                shutdown_timeout=30.0,
            ),
        )

    def test_ours_wrong(self):
        self.assertEqual(
            self.mistake("mqhooks { sidecar { max_frame = 1GiB } }"),
            "mqhooks.sidecar.max_frame: '1GiB' is not a size from 1024 to 268435456 bytes, like 512KiB or 16MiB",
        )
        self.assertIn("mqhooks.sidecar.max_sessions: -1 is not", self.mistake("mqhooks.sidecar.max_sessions = -1"))
        self.assertIn(
            "mqhooks.outbox.kind: 'memori' is not one of sqlite, memory, jetstream",
            self.mistake("mqhooks.outbox.kind = memori"),
        )
        self.assertIn("mqhooks: 5 is not a block", self.mistake("mqhooks = 5"))

    def test_outbox(self):
        self.assertEqual(
            self.load(
                """
                mqhooks.outbox {
                  kind = sqlite, path = "/var/lib/mqhooks/outbox", sync = full
                  max_size = 5GiB, on_full = drop_oldest, dead_max = 0
                }
                """
            ).outbox,
            OutboxSettings("sqlite", "/var/lib/mqhooks/outbox", "full", 5 << 30, "drop_oldest", 0),
        )
        for kind, size, letters in (("sqlite", 1 << 30, 100_000), ("memory", 64 << 20, 1_000)):
            expected = OutboxSettings(kind=kind, max_size=size, dead_max=letters)
            self.assertEqual(self.load(f"mqhooks.outbox.kind = {kind}").outbox, expected)
            loaded = self.load(f"mqhooks.outbox {{ kind = {kind}, dead_max = 7 }}")
            self.assertEqual(loaded.outbox, replace(expected, dead_max=7))

    def test_jetstream(self):
        password = "p" * 8
        loaded = self.load(
            f"""
            mqhooks.outbox {{
              kind = jetstream, servers = ["nats://a:4222", "tls://b"], replicas = 1, partitions = 8, prefix = EU
              user = mqhooks, password = {password}, sync = full, max_size = 2GiB, dead_max = 5
            }}
            """
        ).outbox
        self.assertEqual((loaded.kind, loaded.max_size, loaded.dead_max), ("jetstream", 2 << 30, 5))
        expected = JetStreamSettings(
            NATSSettings((Server("a", 4222), Server("b", 4222, tls=True)), Auth("mqhooks", password)), 1, 8, "EU", synced=True
        )
        self.assertEqual(loaded.jetstream, expected)
        least = self.load("mqhooks.outbox { kind = jetstream, servers = a }").outbox
        self.assertEqual(least.jetstream, JetStreamSettings(NATSSettings((Server("a"),)), 3, 16, "MQ", synced=False))
        self.assertEqual(least.role, "both")
        self.assertEqual(self.load("mqhooks.outbox { kind = jetstream, servers = a, role = ACCEPT }").outbox.role, "accept")
        self.assertIsNone(least.jetstream.spill)
        self.assertEqual(
            self.load("mqhooks.outbox { kind = jetstream, servers = a, spill = none }").outbox.jetstream.spill, "none"
        )

    def test_jetstream_wrong(self):
        for keys, mistake in (
            ("", "servers: is missing: kind = jetstream needs it: write servers = "),
            ("servers = []", "servers: is empty: name at least one server"),
            ("servers = [[a]]", "servers: ['a'] is not a server's address"),
            ('servers = ["http://a"]', "servers: http://a is not a NATS server"),
            ("servers = a, replicas = 2", "replicas: 2 is not 1, 3 or 5"),
            ("servers = a, replicas = 7", "replicas: 7 is not"),
            ("servers = a, partitions = 0", "partitions: 0 is not"),
            ("servers = a, spill = memory", "spill: 'memory' is not one of sqlite, none"),
            ("servers = a, role = reader", "role: 'reader' is not one of both, accept, deliver"),
            ('servers = a, prefix = "a.b"', "prefix: 'a.b' is not 1 to 32 letters"),
            ("servers = a, user = u", "user: user and password need each other: set both"),
            ("servers = a, user = u, password = p, token = t", "token: user is also set: choose one of them"),
            ("servers = a, seed = SUX", "seed: "),
            ('servers = a, credsfile = "/nowhere"', "credsfile: "),
            ('servers = a, tls { cacertfile = "/nowhere" }', "tls.cacertfile: /nowhere does not exist"),
        ):
            with self.subTest(keys):
                told = self.mistake(f"mqhooks.outbox {{ kind = jetstream, {keys} }}")
                self.assertIn("mqhooks.outbox." + mistake, told)
                self.assertNotIn("\n", told)
        warnings = self.load('mqhooks.outbox { servers = ["nats://a"], replicas = 3 }').warnings
        self.assertEqual(
            [warning.split(": ", 1)[1] for warning in warnings],
            [f"mqhooks.outbox.{key}: applies only to kind = jetstream, and is ignored here" for key in ("servers", "replicas")],
        )

    def test_outbox_wrong(self):
        for setting, mistake in {
            "sync = none": "sync: 'none' is not one of normal, full",
            "on_full = drop": "on_full: 'drop' is not one of pause, drop_oldest",
            "dead_max = -1": "dead_max: -1 is not a whole number of 0 or more",
            'path = ""': "path: is empty: name a file",
            'path = "a\0b"': "path: has a NUL character, which a path must not have",
            "max_size = 1KiB": "max_size: '1KiB' is not a size of 1048576 bytes or more, like 512KiB or 16MiB",
        }.items():
            self.assertEqual(self.mistake(f"mqhooks.outbox {{ {setting} }}"), "mqhooks.outbox." + mistake)
        (warning,) = self.load("mqhooks.outbox { kind = memory, sync = full }").warnings
        self.assertTrue(warning.endswith("mqhooks.outbox.sync: applies only to kind = sqlite, and is ignored here"), warning)

    def test_notify(self):
        self.assertEqual(self.load("").notify.url, "")
        loaded = self.load('mqhooks.notify { url = "HTTPS://chat.example/hooks/S3cretToken" }')
        self.assertEqual(loaded.notify.url, "https://chat.example/hooks/S3cretToken")
        self.assertEqual(loaded.notify.on, ("down", "up", "held", "dead", "full", "forgotten"))
        told = f'mqhooks.notify {{ url = "https://chat.example/hooks/S3cretToken", on = [Down, up], secret = "{SECRET}" }}'
        loaded = self.load(told)
        self.assertEqual((loaded.notify.on, loaded.notify.secret), (("down", "up"), (SECRET,)))
        line = "notify  POST https://chat.example/hooks/… on down, up, signed with 1 secret"
        self.assertIn(line, describe(loaded, [], []).splitlines())
        self.assertNotIn("notify", describe(self.load(""), [], []))
        self.assertEqual(self.load('mqhooks.notify { url = "http://h/", on = dead }').notify.on, ("dead",))
        shown = str(plain(loaded))
        for hidden in (SECRET, "S3cretToken"):
            self.assertNotIn(hidden, shown)
        for text, problem in (
            ("{ }", "url: is missing: set where notifications go, for example url = "),
            ("{ on = [down] }", "url: is missing"),
            ("{ url = nonsense }", "url: 'nonsense' is not a URL"),
            ('{ url = "http://h/", on = [] }', "on: is empty, so no notification would be sent: choose from down, "),
            (
                '{ url = "http://h/", on = [dwn] }',
                "on: 'dwn' is not one of down, up, held, dead, full, forgotten; did you mean 'down'?",
            ),
            ('{ url = "http://h/", on = { a = b } }', "on: "),
            ('{ url = "http://h/", secret = short }', "secret: does not begin with whsec_"),
        ):
            self.assertTrue(self.mistake(f"mqhooks.notify {text}").startswith(f"mqhooks.notify.{problem}"), text)
        self.assertIn("is not a block in braces", self.mistake("mqhooks.notify = yes"))

    def test_defaults_of_all_webhooks(self):
        one, other = self.load(
            f"""
            mqhooks {{ retry {{ initial = 2s, on = [503] }}, ordering = none, merge_window = 0 }}
            webhooks {{
              one {{ url = "http://a/", {RULE} }}
              other {{
                url = "http://b/", {RULE}
                retry {{ max_attempts = 5, on = [429] }}, ordering = client, merge_window = 1s
              }}
            }}
            """
        ).webhooks
        self.assertEqual((one.retry, one.ordering, one.merge_window), (RetrySettings(initial=2, on=(503,)), "none", 0))
        self.assertEqual(
            (other.retry, other.ordering, other.merge_window),
            (RetrySettings(initial=2, max_attempts=5, on=(429,)), "client", 1),
        )
        self.assertEqual(
            self.mistake("mqhooks.ordering = clients").partition(";")[0],
            "mqhooks.ordering: 'clients' is not one of client, none",
        )

    def test_events_are_gathered_for_a_tenth_of_what_they_wait_anyway(self):
        def gathered(*webhooks, ours=""):
            blocks = [f'w{number} {{ url = "http://h/", {RULE}, {more} }}' for number, more in enumerate(webhooks)]
            return self.load(f"webhooks {{ {' '.join(blocks)} }}\nmqhooks {{ sidecar {{ {ours} }} }}").gather

        self.assertEqual(gathered("merge_window = 50ms"), 0.005)
        self.assertEqual(gathered("merge_window = 1m"), 0.005)
        self.assertAlmostEqual(gathered("merge_window = 50ms", "merge_window = 20ms"), 0.002)
        self.assertEqual(gathered("merge_window = 50ms", "merge_window = 0"), 0)
        self.assertEqual(gathered("merge_window = 50ms", "ordering = none"), 0)
        self.assertEqual(gathered("merge_window = 0", ours="gather = 3ms"), 0.003)
        self.assertEqual(gathered("merge_window = 50ms", ours="gather = 0"), 0)
        self.assertEqual(for_url("http://127.0.0.1:1/x").gather, 0.005)
        self.assertEqual(Settings().gather, 0)

    def test_misplaced(self):
        (warning,) = self.load("sidecar { max_frame = 1MiB }").warnings
        self.assertEqual(
            warning, f"{self.path}: sidecar: belongs in the mqhooks block and is ignored here: mqhooks {{ sidecar {{ … }} }}"
        )

    def test_unknown_keys_of_ours(self):
        (warning,) = self.load("mqhooks { sidecar { max_frames = 1MiB } }").warnings
        self.assertTrue(warning.endswith("mqhooks.sidecar.max_frames: unknown, ignored; did you mean 'max_frame'?"), warning)

    def test_url_alone(self):
        (webhook,) = for_url("http://127.0.0.1:1/x").webhooks
        self.assertEqual(webhook.rules, tuple(map(Rule, NANOMQ_EVENTS)))
        error = self.assertRaises(ConfigError, for_url, "127.0.0.1:1")
        self.assertIn("--url: '127.0.0.1:1' is not a URL", str(error))


class SyntaxTests(ConfigCase):
    def test_syntax_errors_say_where(self):
        self.assertIn("syntax error in line 3, column 1: '}'", self.mistake("webhook {\n url  x\n}"))
        self.assertIn("syntax error at the end of the file", self.mistake("webhook {\n url = \n"))
        for text in ("{", "a = [1", 'a = "x', "= 1", "a {", "webhook { url }"):
            self.assertIn("syntax error", self.mistake(text))

    def test_a_quoted_key_after_a_dot(self):
        self.assertEqual(
            self.mistake('webhook {\n  headers."a b" = x\n}'),
            "syntax error in line 2, column 11: 'headers.\"a b\" = x'; a key in quotes has no dots beside it: "
            'write it in braces, as in headers { "x-a" = b }',
        )
        for text in ('a = b."c', '"a" "b" = c', "a. = b = c"):
            self.assertNotIn("in braces", self.mistake(text))

    def test_escapes(self):
        """They are the same for every key, and those of JSON."""
        for written, text in {
            r"\u0041\u00E9\ud83d\ude00": "A\u00e9\U0001f600",
            r"\\u0041": r"\u0041",
            r"a\/b\\c\"": 'a/b\\c"',
            r"\=\#\!": "=#!",
            r"\q": r"\q",
            r"\ud83d": "\ufffd",
            "": "",
        }.items():
            webhook = self.webhook(
                f'headers {{ x = "{written}", y = "<"${{webhook.headers.x}}">" }}\ntls.key_password = "{written}"',
                url='url = "https://h/"',
            )
            self.assertEqual(webhook.headers, (("x", text), ("y", f"<{text}>")))
            self.assertEqual(webhook.tls.key_password, text)
        self.assertEqual(self.load(r'mqhooks.admin.hosts = ["\u0061.example"]').admin.hosts, ("a.example",))
        self.assertEqual(self.webhook(r'body.encoding = "pl\u0061in"').encoding, "plain")
        self.assertIn("another control character", self.webhook_mistake(r'headers.x = "\b"'))
        self.assertEqual(self.webhook(r'headers.x = """\u0041\n"""').headers, (("x", r"\u0041\n"),))

    def test_files_that_cannot_be_read(self):
        for path, reason in (("/nowhere/x.conf", "No such file"), (self.mktemp(), "No such file"), ("/", "directory")):
            error = self.assertRaises(ConfigError, load, path)
            self.assertTrue(str(error).startswith(f"{path}: cannot be read: "), str(error))
            self.assertIn(reason, str(error))

    def test_not_text(self):
        self.assertEqual(self.mistake(b"a = \xff\xfe"), "is not UTF-8 text")

    def test_byte_order_mark(self):
        self.assertEqual(self.load("\ufeffmqhooks {}"), Settings())

    def test_a_list(self):
        self.assertIn("holds a list", self.mistake("[1, 2]"))

    def test_nesting(self):
        self.assertIn("nested too deeply", self.mistake("a = " + "[" * 5000))

    def test_environment(self):
        os.environ["MQHOOKS_TEST_TOKEN"] = "s3cret"
        self.addCleanup(os.environ.pop, "MQHOOKS_TEST_TOKEN")
        webhook = self.webhook('headers.authorization = "Bearer "${MQHOOKS_TEST_TOKEN}')
        self.assertEqual(webhook.headers, (("authorization", "Bearer s3cret"),))

    def test_environment_not_set(self):
        self.assertEqual(
            self.mistake("a = 1\nb = ${MQHOOKS_NOT_SET}"),
            "${MQHOOKS_NOT_SET} is not set (line 2): set the environment variable, "
            "or write ${?MQHOOKS_NOT_SET} where it may be missing",
        )
        self.assertEqual(self.webhook("headers.x-token = ${?MQHOOKS_NOT_SET}").headers, ())

    def test_substitution_within_the_file(self):
        self.assertEqual(self.webhook('x = "v"\nheaders.x-a = ${webhook.x}').headers, (("x-a", "v"),))

    def test_cycles_of_substitutions(self):
        self.assertIn("references must not be circular", self.mistake("a = ${b}\nb = ${a}"))

    def test_include(self):
        included = self.write('headers { X-A = "1" }', "more.conf")
        self.assertEqual(self.webhook(f'include "{included}"').headers, (("X-A", "1"),))

    def test_include_is_relative_to_its_file(self):
        path = self.write('include "sub/more.conf"')
        sub = Path(path).parent / "sub"
        sub.mkdir()
        (sub / "more.conf").write_text('include "most.conf"')
        (sub / "most.conf").write_text(f'webhook {{ url = "http://h/", {RULE} }}')
        self.assertEqual(len(load(path).webhooks), 1)

    def test_include_that_is_missing(self):
        (warning,) = self.load('include "nowhere.conf"').warnings
        self.assertIn("nowhere.conf: does not exist, so its settings are missing", warning)
        error = self.assertRaises(ConfigError, self.load, 'include required("nowhere.conf")')
        self.assertIn("nowhere.conf: cannot be read: No such file", str(error))

    def test_include_that_includes_itself(self):
        path = self.write("")
        Path(path).write_text(f'include "{path}"')
        self.assertIn("includes itself", str(self.assertRaises(ConfigError, load, path)))

    def test_mistakes_in_an_included_file_name_it(self):
        included = self.write("a = [", "broken.conf")
        error = self.assertRaises(ConfigError, self.load, f'include "{included}"')
        self.assertTrue(str(error).startswith(f"{included}: syntax error"), str(error))

    def test_urls_are_not_fetched(self):
        for text in ('include "http://127.0.0.1:1/x"', 'include url("http://127.0.0.1:1/x")', 'include "file:///etc/passwd"'):
            self.assertIn("URLs cannot be included", str(self.assertRaises(ConfigError, self.load, text)))

    @settings(deadline=None, max_examples=60)
    @given(st.text(max_size=40) | st.text('{}[]=:,"\\#/$?+&\n abwebhook15', max_size=40))
    def test_no_text_ends_in_a_traceback(self, text):
        path = self.write(text.encode("utf-8", "surrogatepass"))
        try:
            load(path)
        except ConfigError as error:
            self.assertNotIn("\n", str(error))

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_no_mutilated_file_ends_in_a_traceback(self, data):
        text = f'webhook {{ url = "http://h/", headers.x = 1, body.encoding = plain, pool_size = 3, {RULE} }}'
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 6)))
        path = self.write(
            text[:start] + data.draw(st.sampled_from(["", "{", "}", '"', "[", "]", "=", "5", "null"])) + text[stop:]
        )
        try:
            load(path)
        except ConfigError as error:
            self.assertNotIn("\n", str(error))


class WebhookTests(ConfigCase):
    def test_defaults(self):
        self.assertEqual(self.webhook(), WebhookSettings("webhook", "http://h/", (Rule("on_message_publish"),)))
        self.assertEqual(self.warnings, ())

    def test_everything(self):
        self.assertEqual(
            self.webhook(
                """
                enable = true
                headers { content-type = "text/json", X-Number = 5, X-Flag = true, "X-Dotted.Name" = 1.5 }
                body.encoding = BASE62
                pool_size = 7
                cancel_timeout = 2s
                details = on
                unknown { proto_ver = 4, keepalive = 60 }
                retry {
                  initial = 500ms, multiplier = 3, max = 1m, jitter = 0
                  max_age = 7d, max_attempts = 20, on = [408, "429", "5XX"]
                }
                ordering = none
                merge_window = 0s
                secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
                """
            ),
            WebhookSettings(
                name="webhook",
                url="http://h/",
                rules=(Rule("on_message_publish"),),
                headers=(("content-type", "text/json"), ("X-Number", "5"), ("X-Flag", "true"), ("X-Dotted.Name", "1.5")),
                encoding="base62",
                pool_size=7,
                cancel_timeout=2.0,
                details=True,
                proto_ver=4,
                keepalive=60,
                retry=RetrySettings(0.5, 3, 60, 0, 7 * 86400, 20, (408, 429, "5xx")),
                ordering="none",
                merge_window=0,
                secrets=(SECRET,),
            ),
        )
        self.assertEqual(self.warnings, ())

    def test_durations(self):
        spellings = {"5000": 5, "5s": 5, '"250 ms"': 0.25, "1m": 60, "1.5s": 1.5, "2 seconds": 2, "1w": 604800}
        for text, seconds in spellings.items():
            self.assertEqual(self.webhook(f"cancel_timeout = {text}").cancel_timeout, seconds)
        for text in ("0", "-5", "soon", "5x", "[5]", "true", '""', "0s"):
            self.assertIn(
                "is not a duration like 5s, 500ms or a number of ms", self.webhook_mistake(f"cancel_timeout = {text}")
            )

    def test_urls(self):
        for url in ("https://h", "http://h:8080/a?b=c", "http://[::1]:80/"):
            self.assertEqual(self.webhook(url=f'url = "{url}"').url, url)
        self.assertEqual(self.webhook(url="url = HTTP://H/").url, "http://H/")
        for url in ("ftp://h/", "h:80", "http://", "http://h:0/", "http://h:99999/", "http://h:x/", "http://[::1", "/hook", ""):
            self.assertIn("is not a URL", self.webhook_mistake("", url=f'url = "{url}"'))
        self.assertIn("percent-encode", self.webhook_mistake("", url='url = "http://h/a b"'))
        self.assertIn("percent-encode", self.webhook_mistake("", url='url = "http://h/é"'))
        self.assertIn("headers.authorization", self.webhook_mistake("", url='url = "http://u:p@h/"'))
        self.assertIn("fragment", self.webhook_mistake("", url='url = "http://h/#x"'))
        self.assertIn("is missing", self.webhook_mistake("", url=""))
        self.assertEqual(self.webhook_mistake("", url="url = []"), "url: a list is not text")
        self.assertEqual(self.webhook_mistake("", url="url = 5"), "url: '5' is not a URL like http://host:8080/path")

    def test_headers(self):
        for name in ("Host", "content-length", "Transfer-Encoding", "CONNECTION", "webhook-id"):
            self.assertEqual(
                self.webhook_mistake(f'headers.{name} = "x"'), f"headers.{name}: is set by mqhooks itself: remove it"
            )
        for value in ('"a\\nb"', '"a\\rb"', '"a\0b"'):
            self.assertIn("headers.x: has a line break", self.webhook_mistake(f"headers.x = {value}"))
        self.assertIn("headers.x: is a list, not text", self.webhook_mistake("headers.x = [1]"))
        self.assertEqual(
            self.webhook_mistake('headers { "a b" = 1 }'),
            "headers.a b: is not a header name: use letters, digits and hyphens",
        )
        self.assertIn("headers: 5 is not a block", self.webhook_mistake("headers = 5"))
        self.assertEqual(self.webhook('headers.x = " ö "').headers, (("x", "ö"),))

    def test_headers_are_sent_as_they_are_written(self):
        for text in (
            *("007", "+7", "-0", "1e5", "1e+5", ".5", "2024.10", "1" * 5000, "TRUE", "false", "5s", "5 weeks", "5m-x", "5 s b"),
            *("v 007", "at 2024.10", "for 5 seconds", "it is true", "True or not", "this is null", "Null and void"),
        ):
            for end in ("", "  ", " # a number", " // a number", ", y = 1"):
                self.assertEqual(self.webhook(f"headers {{ x = {text}{end}\n}}").headers[0], ("x", text))
            self.assertEqual(self.webhook(f'headers.x = "<"{text}').headers, (("x", f"<{text}"),))
            self.assertEqual(self.webhook(f'v = {text}\nheaders.x = "<"${{webhook.v}}">"').headers, (("x", f"<{text}>"),))
        self.assertEqual(self.webhook("v = 1\nheaders.x = 007${webhook.v}").headers, (("x", "0071"),))
        self.assertEqual(self.webhook("headers.x = NULL").headers, ())

    def test_numbers_however_they_are_written(self):
        self.assertEqual(self.webhook("pool_size = +007").pool_size, 7)
        for text, number in ((".5", 0.5), ("0.50", 0.5), ("5e-1", 0.5), ("+1E+0", 1)):
            self.assertEqual(self.webhook(f"retry.jitter = {text}").retry.jitter, number)

    def test_encoding(self):
        self.assertEqual(self.webhook('body.encoding = "Base64"').encoding, "base64")
        self.assertEqual(
            self.webhook_mistake("body.encoding = base46"),
            "body.encoding: 'base46' is not one of plain, base64, base62, json, omit; did you mean 'base64'?",
        )

    def test_pool_size(self):
        self.assertEqual(self.webhook('pool_size = "8"').pool_size, 8)
        for text in ("0", "-1", "1.5", "many", "true", "[]"):
            self.assertIn("is not a whole number from 1", self.webhook_mistake(f"pool_size = {text}"))

    def test_every_event_in_any_case(self):
        self.assertEqual((len(NANOMQ_EVENTS), len(HOOKS), len(RULE_EVENTS)), (12, 13, 25))
        for event in RULE_EVENTS:
            webhook = self.webhook(rules=f'events = [ {{ event = "{event.upper()}" }} ]')
            self.assertEqual(webhook.rules, (Rule(event),))

    def test_events_wrong(self):
        self.assertEqual(
            self.webhook_mistake("", rules='events = [ { event = "on_mesage_publish" } ]'),
            "events[0].event: there is no event 'on_mesage_publish'; did you mean 'on_message_publish'?",
        )
        self.assertIn("events[1].event: is missing", self.webhook_mistake("", rules="events = [ { event = on_publish }, {} ]"))
        self.assertIn("events[0]: 5 is not a block", self.webhook_mistake("", rules="events = [ 5 ]"))
        self.assertIn("events: 'x' is not a list", self.webhook_mistake("", rules="events = x"))

    def test_no_events(self):
        for rules in ("", "events = []"):
            self.webhook(rules=rules)
            self.assertIn("webhook.events: is empty: nothing will be sent", self.warnings[0])

    def test_topics(self):
        for topic in ("a/+/c", "#", "+", "a/#", "$share/g/t", "/"):
            webhook = self.webhook(rules=f'events = [ {{ event = on_publish, topic = "{topic}" }} ]')
            self.assertEqual(webhook.rules, (Rule("on_publish", topic),))
        for topic in ("a/#/c", "a+", "", "a#", "#/a"):
            mistake = self.webhook_mistake("", rules=f'events = [ {{ event = on_publish, topic = "{topic}" }} ]')
            self.assertTrue(mistake.startswith(f"events[0].topic: '{topic}': "), mistake)

    def test_topics_of_events_without_topics(self):
        for event in RULE_EVENTS:
            webhook = self.webhook(rules=f'events = [ {{ event = {event}, topic = "a" }} ]')
            if event in TOPIC_EVENTS:
                self.assertEqual((webhook.rules, self.warnings), ((Rule(event, "a"),), ()))
            else:
                self.assertEqual(webhook.rules, (Rule(event),))
                self.assertIn(f"webhook.events[0].topic: {event} has no topic", self.warnings[0])

    def test_transport(self):
        self.assertEqual(self.webhook("transport = treq").transport, "treq")
        self.assertEqual(self.webhook("").transport, "pooled")
        self.assertEqual(self.webhook_mistake("transport = curl"), "transport: 'curl' is not one of pooled, treq")

    def test_what_bodies_are_made_from(self):
        webhook = self.webhook("body.encoding = base64, details = true, unknown { proto_ver = 4, keepalive = 60 }")
        self.assertEqual(webhook.bodies, BodySettings((Rule("on_message_publish"),), "base64", True, 4, 60))

    def test_unknown_keys(self):
        self.webhook("pool_sizes = 5\nzzz = 1\nbody.encodings = plain\nunknown.proto = 4")
        self.assertEqual(
            [warning.removeprefix(f"{self.path}: webhook.") for warning in self.warnings],
            [
                "unknown.proto: unknown, ignored; did you mean 'proto_ver'?",
                "body.encodings: unknown, ignored; did you mean 'encoding'?",
                "pool_sizes: unknown, ignored; did you mean 'pool_size'?",
                "zzz: unknown, ignored",
            ],
        )

    def test_enable(self):
        self.assertIn("enable: 'maybe' is not true or false", self.webhook_mistake("enable = maybe"))


class RetryTests(ConfigCase):
    def test_defaults(self):
        retry = self.webhook("retry {}").retry
        self.assertEqual((retry.initial, retry.multiplier, retry.maximum, retry.jitter), (1, 2, 300, 0.2))
        self.assertEqual((retry.max_age, retry.max_attempts), (259200, 0))
        self.assertEqual(set(retry.on), {408, 425, 429} | set(range(500, 600)) - {501, 505})

    def test_statuses(self):
        for text, on in (("[]", ()), ("5xx", ("5xx",)), ("[300, 4xx, 599]", (300, "4xx", 599)), ("429", (429,))):
            self.assertEqual(self.webhook(f"retry.on = {text}").retry.on, on)
        for text in ("[299]", "[600]", "[2xx]", '["5x"]', '["٤٠٤"]', "[true]", "[[408]]", "[{}]", "[408.5]", "[5s]", "{}"):
            mistake = self.webhook_mistake(f"retry.on = {text}")
            self.assertTrue(mistake.startswith("retry.on: "), mistake)
            self.assertTrue(mistake.endswith('is not a status from 300 to 599, "3xx", "4xx" or "5xx"'), mistake)

    def test_limits(self):
        for setting, mistake in {
            "initial = 0": "initial: 0 is not a duration like 5s, 500ms or a number of ms",
            "multiplier = 0.5": "multiplier: 0.5 is not a number from 1 to 100",
            "multiplier = twice": "multiplier: 'twice' is not a number from 1 to 100",
            "jitter = 20%": "jitter: '20%' is not a number from 0 to 1",
            "jitter = true": "jitter: true is not a number from 0 to 1",
            "max_age = 0": "max_age: 0 is not a duration like 5s, 500ms or a number of ms",
            "max_attempts = -1": "max_attempts: -1 is not a whole number of 0 or more",
            "initial = 10m": "max: 300 s is less than initial, 600 s: raise it",
        }.items():
            self.assertEqual(self.webhook_mistake(f"retry {{ {setting} }}"), "retry." + mistake)
        self.webhook("retry.maximum = 5m")
        self.assertIn("webhook.retry.maximum: unknown, ignored; did you mean 'max", self.warnings[0])

    def test_refusals(self):
        self.assertEqual(self.webhook("").retry.refusals, "hold")
        self.assertEqual(self.webhook("retry.refusals = BURY").retry.refusals, "bury")
        (webhook,) = self.load(f'mqhooks.retry.refusals = bury\nwebhook {{ url = "http://h/", {RULE} }}').webhooks
        self.assertEqual(webhook.retry.refusals, "bury")
        self.assertEqual(self.webhook_mistake("retry.refusals = keep"), "retry.refusals: 'keep' is not one of hold, bury")

    def test_batch(self):
        self.assertIsNone(self.webhook("").batch)
        self.assertEqual(self.webhook("batch {}").batch, BatchSettings())
        self.assertEqual(
            self.webhook("batch { size = 7, linger = 0, max_bytes = 2KiB, format = ndjson, compression = gzip }").batch,
            BatchSettings(7, 0, 2048, "ndjson", "gzip"),
        )

    def test_limit(self):
        self.assertIsNone(self.webhook().limit)
        for text, rate, burst in (
            ('limit = "100/s"', 100, 10),
            ("limit = 100/s", 100, 10),
            ("limit = 600 / min", 10, 1),
            ('limit = "7200/h"', 2, 1),
            ('limit = "0.5/s"', 0.5, 1),
            ("limit { rate = 100/s, burst = 20 }", 100, 20),
            ("limit.rate = 1/m", 1 / 60, 1),
        ):
            self.assertEqual(self.webhook(text).limit, LimitSettings(rate, burst), text)
            self.assertEqual(self.warnings, ())
        for text, problem in (
            ("limit = 100", "limit: '100' is not a rate of requests, like 100/s"),
            ("limit = [1/s, 2/s]", "limit: "),
            ("limit = []", "limit: "),
            ('limit = "0/s"', "limit: '0/s'"),
            ('limit = "100/year"', "limit: '100/year'"),
            ("limit { }", "limit.rate: is missing"),
            ("limit { rate = fast }", "limit.rate: 'fast'"),
            ("limit { rate = 100/s, burst = 0 }", "limit.burst: 0 is not a whole number from 1"),
        ):
            self.assertTrue(self.webhook_mistake(text).startswith(problem), (text, self.webhook_mistake(text)))
        self.webhook("limit { rate = 1/s, brst = 2 }")
        self.assertIn("limit.brst: unknown, ignored; did you mean 'burst'?", self.warnings[0])

    def test_the_type_of_lines(self):
        for own in ("application/json", "Application/JSON; charset=utf-8"):
            for name in ("content-type", "Content-Type"):
                webhook = self.webhook(f'headers {{ {name} = "{own}", x = y }}\nbatch.format = ndjson')
                self.assertEqual(webhook.headers, (("x", "y"),))
                (warning,) = self.warnings
                instead = "application/x-ndjson is sent instead, since batch.format is ndjson"
                self.assertEqual(warning, f"{self.path}: webhook.headers.{name}: {instead}")
        for own, batch in (
            ("application/json", ""),
            ("application/json", "batch.format = array"),
            ("application/json-seq", "batch.format = ndjson"),
            ("text/plain", "batch.format = ndjson"),
        ):
            webhook = self.webhook(f'headers.content-type = "{own}"\n{batch}')
            self.assertEqual((webhook.headers, self.warnings), ((("content-type", own),), ()))

    def test_an_encoding_of_ones_own(self):
        own = "headers.Content-Encoding = identity"
        self.assertEqual(
            self.webhook_mistake(f"{own}\nbatch.compression = gzip"),
            "headers.Content-Encoding: is set by batch.compression = gzip: remove one of the two",
        )
        for batch in ("", "batch {}"):
            self.assertEqual(self.webhook(f"{own}\n{batch}").headers, (("Content-Encoding", "identity"),))

    def test_mistakes_in_a_batch(self):
        for mistake, complaint in (
            ("size = 0", "batch.size: 0 is not"),
            ("linger = -1", "batch.linger: -1 is not a duration"),
            ("max_bytes = 1", "batch.max_bytes: "),
            ("format = xml", "batch.format: "),
            ("compression = zip", "batch.compression: "),
        ):
            self.assertIn(complaint, self.webhook_mistake(f"batch {{ {mistake} }}"))

    def test_merge_window(self):
        self.assertEqual(self.webhook("merge_window = 0").merge_window, 0)
        self.assertEqual(
            self.webhook_mistake("merge_window = -1"),
            "merge_window: -1 is not a duration like 5s, 500ms or a number of ms, or 0",
        )

    def test_described(self):
        webhook = "retry { on = [429, 5xx], max_attempts = 5, max_age = 90s, max = 1s }\nordering = none, transport = treq"
        loaded = self.load(
            f"""
            webhook {{ url = "http://h/", {RULE}, {webhook} }}
            mqhooks {{ outbox {{ kind = sqlite, path = box }}, merge_window = 0 }}
            webhooks.b {{ url = "http://h/", {RULE}, retry.on = [] }}
            """
        )
        lines = [line.strip() for line in describe(loaded, [], []).splitlines()]
        self.assertIn("tried for 90 s, 5 times at most, with waits of 1 s to 1 s; again after no answer, 429, 5xx", lines)
        self.assertIn("in no particular order", lines)
        self.assertIn("at most 32 connections (treq), 5 s for a request, payload as plain", lines)
        self.assertIn("tried for 72 h, with waits of 1 s to 5 min; again after no answer", lines)
        self.assertIn("each client's events in the order they are read", lines)
        self.assertIn(
            "outbox  box, sync normal, at most 1024 MiB for each webhook; when it is full, mqhooks stops reading events; "
            "100000 dead letters",
            lines,
        )


class SecretTests(ConfigCase):
    def test_one_or_several(self):
        other = "whsec_" + "QUJD" * 16
        self.assertEqual(self.webhook(f'secret = "{SECRET}"').secrets, (SECRET,))
        self.assertEqual(self.webhook(f'secret = ["{SECRET}", "{other}"]').secrets, (SECRET, other))
        self.assertEqual(self.webhook("secret = ${?MQHOOKS_NOT_SET}").secrets, ())

    def test_private_key(self):
        private, public = "whsk_" + "QUJD" * 10 + "QUI=", "whpk_vOuKopBwgh52IhRrELsVvYqnf2ekLUxjXW74DoQdl/s="
        loaded = self.load(f'webhook {{ url = "http://h/", {RULE}, secret = ["{SECRET}", "{private}"] }}')
        self.assertEqual(loaded.webhooks[0].secrets, (SECRET, private))
        text = describe(loaded, [], [])
        self.assertIn(f"\n        signed with 2 secrets\n        public key {public}\n", text)
        self.assertEqual(public_form(private), public)
        self.assertNotIn(private[5:], text + repr(loaded))
        self.assertEqual(
            self.webhook_mistake(f'secret = "{public}"'),
            "secret: is a public key, which cannot sign: write the private one, whsk_…",
        )

    def test_padding_may_be_left_out(self):
        self.assertEqual(secret_key("whsec_" + "QUJD" * 8 + "QQ=="), b"ABC" * 8 + b"A")
        self.assertEqual(secret_key("whsec_" + "QUJD" * 8 + "QQ"), b"ABC" * 8 + b"A")

    def test_wrong(self):
        remedy = "it has to be 24 to 64, random; make one with echo whsec_$(openssl rand -base64 24)"
        for value, mistake in {
            '"ThisIsSecret"': "does not begin with whsec_: make one with echo whsec_$(openssl rand -base64 24)",
            '""': "does not begin with whsec_: make one with echo whsec_$(openssl rand -base64 24)",
            '"whsec_ThisIsSecret"': f"is the base64 of 9 bytes: {remedy}",
            f'"whsec_{"ThisIsSecret" * 8}"': f"is the base64 of 72 bytes: {remedy}",
            '"whsec_ThisIs-Secret"': "is not base64 after whsec_: copy all of it again",
            '"whsec_ThisIsSecreté"': "is not base64 after whsec_: copy all of it again",
            '"whsec_ThisIsSecretT"': "is not base64 after whsec_: copy all of it again",
            "123456": "does not begin with whsec_: make one with echo whsec_$(openssl rand -base64 24)",
            "{ ThisIsSecret = 1 }": 'is not text, or a list of it: write it like "whsec_…", in quotes',
            "[]": "is an empty list: remove it, or nothing is signed",
        }.items():
            told = self.webhook_mistake(f"secret = {value}")
            self.assertEqual(told, "secret: " + mistake)
            self.assertNotIn("ThisIs", told)
        self.assertIn("secret: does not begin", self.webhook_mistake(f'secret = ["{SECRET}", "x"]'))

    def test_never_shown(self):
        loaded = self.load(f'webhook {{ url = "http://h/", {RULE}, secret = ["{SECRET}", "{SECRET}"] }}')
        text = describe(loaded, [], [])
        self.assertIn("\n        signed with 2 secrets\n", text)
        for shown in (text, repr(loaded), repr(loaded.webhooks)):
            self.assertNotIn(SECRET[6:], shown)

    def test_not_in_syntax_errors(self):
        for line in (
            "secret = ThisIs+/Secret=",
            "x = [whsec_ThisIs+Secret=]",
            "x = [whsk_ThisIs+Secret=]",
            'key_password = "ThisIsSecret',
        ):
            told = self.mistake(f"webhook {{\n{line}\n}}")
            self.assertIn("syntax error", told)
            self.assertNotIn("ThisIs", told)


class AuthTests(ConfigCase):
    def test_each_kind(self):
        token = self.write("t", "token")
        for text, expected in (
            ("", None),
            ("auth { basic { username = me, password = s3cret } }", BasicSettings("me", "s3cret")),
            ('auth.basic { username = "", password = "" }', BasicSettings("", "")),
            ("auth.bearer.token = s3cret", BearerSettings("s3cret")),
            (f'auth.bearer.token_file = "{token}"', BearerSettings(token_file=token)),
            ("auth { enable = false, basic { username = me } }", None),
        ):
            self.assertEqual((self.webhook(text).auth, self.warnings), (expected, ()))

    def test_oauth2(self):
        plainest = 'auth.oauth2 { token_url = "https://idp/token", client_id = me, client_secret = s3cret }'
        self.assertEqual(self.webhook(plainest).auth, OAuth2Settings("https://idp/token", "me", "s3cret"))
        authority = self.write("")
        self.assertEqual(
            self.webhook(
                f"""auth.oauth2 {{
                  token_url = "HTTPS://idp/token", client_id = me, client_secret = s3cret, scope = "a b", audience = c
                  credentials = body, tls.cacertfile = "{authority}"
                }}"""
            ).auth,
            OAuth2Settings("https://idp/token", "me", "s3cret", "a b", "c", "body", TLSSettings(authority)),
        )
        self.assertEqual(self.warnings, ())
        missing = "is missing: the token's server needs token_url, client_id and client_secret"
        for text, mistake in {
            "client_id = a, client_secret = s3cret": f"token_url: {missing}",
            'token_url = "http://i", client_secret = s3cret': f"client_id: {missing}",
            'token_url = "http://i", client_id = a': f"client_secret: {missing}",
            'token_url = "http://i", client_id = a, client_secret = ""': f"client_secret: {missing}",
            'token_url = "http://i/?s3=cret#x", client_id = a, client_secret = s3cret': (
                "token_url: 'http://i/?…' has a fragment (#…), which is never sent: remove it"
            ),
            'token_url = "http://a:s3cret@i/", client_id = a, client_secret = s3cret': (
                "token_url: a URL's user and password are not sent: set client_id and client_secret instead"
            ),
            'token_url = "http://i", client_id = a, client_secret = s3cret, scope = "a\\nb"': (
                "scope: has a line break or another control character: remove it"
            ),
            'token_url = "http://i", client_id = a, client_secret = s3cret, credentials = both': (
                "credentials: 'both' is not one of header, body"
            ),
            'token_url = "https://i", client_id = a, client_secret = s3cret, tls.certfile = "/none"': (
                "tls.certfile: /none does not exist"
            ),
            'token_url = "http://i", client_id = a, client_secret = "${SECRET}"': (
                "client_secret: nothing is substituted within quotes: write it without them, as in client_secret = ${SECRET}"
            ),
        }.items():
            told = self.webhook_mistake(f"auth.oauth2 {{ {text} }}")
            self.assertTrue(told.startswith(f"auth.oauth2.{mistake}"), told)
            self.assertNotIn("s3", told)

    def test_what_goes_for_every_webhook(self):
        loaded = self.load(
            f"""
            mqhooks.auth.bearer.token = shared
            webhooks {{
              a {{ url = "http://h/", {RULE} }}
              b {{ url = "http://h/", {RULE}, auth.basic {{ username = me, password = s3cret }} }}
              c {{ url = "http://h/", {RULE}, auth.enable = false, headers.authorization = mine }}
            }}
            """
        )
        auths = [webhook.auth for webhook in loaded.webhooks]
        self.assertEqual(auths, [BearerSettings("shared"), BasicSettings("me", "s3cret"), None])

    def test_wrong(self):
        example = "auth { bearer { token_file = /run/secrets/token } }"
        for text, mistake in {
            "auth { }": f"auth: is empty: write for example {example}",
            "auth = none": "auth: 'none' is not a block in braces",
            "auth { basic { username = a, password = s3cret }, bearer.token = s3cret }": "auth: has basic and bearer: keep one",
            "auth.basic.username = a": 'auth.basic.password: is missing: write an empty one as ""',
            "auth.basic.password = s3cret": 'auth.basic.username: is missing: write an empty one as ""',
            "auth.basic { user = me, password = s3cret }": (
                """auth.basic.username: is missing ('user' is unknown: a misspelling?): write an empty one as \"\""""
            ),
            "auth { token = s3cret }": f"auth: has none of basic, bearer and oauth2: write for example {example}",
            "auth { bearer = s3cret }": "auth.bearer: the value is not a block in braces, like bearer { … }",
            'auth.basic { username = "a:b", password = s3cret }': (
                "auth.basic.username: has a colon, where the password would begin: RFC 7617 allows none"
            ),
            'auth.basic { username = a, password = "s3\\ncret" }': (
                "auth.basic.password: has a line break or another control character: remove it"
            ),
            "auth.bearer { }": "auth.bearer.token: is missing: write token = …, or token_file = …",
            "auth.bearer { token = s3cret, token_file = f }": "auth.bearer.token_file: and token are both given: keep one",
            'auth.bearer.token = "Bearer s3cret"': "auth.bearer.token: begins with Bearer, which mqhooks adds: remove it",
            'auth.bearer.token = "s3cret 2"': (
                "auth.bearer.token: is empty, or has spaces or characters that no header has: copy all of it again"
            ),
            'auth.bearer.token = ""': (
                "auth.bearer.token: is empty, or has spaces or characters that no header has: copy all of it again"
            ),
            'auth.bearer.token = "${TOKEN}"': (
                "auth.bearer.token: nothing is substituted within quotes: write it without them, as in token = ${TOKEN}"
            ),
            "auth.bearer.token { s3cret = 1 }": "auth.bearer.token: the value is not text",
            "headers.Authorization = x, auth.bearer.token = s3cret": (
                "headers.Authorization: is also set by auth: remove one of the two"
            ),
        }.items():
            told = self.webhook_mistake(text)
            self.assertEqual(told, mistake)
            self.assertNotIn("s3", told)
        shared = f'mqhooks.auth.bearer.token = t\nwebhook {{ url = "http://h/", {RULE}, headers.authorization = x }}'
        remedy = "remove one of the two, or write auth { enable = false } in this webhook"
        self.assertEqual(self.mistake(shared), f"webhook.headers.authorization: is also set by mqhooks.auth: {remedy}")

    def test_a_file_may_come_later(self):
        self.assertEqual(self.webhook('auth.bearer.token_file = "/none/token"').auth, BearerSettings(token_file="/none/token"))
        (warning,) = self.warnings
        self.assertIn("token_file: /none/token does not exist: nothing is sent until it holds a token", warning)

    def test_described(self):
        for text, described in {
            "basic { username = me, password = s3cret }": "authenticates as user me",
            "bearer.token = s3cret": "authenticates with a token",
            "bearer.token_file = /none/token": "authenticates with the token in /none/token",
            'oauth2 { token_url = "https://idp/token?s3cret", client_id = me, client_secret = s3cret }': (
                "authenticates with a token from https://idp/token?…, as client me"
            ),
        }.items():
            loaded = self.load(f'webhook {{ url = "http://h/", {RULE}, auth.{text} }}')
            shown = describe(loaded, [], [])
            self.assertIn(f"\n        {described}\n", shown)
            for told in (shown, str(plain(loaded))):
                self.assertNotIn("s3cret", told)


class ProxyTests(ConfigCase):
    def test_forms(self):
        for text, expected in {
            "": None,
            "proxy = none": None,
            'proxy = "http://proxy:3128"': ProxySettings("proxy", 3128),
            'proxy = "HTTP://proxy:3128/"': ProxySettings("proxy", 3128),
            'proxy = "proxy:80"': ProxySettings("proxy", 80),
            'proxy = "http://[2001:db8::1]:1"': ProxySettings("2001:db8::1", 1),
            'proxy = "http://me:s3%40cr%3Aet@proxy:3128"': ProxySettings("proxy", 3128, "me", "s3@cr:et"),
            'proxy = "http://me:s3@cret@proxy:3128"': ProxySettings("proxy", 3128, "me", "s3@cret"),
            'proxy = "me@proxy:3128"': ProxySettings("proxy", 3128, "me"),
        }.items():
            self.assertEqual((self.webhook(text).proxy, self.warnings), (expected, ()))

    def test_wrong(self):
        form = "http://proxy:3128 or http://user:password@proxy:3128"
        no_url = (
            f"proxy: is not a proxy's URL: write it like {form}, with special characters in user and password percent-encoded"
        )
        for text, mistake in {
            '"socks5://me:s3cret@proxy:1080"': "proxy: is a proxy with socks5://: only http:// is supported",
            '"https://me:s3cret@proxy:3128"': "proxy: is a proxy with https://: only http:// is supported",
            '"http://me:s3cret@proxy"': (
                "proxy: names no port, and there is no common default: add one, as in http://proxy:3128"
            ),
            '""': no_url,
            '"http://"': no_url,
            '"http://me:s3/cret@proxy:3128"': no_url,
            '"http://me:s3cret@proxy:3128/path"': no_url,
            '"http://me:s3cret@proxy:3128?x"': no_url,
            '"http://me:s3cret@proxy:0"': no_url,
            '"http://me:s3cret@pro xy:1"': no_url,
            '"http://me:s3%00cret@proxy:1"': no_url,
            '"http://me:s3%ffcret@proxy:1"': no_url,
            '"http://:s3cret@proxy:1"': no_url,
            '"http://${PROXY}"': "proxy: nothing is substituted within quotes: write it without them, as in proxy = ",
            "[s3cret]": "proxy: the value is not text",
        }.items():
            told = self.webhook_mistake(f"proxy = {text}")
            self.assertTrue(told.startswith(mistake), told)
            self.assertNotIn("s3", told)
        told = self.mistake("webhook {\nproxy = me:s3cret@proxy:3128\n}")
        self.assertNotIn("s3cret", told)

    def test_what_goes_for_every_webhook(self):
        loaded = self.load(
            f"""
            mqhooks.proxy = "http://shared:1"
            webhooks {{
              a {{ url = "http://h/", {RULE} }}
              b {{ url = "http://h/", {RULE}, proxy = "http://own:2" }}
              c {{ url = "http://h/", {RULE}, proxy = none }}
              d {{
                url = "http://h/", {RULE}
                auth.oauth2 {{ token_url = "https://idp/", client_id = a, client_secret = b }}
              }}
            }}
            """
        )
        proxies = [webhook.proxy and webhook.proxy.name for webhook in loaded.webhooks]
        self.assertEqual(proxies, ["shared:1", "own:2", None, "shared:1"])
        self.assertEqual(loaded.webhooks[3].auth.proxy, ProxySettings("shared", 1))
        self.assertTrue(self.mistake('mqhooks.proxy = "ftp://x"').startswith("mqhooks.proxy: is a proxy with ftp://"))

    def test_environment(self):
        names = ("http_proxy", "https_proxy", "no_proxy")
        for name in (*names, *map(str.upper, names)):
            self.patch(os, "environ", {key: value for key, value in os.environ.items() if key != name})
        os.environ |= {"https_proxy": "http://me:s3cret@secure:1", "HTTP_PROXY": "http://cgi:2", "NO_PROXY": "idp"}
        auth = 'auth.oauth2 { token_url = "https://idp/", client_id = a, client_secret = b }'
        found = self.webhook(f"proxy = env, {auth}", url='url = "https://h/"')
        self.assertEqual((found.proxy, found.auth.proxy), (ProxySettings("secure", 1, "me", "s3cret"), None))
        self.assertIsNone(self.webhook("proxy = env").proxy)
        self.assertIsNone(self.webhook("", url='url = "https://h/"').proxy)
        os.environ["http_proxy"] = "socks5://me:s3cret@x:1"
        self.assertEqual(
            self.webhook_mistake("proxy = env"),
            "proxy: env: the environment variable http_proxy is a proxy with socks5://: only http:// is supported",
        )

    def test_as_curl_reads_the_environment(self):
        one, other = ProxySettings("one", 1), ProxySettings("other", 2)
        for environ, url, expected in (
            ({}, "https://h/", None),
            ({"https_proxy": "one:1"}, "https://h/", one),
            ({"https_proxy": "one:1"}, "http://h/", None),
            ({"http_proxy": "one:1"}, "https://h/", None),
            ({"https_proxy": "", "HTTPS_PROXY": "other:2"}, "https://h/", other),
            ({"https_proxy": "one:1", "HTTPS_PROXY": "other:2"}, "https://h/", one),
            ({"HTTP_PROXY": "other:2"}, "http://h/", None),
            ({"https_proxy": "nonsense", "no_proxy": "*"}, "https://h/", None),
        ):
            self.assertEqual(from_environment(url, environ), expected)
        for exceptions, host, excepted in (
            ("*", "h", True),
            ("a, *", "h", True),
            ("example.com", "example.com", True),
            ("example.com", "EXAMPLE.com.", True),
            ("example.com", "hooks.example.com", True),
            (".example.com", "hooks.example.com", True),
            (".example.com", "example.com", True),
            ("*.example.com", "hooks.example.com", True),
            ("example.com", "badexample.com", False),
            ("example.com", "example.com.evil", False),
            ("a b,example.com", "example.com", True),
            (",, ,", "h", False),
            (".", "h", False),
            ("10.0.0.0/8", "10.9.8.7", True),
            ("10.0.0.1/8", "10.9.8.7", True),
            ("10.0.0.0/8", "11.9.8.7", False),
            ("10.0.0.1", "10.0.0.1", True),
            ("0.0.1", "10.0.0.1", False),
            ("127.0.0.1", "localhost", False),
            ("::1", "[::1]", True),
            ("[::1]", "[::1]", True),
            ("fd00::/8", "[fd12::1]", True),
            ("fd00::/8", "10.0.0.1", False),
        ):
            found = from_environment(f"https://{host}/", {"https_proxy": "one:1", "no_proxy": exceptions})
            self.assertEqual(found, None if excepted else one, (exceptions, host))

    def test_described(self):
        loaded = self.load(f'webhook {{ url = "http://h/", {RULE}, proxy = "http://me:s3cret@proxy:3128" }}')
        shown = describe(loaded, [], [])
        self.assertIn("\n        through the proxy proxy:3128, with a user\n", shown)
        for told in (shown, repr(loaded), str(plain(loaded))):
            self.assertNotIn("s3cret", told)
        self.assertEqual(plain(loaded)["webhooks"][0]["proxy"]["host"], "proxy")


class TLSTests(ConfigCase):
    https = 'url = "https://h/"'

    def test_both_spellings(self):
        pem = self.write("")
        for name in ("tls", "ssl"):
            webhook = self.webhook(
                f'{name} {{ cacertfile = "{pem}", certfile = "{pem}", keyfile = "{pem}", key_password = "x" }}', url=self.https
            )
            self.assertEqual(webhook.tls, TLSSettings(pem, pem, pem, "x"))
            self.assertEqual(self.warnings, ())

    def test_both_at_once(self):
        self.assertIn("keep one", self.webhook_mistake("tls {}\nssl {}", url=self.https))

    def test_switched_off(self):
        self.assertIsNone(self.webhook('tls { enable = false, cacertfile = "/nowhere" }', url=self.https).tls)

    def test_needless(self):
        self.assertIsNone(self.webhook("tls { enable = true }").tls)
        self.assertIn("the url is http", self.warnings[0])

    def test_files(self):
        pem = self.write("")
        self.assertEqual(
            self.webhook_mistake('tls { cacertfile = "/nowhere.pem" }', url=self.https),
            "tls.cacertfile: /nowhere.pem does not exist",
        )
        for key in ("cacertfile", "certfile", "keyfile"):
            for path, reason in (("", "is empty: name a file"), ("a\0b", "has a NUL character, which a path must not have")):
                self.assertEqual(self.webhook_mistake(f'tls {{ {key} = "{path}" }}', url=self.https), f"tls.{key}: {reason}")
        self.assertEqual(
            self.webhook_mistake(f'ssl {{ certfile = "{pem}" }}', url=self.https), "ssl.keyfile: is missing: certfile needs it"
        )
        self.assertEqual(
            self.webhook_mistake(f'ssl {{ keyfile = "{pem}" }}', url=self.https), "ssl.certfile: is missing: keyfile needs it"
        )
        self.assertEqual(self.webhook("tls { key_password = 0123 }", url=self.https).tls, TLSSettings(key_password="0123"))
