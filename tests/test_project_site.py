"""What makes the documentation a site: pictures, highlighting, the changelog, the search, and who builds it."""

import importlib.util
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import yaml
from docutils.core import publish_doctree
from pygments.token import Error, Name, String
from twisted.trial.unittest import SkipTest, SynchronousTestCase

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"


def parts() -> Any:
    """The module that Sphinx gets."""
    if importlib.util.find_spec("sphinx") is None:
        raise SkipTest("Sphinx is not installed")
    spec = importlib.util.spec_from_file_location("_parts", DOCS / "_parts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Site(SynchronousTestCase):
    def test_pictures_go_with_dark_pages(self) -> None:
        dark = parts().DARK
        drawn = {path.name for path in DOCS.glob("*.svg")}
        self.assertGreater(len(drawn), 4)
        shown = {name for page in DOCS.glob("*.rst") for name in re.findall(r"^\.\. picture:: (\S+)$", page.read_text(), re.M)}
        self.assertEqual(shown, drawn)
        for name in drawn:
            text = (DOCS / name).read_text()
            self.assertEqual(len(dark.findall(text)), 1, name)
            self.assertNotIn("@media", dark.sub(r"\1", text))
            self.assertRegex(dark.sub(r"\1", text), r"text \{ fill: #dddddd \}")

    def test_hocon_is_understood(self) -> None:
        lexer = parts().HoconLexer()
        for path in DOCS.glob("*.conf"):
            text = path.read_text()
            tokens = list(lexer.get_tokens(text))
            self.assertEqual([value for kind, value in tokens if kind is Error], [], path.name)
            self.assertEqual("".join(value for _, value in tokens).strip(), text.strip())
        tokens = list(lexer.get_tokens('a.b = "x: ${y}"${?Z} # c\nwebhook { url = "http://h/" }'))
        self.assertEqual([value for kind, value in tokens if kind is Name.Attribute], ["a.b", "webhook", "url"])
        self.assertEqual([value for kind, value in tokens if kind is Name.Variable], ["${?Z}"])
        self.assertEqual([value for kind, value in tokens if kind is String], ['"x: ${y}"', '"http://h/"'])

    def test_configurations_are_shown_as_hocon(self) -> None:
        for page in DOCS.glob("*.rst"):
            for options in re.findall(r"^\.\. literalinclude:: \S+\.conf\n((?:   :.*\n)*)", page.read_text(), re.M):
                self.assertIn("   :language: hocon\n", options, page.name)

    def test_news_are_good_restructuredtext(self) -> None:
        restructured = parts().restructured
        self.assertEqual(restructured("`a*_b` and [c](https://d/) of *e_"), "``a*_b`` and `c <https://d/>`__ of \\*e\\_")
        for path in (PROJECT / "newsfragments").glob("*.md"):
            text = restructured(" ".join(path.read_text().split()))
            publish_doctree(text, settings_overrides={"report_level": 2, "halt_level": 2})

    def test_search_knows_the_pages(self) -> None:
        text = (DOCS / "scorer.js").read_text()
        pages = {path.stem for path in DOCS.glob("*.rst")}
        how_to, reference = (set(re.findall(r'"([\w-]+)"', found)) for found in re.findall(r"= \[([^\]]*)\];", text))
        self.assertLessEqual(how_to | reference, pages)
        self.assertFalse(how_to & reference)
        listed = (DOCS / "index.rst").read_text()
        for caption in ("Learn", "How to"):
            (found,) = re.findall(rf":caption: {caption}\n(?:   :.*\n)*\n((?:   \S+\n)+)", listed)
            self.assertLessEqual(set(found.split()), how_to, caption)

    def test_read_the_docs_builds_it_as_make_does(self) -> None:
        settings = yaml.safe_load((PROJECT / ".readthedocs.yaml").read_text())
        self.assertTrue(settings["sphinx"]["fail_on_warning"])
        self.assertTrue((PROJECT / settings["sphinx"]["configuration"]).exists())
        setup = ConfigParser()
        setup.read(PROJECT / "setup.cfg")
        (install,) = settings["python"]["install"]
        extras = setup["options.extras_require"]
        self.assertLessEqual(set(install["extra_requirements"]), set(extras))
        # What "make docs" has and Read the Docs would lack.
        self.assertIn("sphinx", extras["docs"])
        self.assertIn("furo", extras["docs"])
