"""What the package imports is declared in pyproject.toml, and what it declares it imports."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import lightning_fairprune

PACKAGE = Path(lightning_fairprune.__file__).parent
OURS = {"compat", "dev", "test"}  # extras that no user needs
TWIN = {"pytorch_lightning"}  # the other package of Lightning, which a user may have in its place
DISTRIBUTIONS = packages_distributions()


def imports(tree: ast.AST, at_once: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield the top-level names imported, and whether at once or inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], at_once
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        late = typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(node, at_once and not late)


def normal(distribution: str) -> str:
    return re.split(r"[^\w.-]", distribution)[0].lower().replace("_", "-")


def imported() -> dict[str, bool]:
    """Return the third-party packages that are imported, and whether anywhere at once."""
    found: dict[str, bool] = {}
    for path in PACKAGE.rglob("*.py"):
        for name, at_once in imports(ast.parse(path.read_text())):
            if name not in sys.stdlib_module_names | TWIN | {"lightning_fairprune"}:
                found[name] = found.get(name, False) or at_once
    return found


@pytest.fixture(scope="module")
def declared() -> tuple[set[str], set[str]]:
    """The dependencies, and those with the extras for users."""
    tomllib: Any = pytest.importorskip("tomllib")
    file = PACKAGE.parent / "pyproject.toml"
    if not file.is_file():
        pytest.skip("the sources are not here")
    project = tomllib.loads(file.read_text())["project"]
    always = set(map(normal, project["dependencies"]))
    extras = project["optional-dependencies"].items()
    return always, always | {
        normal(line) for name, lines in extras if name not in OURS for line in lines
    }


def test_what_is_imported_is_declared(declared: tuple[set[str], set[str]]) -> None:
    always, with_extras = declared
    missing = {
        name: "dependencies" if at_once else "dependencies or an extra"
        for name, at_once in imported().items()
        if not set(map(normal, DISTRIBUTIONS.get(name, [name])))
        & (always if at_once else with_extras)
    }
    assert missing == {}


def test_what_is_declared_is_imported(declared: tuple[set[str], set[str]]) -> None:
    used = {normal(dist) for name in imported() for dist in DISTRIBUTIONS.get(name, [name])}
    assert declared[1] - used <= {"lightning-fairprune"}
