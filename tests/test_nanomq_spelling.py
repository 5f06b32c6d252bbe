"""What is ours of a file, however it is spelt: NanoMQ's own reading of it, and ours where they differ."""

import base64
import json
import os
from pathlib import Path
from unittest import skipIf

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.app.configuration import load
from mqhooks.app.settings import Settings
from mqhooks.errors import ConfigError
from mqhooks.nanomq.hocon import SIZE
from mqhooks.nanomq.settings import Rule
from tests.frames import DATA

RULES = 'events = [ { event = "on_client_connack" } ]'
WEBHOOK = f'webhook {{ url = "http://h/", {RULES} }}'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

# What NanoMQ makes of these is not what they are to mean; for most there is a line that says what to write.
DIFFERENT = {
    "backslash": {"headers": (("x", r"a\b"),)},
    "empty-block": {},
    "empty-events": {"rules": ()},
    "event-single-obj": "webhook.events: a block is not a list in brackets, like [ {",
    "float-pool": "webhook.pool_size: 32.0 is not a whole number",
    "gbk": "is not UTF-8 text",
    "header-slash-unq": {"headers": (("content-type", "application/json"),)},
    "http-url-unq": {"url": "http://127.0.0.1:80"},
    "neg-pool": "webhook.pool_size: -1 is not a whole number",
    "no-scheme": "webhook.url: '127.0.0.1:8080/x' is not a URL like",
    "no-scheme2": "webhook.url: 'localhost:8080' is not a URL like",
    "old-format": "web.hook.… is NanoMQ's old format, which is not read: write webhook {",
    "old-format-q": "web.hook.… is NanoMQ's old format, which is not read: write webhook {",
    "q4": "text cannot follow a block or a list: is a comma missing, or a comment's # or //?",
    "semicolon": "webhook.pool_size: '3;' is not a whole number",
    "topic-array": "webhook.events[0].topic: a list is not text",
    "trailing-comma": {"pool_size": 3},
    "twice": "webhook.pool_size: is set in line 3 and in line 6, to different values: keep one",
    "unknown-event": "webhook.events[0].event: there is no event 'on_client_authenticate'",
    "webhook-array": "webhook: a list is not a block in braces; for several webhooks, give each a name",
    "webhook-named": "webhook.a: is a webhook within a webhook: write webhooks { a { … } }",
}


class SpellingCase(SynchronousTestCase):
    def setUp(self):
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()

    def write(self, text, name="mqhooks.conf"):
        path = self.directory / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def load(self, text):
        return load(self.write(text))

    def webhook(self, text):
        loaded = self.load(text)
        self.warnings = [warning.removeprefix(f"{self.directory}/") for warning in loaded.warnings]
        (webhook,) = loaded.webhooks
        return webhook

    def mistake(self, text):
        error = self.assertRaises(ConfigError, self.load, text)
        self.assertNotIn("\n", str(error))
        return str(error).replace(f"{self.directory}/", "")


def lowered(value):
    """Give keys one case, as whoever reads what NanoMQ's reader made does."""
    if isinstance(value, dict):
        return {key.lower(): item if key.lower() == "headers" else lowered(item) for key, item in value.items()}
    return [lowered(item) for item in value] if isinstance(value, list) else value


def meant(webhook):
    """Say what a webhook as NanoMQ has read it is to be here; ``None`` when it is not enabled."""
    if str(webhook.get("enable", True)).lower() == "false":
        return None
    rules = webhook["events"]
    rules = list(rules.values()) if isinstance(rules, dict) else rules
    timeout = webhook.get("cancel_timeout", 5000)
    headers = webhook.get("headers", {})
    return {
        "url": webhook["url"],
        "rules": tuple(Rule(rule["event"].lower(), rule.get("topic")) for rule in rules),
        "pool_size": int(webhook.get("pool_size", 32)),
        "encoding": webhook.get("body", {}).get("encoding", "plain"),
        "cancel_timeout": 5.0 if timeout == "5s" else int(timeout) / 1000,
        "headers": tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in headers.items()),
    }


