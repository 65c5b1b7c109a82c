"""What goes wrong with Lightning's ModelPruning, each shown on it, in its release 2.6.

That WeightPruning is without it is in test_weight_pruning.py, defect 11 (masks that differ between ranks) in
test_weight_pruning_resume.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelPruning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from users import Blobs, Data

pytestmark = [
    pytest.mark.skipif(
        not lightning.__version__.startswith("2.6."), reason="shown on Lightning 2.6"
    ),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]


class Net(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(users.DIM, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Linear(24, users.NUM_CLASSES),
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


LINEAR = (0, 3)


def sparsity(module: Any) -> float:
    """Zeros among the weights of the linear layers that the step computes with."""
    weights = [module.net[k].weight for k in LINEAR]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def theirs(**options: Any) -> ModelPruning:
    """On the linear weights alone, unless the defaults are what is shown."""
    quiet = {"use_lottery_ticket_hypothesis": False, "parameter_names": ["weight"]}
    return OnLinear(options.pop("pruning_fn", "l1_unstructured"), **(quiet | options))


class OnLinear(ModelPruning):
    def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
        return [(m, n) for m, n in parameters_to_prune if isinstance(m, nn.Linear)]


class Sparsity(Callback):
    """After each batch, in each validation, at the end of each epoch."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.validations: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.batches.append(sparsity(module))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.validations.append(sparsity(module))


def fit(*callbacks: Any, model: Any = None, resume: Any = None, **options: Any) -> Any:
    pl.seed_everything(1, verbose=False)
    model = Net() if model is None else model
    trainer = users.trainer(callbacks=list(callbacks), **({"max_epochs": 5} | options))
    trainer.fit(model, datamodule=Data(), ckpt_path=resume)
    return model


def saved(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, **options)


# ------------------------------------------------------------------------ 1. resuming loses the masks


def test_1_theirs_loses_the_masks_when_resumed(tmp_path: Path) -> None:
    prune = theirs(amount=0.3)
    fit(prune, saved(tmp_path), max_epochs=3, enable_checkpointing=True)
    state = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)["state_dict"]
    weights = [state[f"net.{k}.weight"] for k in LINEAR]
    assert sum(int((w == 0).sum()) for w in weights) / 288 > 0.6
    seen = Sparsity()
    fit(theirs(amount=0.3), seen, resume=str(tmp_path / "epoch=2.ckpt"), max_epochs=4)
    assert seen.batches[0] < 0.01  # after one step


# --------------------------------------------- 2. checkpoints that fit nothing but another ModelPruning


def test_2_theirs_cannot_be_loaded(tmp_path: Path) -> None:
    prune = theirs(amount=0.3, make_pruning_permanent=False)
    fit(prune, saved(tmp_path), max_epochs=2, enable_checkpointing=True)
    path = tmp_path / "epoch=1.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    with pytest.raises(RuntimeError, match=r"net\.0\.weight_mask"):
        Net().load_state_dict(state)
    again = theirs(amount=0.3, make_pruning_permanent=False)
    with pytest.raises(RuntimeError, match=r"net\.0\.weight_mask"):
        fit(again, resume=str(path), max_epochs=3)


# --------------------------------------- 3. the metric of a checkpoint belongs to other weights than it


def val_loss(model: Any) -> float:
    model.eval()
    val = Blobs(60, seed=1)
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(x), y)
            for x, y in zip(val.x.split(20), val.y.split(20), strict=True)
        ]
    return float(sum(losses)) / 3


def scores(folder: Path) -> list[tuple[float, float]]:
    """What each checkpoint says of its weights and what they do."""
    found = []
    for path in sorted(folder.glob("*.ckpt")):
        checkpoint = torch.load(path, weights_only=True)
        state = next(v for k, v in checkpoint["callbacks"].items() if "ModelCheckpoint" in k)
        model = Net()
        model.load_state_dict(checkpoint["state_dict"])
        found.append((float(state["current_score"]), val_loss(model)))
    return found


def test_3_theirs_monitors_weights_that_are_not_saved(tmp_path: Path) -> None:
    fit(theirs(amount=0.5), saved(tmp_path, monitor="val_loss"), enable_checkpointing=True)
    assert max(is_ - said for said, is_ in scores(tmp_path)) > 0.05


