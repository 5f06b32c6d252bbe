"""How configuration files are spelt: what separates, what joins, and what is text."""

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import ConfigError
from mqhooks.nanomq.scanner import DEPTH, BlockMembers, Include, Items, Member, Reference, Scanner, Skipped, Text


def everything(key):
    return True


def plain(value):
    """Make text, lists and pairs of what was scanned."""
    (part,) = value
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Items):
        return [plain(item) for item in part.items]
    return [(".".join(entry.path), plain(entry.value)) for entry in part.entries]


def scanned(text):
    return plain((BlockMembers(Scanner(text).members(everything)),))


class ScannerCase(SynchronousTestCase):
    def mistake(self, text):
        error = self.assertRaises(ConfigError, Scanner(text).members, everything)
        self.assertNotIn("\n", str(error))
        return str(error)


class SeparatorTests(ScannerCase):
    def test_white_space_separates_blocks_of_a_list(self):
        for between in (" ", "", "\n", ", ", ",\n", " # and\n", "\n\n// and\n"):
            self.assertEqual(scanned(f"e = [ {{ a = 1 }}{between}{{ a = 2 }} ]"), [("e", [[("a", "1")], [("a", "2")]])])

    def test_white_space_separates_a_value_from_a_key(self):
        for value in ("x", '"x"', "{ y = 1 }", "[ 1 ]"):
            for key in ("b", '"b"'):
                for separator in ("=", " = ", ": ", " : ", " =\n"):
                    text = f"a = {value} {key}{separator}2"
                    self.assertEqual([entry.path for entry in Scanner(text).members(everything)], [("a",), ("b",)], text)
        self.assertEqual(scanned('"a": "x" "b":"y"'), [("a", "x"), ("b", "y")])
        self.assertEqual(scanned("a = 1 b { c = 2 } d { }"), [("a", "1"), ("b", [("c", "2")]), ("d", [])])

    def test_white_space_joins_text(self):
        self.assertEqual(scanned('a = x  "y" z\nb = [ 1 2, "3" "4" ]'), [("a", "x  y z"), ("b", ["1 2", "3 4"])])

    def test_references_are_parts(self):
        (member,) = Scanner('a = "Bearer "${TOKEN} ${?B}x').members(everything)
        self.assertEqual(
            member.value,
            (Text("Bearer ", quoted=True), Reference("TOKEN", False, 1, " "), Reference("B", True, 1), Text("x", quoted=False)),
        )

    def test_blocks_are_joined_where_no_list_is(self):
        (member,) = Scanner("a = ${b} { c = 1 }\n").members(everything)
        self.assertEqual([type(part) for part in member.value], [Reference, BlockMembers])

    def test_a_key_has_its_brace_on_the_next_line(self):
        self.assertEqual(scanned("a\n{ b\n=\n1 }"), [("a", [("b", "1")])])
        self.assertEqual(scanned("a = 1 b\n{ c = 2 } d\n{ }"), [("a", "1"), ("b", [("c", "2")]), ("d", [])])

    def test_what_separates_is_not_guessed(self):
        for text in ("a = Bearer b:c", "a = ${b} c:d"):
            self.assertIn("put the text into quotes, or a comma before a key", self.mistake(text))
        for text in ("a = b=c", "a = b: c", "a = Bearer b=c=", "a =\nb = c"):
            self.assertIn('text that has "=" or ":" in it goes into quotes', self.mistake(text))
        for text in ("a = x { b = 1 }", "a = [1] { b = 1 }", "a = ${b} x [1]"):
            self.assertRaises(ConfigError, Scanner(text).members, everything)
        for text in ("a b\nc = 1", "a { b = }", "a { b = # c\n}"):
            self.assertIn("the key before it has no value", self.mistake(text))
        for text in ("a = ${b\nc = d", "a = ${}", "a = ${?${b}}"):
            self.assertIn("write ${NAME} or ${?NAME}", self.mistake(text))

    def test_credentials_are_not_cut_in_two(self):
        for key in ("authorization", "x-api-key", "secret"):
            self.assertIn("put the text into quotes", self.mistake(f"{key} = Bearer abc=def"))


