"""A resumed fit prunes the same weights and ends with the same, to the last bit; so do the ranks.

As a script it is one of the ranks that `ranks.launch` starts.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import pytest
import ranks
import torch
import users
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelPruning
from torch import nn

from lightning_fairprune import DataPruning, FairPruneDataModule, criteria, masks
from lightning_fairprune.callbacks.weight_pruning import WeightPruning
from lightning_fairprune.masks import schedules

pytestmark = [
    # The resumed fits save nothing, so they have no ModelCheckpoint.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    # Plain loaders repeat batches when a fit goes on inside an epoch; one of ours does not.
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]
TOTAL = 8 * 24 + 24 * 12
GEOMETRIC: dict[str, Any] = {"schedule": "geometric"}
PRUNE: dict[str, dict[str, Any]] = {
    "gradual": {"criterion": "gradient", "schedule": "cubic", "start": 1, "end": 3},
    "one_shot": {"criterion": "undecayed", "schedule": "one_shot", "start": 2, "end": 4},
    "rewind": GEOMETRIC | {"criterion": "magnitude", "start": 2, "end": 4, "every": 2, "rewind": 1},
    "steps": GEOMETRIC
    | {"criterion": "random", "interval": "step", "start": 5, "end": 45, "every": 10}
    | {"rewind": "start"},
}
SPARSITY = 0.87


class Net(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(users.DIM, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Linear(24, 12),
            nn.ReLU(),
            nn.Linear(12, users.NUM_CLASSES),
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Zeros(Callback):
    """Weights that are zero at the end of each step."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        weights = (module.net[0].weight, module.net[3].weight)
        self.counts[trainer.global_step] = sum(int((w == 0).sum()) for w in weights)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    whole = b"".join(value.detach().numpy().tobytes() for value in tensors.values())
    return hashlib.sha256(whole).hexdigest()


def drawn(model: nn.Module) -> Any:
    return {n: torch.rand_like(p) for n, p in model.named_parameters()}


def run(
    *,
    prune: dict[str, Any],
    checkpoint: dict[str, Any] | None = None,
    folder: str | None = None,
    resume: str | None = None,
    unsynced: bool = False,
    batch_size: int = 10,
    **trainer: Any,
) -> dict[str, Any]:
    """Fits once; what came out."""
    if unsynced:
        unseed()
    else:
        pl.seed_everything(1, verbose=False)
    options = {"sparsity": SPARSITY} | prune
    options["criterion"] = drawn if unsynced else getattr(criteria, options["criterion"])
    options["schedule"] = getattr(schedules, options["schedule"])
    callback, zeros = WeightPruning(**options), Zeros()
    callbacks: list[Any] = [callback, zeros]
    if checkpoint is not None:
        name = {"filename": "{epoch}-{step}", "save_top_k": -1}
        callbacks.append(ModelCheckpoint(folder, **(name | checkpoint)))
    # Without a loss of data; only for its loader, which goes on inside an epoch where it was.
    callbacks.append(DataPruning(1.0, 1, quota=None))
    model = Net()
    t = users.trainer(
        callbacks=callbacks, enable_checkpointing=checkpoint is not None, max_epochs=6, **trainer
    )
    t.fit(model, datamodule=FairPruneDataModule(users.Data(104, batch_size)), ckpt_path=resume)
    return {
        "rank": t.global_rank,
        "history": [[h.epoch, h.step, round(h.total * TOTAL), h.layers] for h in callback.history],
        "masks": digest(callback.masks),
        "weights": digest(model.state_dict()),
        "zeros": zeros.counts,
        "sparsity": masks.sparsity_of(callback.masks).total,
    }


