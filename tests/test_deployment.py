"""
The unit, the image, and what the pages about running mqhooks say.
"""

import json
import re
import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mqhooks.admin.settings import ADMIN_LISTEN
from mqhooks.app import tap
from mqhooks.app.build import SIDECAR_PORT
from mqhooks.app.command import parser
from mqhooks.app.configuration import load
from mqhooks.app.logs import json_line
from mqhooks.app.settings import DEFAULTS
from mqhooks.app.summary import SummaryService
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.sinks import sinkFromString
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.support import recording as capture
from mqhooks.support.recording import HEADER, Record
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.counted import CountedWebhook
from tests.test_project_docs import DOCS, PROGRAMS, PROJECT, shown
from tests.webhooks import FakeTransport, publish

PACKAGING = PROJECT / "packaging"
PAGES = ("deploy-systemd", "deploy-docker", "sizing", "upgrading", "troubleshooting", "capture", "operating")
SETTINGS = "/etc/mqhooks/nanomq.conf"


def text_of(page: str) -> str:
    return (DOCS / f"{page}.rst").read_text()


def page_text() -> str:
    return "\n".join(map(text_of, PAGES))


def parsed(words: list[str]) -> tap.Options:
    """Take ``twistd … mqhooks …`` apart, as twistd does."""
    end = words.index("mqhooks")
    ServerOptions().parseOptions(words[1:end])
    options = tap.Options()
    options.parseOptions(words[end + 1 :])
    return options


def joined(text: str) -> str:
    return re.sub(r" *\\\n *", " ", text)


