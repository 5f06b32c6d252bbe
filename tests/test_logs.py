"""
What the log says, where, and what it must not say.
"""

import json
import os
import shutil
import signal
import socket
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import FileLogObserver, Logger, LogLevel, capturedLogs, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase, TestCase

import mqhooks
from mqhooks.app import tap
from mqhooks.app.logs import ReopenedLogFile, json_line, observer_for
from mqhooks.app.summary import SummaryService
from mqhooks.errors import ConfigError
from mqhooks.interfaces import IOutbox
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.pb.on_register_pb2 import OnRegister
from mqhooks.sources.sidecar.counters import SidecarCounters
from mqhooks.support.redact import hide, hide_url, hide_urls
from tests.counted import CountedWebhook
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.processes import Twistd
from tests.waiting import until

reactor: Any = installed_reactor


class LineTests(SynchronousTestCase):
    def line(self, **event: Any) -> dict[str, Any]:
        text = json_line({"log_time": 1_800_000_000.25, "log_level": LogLevel.warn, "log_namespace": "n", **event})
        self.assertTrue(text.endswith("\n"))
        self.assertNotIn("\n", text[:-1])
        self.assertTrue(text.isascii())
        read: dict[str, Any] = json.loads(text)
        return read

    def test_fields_of_an_event_are_in_the_line(self) -> None:
        line = self.line(
            log_format="{peer}: {count} times", peer="h:1", count=3, rows=[{"a": 1.5}], none=None, thing=object(), _text="no"
        )
        self.assertEqual(
            line,
            {
                "time": "2027-01-15T08:00:00.250000Z",
                "level": "warn",
                "logger": "n",
                "text": "h:1: 3 times",
                "peer": "h:1",
                "count": 3,
                "rows": [{"a": 1.5}],
                "none": None,
            },
        )

    def test_what_json_has_not(self) -> None:
        line = self.line(log_format="x", a=float("nan"), b=float("inf"), c=[object()], d={1: 2}, e=b"bytes")
        self.assertEqual(set(line), {"time", "level", "logger", "text"})

    def test_fields_never_hide_ours(self) -> None:
        line = self.line(log_format="said", time="t", level="l", text="x", logger="y")
        self.assertEqual((line["level"], line["text"], line["logger"]), ("warn", "said", "n"))

    def test_failure_has_its_traceback(self) -> None:
        line = self.line(log_format="it broke", log_failure=Failure(ValueError("why")))
        self.assertEqual(line["text"], "it broke")
        self.assertIn("ValueError: why", line["traceback"])
        self.assertEqual(self.line(log_failure=Failure(ValueError("why")))["text"], "why")

    def test_an_event_without_anything(self) -> None:
        self.assertEqual(json.loads(json_line({}))["level"], "info")

    @given(st.text(st.characters()), st.text(st.characters()))
    def test_any_text(self, client: str, key: str) -> None:
        line = self.line(log_format="{client}", client=client, **{f"x{key}": client})
        self.assertEqual((line["text"], line["client"], line[f"x{key}"]), (client, client, client))


