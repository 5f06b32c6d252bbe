"""
Topic filters against a matcher written from MQTT 5, sections 4.7.1 and 4.7.2.
"""

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import ConfigError
from mqhooks.nanomq.topics import MAX_BYTES, check_filter, compile_filter

LEVELS = st.sampled_from(["", "a", "b", "$", "$SYS", "a.b", "x\ny", "ä", "(", "\\d"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join)
FILTERS = st.builds(
    lambda levels, tail: "/".join([*levels, *tail]),
    st.lists(LEVELS | st.just("+"), max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


def matches(wanted, topic):
    if wanted[0] in "#+" and topic.startswith("$"):
        return False
    levels = topic.split("/")
    for index, level in enumerate(wanted.split("/")):
        if level == "#":
            return True
        if index == len(levels) or level not in ("+", levels[index]):
            return False
    return len(levels) == len(wanted.split("/"))


class MatchingTests(SynchronousTestCase):
    @given(FILTERS, TOPICS)
    @example("foo/#", "foo")
    @example("#", "$SYS/x")
    @example("+/x", "$SYS/x")
    @example("$SYS/#", "$SYS/x")
    @example("+", "/")
    def test_one(self, wanted, topic):
        self.assertEqual(compile_filter(wanted)(topic), matches(wanted, topic))

    @given(st.lists(FILTERS, min_size=1, max_size=4), TOPICS)
    def test_several(self, filters, topic):
        self.assertEqual(compile_filter(*filters)(topic), any(matches(wanted, topic) for wanted in filters))

    def test_by_the_specification(self):
        examples = {
            "sport/tennis/player1/#": ["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/x"],
            "sport/tennis/+": ["sport/tennis/player1", "sport/tennis/player2"],
            "sport/+": ["sport/"],
            "+/+": ["/finance"],
            "/+": ["/finance"],
            "$SYS/monitor/+": ["$SYS/monitor/Clients"],
        }
        for wanted, topics in examples.items():
            self.assertEqual([topic for topic in topics if not compile_filter(wanted)(topic)], [], wanted)
        for wanted, topic in [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("ACCOUNTS", "Accounts"),
        ]:
            self.assertFalse(compile_filter(wanted)(topic), wanted)


class CheckingTests(SynchronousTestCase):
    def test_refused(self):
        for text, reason in {
            "": "leave it out",
            "a/#/c": "# must be the last level",
            "a/b#": "# must be the last level",
            "##": "# must be the last level",
            "a+": "+ must be alone",
            "++/b": "+ must be alone",
            "a\0b": "NUL",
            "é" * (MAX_BYTES // 2 + 1): "longer than 65,535 bytes",
        }.items():
            self.assertIn(reason, check_filter(text) or "")
            error = self.assertRaises(ConfigError, compile_filter, "a", text)
            self.assertIn(reason, str(error))

    @given(FILTERS)
    def test_accepted(self, text):
        self.assertIsNone(check_filter(text))

    @given(st.text(alphabet="ab/+#$\0", max_size=8), TOPICS)
    def test_any_text(self, text, topic):
        levels = text.split("/")
        valid = (
            text != ""
            and "\0" not in text
            and all(level in ("#", "+") or not set(level) & set("#+") for level in levels)
            and "#" not in levels[:-1]
        )
        self.assertEqual(check_filter(text) is None, valid)
        if valid:
            self.assertEqual(compile_filter(text)(topic), matches(text, topic))
