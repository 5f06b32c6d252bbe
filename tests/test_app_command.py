"""The ``mqhooks`` command: its parser, and what it runs through twistd. ``test_main`` has the dead letters."""

import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

import mqhooks
from mqhooks.app import tap
from mqhooks.app.command import main, parser
from mqhooks.app.parser import words_of
from mqhooks.tools import receiver, simulator
from tests.endpoints import Endpoint
from tests.processes import Mqhooks, Twistd
from tests.waiting import until


class CommandLineTests(SynchronousTestCase):
    def run_command(self, *words):
        """Gives the exit status, and what was written to standard output and standard error."""
        stdout, stderr = StringIO(), StringIO()
        self.patch(sys, "stdout", stdout)
        self.patch(sys, "stderr", stderr)
        try:
            status = main(words, lambda line: stdout.write(f"{line}\n"))
        except SystemExit as end:
            status = end.code
        return status, stdout.getvalue(), stderr.getvalue()

    def setUp(self):
        self.path = self.mktemp()
        Path(self.path).touch()

    def test_mistakes_are_told_in_a_line(self):
        for words, mistake in (
            ([], "mqhooks: which command? There are run, check, "),
            (["chek"], "mqhooks: there is no command 'chek'; did you mean check?"),
            (["xyzzy"], "mqhooks: there is no command 'xyzzy'; there are run, check, "),
            (["dead"], "mqhooks dead: which command? There are list, show, "),
            (["dead", "lst"], "mqhooks dead: there is no command 'lst'; did you mean list?"),
            (["dead", "list", "--jsn"], "mqhooks dead list: there is no option '--jsn' here; did you mean --json?"),
            (["dead", "list", "7"], "mqhooks dead list: there is no argument '7' here; mqhooks dead list --help tells more"),
            (["run", "--confg=x"], "mqhooks run: there is no option '--confg' here; did you mean --config?"),
            (["run", self.path], f"mqhooks run: there is no argument '{self.path}' here; did you mean --config {self.path}?"),
            (
                ["dead", "list", "a.conf"],
                "mqhooks dead list: there is no argument 'a.conf' here; did you mean --config a.conf?",
            ),
            (["simulate", "a.conf"], "mqhooks simulate: there is no argument 'a.conf' here; mqhooks simulate --help"),
            (
                ["dead", "show", "a7"],
                "mqhooks dead show: number: 'a7' is not a dead letter's number, as ",
            ),
            (["dead", "show", "9" * 19], "mqhooks dead show: number: '9999999999999999999' is not a dead letter's number"),
            (
                ["dead", "show", str(1 << 70)],
                "mqhooks dead show: number: '1180591620717411303424' is not a dead letter's number",
            ),
            (["run", "--sink"], "mqhooks run: --sink: expected one argument; mqhooks run --help tells more"),
            (["--print-completion", "fish"], "mqhooks: --print-completion: 'fish' is unknown; there are bash, zsh, tcsh"),
            (["send-test"], "mqhooks send-test: the following arguments are required: --config/-c; "),
            (["status", "--timeout", "soon"], "mqhooks status: --timeout: 'soon' is not a number of seconds above 0, like 5"),
            (["status", "--watch", "nan"], "mqhooks status: --watch: 'nan' is not a number of seconds above 0"),
        ):
            status, written, told = self.run_command(*words)
            self.assertEqual((status, written, told.count("\n")), (2, "", 1), words)
            self.assertTrue(told.startswith(mistake), told)

    def test_help_of_every_command(self):
        def walk(words, made):
            status, written, told = self.run_command(*words, "--help")
            self.assertEqual((status, told), (0, ""))
            self.assertTrue(written.startswith(f"usage: {' '.join(['mqhooks', *words])}"))
            for name, below in made.commands.items():
                walk([*words, name], below)

        walk([], parser())

    def test_completion_knows_every_command(self):
        for shell in ("bash", "zsh", "tcsh"):
            status, script, told = self.run_command("--print-completion", shell)
            self.assertEqual((status, told), (0, ""))
            for word in ("send-test", "salvage", "webhooks-port", "groups"):
                self.assertIn(word, script)
            self.assertEqual(self.run_command(f"--print-completion={shell}"), (0, script, ""))

    def test_completion_without_shtab(self):
        program = "import sys; sys.modules['shtab'] = None; from mqhooks.app.command import main; "
        program += "main(['--print-completion', 'bash'])"
        done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)
        told = "mqhooks: --print-completion needs shtab, which is not installed: run pip install shtab"
        self.assertEqual((done.returncode, done.stdout, done.stderr.partition(";")[0]), (2, "", told))

    def test_completion_is_good_bash(self):
        _, script, _ = self.run_command("--print-completion", "bash")
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        self.assertEqual((checked.returncode, checked.stderr), (0, ""))

    def test_a_health_check_does_not_load_the_whole_program(self):
        program = "import sys; from mqhooks.app.command import main; status = main(['status', '--url', 'http://127.0.0.1:1']);"
        program += "print(status, *(name for name in ('pyhocon', 'twisted.internet', 'sqlite3') if name in sys.modules))"
        done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)
        self.assertEqual(done.stdout.split()[:1], ["2"], done.stderr)
        self.assertNotIn("pyhocon", done.stdout)
        self.assertNotIn("twisted.internet", done.stdout)


