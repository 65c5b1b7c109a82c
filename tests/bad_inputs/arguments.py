"""Arguments of the callbacks and of the plain functions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import users
from torch import Tensor

import lightning_fairprune as lfp
from bad_inputs import Bad, prune
from lightning_fairprune import quotas


def made(**options: Any) -> Any:
    """DataPruning with these arguments, never used."""
    return lambda at: lfp.DataPruning(**({"density": 0.3, "warmup_epochs": 2} | options))


def fitted(**options: Any) -> Any:
    """The same in a fit."""
    return lambda at: prune(**options)


def twice(at: Any) -> None:
    trainer = users.trainer(callbacks=[lfp.DataPruning(0.3, 1)])
    trainer.callbacks.append(lfp.DataPruning(0.4, 1))
    trainer.fit(users.Model(), datamodule=users.Data())


def monitor(**options: Any) -> Any:
    return lambda at: lfp.RecallMonitor(**options)


def score_without_arguments() -> Tensor:
    return torch.zeros(103)


def score_of_two(seen: lfp.Dynamics, other: Tensor) -> Tensor:
    return seen.signal("loss")[-1] + other


def short_score(seen: lfp.Dynamics) -> Tensor:
    return seen.signal("loss")[-1][:10]


def nan_score(seen: lfp.Dynamics) -> Tensor:
    return seen.signal("loss")[-1] * torch.nan


def none_score(seen: lfp.Dynamics) -> None:
    seen.signal("loss")


SIZES = torch.tensor([40, 30, 20, 10])
# fmt: off
ROWS = [
    Bad("density 0", made(density=0), ValueError, r"`density` must be in \(0, 1\]", "got 0"),
    Bad("density in percent", made(density=30), ValueError, r"`density` must be in \(0, 1\]", "got 30"),
    Bad("density NaN", made(density=float("nan")), ValueError, r"`density` must be in \(0, 1\]", "got nan"),
    Bad("density True", made(density=True), TypeError, "`density` must be a number", "got True"),
    Bad("density as text", made(density="0.3"), TypeError, "`density` must be a number", r"got '0\.3'"),
    Bad("density None", made(density=None), TypeError, "`density` must be a number", "got NoneType"),
    Bad("density as a tensor of two", made(density=torch.tensor([0.3, 0.2])), TypeError, "`density` must be a number", "got Tensor"),
    Bad("warm-up of no epoch", made(warmup_epochs=0), ValueError, "`warmup_epochs` must be at least 1", "got 0", "labels, scores and recalls come from the"),
    Bad("warm-up as text", made(warmup_epochs="2"), TypeError, "`warmup_epochs` must be a number", "got '2'"),
    Bad("warm-up True", made(warmup_epochs=True), TypeError, "`warmup_epochs` must be a number", "got True"),
    Bad("warm-up NaN", made(warmup_epochs=float("nan")), ValueError, "`warmup_epochs` must be a whole number of epochs or a", "got nan"),
    Bad("warm-up longer than the fit", fitted(warmup_epochs=9), ValueError, "`warmup_epochs` must end before training does", "got 9 of max_epochs=4"),
    Bad("warm-up of a fraction of an endless fit", fitted(warmup_epochs=0.5, trainer={"max_epochs": -1, "max_steps": 9}), ValueError, r"`warmup_epochs`=0\.5 is a", "of max_epochs, which is not set", r"give Trainer\(max_epochs=\.\.\.\) or a whole"),
    Bad("keep unknown", made(keep="best", score=lfp.scores.el2n), ValueError, "`keep` must be one of random, hard, easy, stratified", "got 'best'"),
    Bad("cutoff of 1", made(cutoff=1, score=lfp.scores.el2n, keep="hard"), ValueError, r"`cutoff` must be in \[0, 1\)", "got 1"),
    Bad("cutoff that is a word", made(cutoff="all", score=lfp.scores.el2n, keep="hard"), TypeError, "`cutoff` must be a number", "got 'all'"),
    Bad("cutoff of random samples", made(cutoff=0.1), ValueError, "`cutoff` has no effect with keep='random'", "pass keep='hard' or 'stratified'"),
    Bad("pool of 0", made(pool=0, score=lfp.scores.el2n, keep="hard"), ValueError, r"`pool` must be in \(0, 1\]", "got 0"),
    Bad("keep hard without a score", made(keep="hard"), ValueError, "`score` selects samples only with keep='hard',", "got score=None and keep='hard'"),
    Bad("score without keep", made(score=lfp.scores.el2n), ValueError, "`score` selects samples only with keep='hard',", "got score=a function and keep='random'"),
    Bad("score that is a name", made(score="el2n", keep="hard"), TypeError, r"`score` must be a function, such as scores\.el2n", "got 'el2n'"),
    Bad("score already computed", made(score=torch.rand(103), keep="hard"), TypeError, r"`score` must be a function, such as scores\.el2n", "got Tensor"),
    Bad("score without arguments", fitted(score=score_without_arguments, keep="hard"), ValueError, "`score` score_without_arguments fails on 2 made-up", "but 1 was given"),
    Bad("score of two arguments", fitted(score=score_of_two, keep="hard"), ValueError, "`score` score_of_two fails on 2 made-up epochs of 16", r"score_of_two\(\) missing 1 required positional", "'other'"),
    Bad("score of another length", fitted(score=short_score, keep="hard"), ValueError, "`score` short_score must return a float or integer", r"got torch\.float32 of shape \[10\] for 16 samples"),
    Bad("score that is NaN everywhere", fitted(score=nan_score, keep="hard"), ValueError, "`score` nan_score must be a number for the samples", "but it is NaN for 103 of 103, first for sample 0,", "check its divisions, or warm up longer", steps=22),
    Bad("score that returns nothing", fitted(score=none_score, keep="hard"), ValueError, "`score` none_score must return a float or integer", "got NoneType for 16 samples"),
    Bad("score_on unknown", made(score=lfp.scores.el2n, keep="hard", score_on="later"), ValueError, "`score_on` must be 'training', 'pass' or a ScorePass", "got 'later'"),
    Bad("quota that is a name", made(quota="drop"), TypeError, r"`quota` must be a function, such as quotas\.drop", "got 'drop'"),
    Bad("quota with an argument missing", made(quota=quotas.rcap), ValueError, r"`quota` must take \(sizes, recall, budget\) or \(sizes,", "but rcap also needs 'loss'", r"give it with functools\.partial"),
    Bad("quota by difficulty without a score", made(quota=quotas.difficulty), ValueError, "`quota` difficulty needs the difficulty of each class", "got score=None", r"give one, such as scores\.el2n"),
    Bad("quota of a difficulty below 0", lambda at: quotas.difficulty(SIZES, [0.5, -0.6, 0.1, 0.8], 30), ValueError, "`difficulty` must be finite and >= 0", r"got -0\.6 for class 1"),
    Bad("quota that ignores the budget", fitted(quota=lambda sizes, budget: sizes), ValueError, "`quota` must sum to the budget 41", "got 103", steps=22),
    Bad("quota of another shape", fitted(quota=lambda sizes, budget: torch.tensor([budget])), ValueError, r"`quota` must return int64 \[4\]", r"got torch\.int64 \[1\]", steps=22),
    Bad("quota below zero", fitted(quota=lambda sizes, budget: torch.tensor([budget + 5, -5, 0, 0])), ValueError, "`quota` must be >= 0", "got -5 for class 1", steps=22),
    Bad("quota above the class", fitted(quota=lambda sizes, budget: torch.tensor([0, 0, 0, budget])), ValueError, "`quota`", "asks for 41 samples of class 3, which has 8", steps=22),
    Bad("quota of floats", fitted(quota=lambda sizes, budget: sizes / sizes.sum() * budget), ValueError, r"`quota` must return int64 \[4\]", r"got torch\.float32 \[4\] from <lambda> for made-up", r"quotas\.apportion rounds shares to whole"),
    Bad("quota of NaN", fitted(quota=lambda sizes, budget: sizes * torch.nan), ValueError, r"`quota` must return int64 \[4\]", r"got torch\.float32 \[4\] from <lambda> for made-up", r"quotas\.apportion rounds shares to whole"),
    Bad("quota that returns nothing", fitted(quota=lambda sizes, budget: None), ValueError, r"`quota` must return int64 \[4\]", r"got NoneType \[\] from <lambda> for made-up classes", r"quotas\.apportion rounds shares to whole"),
    Bad("quota that fails", fitted(quota=partial(quotas.drop, cap=[1, 1])), ValueError, r"`cap` must be an int or of shape \[4\]", r"got shape \(2,\)", steps=22),
    Bad("Minimax with a negative step", lambda at: quotas.Minimax(step=-1), ValueError, "`step` must be positive and finite", "got -1"),
    Bad("Minimax with a leak of 2", lambda at: quotas.Minimax(leak=2), ValueError, r"`leak` must be in \[0, 1\)", "got 2"),
    Bad("resample_every 0", made(resample_every=0), ValueError, "`resample_every` must be None or at least 1 epoch", "got 0"),
    Bad("resample_every as text", made(resample_every="always"), TypeError, "`resample_every` must be a whole number", "got 'always'"),
    Bad("update_every -1", made(update_every=-1), ValueError, "`update_every` must be None or at least 1 epoch", "got -1"),
    Bad("recall_window 0", made(recall_window=0), ValueError, "`recall_window` must be at least 1 validation", "got 0"),
    Bad("shrinkage NaN", made(shrinkage=float("nan")), ValueError, "`shrinkage` must be 0 or more samples", "got nan"),
    Bad("shrinkage as text", made(shrinkage="much"), ValueError, "`shrinkage` must be 'auto' or a number of samples", "got 'much'"),
    Bad("shrinkage None", made(shrinkage=None), TypeError, "`shrinkage` must be a number", "got NoneType"),
    Bad("floor -1", made(floor=-1), ValueError, "`floor` must be 0 or more samples", "got -1"),
    Bad("floor above what there is", fitted(floor=1000), ValueError, "`floor`", "asks for 103 samples in all, more than `budget`=41", "lower the floor or raise the budget", steps=22),
    Bad("seed as text", made(seed="lucky"), TypeError, "`seed` must be a whole number", "got 'lucky'"),
    Bad("recall_dataloader that is not there", fitted(recall_dataloader=3), ValueError, "`quota` drop needs the recall of each class, from the", "but there are 1 loaders", "give it samples, name another, or use"),
    Bad("group_by a key that is not there", fitted(group_by="background"), ValueError, "`group_by` must be a key or position in the batch, or", "but a list has no 'background'", "put the group ids there"),
    Bad("group_by floats", fitted(group_by=lambda batch: batch[0][:, 0]), ValueError, "`group_by` must give one integer group id per sample", r"got torch\.float32 \[10\]"),
    Bad("group_by below zero", fitted(group_by=lambda batch: batch[1] - 1), ValueError, "25 validation samples", r"a group outside \[0, 3\)", "number them from 0", steps=11),
    Bad("after unknown", made(after="stop"), ValueError, "`after` must be one of continue, restart", "got 'stop'"),
    Bad("warm-up longer than the steps", fitted(warmup_epochs=3, trainer={"max_epochs": -1, "max_steps": 33}), ValueError, "`warmup_epochs` must end before training does", r"got 3 epochs of 11 batches \(33 steps\) with max_steps=33"),
    Bad("warm-up of a fraction that is all of the fit", fitted(warmup_epochs=0.9), ValueError, "`warmup_epochs` must end before training does", "got 4 of max_epochs=4"),
    Bad("two DataPrunings", twice, ValueError, "one DataPruning callback", "got 2"),
    Bad("RecallMonitor of no class", monitor(num_classes=0), ValueError, "`num_classes` must be at least 1", "got 0"),
    Bad("RecallMonitor with twice the same name", monitor(class_names=["cat", "cat"]), ValueError, "`class_names` must differ from each other", r"got \['cat', 'cat'\]"),
    Bad("RecallMonitor every 0 epochs", monitor(every_n_epochs=0), ValueError, "`every_n_epochs` must be at least 1", "got 0"),
    Bad("select with a quota above the class", lambda at: lfp.select(torch.tensor([0, 0, 1]), [1, 2]), ValueError, "`quota`", "asks for 2 samples of class 1, which has 1"),
    Bad("select with a quota of floats", lambda at: lfp.select(torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.5])), TypeError, "`quota` must hold integers", r"got torch\.float32"),
    Bad("select hard without a score", lambda at: lfp.select(torch.tensor([0, 0, 1]), [1, 1], keep="hard"), ValueError, "keep='hard' needs `score`, one", "per sample, higher = harder"),
    Bad("select with a NaN score", lambda at: lfp.select(torch.tensor([0, 0]), [1], score=torch.tensor([1.0, torch.nan]), keep="hard"), ValueError, "1 of 2 samples have no", r"\(NaN\), first at index 1", "observe every sample at least once, or set"),
    Bad("select with float labels", lambda at: lfp.select(torch.tensor([0.0, 1.0]), [1, 1]), TypeError, "`target` must hold integers", r"got torch\.float32"),
    Bad("select with one-hot labels", lambda at: lfp.select(torch.eye(3), [1, 1, 1]), ValueError, r"`target` must be a tensor of shape \[N\]", r"got torch\.Size\(\[3, 3\]\)"),
    Bad("quota of a budget above the data", lambda at: quotas.proportional(SIZES, 101), ValueError, "`budget` must be at most the 100 samples available and", "got 101"),
    Bad("quota of a recall above 1", lambda at: quotas.drop(SIZES, [0.5, 0.6, 70.0, 0.8], 30), ValueError, r"`recall` must be in \[0, 1\], or NaN for a class never", r"got 70\.0 for class 2"),
    Bad("quota of recalls for other classes", lambda at: quotas.drop(SIZES, [0.5, 0.6], 30), ValueError, "`recall` must have one entry per class", r"got shape \(2,\) for 4 classes"),
    Bad("dynamics of one epoch too few for a score", lambda at: lfp.scores.dynamic_uncertainty(lfp.Dynamics(torch.tensor([0]), {"p_true": torch.rand(2, 1)})), ValueError, "`window` must be between 2 and the 2 recorded epochs", "got 10"),
    Bad("dynamics without the signal of a score", lambda at: lfp.scores.el2n(lfp.Dynamics(torch.tensor([0]), {})), ValueError, "'el2n' was", "recorded", "there is no signal"),
    Bad("dynamics with shapes that disagree", lambda at: lfp.Dynamics(torch.tensor([0, 1]), {"loss": torch.rand(3, 5)}), ValueError, r"`signals\['loss'\]` must have shape \[3, 2\]", r"got \[3, 5\]"),
    Bad("k-center of more centres than samples", lambda at: lfp.geometry.k_center(torch.rand(3, 2), 5), ValueError, "`budget` must be between 0 and the 3 samples that can", "got 5"),
    Bad("k-center of features that are NaN", lambda at: lfp.geometry.k_center(torch.full((3, 2), torch.nan), 2), ValueError, "`features` must be finite: 3 of 3", "hold NaN or infinity, first at index 0", "leave them out or repair them"),
    Bad("CKA of other numbers of samples", lambda at: lfp.representation.linear_cka(torch.rand(3, 2), torch.rand(4, 2)), ValueError, "`x` and `y` must have the same rows, one per sample", "got 3 and 4"),
    Bad("t-test of seeds that do not pair", lambda at: lfp.statistics.paired_test([0.1, 0.2], [0.1, 0.2, 0.3]), ValueError, r"`x` and `y` must have one shape \[\.\.\., M\], a value per", r"got \[2\] and \[3\]"),
    Bad("p-value above 1", lambda at: lfp.statistics.holm([0.1, 1.2]), ValueError, r"`p` must be in \[0, 1\] \(fractions", r"not per cent\), or NaN for what is not known, got"),
]
# fmt: on
