"""Nothing of ours reads or writes a format that can run code when it is read."""

from __future__ import annotations

import ast

import pytest
from repository import GENERATED, ROOT, our_files

FORBIDDEN_MODULES = {"_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
FORBIDDEN_BUILTINS = {"__import__", "eval", "exec"}
FORBIDDEN_TORCH = {"load", "save"}
SOURCES = [
    path
    for path in our_files()
    if path.suffix == ".py" and path.parts[0] in {"platform", "services"} and not path.is_relative_to(GENERATED)
]


def code_running_calls(source: str) -> list[str]:
    """Returns what in a source could run code from data, with its line."""
    tree = ast.parse(source)
    torch_names = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torch_names |= {alias.asname for alias in node.names if alias.name == "torch" and alias.asname}
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [f"{node.lineno}: {a.name}" for a in names if a.name.split(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in FORBIDDEN_MODULES:
                    found.append(f"{node.lineno}: {module}")
                if module == "torch":
                    found += [f"{node.lineno}: torch.{a.name}" for a in names if a.name in FORBIDDEN_TORCH]
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in torch_names and attr in FORBIDDEN_TORCH:
                found.append(f"{node.lineno}: torch.{attr}")
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_BUILTINS:
                found.append(f"{node.lineno}: {name}")
            case ast.keyword(arg="allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                found.append(f"{value.lineno}: allow_pickle")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_source_never_runs_what_it_reads(path: object) -> None:
    assert code_running_calls((ROOT / str(path)).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "def load(path):\n    import marshal\n",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.save(state, path)",
        "from torch import load",
        "eval(text)",
        "exec(text)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_a_source_that_could_run_what_it_reads_is_found(source: str) -> None:
    assert code_running_calls(source)


@pytest.mark.parametrize("source", ["model.eval()", "json.load(file)", "numpy.load(path, allow_pickle=False)"])
def test_a_harmless_source_is_let_through(source: str) -> None:
    assert not code_running_calls(source)
