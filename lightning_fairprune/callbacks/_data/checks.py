"""Checks before data is pruned."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import BatchNorm1d
from torch.utils.data import WeightedRandomSampler

from lightning_fairprune._lightning.kinds import is_strategy, shards_weights
from lightning_fairprune._loading.labels import class_names
from lightning_fairprune._loading.position import limited
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._loading.wrapper import Wrapper
from lightning_fairprune._observe.combined import loaders_of, one_loader_a_batch
from lightning_fairprune._observe.groups import batches_in_order
from lightning_fairprune.callbacks._data.length import resolve_warmup, steps_in
from lightning_fairprune.callbacks._data.settings import DataSettings
from lightning_fairprune.records.settings import called
from lightning_fairprune.selection import Selection, stalls
from lightning_fairprune.selection.decision import (
    Decision,
    emptied,
    emptied_in_words,
    needs_difficulty,
    needs_recall,
    options_of,
)


def quota(settings: DataSettings) -> None:
    """Tries the quota function on four made-up classes and raises if it returns no int64 vector.

    Exceptions do not count: the function may need the classes of the data.
    """
    if settings.quota is None:
        return
    sizes, recall = torch.full((4,), 100), torch.linspace(0.5, 0.8, 4, dtype=torch.float64)
    options = options_of(settings.floor, settings.repeat)
    if needs_difficulty(settings.quota):
        options["difficulty"] = 1 - recall
    given = (sizes, recall) if needs_recall(settings.quota) else (sizes,)
    try:
        with torch.random.fork_rng(devices=[]):
            found = copy.deepcopy(settings.quota)(*given, budget=200, **options)
    except Exception:
        return
    if not isinstance(found, Tensor) or found.dtype != torch.int64 or found.ndim != 1:
        raise ValueError(
            f"`quota` must return int64 [{len(sizes)}], got "
            f"{getattr(found, 'dtype', type(found).__name__)} {list(getattr(found, 'shape', []))} from "
            f"{called(settings.quota)} for made-up classes: quotas.apportion rounds shares to whole numbers."
        )


def validation(settings: DataSettings, trainer: pl.Trainer) -> None:
    """Raises if the quota needs recalls and their validation loader is missing or empty."""
    if not needs_recall(settings.quota) or trainer.val_dataloaders is None:
        return
    one_loader_a_batch(trainer)
    batches, wanted = list(trainer.num_val_batches), settings.recall_dataloader
    if wanted >= len(batches) or batches[wanted] == 0:
        found = f"there are {len(batches)} loaders" if wanted >= len(batches) else "it is empty"
        raise ValueError(
            f"`quota` {called(settings.quota)} needs the recall of each class, from the validation "
            f"loader {wanted} (`recall_dataloader`), but {found}: give it samples, name another, or "
            "use quotas.proportional or quotas.balanced."
        )
    loaders = loaders_of(trainer)
    if settings.discovered is not None and loaders:
        batches_in_order(loaders[wanted])


def begins_in_epoch(trainer: pl.Trainer, batch_idx: int, *, knows_before: bool) -> None:
    """Raises before the Trainer runs the rest of an epoch that began without us, or counts as finished."""
    if batch_idx and not knows_before:
        raise ValueError(
            f"this fit begins at batch {batch_idx} of epoch {trainer.current_epoch}, from a checkpoint of a fit without "
            "DataPruning, so which samples the epoch has used before is unknown: resume from a checkpoint of "
            "the end of an epoch."
        )
    if batch_idx >= trainer.num_training_batches:
        raise RuntimeError(
            f"the Trainer resumes epoch {trainer.current_epoch} at batch {batch_idx}, but a pruned epoch has "
            f"{trainer.num_training_batches}: from a checkpoint at an epoch's end, with `max_steps`, it counts that epoch "
            "again. Resume from the checkpoint before it, or limit training by max_epochs alone."
        )


def scored(score: object, scores: Tensor, target: Tensor, budget: int) -> None:
    """Raises if too few of the observed samples have a score."""
    seen = target >= 0
    nan = seen & scores.isnan()
    if int(seen.sum()) - int(nan.sum()) < budget <= int(seen.sum()):
        raise ValueError(
            f"`score` {called(score)} must be a number for the samples that were seen, but it is NaN for "
            f"{int(nan.sum())} of {int(seen.sum())}, first for sample {int(nan.nonzero()[0])}, which "
            f"leaves less than the {budget} to keep: check its divisions, or warm up longer."
        )


def alone(callback: pl.Callback, trainer: pl.Trainer) -> None:
    """Raises if the Trainer has another DataPruning callback."""
    same = [c for c in trainer.callbacks if type(c) is type(callback)]  # type: ignore[attr-defined]
    if len(same) > 1:
        raise ValueError(f"a Trainer takes one DataPruning callback, got {len(same)}.")


def trainer(settings: DataSettings, trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Raises if the Trainer, the module or the data source does not work with pruning."""
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise TypeError(
            "`training_step(dataloader_iter)` fetches its batches itself, so DataPruning cannot see "
            "which samples it used: take `batch` instead."
        )
    overfit = trainer.overfit_batches  # type: ignore[attr-defined]
    if overfit > 0:
        raise ValueError(
            f"Trainer(overfit_batches={overfit}) trains on a few fixed samples, "
            "so there is nothing to prune: remove `overfit_batches` or DataPruning."
        )
    _data_source(trainer)
    quota(settings)
    if needs_recall(settings.quota) and not trainer.enable_validation:
        raise ValueError(
            f"`quota` {called(settings.quota)} needs the recall of each class, but there is no "
            "validation: give a val_dataloader and a validation_step (and limit_val_batches > 0), "
            "or use quotas.proportional or quotas.balanced."
        )
    every = trainer.check_val_every_n_epoch
    warmup = resolve_warmup(settings.warmup_epochs, trainer)
    if needs_recall(settings.quota) and every is not None and every > warmup:
        raise ValueError(
            f"validation runs every {every} epochs, later than the warm-up of {warmup} ends: set "
            "check_val_every_n_epoch or warmup_epochs so that a validation runs before the warm-up ends."
        )
    whole = is_strategy(trainer.strategy, "SingleDeviceStrategy", "DDPStrategy")
    # DeepSpeed's strategy derives from that of DDP.
    if settings.after == "restart" and (shards_weights(trainer.strategy) or not whole):
        raise ValueError(
            "after='restart' works on one device and with DDP, got "
            f"{type(trainer.strategy).__name__}: run two fits instead, the second with "
            "FairPruneDataModule(datamodule, selection=...)."
        )


