"""Every example runs as its users run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LAST_LINE = {
    "01_two_lines.py": "mean 0.",
    "02_your_own_score.py": "    9 ",
    "04_two_phase.py": "drop ",
    "06_groups.py": "30 %, Minimax ",
    "07_weight_pruning.py": "     98%  random",
    "05_recall_distortion.py": "     1 in 16",
}


def run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_example_is_forgotten() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(LAST_LINE)
    readme = (EXAMPLES / "README.md").read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.name != "README.md"]
    assert all(name in readme for name in names if not name.startswith((".", "_")))


@pytest.mark.parametrize("name", LAST_LINE)
def test_example_ends_with_its_table(name: str, tmp_path: Path) -> None:
    lines = run([str(EXAMPLES / name), "--fast"], tmp_path).splitlines()
    assert any(line.startswith(LAST_LINE[name]) for line in lines[-3:]), lines


def test_yaml_example(tmp_path: Path) -> None:
    folder = tmp_path / "03_cli"
    shutil.copytree(EXAMPLES / "03_cli", folder)
    command = ["-m", "lightning_fairprune.cli", "fit", "--config", "config.yaml"]
    lines = run([*command, "--trainer.max_epochs", "12"], folder).splitlines()
    assert any(line.startswith("worst  0.") for line in lines[-3:]), lines
    assert len(list(folder.glob("runs/**/config.yaml"))) == 1
