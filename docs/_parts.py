"""What Sphinx does not have: a lexer for HOCON, pictures for light and dark pages, and the changelog out of its Markdown."""

import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from pygments.lexer import RegexLexer, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PROJECT = Path(__file__).resolve().parent.parent
DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{((?:[^{}]|\{[^{}]*\})*)\}")
KINDS = {"feature": "Features", "bugfix": "Bug fixes", "removal": "Deprecations and removals"}


class HoconLexer(RegexLexer):
    """HOCON, as far as configurations use it."""

    name = "HOCON"
    aliases = ["hocon"]
    filenames = ["*.conf"]
    tokens = {
        "root": [
            (r"\s+", Text),
            (r"(#|//).*", Comment.Single),
            (r'"""(?:.|\n)*?"""', String),
            (r'"(?:[^"\\\n]|\\.)*"(?=\s*(?:[:=]|\+=|\{))', Name.Attribute),
            (r'"(?:[^"\\\n]|\\.)*"', String),
            (r"\$\{\??[^}\n]*\}", Name.Variable),
            (words(("include", "required", "file", "url", "classpath"), prefix=r"\b", suffix=r'(?=\s*[("])'), Keyword),
            (r"[A-Za-z0-9_][\w.-]*(?=\s*(?:[:=]|\+=|\{))", Name.Attribute),
            (r"\b(?:true|false|null|on|off|yes|no)\b", Keyword.Constant),
            (r"-?\d+(?:\.\d+)?(?:\s?[A-Za-z]{1,3}\b)?", Number),
            (r"\+=|[:=]", Operator),
            (r"[{}\[\](),]", Punctuation),
            (r"[^\s{}\[\](),:=\"#$+]+", String.Other),
            (r".", Text),
        ]
    }


class Picture(SphinxDirective):
    """
    ``.. picture:: name.svg``: an image for light pages and for dark ones, as the page has it. The file itself goes by
    the system's setting, with its ``@media (prefers-color-scheme: dark)`` rule; two copies are made that don't ask.
    """

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Make both."""
        name = self.arguments[0]
        source = Path(self.env.srcdir, name)
        self.env.note_dependency(str(source))
        text = source.read_text("utf-8")
        if not DARK.search(text):
            raise self.error(f"{name} has no rule for dark pages")
        folder = Path(self.env.srcdir, "_build", "pictures")
        folder.mkdir(parents=True, exist_ok=True)
        made: list[nodes.Node] = []
        for kind, replacement in (("light", ""), ("dark", r"\1")):
            path = folder / f"{source.stem}-{kind}.svg"
            path.write_text(DARK.sub(replacement, text), "utf-8")
            made.append(
                nodes.image(
                    uri=f"/_build/pictures/{path.name}", alt=self.options["alt"], width="100%", classes=[f"only-{kind}"]
                )
            )
        return made


class Changelog(SphinxDirective):
    """``.. changelog::``: what is not released yet, out of ``newsfragments/``, and then ``CHANGELOG.md``."""

    def run(self) -> list[nodes.Node]:
        """Put it together."""
        lines: list[str] = []
        fragments = sorted((PROJECT / "newsfragments").glob("*.md"))
        if fragments:
            lines += heading("Not released yet", "-")
        for kind, title in KINDS.items():
            news = [path for path in fragments if path.name.endswith(f".{kind}.md")]
            lines += [
                *(heading(title, "~") if news else []),
                *(f"- {restructured(' '.join(path.read_text().split()))}" for path in news),
                "",
            ]
        released = (PROJECT / "CHANGELOG.md").read_text("utf-8").partition("<!-- towncrier release notes start -->")[2]
        for line in released.splitlines():
            marks, _, title = line.partition("# ")
            lines += heading(title, "-" if marks == "#" else "~") if re.match(r"##+ ", line) else [restructured(line)]
        for path in (*fragments, PROJECT / "CHANGELOG.md"):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def heading(title: str, mark: str) -> list[str]:
    """Write a heading."""
    return ["", restructured(title), mark * (len(restructured(title)) + 4), ""]


def restructured(markdown: str) -> str:
    """Turn a line of Markdown, with code and links in it, into reStructuredText."""
    pieces = re.split(r"(`[^`]+`|\[[^\]]+\]\([^)]+\))", markdown)
    return "".join(_piece(piece) for piece in pieces)


def _piece(text: str) -> str:
    link = re.fullmatch(r"\[([^\]]+)\]\(([^)]+)\)", text)
    if link is not None:
        return f"`{link[1]} <{link[2]}>`__"
    return f"`{text}`" if text.startswith("`") and len(text) > 1 else re.sub(r"([*_|\\])(?!\*)(?<!\*\*)", r"\\\1", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make them known."""
    app.add_lexer("hocon", HoconLexer)
    app.add_directive("picture", Picture)
    app.add_directive("changelog", Changelog)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