class Reader(users.Model):
    """A recurrent network, whose first step is observed on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 12, batch_first=True)
        self.last = nn.Linear(12, users.NUM_CLASSES)
        del self.net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.lstm(x.unsqueeze(2))[0][:, -1])


def recurrent(**options: Any) -> dict[str, Any]:
    pl.seed_everything(1, verbose=False)
    callback = WeightPruning(criteria.gradient, 0.8, start=1, end=2)
    trainer = users.trainer(callbacks=[callback], max_epochs=3, **options)
    model = Reader()
    trainer.fit(model, datamodule=users.Data(n=104))
    zeros = sum(int((p == 0).sum()) for p in model.lstm.parameters())
    return {
        "rank": trainer.global_rank,
        "weights": digest(model.state_dict()),
        "zeros": zeros,
        "masks": list(callback.masks),
        "left": "training_step" in vars(model),
    }


def planned(name: str) -> list[int]:
    prune = PRUNE[name]
    count = (prune["end"] - prune["start"]) // prune.get("every", 1) + 1
    targets = getattr(schedules, prune["schedule"])(SPARSITY, count)
    return sorted({round(s * TOTAL) for s in targets})


def step(path: Path) -> int:
    return int(path.stem.split("step=")[1].split("-")[0])


def saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ckpt"), key=step)


def check(full: dict[str, Any], resumed: dict[str, Any], what: Any) -> None:
    for key in ("history", "masks", "weights", "sparsity"):
        assert full[key] == resumed[key], (what, key)
    for at, count in resumed["zeros"].items():
        assert full["zeros"][at] == count, (what, at)


@pytest.mark.parametrize("when", ["epoch_end", "validation_end", "steps"])
@pytest.mark.parametrize("name", PRUNE)
def test_from_every_checkpoint(name: str, when: str, tmp_path: Path) -> None:
    """At the end of every epoch; and before, at and after every pruning."""
    checkpoint: dict[str, Any] = {
        "epoch_end": {"save_on_train_epoch_end": True},
        "validation_end": {"save_on_train_epoch_end": False},
        "steps": {"every_n_train_steps": 1, "save_on_train_epoch_end": False},
    }[when]
    full = run(prune=PRUNE[name], checkpoint=checkpoint, folder=str(tmp_path))
    assert [removed for _, _, removed, _ in full["history"]] == planned(name)
    assert full["sparsity"] == round(SPARSITY * TOTAL) / TOTAL
    paths = saved(tmp_path)
    if when == "steps":
        prunings = [h[1] for h in full["history"]]
        wanted = {n + d for n in prunings for d in (-1, 0, 1)} | {1, 65}
        paths = [path for path in paths if step(path) in wanted]
        assert len(paths) >= len(prunings) * 3
    else:
        assert len(paths) == 6
    for path in paths[:-1] if when != "steps" else paths:
        check(full, run(prune=PRUNE[name], resume=str(path)), path.name)


def test_a_checkpoint_is_small_and_plain(tmp_path: Path) -> None:
    prune = PRUNE["gradual"]
    run(prune=prune, checkpoint={"save_on_train_epoch_end": True}, folder=str(tmp_path))
    state = torch.load(saved(tmp_path)[-1], weights_only=True)
    assert state["state_dict"].keys() == Net().state_dict().keys()
    Net().load_state_dict(state["state_dict"])  # strict
    own = state["callbacks"]["WeightPruning"]
    assert sum(bits.numel() for bits, _ in own["masks"].values()) == TOTAL // 8
    assert own["snapshot"] is None


@pytest.mark.filterwarnings("ignore:WeightPruning follows the plan of the checkpoint")
def test_a_longer_training_keeps_the_plan(tmp_path: Path) -> None:
    """Fractions are those of the training that began, not of the one that goes on."""
    prune = {"criterion": "magnitude", "schedule": "cubic", "start": 0.4, "end": 0.7}
    run(prune=prune, checkpoint={"save_on_train_epoch_end": True}, folder=str(tmp_path))
    path = saved(tmp_path)[1]
    pl.seed_everything(1, verbose=False)
    callback = WeightPruning(criteria.magnitude, SPARSITY, start=0.4, end=0.7)
    more = [callback, DataPruning(1.0, 1, quota=None)]
    users.trainer(callbacks=more, max_epochs=12).fit(
        Net(), datamodule=FairPruneDataModule(users.Data(n=104)), ckpt_path=str(path)
    )
    assert [h.epoch for h in callback.history] == [2, 3, 4]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"sparsity": 0.5}, "`sparsity`=0.5 where the checkpoint has 0.87"),
        ({"end": 4}, "`end`=4 where the checkpoint has 3"),
        ({"schedule": "geometric"}, "`schedule`='geometric' where the checkpoint has 'cubic'"),
        ({"rewind": 0}, "`rewind`=0 where the checkpoint has None"),
        (
            {"exclude": ["net.0.*"]},
            "has masks of net.0.weight, net.3.weight, but this fit prunes net.3",
        ),
    ],
)
def test_other_arguments_are_refused(changed: dict[str, Any], match: str, tmp_path: Path) -> None:
    prune = PRUNE["gradual"]
    run(prune=prune, checkpoint={"save_on_train_epoch_end": True}, folder=str(tmp_path))
    with pytest.raises(ValueError, match=match):
        run(prune=prune | changed, resume=str(saved(tmp_path)[2]))


def test_from_a_checkpoint_without_the_callback(tmp_path: Path) -> None:
    """A dense training that goes on sparse; with a rewind it cannot, if that is past."""
    pl.seed_everything(1, verbose=False)
    save = ModelCheckpoint(tmp_path, filename="{epoch}-{step}", save_top_k=-1)
    trainer = users.trainer(callbacks=[save], max_epochs=2, enable_checkpointing=True)
    trainer.fit(Net(), datamodule=users.Data(n=104))
    path = str(saved(tmp_path)[-1])
    for rewind in (None, 1):
        callback = WeightPruning(sparsity=SPARSITY, start=2, end=3, rewind=rewind)
        trainer = users.trainer(callbacks=[callback], max_epochs=5)
        if rewind:
            with pytest.raises(ValueError, match="epoch 1, but the checkpoint lacks its weights"):
                trainer.fit(Net(), datamodule=users.Data(n=104), ckpt_path=path)
        else:
            trainer.fit(Net(), datamodule=users.Data(n=104), ckpt_path=path)
            assert [h.epoch for h in callback.history] == [2, 3]


def unseed() -> None:
    """As in a process that never called seed_everything: every rank has a random state of its own."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.seed()


