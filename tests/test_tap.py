"""The command line of ``twistd mqhooks``."""

import builtins
import json
import os
import socket
import sys
from io import StringIO
from pathlib import Path

from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.usage import UsageError
from twisted.scripts.twistd import run
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.app.tap import Options, makeService
from mqhooks.events import HOOKS, M5_HOOKS
from mqhooks.pb.on_publish_pb2 import OnPublish
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.processes import Twistd
from tests.waiting import until


class OptionsCase:
    def options(self, *args):
        options = Options()
        options.parseOptions(args)
        return options

    def file(self, text):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        path = directory / "mqhooks.conf"
        path.write_text(text, encoding="utf-8")
        return str(path)


class OptionsTests(OptionsCase, SynchronousTestCase):
    def test_defaults(self):
        options = self.options()
        self.assertEqual((options["sidecar"], options["sink"], options["admin-port"], options["check"]), ([], [], None, 0))

    def test_repeatable(self):
        options = self.options("--sidecar", "tcp:1", "--sidecar", "tcp:2", "--sink", "log", "--sink", "log:path=x")
        self.assertEqual((options["sidecar"], options["sink"]), (["tcp:1", "tcp:2"], ["log", "log:path=x"]))

    def test_ports(self):
        for option in ("--sidecar-port", "--admin-port"):
            self.assertEqual(self.options(option, "65535")[option[2:]], 65535)
            for wrong in ("x", "-1", "65536", ""):
                error = self.assertRaises(UsageError, self.options, option, wrong)
                self.assertEqual(str(error), f"{option}: {wrong!r} is not a whole number from 0 to 65535")


