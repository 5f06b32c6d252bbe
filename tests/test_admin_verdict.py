"""What the status page says in words, without a browser."""

from copy import deepcopy

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.admin.verdict import judge
from mqhooks.admin.words import plural, rate, short, size, span
from tests.test_admin_api import example


class VerdictTests(SynchronousTestCase):
    def setUp(self):
        self.status = deepcopy(example("api-status"))
        (self.webhook,) = self.status["webhooks"]
        (self.source,) = self.status["sources"]

    def make_well(self):
        self.webhook |= {"state": "up", "down_since": None, "pending": 0, "oldest_seconds": None, "bytes": 0}
        self.status["outbox"] |= {"dead": 0, "bytes": 0}

    def problem(self):
        verdict = judge(self.status)
        (problem,) = verdict["problems"]
        self.assertEqual((verdict["level"], verdict["headline"]), (problem["level"], problem["title"]))
        return problem["level"], problem["title"], problem["text"], problem["link"]

    def test_documented_example(self):
        self.assertEqual(judge(self.status), self.status["verdict"])

    def test_all_is_well(self):
        self.make_well()
        verdict = judge(self.status)
        self.assertEqual((verdict["level"], verdict["headline"], verdict["problems"]), ("good", "All is well", []))
        self.assertTrue(verdict["summary"].endswith("9.9 events/s. Nothing is waiting."))
        self.status["webhooks"] = []
        self.assertTrue(judge(self.status)["summary"].endswith("9.9 events/s."))

    def test_endpoint_that_refuses_everything(self):
        self.make_well()
        self.webhook |= {"state": "down", "refusing": True, "last_answer": None, "pending": 1}
        level, title, text, link = self.problem()
        self.assertEqual((level, title, link), ("bad", "billing refuses everything", "webhook:billing"))
        self.assertIn("answered 503. Check its URL, token and routes. 1 delivery waits on disk.", text)

    def test_answer_to_another_attempt_is_not_told(self):
        self.webhook["last_answer"]["at"] -= 1
        self.assertNotIn("It said", judge(self.status)["problems"][0]["text"])

    def test_webhook_that_is_paused_behind_or_nearly_full(self):
        self.make_well()
        self.webhook |= {"state": "paused"}
        self.assertEqual(
            self.problem()[1:3], ("billing is paused", "Nothing is sent until someone resumes it. Nothing is waiting.")
        )
        self.webhook |= {"state": "up", "oldest_seconds": 61, "pending": 3}
        self.assertIn("the oldest delivery has waited for 61 s. 3 deliveries wait on disk.", self.problem()[2])
        self.webhook |= {"oldest_seconds": 1, "bytes": 90, "max_size": 100}
        self.assertEqual(self.problem()[1], "billing has little room left")
        self.assertIn("90 % of its room is used.", self.problem()[2])
        for kind, where in (("memory", "in memory, and would be lost"), ("jetstream", "in JetStream.")):
            self.status["outbox"]["kind"] = kind
            self.assertIn(f"3 deliveries wait {where}", self.problem()[2])

    def test_sources_that_are_absent_or_held_up(self):
        self.make_well()
        self.source["connections"] = 0
        self.assertEqual(self.problem()[:2], ("bad", "VerneMQ is not connected"))
        self.assertIn("VerneMQ is not connected.", judge(self.status)["summary"])
        # What is said of two is said once.
        self.status["sources"].append(self.source | {"via": "grpc"})
        self.problem()
        own = self.source | {"via": "webhooks", "events": 0}
        self.status["sources"] = [own]
        self.assertEqual(self.problem()[:2], ("warn", "VerneMQ has posted nothing yet"))
        own |= {"events": 1, "paused": True}
        self.assertEqual(self.problem()[:2], ("bad", "VerneMQ's events are refused"))
        own |= {"via": "sidecar", "connections": 1}
        self.assertEqual(self.problem()[1], "VerneMQ is held up")

    def test_outbox_and_sinks(self):
        self.make_well()
        self.status["sinks"] = [{"name": "log:path=/x", "class": "LogSink", "running": False, "shown": {}}]
        self.status["outbox"] |= {"damaged": ["/x.damaged-1"], "failing": "disk full"}
        verdict = judge(self.status)
        self.assertEqual(verdict["headline"], "A damaged outbox was set aside, The outbox cannot be written, and 1 more")
        self.assertEqual([problem["level"] for problem in verdict["problems"]], ["bad", "bad", "warn"])
        self.assertEqual(verdict["problems"][2]["title"], "log:path=/x is not running")

    def test_cluster(self):
        self.make_well()
        self.status["cluster"] = cluster = deepcopy(example("api-cluster"))
        cluster["webhooks"][0] |= {"unowned": 1, "replicas": 2}
        bad, warn = judge(self.status)["problems"]
        self.assertEqual((bad["title"], bad["link"]), ("billing is only partly delivered", "cluster-section"))
        self.assertEqual(bad["text"], "1 partition without an owner: the bridges' logs say why.")
        self.assertEqual((warn["level"], warn["text"]), ("warn", "2 of 3 replicas have all of billing."))
        cluster["webhooks"][0] |= {"unowned": 0, "replicas": None}
        self.assertEqual(judge(self.status)["level"], "good")

    def test_long_names_and_answers_are_cut(self):
        self.webhook["name"] = "n" * 10_000
        self.webhook["last_error"]["reason"] = self.webhook["last_answer"]["body"] = "x\n" * 10_000
        verdict = judge(self.status)
        self.assertLess(len(verdict["headline"]), 100)
        self.assertLess(len(verdict["problems"][0]["text"]), 900)


class WordsTests(SynchronousTestCase):
    def test_words(self):
        self.assertEqual([plural(number, "letter") for number in (0, 1, 2000)], ["0 letters", "1 letter", "2,000 letters"])
        self.assertEqual([rate(number) for number in (0, 0.04, 12.34, 4000)], ["0", "0.0", "12.3", "4,000"])
        sizes = {1: "1 byte", 1023: "1,023 bytes", 1536: "1.5 KiB", 5 << 40: "5.0 TiB", 5 << 50: "5120.0 TiB"}
        self.assertEqual({number: size(number) for number in sizes}, sizes)
        spans = {
            -1: "0 s",
            119.4: "119 s",
            120: "2 min",
            7199: "119 min",
            7200: "2 h",
            9000: "2 h 30 min",
            172_800: "2 d",
            180_000: "2 d 2 h",
        }
        self.assertEqual({seconds: span(seconds) for seconds in spans}, spans)
        self.assertEqual([short("abc", 3), short("abcd", 3)], ["abc", "abc…"])