class Unit(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (PACKAGING / "mqhooks.service").read_text()
        unit = RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(self.text)
        self.service = unit["Service"]

    def test_commands(self) -> None:
        start, before = (shlex.split(self.service[key]) for key in ("ExecStart", "ExecStartPre"))
        self.assertEqual(before, [*start, "--check"])
        self.assertEqual(Path(start[0]).name, "twistd")
        self.assertEqual(start[1:3], ["-n", "--pidfile="])
        self.assertEqual(parsed(start)["config"], SETTINGS)
        self.assertTrue(parsed(before)["check"])

    def test_stopping_takes_as_long_as_it_may(self) -> None:
        self.assertGreaterEqual(int(self.service["TimeoutStopSec"]), DEFAULTS.shutdown_timeout + 10)

    def test_goes_on_after_damage(self) -> None:
        self.assertEqual(self.service["Restart"], "always")
        self.assertIn("StartLimitIntervalSec=0\n", self.text)

    def test_where_the_outbox_is(self) -> None:
        self.assertEqual(self.service["WorkingDirectory"], f"/var/lib/{self.service['StateDirectory']}")
        for example in ("deploy-systemd.conf", "deploy-docker.conf"):
            settings = load(str(DOCS / example))
            self.assertTrue(settings.outbox.path.startswith(f"{self.service['WorkingDirectory']}/"))

    def test_tls_works(self) -> None:
        self.assertNotIn("MemoryDenyWriteExecute=yes", self.text)

    def analyze(self, *command: str) -> str:
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd-analyze is not installed")
        unit = Path(self.mktemp()) / "mqhooks.service"
        unit.parent.mkdir(parents=True)
        # It is not installed here, and the user need not exist.
        unit.write_text(re.sub("^(User|Group)=.*\n", "", self.text.replace("/opt/mqhooks/bin/twistd", "/bin/true"), flags=re.M))
        done = subprocess.run(["systemd-analyze", *command, str(unit)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_systemd_understands_it(self) -> None:
        self.assertEqual(self.analyze("verify", "--man=no"), "")

    def test_it_is_hardened(self) -> None:
        # Without its user, which counts for 4 of 10 points, it has to be medium at most.
        found = re.search(r"exposure level for \S+: ([\d.]+)", self.analyze("security", "--offline=yes"))
        assert found is not None
        self.assertLess(float(found[1]), 3.0)


class Image(SynchronousTestCase):
    def setUp(self) -> None:
        lines = re.sub(r"^ *#.*\n", "", (PACKAGING / "Dockerfile").read_text(), flags=re.M)
        self.stages = [
            [(name, rest) for name, _, rest in (line.partition(" ") for line in joined(stage).strip().splitlines() if line)]
            for stage in re.split(r"^FROM .+$", lines, flags=re.M)[1:]
        ]
        self.last = dict(self.stages[-1])
        self.entry: list[str] = json.loads(self.last["ENTRYPOINT"])

    def test_what_it_runs(self) -> None:
        options = parsed([*self.entry, *json.loads(self.last["CMD"])])
        self.assertEqual(options["config"], SETTINGS)

    def test_runs_as_nobody_in_particular(self) -> None:
        self.assertRegex(self.last["USER"], r"^[1-9]\d*:[1-9]\d*$")
        self.assertEqual(self.last["VOLUME"], self.last["WORKDIR"])

    def test_health(self) -> None:
        port = ADMIN_LISTEN.partition(":")[2]
        self.assertIn(f"'http://127.0.0.1:{port}/healthz'", self.last["HEALTHCHECK"])
        program = json.loads(self.last["HEALTHCHECK"].partition("CMD ")[2])[2]
        compile(program, "healthcheck", "exec")
        self.assertEqual(self.last["EXPOSE"], f"{SIDECAR_PORT} {port}")

    def test_what_is_copied_is_there_and_enough(self) -> None:
        copied = {word for name, rest in self.stages[0] if name == "COPY" for word in rest.split()[:-1]}
        for name in copied:
            self.assertTrue((PROJECT / name).exists(), name)
        ignored = (PACKAGING / "Dockerfile.dockerignore").read_text().splitlines()
        self.assertEqual({line[1:] for line in ignored if line.startswith("!")}, copied)

    def test_commands_of_the_page(self) -> None:
        runs = re.findall(r"docker run (.+)", joined(text_of("deploy-docker")))
        composed = re.findall(r"^ +command: (.+)$", text_of("deploy-docker"), re.M)
        self.assertTrue(runs)
        self.assertTrue(composed)
        for arguments in [*(run.rpartition(" mqhooks ")[2] for run in runs), *composed]:
            options = parsed([*self.entry, *shlex.split(arguments)])
            self.assertEqual(options["config"], SETTINGS)
        self.assertTrue((PROJECT / "packaging" / "Dockerfile").exists())
        self.assertIn("docker build -f packaging/Dockerfile ", text_of("deploy-docker"))


class Pages(SynchronousTestCase):
    def test_every_option_is_known(self) -> None:
        known = {"network", "read-only", "stop-timeout", "no-healthcheck"}  # Docker's
        for options in (*PROGRAMS.values(), ServerOptions):
            known |= {name.rstrip("=") for name in options().longOpt}
        for command in parser().commands.values():
            known |= {option.lstrip("-") for option in command.options}
        told = set(re.findall(r"``--([a-z-]+)", page_text()))
        self.assertGreater(len(told), 8)
        self.assertLessEqual(told, known)

    def test_every_key_is_known(self) -> None:
        known = set(re.findall(r"^\.\. confval:: (\S+)$", text_of("configuration"), re.M))
        prefixes = {".".join(key.split(".")[:count]) for key in known for count in range(1, 4)}
        told = set(re.findall(r"``((?:mqhooks|webhook)\.[a-z_.]+)``", page_text()))
        told |= set(re.findall(r":confval:`([^`]+)`", page_text()))
        self.assertGreater(len(told), 8)
        self.assertLessEqual(told, known | prefixes | {"mqhooks.service"})

    def test_sinks_that_are_shown_can_be_made(self) -> None:
        shown_sinks = re.findall(r"--sink ('[^']+'|\S+)", text_of("capture"))
        self.assertGreater(len(shown_sinks), 1)
        for sink in shown_sinks:
            sinkFromString(Clock(), *shlex.split(sink))

    def test_messages_that_are_named_are_those_of_the_code(self) -> None:
        code = "\n".join(path.read_text() for path in (PROJECT / "mqhooks").rglob("*.py"))
        code = re.sub(r'"\s*f?"', "", code)
        told = re.findall(r"^   \* - (.*``.+)$", text_of("troubleshooting"), re.M)
        phrases = {
            phrase.strip(" .,:")
            for symptom in told
            for words in re.findall(r"``([^`]+)``", symptom)
            for phrase in re.split(r"…|:", words)
            if " " in phrase.strip(" .,:()")
        }
        of_others = {
            "Address already in use",
            "Another twistd server is running",
            "Connection refused",
            "Connection was closed cleanly",
            "certificate verify failed",
            "answered 401",
            "answered 3",
            "no answer within 5 s",
            "transport = treq",
            "first sidecar connection",
        }
        self.assertGreater(len(phrases), 12)
        missing = {phrase for phrase in phrases - of_others if phrase.strip("() ") not in code}
        self.assertEqual(missing, set())


class CaptureFormat(SynchronousTestCase):
    def test_capture_shown_is_a_capture(self) -> None:
        lines = (HEADER + capture.line(Record(1_800_000_000_000_000_000, b"frame"))).decode().splitlines()
        self.assertEqual(shown("capture.rst", "capture-example"), lines)
        self.assertIn(HEADER.decode().strip(), capture.__doc__ or "")


class LogExamples(SynchronousTestCase):
    def test_json_line_shown_is_logged(self) -> None:
        (example,) = shown("operating.rst", "log-json")
        settings = WebhookSettings("billing", "https://billing.example/mqtt", (Rule("on_message_publish"),))
        transport = FakeTransport()
        transport.at_once = lambda attempt: 503
        clock = Clock()
        sink = WebhookSink(clock, settings, MemoryOutbox(), transport, now=clock.seconds)
        sink.startService()
        with capturedLogs() as logged:
            sink.receive([publish(f"c{number}", number) for number in range(20)])
            clock.advance(settings.merge_window)
        (down,) = [event for event in logged if "is down" in formatEvent(event)]
        down["log_time"] = 1_767_225_607.25
        self.assertEqual(json_line(down), f"{example}\n")

    def test_summary_shown_is_logged(self) -> None:
        (example,) = shown("operating.rst", "log-summary")
        seconds, events, filtered, delivered, dead, failed, pending = map(int, re.findall(r"\d+", example))
        clock = Clock()
        sidecar = SidecarCounters()
        webhook = CountedWebhook("billing")
        service = SummaryService(clock, [sidecar], lambda: [webhook])
        service.startService()
        sidecar.hooks["on_publish"] = events
        webhook.counters.filtered, webhook.counters.failed = filtered, failed
        webhook.settle(delivered=delivered, dead=dead, pending=pending)
        with capturedLogs() as logged:
            clock.advance(seconds)
        self.assertEqual([formatEvent(event) for event in logged], [example])