class TextTests(ScannerCase):
    def test_unquoted(self):
        for text in (
            "a@b",
            "$SYS/#",
            "a/+/#",
            "+/#",
            "100%",
            "a|b",
            r"D\logs\x",
            "http://h:80/x",
            "007",
            "5m-x",
            "$",
            "a:b",
            "x;",
        ):
            for end in ("", " ", "\n", ",", " # c", " // c"):
                self.assertEqual(scanned(f"a = {text}{end}"), [("a", text)])
            self.assertEqual(scanned(f"a = [{text}]"), [("a", [text])])

    def test_comments(self):
        self.assertEqual(scanned("# a\na = b # c\n// d\nb = c// d\nc = d# e"), [("a", "b"), ("b", "c"), ("c", "d")])

    def test_quoted_text_over_lines(self):
        self.assertEqual(scanned('a = "x\ny # {"\nb = """z\n"w" \\n"""'), [("a", "x\ny # {"), ("b", 'z\n"w" \\n')])

    def test_triple_quotes_end_in_quotes(self):
        self.assertEqual(scanned('a = """x""""\nb = """"""'), [("a", 'x"'), ("b", "")])

    def test_white_space_of_every_kind(self):
        self.assertEqual(scanned("\ufeffa\u00a0=\tb\u00a0\n"), [("a", "b")])

    def test_dotted_keys(self):
        first, second = Scanner('a.b . c = 1\n"a.b" = 2').members(everything)
        self.assertEqual((first.path, second.path), (("a", "b", "c"), ("a.b",)))


class SkippingTests(ScannerCase):
    def test_blocks_that_nobody_wants_are_not_read(self):
        text = 'a { "}" = """]""" [ x y = = $SYS/# ] # } "\n }\nb = c\nd = [ "]" ] // ]\n'
        entries = Scanner(text).members(lambda key: key == "b")
        found = [(*entry.path, type(entry.value[0])) for entry in entries]
        self.assertEqual(found, [("a", Skipped), ("b", Text), ("d", Skipped)])

    def test_they_can_be_read_later(self):
        scanner = Scanner("a { b = 1 }\nc = [ 1, 2 ]\nd = e")
        entries = [scanner.unskipped(entry) for entry in scanner.members(lambda key: False)]
        self.assertEqual([plain(entry.value) for entry in entries], [[("b", "1")], ["1", "2"], "e"])

    def test_their_brackets_count(self):
        for text, line in (("a {\n b = [\n }", "3, column 2"), ("a = [ } ]", "1, column 7"), ("}", "1, column 1")):
            error = self.assertRaises(ConfigError, Scanner(text).members, lambda key: False)
            self.assertIn(f"syntax error in line {line}", str(error))
        for text, what in (
            ("a {\n", "the { of line 1"),
            ("a = [ {\n}\n", "the [ of line 1"),
            ('a {\n"b\n}', "the quotes of line 2"),
        ):
            for wanted in (everything, lambda key: False):
                error = self.assertRaises(ConfigError, Scanner(text).members, wanted)
                self.assertIn(what, str(error))

    def test_nesting(self):
        for wanted in (everything, lambda key: False):
            Scanner("a = " + "[" * DEPTH + "]" * DEPTH).members(wanted)
            error = self.assertRaises(ConfigError, Scanner("a = " + "[" * 5000).members, wanted)
            self.assertIn("nested too deeply", str(error))


class IncludeTests(ScannerCase):
    def test_spellings(self):
        for text, include in {
            'include "a"': Include("a", "", False, 1),
            'INCLUDE file("a")': Include("a", "file", False, 1),
            'include required("a")': Include("a", "", True, 1),
            'include required( file( "a" ) )': Include("a", "file", True, 1),
            'include url("a")': Include("a", "url", False, 1),
        }.items():
            self.assertEqual(Scanner(text).members(everything), (include,))

    def test_it_is_a_key_too(self):
        (member,) = Scanner("include = 1").members(everything)
        self.assertIsInstance(member, Member)

    def test_unclosed(self):
        self.assertIn('include required("more.conf")', self.mistake('include required("a"\nb = 1'))


class ConfidentialTests(ScannerCase):
    def test_mistakes_do_not_show_secrets(self):
        for text in (
            "secret = This+/Is=",
            "secret =\n This+/Is=",
            "password = a This=Is=",
            "tls { key_password = This { }\n }",
        ):
            self.assertNotIn("This", self.mistake(text))
