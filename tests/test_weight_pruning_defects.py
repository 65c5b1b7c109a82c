"""What goes wrong with Lightning's ModelPruning, each shown on it, in its release 2.6.

That WeightPruning is without it is in test_weight_pruning.py, defect 11 (masks that differ between ranks) in
test_weight_pruning_resume.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelPruning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from test_weight_pruning import Net, fit, save_all
from torch import nn
from users import Blobs

pytestmark = [
    pytest.mark.skipif(
        not lightning.__version__.startswith("2.6."), reason="shown on Lightning 2.6"
    ),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]
LINEAR = [f"net.{k}.weight" for k in (0, 4, 6)]


class Theirs(ModelPruning):
    """On the linear weights alone."""

    def __init__(self, amount: float, rewind: bool = False, **options: Any) -> None:
        options = {"use_lottery_ticket_hypothesis": rewind, "parameter_names": ["weight"]} | options
        super().__init__("l1_unstructured", amount=amount, **options)

    def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
        return [(m, n) for m, n in parameters_to_prune if isinstance(m, nn.Linear)]


def sparsity(state: dict[str, Any]) -> float:
    weights = torch.cat([state[name].flatten() for name in LINEAR])
    return float((weights == 0).float().mean())


class Sparsity(Callback):
    """Of the weights that the steps computed with."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.batches: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        layers = {f"net.{k}.weight": module.net[k].weight for k in (0, 4, 6)}
        self.batches.append(sparsity(layers))


def saved(folder: Path, prune: ModelPruning, monitor: str | None = None) -> list[Path]:
    """The checkpoints of six epochs."""
    fit(None, prune, save_all(folder, monitor), enable_checkpointing=True)
    return sorted(folder.glob("*.ckpt"))


def test_1_resuming_loses_the_masks(tmp_path: Path) -> None:
    last = saved(tmp_path, Theirs(0.3))[-1]
    assert sparsity(torch.load(last, weights_only=True)["state_dict"]) > 0.6
    seen = Sparsity()
    fit(None, Theirs(0.3), seen, resume=last, max_epochs=7)
    assert seen.batches[0] < 0.01  # after one step


def test_2_checkpoints_fit_nothing_not_even_another_of_it(tmp_path: Path) -> None:
    last = saved(tmp_path, Theirs(0.3, make_pruning_permanent=False))[-1]
    with pytest.raises(RuntimeError, match=r"net\.0\.weight_mask"):
        Net().load_state_dict(torch.load(last, weights_only=True)["state_dict"])
    with pytest.raises(RuntimeError, match=r"net\.0\.weight_mask"):
        fit(None, Theirs(0.3, make_pruning_permanent=False), resume=last, max_epochs=7)


def test_3_the_metric_of_a_checkpoint_is_not_of_its_weights(tmp_path: Path) -> None:
    off, val = [], Blobs(60, seed=1)
    for path in saved(tmp_path, Theirs(0.5), "val_loss"):
        checkpoint = torch.load(path, weights_only=True)
        state = next(v for k, v in checkpoint["callbacks"].items() if "ModelCheckpoint" in k)
        model = Net().eval()
        model.load_state_dict(checkpoint["state_dict"])
        loss = F.cross_entropy(model(val.x), val.y)  # three batches of 20 in the fit
        off.append(abs(float(loss.detach() - state["current_score"])))
    assert max(off) > 0.05


def test_4_the_last_pruning_comes_after_the_last_step() -> None:
    seen = Sparsity()
    model = fit(None, Theirs(0.2), seen)
    assert sparsity(model.state_dict()) > seen.batches[-1] + 0.05


@pytest.mark.parametrize("on_gpu", [True, False])
def test_5_a_rewind_after_the_last_epoch_or_6_none(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy to the GPU that it is left to there is made here by hand."""
    copied = ModelPruning._copy_param

    def copy(new: nn.Module, old: nn.Module, name: str) -> None:
        copied(new, old, name)
        dst = getattr(new, name + "_orig", None)
        (dst if dst is not None else getattr(new, name)).data = getattr(old, name).data.clone()

    if on_gpu:
        monkeypatch.setattr(ModelPruning, "_copy_param", staticmethod(copy))
    initial = fit(None, model=Net, limit_train_batches=0).state_dict()
    found = fit(None, Theirs(0.2, rewind=True), model=Net).state_dict()
    for name in LINEAR:
        kept = found[name] != 0
        assert torch.equal(found[name][kept], initial[name][kept]) is on_gpu


class Deep(Net):
    def __init__(self) -> None:
        super().__init__(lr=0.01, momentum=0.0)
        self.net = nn.Sequential(
            *Net().net[:3], nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4)
        )


def test_7_biases_and_normalisation_are_pruned_and_8_layers_emptied() -> None:
    model = fit(
        None, ModelPruning("l1_unstructured", use_lottery_ticket_hypothesis=False), model=Deep
    )
    assert (model.net[1].bias == 0).float().mean() > 0.5
    assert (model.net[3].weight == 0).all()


def test_9_an_amount_is_not_the_sparsity_in_the_end() -> None:
    found = fit(None, Theirs(0.3), max_epochs=3).state_dict()
    assert sparsity(found) == pytest.approx(1 - 0.7**3, abs=0.01)


def test_10_it_cannot_be_used_again() -> None:
    prune, model = Theirs(0.3, rewind=True), Net()
    prune._make_pruning_permanent = False  # as in a fit that was interrupted
    fit(None, prune, model=model, max_epochs=2)
    with pytest.raises(RuntimeError, match="created explicitly by the user"):
        fit(None, prune, model=model, max_epochs=2)


def test_12_it_takes_modules_not_names_so_yaml_cannot_give_them() -> None:
    with pytest.raises(MisconfigurationException, match="should either be list of tuple"):
        fit(None, ModelPruning("l1_unstructured", parameters_to_prune=[("net.0", "weight")]))  # type: ignore[list-item]
