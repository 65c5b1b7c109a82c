"""Code in the documentation runs, and links in it lead somewhere."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import users
import yaml

import lightning_fairprune as lfp

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


class QuietTrainer(L.Trainer):
    """The Trainer of the pages, with fewer epochs and nothing written."""

    def __init__(self, max_epochs: int, **options: Any) -> None:
        super().__init__(
            max_epochs=min(max_epochs, 12),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )


def names(folder: Path) -> dict[str, Any]:
    """What the pages take for granted."""
    blobs = users.Blobs(200)
    seen = lfp.Dynamics(
        target=blobs.y,
        signals={"el2n": torch.rand(3, 200), "correct": torch.rand(3, 200) > 0.5},
    )
    seen.save(folder / "dynamics.safetensors")
    return {
        "L": L,
        "lfp": lfp,
        "torch": torch,
        "DataPruning": lfp.DataPruning,
        "DataLoader": torch.utils.data.DataLoader,
        "Subset": torch.utils.data.Subset,
        "model": users.Model(),
        "query_model": users.Model(),
        "datamodule": users.Data(n=200),
        "train_set": blobs,
        "sizes": torch.bincount(blobs.y),
        "recall": [0.9, 0.8, 0.7, 0.6],
        "logits": torch.randn(200, 4),
        "target": blobs.y,
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(L, "Trainer", QuietTrainer)
    known = names(tmp_path)
    for block in blocks(page, "python"):
        if "self.trainer" in block:
            continue  # a line out of configure_optimizers; tests/test_data_pruning.py runs it
        block = block.replace("15_000", "60").replace("warmup_epochs=40", "warmup_epochs=10")
        block = block.replace("max_epochs=41", "max_epochs=11")
        exec(compile(block, page.name, "exec"), known)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_blocks_name_real_arguments(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for entry in yaml.safe_load(block)["trainer"]["callbacks"]:
            kind = getattr(lfp, entry["class_path"].rsplit(".", 1)[1])
            arguments = dict(entry.get("init_args", {}))
            quota = arguments.pop("quota", None)
            if quota is not None:
                name = quota["class_path"].rsplit(".", 1)[1]
                arguments["quota"] = getattr(lfp.quotas, name)(**quota["init_args"])
            kind(**{name: resolved(value) for name, value in arguments.items()})


def resolved(value: Any) -> Any:
    """What LightningCLI makes of the path of a function."""
    if not str(value).startswith("lightning_fairprune."):
        return value
    return functools.reduce(getattr, value.split(".")[1:], lfp)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        where = (page.parent / target).resolve() if target else page
        assert where.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", where.read_text(), re.MULTILINE)
            assert anchor in {title.lower().replace(" ", "-") for title in titles}, link
