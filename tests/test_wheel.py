"""What is shipped: the wheel holds all of the package and nothing else, and works from anywhere."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import lightning_fairprune as lfp

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_fairprune"
BUILD = """
import sys
from hatchling import build
print(build.build_wheel(sys.argv[1]))
print(build.build_sdist(sys.argv[1]))
"""
USE = """
import contextlib
import importlib.metadata
import io
import runpy
import sys
import torch
import lightning_fairprune as lfp
from lightning_fairprune import cli

assert lfp.__file__.startswith(sys.argv[1]), lfp.__file__
assert importlib.metadata.version("lightning-fairprune") == lfp.__version__

quota = lfp.quotas.drop([60, 40, 10], [0.9, 0.7, 0.4], 24)
assert quota.tolist() == [6, 12, 6]
target = torch.arange(110) % 3
kept = lfp.select(target, [6, 12, 6], score=torch.arange(110.0), keep="hard")
assert kept.quota.tolist() == [6, 12, 6]
assert target[kept.indices].bincount().tolist() == [6, 12, 6]

for argument, wanted in (("--version", f"fairprune {lfp.__version__}"), ("--help", "experiment")):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([argument])
    assert wanted in said.getvalue(), said.getvalue()
print("works")

# The console script, in the same process: an import of torch less.
sys.argv = [sys.argv[1] + "/bin/fairprune", "experiment", "digits.yaml", "--dry_run"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

needs_hatchling = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None,
    reason="hatchling, which builds the wheel, is not installed: pip install -e '.[test]'",
)
pytestmark = [
    needs_hatchling,
    pytest.mark.skipif(
        not (ROOT / "pyproject.toml").exists(), reason="these tests are not in the source tree"
    ),
]


def done(command: list[str], folder: Path, **environment: str) -> str:
    found = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    return found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist, as pip has them built."""
    folder = tmp_path_factory.mktemp("dist")
    wheel, sdist = done([sys.executable, "-c", BUILD, str(folder)], ROOT).split()[-2:]
    return folder / wheel, folder / sdist


def shipped() -> set[str]:
    """All files of the package but caches."""
    files = (path.relative_to(ROOT) for path in (ROOT / PACKAGE).rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in files
        if not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    }


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if name.startswith(f"{PACKAGE}/")}
    assert inside == shipped()
    assert f"{PACKAGE}/py.typed" in inside
    assert f"{PACKAGE}/experiments/configs/digits.yaml" in inside
    assert f"{PACKAGE}/report/templates/page.html.jinja" in inside
    assert f"{PACKAGE}/report/templates/style.css" in inside
    info = {name.split("/", 1)[1] for name in names - inside}
    assert info == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert built[0].name.endswith("-py3-none-any.whl")
    assert built[0].stat().st_size < 2 * 2**20


def test_the_metadata_says_what_is_needed(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        files = {name.split("/")[-1]: name for name in archive.namelist() if ".dist-info/" in name}
        found = Parser().parsestr(archive.read(files["METADATA"]).decode())
        scripts = archive.read(files["entry_points.txt"]).decode()
    assert "fairprune = lightning_fairprune.cli:main" in scripts
    assert found["Name"] == "lightning-fairprune"
    assert found["Version"] == lfp.__version__
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.10"
    assert str(found.get_payload()).startswith("# lightning-fairprune")
    extras = set(found.get_all("Provides-Extra", []))
    assert extras >= {"demo", "dev", "parquet", "report", "scale", "test", "vision"}
    needed = found.get_all("Requires-Dist", [])
    always = {line.split(">")[0].split("[")[0] for line in needed if "extra ==" not in line}
    assert always >= {"lightning", "torch", "torchmetrics", "safetensors"}
    extra = {"jinja2", "matplotlib", "scipy", "scikit-learn", "pyarrow", "duckdb", "pytest"}
    assert not always & extra
    assert any(line.startswith("jinja2") and "report" in line for line in needed)


def test_the_sdist_holds_the_tests(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= names
    assert {name for name in names if name.startswith(f"{PACKAGE}/")} == shipped()
    tests = {path.name for path in (ROOT / "tests").glob("*.py")}
    assert {name.removeprefix("tests/") for name in names} >= tests
    assert not any(name.startswith(("shared/", ".git/", ".ci/")) for name in names)


# By its metadata: setuptools warns of whoever looks for the module.
@pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="pip")), reason="pip is not installed"
)
def test_the_wheel_works_from_anywhere(built: tuple[Path, Path], tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(installed)]
    done([*pip, *options, str(built[0])], elsewhere)
    path = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    script = elsewhere / "use.py"
    script.write_text(USE)
    said = done([sys.executable, str(script), str(installed)], elsewhere, **path)
    used, _, listed = said.partition("works\n")
    assert not used
    assert "drop" in listed
