"""
Sinks written as strings.
"""

import os
import sys
from subprocess import run
from textwrap import dedent

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.task import Clock
from twisted.plugin import IPlugin, getPlugins
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mqhooks.errors import ConfigError
from mqhooks.interfaces import ISinkPlugin
from mqhooks.sinks import LogSink, SinkMaker, sinkFromString
from mqhooks.sinks.description import parse

keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


class ParseTests(SynchronousTestCase):
    def test_parts(self) -> None:
        self.assertEqual(parse("log"), ("log", [], {}))
        self.assertEqual(parse("a:b:c=d:e"), ("a", ["b", "e"], {"c": "d"}))
        self.assertEqual(parse("a::b="), ("a", [""], {"b": ""}))
        self.assertEqual(parse(""), ("", [], {}))

    def test_value_may_hold_equals_signs(self) -> None:
        self.assertEqual(parse("a:url=http\\://h/?x=1"), ("a", [], {"url": "http://h/?x=1"}))

    def test_inner_description_is_positional(self) -> None:
        self.assertEqual(parse(r"fanout:log\:path=x:log"), ("fanout", ["log:path=x", "log"], {}))

    def test_escaped_equals_sign_makes_no_key(self) -> None:
        self.assertEqual(parse(r"a:b\=c"), ("a", ["b=c"], {}))

    @given(
        st.lists(st.text()),
        st.dictionaries(keys, st.text()),
    )
    def test_round_trip(self, args: list[str], kwargs: dict[str, str]) -> None:
        parts = ["prefix"]
        parts += [quoteStringArgument(arg).replace("=", r"\=") for arg in args]
        parts += [f"{key}={quoteStringArgument(value)}" for key, value in kwargs.items()]
        self.assertEqual(parse(":".join(parts)), ("prefix", args, kwargs))

    @given(st.text(alphabet="a=:\\ \n"))
    def test_any_text(self, text: str) -> None:
        try:
            parse(text)
        except ConfigError as error:
            self.assertEqual(error.where, text)

    def test_mistakes(self) -> None:
        for description, message in [
            ("log:path=a:path=b", r"log:path=a:path=b: path: is given twice; leave one out"),
            ("log:path=a" + "\\", r"log:path=a\: ends with a lone backslash; write \\ for one"),
        ]:
            self.assertEqual(str(self.assertRaises(ConfigError, parse, description)), message)


class SinkFromStringTests(SynchronousTestCase):
    def mistake(self, description: str) -> str:
        return str(self.assertRaises(ConfigError, sinkFromString, Clock(), description))

    def test_finds_the_plugin(self) -> None:
        self.assertIsInstance(sinkFromString(Clock(), "log"), LogSink)

    def test_unknown_prefix(self) -> None:
        message = self.mistake("lgo:path=x")
        self.assertTrue(message.startswith("lgo:path=x: no sink is called 'lgo'; did you mean log? Known: "), message)
        for prefix in ("fanout", "filter", "log", "sample", "webhook"):
            self.assertIn(prefix, message)
        self.assertNotIn("did you mean", self.mistake("zzzzzz"))

    def test_unknown_argument(self) -> None:
        self.assertEqual(
            self.mistake("log:pth=x"),
            "log:pth=x: there is no argument 'pth'; write it like log or log:path=FILE",
        )

    def test_missing_argument(self) -> None:
        self.assertIn("'share'; write it like sample:", self.mistake("sample:sink=log"))

    def test_too_many_arguments(self) -> None:
        self.assertIn("too many positional arguments; write it like log or", self.mistake("log:a:b"))

    def test_mistake_in_an_inner_description(self) -> None:
        self.assertEqual(
            self.mistake(r"fanout:log\:path="),
            "log:path=: path: is empty; give a file, or leave it out for standard output",
        )


class SinkMakerTests(SynchronousTestCase):
    def test_provides(self) -> None:
        maker = SinkMaker("x", "x", lambda reactor: LogSink(reactor))
        verifyObject(IPlugin, maker)
        verifyObject(ISinkPlugin, maker)

    def test_shipped_plugins_provide(self) -> None:
        plugins = list(getPlugins(ISinkPlugin))
        self.assertTrue(plugins)
        for plugin in plugins:
            verifyObject(ISinkPlugin, plugin)
            self.assertTrue(plugin.usage.startswith(plugin.prefix))

    def test_error_inside_is_not_taken_for_a_wrong_argument(self) -> None:
        def make(reactor: object) -> LogSink:
            raise TypeError("a fault in the plugin")

        error = self.assertRaises(TypeError, SinkMaker("x", "x", make).build, Clock())
        self.assertEqual(str(error), "a fault in the plugin")


class BrokenPluginTests(SynchronousTestCase):
    def test_others_are_still_found(self) -> None:
        folder = self.mktemp()
        plugins = os.path.join(folder, "twisted", "plugins")
        os.makedirs(plugins)
        with open(os.path.join(plugins, "broken_sink.py"), "w", encoding="utf-8") as module:
            module.write("import no_such_module\n")
        program = dedent(
            """
            from twisted.internet.task import Clock
            from mqhooks.sinks import sinkFromString
            print(type(sinkFromString(Clock(), "log")).__name__)
            """
        )
        done = run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([os.path.abspath(folder), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout), (0, "LogSink\n"), done.stderr)
        self.assertIn("no_such_module", done.stderr)