# ------------------------------------------------------------- 4. pruned after the last epoch of training


def test_4_theirs_prunes_after_the_last_step() -> None:
    seen = Sparsity()
    model = fit(theirs(amount=0.2), seen)
    assert sparsity(model) > seen.batches[-1] + 0.05


# ------------------------------------------------------ 5. the default rewinds, so nothing trained is left


def test_5_theirs_ends_with_the_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU. The copy to the device that it is left to there is made here by hand."""
    copied = ModelPruning._copy_param

    def on_gpu(new: nn.Module, old: nn.Module, name: str) -> None:
        copied(new, old, name)
        dst = getattr(new, name + "_orig", None)
        (dst if dst is not None else getattr(new, name)).data = getattr(old, name).data.clone()

    monkeypatch.setattr(ModelPruning, "_copy_param", staticmethod(on_gpu))
    prune = OnLinear("l1_unstructured", amount=0.2, parameter_names=["weight"])  # by default, LTH
    pl.seed_everything(1, verbose=False)
    initial = Net().state_dict()
    model = fit(prune)
    for k in LINEAR:
        weight = model.net[k].weight.detach()
        assert torch.equal(weight[weight != 0], initial[f"net.{k}.weight"][weight != 0])


# ------------------------------------------------------------------------ 6. a rewind that does nothing


def test_6_theirs_does_not_rewind() -> None:
    prune = theirs(amount=0.2, use_lottery_ticket_hypothesis=True)
    pl.seed_everything(1, verbose=False)
    initial = Net().state_dict()
    model = fit(prune)
    for k in LINEAR:
        weight = model.net[k].weight.detach()
        assert not torch.equal(weight[weight != 0], initial[f"net.{k}.weight"][weight != 0])


# --------------------------------------- 7. biases and normalisation pruned, 8. and layers emptied for them


def test_7_theirs_prunes_biases_and_normalisation() -> None:
    prune = ModelPruning("l1_unstructured", use_lottery_ticket_hypothesis=False)
    model = fit(prune, max_epochs=1)
    assert (model.net[1].bias == 0).float().mean() > 0.5


def test_8_theirs_empties_layers_with_its_defaults() -> None:
    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(users.DIM, 24), nn.BatchNorm1d(24), nn.ReLU(),
                nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU(),
                nn.Linear(24, users.NUM_CLASSES),
            )  # fmt: skip

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    prune = ModelPruning("l1_unstructured", use_lottery_ticket_hypothesis=False)
    model = fit(prune, model=Wide(), max_epochs=5)
    assert (model.net[3].weight == 0).all()


# ---------------------------------------------------------- 9. an amount that is not the sparsity in the end


def test_9_theirs_compounds() -> None:
    model = fit(theirs(amount=0.3), max_epochs=3)
    assert sparsity(model) == pytest.approx(1 - 0.7**3, abs=0.01)


# --------------------------------------------------------------------------- 10. one callback, several fits


def test_10_theirs_cannot_be_used_again() -> None:
    prune, model = theirs(amount=0.3, use_lottery_ticket_hypothesis=True), Net()
    prune._make_pruning_permanent = False  # as in a fit that was interrupted
    fit(prune, model=model, max_epochs=2)
    with pytest.raises(RuntimeError, match="created explicitly by the user"):
        fit(prune, model=model, max_epochs=2)


# ---------------------------------------------------------------------------------------- 12. YAML


def test_12_theirs_takes_modules_not_names() -> None:
    """YAML has no modules to give it."""
    with pytest.raises(MisconfigurationException, match="should either be list of tuple"):
        fit(ModelPruning("l1_unstructured", parameters_to_prune=[("net.0", "weight")]))  # type: ignore[list-item]


# --------------------------------------------------------------------------- a criterion that sees gradients


def test_13_theirs_ranks_by_weights_alone() -> None:
    import inspect

    from torch.nn.utils.prune import BasePruningMethod

    seen: list[set[str]] = []

    class Look(BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def __init__(self, amount: float) -> None:
            pass

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            seen.append({*inspect.signature(self.compute_mask).parameters})
            assert t.ndim == 1  # the weights of all layers in a row, no model, loss or data
            return default_mask

    fit(theirs(pruning_fn=Look), max_epochs=1)
    assert seen == [{"t", "default_mask"}]