class ChoiceTests(SynchronousTestCase):
    def test_left_to_twistd(self) -> None:
        self.assertIsNone(observer_for(reactor, None, "text"))
        self.assertIsNone(observer_for(reactor, {"logfile": "x", "nodaemon": True}, "text", stdout_taken=True))
        self.assertIsNone(observer_for(reactor, {"syslog": True}, "text", stdout_taken=True))

    def test_standard_output_is_taken(self) -> None:
        for log_format in ("text", "json"):
            make = observer_for(reactor, {"nodaemon": True}, log_format, stdout_taken=True)
            assert make is not None
            self.assertIsInstance(make(), FileLogObserver)

    def test_formats_that_don_t_go_together(self) -> None:
        for other in ("syslog", "logger"):
            error = self.assertRaises(ConfigError, observer_for, reactor, {other: "x"}, "json")
            self.assertEqual(str(error), f"--log-format: twistd's --{other} has its own format: leave out one of the two")

    def test_a_daemon_has_a_file(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(folder)
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        make = observer_for(reactor, {}, "json")
        assert make is not None
        observer = make()
        observer({"log_format": "hello", "log_time": 0.0})
        self.assertEqual(json.loads(Path("twistd.log").read_text())["text"], "hello")

    def test_unknown_format(self) -> None:
        error = self.assertRaises(UsageError, tap.Options().parseOptions, ["--log-format", "jsn"])
        self.assertEqual(str(error), "--log-format: 'jsn' is unknown; did you mean json?")


class FileTests(SynchronousTestCase):
    def test_a_long_file_that_cannot_be_reopened_is_told_once(self) -> None:
        path = Path(self.mktemp())
        file = ReopenedLogFile.fromFullPath(str(path))
        file.rotateLength = 1000
        self.addCleanup(file.close)
        observer = FileLogObserver(file, json_line)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        moved = path.rename(f"{path}-1")
        path.mkdir()
        log = Logger()
        while moved.stat().st_size < 1000:
            log.info("something")
        log.info("the next")
        log.info("the last")
        told = [json.loads(line)["text"] for line in moved.read_text().splitlines()[-3:]]
        self.assertIn("cannot be opened (Is a directory)", told[0])
        self.assertEqual(told[1:], ["the next", "the last"])
        self.assertEqual(sum("cannot be opened" in line for line in moved.read_text().splitlines()), 1)


class SummaryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.sidecar = SidecarCounters()
        self.webhooks: list[CountedWebhook] = []
        self.summary = SummaryService(self.clock, [self.sidecar], lambda: self.webhooks)
        self.logged = self.enterContext(capturedLogs())
        self.summary.startService()

    def webhook(self, name: str, outbox: IOutbox | None = None) -> CountedWebhook:
        self.webhooks.append(CountedWebhook(name, outbox))
        return self.webhooks[-1]

    @property
    def said(self) -> list[str]:
        said = [formatEvent(event) for event in self.logged]
        self.logged.clear()
        return said

    def test_silent_while_nothing_flows(self) -> None:
        self.webhook("a")
        self.clock.pump([60] * 10)
        self.assertEqual(self.said, [])

    def test_once_a_minute_what_came_since(self) -> None:
        first, second = self.webhook("a"), self.webhook("b")
        self.sidecar.hooks["on_publish"] = 7
        first.counters.filtered, second.counters.failed, second.counters.refused = 2, 3, 1
        first.settle(delivered=5)
        second.settle(dead=1, pending=2)
        self.clock.advance(59)
        self.assertEqual(self.said, [])
        self.clock.advance(1)
        rows = self.logged[-1]["webhooks"]
        (said,) = self.said
        self.assertEqual(
            said,
            "in 60 s: 7 events in; webhook a: 2 filtered, 5 delivered, 0 dead, 0 attempts failed, 0 pending; "
            "webhook b: 0 filtered, 0 delivered, 1 dead, 4 attempts failed, 2 pending",
        )
        self.assertEqual(
            rows[1], {"webhook": "b", "filtered": 0, "delivered": 0, "dead": 1, "dropped": 0, "failed": 4, "pending": 2}
        )
        first.settle(delivered=1)
        self.clock.advance(60)
        self.assertIn("0 events in; webhook a: 0 filtered, 1 delivered", self.said[0])
        self.clock.advance(60)
        self.assertEqual(self.said, [])

    def test_malformed_frames_and_dropped_deliveries(self) -> None:
        reactor: Any = MemoryReactorClock()
        store = SqliteStore(reactor, self.mktemp(), max_size=10_000, on_full="drop_oldest")
        webhook = self.webhook("a", store.outbox("a"))
        store.startService()
        self.addCleanup(store.stopService)
        for _ in range(20):
            webhook.append(1, size=1000)
            reactor.advance(0)
        dropped = webhook.outbox.counts.dropped
        self.assertGreater(dropped, 5)
        self.sidecar.undecodable = 3
        self.logged.clear()
        self.clock.advance(60)
        (said,) = self.said
        self.assertIn("0 events in, 3 frames malformed; ", said)
        self.assertIn(f"0 dead, {dropped} dropped, ", said)
        self.assertTrue(said.endswith(f" {20 - dropped} pending"), said)

    def test_counters_of_a_webhook_that_comes_back_go_on(self) -> None:
        webhook = self.webhook("a")
        webhook.settle(delivered=9)
        self.clock.advance(60)
        self.webhooks.clear()
        self.clock.advance(60)
        self.webhooks.append(webhook)
        webhook.settle(delivered=2)
        self.clock.advance(60)
        self.assertIn("webhook a: 0 filtered, 2 delivered", self.said[1])

    def test_the_last_part_of_a_minute(self) -> None:
        self.sidecar.hooks["on_publish"] = 7
        self.clock.advance(30)
        self.summary.stopService()
        self.assertEqual(self.said, ["in 30 s: 7 events in"])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HidingTests(SynchronousTestCase):
    def test_credentials_in_urls_are_hidden(self) -> None:
        for url, shown in (
            ("http://h:1/a/b", "http://h:1/a/b"),
            ("https://u:p@h/a?token=x", "https://h/a?…"),
            ("http://h?x@y/z", "http://h?…"),
            ("https://hooks.slack.com/services/T0/B0/XXXX", "https://hooks.slack.com/services/…"),
            ("https://hooks.slack.com/services/T/B/letters", "https://hooks.slack.com/services/…"),
            ("http://tb:8080/api/v1/A1_TEST_TOKEN/telemetry", "http://tb:8080/api/…"),
            ("http://h/bot12:Ab/send#Cd", "http://h/…#…"),
            ("http://h/mqtt-events/", "http://h/mqtt-events/"),
            ("http://[::1]:80/hook", "http://[::1]:80/hook"),
            # They are shown in errors, too.
            ("http://u:pa/ss@h/", "http://…/…"),
            ("h/services/T0/B0", "h/services/…"),
            ("http:/h/T0", "http:/h/…"),
            ("user:password@h/x", "h/x"),
            ("http://h\\T0/x", "http://h…"),
        ):
            self.assertEqual(hide_url(url), shown)

    @given(st.text(), st.text("abcdef/:@?#[]%\\"))
    def test_any_url(self, text: str, url: str) -> None:
        for each in (text, url, f"http://{url}"):
            self.assertEqual(hide(f"<{each}>", each) if each else "<>", f"<{hide_url(each)}>")

    @given(
        st.from_regex(r"[A-Z0-9]{8,20}", fullmatch=True),
        st.sampled_from(
            ("https://h/{}", "http://{}@h", "http://u:{}@h/x", "http://h/a?b={}&c=d", "http://h:1/a/b/{}/c", "h/a/#{}")
        ),
    )
    def test_any_token(self, token: str, url: str) -> None:
        url = url.format(token)
        self.assertNotIn(token, hide_url(url))
        self.assertNotIn(token, hide(f"{url} {token}", url))

    def test_what_repeats_a_url(self) -> None:
        url = "https://h/services/T0/B0/x7Kq9999?key=pa55w0rd1"
        for text, shown in (
            (f"{url} answered 404", "https://h/services/…?… answered 404"),
            ("Cannot POST /services/T0/B0/x7Kq9999?key=pa55w0rd1", "Cannot POST /services/…?…"),
            ("/services/T0/B0/x7Kq9999 is not here", "/services/… is not here"),
            (r'{"path":"\/services\/T0\/B0\/x7Kq9999"}', r'{"path":"\/services\/T0\/B0\/…"}'),
            ("unknown key pa55w0rd1", "unknown key …"),
        ):
            self.assertEqual(hide(text, url), shown)
        self.assertEqual(hide("GET / is not POST /", "http://h/"), "GET / is not POST /")

    def test_urls_within_a_text(self) -> None:
        for text, shown in (
            ("log:path=/services/T0", "log:path=/services/T0"),
            (
                r"webhook:url=http\://u\:p@h\:80/hook/T0?k=v:events=on_publish",
                r"webhook:url=http\://h\:80/hook/…?…:events=on_publish",
            ),
            (r"fanout:webhook\:url=http\\\://h/T0:log", r"fanout:webhook\:url=http\\\://h/…:log"),
            ("webhook:url=http://u:p@h/T0", "webhook:url=http://h/…"),
        ):
            self.assertEqual(hide_urls(text), shown)


class ProcessTests(TestCase):
    timeout = 300

    def lines(self, text: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in text.splitlines()]

    async def test_json_on_standard_output(self) -> None:
        bridge = Twistd(self, "mqhooks", "--sidecar-port=0", "--admin-port=0", "--url=http://127.0.0.1:9/", "--log-format=json")
        match = await bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        with socket.create_connection(("127.0.0.1", int(match[1]))):
            # Before the reactor turns, the signal would end the process at once.
            await bridge.until("first sidecar connection")
        bridge.process.signalProcess("TERM")
        await bridge.ended
        lines = self.lines(bridge.stdout)
        (listening,) = [line for line in lines if line["text"].startswith("listening for VerneMQ")]
        self.assertEqual((listening["level"], listening["logger"]), ("info", "mqhooks.sources.sidecar.listener.SidecarService"))
        self.assertTrue(listening["address"].startswith("127.0.0.1:"))
        self.assertEqual(lines[-1]["text"], "Server Shut Down.")
        self.assertEqual(bridge.stderr, "")

    async def test_json_beside_the_events(self) -> None:
        bridge = Twistd(self, "mqhooks", "--sidecar-port=0", "--admin-port=0", "--log-format=json")
        await bridge.until(r"listening for VerneMQ on .*\n", anywhere=True)
        self.lines(bridge.stderr)
        self.assertEqual(bridge.stdout, "")

    async def test_a_start_that_fails(self) -> None:
        bridge = Twistd(self, "mqhooks", "--sidecar-port=0", "--sink=log:path=/nowhere/x", "--log-format=json")
        await bridge.ended
        errors = [line for line in self.lines(bridge.stdout) if line["level"] in ("error", "critical")]
        self.assertEqual(len(errors), 1)
        self.assertTrue(errors[0]["text"].startswith("mqhooks: /nowhere/x: cannot be opened"))

    async def test_json_in_a_file_that_is_rotated(self) -> None:
        path = Path(self.mktemp()).resolve()
        bridge = Twistd(self, f"--logfile={path}", "mqhooks", "--sidecar-port=0", "--admin-port=0", "--log-format=json")
        await until(lambda: path.exists() and "listening for VerneMQ" in path.read_text())
        bridge.process.signalProcess(signal.SIGUSR1)
        old = Path(f"{path}.1")
        await until(lambda: old.exists())
        bridge.process.signalProcess("TERM")
        await bridge.ended
        self.assertIn("listening for VerneMQ", "".join(line["text"] for line in self.lines(old.read_text())))
        self.assertEqual(self.lines(path.read_text())[-1]["text"], "Server Shut Down.")
        self.assertEqual((bridge.stdout, bridge.stderr), ("", ""))

    async def test_a_file_that_was_renamed_is_reopened(self) -> None:
        told = "there is no configuration file to reload"
        for log_format in ("text", "json"):
            path = Path(self.mktemp()).resolve()
            arguments = [
                "mqhooks",
                "--sidecar-port=0",
                "--admin-port=0",
                "--url=http://127.0.0.1:1/",
                f"--log-format={log_format}",
            ]
            bridge = Twistd(self, f"--logfile={path}", *arguments)
            await until(lambda path=path: path.exists() and "listening for VerneMQ" in path.read_text())
            path.rename(f"{path}-0")
            bridge.process.signalProcess("HUP")
            await until(lambda path=path: path.exists() and told in path.read_text())
            path.rename(f"{path}-1")
            bridge.process.signalProcess(signal.SIGUSR1)
            await until(path.exists)
            bridge.process.signalProcess("HUP")
            await until(lambda path=path: told in path.read_text())
            path.rename(f"{path}-2")
            # As logrotate does with create.
            path.touch()
            bridge.process.signalProcess(signal.SIGUSR1)
            bridge.process.signalProcess("TERM")
            await bridge.ended
            self.assertIn("Server Shut Down.", path.read_text())
            self.assertFalse(Path(f"{path}.1").exists())

    async def test_a_directory_that_is_gone_costs_no_line(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        path = folder / "log"
        bridge = Twistd(self, f"--logfile={path}", "mqhooks", "--sidecar-port=0", "--admin-port=0", "--url=http://127.0.0.1:1/")
        await until(lambda: path.exists() and "listening for VerneMQ" in path.read_text())
        there = folder.rename(f"{folder}-old") / "log"
        bridge.process.signalProcess("HUP")
        await until(lambda: f"{path}: cannot be opened (No such file or directory); still writing to" in there.read_text())
        bridge.process.signalProcess("TERM")
        await bridge.ended
        self.assertIn("Server Shut Down.", there.read_text())

    async def test_signals_without_a_file_end_nothing(self) -> None:
        # A socket's path may have 107 bytes at most.
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        path = f"{directory}/s"

        def listens() -> bool:
            with socket.socket(socket.AF_UNIX) as connection:
                return connection.connect_ex(path) == 0

        for more in ((), ("--syslog",)):
            bridge = Twistd(self, *more, "mqhooks", f"--sidecar=unix:{path}", "--admin-port=0", "--url=http://127.0.0.1:1/")
            await until(listens)
            for signal_ in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR1):
                bridge.process.signalProcess(signal_)
            await until(listens)
            bridge.process.signalProcess("TERM")
            self.assertEqual((await bridge.ended).signal, signal.SIGTERM)

    async def test_a_file_that_cannot_be_written(self) -> None:
        for log_format in ("text", "json"):
            bridge = Twistd(self, "--logfile=/nowhere/x", "mqhooks", "--sidecar-port=0", f"--log-format={log_format}")
            self.assertEqual((await bridge.ended).exitCode, 1)
            self.assertTrue(
                bridge.stderr.startswith("mqhooks: --logfile: /nowhere/x cannot be written (No such"), bridge.stderr
            )
            self.assertEqual((bridge.stderr.count("\n"), bridge.stdout), (1, ""))

    async def test_the_first_line_names_version_and_webhooks(self) -> None:
        url = "http://127.0.0.1:1/services/T0"
        bridge = Twistd(self, "mqhooks", "--sidecar-port=0", "--admin-port=0", f"--url={url}", "--log-format=json")
        await bridge.until("listening for VerneMQ")
        first = next(line for line in self.lines(bridge.stdout) if line["logger"].startswith("mqhooks."))
        self.assertEqual(first["text"], f"mqhooks {mqhooks.__version__}: webhook webhook to http://127.0.0.1:1/services/…")
        self.assertEqual(
            (first["version"], first["webhooks"]),
            (mqhooks.__version__, [{"webhook": "webhook", "url": "http://127.0.0.1:1/services/…"}]),
        )

    async def test_no_payload_and_no_secret(self) -> None:
        for log_format in ("text", "json"):
            await self.fail_in_every_way(log_format)

    async def fail_in_every_way(self, log_format: str) -> None:
        secret = "whsec_" + b64encode(b"never to be seen, not ever").decode()
        hidden = {
            "payload": "Payl0ad-of-the-event",
            "header": "Bearer Header-value-1",
            "query": "Query-token-2",
            "secret": secret[6:],
            "token": "Admin-token-3-of-many",
            "password": "Us3r-property-4",
        }

        def answer(request: Any) -> None:
            number = len(endpoint.requests) % 5
            if number == 0:
                request.connection.transport.abortConnection()
            elif number == 1:
                request.connection.send(b"not HTTP " + hidden["payload"].encode() + b"\r\n\r\n")
            elif number == 2:
                request.connection.reply(400, request.body, [("X-Echo", hidden["payload"])])
            elif number == 3:
                request.connection.reply(503, request.body)
            else:
                request.connection.reply(200)

        endpoint = Endpoint(answer)
        url = endpoint.listen(self, reactor)
        config = Path(self.mktemp()).resolve()
        config.write_text(
            f"""
            webhook {{
              url = "{url}?key={hidden["query"]}"
              headers.authorization = "{hidden["header"]}"
              secret = "{secret}"
              pool_size = 4
              retry {{ initial = 20ms, max = 50ms, max_attempts = 3 }}
              events = [{{ event = on_message_publish }}]
            }}
            mqhooks {{ admin.token = "{hidden["token"]}", outbox.kind = memory, shutdown_timeout = 1s }}
            """
        )
        bridge = Twistd(
            self, "mqhooks", "--sidecar-port=0", "--admin-port=0", f"--config={config}", f"--log-format={log_format}"
        )
        match = await bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        with socket.create_connection(("127.0.0.1", int(match[1]))) as connection:
            for number in range(40):
                message = OnPublish(client_id=f"c{number}", topic="t", payload=hidden["payload"].encode())
                connection.sendall(framed(envelope(message)))
            register = OnRegister(client_id="c", user_properties={"password": hidden["password"]})
            connection.sendall(framed(envelope(register)))
            connection.sendall(framed(b"\xff" + hidden["payload"].encode()))
            connection.sendall(framed(envelope(message, "eventssidecar.v1.OnNothing")))
            await bridge.until(r"became a dead letter")
            await bridge.until(r"answered 503|no answer|broken|ended")
            await bridge.until(r"no hook sends messages")
        await until(lambda: len(endpoint.requests) >= 60)
        bridge.process.signalProcess("TERM")
        await bridge.ended
        log = bridge.stdout + bridge.stderr
        self.assertRegex(log, r"in \d+ s: 41 events in, 1 frames malformed; webhook webhook: ")
        for name, text in hidden.items():
            self.assertNotIn(text, log, name)
        self.assertIn(f"{url}?", log)
        self.assertNotIn("Traceback", log)


class LoggerTests(SynchronousTestCase):
    def test_a_logger_of_the_project_has_its_namespace(self) -> None:
        with capturedLogs() as logged:
            Logger("mqhooks.test").info("{count} things", count=2)
        line = json.loads(json_line(logged[0]))
        self.assertEqual((line["logger"], line["text"], line["count"]), ("mqhooks.test", "2 things", 2))
