"""The package stays easy to read: short files, functions with few parameters, packages rather than loose modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

PACKAGE = ROOT / "sigrl_deploy"
MOST_LINES = 400
MOST_PARAMETERS = 8  # besides self and cls
MOST_MODULES = 14  # beside the packages


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function of a module, with its number of parameters. GPU kernels, which get each pointer and size, are left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not any(".jit" in ast.unparse(each) for each in node.decorator_list):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len(named) - (bool(named) and named[0].arg in ("self", "cls"))
            yield f"{_name(path)}:{node.name}", count + bool(node.args.vararg) + bool(node.args.kwarg)


def test_files_are_short() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _modules()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_functions_have_few_parameters() -> None:
    found = {
        name: count
        for path in _modules()
        if "cli" not in path.relative_to(PACKAGE).parts  # a verb has a parameter for each of its options
        for name, count in _functions(path)
        if count > MOST_PARAMETERS
    }
    assert found == {}


def test_there_are_few_modules_beside_the_packages() -> None:
    loose = [path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    assert len(loose) <= MOST_MODULES, loose