def theirs(**_: Any) -> dict[str, Any]:
    """Lightning's own callback with random masks, without a seed: what the ranks then train."""
    unseed()
    model = Net()
    prune = ModelPruning(
        "random_unstructured",
        parameters_to_prune=[(model.net[0], "weight"), (model.net[3], "weight")],
        amount=0.5,
        use_lottery_ticket_hypothesis=False,
        make_pruning_permanent=False,
    )
    trainer = users.trainer(callbacks=[prune], max_epochs=2, devices=2, strategy="ddp")
    trainer.fit(model, datamodule=users.Data(n=104))
    chosen = [model.net[k].weight_mask.tolist() for k in (0, 3)]
    return {"rank": trainer.global_rank, "masks": chosen}


def refused(**_: Any) -> dict[str, Any]:
    """A criterion that reads batches and does not sum over the ranks."""

    def own_part(model: Any, batches: Any, loss_fn: Any) -> Any:
        total = sum(float(inputs[0][0].sum()) for inputs, _ in batches)
        generator = torch.Generator().manual_seed(int(total * 1e4))
        return {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}

    callback = WeightPruning(own_part, 0.5, start=1, end=1)
    trainer = users.trainer(callbacks=[callback], max_epochs=2, devices=2, strategy="ddp")
    found = ""
    try:
        trainer.fit(Net(), datamodule=users.Data(n=104))
    except RuntimeError as error:
        found = str(error)
    return {"rank": trainer.global_rank, "error": found}


def fit(what: str = "run", **setting: Any) -> dict[str, Any]:
    kinds = {"run": run, "theirs": theirs, "refused": refused, "recurrent": recurrent}
    return kinds[what](**setting)


DDP = {"devices": 2, "strategy": "ddp", "batch_size": 5}


