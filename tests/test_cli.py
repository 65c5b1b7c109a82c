"""The command line: what it lists, and that everything can be said in YAML."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import users
import yaml

import lightning_fairprune as lfp
from lightning_fairprune import cli

MODULE = """
from users import Blobs, Data, Model
from torch.utils.data import DataLoader
import lightning.pytorch as pl

class WithLoaders(Model):
    def train_dataloader(self):
        return DataLoader(Blobs(), batch_size=10, shuffle=True)
    def val_dataloader(self):
        return DataLoader(Blobs(60, seed=1), batch_size=20)

class Save(pl.Callback):
    def on_fit_end(self, trainer, pl_module):
        prune = next(c for c in trainer.callbacks if type(c).__name__ == "DataPruning")
        prune.selection.save(f"{trainer.default_root_dir}/kept.safetensors")

def last_loss(seen):
    return seen.signal("loss")[-1]

def fewest(sizes, budget):
    from lightning_fairprune import quotas
    return quotas.balanced(sizes, budget)

def parity(batch):
    return batch[1] % 2

def pairs(module, batch):
    return module(batch[0]), batch[1]
"""

EXAMPLE = Path(__file__).parent.parent / "examples" / "03_cli"

MINIMAX = {
    "class_path": "lightning_fairprune.quotas.Minimax",
    "init_args": {"step": 1.0, "leak": 0.2, "worst": 0.5},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the user's module in it, as a console script finds it."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's own calls
    return tmp_path


def config(folder: Path, *, wrapper: bool = False, **prune: object) -> Path:
    data: dict[str, object] = {"class_path": "mine.Data", "init_args": {"n": 103}}
    if wrapper:
        data = {"class_path": "FairPruneDataModule", "init_args": {"datamodule": data}}
    given = {"density": 0.4, "warmup_epochs": 2, **prune}
    content = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 4,
            "default_root_dir": str(folder / "out"),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": [
                {"class_path": "DataPruning", "init_args": given},
                {"class_path": "RecallMonitor"},
                {"class_path": "mine.Save"},
            ],
        },
        "model": {"class_path": "mine.Model"},
        "data": data,
    }
    path = folder / "start.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def fit(path: Path, *more: str) -> torch.Tensor:
    assert cli.main(["fit", "--config", str(path), *more]) == 0
    out = Path(more[-1]) if more else path.parent / "out"
    return lfp.Selection.load(out / "kept.safetensors").indices


def ended(*arguments: str) -> object:
    """The code that a command ends the process with."""
    with pytest.raises(SystemExit) as ending:
        cli.main(list(arguments) if arguments else None)
    return ending.value.code


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--help") == 0
    text = capsys.readouterr().out
    listed = [s.split()[0] for s in text.splitlines() if s.startswith("    ") and s.strip()]
    names = ("fit", "validate", "test", "predict", "select", "report", "experiment", "demo")
    assert set(names) <= set(listed)
    assert cli.main([]) == 0
    assert capsys.readouterr().out == text


def test_version_and_arguments_of_the_process_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"fairprune {lfp.__version__}\n"
    monkeypatch.setattr(sys, "argv", ["fairprune", "--version"])
    assert ended() == 0
    assert capsys.readouterr().out == f"fairprune {lfp.__version__}\n"


@pytest.mark.parametrize(
    ("prune", "expected"),
    [
        ({}, {"quota": "lightning_fairprune.quotas.drop", "score": None}),
        ({"quota": None}, {"quota": None}),
        ({"quota": "lightning_fairprune.quotas.proportional"}, None),
        ({"quota": "mine.fewest"}, None),
        ({"quota": MINIMAX}, None),
        ({"score": "lightning_fairprune.scores.el2n", "keep": "hard"}, None),
        ({"score": "mine.last_loss", "keep": "stratified"}, None),
        ({"group_by": "mine.parity", "logits_fn": "mine.pairs"}, None),
        ({"group_by": 1}, None),
        ({"group_by": "place"}, None),
        ({"warmup_epochs": 0.5, "after": "restart", "resample_every": None}, None),
        ({"dry_run": [0.5, 0.5, 0.5, 0.9]}, None),
    ],
    ids=str,
)
def test_every_argument_can_be_written_and_is_printed_as_written(
    folder: Path,
    prune: dict[str, object],
    expected: dict[str, object] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = list(sys.argv)
    assert ended("fit", "--config", str(config(folder, **prune)), "--print_config") == 0
    assert sys.argv == before
    printed = yaml.safe_load(capsys.readouterr().out)
    callback = printed["trainer"]["callbacks"][0]
    assert callback["class_path"] == "lightning_fairprune.DataPruning"
    for name, value in (prune if expected is None else expected).items():
        assert callback["init_args"][name] == value


def test_a_group_function_is_called_not_taken_for_a_key(folder: Path) -> None:
    kept = fit(config(folder, group_by="mine.parity"))
    labels = users.Blobs().y[kept]
    assert len(kept) == 41
    assert len(labels.unique()) > 1


def test_both_forms_keep_the_same_samples(folder: Path) -> None:
    alone = fit(config(folder, quota=MINIMAX))
    path = config(folder, wrapper=True, quota=MINIMAX)
    assert torch.equal(alone, fit(path, "--trainer.default_root_dir", str(folder / "2")))


def test_saved_config_trains_on_the_same_samples_again(folder: Path) -> None:
    score = {"score": "mine.last_loss", "keep": "hard", "quota": MINIMAX}
    first = fit(config(folder, wrapper=True, **score))
    saved = folder / "out" / "config.yaml"
    again = fit(saved, "--trainer.default_root_dir", str(folder / "again"))
    assert len(first) == 41
    assert torch.equal(first, again)


def test_the_saved_config_says_group_by_as_it_was_given(folder: Path) -> None:
    path = config(folder, group_by=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as users have it, who do not see warnings as errors
        fit(path)
    saved = yaml.safe_load((folder / "out" / "config.yaml").read_text())
    assert saved["trainer"]["callbacks"][0]["init_args"]["group_by"] == 1


def test_a_saved_selection_can_be_named_in_yaml(folder: Path) -> None:
    lfp.select(users.Blobs().y, 30).save(folder / "chosen.safetensors")
    path = config(folder, wrapper=True)
    content = yaml.safe_load(path.read_text())
    content["trainer"]["callbacks"] = []
    content["data"]["init_args"]["selection"] = "chosen.safetensors"
    path.write_text(yaml.safe_dump(content))
    assert cli.main(["fit", "--config", str(path)]) == 0


def test_a_model_with_its_own_loaders_needs_no_data(folder: Path) -> None:
    path = config(folder)
    content = yaml.safe_load(path.read_text())
    del content["data"]
    content["model"] = {"class_path": "mine.WithLoaders"}
    path.write_text(yaml.safe_dump(content))
    assert len(fit(path)) == 41


def test_an_impossible_argument_is_told_in_our_words(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"`density` must be in \(0, 1\], got 1.5"):
        cli.main(["fit", "--config", str(config(folder, density=1.5))])


def test_demo_gets_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("demo", "--density", "fit") == 2
    assert "usage: fairprune demo" in capsys.readouterr().err


def test_the_callback_only_example_trains(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    epochs = ["--trainer.max_epochs", "12"]
    assert cli.main(["fit", "--config", "callback_only.yaml", *epochs]) == 0
    assert "\nworst  0." in capsys.readouterr().out
    assert len(list(folder.glob("runs/**/config.yaml"))) == 1