class GoldenTests(SpellingCase):
    def test_every_spelling(self):
        cases = [json.loads(line) for line in (DATA / "nanomq-hocon.jsonl").read_text().splitlines()]
        self.assertEqual(len(cases), 72)
        self.assertLessEqual(set(DIFFERENT), {case["case"] for case in cases})
        for case in cases:
            text = case["text"] if "text" in case else base64.b64decode(case["text_b64"])
            different = DIFFERENT.get(case["case"])
            if isinstance(different, str):
                self.assertIn(different, self.mistake(text), case["case"])
                continue
            webhooks = [
                {
                    "url": webhook.url,
                    "rules": webhook.rules,
                    "pool_size": webhook.pool_size,
                    "encoding": webhook.encoding,
                    "cancel_timeout": webhook.cancel_timeout,
                    "headers": webhook.headers,
                }
                for webhook in self.load(text).webhooks
            ]
            if different is None:
                expected = meant(lowered(case["nanomq"])["webhook"])
                self.assertEqual(webhooks, [] if expected is None else [expected], case["case"])
            else:
                self.assertEqual(webhooks, [webhooks[0] | different], case["case"])


class CaseTests(SpellingCase):
    def case(self, name):
        return (DATA / "cases" / name).read_text()

    def test_events_on_one_line(self):
        webhook = self.webhook(self.case("events-on-one-line.conf"))
        rules = (Rule("on_client_connack"), Rule("on_client_disconnected"), Rule("on_message_publish", "c/#"))
        self.assertEqual(webhook.rules, rules)
        self.assertEqual(webhook.headers, (("content-type", "application/json"), ("x-key", "k")))
        self.assertEqual(self.warnings, [])

    def test_keys_without_case(self):
        text = self.case("keys-without-case.conf")
        self.assertEqual(self.load(text), Settings())
        webhook = self.webhook(text.replace("Enable = false", "Enable = true"))
        self.assertEqual((webhook.rules, webhook.headers), ((Rule("on_message_publish", "a/#"),), (("x-key", "k"),)))
        self.assertEqual((webhook.encoding, self.warnings), ("base64", []))

    def test_old_format(self):
        text = self.case("old-format.conf")
        told = 'web.hook.… is NanoMQ\'s old format, which is not read: write webhook { url = "http://127.0.0.1:8080/hook"'
        self.assertIn(told, self.mistake(text))
        self.webhook(f"{text.replace('=http://127.0.0.1:80', '=x')}\n{WEBHOOK}")
        self.assertEqual(len(self.warnings), 1)
        self.assertIn("old format", self.warnings[0])

    def test_substitutions_in_quotes(self):
        text = self.case("quoted-substitution.conf")
        told = "nothing is substituted within quotes"
        self.assertEqual(
            self.mistake(text),
            f"mqhooks.conf: mqhooks.admin.token: {told}: write it without them, as in token = ${{MQHOOKS_TOKEN}}",
        )
        self.webhook(text.replace('"${MQHOOKS_TOKEN}"', '"0123456789abcdef"'))
        self.assertEqual(
            self.warnings,
            [
                f'mqhooks.conf: webhook.url: {told}: close them before ${{…}}, as in "…"${{KEY}}',
                f'mqhooks.conf: webhook.headers.authorization: {told}: close them before ${{…}}, as in "Bearer "${{TOKEN}}',
            ],
        )

    def test_urls_that_lead_nowhere(self):
        lines = [line for line in self.case("undeliverable-urls.txt").splitlines() if not line.startswith("#")]
        self.assertEqual(len(lines), 9)
        lines += ["http://256.1.1.1/x", "http://-a/x", "http://[1.2.3.4]/x", f"http://{'a' * 64}/x"]
        for line in lines:
            for scheme in ("http", "https"):
                url = line.replace("http", scheme, 1)
                told = self.mistake(f'webhook {{ url = """{url}""", {RULES} }}')
                self.assertTrue(told.startswith(f"mqhooks.conf: webhook.url: '{scheme}://"), told)
                self.assertIn("write", told)
        self.assertIn("IDNA form, xn--bcher-kva.example", self.mistake(f'webhook {{ url = "http://bücher.example", {RULES} }}'))
        # To this encoding ß is ss, and to browsers another host.
        self.assertIn("IDNA form, xn--…", self.mistake(f'webhook {{ url = "http://straße.example", {RULES} }}'))

    def test_urls_that_lead_somewhere(self):
        for host in ("my_consumer", "_a", "127.1", "h.", "xn--bcher-kva.example", "[::ffff:1.2.3.4]", "1h", "a-"):
            for url in (f"http://{host}:8080", f"https://{host}/x"):
                self.assertEqual(self.webhook(f'webhook {{ url = "{url}", {RULES} }}').url, url)