def test_two_ranks(tmp_path: Path) -> None:
    names = ["gradual", "one_shot", "rewind", "steps"]
    checkpoint = {"save_on_train_epoch_end": True}
    fits: list[dict[str, Any]] = [
        {"prune": PRUNE[n], "checkpoint": checkpoint, "folder": str(tmp_path / n), **DDP}
        for n in names
    ]
    # Ranks with other random states, and a criterion that takes from them.
    fits.append({"prune": PRUNE["gradual"], "unsynced": True, **DDP})
    fits += [{"what": "theirs"}, {"what": "refused"}]
    fits.append({"what": "recurrent", "devices": 2, "strategy": "ddp"})
    (tmp_path / "first").mkdir()
    *full, unsynced, by_lightning, errors, read = ranks.launch(__file__, fits, tmp_path / "first")
    for (one, other), name in zip(full, names, strict=True):
        for key in ("history", "masks", "weights", "zeros"):
            assert one[key] == other[key], (name, key)
        assert one["sparsity"] == round(SPARSITY * TOTAL) / TOTAL
    assert read[0]["weights"] == read[1]["weights"]
    assert read[0]["masks"] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert [(r["zeros"], r["left"]) for r in read] == [(round(0.8 * 4 * 12 * 13), False)] * 2
    assert unsynced[0]["masks"] == unsynced[1]["masks"]
    assert unsynced[0]["weights"] == unsynced[1]["weights"]
    # Defect 11 of Lightning's callback: every rank trains a network of its own.
    if lightning.__version__.startswith("2.6."):
        assert by_lightning[0]["masks"] != by_lightning[1]["masks"]
    for error in errors:
        assert "the ranks would remove different weights" in error["error"]

    again, paths = [], []
    for name, pair in zip(names, full, strict=True):
        epochs = {epoch for epoch, *_ in pair[0]["history"]}
        for path in saved(tmp_path / name)[:-1]:
            if int(path.stem.split("epoch=")[1].split("-")[0]) + 1 in epochs:
                again.append({"prune": PRUNE[name], "resume": str(path), **DDP})
                paths.append((pair, path))
    (tmp_path / "second").mkdir()
    assert len(paths) >= 9
    found = ranks.launch(__file__, again, tmp_path / "second")
    for (pair, path), resumed in zip(paths, found, strict=True):
        for rank in (0, 1):
            check(pair[rank], resumed[rank], path)


def timed(at: Path | None, max_epochs: int = 6, **prune: Any) -> WeightPruning:
    """Fits from a checkpoint after epoch 3, or up to it."""
    callback = WeightPruning(**({"sparsity": SPARSITY} | prune))
    epochs = {"min_epochs": 3, "max_epochs": max_epochs}
    saves = ModelCheckpoint(at, filename="{epoch}", save_top_k=-1)
    resume = at / "epoch=2.ckpt" if at is not None and (at / "epoch=2.ckpt").exists() else None
    callbacks = [callback] if resume else [callback, saves]
    t = users.trainer(callbacks=callbacks, enable_checkpointing=resume is None, **epochs)
    t.fit(Net(), datamodule=users.Data(104, 10), ckpt_path=resume)
    return callback


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_the_same_plan_may_be_given_otherwise(tmp_path: Path) -> None:
    full = timed(tmp_path, start=2, end=4).history
    assert [h.epoch for h in full] == [2, 3, 4]
    for same in (
        {"start": 1 / 3, "end": 2 / 3},
        {"start": 2, "end": 2 / 3, "every": 1, "sparsity": SPARSITY},
    ):
        resumed = timed(tmp_path, **same).history
        assert [(h.epoch, h.step, h.total) for h in resumed] == [
            (h.epoch, h.step, h.total) for h in full
        ]
    with pytest.raises(ValueError, match=r"WeightPruning has `start`=1, `end`=5 where .* 2, 4"):
        timed(tmp_path, start=1, end=5)
    with pytest.raises(ValueError, match=r"WeightPruning has `sparsity`=0.5 where"):
        timed(tmp_path, start=2, end=4, sparsity=0.5)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_fractions_of_another_length_keep_the_plan_and_say_so(tmp_path: Path) -> None:
    plan = {"start": 1 / 3, "end": 2 / 3}
    full = timed(tmp_path, **plan).history
    with pytest.warns(
        UserWarning, match=r"checkpoint, which prunes up to epoch 4; .* up to epoch 8"
    ):
        resumed = timed(tmp_path, max_epochs=12, **plan).history
    assert [h.epoch for h in resumed] == [h.epoch for h in full] == [2, 3, 4]


if __name__ == "__main__":
    ranks.main(fit)
