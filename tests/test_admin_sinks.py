"""What the status page shows of the sinks besides the webhooks."""

from pathlib import Path

from twisted.internet import reactor
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mqhooks.admin.settings import AdminSettings
from mqhooks.admin.sinks import shown_description, shown_sinks
from mqhooks.admin.status import Status
from mqhooks.app.build import build
from mqhooks.app.settings import Settings
from mqhooks.interfaces import IShownSink
from mqhooks.sinks import CaptureSink, FanOut, FilterSink, LogSink, sinkFromString
from mqhooks.testing import RecordingSink, make_event
from tests.waiting import until


@implementer(IShownSink)
class Shown(RecordingSink):
    def __init__(self, shown):
        super().__init__()
        self.says = shown

    def shown(self):
        return self.says()


class DescriptionTests(SynchronousTestCase):
    def test_as_it_was_given(self):
        for description in ("log", "log:path=/var/log/x.jsonl", "filter:hooks=on_publish:sink=log\\:path=/x"):
            self.assertEqual(shown_description(description), description.replace("\\", ""))

    def test_without_secrets(self):
        for description, expected in (
            ("kafka:password=sesame:topic=t", "kafka:password=(hidden):topic=t"),
            ("x:api_key=sesame", "x:api_key=(hidden)"),
            ("webhook:url=https\\://me\\:sesame@h/x?k=sesame", "webhook:url=https://h/x?…"),
            ("fanout:log:webhook\\:url=http\\\\\\://me\\\\\\:sesame@h/?sesame", "fanout:log:webhook:url=http://h/?…"),
            ("filter:sink=x\\:token=sesame", "filter:sink=x:token=(hidden)"),
            ("amqp:amqp\\://me\\:sesame@h", "amqp:amqp://h"),
        ):
            self.assertEqual(shown_description(description), expected)

    def test_escaped_name_of_a_secret(self):
        self.assertNotIn("sesame", shown_description("x:pass\\word=sesame"))


class SinksTests(SynchronousTestCase):
    def test_one_that_says_nothing(self):
        sink = RecordingSink()
        (line,) = shown_sinks({"mine": sink})
        self.assertEqual(line, {"name": "mine", "class": "RecordingSink", "running": False, "shown": {}})
        sink.startService()
        self.assertIs(shown_sinks({"mine": sink})[0]["running"], True)

    def test_what_one_says(self):
        (line,) = shown_sinks({"mine": Shown(lambda: {"lost": 2, "to": "127.0.0.1", "odd": Path("/x")})})
        self.assertEqual(line["shown"], {"lost": 2, "to": "127.0.0.1", "odd": "/x"})

    def test_one_that_fails_hides_no_other(self):
        lines = shown_sinks({"bad": Shown(lambda: 1 / 0), "worse": Shown(lambda: None), "good": Shown(lambda: {"lost": 0})})
        self.assertEqual([line["name"] for line in lines], ["bad", "worse", "good"])
        self.assertIn("ZeroDivisionError", lines[0]["shown"]["error"])
        self.assertIn("error", lines[1]["shown"])
        self.assertEqual(lines[2]["shown"], {"lost": 0})
        self.flushLoggedErrors()

    def test_those_that_ship(self):
        path = self.mktemp()
        log, capture = LogSink(MemoryReactorClock(), path), CaptureSink(MemoryReactorClock(), path, bytes)
        selection = FilterSink(RecordingSink(), hooks="on_publish")
        for sink in (log, capture, selection, FanOut(())):
            verifyObject(IShownSink, sink)
        log.startService()
        self.addCleanup(log.stopService)
        log.receive([make_event("on_publish")])
        self.assertEqual(log.shown(), {"file": path, "written": 1, "lost": 0})
        self.assertEqual(capture.shown(), {"file": path, "written": 0, "lost": 0, "left out": 0})
        selection.receive([make_event("on_register"), make_event("on_publish")])
        names = [line["name"] for line in shown_sinks({"f": FanOut([selection, log])})]
        self.assertEqual(names, ["f", "f → FilterSink", "f → FilterSink → RecordingSink", "f → LogSink"])
        self.assertEqual(shown_sinks({"f": selection})[0]["shown"], {"filtered": 1})


class BridgeTests(TestCase):
    def bridge(self, *sinks, descriptions=()):
        service = build(
            Settings(admin=AdminSettings("off")),
            reactor,
            sidecars=["tcp:0:interface=127.0.0.1"],
            sinks=sinks,
            descriptions=descriptions,
        )
        service.startService()
        self.addCleanup(service.stopService)
        return Status(service.bridge, reactor)

    def test_sinks_of_a_tac_file_go_by_their_names(self):
        named = RecordingSink()
        named.setName("presence")
        lines = self.bridge(named, RecordingSink(), RecordingSink()).snapshot()["sinks"]
        self.assertEqual([line["name"] for line in lines], ["presence", "RecordingSink", "RecordingSink (3)"])
        self.assertTrue(all(line["running"] for line in lines))

    async def test_described_sinks_go_by_their_descriptions(self):
        outbox = Path(self.mktemp()).resolve()
        described = (f"webhook:url=http\\://127.0.0.1\\:1/?k=sesame:name=audit:outbox={outbox}", f"log:path={self.mktemp()}")
        status = self.bridge(*(sinkFromString(reactor, each) for each in described), descriptions=described)
        webhook, inner, log = status.snapshot()["sinks"]
        self.assertEqual(webhook["name"], f"webhook:url=http://127.0.0.1:1/?…:name=audit:outbox={outbox}")
        self.assertEqual(inner["name"], f"{webhook['name']} → webhook audit")
        self.assertEqual((inner["shown"]["up"], inner["shown"]["waiting"]), (True, 0))
        self.assertEqual(log["shown"]["written"], 0)
        status.bridge.sources[0].factory.accept([make_event("on_publish")], 1)
        status.bridge.sources[0].factory.flush()
        await until(lambda: status.snapshot()["sinks"][1]["shown"]["last error"])
        webhook, inner, log = status.snapshot()["sinks"]
        self.assertEqual((inner["shown"]["waiting"], log["shown"]["written"]), (1, 1))
        self.assertNotIn("sesame", str(status.snapshot()["sinks"]))