class QuotedSubstitutionTests(SpellingCase):
    def test_secrets_refuse_them(self):
        for setting, key, form in (
            ('secret = "${X}"', "secret", "secret = ${X}"),
            ('secret = ["${X}"]', "secret", "secret = ${X}"),
            ('secret = """a${X}"""', "secret", 'secret = "…"${X}'),
            ('tls { key_password = "${?X}b" }', "tls.key_password", 'key_password = ${?X}"…"'),
        ):
            told = self.mistake(f'webhook {{ url = "https://h/", {RULES}, {setting} }}')
            self.assertTrue(told.startswith(f"mqhooks.conf: webhook.{key}: nothing is substituted within quotes"), told)
            self.assertTrue(told.endswith(f"as in {form}"), told)

    def test_they_are_sent_as_they_stand(self):
        webhook = self.webhook(
            f'webhook {{ url = "http://h/", {RULES}, headers {{ x = "a${{B}}", y = "c"${{webhook.headers.x}} }} }}'
        )
        self.assertEqual(webhook.headers, (("x", "a${B}"), ("y", "ca${B}")))
        self.assertEqual(len(self.warnings), 2)

    def test_one_out_of_the_environment_is_no_mistake(self):
        os.environ["MQHOOKS_TEST_VALUE"] = "a${B}"
        self.addCleanup(os.environ.pop, "MQHOOKS_TEST_VALUE")
        webhook = self.webhook(f'webhook {{ url = "http://h/", {RULES}, headers.x = "<"${{MQHOOKS_TEST_VALUE}} }}')
        self.assertEqual((webhook.headers, self.warnings), ((("x", "<a${B}"),), []))

    def test_disabled_blocks_are_not_checked(self):
        self.assertEqual(self.load('webhook { enable = false, secret = "${X}", url = "${Y}" }'), Settings())