class StandardOutputTests(SynchronousTestCase):
    check = ("-c", Twistd.program, "-n", "mqhooks", "--url", "http://127.0.0.1:1/", "--check")

    def run_to(self, file, words, unbuffered, before=()):
        options = words if words[0] == "-c" else ["-m", "mqhooks", *words]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        command = [*before, sys.executable, *options]
        return subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)

    def test_a_full_disk_is_told_in_a_line(self):
        told = "mqhooks: standard output cannot be written: No space left on device\n"
        for unbuffered, *words in (
            ("", "schema"),
            ("", "--help"),
            ("1", "--print-completion", "bash"),
            ("", *self.check),
            ("1", *self.check),
        ):
            with open("/dev/full", "w") as full:
                done = self.run_to(full, words, unbuffered)
            self.assertEqual((done.returncode, done.stderr), (1, told), words)

    def test_a_reader_that_has_gone_is_no_mistake(self):
        for unbuffered, *words in (
            ("", "schema"),
            ("", "--help"),
            ("1", *self.check),
        ):
            reading, writing = os.pipe()
            os.close(reading)
            with open(writing, "w") as pipe:
                done = self.run_to(pipe, words, unbuffered)
            self.assertEqual((done.returncode, done.stderr), (0, ""), words)

    def test_standard_output_that_is_closed_is_no_mistake(self):
        for words in (["schema"], self.check):
            done = self.run_to(None, words, "", before=["sh", "-c", 'exec "$@" >&-', "sh"])
            self.assertEqual((done.returncode, done.stderr), (0, ""), words)

    def test_events_have_nowhere_to_go_when_it_is_closed(self):
        told = "mqhooks: standard output is closed: give --config, --url or --sink log:path=FILE\n"
        start = ("-c", Twistd.program, "-n", "--pidfile=", "mqhooks", "--sink=filter:hooks=on_publish:sink=log")
        for words in (["run"], start):
            done = self.run_to(None, words, "", before=["sh", "-c", 'exec "$@" >&-', "sh"])
            self.assertEqual((done.returncode, done.stderr), (1, told), words)

    def test_the_exit_status_tells_when_standard_error_cannot(self):
        for words, where, status in (
            (["status", "--url=http://127.0.0.1:1"], "2>/dev/full", 2),
            (["status", "--url=http://127.0.0.1:1"], "<&- >&- 2>&-", 2),
            (["nonsense"], "2>&-", 2),
            (["check", "/nowhere"], "2>/dev/full", 1),
        ):
            done = self.run_to(None, words, "", before=["sh", "-c", f'exec "$@" {where}', "sh"])
            self.assertEqual(done.returncode, status, (words, where))


