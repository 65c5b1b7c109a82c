"""Who may import whom. A wing is a file or folder at the root of the package."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import reference
from jsonargparse import ArgumentParser

import lightning_fairprune as lfp

PACKAGE = "lightning_fairprune"
ROOT = Path(lfp.__file__).parent

# Each wing and the wings that it imports, ground floor first: a row names earlier rows only.
WINGS: dict[str, set[str]] = {
    "_files": set(),
    "signals": set(),
    "recalls": set(),
    "quotas": set(),
    "masks": {"quotas"},
    "weighting": set(),
    "offsets": set(),
    "_model": {"_files"},
    "selection": {"_files", "quotas"},
    "counts": {"recalls"},
    "statistics": {"recalls"},
    "_lightning": {"_model"},
    "criteria": {"_model"},
    "geometry": {"_model"},
    "gradients": {"_model", "signals"},
    "representation": {"_files", "_model"},
    "metrics": {"counts", "offsets", "recalls"},
    "records": {"_files", "counts", "selection"},
    "history": {"records"},
    "scores": {"records"},
    "label_errors": {"records"},
    "groups": {"geometry", "records", "scores"},
    "figures": {"recalls", "records", "statistics"},
    "table": {"_files", "counts", "quotas", "records", "selection"},
    "_loading": {"_files", "_lightning", "_model", "selection"},
    "_observe": {
        "_files",
        "_lightning",
        "_loading",
        "_model",
        "counts",
        "recalls",
        "records",
        "signals",
    },
    "report": {
        "_files",
        "counts",
        "figures",
        "recalls",
        "records",
        "representation",
        "selection",
        "statistics",
    },
    "scoring": {
        "_files",
        "_lightning",
        "_loading",
        "_model",
        "_observe",
        "geometry",
        "records",
        "signals",
    },
    "callbacks": {
        "_files",
        "_lightning",
        "_loading",
        "_model",
        "_observe",
        "counts",
        "criteria",
        "figures",
        "groups",
        "label_errors",
        "masks",
        "offsets",
        "quotas",
        "recalls",
        "records",
        "scoring",
        "selection",
        "weighting",
    },
    "_twins": {"callbacks"},
    "pl": {"_loading", "_twins", "selection"},
    "demo": {"_files", "callbacks", "counts", "quotas", "scores"},
    "experiments": {
        "_files",
        "_loading",
        "_observe",
        "callbacks",
        "counts",
        "criteria",
        "geometry",
        "quotas",
        "records",
        "report",
        "scoring",
        "selection",
        "statistics",
    },
    "cli": {"_loading", "callbacks", "demo", "experiments", "report", "table"},
}

# Files, and folders, that import Lightning.
LIGHTNING = (
    "_lightning/",
    "_loading/position.py",
    "_loading/served.py",
    "_loading/source.py",
    "_loading/wrapper.py",
    "_observe/combined.py",
    "_observe/groups.py",
    "_observe/observer.py",
    "_observe/ranks.py",
    "_observe/validation.py",
    "_observe/warmup.py",
    "_twins.py",
    "callbacks/",
    "cli.py",
    "demo/",
    "experiments/",
    "pl.py",
)

# A plain import of the package must not pull these in.
LAZY = ("duckdb", "jinja2", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn")

FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """Yields every module that a file imports, anywhere in it and for type checkers as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} imports relatively"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in found)


def ours(path: Path) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] == PACKAGE}


def wing_of(module: str) -> str:
    return [*module.split("."), ""][1]


GRAPH = {module_of(path): ours(path) for path in FILES}


# 1. A row of the table equals what is imported, and names lower floors only.


@pytest.mark.parametrize("wing", sorted({wing_of(m) for m in MODULES} - {""} | WINGS.keys()))
def test_wings(wing: str) -> None:
    assert wing in WINGS, f"{wing} has no row in the table"
    lower = list(WINGS)[: list(WINGS).index(wing)]
    found = {wing_of(n) for m, names in GRAPH.items() if wing_of(m) == wing for n in names}
    assert found - {wing, ""} == WINGS[wing]
    assert set(lower) >= WINGS[wing], "a wing imports lower floors only"