class ForeignBlockTests(SpellingCase):
    def test_they_are_left_alone(self):
        for foreign in (
            "acl { topic = a = = b, ${MQHOOKS_NOT_SET} }",
            "acl = [ x y : z ]",
            "log { dir = ${MQHOOKS_NOT_SET} }",
            'auth { include "nowhere.conf", password = { include required("nowhere.conf") } }',
            "topic = $SYS/#",
            "WEBHOOK2 { }",
        ):
            self.assertEqual(self.webhook(f"{foreign}\n{WEBHOOK}").url, "http://h/")
            self.assertEqual(self.warnings, [])

    def test_what_is_referred_to_is_read(self):
        self.write("mqtt { host = h2, port = 8080 }\nother { x = ${mqtt.port} }\nacl { a = = }", "broker.conf")
        webhook = self.webhook(
            f'include "broker.conf"\nwebhook {{ url = "http://"${{mqtt.host}}":"${{other.x}}"/", {RULES}, pool_size = 007 }}'
        )
        self.assertEqual((webhook.url, webhook.pool_size), ("http://h2:8080/", 7))

    def test_mistakes_in_what_is_referred_to(self):
        self.assertIn(
            "mqhooks.conf: syntax error in line 1", self.mistake(f"mqtt {{ a = = }}\nwebhook.x = ${{mqtt.b}}\n{WEBHOOK}")
        )
        told = self.mistake(f"mqtt {{ a = 1 }}\nwebhook.x = ${{mqtt.b}}\n{WEBHOOK}")
        self.assertTrue(told.startswith("mqhooks.conf: ${mqtt.b} is not set (line 2): "), told)

    @skipIf(os.geteuid() == 0, "root may read everything")
    def test_a_password_file_that_may_not_be_read(self):
        os.chmod(self.write("a:b", "passwords"), 0)
        self.webhook(f'auth {{ password = {{ include "passwords" }} }}\n{WEBHOOK}')
        self.assertEqual(self.warnings, [])
        self.assertIn("passwords: cannot be read: Permission denied", self.mistake(f'include "passwords"\n{WEBHOOK}'))

    def test_blocks_of_ours_are_merged(self):
        self.write(f'webhook.secret = "{SECRET}"', "secret.conf")
        for text in (f'include "secret.conf"\n{WEBHOOK}', f'{WEBHOOK}\ninclude "secret.conf"'):
            self.assertEqual(self.webhook(text).secrets, (SECRET,))
        self.assertEqual(self.webhook(f"{WEBHOOK}\nWebHook {{ details = true }}").details, True)

    def test_blocks_that_disagree(self):
        for text, key in (
            (f"{WEBHOOK}\nwebhook.url = http://other/", "webhook.url"),
            (f"{WEBHOOK}\nWEBHOOK {{ Events = [ {{ event = on_publish }} ] }}", "webhook.events"),
            (f"{WEBHOOK}\nwebhook {{ retry {{ max = 1s }} }}\nwebhook.retry.max = 2s", "webhook.retry.max"),
        ):
            told = self.mistake(text)
            self.assertTrue(told.startswith(f"mqhooks.conf: {key}: is set in line "), told)
            self.assertTrue(told.endswith("to different values: keep one"), told)
        self.webhook(f"{WEBHOOK}\nwebhook.url = ${{?MQHOOKS_NOT_SET}}")
        self.webhook(f"{WEBHOOK}\nwebhook.URL = http://h/")

    def test_two_webhooks_of_one_name(self):
        block = f'{{ url = "http://h/", {RULES} }}'
        told = "mqhooks.conf: webhooks.a: two webhooks have this name, in line 1 and in line 2: rename one"
        self.assertEqual(self.mistake(f"webhooks {{ a {block}\na {block} }}"), told)
        self.assertEqual(self.mistake(f"webhooks.a {block}\nwebhooks {{ a {block} }}"), told)
        self.assertIn("webhooks.A: differs from 'a' only in case", self.mistake(f"webhooks {{ a {block}\nA {block} }}"))
        self.assertEqual(self.webhook(f"webhooks.A {block}\nwebhooks.A.headers.x = y").name, "A")

    def test_references_that_are_not_set(self):
        os.environ["MQHOOKS_TEST_VALUE"] = "v"
        self.addCleanup(os.environ.pop, "MQHOOKS_TEST_VALUE")
        for value, headers in {
            "${?NOT_A} ${?NOT_B}": (),
            "${?NOT_A} ${MQHOOKS_TEST_VALUE}": (("x", "v"),),
            "${MQHOOKS_TEST_VALUE} ${?NOT_A}": (("x", "v"),),
            "${MQHOOKS_TEST_VALUE} ${mqtt.a}": (("x", "v 1"),),
            "${mqtt.a} ${MQHOOKS_TEST_VALUE} ${mqtt.a}": (("x", "1 v 1"),),
            "${mqtt.a}  ${mqtt.a}": (("x", "1  1"),),
            "old, x = ${?NOT_A}": (("x", "old"),),
        }.items():
            webhook = self.webhook(f'mqtt.a = 1\nwebhook {{ url = "http://h/", {RULES}, headers {{ x = {value} }} }}')
            self.assertEqual(webhook.headers, headers, value)

    def test_appending(self):
        webhook = self.webhook(
            'webhook { url = "http://h/", events += { event = on_publish }\n events += { event = on_deliver } }\n'
            "webhook.events += { event = on_subscribe }"
        )
        self.assertEqual(webhook.rules, (Rule("on_publish"), Rule("on_deliver"), Rule("on_subscribe")))

    def test_thousands_of_rules_are_not_read(self):
        rules = "".join(
            f'  {{"permit": "allow", "username": "u{number}", "topics": ["$SYS/#", = =]}}\n' for number in range(8000)
        )
        self.write(f"rules = [\n{rules}]\n", "acl.conf")
        self.webhook(f'include "acl.conf"\nacl {{ include "acl.conf" }}\n{WEBHOOK}')


