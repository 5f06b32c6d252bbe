"""
What the documentation says is so.
"""

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from io import StringIO
from pathlib import Path
from textwrap import dedent
from time import time
from typing import Any

import msgspec
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import Options
from twisted.trial.unittest import SynchronousTestCase

import mqhooks
from mqhooks import __main__
from mqhooks.app import statusview, tap
from mqhooks.app.command import parser
from mqhooks.app.configuration import compose, load
from mqhooks.app.statusview import StatusReply
from mqhooks.delivery import Delivery
from mqhooks.events import HOOKS, failure_name, reason_name
from mqhooks.nanomq.block import Block
from mqhooks.nanomq.bodies import hook_body
from mqhooks.nanomq.events import CAUSES, RULE_EVENTS
from mqhooks.nanomq.hocon import read
from mqhooks.nanomq.rules import Rules
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.pb.disconnect_reason_pb2 import Reason
from mqhooks.pb.on_register_failed_pb2 import RegistrationFailureReason
from mqhooks.testing import make_event
from mqhooks.tools import receiver, simulator
from mqhooks.webhook.request import RequestMaker
from mqhooks.webhook.retry import RetryPolicy
from mqhooks.webhook.settings import RetrySettings, WebhookSettings

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TWISTD = "from twisted.scripts.twistd import run; run()"
PROGRAMS: dict[str, type[Options]] = {
    "mqhooks": tap.Options,
    "mqhooks-receive": receiver.Options,
    "mqhooks-simulate": simulator.Options,
}

EVERY_BLOCK = """
webhook {
  url = "https://localhost/"
  headers { x-a = b }
  body { encoding = plain }
  cloudevents { }
  events = [{ event = on_publish }]
  tls { enable = true }
  unknown { }
  batch { }
}
mqhooks { sources { webhooks { }, grpc { } }, sidecar { }, outbox { }, admin { } }
"""


def body(rule: str, *, details: bool = False) -> str:
    """What a rule makes of the first event that it has something for."""
    settings = WebhookSettings("docs", "http://localhost/", (Rule(rule),), details=details)
    hook = rule if rule in HOOKS else next(hook for hook, events in CAUSES.items() if rule in events)
    (made,) = Rules(settings.bodies).bodies(make_event(hook))
    return made.decode()


class Events(SynchronousTestCase):
    text = (DOCS / "events.rst").read_text()

    def test_bodies(self) -> None:
        shown = dict(re.findall(r"^\.\. code-block:: json\n +:name: (\S+)\n\n +(.+)$", self.text, re.M))
        expected = {f"body-{rule}": body(rule) for rule in RULE_EVENTS}
        expected["body-details"] = body("on_message_publish", details=True)
        expected["properties-on_publish"] = hook_body(make_event("on_publish", user_properties={"trace": "7"})).decode()
        self.assertEqual(shown, expected)

    def test_causes(self) -> None:
        table = self.text.partition("What causes what")[2].partition("\n\nWhen several")[0]
        rows = re.findall(r"^   \* - (.+)\n     - (.+)$", table, re.M)[1:]
        told = {
            hook: tuple(re.findall(r"``(on_\w+)``", caused)) if not caused.startswith("none") else ()
            for hooks, caused in rows
            for hook in re.findall(r"``(on_\w+)``", hooks)
        }
        self.assertEqual(told, dict(CAUSES))

    def test_reasons(self) -> None:
        refusals = self.text.partition("why it was refused:")[2].partition("\n\n")[0]
        names = {failure_name(number) for number in RegistrationFailureReason.values()}
        self.assertEqual(set(re.findall(r"``(\w+)``", refusals)), names)
        ends = self.text.partition("VerneMQ's reason in lower case:")[2].partition("One that this")[0]
        names = {reason_name(number) for number in Reason.values()} - {"normal_disconnect", "mqtt_client_disconnect"}
        self.assertEqual(set(re.findall(r"``(\w+)``", ends)), names)

    def test_request_shown_is_of_this_version(self) -> None:
        self.assertIn(f"user-agent: mqhooks/{mqhooks.__version__}\n", self.text)