class MakeServiceTests(OptionsCase, SynchronousTestCase):
    def test_two_webhooks_of_one_name(self):
        path = self.file('webhooks.url { url = "http://h/", events = [] }')
        self.assertIn("webhooks.url: --url has this name too", self.exit_line("-c", path, "--url", "http://g/"))

    def test_an_empty_address_is_a_mistake(self):
        self.assertIn("--url: '' is not a URL", self.exit_line("--url", ""))

    def listening(self, *args):
        lines = self.checked(*args).splitlines()
        return [line.partition(":interface")[0].split()[1] for line in lines if line.startswith("listen ")]

    def checked(self, *args):
        """What --check prints."""
        printed = []
        self.patch(builtins, "print", printed.append)
        exit_ = self.assertRaises(SystemExit, makeService, self.options(*args, "--check"))
        self.assertEqual(exit_.code, 0)
        (text,) = printed
        return text

    def test_where_it_listens(self):
        self.assertEqual(self.listening(), ["tcp:8890"])
        self.assertEqual(self.listening("--sidecar-port", "1"), ["tcp:1"])
        self.assertEqual(self.listening("--sidecar", "unix:/x"), ["unix:/x:backlog=1024"])
        self.assertEqual(self.listening("--sidecar", "unix:/x", "--sidecar-port", "1"), ["tcp:1", "unix:/x:backlog=1024"])

    def test_service(self):
        self.assertTrue(IService.providedBy(makeService(self.options("--url", "http://h/"))))

    def exit_line(self, *args):
        exit_ = self.assertRaises(SystemExit, makeService, self.options(*args))
        self.assertIsInstance(exit_.code, str)
        self.assertNotIn("\n", exit_.code)
        return exit_.code

    def test_mistakes_are_one_line(self):
        self.assertEqual(
            self.exit_line("--config", "/nowhere.conf"), "mqhooks: /nowhere.conf: cannot be read: No such file or directory"
        )
        self.assertEqual(self.exit_line("--url", "h:80"), "mqhooks: --url: 'h:80' is not a URL like http://host:8080/path")
        self.assertIn("mqhooks: nonsense:1: not a listening endpoint", self.exit_line("--sidecar", "nonsense:1"))
        self.assertIn("nonsense", self.exit_line("--sink", "nonsense:1"))
        for name, tls in (("webhook", "tls"), ("webhooks.a", "ssl")):
            path = self.file(f'{name} {{ url = "https://h/", events = [], {tls} {{ cacertfile = "/dev/null" }} }}')
            mistake = f"mqhooks: {path}:1: {name}.{tls}.cacertfile: /dev/null holds no PEM certificate"
            self.assertEqual(self.exit_line("-c", path), mistake)
            self.assertEqual(self.exit_line("-c", path, "--check"), mistake)

    def test_check_shows_no_secret_of_a_url(self):
        slack, thingsboard = "hooks.slack.com/services/T0S/B0S/s3cret", "tb:8080/api/v1/s3cret/telemetry"
        path = self.file(
            f"""
            webhooks {{
              a {{ url = "https://{slack}", events = [ {{ event = on_publish }} ] }}
              b {{ url = "http://{thingsboard}?s3cret=s3cret", events = [ {{ event = on_publish }} ] }}
            }}
            """
        )
        sink = rf"webhook:url=http\://{thingsboard.replace(':', chr(92) + ':')}"
        text = self.checked("-c", path, "--url", f"http://{thingsboard}", "--sink", sink)
        for shown in ("https://hooks.slack.com/services/…", "http://tb:8080/api/…?…", r"http\://tb\:8080/api/…"):
            self.assertIn(shown, text)
        for secret in ("s3cret", "T0S"):
            self.assertNotIn(secret, text)

    def test_mistakes_show_no_secret_of_a_url(self):
        for url in (
            "http://h:x/s3cret",
            "https//h/S3CRET",
            "http://u:s3cret@h/",
            "http://u:s3c/ret@h/",
            "http://h/s3cret#s3cret",
            "http://h/s3cret a",
        ):
            config = self.file(f'webhook {{ url = "{url}", events = [] }}')
            syntax = self.file(f'webhook {{ url = "{url}" = x }}')
            sink = "webhook:url=" + url.replace(":", "\\:")
            for arguments in (
                ["--url", url],
                ["-c", config],
                ["-c", syntax],
                ["--sink", sink],
                ["--sink", f"{sink}:pool_size=x"],
            ):
                told = self.exit_line(*arguments, "--check")
                for secret in ("s3c", "S3C"):
                    self.assertNotIn(secret, told)

    def test_ports_that_there_are_not(self):
        self.assertIn("mqhooks: tcp:99999: there is no port 99999", self.exit_line("--sidecar", "tcp:99999", "--check"))
        path = self.file('mqhooks.admin.listen = "tcp:99999"')
        mistake = f"mqhooks: {path}:1: mqhooks.admin.listen: tcp:99999: there is no port 99999"
        self.assertIn(mistake, self.exit_line("-c", path, "--url", "http://h/", "--check"))

    def test_where_the_outbox_cannot_be(self):
        directory = str(Path(self.mktemp()).resolve())
        Path(directory).mkdir()
        self.patch(builtins, "print", lambda text: None)
        for outbox, problem in (
            (directory, f"{directory} is a directory: name a file in it"),
            (f"{directory}/a/b", f"{directory}/a/b: there is no directory {directory}/a: make it or name another place"),
            ("/dev/zero", "/dev/zero is not a regular file: name another one"),
            ("a/b", f"{directory}/a/b: there is no directory {directory}/a: make it or name another place"),
        ):
            path = self.file(f'mqhooks.outbox.path = "{outbox}"')
            for more in ([], ["--check"]):
                options = self.options("-c", path, "--url", "http://h/", *more)
                options.parent = {"rundir": directory, "nodaemon": True}
                exit_ = self.assertRaises(SystemExit, makeService, options)
                self.assertEqual(exit_.code, f"mqhooks: {path}:1: mqhooks.outbox.path: {problem}")
            options.parent["chroot"] = "/"
            self.assertEqual(self.assertRaises(SystemExit, makeService, options).code, 0)

    def test_where_the_file_of_a_sink_cannot_be(self):
        directory = Path(self.mktemp()).resolve()
        (directory / "there").mkdir(parents=True)
        self.patch(builtins, "print", lambda text: None)
        mistake = "mqhooks: none/x: cannot be opened for appending (No such file or directory); "
        mistake += "create its directory and let this user write there"
        for path, told in (("there/x", 0), ("none/x", mistake)):
            options = self.options("--url", "http://h/", "--sink", f"log:path={path}", "--check")
            options.parent = {"rundir": str(directory), "nodaemon": True}
            self.assertEqual(self.assertRaises(SystemExit, makeService, options).code, told)
            options.parent["chroot"] = "/"
            self.assertEqual(self.assertRaises(SystemExit, makeService, options).code, 0)
        self.assertEqual(list((directory / "there").iterdir()), [])

    def test_nothing_to_do(self):
        path = self.file("listeners.tcp { bind = 1883 }")
        self.assertIn("no webhook is enabled", self.exit_line("--config", path))
        makeService(self.options("--config", path, "--sink", "log"))
        makeService(self.options("--config", path, "--url", "http://h/"))

    def test_check(self):
        path = self.file(
            """
            webhook { url = "http://h/", headers.authorization = "s3cret", events = [ { event = on_publish, topic = "a/#" } ] }
            webhooks.other { url = "http://g/", headerz {}, events = [ { event = on_client_connack } ] }
            """
        )
        text = self.checked("-c", path, "--sink", "log")
        full = "when it is full, mqhooks stops reading events; 100000 dead letters"
        everything = (
            "on_register,on_register_m5,on_register_failed,on_publish,on_publish_m5,on_subscribe,on_subscribe_m5,on_unsubscribe,"
            "on_unsubscribe_m5,on_deliver,on_deliver_m5,on_delivery_complete,on_delivery_complete_m5,on_offline_message,"
            "on_client_wakeup,on_client_offline,on_client_gone,on_session_expired,on_message_drop"
        )
        self.assertEqual(
            text.splitlines(),
            [
                f"warning: {path}:3: webhooks.other.headerz: unknown, ignored; did you mean 'headers'?",
                "listen  tcp:8890:interface=127.0.0.1:backlog=1024",
                "page    tcp:8891:interface=127.0.0.1:backlog=1024",
                "webhook webhook: POST http://h/",
                "        at most 32 connections, 5 s for a request, payload as plain",
                "        tried for 72 h, with waits of 1 s to 5 min",
                "        each client's events in order, waiting up to 50 ms for late ones",
                "        headers authorization",
                "        on_publish on a/#",
                "webhook other: POST http://g/",
                "        at most 32 connections, 5 s for a request, payload as plain",
                "        tried for 72 h, with waits of 1 s to 5 min",
                "        each client's events in order, waiting up to 50 ms for late ones",
                "        on_client_connack",
                f"outbox  mqhooks-outbox, sync normal, at most 1024 MiB for each webhook; {full}",
                "sink    log",
                "hooks   what vernemq.conf needs for this:",
                "        plugins.vmq_events_sidecar = on",
                "        vmq_events_sidecar.hostname = 127.0.0.1",
                "        vmq_events_sidecar.port = 8890",
                f"        vmq_events_sidecar.hooks = {everything}",
                "        # those with _m5 are for clients of MQTT 5, with their user properties; only newer versions of",
                "        # VerneMQ's fork know them: leave them out for older ones",
                "The configuration is good.",
            ],
        )

    def test_check_says_what_a_role_leaves_out(self):
        def lines(role, *args):
            text = """
                webhook { url = "http://h/hook", events = [ { event = on_publish } ] }
                mqhooks.outbox { kind = jetstream, servers = "127.0.0.1:1", role = %s }
                mqhooks.sources.webhooks.listen = "tcp:8892"
            """
            return self.checked("--config", self.file(text % role), *args)

        accepting = lines("accept")
        self.assertIn(
            "role    accept: takes events, leaves deliveries to other bridges, and connects to no endpoint", accepting
        )
        self.assertIn("plugins.vmq_webhooks", accepting)
        delivering = lines("deliver", "--sidecar", "tcp:8890", "--sink", "log:path=x")
        self.assertIn("role    deliver: takes no events, delivers what other bridges accept", delivering)
        for port in (8890, 8892):
            self.assertRegex(delivering, f" left out: .*tcp:{port}:interface=127.0.0.1")
        self.assertIn("        left out: sink log:path=x, since this bridge takes no events\n", delivering)
        for left_out in ("listen  ", "vmq_", "sink    "):
            self.assertNotIn(left_out, delivering)
        self.assertNotIn("role ", lines("both"))

    def hooks(self, *args):
        lines = [line.strip() for line in self.checked(*args).splitlines()]
        named = [
            line.removeprefix("vmq_events_sidecar.hooks = ") for line in lines if line.startswith("vmq_events_sidecar.hooks")
        ]
        self.assertEqual("those with _m5" in "".join(lines), "_m5" in "".join(named))
        return [hook for names in named for hook in names.split(",")]

    def test_hooks_that_rules_need(self):
        for rules, hooks in {
            "on_publish": ["on_publish", "on_publish_m5"],
            "on_client_connack": ["on_register", "on_register_m5", "on_register_failed"],
            # The username of a disconnect is remembered from the registration.
            "on_client_disconnected": ["on_register", "on_register_m5", "on_client_offline", "on_client_gone"],
            "on_session_terminated": ["on_register", "on_register_m5", "on_client_gone", "on_session_expired"],
            "on_message_acked, on_message_drop": ["on_delivery_complete", "on_delivery_complete_m5", "on_message_drop"],
            "on_offline_message": ["on_offline_message"],
            "": [],
        }.items():
            events = ", ".join(f"{{ event = {rule} }}" for rule in rules.split(", ") if rule)
            path = self.file(f'webhook {{ url = "http://h/", events = [ {events} ] }}')
            self.assertEqual(self.hooks("-c", path), hooks)

    def test_hooks_of_all_webhooks_together(self):
        path = self.file(
            """
            webhooks.a { url = "http://h/", events = [ { event = on_message_delivered } ] }
            webhooks.b { url = "http://h/", events = [ { event = on_publish, topic = "a/#" }, { event = on_deliver } ] }
            """
        )
        self.assertEqual(self.hooks("-c", path), ["on_publish", "on_publish_m5", "on_deliver", "on_deliver_m5"])

    def test_without_webhooks_all_hooks(self):
        everything = {*HOOKS, *(f"{hook}_m5" for hook in M5_HOOKS)}
        self.assertEqual(set(self.hooks()), everything)
        self.assertEqual(set(self.hooks("--sink", "log")), everything)