class IncludeTests(SpellingCase):
    def test_only_files_are_included(self):
        os.mkfifo(self.directory / "fifo")
        for name in ("fifo", "/dev/zero", "/dev/null"):
            for text in (f'\ninclude "{name}"', f'webhook {{\n include required(file("{name}")) }}'):
                told = f"{name}: cannot be read: it is not a regular file; mqhooks.conf:2 includes it"
                self.assertEqual(self.mistake(text), told)
        self.assertIn("cannot be read: Is a directory", self.mistake('include "."'))
        self.assertIn("only files are included", self.mistake('include package("a:b")'))
        self.assertIn("is not a valid file name", self.mistake('include "a\0b"'))

    def test_the_file_itself_has_to_be_one(self):
        os.mkfifo(self.directory / "fifo")
        error = self.assertRaises(ConfigError, load, str(self.directory / "fifo"))
        self.assertIn("cannot be read: it is not a regular file", str(error))

    def test_who_includes_what_is_not_there_is_told(self):
        self.write(f'\n\ninclude "nowhere.conf"\n{WEBHOOK}', "more.conf")
        self.webhook('include "more.conf"')
        (warning,) = self.warnings
        told = "nowhere.conf: does not exist, so its settings are missing; more.conf:3 includes it"
        self.assertEqual(warning.replace(f"{self.directory}/", ""), told)
        self.write("= 1", "more.conf")
        self.assertNotIn("includes it", self.mistake('include "more.conf"'))

    def test_files_have_a_limit(self):
        with open(self.directory / "long.conf", "wb") as file:
            file.truncate(SIZE)
        self.assertIn("long.conf: cannot be read: it has more than 32 MiB", self.mistake('include "long.conf"'))

    def test_they_do_not_multiply(self):
        for number in range(20):
            self.write(f'include "{number + 1}.conf"\n' * 2, f"{number}.conf")
        self.write("", "20.conf")
        self.assertIn("more than 1000 files are included", self.mistake('include "0.conf"'))

    def test_two_that_include_each_other(self):
        self.write('include "two.conf"', "one.conf")
        self.write('webhook { include "one.conf" }', "two.conf")
        self.assertEqual(self.mistake('include "one.conf"'), "one.conf: includes itself; two.conf:1 includes it")

    def test_patterns(self):
        (self.directory / "conf.d").mkdir()
        for name in ("a", "b"):
            self.write(f'webhooks.{name} {{ url = "http://{name}/", {RULES} }}', f"conf.d/{name}.conf")
        self.assertEqual([webhook.name for webhook in self.load('include "conf.d/*.conf"').webhooks], ["a", "b"])

    def test_variables_that_are_no_text(self):
        os.environ["MQHOOKS_TEST_VALUE"] = os.fsdecode(b"a\xff")
        self.addCleanup(os.environ.pop, "MQHOOKS_TEST_VALUE")
        self.assertEqual(
            self.mistake("webhook.x = ${MQHOOKS_TEST_VALUE}"), "mqhooks.conf: ${MQHOOKS_TEST_VALUE} is not UTF-8 text (line 1)"
        )