def shown(page: str, name: str) -> list[str]:
    """The lines of a named block."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^\.\. code-block:: \w+\n   :name: {name}\n\n((?:   .*\n|\n)+)", text, re.M)
    assert found is not None, name
    return dedent(found[1]).strip("\n").split("\n")


class Outbox(SynchronousTestCase):
    """What is shown of an outbox, which here holds the deliveries of a webhook whose endpoint was away."""

    ACCEPTED = 1_767_225_600_000
    REASON = "https://billing.example/mqtt answered 503: max_attempts (3) reached"

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.clock = MemoryReactorClock()
        store = SqliteStore(self.clock, self.path)
        store.startService()
        self.addCleanup(store.stopService)
        self.outbox = store.outbox("billing")
        for number in range(1, 8):
            client = f"client-{number}"
            body = f'{{"reason":"normal","username":"user-{number}","clientid":"{client}","action":"client_disconnected"}}'
            id_ = f"msg_2f6b9c41d0e87a35b1{number:x}"
            self.outbox.append([Delivery(id_, client, self.ACCEPTED * 10**6, body.encode(), self.ACCEPTED)])
            self.clock.advance(0)
        for delivery in self.claim(2):
            delivery.attempts = 3
            died = self.ACCEPTED + 7000
            self.outbox.bury(delivery, "https://billing.example/mqtt", self.REASON, 503, b"come back on Monday", died)
        self.outbox.acknowledge(self.claim(4))
        self.clock.advance(1)

    def claim(self, count: int) -> list[Delivery]:
        claimed: list[Delivery] = []
        while len(claimed) < count:
            claimed += self.outbox.claim(count - len(claimed), 1 << 20)  # type: ignore[arg-type]
        return claimed

    def test_dead_letters(self) -> None:
        for name in ("dead-list", "dead-groups", "dead-show", "dead-ask"):
            session = re.split(r"^\$ mqhooks (.+)\n", "\n".join([*shown("delivery.rst", name), ""]), flags=re.M)[1:]
            for command, expected in zip(session[::2], session[1::2], strict=True):
                lines: list[str] = []
                words = command.replace("-c nanomq.conf", f"--outbox {self.path}").split()
                self.assertEqual(__main__.main(words, lines.append), 0)
                self.assertEqual(lines, expected.rstrip("\n").split("\n"))

    def test_numbers(self) -> None:
        lines = shown("operating.rst", "looking")
        question = re.search('"(.+?)"', "\n".join(lines), re.S)
        assert question is not None
        connection = sqlite3.connect(self.path)
        self.addCleanup(connection.close)
        answer = connection.execute(question[1])
        table = [re.split(r"\s*│\s*", line.strip("│ ")) for line in lines if line.startswith("│")]
        self.assertEqual([column[0] for column in answer.description], table[0])
        self.assertEqual([[str(value) for value in row] for row in answer], table[1:])

    def test_size_of_a_delivery_is_as_told(self) -> None:
        told = re.search(r"its body, its client id and about (\d+) bytes", (DOCS / "configuration.rst").read_text())
        assert told is not None
        self.assertIn(f"about {told[1]} more", (DOCS / "sizing.rst").read_text())
        before = self.outbox.used
        for number in range(100):
            self.outbox.append([Delivery(f"msg_{number:021}", "c" * 13, self.ACCEPTED * 10**6, b"b" * 150, self.ACCEPTED)])
            self.clock.advance(0)
        self.assertApproximates((self.outbox.used - before) / 100, 150 + 13 + int(told[1]), 5)


class Promises(SynchronousTestCase):
    def test_which_answers(self) -> None:
        policy = RetryPolicy(RetrySettings())
        retried = {status for status in range(300, 600) if policy.retries(status)}
        self.assertEqual(retried, {408, 425, 429, *range(500, 600)} - {501, 505})
        for page in ("delivery.rst", "configuration.rst"):
            self.assertIn("408, 425, 429, ", (DOCS / page).read_text())
            self.assertIn("500 to 599 except 501 and 505", (DOCS / page).read_text())

    def test_verification_shown_accepts_our_signatures(self) -> None:
        handled: list[Any] = []
        house: dict[str, Any] = {"secret": SECRET, "seen": set(), "handle": handled.append}
        exec("\n".join(shown("delivery.rst", "verify")), house)
        requests = RequestMaker(WebhookSettings("docs", "http://h/", (), secrets=(SECRET,)), time)
        delivery = Delivery("msg_1", "c", 0, b'{"action":"client_connack"}')
        for _ in range(2):
            headers = dict(requests.identify(delivery.id, delivery.body))
            self.assertEqual(house["receive"](headers, delivery.body), 204)
        self.assertEqual(house["receive"](headers, b"{}"), 401)
        self.assertEqual(handled, [{"action": "client_connack"}])


class CommandLines(SynchronousTestCase):
    def test_every_option(self) -> None:
        text = (DOCS / "configuration.rst").read_text()
        programs = re.split(r"^\.\. program:: (\S+)$", text, flags=re.M)[1:]
        told = {
            program: set(re.findall(r"^\.\. option:: --([\w-]+)", section, re.M))
            for program, section in zip(programs[::2], programs[1::2], strict=True)
        }
        known = {
            program: {name.rstrip("=") for name in options().longOpt} - {"help", "version"}
            for program, options in PROGRAMS.items()
        }
        self.assertEqual(told, known)

    def test_every_command_is_understood(self) -> None:
        commands = re.findall(r"^ +(?:\$ )?(twistd .+)$", self.all_text(), re.M)
        self.assertGreater(len(commands), 10)
        for command in commands:
            words = shlex.split(command.partition(" | ")[0].replace("$WEBHOOK_SECRET", SECRET))
            program = next(word for word in words if word in PROGRAMS)
            PROGRAMS[program]().parseOptions(words[words.index(program) + 1 :])

    def test_every_command_of_mqhooks_is_understood(self) -> None:
        found = r"^ +[$#] (?:docker exec mqhooks |/opt/mqhooks/bin/)?(mqhooks [a-z].+)$|^ {7}(mqhooks [a-z].+)$"
        commands = ["".join(either) for either in re.findall(found, self.all_text(), re.M)]
        self.assertGreater(len(commands), 15)
        for command in commands:
            words = shlex.split(re.sub(r"\$\(.*?\)", "1", re.split(r" [>|] ", command)[0]))
            parser().understand(words[1:])

    def test_every_command_of_mqhooks_is_told(self) -> None:
        text = self.all_text()
        for name in parser().commands:
            self.assertIn(f"mqhooks {name}", text)

    def test_check_tells_mistakes_as_shown(self) -> None:
        command, *expected = shown("command-line.rst", "check-mistakes")
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        path = folder / "nanomq.conf"
        path.write_text(
            'webhook {\n\n  url = "127.0.0.1:8080"\n  events = [ { event = on_messge_publish } ]\n  pol_size = 3\n}\n'
        )
        self.patch(sys, "stderr", stderr := StringIO())
        self.assertEqual(command, "$ mqhooks check nanomq.conf")
        self.assertEqual(__main__.main(["check", str(path)]), 1)
        self.assertEqual(stderr.getvalue().replace(str(path), "nanomq.conf").splitlines(), expected)

    def test_status_is_as_shown(self) -> None:
        status = msgspec.convert(json.loads("\n".join(shown("api-http.rst", "api-status"))), StatusReply)
        self.assertEqual(list(statusview.shown(status)), shown("command-line.rst", "status-shown")[1:])

    def test_every_target_is_there(self) -> None:
        told = set(re.findall(r"(?:^    |`)make ([a-z-]+)", self.all_text(), re.M))
        self.assertLessEqual({"demo", "cluster-demo", "test", "docs", "lint", "types", "proto"}, told)
        targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.M))
        self.assertLessEqual(told, targets)

    def all_text(self) -> str:
        files = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *DOCS.glob("*.rst")]
        return "\n".join(file.read_text() for file in files)


class Configurations(SynchronousTestCase):
    def test_every_key(self) -> None:
        told = set(re.findall(r"^\.\. confval:: (\S+)$", (DOCS / "configuration.rst").read_text(), re.M))
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        path = folder / "all.conf"
        path.write_text(EVERY_BLOCK)
        root = Block(read(str(path)).values, str(path), "", [])
        compose(root)
        asked = {key.replace("[0]", "[]") for key in root.asked}
        # ssl is told as another name of tls, webhooks as several of webhook; a block that holds told keys needs no telling.
        known = {key for key in asked if "ssl" not in key and key not in ("webhooks", "sidecar", "outbox", "admin")}
        inner = {key for key in known if any(other.startswith(f"{key}.") for other in known)} - told
        self.assertEqual(known - inner, told)

    def test_examples_are_good(self) -> None:
        os.environ["WEBHOOK_SECRET"] = SECRET
        self.addCleanup(os.environ.pop, "WEBHOOK_SECRET")
        examples = sorted(DOCS.glob("*.conf"))
        self.assertGreater(len(examples), 1)
        for path in examples:
            settings = load(str(path))
            self.assertEqual(settings.warnings, ())
            self.assertTrue(settings.webhooks)

    def test_readme_example_is_that_of_the_quickstart(self) -> None:
        found = re.search(r"^       webhook \{\n(?:       .*\n)+?       \}\n", (PROJECT / "README.md").read_text(), re.M)
        assert found is not None
        self.assertEqual(re.sub("^       ", "", found[0], flags=re.M), (DOCS / "quickstart.conf").read_text())

    def test_check_accepts_the_quickstart(self) -> None:
        command = [
            sys.executable,
            "-c",
            TWISTD,
            "-n",
            "--pidfile=",
            "mqhooks",
            "--check",
            "--config",
            str(DOCS / "quickstart.conf"),
        ]
        checked = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((checked.returncode, checked.stderr), (0, ""))
        self.assertIn("webhook webhook: POST http://127.0.0.1:8080/hook", checked.stdout)
        self.assertIn("on_message_publish on sensors/#", checked.stdout)
