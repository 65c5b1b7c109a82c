"""What must hold before pruning can work, said before any work is done."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import BatchNorm1d

from lightning_fairprune._lightning.kinds import is_overridden, is_strategy, shards_weights
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._loading.wrapper import Wrapper

if TYPE_CHECKING:
    from lightning_fairprune.callbacks.data_pruning import DataPruning
from lightning_fairprune.callbacks._arguments import function, number
from lightning_fairprune.callbacks._data.length import limited, resolve_warmup

KEEP = ("random", "hard", "easy", "stratified")
AFTER = ("continue", "restart")


def arguments(
    *,
    density: float,
    warmup_epochs: float,
    score: object,
    quota: Callable[..., object] | None,
    keep: str,
    after: str,
    resample_every: int | None,
    update_every: int | None,
    recall_window: int,
    shrinkage: float,
    floor: int,
    recall_dataloader: int,
    seed: int,
) -> None:
    """Checks the arguments of DataPruning on their own."""
    function("score", score, "scores.el2n")
    function("quota", quota, "quotas.drop")
    number("density", density)
    number("warmup_epochs", warmup_epochs)
    number("shrinkage", shrinkage)
    number("recall_window", recall_window, whole=True)
    number("floor", floor, whole=True)
    number("recall_dataloader", recall_dataloader, whole=True)
    number("seed", seed, whole=True)
    if not 0 < density <= 1:
        raise ValueError(f"`density` must be in (0, 1], got {density}.")
    if isinstance(warmup_epochs, float) and not 0 < warmup_epochs < 1:
        raise ValueError(
            "`warmup_epochs` must be a whole number of epochs or a fraction of training in (0, 1), "
            f"got {warmup_epochs}."
        )
    if warmup_epochs <= 0:
        raise ValueError(
            f"`warmup_epochs` must be at least 1, got {warmup_epochs}: labels, scores and recalls "
            "come from the warm-up. To train on a selection from the start use "
            "FairPruneDataModule(datamodule, selection=...)."
        )
    for name, value, allowed in (("keep", keep, KEEP), ("after", after, AFTER)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")
    if (score is None) != (keep == "random"):
        raise ValueError(
            "`score` decides who stays only with keep='hard', 'easy' or 'stratified', and those "
            f"need a score, got score={'None' if score is None else 'a function'} and "
            f"keep={keep!r}."
        )
    _quota_arguments(quota)
    for name, every in (("resample_every", resample_every), ("update_every", update_every)):
        if every is not None:
            number(name, every, whole=True)
        if every is not None and every < 1:
            raise ValueError(f"`{name}` must be None or at least 1 epoch, got {every}.")
    if recall_window < 1:
        raise ValueError(f"`recall_window` must be at least 1 validation, got {recall_window}.")
    if not shrinkage >= 0:
        raise ValueError(f"`shrinkage` must be 0 or more samples, got {shrinkage}.")
    if floor < 0:
        raise ValueError(f"`floor` must be 0 or more samples, got {floor}.")
    if recall_dataloader < 0:
        raise ValueError(f"`recall_dataloader` must be 0 or more, got {recall_dataloader}.")


def _quota_arguments(quota: Callable[..., object] | None) -> None:
    if quota is None:
        return
    unknown = [
        name
        for name, parameter in inspect.signature(quota).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in ("sizes", "recall", "budget")
    ]
    if unknown:
        raise ValueError(
            f"`quota` must take (sizes, recall, budget) or (sizes, budget), but {_name(quota)} also "
            f"needs {', '.join(map(repr, unknown))}: give it with functools.partial."
        )


def quota(callback: DataPruning) -> None:
    """Tries the quota function on four made-up classes, rather than after the warm-up.

    It may need the classes of the data, so that nothing but the type of what it returns is held
    against it.
    """
    if callback.quota_fn is None:
        return
    sizes, options = torch.full((4,), 100), {"floor": callback.floor} if callback.floor else {}
    recall = torch.linspace(0.5, 0.8, 4, dtype=torch.float64)
    given = (sizes, recall) if callback.decision.needs_recall else (sizes,)
    try:
        with torch.random.fork_rng(devices=[]):
            found = copy.deepcopy(callback.quota_fn)(*given, budget=200, **options)
    except Exception:  # of the user's code
        return
    if not isinstance(found, Tensor) or found.dtype != torch.int64 or found.ndim != 1:
        raise ValueError(
            f"`quota` must return int64 [{len(sizes)}], got "
            f"{getattr(found, 'dtype', type(found).__name__)} {list(getattr(found, 'shape', []))} from "
            f"{_name(callback.quota_fn)} for made-up classes: quotas.apportion makes whole numbers of shares."
        )


def validation(callback: DataPruning, trainer: pl.Trainer) -> None:
    """Checks that recalls will come, as soon as the Trainer has the validation loaders."""
    if not callback.decision.needs_recall or trainer.val_dataloaders is None:
        return
    batches, wanted = list(trainer.num_val_batches), callback.recall_dataloader
    if wanted >= len(batches) or batches[wanted] == 0:
        found = f"there are {len(batches)} loaders" if wanted >= len(batches) else "it is empty"
        raise ValueError(
            f"`quota` {_name(callback.quota_fn)} needs the recall of each class, from the validation "
            f"loader {wanted} (`recall_dataloader`), but {found}: give it samples, name another, or "
            "use quotas.proportional or quotas.balanced."
        )


def begins_in_epoch(trainer: pl.Trainer, batch_idx: int) -> None:
    """Raises before a batch that the Trainer would run of an epoch that it takes for done."""
    if batch_idx >= trainer.num_training_batches:
        raise RuntimeError(
            f"the checkpoint was taken before the first batch of epoch {trainer.current_epoch}, as an "
            "exception in `on_train_epoch_start` has it, and the Trainer takes that epoch for nearly "
            "done: resume from the checkpoint before it."
        )


def scored(score: object, scores: Tensor, target: Tensor, budget: int) -> None:
    """Raises if samples were seen, but have no score, and too few remain."""
    seen = target >= 0
    nan = seen & scores.isnan()
    if int(seen.sum()) - int(nan.sum()) < budget <= int(seen.sum()):
        raise ValueError(
            f"`score` {_name(score)} must be a number for the samples that were seen, but it is NaN for "
            f"{int(nan.sum())} of {int(seen.sum())}, first for sample {int(nan.nonzero()[0])}, which "
            f"leaves less than the {budget} to keep: look at what it divides by, or warm up longer."
        )


def trainer(callback: DataPruning, trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Checks the Trainer, the module and where the data come from."""
    same = [c for c in trainer.callbacks if type(c) is type(callback)]  # type: ignore[attr-defined]
    if len(same) > 1:
        raise ValueError(f"a Trainer takes one DataPruning callback, got {len(same)}.")
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise TypeError(
            "`training_step(dataloader_iter)` fetches its batches itself, so nobody can tell which "
            "samples it saw: take `batch` instead."
        )
    overfit = trainer.overfit_batches  # type: ignore[attr-defined]
    if overfit > 0:
        raise ValueError(
            f"Trainer(overfit_batches={overfit}) trains on a fixed handful of "
            "samples, so there is nothing to prune: leave it out or leave out DataPruning."
        )
    _data_source(trainer, module)
    quota(callback)
    if callback.decision.needs_recall and not trainer.enable_validation:
        raise ValueError(
            f"`quota` {_name(callback.quota_fn)} needs the recall of each class, but there is no "
            "validation: give a val_dataloader and a validation_step (and limit_val_batches > 0), "
            "or use quotas.proportional or quotas.balanced."
        )
    every = trainer.check_val_every_n_epoch
    warmup = resolve_warmup(callback.warmup_epochs, trainer)
    if callback.decision.needs_recall and every is not None and every > warmup:
        raise ValueError(
            f"validation runs every {every} epochs, later than the warm-up of {warmup} ends: set "
            "check_val_every_n_epoch or warmup_epochs so that recalls are there in time."
        )
    whole = is_strategy(trainer.strategy, "SingleDeviceStrategy", "DDPStrategy")
    # DeepSpeed's derives from DDP's.
    if callback.after == "restart" and (shards_weights(trainer.strategy) or not whole):
        raise ValueError(
            "after='restart' works on one device and with DDP, got "
            f"{type(trainer.strategy).__name__}: run two fits instead, the second with "
            "FairPruneDataModule(datamodule, selection=...)."
        )