# 2. No circle among modules, whatever an import is for.


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Returns the sets of modules that import each other, directly or on a way round."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in found:
                found.add(module)
                waiting += graph.get(module, ())
        return found

    behind = {module: reached(module) for module in graph}
    rings = {
        frozenset(other for other in behind[module] if module in behind.get(other, ()))
        for module in graph
        if module in behind[module]
    }
    return [set(ring) for ring in rings]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [{"a", "b", "c"}]


def test_no_circle() -> None:
    # A package's own file lists what its modules define; a module never imports that list.
    assert circles(GRAPH) == []


# 3. What begins with an underscore is private to the package that holds it.


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private(path: Path) -> None:
    module = f"{module_of(path)}."
    for name in ours(path):
        parts = name.split(".")
        hidden = [i for i, part in enumerate(parts) if part.startswith("_")]
        for i in hidden:
            owner = ".".join(parts[:i]) + "."
            assert module.startswith(owner), f"{module} imports {name}, private to {owner}"


# 4. Lightning is imported in listed files only.


def test_lightning_stays_at_the_rim() -> None:
    using = {
        str(path.relative_to(ROOT))
        for path in FILES
        if {name.split(".")[0] for name in imported(path)} & {"lightning", "pytorch_lightning"}
    }
    listed = {file for file in using if file.startswith(LIGHTNING)}
    assert using == listed
    for place in LIGHTNING:
        assert any(file.startswith(place) for file in using), f"{place} imports no Lightning"


# 5. A public object has at most two import paths, and its name is in the docs.


def test_public_names_have_at_most_two_paths() -> None:
    paths: dict[object, list[str]] = {}
    for space, module in reference.namespaces().items():
        for name, value in reference.public(module).items():
            paths.setdefault(value, []).append(f"{space}.{name}")
    assert [found for found in paths.values() if len(found) > 2] == []


def test_the_reference_names_all_that_is_public() -> None:
    page = ROOT.parent / "docs" / "reference.md"
    if not page.is_file():
        pytest.skip("an installed package has no docs beside it")
    assert page.read_text() == "\n".join(reference.page()) + "\n", (
        "write it again: python tests/reference.py > docs/reference.md"
    )


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_pages_name_files_that_are_there(page: str) -> None:
    path = ROOT.parent / page
    if not path.is_file():
        pytest.skip("an installed package has no docs beside it")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", path.read_text()))
    assert named
    places = (ROOT, ROOT.parent, ROOT / "callbacks")
    gone = {name for name in named if not any((place / name).exists() for place in places)}
    assert not gone


# 6. The import path that a saved YAML holds stays as it is.


@pytest.mark.parametrize(
    "path",
    [
        "DataPruning",
        "WeightPruning",
        "RecallMonitor",
        "RecallOffsets",
        "ClassWeighting",
        "ScorePass",
        "FairPruneDataModule",
        "quotas.Minimax",
        "quotas.drop",
        "scores.el2n",
        "gradients.grad_norm",
        "geometry.k_center",
        "groups.discover",
        "criteria.undecayed",
        "masks.globally",
        "masks.schedules.cubic",
        "weighting.cdb_w",
        "metrics.WorstClassRecall",
        "offsets.fit",
    ],
)
def test_saved_paths(path: str) -> None:
    parser = ArgumentParser()
    value: object = lfp
    for part in path.split("."):
        value = getattr(value, part)
    kind = type[value] if inspect.isclass(value) else Callable  # type: ignore[valid-type]
    parser.add_argument("--it", type=kind)
    config = parser.parse_args([f"--it={PACKAGE}.{path}"])
    assert parser.dump(config).strip() == f"it: {PACKAGE}.{path}"


def test_import_is_lean() -> None:
    code = (
        "import lightning.pytorch, sys; before = set(sys.modules); import lightning_fairprune; "
        f"print([m for m in {LAZY!r} if m in set(sys.modules) - before])"
    )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
