"""The import table of the rooms, read from the source and seen in real processes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {  # room: the other rooms it may import
    "ipc": set[str](),
    "frontend": {"ipc"},
    "engine": {"ipc"},
    "scorer_worker": {"ipc", "engine"},
}
NO_TENSORS = {"torch", "numpy", "transformers", "sentence_transformers", "safetensors", "triton", "huggingface_hub"}
THIRD_PARTY_OF_IPC = {"msgspec", "zmq"}
# These execute, or may execute, what they read (promise P10).
EXECUTES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
EXECUTING_CALLS = {"torch.load", "numpy.load", "np.load", "recv_pyobj", "send_pyobj", "eval", "exec"}

Import = tuple[str, int]  # module, line


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def all_sources() -> list[Path]:
    return [path for room in MAY_IMPORT for path in sources(room)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(source: str) -> Iterator[Import]:
    """Every module that the source imports, at any depth, also by name through importlib."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            name = node.args[0]
            yield str(name.value) if isinstance(name, ast.Constant) else "?", node.lineno


def calls(source: str) -> Iterator[tuple[str, int]]:
    """Every function that the source calls: its dotted name and its last part, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield name, node.lineno
            if isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_pyobj"):
                yield node.func.attr, node.lineno


def forbidden_imports(room: str, source: str) -> list[Import]:
    """The imports of a file of `room` that the table does not allow."""
    bad = []
    for module, line in imports(source):
        top = module.split(".")[0]
        is_other_room = top in MAY_IMPORT and top != room and top not in MAY_IMPORT[room]
        is_foreign_to_ipc = (
            room == "ipc" and top not in THIRD_PARTY_OF_IPC | {"ipc"} and top not in sys.stdlib_module_names
        )
        has_tensors = room in ("ipc", "frontend") and top in NO_TENSORS
        is_relative_or_unknown = top in ("", "?")
        if is_other_room or is_foreign_to_ipc or has_tensors or top in EXECUTES or is_relative_or_unknown:
            bad.append((module, line))
    return bad


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    assert sources(room), f"no source in {room}/"
    bad = {name_of(path): forbidden_imports(room, path.read_text("utf-8")) for path in sources(room)}
    assert {name: found for name, found in bad.items() if found} == {}


def test_every_folder_of_a_room_is_a_package() -> None:
    """A folder without __init__.py would be left out of the wheel, and found only in a clone."""
    folders = {path.parent for path in all_sources()}
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", all_sources(), ids=name_of)
def test_nothing_is_called_that_executes_what_it_reads(path: Path) -> None:
    assert [call for call in calls(path.read_text("utf-8")) if call[0] in EXECUTING_CALLS] == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        pytest.param("ipc", "from frontend.config import ServeConfig", id="ipc-from-another-room"),
        pytest.param("ipc", "import uvicorn", id="ipc-third-party"),
        pytest.param("frontend", "def f():\n    import torch.nn", id="frontend-torch-in-a-function"),
        pytest.param("frontend", "import importlib\nimportlib.import_module('numpy')", id="frontend-numpy-by-name"),
        pytest.param("frontend", "import importlib\nimportlib.import_module(name)", id="frontend-unknown-name"),
        pytest.param("engine", "import scorer_worker.store", id="engine-from-the-worker"),
        pytest.param("scorer_worker", "from frontend import errors", id="worker-from-the-frontend"),
        pytest.param("scorer_worker", "import pickle", id="pickle-anywhere"),
        pytest.param("engine", "from .packing import pack", id="relative"),
    ],
)
def test_the_rule_finds_a_forbidden_import(room: str, source: str) -> None:
    assert forbidden_imports(room, source) != []


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("torch.load(path)", id="torch-load"),
        pytest.param("self._socket.recv_pyobj()", id="recv-pyobj"),
        pytest.param("eval(text)", id="eval"),
    ],
)
def test_the_rule_finds_a_forbidden_call(source: str) -> None:
    assert [name for name, _ in calls(source) if name in EXECUTING_CALLS] != []


def test_importing_all_of_frontend_and_ipc_loads_no_tensor_library() -> None:
    modules = [
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for room in ("ipc", "frontend")
        for path in sources(room)
        if path.name != "__main__.py"
    ]
    program = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    # Only the clone is on the path in front; -P keeps the working directory out, as in every child of the launcher.
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}", *modules],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert {"frontend", "ipc", "zmq"} <= loaded
    assert loaded & (NO_TENSORS | {"engine", "scorer_worker"}) == set()
