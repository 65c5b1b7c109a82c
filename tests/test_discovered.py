"""Groups that a fit discovers: as good as known ones, resumed to the last bit, the same on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import ranks
import torch
import users
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp
from lightning_fairprune.groups import Discovered
from lightning_fairprune.quotas import Minimax, balanced

N, FEW = 240, 24
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled"),
]


class Grounds(pl.LightningDataModule):
    """Two classes, told apart by three features of the ground and weakly by one of their own; 24 samples of class 1 are on
    the ground of class 0. In the validation set it is half of the class."""

    def __init__(self, *, hidden: bool = True, shuffle: bool = False) -> None:
        super().__init__()
        self.hidden, self.shuffle = hidden, shuffle

    def part(self, n: int, few: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        label = torch.arange(n) % 2
        odd = torch.zeros(n, dtype=torch.bool)
        if self.hidden:
            odd[1 : 2 * few : 2] = True
        x = 0.2 * torch.randn(n, users.DIM, generator=generator)
        ground = (label.bool() & ~odd).float()
        x[:, 1:4] += 2 * ground[:, None] - 1
        x[:, 4] += 0.4 * (2 * label - 1)
        x[:, 0] = torch.arange(n) / 1000
        return TensorDataset(x, label, label + odd)

    def setup(self, stage: str) -> None:
        self.train, self.val = self.part(N, FEW, 0), self.part(100, 25, 1)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, 20, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 30, shuffle=self.shuffle)


class Model(users.Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


RULES: dict[str, Any] = {
    "minimax": Minimax,
    "balanced": lambda: balanced,
    "drop": lambda: lfp.quotas.drop,
}


def run(
    rule: str = "minimax",
    resume: str | None = None,
    folder: str | None = None,
    data: dict[str, bool] | None = None,
    trainer: dict[str, Any] | None = None,
    known: bool = False,
    warmup: int = 2,
    checkpoint: dict[str, Any] | None = None,
    **prune: Any,
) -> dict[str, Any]:
    """Returns what a warm-up and three pruned epochs decided, and the weights at the end."""
    pl.seed_everything(1, verbose=False)
    group_by = 2 if known else Discovered(min_size=10)
    prune = {"quota": RULES[rule](), "group_by": group_by} | prune
    callback, model = lfp.DataPruning(0.5, warmup, **prune), Model(lr=0.05)
    more: list[Any] = []
    if folder is not None:
        more = [pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, **(checkpoint or {}))]
    fit = users.trainer(
        max_epochs=warmup + 3,
        callbacks=[callback, *more],
        enable_checkpointing=folder is not None,
        **(trainer or {}),
    )
    fit.fit(model, Grounds(**(data or {})), ckpt_path=resume)
    record, selection = callback.record, callback.selection
    assert record is not None
    assert selection is not None
    return {
        "group": record.target.tolist(),
        "classes": None if record.group_class is None else record.group_class.tolist(),
        "kept": selection.indices.tolist(),
        "quota": [estimate.quota.tolist() for estimate in record.history],
        "recall": str([estimate.recall for estimate in record.history]),
        "weights": [p.tolist() for p in model.parameters()],
    }


def hidden() -> torch.Tensor:
    data = Grounds()
    data.setup("fit")
    return data.train.tensors[2]


@pytest.mark.parametrize("rule", RULES)
def test_the_hidden_group_gets_a_quota_of_its_own(rule: str) -> None:
    found, known = run(rule, recall_window=1), run(rule, recall_window=1, known=True)
    assert found["classes"] == [0, 1, 1]
    assert found["group"] == hidden().tolist() == known["group"]
    if rule == "balanced":
        assert found == known | {"classes": found["classes"]}
        return
    # Each sample of the validation set is in its group, so the rest of the fit is the same as well.
    assert found == known | {"classes": found["classes"]}
    quota = found["quota"][0]
    assert quota[2] / FEW > quota[1] / (N // 2 - FEW)


def test_without_a_hidden_group_the_fit_is_that_without_groups() -> None:
    data = {"hidden": False}
    assert run(data=data) == run(data=data, group_by=None)


@pytest.mark.parametrize("after", ["continue", "restart"])
def test_a_resumed_fit_decides_the_same(after: str, tmp_path: Path) -> None:
    full = run(folder=str(tmp_path), after=after, update_every=1)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == 5
    for path in checkpoints[:4]:  # by epoch
        assert run(resume=str(path), after=after, update_every=1) == full, path


@pytest.mark.filterwarnings("ignore:the checkpoint was taken on the last batch of epoch 3")
def test_a_fit_that_is_resumed_before_it_validates(tmp_path: Path) -> None:
    options: Any = {"warmup": 4, "trainer": {"check_val_every_n_epoch": 2}}
    last_batch = {"every_n_train_steps": 4 * N // 20, "save_on_train_epoch_end": False}
    full = run(folder=str(tmp_path), checkpoint=last_batch, **options)
    resumed = run(resume=str(next(tmp_path.glob("epoch=3-*.ckpt"))), **options)
    # The recalls of the groups come from a pass, so nothing is lost with that validation.
    assert resumed == full


def test_two_ranks_find_the_same(tmp_path: Path) -> None:
    ddp = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "use_distributed_sampler": True}
    ((first, second),) = ranks.launch(__file__, [{"trainer": ddp}], tmp_path)
    assert first == second
    assert first["group"] == hidden().tolist()


def test_the_record_has_the_classes_of_the_groups(tmp_path: Path) -> None:
    target = torch.tensor([0, 0, 1, 2])
    kept = lfp.select(target, torch.tensor([1, 1, 1]))
    record = lfp.PruningRecord(kept, target, group_class=torch.tensor([0, 1, 1]))
    record.save(tmp_path)
    read = lfp.PruningRecord.load(tmp_path / "pruning.safetensors")
    assert read.group_class is not None
    assert read.group_class.tolist() == [0, 1, 1]
    assert read.by_group
    settings = {"group_by": "Discovered(most=2)"}
    assert not lfp.PruningRecord(kept, target, settings=settings).by_group


def test_written_in_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    path = "lightning_fairprune.groups.Discovered"
    for given, expected in (
        ({"class_path": path}, Discovered()),
        ({"class_path": path, "init_args": {"most": 3, "layer": "net.2"}}, Discovered(most=3, layer="net.2")),
        ("place", "place"),
        (1, 1),
        (None, None),
    ):  # fmt: skip
        parser = ArgumentParser()
        parser.add_class_arguments(lfp.DataPruning, "prune")
        config = parser.parse_object(
            {"prune": {"density": 0.4, "warmup_epochs": 2, "group_by": given}}
        )
        text = parser.dump(config, skip_none=False)
        callback = parser.instantiate_classes(parser.parse_string(text)).prune
        assert callback.settings.group_by == expected


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": {"shuffle": True}}, "must be a DataLoader with shuffle=False .* with RandomSampler"),
        ({"quota": None}, "`group_by` discovers groups for the quotas, but there is no `quota`"),
        ({"group_by": Discovered(layer="nothing")}, "`layer` must be one of net, net.0"),
        ({"group_by": Discovered(dataloader="plain")}, "`group_by`: dataloader='plain' must be a method of"),
    ],
)  # fmt: skip
def test_errors_before_training(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(**change)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="`most` must be at least 1"):
        Discovered(most=0)


if __name__ == "__main__":
    ranks.main(run)