class RemedyTests(SpellingCase):
    def test_what_to_write(self):
        webhook = f'webhook {{ url = "http://h/", {RULES}\n%s\n}}'
        for text, told in {
            "webhooks = [ { } ]": "webhooks: a list is not a block in braces; give each webhook a name: webhooks { billing {",
            'webhooks { url = "http://h/" }': (
                "webhooks.url: the value is not a block in braces; webhooks holds a named block for each: "
                "for a single one write webhook { url = … }"
            ),
            'webhook { url = "http://h/", events = ["on_publish"] }': (
                "webhook.events[0]: 'on_publish' is not a block in braces, like { event = \"on_message_publish\" }"
            ),
            webhook % "headers.authorization = Bearer abc:def=": 'text that has "=" or ":" in it goes into quotes: x = "a=b"',
            webhook % "headers.authorization = Bearer abc:def": "put the text into quotes, or a comma before a key",
            webhook % "retry.on = [408 429]": "separate statuses by commas",
            webhook % f'secret = ["{SECRET}" "{SECRET}"]': "webhook.secret: has a space in it: separate secrets by commas",
            webhook % "]": "this bracket closes nothing: is one missing before it, or is it one too many?",
            f"{webhook % ''}}}": "this bracket closes nothing",
            'webhook { events = [ { event = "on_publish" ] }': "this bracket closes nothing",
            "webhook { events = [ } ] }": "this bracket closes nothing",
            webhook % "= 5": "no key is before it: write key = value",
            webhook % "retry..max = 1s": "remove the dot at the beginning or end of this key, or the second of two dots",
            webhook % "{ url = x }": "no key is before it: write key = value, or name { … }",
            f"{{ {webhook % ''} }}\nx = y": "the brace that begins the file was closed before it",
            'webhook = "https://hooks.slack.com/services/T0"': "webhook: the value is not a block in braces",
            webhook % "pool_size 3": "the key before it has no value: write key = value",
        }.items():
            self.assertIn(told, self.mistake(text))

    def test_plain_numbers_are_milliseconds(self):
        self.webhook(f'webhook {{ url = "http://h/", {RULES}, cancel_timeout = 5 }}')
        told = "mqhooks.conf: webhook.cancel_timeout: 5 is 5 ms, since a plain number is in ms; for seconds write 5s"
        self.assertEqual(self.warnings, [told])
        for text in ("5ms", "5s", "5000"):
            self.webhook(f'webhook {{ url = "http://h/", {RULES}, cancel_timeout = {text} }}')
            self.assertEqual(self.warnings, [])

    def test_every_mistake_is_told(self):
        error = self.assertRaises(
            ConfigError,
            self.load,
            f"""
            mqhooks {{ outbox.kind = x, shutdown_timeout = soon }}
            webhooks {{
              a {{ {RULES}, pool_size = 0 }}
              b {{ url = "http://h/", events = 5 }}
              c {{ url = "x", events = [ {{ event = on_x }}, {{ topic = a }} ] }}
            }}
            """,
        )
        self.assertEqual(
            sorted(mistake.key for mistake in error.mistakes),
            [
                "mqhooks.outbox.kind",
                "mqhooks.shutdown_timeout",
                "webhooks.a.pool_size",
                "webhooks.a.url",
                "webhooks.b.events",
                "webhooks.c.events[0].event",
                "webhooks.c.events[1].event",
                "webhooks.c.url",
            ],
        )
        self.assertTrue(str(error).endswith("(the first of 8 mistakes)"), str(error))
        for mistake in error.mistakes:
            self.assertNotIn("\n", str(mistake))
            self.assertEqual(mistake.mistakes, (mistake,))

    def keys(self, text):
        """The key of each mistake."""
        error = self.assertRaises(ConfigError, self.load, text)
        for mistake in error.mistakes:
            self.assertNotIn("\n", str(mistake))
        return sorted(mistake.key for mistake in error.mistakes)

    def test_no_mistake_hides_another(self):
        keys = self.keys(
            """
            webhook = 5
            webhooks {
              a = 5
              b { url = "https://h/", tls { cacertfile = "/a/b", certfile = "/a/b" }, ssl = {}, retry = 5, transport = x }
              c { url = "http://h/", body = 5, headers = 5, batch = 5, unknown = 5, retry { on = [1, 2], max = 0 } }
              d { url = "http://h/", events = [ 5, { event = on_x, topic = [] } ], secret = [a, "${B}"], ordering = y }
              e { url = "http://h/", secret = [a, "a b", []], pool_size = 0 }
              f { g { url = "http://h/" }, pool_size = 0 }
            }
            mqhooks { outbox = 5, sidecar = 5, admin { token = x, hosts = ["a:1", "b c"], listen = "" }, retry.on = 1 }
            """
        )
        self.assertEqual(
            keys,
            [
                "mqhooks.admin.hosts",
                "mqhooks.admin.hosts",
                "mqhooks.admin.listen",
                "mqhooks.admin.token",
                "mqhooks.outbox",
                "mqhooks.retry.on",
                "mqhooks.sidecar",
                "webhook",
                "webhooks.a",
                "webhooks.b.retry",
                "webhooks.b.ssl",
                "webhooks.b.tls.cacertfile",
                "webhooks.b.tls.certfile",
                "webhooks.b.tls.keyfile",
                "webhooks.b.transport",
                "webhooks.c.batch",
                "webhooks.c.body",
                "webhooks.c.headers",
                "webhooks.c.retry.max",
                "webhooks.c.retry.on",
                "webhooks.c.retry.on",
                "webhooks.c.unknown",
                "webhooks.d.events[0]",
                "webhooks.d.events[1].event",
                "webhooks.d.events[1].topic",
                "webhooks.d.ordering",
                "webhooks.d.secret",
                "webhooks.e.pool_size",
                "webhooks.e.secret",
                "webhooks.e.secret",
                "webhooks.e.secret",
                "webhooks.f.g",
                "webhooks.f.pool_size",
            ],
        )

    def test_every_variable_that_is_not_set_is_told(self):
        error = self.assertRaises(
            ConfigError,
            self.load,
            f"{WEBHOOK}\nwebhook.secret = ${{MQHOOKS_A}}\nwebhook.headers.x = a${{MQHOOKS_B}}${{MQHOOKS_A}}",
        )
        told = [str(mistake).partition(" is not set")[0].rpartition(": ")[2] for mistake in error.mistakes]
        self.assertEqual(told, ["${MQHOOKS_A}", "${MQHOOKS_B}", "${MQHOOKS_A}"])

    def test_every_disagreement_is_told(self):
        block = f'{{ url = "http://h/", {RULES}, pool_size = 1 }}'
        keys = self.keys(
            f"webhooks {{ a {block}\na {block}\nb {block}\nB {block} }}\nwebhook {block}\nwebhook {{ pool_size = 2 }}"
        )
        self.assertEqual(keys, ["webhook.pool_size", "webhooks.B", "webhooks.a"])


