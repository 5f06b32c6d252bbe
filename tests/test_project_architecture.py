"""docs/architecture.rst names files and functions: they are there."""

import ast
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PROJECT = Path(__file__).parent.parent
ROOM = PROJECT / "mqhooks"


def defined(path):
    """The names that a module defines: functions, classes, and methods as ``Class.method``."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names.update(f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef))
    return names


def rows(text, heading):
    """The cells of each row of the table in a section."""
    section = re.split(r"^.+\n[-=]{3,}\n", text.partition(f"\n{heading}\n---")[2], flags=re.M)[0]
    found = re.findall(r"^   \* - (.+(?:\n     (?:-| ) .+)*)", section, re.M)
    return [re.split(r"\n     - ", row) for row in found][1:]


class Architecture(SynchronousTestCase):
    text = (PROJECT / "docs" / "architecture.rst").read_text()

    def test_where_to_look(self):
        asked = rows(self.text, "Where to look")
        self.assertGreater(len(asked), 20)
        missing = []
        elsewhere = set().union(*map(defined, ROOM.glob("**/*.py")))
        for question, file, functions in asked:
            names = defined(ROOM / file.strip("`")) if (ROOM / file.strip("`")).exists() else set()
            told = [name for name in re.findall(r"``([\w./]+)``", functions) if "/" not in name]
            missing += [(question, file, name) for name in told if name not in names | elsewhere]
            if not names:
                missing.append((question, file, "no such file"))
        self.assertEqual(missing, [])

    def test_states(self):
        told = [row[3] for row in rows(self.text, "States")]
        self.assertGreater(len(told), 20)
        names = {name for cell in told for name in re.findall(r"``([\w.]+)``", cell)}
        there = set().union(*(defined(path) for room in ("webhook", "outbox") for path in (ROOM / room).glob("*.py")))
        self.assertEqual(names - there, set())

    def test_a_class_name_means_one_thing(self):
        homes = {}
        for path in ROOM.glob("**/*.py"):
            if path.parent.name != "pb":
                for node in ast.parse(path.read_text()).body:
                    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                        homes.setdefault(node.name, []).append(str(path.relative_to(ROOM)))
        self.assertGreater(len(homes), 300)
        # Every plugin of twistd has its Options.
        several = {name: places for name, places in homes.items() if len(places) > 1 and name != "Options"}
        self.assertEqual(several, {})

    def test_every_room_is_told(self):
        told = {name for row in rows(self.text, "Rooms") for name in re.findall(r"``(\w+)/?``", row[0])}
        rooms = {path.parent.name for path in ROOM.glob("*/__init__.py")}
        self.assertEqual(rooms - told, set())
