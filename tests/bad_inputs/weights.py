"""WeightPruning, criteria and masks."""

from __future__ import annotations

from typing import Any

import torch
import users
from torch import nn
from torch.nn.utils import parametrizations

import lightning_fairprune as lfp
from bad_inputs import Bad, fit
from lightning_fairprune import criteria, masks


def made(**options: Any) -> Any:
    return lambda at: lfp.WeightPruning(**options)


def fitted(model: Any = None, trainer: Any = (), **options: Any) -> Any:
    def run(at: Any) -> None:
        fit(lfp.WeightPruning(**options), model=model() if model else None, **dict(trainer))

    return run


def with_layer(change: Any) -> Any:
    def make() -> users.Model:
        model = users.Model()
        change(model.net[0])
        return model

    return make


class Empty(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(8))


def of_two(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.rand(2) for name in criteria.prunable(model)}


def of_nan(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: torch.full_like(model.get_parameter(n), torch.nan) for n in criteria.prunable(model)}


def of_others(model: nn.Module) -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.rand(3)}


def of_nothing(model: nn.Module) -> Any:
    return None


SALIENCY = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
# fmt: off
ROWS = [
    Bad("sparsity 1.5", made(sparsity=1.5), ValueError, r"`sparsity` must be in \(0, 1\), a fraction of weights to remove", r"got 1\.5"),
    Bad("sparsity 1", made(sparsity=1.0), ValueError, r"`sparsity` must be in \(0, 1\), a fraction of weights to remove", r"got 1\.0"),
    Bad("sparsity in percent", made(sparsity=90), ValueError, r"`sparsity` must be in \(0, 1\), a fraction of weights to remove", "got 90"),
    Bad("sparsity as text", made(sparsity="0.9"), TypeError, "`sparsity` must be a number", r"got '0\.9'"),
    Bad("sparsity NaN", made(sparsity=float("nan")), ValueError, r"`sparsity` must be in \(0, 1\), a fraction of weights to remove", "got nan"),
    Bad("criterion that is a name", made(criterion="magnitude"), TypeError, "`criterion` must be a function, such as", "got 'magnitude'"),
    Bad("schedule that is a name", made(schedule="cubic"), TypeError, "`schedule` must be a function, such as", "got 'cubic'"),
    Bad("scope that is a name", made(scope="globally"), TypeError, r"`scope` must be a function, such as masks\.globally", "got 'globally'"),
    Bad("schedule that falls", fitted(schedule=lambda sparsity, n: [sparsity] * (n - 1) + [0.1]), ValueError, "`schedule` must return 3 sparsities from 0 that never", r"got \[0\.9, 0\.9, 0\.1\]"),
    Bad("start after end", made(start=5, end=2), ValueError, "`end` must not be before `start`", "got 2 and 5"),
    Bad("start as text", made(start="soon"), TypeError, "`start` must be a number", "got 'soon'"),
    Bad("end after training", fitted(start=1, end=9), ValueError, "the last pruning must leave at least one epoch of", "but it comes after 9 of 4", "lower `end`, or train for longer"),
    Bad("every 0", made(every=0), ValueError, "`every` must be at least 1 epoch", "got 0"),
    Bad("interval of batches", made(interval="batch"), ValueError, "`interval` must be one of epoch, step", "got 'batch'"),
    Bad("weight floor -1", made(floor=-1), ValueError, "`floor` must be 0 or more weights a layer", "got -1"),
    Bad("weight floor above what is left", fitted(floor=1000), ValueError, "`floor`=1000 keeps 128 weights in 1 layers", r"but `sparsity`=0\.9 leaves 13 of 128", "lower one of them"),
    Bad("rewind to the future", fitted(rewind=3), ValueError, "`rewind` must be before the first pruning", "got epoch 3 and a first pruning after 1 epochs"),
    Bad("rewind to a word", made(rewind="end"), ValueError, "`rewind` must be None, 'start' or 0 or more epochs", "got 'end'"),
    Bad("layer that is not there", fitted(include=["fc"]), ValueError, "`include`: no parameter", "has a name like 'fc'", r"there are net\.0\.weight, net\.0\.bias,"),
    Bad("layer named by a broken pattern", fitted(include=["net.[0"]), ValueError, "`include`: no parameter", r"a name like 'net\.\[0'", r"there are net\.0\.weight, net\.0\.bias,"),
    Bad("all layers excluded", fitted(exclude=["net.*"]), ValueError, "WeightPruning must have weights to prune", "but `include`, `exclude` and"),
    Bad("model without weights to prune", fitted(model=Empty), ValueError, "WeightPruning must have weights to prune", "but `include`, `exclude` and"),
    Bad("criterion of another shape", fitted(criterion=of_two), ValueError, "`criterion` of_two must return a saliency for each", r"got \[2\]", steps=10),
    Bad("criterion that is NaN", fitted(criterion=of_nan), ValueError, "the saliency of", "of 128 weights, so they cannot be ranked", "has training diverged, or did the", steps=10),
    Bad("criterion of other layers", fitted(criterion=of_others), ValueError, "`criterion` of_others must return a saliency for each", "got NoneType", steps=10),
    Bad("criterion that returns nothing", fitted(criterion=of_nothing), ValueError, "`criterion` of_nothing must return a saliency for each", "got NoneType", steps=10),
    Bad("criterion with an argument missing", fitted(criterion=criteria.fairprune), ValueError, "`fairprune` needs the outputs for each sample", "and the callback has the loss of a step", "score with it outside of training, or use"),
    Bad("weights normalised by a parametrisation", fitted(model=with_layer(parametrizations.weight_norm)), ValueError, "WeightPruning must have weights to prune", "but `include`, `exclude` and"),
    Bad("masks of no sparsity", lambda at: masks.globally(SALIENCY, 1.5), ValueError, r"`sparsity` must be in \[0, 1\)", r"got 1\.5"),
    Bad("masks of NaN", lambda at: masks.globally({"a": torch.tensor([torch.nan])}, 0.5), ValueError, "the saliency of `a` is NaN for 1 of", "1 weights, so they cannot be ranked", "has training diverged, or did the"),
    Bad("masks of nothing", lambda at: masks.globally({}, 0.5), ValueError, "`saliency` must hold at least one weight", "it is empty"),
    Bad("mask of another shape", lambda at: masks.apply(users.Model(), {"net.0.weight": torch.ones(2, dtype=torch.bool)}), ValueError, r"`masks` has `net\.0\.weight`", r"the model has \[16, 8\]"),
    Bad("mask of a layer that is not there", lambda at: masks.apply(users.Model(), {"fc.weight": torch.ones(2, dtype=torch.bool)}), ValueError, r"`masks` has `fc\.weight` \[2\],", "the model has no parameter"),
    Bad("mask of floats", lambda at: masks.apply(users.Model(), {"net.0.weight": torch.ones(16, 8)}), TypeError, "`masks` must be bool, True = kept", r"got torch\.float32 of `net\.0\.weight`"),
    Bad("steps of a schedule 0", lambda at: masks.schedules.cubic(0.9, 0), ValueError, "`steps` must be at least 1 pruning", "got 0"),
]
# fmt: on