CONFIGURATION = {
    "webhook": {
        "url": "http://h:8080/x",
        "pool_size": "7",
        "cancel_timeout": "3000",
        "headers": {"content-type": "application/json", "X-A.b": "a b", "x-c": "007"},
        "body": {"encoding": "base64"},
        "retry": {"max_attempts": "3"},
        "events": [
            {"event": "on_message_publish", "topic": "$SYS/#"},
            {"event": "on_client_connack"},
            {"topic": "a/+/b@c", "event": "on_message_publish"},
        ],
    },
    "webhooks": {
        "Billing": {
            "url": "http://b/",
            "headers": {"X-Key": "k"},
            "events": [{"event": "on_client_connack"}],
            "batch": {"size": "5"},
        },
        "audit": {"enable": "off", "url": "http://a/"},
    },
    "mqhooks": {"ordering": "none", "outbox": {"kind": "memory", "max_size": "2GiB"}},
}


@st.composite
def spellings(draw):
    """Spell one configuration: its separators, case and quotes differ."""

    def key(name, within):
        if within in ("headers", "webhooks"):
            return f'"{name}"' if "." in name or draw(st.booleans()) else name
        name = draw(st.sampled_from([name, name.upper(), name.title()]))
        return f'"{name}"' if draw(st.integers(0, 3)) == 0 else name

    def text(value):
        quotes = draw(st.sampled_from(["", '"', '"""']))
        if quotes == '"' and draw(st.booleans()):
            place = draw(st.integers(0, len(value) - 1))
            value = f"{value[:place]}\\u{ord(value[place]):04X}{value[place + 1 :]}"
        return f"{quotes}{value}{quotes}"

    def behind():
        """What may stand between a key and its value's separator."""
        return draw(st.sampled_from(["", "", " ", "\n", " # a = b\n"]))

    def value(item, name):
        if isinstance(item, str):
            return behind() + draw(st.sampled_from(["=", " = ", ": ", " : ", "\t=\n\t", "= // a\n"])) + text(item)
        before = draw(st.sampled_from(["", " ", " = ", ": ", "=", ":", "\n"]))
        if isinstance(item, dict):
            return f"{before}{{{members(item, name)}}}"
        if draw(st.booleans()):
            named = (f"{number}{value(rule, name)}" for number, rule in enumerate(item))
            return f"{before}{{{''.join(between() + each for each in named)}}}"
        listed = (f"{{{members(rule, name)}}}" for rule in item)
        return f"{before if set(before) & set('=:') else ' = '}[{''.join(between() + each for each in listed)}]"

    def between():
        return draw(st.sampled_from([" ", "\n", ", ", ",\n", " # a\n", " // { b = c\n", "\r\n"]))

    def members(items, name=""):
        written = []
        fixed = name in ("headers", "webhooks", "")
        for each, item in items.items() if fixed else draw(st.permutations(list(items.items()))):
            plain = isinstance(item, dict) and not any("." in inner for inner in item)
            if name and plain and draw(st.booleans()):
                path = key(each, name).strip('"')
                written += [f"{path}.{key(inner, each).strip(chr(34))}{value(below, inner)}" for inner, below in item.items()]
            elif isinstance(item, list) and draw(st.booleans()):
                appended = (f"{key(each, name)} += {{{members(rule, each)}}}" for rule in item)
                written += appended
            else:
                written.append(key(each, name) + value(item, each))
        # A key whose separator is on another line has to begin a line: the text before it would go on otherwise.
        return "".join(between() + ("\n" if "\n" in each else "") + each for each in written) + between()

    written = members(CONFIGURATION).lstrip(" ,")
    written = f"{{{written}}}" if draw(st.booleans()) else written
    return "\ufeff" + written if draw(st.booleans()) else written


class PropertyTests(SpellingCase):
    @settings(deadline=None, max_examples=80)
    @given(spellings())
    def test_one_configuration_however_it_is_spelt(self, text):
        loaded = self.load(text)
        webhook, billing = loaded.webhooks
        self.assertEqual(loaded.warnings, ())
        self.assertEqual((billing.name, billing.url, billing.headers), ("Billing", "http://b/", (("X-Key", "k"),)))
        self.assertEqual((billing.rules, billing.batch.size), ((Rule("on_client_connack"),), 5))
        self.assertEqual(
            (webhook.url, webhook.pool_size, webhook.cancel_timeout, webhook.encoding, webhook.ordering),
            ("http://h:8080/x", 7, 3.0, "base64", "none"),
        )
        self.assertEqual(webhook.headers, tuple(CONFIGURATION["webhook"]["headers"].items()))
        self.assertEqual(webhook.retry.max_attempts, 3)
        self.assertEqual(webhook.rules, tuple(Rule(**rule) for rule in CONFIGURATION["webhook"]["events"]))
        self.assertEqual((loaded.outbox.kind, loaded.outbox.max_size), ("memory", 2 << 30))