def twistd(arguments, directory):
    """Run twistd as a daemon; fires with the output, the errors and the status of what was started."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = ["-c", "from twisted.scripts.twistd import run; run()", *arguments]
    return getProcessOutputAndValue(sys.executable, command, environment, str(directory))


class ProcessTests(OptionsCase, TestCase):
    timeout = 300

    async def start(self, *args, twistd=()):
        bridge = Twistd(self, *twistd, "mqhooks", "--sidecar-port", "0", "--admin-port", "0", *args)
        match = await bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)", anywhere=True)
        self.connection = socket.create_connection(("127.0.0.1", int(match[1])))
        self.addCleanup(self.connection.close)
        return bridge

    def publish(self, *numbers):
        messages = (OnPublish(client_id="c", topic="t", payload=b"%d" % number) for number in numbers)
        self.connection.sendall(b"".join(framed(envelope(message)) for message in messages))

    async def test_json_lines_without_a_configuration(self):
        bridge = await self.start()
        self.publish(1)
        await bridge.until(r"\n")
        self.assertEqual(json.loads(bridge.stdout)["payload"], "1")

    async def test_json_lines_of_a_sink_within_another(self):
        # The log does not go between them.
        bridge = await self.start("--sink", "filter:hooks=on_publish:sink=log")
        self.publish(1)
        await bridge.until(r"\n")
        self.assertEqual(json.loads(bridge.stdout)["payload"], "1")

    async def test_url(self):
        endpoint = Endpoint()
        bridge = await self.start("--url", endpoint.listen(self, reactor))
        self.publish(1)
        while not endpoint.requests:
            await deferLater(reactor, 0.02)
        self.assertEqual(json.loads(endpoint.requests[0].body)["action"], "message_publish")
        self.assertEqual(bridge.stderr, "")

    async def test_a_taken_port_ends_the_start(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            bridge = Twistd(self, "mqhooks", "--sidecar-port", str(port), "--admin-port", "0")
            reason = await bridge.ended
        self.assertIsInstance(reason, ProcessTerminated)
        self.assertEqual(reason.exitCode, 1)
        self.assert_one_line(
            bridge, f"cannot listen on tcp:{port}: Address already in use; stop what uses the address or give another one"
        )

    async def daemon_ends(self, mistake, *arguments):
        """Start a daemon that cannot start: the terminal and the log have one line of ours, and nothing is left behind."""
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        out, err, status = await twistd(["mqhooks", "--sidecar-port=0", "--admin-port=0", *arguments], directory)
        self.assertEqual((out, status), (b"", 1))
        self.assertEqual([line for line in err.decode().splitlines() if line.startswith("mqhooks: ")], [f"mqhooks: {mistake}"])
        self.assertNotIn(b"Traceback", err)
        # The daemon tells its parent of the failure before it ends.
        path = directory / "twistd.log"
        await until(lambda: "mqhooks: " in path.read_text() and not (directory / "twistd.pid").exists())
        self.assertEqual(path.read_text().count(f"mqhooks: {mistake}\n"), 1)
        self.assertNotIn("Traceback", path.read_text())

    async def test_a_taken_port_ends_a_daemon(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            mistake = f"cannot listen on tcp:{port}: Address already in use; stop what uses the address or give another one"
            await self.daemon_ends(mistake, "--sidecar-port", str(port), "--sink=log:path=events")
            await self.daemon_ends(mistake, "--admin-port", str(port), "--sink=log:path=events")

    async def test_an_outbox_in_use_ends_a_daemon(self):
        path = Path(self.mktemp()).resolve()
        bridge = await self.start("--url=http://127.0.0.1:1/", "--config", self.file(f'mqhooks.outbox.path = "{path}"'))
        mistake = f"{path}: is in use by process {bridge.process.pid}; stop that one or give outbox.path another name"
        await self.daemon_ends(
            mistake, "--url=http://127.0.0.1:1/", "--config", self.file(f'mqhooks.outbox {{ path = "{path}", sync = full }}')
        )

    async def test_a_sink_that_cannot_start_ends_a_daemon(self):
        mistake = "/nowhere/x: cannot be opened for appending (No such file or directory); "
        mistake += "create its directory and let this user write there"
        await self.daemon_ends(mistake, "--sink=log:path=/nowhere/x")

    async def test_a_log_file_that_cannot_be_written_ends_a_daemon(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        out, err, status = await twistd(["--logfile=/nowhere/x", "mqhooks", "--url=http://127.0.0.1:1/"], directory)
        self.assertEqual((out, status, err.count(b"\n")), (b"", 1, 1))
        self.assertIn(b"mqhooks: --logfile: /nowhere/x cannot be written (No such file or directory): ", err)
        self.assertEqual(list(directory.iterdir()), [])

    async def test_the_outbox_is_where_the_process_runs(self):
        there = Path(self.mktemp()).resolve()
        there.mkdir()
        path = self.file("mqhooks.outbox.path = outbox")
        # Sinks have theirs there too.
        sink = r"--sink=webhook:url=http\://127.0.0.1\:1/:name=second"
        bridge = await self.start("--url=http://127.0.0.1:1/", "--config", path, sink, twistd=[f"--rundir={there}"])
        self.publish(1)
        await bridge.until("first sidecar connection")
        self.assertEqual(list(Path(bridge.directory).iterdir()), [])
        names = {each.name for each in there.iterdir()}
        self.assertLessEqual({"outbox", "mqhooks-outbox-second"}, names)
        # The new directory is no change to a configuration that names the same file.
        bridge.process.signalProcess("HUP")
        await bridge.until("configuration reloaded: nothing changed")
        self.assertNotIn("need a restart", bridge.stdout)

    def assert_one_line(self, bridge, expected):
        output = bridge.stdout + bridge.stderr
        self.assertEqual([line.partition("] mqhooks: ")[2] for line in output.splitlines() if "#error" in line], [expected])
        self.assertNotIn("Traceback", output)

    async def test_a_mistake_ends_the_start(self):
        bridge = Twistd(self, "mqhooks", "--config", "/nowhere.conf")
        reason = await bridge.ended
        self.assertEqual(reason.exitCode, 1)
        self.assertEqual(bridge.stderr, "mqhooks: /nowhere.conf: cannot be read: No such file or directory\n")
        self.assertEqual(bridge.stdout, "")

    def test_a_wrong_command_line_ends_it(self):
        for command, args, mistake in (
            ("mqhooks", ["--nope"], "option --nope not recognized; --help lists them"),
            ("mqhooks", ["--chekc"], "option --chekc not recognized; did you mean --check?"),
            (
                "mqhooks",
                ["-n"],
                "option -n not recognized; it is one of twistd's own: write it before mqhooks",
            ),
            (
                "mqhooks",
                ["--logfile", "x"],
                "option --logfile not recognized; it is one of twistd's own: write it before mqhooks",
            ),
            ("mqhooks", ["--url"], "option --url requires argument"),
            ("mqhooks", ["--admin-port", "x"], "--admin-port: 'x' is not a whole number from 0 to 65535"),
            ("mqhooks", ["nanomq.conf"], "'nanomq.conf' is not an option; did you mean --config nanomq.conf?"),
            ("mqhooks", ["8890"], "'8890' is not an option; --help lists them"),
            ("mqhooks-simulate", ["nanomq.conf"], "'nanomq.conf' is not an option; --help lists them"),
            ("mqhooks-receive", ["--quiet", "--verbose"], "--quiet and --verbose contradict each other; give one of them"),
            ("mqhooks-simulate", ["--rate", "x"], "--rate: 'x' is not a number of 0 or more"),
        ):
            stdout, stderr = StringIO(), StringIO()
            for name, value in (("argv", ["twistd", "-n", command, *args]), ("stdout", stdout), ("stderr", stderr)):
                self.patch(sys, name, value)
            exit_ = self.assertRaises(SystemExit, run)
            self.assertEqual((exit_.code, stdout.getvalue(), stderr.getvalue()), (f"{command}: {mistake}", "", ""))

    async def test_a_sink_that_cannot_start_ends_the_start(self):
        bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--admin-port", "0", "--sink", "log:path=/nowhere/x.jsonl")
        reason = await bridge.ended
        self.assertEqual(reason.exitCode, 1)
        self.assert_one_line(
            bridge,
            "/nowhere/x.jsonl: cannot be opened for appending (No such file or directory); "
            "create its directory and let this user write there",
        )

    async def test_no_thread_outlives_a_start_that_fails(self):
        path = self.file(f'mqhooks.outbox {{ path = "{Path(self.mktemp()).resolve()}", sync = full }}')
        args = [
            "--config",
            path,
            "--url=http://127.0.0.1:1/",
            "--sidecar-port=0",
            "--admin-port=0",
            "--sink=log:path=/nowhere/x",
        ]
        bridge = Twistd(self, "mqhooks", *args)
        self.assertEqual((await bridge.ended).exitCode, 1)
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)

    async def stop(self, signal, *more):
        held = []
        self.endpoint = Endpoint(lambda request: held.append(request.connection))
        bridge = await self.start("--url", self.endpoint.listen(self, reactor), *more)
        # At once: the bridge has read all of them when it sends the first.
        self.publish(*range(5))
        while not self.endpoint.requests:
            await deferLater(reactor, 0.02)
        bridge.process.signalProcess(signal)
        # It reads no more, so it is stopping, and goes on to wait for the answers.
        self.assertEqual(await deferToThread(self.connection.recv, 1), b"")
        await deferLater(reactor, 0.3)
        self.assertFalse(bridge.ended.called)
        self.endpoint.answer = lambda request: request.connection.reply()
        for connection in held:
            connection.reply()
        await bridge.ended
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)

    async def test_what_is_in_memory_is_delivered_before_the_end(self):
        path = self.file("mqhooks.outbox.kind = memory")
        for signal in ("TERM", "INT"):
            await self.stop(signal, "--config", path)
            self.assertEqual(len(self.endpoint.requests), 5)

    async def test_what_is_on_disk_is_delivered_after_the_next_start(self):
        outbox = Path(self.mktemp()).resolve()
        path = self.file(f'mqhooks.outbox.path = "{outbox}"')
        for signal in ("TERM", "INT"):
            await self.stop(signal, "--config", path)
            first = [request.header("webhook-id") for request in self.endpoint.requests]
            self.assertEqual(len(first), 1)
            endpoint = Endpoint()
            bridge = await self.start("--url", endpoint.listen(self, reactor), "--config", path)
            while len(endpoint.requests) < 4:
                await deferLater(reactor, 0.02)
            self.assertEqual([json.loads(request.body)["payload"] for request in endpoint.requests], ["1", "2", "3", "4"])
            self.assertNotIn(first[0], [request.header("webhook-id") for request in endpoint.requests])
            bridge.process.signalProcess("TERM")
            await bridge.ended

    async def test_stopping_is_bounded(self):
        path = self.file("mqhooks { shutdown_timeout = 500ms, outbox.kind = memory }")
        endpoint = Endpoint(lambda request: None)
        bridge = await self.start("--config", path, "--url", endpoint.listen(self, reactor))
        self.publish(1)
        while not endpoint.requests:
            await deferLater(reactor, 0.02)
        bridge.process.signalProcess("TERM")
        await bridge.ended
        self.assertIn("stopped with 1 deliveries undelivered; they are lost", bridge.stdout)
