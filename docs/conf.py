"""Sphinx's settings, and a directive for zope's interfaces."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from textwrap import indent

from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.util.docstrings import prepare_docstring
from sphinx.util.docutils import SphinxDirective
from twisted.python.reflect import namedAny
from zope.interface.interface import Method

sys.path.insert(0, str(Path(__file__).parent))

project = "mqhooks"
author = "The mqhooks authors"
copyright = f"2026, {author}"
version = release = version_of("mqhooks")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinxarg.ext", "_parts"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_search_scorer = str(Path(__file__).parent / "scorer.js")
html_title = f"mqhooks {version}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

# What is ours has to be there; what is not has no pages here.
nitpick_ignore_regex = [("py:.*", r"(?!mqhooks\.).*")]
# A parameter for tests: what it takes is no part of the reference.
nitpick_ignore = [("py:class", "mqhooks.outbox.file.OutboxFile")]


class AutoInterface(SphinxDirective):
    """
    ``.. autointerface:: module.IName``: an interface, its attributes and methods, out of its docstrings.
    """

    required_arguments = 1

    def run(self) -> list[Node]:
        """Make the interface's description."""
        (name,) = self.arguments
        interface = namedAny(name)
        members = [
            _description(f"method:: {member}{what.getSignatureString()}", what.__doc__)
            if isinstance(what, Method)
            else _description(f"attribute:: {member}", what.__doc__)
            for member, what in interface.namesAndDescriptions()
        ]
        return self.parse_text_to_nodes(_description(f"class:: {name}", interface.__doc__, *members))


def _description(head: str, docstring: str, *members: str) -> str:
    body = "\n".join([*prepare_docstring(docstring), *members])
    return f".. py:{head}\n\n{indent(body, '   ')}\n"


def setup(app: Sphinx) -> None:
    """Make the directive known."""
    app.add_directive("autointerface", AutoInterface)
