"""The core never imports Lightning, and modules import each other in one direction only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_fairprune

ROOT = Path(lightning_fairprune.__file__).parent
PACKAGE = "lightning_fairprune"

# module -> what it may import of the package; everything may use what its own row names, no more.
# A subpackage is one row, and its private modules are its own.
ALLOWED: dict[str, set[str]] = {
    "_bits": set(),
    "_files": set(),
    "_labels": set(),
    "_late": {"capture"},
    "_trees": set(),
    "_probe": {"signals", "dynamics"},
    "capture": set(),
    "counts": {"recalls"},
    "decision": {"selection"},
    "dynamics": {"_bits", "_files"},
    "figures": {"counts", "history", "recalls", "record", "statistics"},
    "geometry": {"_trees"},
    "gradients": {"_trees", "signals"},
    "history": {"_files", "counts"},
    "loader": set(),
    "metrics": {"counts", "recalls", "statistics"},
    "criteria": {"_trees"},
    "masks": set(),
    "quotas": set(),
    "recalls": set(),
    "record": {"_files", "decision", "selection"},
    "recorder": {"_bits", "dynamics", "signals"},
    "representation": {"_files", "_trees"},
    "scores": {"dynamics"},
    "selection": {"_files", "quotas"},
    "signals": set(),
    "sparsity": {"_files"},
    "statistics": {"recalls"},
    "table": {"_files", "history", "quotas", "selection"},
    "thumbnails": {"record"},
    "weighting": set(),
    # the rim
    "_flavour": set(),
    "_quiet": {"_flavour", "capture"},
    "scoring": {"_files", "_probe", "_quiet", "dynamics", "geometry", "loader", "signals"},
    "source": {"_bits", "_flavour", "_labels", "loader"},
    "datamodule": {"_flavour", "selection", "source"},
    "_twins": {"callbacks"},
    "pl": {"_twins", "datamodule", "selection"},
    "schedule": {"callbacks"},
}
RIM = {
    "_flavour",
    "experiments",
    "_twins",
    "pl",
    "_quiet",
    "scoring",
    "source",
    "datamodule",
    "schedule",
    "callbacks",
    "cli",
    "demo",
    "report",
}
# A plain import of the package must not pull these in.
LAZY = ("duckdb", "matplotlib", "pyarrow", "sklearn", "scipy", "pandas")


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == PACKAGE:
                names |= {f"{PACKAGE}.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    names = imported(path)
    module = name_of(path)
    others = [n.split(".")[1:] for n in names if n.startswith(f"{PACKAGE}.")]
    others = [parts for parts in others if parts[0] != module]
    ours = {parts[0] for parts in others}
    if module in ALLOWED:
        assert ours <= ALLOWED[module], f"{module} imports {sorted(ours - ALLOWED[module])}"
    else:
        assert module in RIM | {"__init__"}, f"{module} has no row in the table"
    if module not in RIM | {"__init__"}:
        private = [".".join(parts) for parts in others if any(p[0] == "_" for p in parts[1:])]
        assert not private, f"{module} reaches into {private}"
        assert not any(n.split(".")[0] in ("lightning", "pytorch_lightning") for n in names)


def test_the_table_names_no_module_that_is_gone() -> None:
    assert {name_of(path) for path in modules()} >= ALLOWED.keys()


def test_import_is_lean() -> None:
    code = (
        "import lightning.pytorch, sys; before = set(sys.modules); import lightning_fairprune; "
        f"print([m for m in {LAZY!r} if m in set(sys.modules) - before])"
    )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
