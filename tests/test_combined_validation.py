"""Validation by a CombinedLoader: right for each loader, or one sentence before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Subset

import lightning_fairprune as lfp

MODES = ["min_size", "max_size", "max_size_cycle"]
FORMS: dict[str, Any] = {
    "list": list,
    "dict": lambda loaders: dict(zip("ab", loaders, strict=False)),
}


class Data(users.Data):
    def __init__(self, mode: str, form: str, loaders: int = 2) -> None:
        super().__init__()
        self.mode, self.form, self.loaders = mode, form, loaders

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.parts = [self.val, Subset(self.val, range(25))][: self.loaders]

    def val_dataloader(self) -> Any:
        loaders = FORMS[self.form]([DataLoader(part, 20) for part in self.parts])
        return CombinedLoader(loaders, self.mode)

    test_dataloader = val_dataloader


class Model(users.Model):
    """Takes a batch, or the batches of all loaders."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if isinstance(batch, dict):
            batch = list(batch.values())
        batches = [batch] if isinstance(batch[0], torch.Tensor) else batch
        for x, y in (b for b in batches if b is not None):
            F.cross_entropy(self(x), y)

    test_step = validation_step


def fit(data: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    prune = lfp.DataPruning(0.4, 1, **({"quota": lfp.quotas.drop} | options.pop("prune", {})))
    monitor, probe = lfp.RecallMonitor(), users.Probe()
    with_monitor = [monitor] if options.pop("monitored", True) else []
    trainer = users.trainer(callbacks=[prune, *with_monitor, probe], max_epochs=3, **options)
    model = Model()
    try:
        trainer.fit(model, datamodule=data)
    except ValueError as error:
        assert not probe.samples, "after training started"
        raise error
    return prune, monitor, trainer, model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sanity", [0, 2])
def test_sequential_counts_each_loader(form: str, sanity: int) -> None:
    data = Data("sequential", form)
    prune, monitor, _, model = fit(data, num_sanity_val_steps=sanity)
    names = ["val", "val/1"] if form == "list" else ["val/a", "val/b"]
    assert list(monitor.counts) == names
    for part, counts in zip(data.parts, monitor.counts.values(), strict=True):
        x, y = torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part])
        right = model.eval()(x).argmax(1) == y
        assert counts.support.tolist() == y.bincount(minlength=4).tolist()
        assert counts.tp.tolist() == y[right].bincount(minlength=4).tolist()
    assert int(prune.quota.sum()) == 41
    of_list = users.Data()
    of_list.val_dataloader = lambda: [DataLoader(part, 20) for part in data.parts]  # type: ignore[method-assign]
    expected, *_ = fit(of_list, num_sanity_val_steps=sanity)
    assert torch.equal(prune.quota, expected.quota)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", MODES)
def test_one_loader_is_right_in_every_mode(mode: str, form: str) -> None:
    data = Data(mode, form, loaders=1)
    prune, monitor, *_ = fit(data)
    plain, expected, *_ = fit(users.Data())
    assert torch.equal(prune.quota, plain.quota)
    (found,), (counts,) = monitor.counts.values(), expected.counts.values()
    assert torch.equal(found.tp, counts.tp)
    assert torch.equal(found.support, counts.support)


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", MODES)
def test_mixed_loaders_are_refused_before_training(
    mode: str, form: str, monitored: bool, sanity: int
) -> None:
    with pytest.raises(
        ValueError, match=f"mode '{mode}' gives the validation step one batch of each"
    ):
        fit(Data(mode, form), monitored=monitored, num_sanity_val_steps=sanity)


@pytest.mark.parametrize("mode", MODES)
def test_mixed_loaders_without_recalls_do_not_matter(mode: str) -> None:
    prune, *_ = fit(Data(mode, "dict"), monitored=False, prune={"quota": lfp.quotas.balanced})
    assert int(prune.quota.sum()) == 41


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_alone(stage: str) -> None:
    trainer = users.trainer(callbacks=[lfp.RecallMonitor()])
    run = getattr(trainer, stage)
    name = "test" if stage == "test" else "validation"
    with pytest.raises(ValueError, match=f"'min_size' gives the {name} step one batch of each"):
        run(Model(), datamodule=Data("min_size", "list"), verbose=False)
    run(Model(), datamodule=Data("sequential", "list"), verbose=False)


def test_loaders_in_a_nested_collection_have_numbers() -> None:
    data = Data("sequential", "list")
    data.val_dataloader = lambda: CombinedLoader(  # type: ignore[method-assign]
        {"a": [DataLoader(part, 20) for part in data.parts]}, "sequential"
    )
    _, monitor, *_ = fit(data)
    assert list(monitor.counts) == ["val", "val/1"]


def test_loader_that_is_loaded_late_is_checked_before_it_counts() -> None:
    prune = lfp.DataPruning(0.4, 2, recall_dataloader=3)
    trainer = users.trainer(callbacks=[prune], max_epochs=4, check_val_every_n_epoch=2)
    with pytest.raises(
        ValueError, match=r"loader 3 \(`recall_dataloader`\), but there are 1 loaders"
    ):
        trainer.fit(users.Model(), datamodule=users.Data())


@pytest.mark.parametrize("mode", MODES)
def test_class_weights_of_mixed_batches_are_refused_before_training(mode: str) -> None:
    weighting, probe = lfp.ClassWeighting(loss=None), users.Probe()
    trainer = users.trainer(callbacks=[weighting, probe], max_epochs=2)
    with pytest.raises(
        ValueError, match=f"a CombinedLoader of mode '{mode}' gives the validation step"
    ):
        trainer.fit(Model(), datamodule=Data(mode, "list"))
    assert not probe.samples