def _data_source(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, Wrapper):
        if data.selection is not None:
            raise ValueError(
                "FairPruneDataModule(selection=...) and DataPruning both decide which samples to "
                "train on: use one of them."
            )
        return
    if not is_overridden("train_dataloader", module if data is None else data):
        raise TypeError(
            "loaders passed to trainer.fit() cannot be pruned: return them from the "
            "train_dataloader() of a LightningDataModule or of the module."
        )


def loader(callback: DataPruning, trainer: pl.Trainer, source: TrainSource) -> None:
    """Checks that an epoch over the kept samples will work, before the first one over all."""
    batch_size, budget = source.loader.batch_size, callback.decision.budget(source.num_samples)
    batches = limited(source.num_batches(budget), trainer)
    if batches == 0:
        raise ValueError(
            f"`density`={callback.density} keeps {budget} samples, which is less than one batch of "
            f"{batch_size} on each of {source.sampler.num_replicas} ranks, and drop_last=True would "
            "drop it: raise the density, lower the batch size or set drop_last=False."
        )
    rest = source.sampler.size_of(budget) % (batch_size or 1)
    module = trainer.lightning_module
    if rest == 1 and not source.loader.drop_last and batch_size != 1:
        norms = [name for name, part in module.named_modules() if isinstance(part, BatchNorm1d)]
        if norms:
            raise ValueError(
                f"a pruned epoch of {budget} samples ends in a batch of a single sample, which the "
                f"batch normalisation `{norms[0]}` cannot train on: set drop_last=True, or change "
                "the density or the batch size a little."
            )
    every = trainer.val_check_interval
    if (
        isinstance(every, int)
        and every > batches
        and trainer.check_val_every_n_epoch is not None
        and trainer.limit_val_batches > 0
    ):
        raise ValueError(
            f"Trainer(val_check_interval={every}) asks for a validation after more batches than the "
            f"{batches} of a pruned epoch: use a fraction such as val_check_interval=1.0, or "
            "check_val_every_n_epoch=None to count across epochs."
        )
    full = limited(source.num_batches(source.num_samples), trainer)
    steps = math.ceil(full / trainer.accumulate_grad_batches) * callback.warmup
    if 0 < trainer.max_steps <= steps and not getattr(trainer, "fast_dev_run", False):
        raise ValueError(
            f"`warmup_epochs` must end before training does, got {callback.warmup} epochs of "
            f"{full} batches ({steps} steps) with max_steps={trainer.max_steps}."
        )


def stepping(callback: DataPruning, trainer: pl.Trainer) -> None:
    """Warns if a step-wise schedule was planned for epochs that will not be."""
    stepwise = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
    if stepwise and callback.density < 1 and not callback.stepping_batches_planned:
        rank_zero_warn(
            "a learning-rate schedule steps with every batch, and epochs get shorter after the "
            "warm-up: plan it with lightning_fairprune.planned_stepping_batches(trainer) in place "
            "of trainer.estimated_stepping_batches, or it will not reach its end."
        )


def unobserved(target: Tensor, budget: int) -> None:
    """Says how many samples cannot be chosen, and refuses where too few remain."""
    missing = int((target < 0).sum())
    if missing == 0:
        return
    total = len(target)
    cause = "check drop_last, limit_train_batches and weighted samplers"
    if total - missing < budget:
        raise ValueError(
            f"{missing} of {total} training samples were never observed in the warm-up, so only "
            f"{total - missing} can be kept where {budget} are wanted: warm up longer, or {cause}."
        )
    rank_zero_warn(
        f"{missing} of {total} training samples were never observed in the warm-up and will not be "
        f"trained on: warm up longer, or {cause}."
    )


def _name(function: object) -> str:
    return getattr(function, "__name__", repr(function))
