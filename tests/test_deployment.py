"""
The unit, the image, and what the pages about running mqhooks say.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import kubernetes_validate
import yaml
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
from mqhooks.app.supervisor import PATIENCE
from mqhooks.nanomq.rules import hooks_for
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.sinks import sinkFromString
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.sources.webhooks.instructions import instructions
from mqhooks.support import recording as capture
from mqhooks.support.listening import interface_of, is_local
from mqhooks.support.recording import HEADER, Record
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.counted import CountedWebhook
from tests.test_project_docs import DOCS, PROGRAMS, PROJECT, shown
from tests.webhooks import FakeTransport, publish

PACKAGING = PROJECT / "packaging"
PAGES = (
    "deploy-systemd",
    "deploy-docker",
    "deploy-kubernetes",
    "sizing",
    "upgrading",
    "troubleshooting",
    "capture",
    "operating",
)
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

    def test_systemd_hears_of_it(self) -> None:
        self.assertEqual(self.service["Type"], "notify")
        self.assertGreaterEqual(int(self.service["WatchdogSec"]), 10)
        self.assertIn("Environment=PYTHONFAULTHANDLER=1\n", self.text)
        # It says that it is ready before systemd gives up, which is after 90 s by default.
        self.assertLess(PATIENCE, int(self.service.get("TimeoutStartSec", "90")))

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

    def test_the_socket_unit_goes_with_it(self) -> None:
        unit = RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(PACKAGING / "mqhooks.socket")
        passed = unit["Socket"]
        self.assertEqual(passed["Service"], "mqhooks.service")
        self.assertEqual(passed["ListenStream"], f"127.0.0.1:{SIDECAR_PORT}")
        file = Path(self.mktemp())
        ours = shown("deploy-systemd.rst", "systemd-socket")
        file.write_text("\n".join([(DOCS / "deploy-systemd.conf").read_text(), *ours]))
        self.assertEqual(load(str(file)).sources.sidecars, (f"systemd:domain=INET:name={passed['FileDescriptorName']}",))

    def analyze(self, *command: str) -> str:
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd-analyze is not installed")
        unit = Path(self.mktemp()) / "mqhooks.service"
        unit.parent.mkdir(parents=True)
        shutil.copy(PACKAGING / "mqhooks.socket", unit.parent)
        # It is not installed here, and the user need not exist.
        unit.write_text(re.sub("^(User|Group)=.*\n", "", self.text.replace("/opt/mqhooks/bin/twistd", "/bin/true"), flags=re.M))
        units = [str(unit), str(unit.parent / "mqhooks.socket")] if command[0] == "verify" else [str(unit)]
        done = subprocess.run(["systemd-analyze", *command, *units], capture_output=True, text=True)
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

    def test_hadolint_has_nothing_to_say(self) -> None:
        hadolint = Path(sys.executable).parent / "hadolint"
        if not hadolint.exists():
            raise SkipTest("hadolint is not installed")
        done = subprocess.run([str(hadolint), str(PACKAGING / "Dockerfile")], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_the_wheel_is_what_is_installed(self) -> None:
        (made,) = (rest for name, rest in self.stages[0] if name == "RUN" and "pip wheel" in rest)
        self.assertRegex(made, r"pip wheel .*--no-deps --wheel-dir /wheels \. && .*pip install .*/wheels/mqhooks-\*\.whl")
        # Nothing of the sources gets into the image.
        copied = [rest for name, rest in self.stages[-1] if name == "COPY"]
        self.assertEqual(copied, ["--from=build /opt/mqhooks /opt/mqhooks"])

    def test_labels(self) -> None:
        labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', self.last["LABEL"]))
        self.assertEqual(labels["licenses"], "MIT")
        self.assertEqual(labels["version"], "$VERSION")
        text = (PACKAGING / "Dockerfile").read_text()
        bases = set(re.findall(r"^FROM (\S+)", text, re.M))
        self.assertEqual({labels["base.name"]}, {f"docker.io/library/{base}" for base in bases})
        self.assertEqual(self.last["STOPSIGNAL"], "SIGTERM")

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


class Kubernetes(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (DOCS / "examples" / "kubernetes.yaml").read_text()
        self.objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(self.text)}
        self.set = self.objects["StatefulSet", "vernemq"]
        self.pod = self.set["spec"]["template"]["spec"]
        (self.bridge,) = self.pod["initContainers"]
        (self.broker,) = self.pod["containers"]
        (volume,) = (volume for volume in self.pod["volumes"] if volume["name"] == "settings")
        sources = volume["projected"]["sources"]
        files = {
            **self.objects["ConfigMap", sources[0]["configMap"]["name"]]["data"],
            **self.objects["Secret", sources[1]["secret"]["name"]]["stringData"],
        }
        # As the kubelet mounts them: what changes is a link to a directory.
        self.mount = Path(self.mktemp()).absolute()
        (self.mount / "..2026").mkdir(parents=True)
        (self.mount / "..data").symlink_to("..2026")
        for name, text in files.items():
            (self.mount / "..2026" / name).write_text(text)
            (self.mount / name).symlink_to(Path("..data", name))

    def options(self, *more: str) -> tap.Options:
        image = Image()
        image.setUp()
        options = parsed([*image.entry, *self.bridge["args"], *more])
        path = Path(options["config"])
        mounts = {mount["mountPath"]: mount["name"] for mount in self.bridge["volumeMounts"]}
        self.assertEqual(mounts[str(path.parent)], "settings")
        options["config"] = str(self.mount / path.name)
        return options

    def test_schemas(self) -> None:
        # The oldest version that has sidecars, and the newest one.
        for version in ("1.29", kubernetes_validate.latest_version()):
            for each in self.objects.values():
                kubernetes_validate.validate(each, version, strict=True)
        misspelt = {**self.objects["Service", "vernemq"], "spek": {}}
        self.assertRaises(kubernetes_validate.ValidationError, kubernetes_validate.validate, misspelt, "1.29", strict=True)

    def test_labels_and_names_lead_somewhere(self) -> None:
        labels = self.set["spec"]["template"]["metadata"]["labels"]
        self.assertEqual(self.set["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(self.objects["NetworkPolicy", "vernemq"]["spec"]["podSelector"]["matchLabels"], labels)
        self.assertIn(("Service", self.set["spec"]["serviceName"]), self.objects)
        ports = {port["name"] for container in (self.bridge, self.broker) for port in container["ports"]}
        for (kind, _), each in self.objects.items():
            if kind == "Service":
                self.assertEqual(each["spec"]["selector"], labels)
                self.assertLessEqual({port["targetPort"] for port in each["spec"]["ports"]}, ports)
        rules = self.objects["NetworkPolicy", "vernemq"]["spec"]["ingress"]
        self.assertEqual({port["port"] for rule in rules for port in rule["ports"]}, ports)
        volumes = {volume["name"] for volume in self.pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in self.set["spec"]["volumeClaimTemplates"]}
        mounted = {mount["name"] for container in (self.bridge, self.broker) for mount in container["volumeMounts"]}
        self.assertEqual(mounted, volumes)

    def test_the_configuration_is_good(self) -> None:
        settings = load(self.options()["config"])
        self.assertEqual(settings.warnings, ())
        claims = {claim["metadata"]["name"] for claim in self.set["spec"]["volumeClaimTemplates"]}
        kept = [mount["mountPath"] for mount in self.bridge["volumeMounts"] if mount["name"] in claims]
        self.assertIn(str(Path(settings.outbox.path).parent), kept)
        # twistd's own check needs the directory too.
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        file = self.mount / "..2026" / "nanomq.conf"
        file.write_text(file.read_text().replace(kept[0], str(directory)))
        with redirect_stdout(StringIO()):
            left = self.assertRaises(SystemExit, tap.makeService, self.options("--check"))
        self.assertEqual(left.code, 0)

    def test_only_the_admin_port_is_for_others(self) -> None:
        settings = load(self.options()["config"])
        self.assertTrue(all(map(is_local, settings.sources.webhooks.listen)))
        self.assertFalse(is_local(str(settings.admin.listen)))
        self.assertIsNotNone(settings.admin.token)
        self.assertEqual(
            [port["containerPort"] for port in self.bridge["ports"]], [interface_of(str(settings.admin.listen))[2]]
        )

    def test_vernemq_is_told_what_the_check_prints(self) -> None:
        settings = load(self.options()["config"])
        wanted = set[str]().union(*(hooks_for(webhook.bodies) for webhook in settings.webhooks))
        lines = dict(line.split(" = ") for line in instructions(settings.sources.webhooks, wanted) if not line.startswith("#"))
        expected = {f"DOCKER_VERNEMQ_{key.replace('.', '__').upper()}": value for key, value in lines.items()}
        told = {each["name"]: each["value"] for each in self.broker["env"]}
        del told["DOCKER_VERNEMQ_ACCEPT_EULA"]
        self.assertEqual(told, expected)

    def test_starts_before_vernemq_and_stops_after_it(self) -> None:
        self.assertEqual(self.bridge["restartPolicy"], "Always")
        settings = load(self.options()["config"])
        self.assertGreaterEqual(self.pod["terminationGracePeriodSeconds"], 5 + 30 + settings.shutdown_timeout + 10)

    def test_probes(self) -> None:
        for probe in ("startupProbe", "livenessProbe"):
            self.assertEqual(self.bridge[probe]["httpGet"], {"path": "/healthz", "port": "admin"})
        # The readiness of a sidecar is that of its pod: a refusing endpoint would end the broker's service.
        self.assertNotIn("readinessProbe", self.bridge)

    def test_may_nothing_that_it_need_not(self) -> None:
        image = Image()
        image.setUp()
        security = self.bridge["securityContext"]
        self.assertEqual(f"{security['runAsUser']}:{security['runAsGroup']}", image.last["USER"])
        self.assertTrue(security["readOnlyRootFilesystem"])
        self.assertEqual(self.pod["securityContext"]["fsGroup"], security["runAsGroup"])
        for container in (self.bridge, self.broker):
            self.assertIs(container["securityContext"]["allowPrivilegeEscalation"], False)
            self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})


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
        self.assertLessEqual(told, known | prefixes | {"mqhooks.service", "mqhooks.socket"})

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
            "Watchdog timeout",
            "transport = treq",
            "Connection was closed cleanly",
            "certificate verify failed",
            "answered 401",
            "answered 3",
            "no answer within 5 s",
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