def _data_source(trainer: pl.Trainer) -> None:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, Wrapper) and data.selection is not None:
        raise ValueError(
            "FairPruneDataModule(selection=...) and DataPruning both decide which samples to "
            "train on: use one of them."
        )


def room(trainer: pl.Trainer, first: int, warmup: int) -> None:
    """Raises if a warm-up from epoch `first` on does not end before training does."""
    last = trainer.max_epochs
    if not first or last is None or last < 0 or getattr(trainer, "fast_dev_run", False):
        return  # from epoch 0 on it is known before
    if first + warmup >= last:
        raise ValueError(
            f"this fit begins at epoch {first} without a state of DataPruning (from a checkpoint of a fit without it, "
            f"or where the Trainer has stopped before), so its warm-up of {warmup} epochs would last until epoch "
            f"{first + warmup} of max_epochs={last}: raise max_epochs, or warm up for fewer epochs."
        )


def loader(
    density: float, budget: int, warmup: range, first_step: int, source: TrainSource
) -> None:
    """Raises if an epoch over the kept samples cannot work."""
    trainer, batch_size = source.attached, source.loader.batch_size
    batches = limited(source.num_batches(budget), trainer)
    if batches == 0 and source.num_batches(budget) > 0:
        raise ValueError(
            f"`density`={density} keeps {budget} samples, {source.num_batches(budget)} batches of {batch_size}, of "
            f"which Trainer(limit_train_batches={trainer.limit_train_batches}) leaves none: raise one of them."
        )
    if batches == 0:
        raise ValueError(
            f"`density`={density} keeps {budget} samples, which is less than one batch of "
            f"{batch_size} on each of {source.sampler.num_replicas} ranks, and drop_last=True would "
            "drop it: raise the density, lower the batch size or set drop_last=False."
        )
    stream = source.sampler.stream
    most = source.sampler.size_of(source.num_samples) * source.sampler.num_replicas * len(warmup)
    if stream is not None and most < budget:
        raise ValueError(
            f"`density`={density} keeps {budget} samples, but your {type(stream.sampler).__name__} draws at most {most} "
            f"in a warm-up of {len(warmup)} epochs: lower the density, or warm up longer."
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
    every = getattr(trainer, "val_check_interval", None)  # the Trainer has none by the clock
    if (
        isinstance(every, int)
        and every > batches
        and trainer.check_val_every_n_epoch is not None
        and trainer.limit_val_batches > 0
    ):
        raise ValueError(
            f"Trainer(val_check_interval={every}) exceeds the {batches} batches of a pruned "
            f"epoch: use a fraction such as val_check_interval=1.0, or "
            "check_val_every_n_epoch=None to count across epochs."
        )
    full = limited(source.num_batches(source.num_samples), trainer)
    steps = first_step + steps_in(warmup, full, trainer)
    # With manual optimisation a batch may be any number of steps: a warning at the end says it.
    is_known = module.automatic_optimization and not getattr(trainer, "fast_dev_run", False)
    if is_known and 0 < trainer.max_steps <= steps:
        raise ValueError(
            f"`warmup_epochs` must end before training does, got {len(warmup)} epochs of "
            f"{full} batches ({steps} steps) with max_steps={trainer.max_steps}."
        )


def sampling(settings: DataSettings, source: TrainSource) -> None:
    """Says at fit start what a quota means with a sampler that repeats samples or has an order of its own."""
    sampler = source.sampler
    if sampler.stream is not None:
        name = type(sampler.stream.sampler).__name__
        times = "once an epoch" if settings.repeat == 1 else "as often an epoch as its quota says"
        often = (
            f"each of them is drawn {times}"
            if sampler.draws_once
            else f"quotas say which samples are kept, and {name} decides how often each of them is drawn"
        )
        rank_zero_warn(
            f"after the warm-up your {name} is restricted to the kept samples by leaving out the others, in its own "
            f"order: {often}."
        )
    elif settings.quota is not None and isinstance(sampler.users, WeightedRandomSampler):
        rank_zero_info(
            "DataPruning: after the warm-up the weights of your WeightedRandomSampler count inside each class, and "
            "classes are drawn in proportion to their quotas. With quota=None the weights alone decide."
        )


def weights(weights: Tensor | None, drawn: Selection, classes: Tensor | None) -> None:
    """Warns of classes with a quota and no weight."""
    if weights is None or classes is None or drawn.quota is None:
        return
    of = classes[drawn.indices]
    count = len(drawn.quota)
    total = torch.zeros(count, dtype=torch.float64).index_add_(
        0, of, weights[drawn.indices].double()
    )
    without = ((total == 0) & (of.bincount(minlength=count) > 0)).nonzero().flatten().tolist()
    if without:
        rank_zero_warn(
            f"the weights of your sampler are 0 for all kept samples of {len(without)} classes, first of class "
            f"{without[0]}, which are not trained on though they have a quota: give some a weight above 0."
        )


def stepping(trainer: pl.Trainer, *, planned: bool, batches: int) -> None:
    """Warns of a step-wise schedule for epochs of full length; a pruned one has so many `batches`."""
    stepwise = [config for config in trainer.lr_scheduler_configs if config.interval == "step"]
    if stepwise and not planned:
        rank_zero_warn(
            "a learning-rate schedule steps after every batch, and epochs get shorter after the "
            "warm-up: plan it with lightning_fairprune.planned_stepping_batches(trainer) instead "
            "of trainer.estimated_stepping_batches, or it will not reach its end."
        )
    every = max((config.frequency for config in stepwise), default=0)
    if every > batches:
        rank_zero_warn(
            f"a learning-rate schedule steps after every {every} batches, which the Trainer counts within an epoch, "
            f"but a pruned epoch has {batches}, so that it never steps after the warm-up: set its frequency to 1."
        )


def without_samples(
    settings: DataSettings, drawn: Selection, known: set[int], dataset: object
) -> set[int]:
    """Warns of classes that keep no sample, unless they are `known`; returns all of them."""
    empty = emptied(drawn.quota, drawn.sizes)
    new = [k for k in empty if k not in known]
    if new:
        count, grouped = len(drawn.sizes), settings.group_by is not None
        names = None if grouped else class_names(dataset, count)
        remedy = "Use quotas" if settings.quota is None else "Set `floor`"
        kind = "groups" if grouped else "classes"
        rank_zero_warn(emptied_in_words(new, names, count, kind, remedy))
    return set(empty)


def frozen(
    settings: DataSettings, decision: Decision, known: Sequence[int], dataset: object
) -> None:
    """Warns of classes that more data does not help, unless they are `known`."""
    new = [k for k in decision.frozen if k not in known]
    if new:
        grouped, recall = settings.group_by is not None, decision.history[-1].recall
        assert recall is not None
        names = None if grouped else class_names(dataset, len(recall))
        rank_zero_warn(stalls.in_words(new, names, "groups" if grouped else "classes"))


def trained_on_kept(trainer: pl.Trainer, warmup: int, swapped_at: int | None) -> None:
    """Warns at the end of a fit without a step on the kept samples; `swapped_at` is the step of the swap."""
    if swapped_at is not None and trainer.global_step > swapped_at:
        return
    rank_zero_warn(
        f"nothing was trained on the kept samples: training ended at epoch {trainer.current_epoch}, after "
        f"{trainer.global_step} steps, {'before' if swapped_at is None else 'together with'} the warm-up of {warmup} "
        "epochs. Early stopping, max_time and max_steps end training early, and a missing validation prolongs the "
        "warm-up: warm up for fewer epochs, or set Trainer(min_epochs=...)."
    )


def unobserved(target: Tensor, budget: int, repeat: int) -> None:
    """Warns of samples that were never observed, and raises if too few remain, drawn up to `repeat` times."""
    missing = int((target < 0).sum())
    if missing == 0:
        return
    total = len(target)
    cause = "check drop_last, limit_train_batches and weighted samplers"
    if (total - missing) * repeat < budget:
        raise ValueError(
            f"{missing} of {total} training samples were never observed in the warm-up, so only "
            f"{total - missing} can be kept where {budget} are wanted: warm up longer, or {cause}."
        )
    rank_zero_warn(
        f"{missing} of {total} training samples were never observed in the warm-up and will not be "
        f"trained on: warm up longer, or {cause}."
    )
