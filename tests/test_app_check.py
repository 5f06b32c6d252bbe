"""``mqhooks check``: every mistake at once, each with its file, its line and what to write."""

import sys
from io import StringIO
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.app.command import main
from mqhooks.app.configuration import load
from mqhooks.app.tap import Options, makeService
from mqhooks.errors import ConfigError
from mqhooks.nanomq.block import place_of
from mqhooks.nanomq.hocon import read
from tests.processes import Mqhooks, Twistd


class CheckCase(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()

    def write(self, text, name="a.conf"):
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def run_command(self, *words):
        """Gives the exit status, the lines, and what was told on standard error, without the folder."""
        lines = []
        self.patch(sys, "stderr", stderr := StringIO())
        try:
            status = main(words, lines.append)
        except SystemExit as end:
            status = end.code
        self.assertNotIn("Traceback", stderr.getvalue())
        return status, lines, stderr.getvalue().replace(f"{self.folder}/", "").splitlines()


class DescriptionTests(CheckCase):
    def described(self, method, other=""):
        rules = f"{{ event = on_publish {other} }}, {{ event = on_deliver }}"
        path = self.write(f'webhook {{ url = "http://h/", method = {method}, events = [ {rules} ] }}')
        status, lines, _ = self.run_command("check", path)
        self.assertEqual(status, 0)
        return [line.strip() for line in lines if "webhook webhook: " in line or line.startswith("        on_")]

    def test_methods(self):
        self.assertEqual(self.described("post"), ["webhook webhook: POST http://h/", "on_publish", "on_deliver"])
        self.assertEqual(self.described("put"), ["webhook webhook: PUT http://h/", "on_publish", "on_deliver"])
        both = ["webhook webhook: PATCH and PUT http://h/", "on_publish, PATCH", "on_deliver, PUT"]
        self.assertEqual(self.described("put", ", method = patch"), both)


class PlacesTests(CheckCase):
    def test_every_way_to_write_a_key(self):
        self.write("webhook.pool_size = 3\nwebhook.retry {\n\n max = 1m }", "more.conf")
        path = self.write(
            """{
              webhook : {
                url = "http://h/"
                "headers" { "x-a" = b
                  x-b = c },
                events = [ { event = on_publish }
                  { event = on_deliver,
                    topic = "a/#" }, {
                    event = on_subscribe
                } ]
                events += {
                    event = on_client_gone }
              }
              include "more.conf"
              WEBHOOKS.b.Events.1.event = on_publish
              webhooks { b { retry.on = [ 408,
                 429 ] } }
              mqhooks.admin.token = one
              mqhooks { admin { token = two } }
            }"""
        )
        places = read(path).places
        for key, place in {
            "webhook": "a.conf:2",
            "webhook.url": "a.conf:3",
            "webhook.headers.x-b": "a.conf:5",
            "webhook.events[0].event": "a.conf:6",
            "webhook.events[0].missing": "a.conf:6",
            "webhook.events[1].topic": "a.conf:8",
            "webhook.events[2]": "a.conf:9",
            "webhook.events[3].event": "a.conf:12",
            "webhook.pool_size": "more.conf:1",
            "webhook.retry.max": "more.conf:4",
            "webhook.retry.jitter": "more.conf:2",
            "webhooks.b.events.1.event": "a.conf:15",
            "webhooks.b.retry.on": "a.conf:16",
            "webhooks.b.url": "a.conf:15",
            "mqhooks.admin.token": "a.conf:19",
            "mqhooks.outbox.path": "a.conf:18",
            "nothing": "",
        }.items():
            self.assertEqual(place_of(key, places).replace(f"{self.folder}/", ""), place, key)

    def test_a_mistake_is_told_with_its_place(self):
        path = self.write('webhook {\n  url = "http://h/"\n  events = []\n  pool_size = many\n}')
        error = self.assertRaises(ConfigError, load, path)
        self.assertEqual(error.told, f"{path}:4: webhook.pool_size: 'many' is not a whole number from 1 to 65535")
        self.assertEqual(str(error), error.told.replace(":4:", ":"))

    def test_a_mistake_in_a_file_that_is_named_is_told_with_the_line_of_its_key(self):
        path = self.write('mqhooks.outbox { kind = jetstream\n servers = "nats://h:4222"\n tls.cacertfile = "/dev/null" }')
        error = self.assertRaises(ConfigError, load, path)
        self.assertEqual(error.told, f"{path}:3: mqhooks.outbox.tls.cacertfile: /dev/null holds no PEM certificate")


class CheckTests(CheckCase):
    def test_all_mistakes_at_once(self):
        path = self.write(
            """
            webhook {
              url = "127.0.0.1/x"
              events = [ { event = on_publsh } ]
              pool_sise = 3
            }
            webhooks {
              b { url = "https://h/", secret = ${MQHOOKS_UNSET}, events = [ { event = on_publish } ]
                tls.cacertfile = "/dev/null" }
              c { url = "http://h/", limit.rate = ${MQHOOKS_UNSET}, events = [ { event = on_publish } ] }
            }
            mqhooks {
              admin.listen = "tcp:99999"
              sources.grpc.listen = "tcp:8893:interface=0.0.0.0"
              outbox.path = "/nowhere/x"
            }
            """
        )
        words = ["check", path, "--sink", "nonsense:1", "--sidecar", "tcp:abc", "--url", "x"]
        status, lines, told = self.run_command(*words)
        self.assertEqual((status, lines), (1, []))
        beginnings = [
            "mqhooks: a.conf: ${MQHOOKS_UNSET} is not set (line 8): ",
            "mqhooks: a.conf: ${MQHOOKS_UNSET} is not set (line 10): ",
            "mqhooks: a.conf:3: webhook.url: '127.0.0.1/x' is not a URL like ",
            "mqhooks: a.conf:4: webhook.events[0].event: there is no event 'on_publsh'; did you mean 'on_publish'?",
            "mqhooks: a.conf:9: webhooks.b.tls.cacertfile: /dev/null holds no PEM certificate",
            "mqhooks: --url: 'x' is not a URL like ",
            "mqhooks: a.conf:15: mqhooks.outbox.path: /nowhere/x: there is no directory /nowhere",
            "mqhooks: nonsense:1: no sink is called 'nonsense'",
            "mqhooks: tcp:abc: not a listening endpoint",
            "mqhooks: a.conf:14: mqhooks.sources.grpc.listen: other machines can reach ",
            "mqhooks: a.conf:13: mqhooks.admin.listen: tcp:99999: there is no port 99999",
            "mqhooks: warning: a.conf:5: webhook.pool_sise: unknown, ignored; did you mean 'pool_size'?",
        ]
        for beginning in beginnings:
            self.assertEqual(len([line for line in told if line.startswith(beginning)]), 1, f"{beginning}\n{told}")
        self.assertEqual(len(told), len(beginnings), told)

    def test_sinks_that_could_not_start(self):
        path = self.write('webhook { url = "127.0.0.1/x", events = [ { event = on_publish } ] }')
        told = "cannot be opened for appending (No such file or directory); create its directory and let this user write there"
        sinks = [
            "log:path=/nowhere/a",
            "capture:path=/nowhere/b",
            f"capture:path={path}",
            r"fanout:log:filter\:hooks=on_publish\:sink=log\\\:path=/nowhere/c",
            r"webhook:url=http\://h/:outbox=/nowhere/d",
        ]
        expected = [
            "mqhooks: a.conf:1: webhook.url: '127.0.0.1/x' is not a URL like http://host:8080/path",
            f"mqhooks: /nowhere/a: {told}",
            f"mqhooks: /nowhere/b: {told}",
            "mqhooks: a.conf: is not an mqhooks capture; give another file",
            f"mqhooks: /nowhere/c: {told}",
            "mqhooks: --sink webhook: outbox: /nowhere/d: there is no directory /nowhere: make it or name another place",
        ]
        words = [f"--sink={sink}" for sink in sinks]
        self.assertEqual(self.run_command("check", path, *words), (1, [], expected))
        good = [f"--sink={kind}:path={self.folder}/new" for kind in ("log", "capture")]
        status, _, told = self.run_command("check", "--url=http://h/", *good, "--sink=log")
        self.assertEqual((status, told, [each.name for each in self.folder.iterdir()]), (0, [], ["a.conf"]))

    def test_a_variable_that_is_not_set_is_no_other_mistake(self):
        for text in (
            "webhook { url = ${MQHOOKS_UNSET}, events = [ { event = ${MQHOOKS_UNSET} } ] }",
            'webhook { url = "http://h/", events = ${MQHOOKS_UNSET} }',
            'webhook { url = "http://h/", events = [ ${MQHOOKS_UNSET} ], tls = ${MQHOOKS_UNSET} }',
            'webhook { url = "http://h/", events = [], secret = [ ${MQHOOKS_UNSET} ], headers.a = "x"${MQHOOKS_UNSET} }',
            'webhook { url = "http://h/", events = [], auth { basic { username = a, password = ${MQHOOKS_UNSET} } } }',
            'webhook { url = "http://h/", events = [], limit.rate = ${MQHOOKS_UNSET}, batch.size = ${MQHOOKS_UNSET} }',
            'webhook { url = "http://h/", events = [], body = ${MQHOOKS_UNSET}, format = ${MQHOOKS_UNSET} }',
            "webhook = ${MQHOOKS_UNSET}",
            "mqhooks.notify { url = ${MQHOOKS_UNSET}, on = ${MQHOOKS_UNSET} }",
            "mqhooks.sources.webhooks { user = a, password = ${MQHOOKS_UNSET}, listen = ${MQHOOKS_UNSET} }",
            "mqhooks.outbox { path = ${MQHOOKS_UNSET}, max_size = ${MQHOOKS_UNSET} }",
        ):
            _, _, told = self.run_command("check", self.write(text))
            mistakes = {line.partition(" (line")[0] for line in told if "warning: " not in line}
            self.assertEqual(mistakes, {"mqhooks: a.conf: ${MQHOOKS_UNSET} is not set"}, text)

    def test_strict(self):
        path = self.write('webhook { url = "http://h/", events = [ { event = on_publish } ]\n pool_sise = 3 }')
        status, lines, told = self.run_command("check", path)
        self.assertEqual((status, lines[-1], told), (0, "The configuration is good.", []))
        warning = "a.conf:2: webhook.pool_sise: unknown, ignored; did you mean 'pool_size'?"
        self.assertEqual(lines[0].replace(f"{self.folder}/", ""), f"warning: {warning}")
        self.assertEqual(self.run_command("check", path, "--strict"), (1, [], [f"mqhooks: warning: {warning}"]))

    def test_a_mistake_in_events_is_not_told_as_none(self):
        for events in ("x", "[ 5 ]", "[ on_publish ]", "[ { evnt = on_publish } ]", "{ event = on_publish }"):
            path = self.write(f'webhook {{ url = "http://h/", events = {events} }}')
            status, _, told = self.run_command("check", path)
            self.assertEqual((status, [line for line in told if "is empty" in line]), (1, []), told)

    def test_what_vernemq_needs(self):
        path = self.write('webhook { url = "http://h/", events = [ { event = on_publish } ] }')
        _, lines, _ = self.run_command(
            "check", "--config", path, "--grpc-port", "8893", "--webhooks-port", "8892", "--sidecar-port=1"
        )
        for line in (
            "        vmq_events_sidecar.hooks = on_publish,on_publish_m5",
            "        vmq_events_sidecar.grpc_port = 8893",
            "        vmq_webhooks.mq1.hook = on_publish",
        ):
            self.assertIn(line, lines)
        _, lines, _ = self.run_command("check", path, "--sample")
        self.assertIn("sample  of webhook webhook: on_publish", lines)

    def test_the_old_spelling_says_the_same(self):
        path = self.write('webhook { url = "http://h/", events = [ { event = on_publish } ] }')
        status, lines, _ = self.run_command("check", path, "--sample")
        self.assertEqual(status, 0)
        options = Options()
        options.parseOptions(["--config", path, "--check", "--sample"])
        self.patch(sys, "stdout", stdout := StringIO())
        self.assertEqual(self.assertRaises(SystemExit, makeService, options).code, 0)
        self.assertEqual(stdout.getvalue().splitlines(), lines)


GOOD = 'url = "http://h/", events = [ { event = on_publish } ]'

TYPICAL = {
    "a misspelt key": (
        f"webhook {{ {GOOD}\n pol_size = 3 }}",
        "a.conf:2: webhook.pol_size: unknown, ignored; did you mean 'pool_size'?",
    ),
    "a key in the wrong block": (
        f"webhook {{ {GOOD} }}\noutbox.sync = full",
        "outbox: belongs in the mqhooks block and is ignored",
    ),
    "a missing comma": ('webhook { url = "http://h/" retry.on = [ 408 429 ] }', "separate statuses by commas"),
    "a missing brace": (
        'webhook {\n url = "http://h/"',
        "a.conf: syntax error at the end of the file: the { of line 1 is not closed",
    ),
    "a brace too many": ("webhook { }\n}", "a.conf: syntax error in line 2, column 1: '}'; this bracket closes nothing"),
    "quotes that are not closed": ('webhook {\n url = "http://h/ }', "the quotes of line 2 are not closed"),
    "a wrong type": (
        f"webhook {{ {GOOD}\n pool_size = many }}",
        "a.conf:2: webhook.pool_size: 'many' is not a whole number from 1 to 65535",
    ),
    "a block as a value": (f"webhook {{ {GOOD}\n tls = on }}", "a.conf:2: webhook.tls: 'on' is not a block in braces"),
    "a URL without scheme": ("webhook {\n url = 'h:80' }", "a.conf:2: webhook.url: "),
    "no URL": (
        "webhook {\n events = [] }",
        'a.conf:1: webhook.url: is missing: set where to send events, for example url = "',
    ),
    "text with = and without quotes": (f"webhook {{ {GOOD}\n headers.x = a=b=c }}", 'goes into quotes: x = "a=b"'),
    "a bad secret": (f"webhook {{ {GOOD}\n secret = s3cret }}", "a.conf:2: webhook.secret: does not begin with whsec_"),
    "an unknown event": (
        'webhook { url = "http://h/"\n events = [ { event = xyzzy } ] }',
        "there is no event 'xyzzy'; there are on_client_connect, ",
    ),
    "an event that is misspelt": (
        'webhook { url = "http://h/"\n events = [ { event = on_messge_publish } ] }',
        "did you mean 'on_message_publish'?",
    ),
    "a hook of another broker": (
        'webhook { url = "http://h/"\n events = [ { event = on_register_m5 } ] }',
        "did you mean 'on_register'?",
    ),
    "a rule without event": (
        'webhook { url = "http://h/"\n events = [ { topic = a } ] }',
        'a.conf:2: webhook.events[0].event: is missing: name the event, for example event = "',
    ),
    "a bad topic filter": (
        'webhook { url = "http://h/"\n events = [ { event = on_publish, topic = "a/#/b" } ] }',
        "# must be the last level",
    ),
    "a wrong unit": (
        f"webhook {{ {GOOD}\n cancel_timeout = 5sec }}",
        "a.conf:2: webhook.cancel_timeout: '5sec' is not a duration like 5s, 500ms",
    ),
    "a wrong size": ("mqhooks.outbox.max_size = 1Gb1", "a.conf:1: mqhooks.outbox.max_size: '1Gb1' is not a size"),
    "no webhook at all": (
        "mqtt { }",
        "a.conf: no webhook is enabled: add webhook { url = … events = […] }, or give --url or --sink",
    ),
    "two webhooks of one name": (
        f"webhooks.a {{ {GOOD} }}\nwebhooks.a {{ {GOOD} }}",
        "two webhooks have this name, in line 1 and in line 2: rename one",
    ),
    "a TLS file that is missing": (
        'webhook { url = "https://h/"\n events = [], tls.cacertfile = "/nowhere.pem" }',
        "a.conf:2: webhook.tls.cacertfile: /nowhere.pem does not exist",
    ),
    "a certificate without key": (
        'webhook { url = "https://h/"\n events = [], tls.certfile = "/dev/null" }',
        "a.conf:2: webhook.tls.keyfile: is missing: certfile needs it",
    ),
    "an unset variable": (
        "webhook {\n url = ${MQHOOKS_UNSET} }",
        "a.conf: ${MQHOOKS_UNSET} is not set (line 2): set the environment variable",
    ),
    "a variable in quotes": (
        f'webhook {{ {GOOD}\n secret = "${{S}}" }}',
        "a.conf:2: webhook.secret: nothing is substituted within quotes",
    ),
    "a bare port": (
        "mqhooks.sources.sidecar.listen = 8890",
        'a.conf:1: mqhooks.sources.sidecar.listen: 8890 is not a listening endpoint: write "tcp:8890"',
    ),
    "one port twice": ('mqhooks.admin.listen = "tcp:8890"', "already uses this port: give each its own"),
    "NanoMQ's old format": (
        "web.hook.url=http://h/",
        "a.conf: web.hook.… is NanoMQ's old format, which is not read: write webhook {",
    ),
    "not text": (b"\xff\xfe", "a.conf: is not UTF-8 text"),
}
"""What people write, and what they are told."""


class TypicalMistakesTests(CheckCase):
    def test_in_files(self):
        for name, (text, expected) in TYPICAL.items():
            status, _, told = self.run_command("check", self.write(text), "--strict")
            self.assertEqual(status, 1, name)
            found = [line for line in told if expected in line]
            self.assertEqual(len(found), 1, f"{name}: {expected}\n{told}")
            self.assertNotIn("s3cret", " ".join(told))

    def test_json_is_fine(self):
        path = self.write('{"webhook": {"url": "http://h/", "pool_size": 3, "events": [{"event": "on_publish"}]}}')
        self.assertEqual(self.run_command("check", path, "--strict")[0], 0)

    def test_on_the_command_line(self):
        good = self.write(f"webhook {{ {GOOD} }}")
        for words, expected in (
            (["--confg", good], "mqhooks check: there is no option '--confg' here; did you mean --config?"),
            (["-n", good], "mqhooks check: there is no option '-n' here"),
            ([good, "--config", good], "check: FILE and --config are the same: give one of them"),
            (["/nowhere.conf"], "mqhooks: /nowhere.conf: cannot be read: No such file or directory"),
            ([str(self.folder)], "cannot be read: Is a directory"),
            ([good, "--admin-port", "http"], "mqhooks: check: --admin-port: 'http' is not a whole number from 0 to 65535"),
            ([good, "--sink", "lgo"], "no sink is called 'lgo'"),
            ([good, "--url", "h:80"], "mqhooks: --url: 'h:80' is not a URL like http://host:8080/path"),
            (
                [good, "--sidecar-port", "8891"],
                "tcp:8891: mqhooks.admin.listen already uses this port",
            ),
        ):
            status, _, told = self.run_command("check", *words)
            self.assertIn(status, (1, 2))
            self.assertEqual(len(told), 1, told)
            self.assertIn(expected, told[0].replace(f"{self.folder}/", ""))


class StartTests(TestCase):
    timeout = 120

    async def test_mistakes_when_it_starts(self):
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        taken = port.getHost().port
        for kind, words, expected in (
            (
                Mqhooks,
                ["run", f"--sidecar-port={taken}", "--admin-port=0"],
                "Address already in use; stop what",
            ),
            (
                Mqhooks,
                ["run", "--admin-prt=0"],
                "mqhooks run: there is no option '--admin-prt' here; did you mean --admin-port?",
            ),
            (
                Twistd,
                ["mqhooks", "-n"],
                "option -n not recognized; it is one of twistd's own: write it before",
            ),
        ):
            process = kind(self, *words)
            self.assertNotEqual((await process.ended).exitCode, 0)
            self.assertIn(expected, process.stdout + process.stderr)
            self.assertNotIn("Traceback", process.stdout + process.stderr)
