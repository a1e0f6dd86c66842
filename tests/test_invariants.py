"""The page of invariants names what the sources promise, and tests that exist."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "invariants.md"
ROOMS = ("frontend", "ipc", "engine", "scorer_worker")

Invariant = tuple[str, str]  # file, label: a label belongs to its file

LABEL = r"[A-Z]{1,2}[0-9]+"
IN_DOCSTRING = re.compile(rf"^ *({LABEL})(?:  |[.:)] )", re.MULTILINE)
FILE_HEADING = re.compile(r"^#+ `([\w/]+\.py)`$")
ROW = re.compile(rf"^\| ({LABEL}) \|.*\| (.*) \|$")
PATH = re.compile(r"`(tests/[\w/]+)(\.py)?(?:::(\w+))?`")


def promised(source: str) -> Iterator[str]:
    """The labels of the invariants in the docstrings of a module and its classes."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from IN_DOCSTRING.findall(ast.get_docstring(node) or "")


def listed(page: str) -> Iterator[tuple[Invariant, str]]:
    """The rows of the tables of single files, each with its cell of tests."""
    file = None
    for line in page.splitlines():
        if line.startswith("#"):
            heading = FILE_HEADING.match(line)
            file = heading and heading[1]
        elif file and (row := ROW.match(line)):
            yield (file, row[1]), row[2]


def names_of_tests(source: str) -> set[str]:
    """What a test file's tests may be called; a state machine's is an assignment."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if name.lower().startswith("test")}


def missing_tests(text: str) -> Iterator[str]:
    """What the text names that is not there: a file, a folder of tests, or a test in its file."""
    for folder_or_file, suffix, name in PATH.findall(text):
        path = ROOT / (folder_or_file + suffix)
        if not (path.is_file() if suffix else path.is_dir()):
            yield f"{folder_or_file}{suffix}"
        elif name and name not in names_of_tests(path.read_text("utf-8")):
            yield f"{folder_or_file}{suffix}::{name}"


def all_promised() -> list[Invariant]:
    paths = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), label) for path in paths for label in promised(path.read_text("utf-8"))]


def test_each_invariant_has_a_row_and_each_row_an_invariant() -> None:
    rows = [invariant for invariant, _ in listed(PAGE.read_text("utf-8"))]
    assert Counter(rows) == Counter(all_promised())


def test_each_row_names_a_test() -> None:
    bare = [invariant for invariant, tests in listed(PAGE.read_text("utf-8")) if "::" not in tests]
    assert not bare, "no test guards these"


def test_each_test_that_is_named_exists() -> None:
    assert list(missing_tests(PAGE.read_text("utf-8"))) == []


SOURCE = '''
"""A module.

    A1  It holds,
        A2 in the middle of a line is none.
    A2  It holds too.
"""

class Thing:
    """B1: of a class."""

    def method(self):
        """A3  Of a function is none."""
'''
TABLE = """
## `room/file.py`

| | invariant | guarded by |
|---|---|---|
| A1 | It holds. | `tests/test_invariants.py::test_each_row_names_a_test` |

## Something else

| A9 | Not of a file. | `tests/test_invariants.py` |
"""


def test_what_is_read_from_sources_and_tables() -> None:
    assert list(promised(SOURCE)) == ["A1", "A2", "B1"]
    assert [invariant for invariant, _ in listed(TABLE)] == [("room/file.py", "A1")]
    assert names_of_tests("def test_a(): ...\nTestB = M.TestCase\ndef helper(): ...\nx = 1") == {"test_a", "TestB"}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        pytest.param(TABLE, [], id="all-there"),
        pytest.param("`tests/frontend`", [], id="a-folder"),
        pytest.param("`tests/test_invariants.py::ROW`", ["tests/test_invariants.py::ROW"], id="no-test"),
        pytest.param("`tests/test_none.py::test_a`", ["tests/test_none.py"], id="no-file"),
        pytest.param("`tests/none`", ["tests/none"], id="no-folder"),
    ],
)
def test_what_is_not_there_is_found(text: str, missing: list[str]) -> None:
    assert list(missing_tests(text)) == missing