class OptionsOfTwistdTests(SynchronousTestCase):
    """What ``mqhooks`` takes over from twistd's commands."""

    def test_every_option_is_there(self):
        for name, options in (("run", tap.Options), ("simulate", simulator.Options), ("receive", receiver.Options)):
            known = {f"--{name.rstrip('=')}" for name in options().longOpt} - {"--version"}
            self.assertLessEqual(known, set(parser([name]).commands[name].options))

    def test_options_mean_the_same(self):
        words = "--sidecar tcp:1 --sidecar tcp:2 --sink log -c a.conf --admin-port 7 --check --url=http://h/?a=b"
        given = parser(["run"]).understand(["run", *words.split()])
        there, here = tap.Options(), tap.Options()
        there.parseOptions(words.split())
        here.parseOptions(words_of(tap.Options, given))
        self.assertEqual(dict(here), dict(there))


class ProcessTests(TestCase):
    timeout = 120

    async def test_events_are_recorded_and_replayed(self):
        recorder = Mqhooks(self, "capture", "today.capture", "--sidecar-port=0", "--max-size=1GiB")
        port = await recorder.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        sent = Mqhooks(self, "simulate", f"--target=tcp:127.0.0.1:{port[1]}", "--count=20", "--rate=0")
        await sent.ended
        file = Path(recorder.directory) / "today.capture"
        await until(lambda: file.exists() and file.read_bytes().count(b"\n") == 21)
        recorder.process.signalProcess("TERM")
        await recorder.ended
        endpoint = Endpoint()
        bridge = Mqhooks(self, "run", "-n", "--sidecar-port=0", "--admin-port=0", "--url", endpoint.listen(self, reactor))
        port = await bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        replay = Mqhooks(self, "replay", str(file.resolve()), f"--target=tcp:127.0.0.1:{port[1]}", "--speed=max")
        await replay.until("replaying 20 frames")
        await until(lambda: endpoint.requests)
        self.assertIn("action", json.loads(endpoint.requests[0].body))
        told = re.search(rf"mqhooks {re.escape(mqhooks.__version__)}: webhook webhook to http://127", bridge.stdout)
        self.assertIsNotNone(told, bridge.stdout)
        self.assertNotIn("wall clock", bridge.stdout + bridge.stderr)

    async def test_a_mistake_is_a_line(self):
        for words, mistake in (
            (["run", "--config", "/nowhere.conf"], "mqhooks: /nowhere.conf: cannot be read: No such file or directory\n"),
            (["simulate", "--rate", "x"], "mqhooks simulate: --rate: 'x' is not a number of 0 or more\n"),
            (["simulate", "--replay=/nowhere"], "mqhooks simulate: --replay: /nowhere: cannot be read: No such file"),
            (["replay", "/nowhere.capture"], "mqhooks replay: /nowhere.capture: cannot be read: No such file"),
            (["replay", "/dev/null", "--speed=x"], "mqhooks replay: --speed: 'x' is not a speed"),
            (["receive", "--listen=tpc:1"], "mqhooks receive: tpc:1: not a listening endpoint"),
            (["capture", "a:b", "--max-size=1x"], "mqhooks: --max-size: '1x' is not a size of 1024 bytes or more"),
            (["capture", ""], "mqhooks: FILE: is empty; give a file\n"),
        ):
            process = Mqhooks(self, *words)
            reason = await process.ended
            self.assertIsInstance(reason, ProcessTerminated)
            self.assertEqual((reason.exitCode, process.stdout, process.stderr.count("\n")), (1, "", 1))
            self.assertTrue(process.stderr.startswith(mistake), process.stderr)

    async def test_a_mistake_at_the_start_is_a_line(self):
        taken = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.addCleanup(taken.stopListening)
        process = Mqhooks(self, "receive", f"--port={taken.getHost().port}")
        self.assertEqual((await process.ended).exitCode, 1)
        self.assertIn("mqhooks receive: cannot listen on", process.stdout + process.stderr)
