"""Data sets, loaders, steps and logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import users
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_fairprune as lfp
from bad_inputs import Bad, CountSteps, fit, prune


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(users.Blobs())


def data(train: Any = None, val: Any = None, **loader: Any) -> users.Data:
    """Training or validation samples, or loaders of them, in place of the blobs."""
    made: Any = users.Data()
    if train is not None:
        made.train_dataloader = lambda: (
            train() if callable(train) else DataLoader(train, 10, **loader)
        )
    if val is not None:
        made.val_dataloader = lambda: val() if callable(val) else DataLoader(val, 20)
    return made


def pruned(**options: Any) -> Any:
    return lambda at: prune(**options)


class Outputs(users.Model):
    """Returns what a function makes of logits and labels."""

    def __init__(self, change: Any, since: int = 0, validation: bool = False) -> None:
        super().__init__()
        self.change, self.since, self.validation = change, since, validation

    def _out(self, batch: Any, changed: bool) -> Any:
        x, y = batch
        logits = self(x)
        out = {"loss": F.cross_entropy(logits, y), "logits": logits, "target": y}
        return out | (self.change(logits, y) if changed else {})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self._out(batch, not self.validation and self.current_epoch >= self.since)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self._out(batch, self.validation)


class Drifts(users.Model):
    """Labels are others in the second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), (y + self.current_epoch) % users.NUM_CLASSES)


class NoLabel(users.Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self(batch[0]).square().mean(), "logits": self(batch[0])}


class Iterates(users.Model):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        raise AssertionError


class SilentValidation(users.Model):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


class NoLoss(users.Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).square().mean()


class Normalised(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, torch.nn.BatchNorm1d(16))


def given_to_fit(*loaders: Any) -> Any:
    """A fit that is given its training loaders."""

    def run(at: Any) -> None:
        trainer = users.trainer(callbacks=[lfp.DataPruning(0.4, 2), CountSteps()])
        trainer.fit(users.Model(), [*loaders], DataLoader(users.Blobs(60), 10))

    return run


def seen(**change: Any) -> Any:
    """A fit whose training steps return something else."""
    return pruned(model=Outputs(lambda logits, y: {k: f(logits, y) for k, f in change.items()}))


def validated(**change: Any) -> Any:
    made = Outputs(lambda logits, y: {k: f(logits, y) for k, f in change.items()}, validation=True)
    return pruned(model=made)


def monitored(model: Any = None, val: Any = None, **options: Any) -> Any:
    return lambda at: fit(lfp.RecallMonitor(**options), model=model, data=data(val=val))


def weighted(model: Any = None, **options: Any) -> Any:
    return lambda at: fit(lfp.ClassWeighting(**options), model=model)


def halves() -> Any:
    return [DataLoader(users.Blobs(), 10), DataLoader(users.Blobs(), 10)]


# fmt: off
ROWS = [
    Bad("training set without samples", pruned(data=data(TensorDataset(torch.rand(0, 8), torch.zeros(0).long()))), ValueError, "the training set must have at least one sample to", "got none", "check where TensorDataset reads them"),
    Bad("stream", pruned(data=data(Stream())), TypeError, r"an iterable dataset \(Stream\) has", "stable sample index to prune by", "use a map-style dataset with __getitem__ and"),
    Bad("several training loaders", pruned(data=data(halves)), TypeError, r"`train_dataloader\(\)` must return one torch DataLoader", "got list"),
    Bad("training loader that is a list of batches", pruned(data=data(lambda: [[torch.rand(10, 8), torch.zeros(10).long()]])), TypeError, r"`train_dataloader\(\)` must return one torch DataLoader", "got list"),
    Bad("training loader that is None", pruned(data=data(lambda: None)), TypeError, r"`train_dataloader\(\)` must return one torch DataLoader", "got NoneType"),
    Bad("batch sampler of one's own", pruned(data=data(lambda: DataLoader(users.Blobs(), batch_sampler=[[0, 1], [2, 3]]))), ValueError, "your list draws at most 8 in a warm-up of 2 epochs", "keeps 41 samples", "lower the density"),
    Bad("batch sampler of uneven batches", pruned(data=data(lambda: DataLoader(users.Blobs(), batch_sampler=[[0], [2, 3], [4, 5]]))), TypeError, "the batch sampler list yields batches of 1 to 2 samples", "only if all but the last have the same size", "give the DataLoader a `batch_size`"),
    Bad("sampler of keys", pruned(data=data(lambda: DataLoader(users.Blobs(), 10, sampler=["a", "b"]))), TypeError, "the sampler list must yield indices from 0 to 102", "use a sampler of torch"),
    Bad("collate function that drops a sample", pruned(data=data(users.Blobs(), collate_fn=lambda s: torch.utils.data.default_collate(s[1:]))), ValueError, "training_step: the loss saw 9 samples of a batch with", "nor repeat samples, or their indices are unknown", r"\[B\]\} from the step or pass `logits_fn`"),
    Bad("drop_last with less than a batch kept", pruned(data=data(lambda: DataLoader(users.Blobs(), 50, drop_last=True))), ValueError, r"`density`=0\.4 keeps 41 samples, which is less than one", "of 50 on each of 1 ranks, and drop_last=True", "raise the density, lower the batch size or"),
    Bad("labels out of range", seen(target=lambda logits, y: y + 1), ValueError, r"every target must be in \[0, 4\)", r"got 4 for sample 0 \(8 samples in epoch 0\)", "number them from 0, and leave samples to be", steps=11),
    Bad("labels below zero", seen(target=lambda logits, y: y - 1), ValueError, r"every target must be in \[0, 4\)", r"got -1 for sample 6 \(42 samples in epoch 0\)", "number them from 0, and leave samples to be", steps=11),
    Bad("labels out of range in validation", validated(target=lambda logits, y: y + 1), ValueError, "6 validation samples", r"a label outside \[0, 4\)", "number them from 0, as the logits are", steps=11),
    Bad("labels that change between epochs", pruned(model=Drifts(), score=lfp.scores.el2n, keep="hard"), ValueError, "the target of 103 samples changed in", "1, first for sample 0 from 3 to 0", "either the training set has changed since the", steps=22),
    Bad("float labels", seen(target=lambda logits, y: y.float()), ValueError, r"training_step: logits must be \[B, C\] and targets one", r"got \[10, 4\] and torch\.float32 \[10\]; soft and", "give class indices, or pass `logits_fn`"),
    Bad("NaN labels", seen(target=lambda logits, y: y * torch.nan), ValueError, r"training_step: logits must be \[B, C\] and targets one", r"got \[10, 4\] and torch\.float32 \[10\]; soft and", "give class indices, or pass `logits_fn`"),
    Bad("one-hot labels", seen(target=lambda logits, y: F.one_hot(y, 4)), ValueError, r"training_step: logits must be \[B, C\] and targets one", r"got \[10, 4\] and torch\.int64 \[10, 4\]; soft and", "give class indices, or pass `logits_fn`"),
    Bad("labels of another batch size", seen(target=lambda logits, y: y[1:]), ValueError, "training_step: logits and targets must be of the 10", "got 10 and 9", "return those of every sample, in order"),
    Bad("logits without labels", pruned(model=NoLabel()), ValueError, "training_step: the step", "returned no 'logits' and 'target' and never", r"\[B\]\} from the step or pass `logits_fn`"),
    Bad("logits that are no tensor", seen(logits=lambda logits, y: logits.tolist()), ValueError, "training_step: logits and targets must be tensors", "got list and Tensor", "return those that the loss is given, or pass"),
    Bad("logits that are NaN", pruned(model=Outputs(lambda logits, y: {"logits": logits * torch.nan}), score=lfp.scores.el2n, keep="hard"), ValueError, "`el2n` is nan for 103 samples in epoch 0, first", "sample 0: the model's logits are not finite there", "lower the learning rate or check that sample", steps=11),
    Bad("logits that are infinite in validation", validated(logits=lambda logits, y: logits / 0), ValueError, "the logits of 60 validation samples", "not finite: the training has diverged", "lower the learning rate", steps=11),
    Bad("logits of three dimensions", seen(logits=lambda logits, y: logits[..., None]), ValueError, r"training_step: logits must be \[B, C\] and targets one", r"got \[10, 4, 1\] and torch\.int64 \[10\]; soft and", "give class indices, or pass `logits_fn`"),
    Bad("logits of one number per sample", seen(logits=lambda logits, y: logits[:, 0]), ValueError, r"training_step: logits must be \[B, C\] and targets one", r"got \[10\] and torch\.int64 \[10\]; soft and", "give class indices, or pass `logits_fn`"),
    Bad("logits of one class", seen(logits=lambda logits, y: logits[:, :1]), ValueError, r"every target must be in \[0, 1\)", r"got 3 for sample 0 \(61 samples in epoch 0\)", "number them from 0, and leave samples to be", steps=11),
    Bad("logits that are integers", pruned(model=Outputs(lambda logits, y: {"logits": logits.long()}), score=lfp.scores.el2n, keep="hard"), ValueError, "training_step: logits must be floating", r"got torch\.int64", "return what the softmax is given"),
    Bad("logits of other classes in validation", validated(logits=lambda logits, y: logits[:, :2]), ValueError, "19 validation samples", r"a label outside \[0, 2\)", "number them from 0, as the logits are", steps=22),
    Bad("step that fetches its batches", pruned(model=Iterates()), TypeError, r"`training_step\(dataloader_iter\)` fetches its", "itself, so DataPruning cannot see which samples it", "take `batch` instead"),
    Bad("validation without samples", pruned(data=data(val=TensorDataset(torch.rand(0, 8), torch.zeros(0).long()))), ValueError, "`quota` drop needs the recall of each class, from the", "but it is empty", "give it samples, name another, or use"),
    Bad("no validation loader", pruned(data=data(val=list)), ValueError, "`quota` drop needs the recall of each class, from the", "but it is empty", "give it samples, name another, or use"),
    Bad("validation switched off", pruned(trainer={"limit_val_batches": 0}), ValueError, "`quota` drop needs the recall of each class", "but there is no validation", "give a val_dataloader and a validation_step"),
    Bad("validation later than the warm-up", pruned(trainer={"check_val_every_n_epoch": 3}), ValueError, "validation runs every 3 epochs,", "than the warm-up of 2 ends", "set check_val_every_n_epoch or warmup_epochs"),
    Bad("selection made from other data", lambda at: fit(data=lfp.FairPruneDataModule(users.Data(), selection=lfp.select(torch.tensor([0, 1]), [1, 0]))), ValueError, "`selection`", "was made from 2 samples, the training set has 103", "use the selection of this data set"),
    Bad("selection that keeps nothing", lambda at: fit(data=lfp.FairPruneDataModule(users.Data(), selection=lfp.select(torch.zeros(103).long(), [0]))), ValueError, "`selection` must keep at least one sample to train on", "it keeps none of 103", "check the quotas that it was made with"),
    Bad("selection and DataPruning", lambda at: prune(data=lfp.FairPruneDataModule(users.Data(), selection=lfp.select(torch.zeros(103).long(), [9]))), ValueError, r"FairPruneDataModule\(selection=\.\.\.\) and", "both decide which samples to train on", "use one of them"),
    Bad("wrapped loader in place of a DataModule", lambda at: lfp.FairPruneDataModule(DataLoader(users.Blobs())), TypeError, "`datamodule` must be a", r"got torch\.utils\.data\.dataloader\.DataLoader"),
    Bad("RecallMonitor with other classes than the model", monitored(num_classes=7), ValueError, "`num_classes` is 7", "but the logits are for 4", "leave it out, or check the last layer", steps=11),
    Bad("RecallMonitor with names for other classes", monitored(class_names=["cat", "dog"]), ValueError, "`class_names` must name each of 4 classes", "got 2", steps=11),
    Bad("RecallMonitor with NaN logits", monitored(Outputs(lambda logits, y: {"logits": logits * torch.nan}, validation=True)), ValueError, "the logits of 60 validation samples", "not finite: the training has diverged", "lower the learning rate", steps=11),
    Bad("RecallMonitor with a reference that is not there", monitored(reference="nowhere"), FileNotFoundError, "There is no file", "'nowhere'", "give the folder of a run with RecallMonitor and a logger"),
    Bad("RecallMonitor before_pruning without pruning", monitored(reference="before_pruning"), ValueError, "`reference='before_pruning'` needs a callback that", "such as DataPruning, among the callbacks of the", "use 'fit_start' or the folder of another run"),
    Bad("ClassWeighting of a loss that is not there", weighted(loss="criterion"), ValueError, r"`loss` must name an nn\.CrossEntropyLoss or", "of Model, 'criterion' is nothing", "there is none"),
    Bad("ClassWeighting by weights of another shape", weighted(loss=None, weights=lambda recall: torch.ones(2)), ValueError, "`weights` must return one weight for each of 4 classes", r"got shape \[2\]", steps=22),
    Bad("ClassWeighting by weights below zero", weighted(loss=None, weights=lambda recall: -recall), ValueError, "`weights` must return finite weights of 0 or more", r"got \[-0\.", steps=22),
    Bad("score_pass with a score of nothing that it can give", lambda at: lfp.score_pass(users.Model(), DataLoader(users.Blobs(), 10), lambda teacher: teacher, progress=False), ValueError, r"`score` <lambda>\.<locals>\.<lambda> must return a float", "got Dynamics for 16 samples"),
    Bad("score_pass over a stream", lambda at: lfp.score_pass(users.Model(), DataLoader(Stream(), 10), lfp.scores.el2n, progress=False), TypeError, r"an iterable dataset \(Stream\) has", "stable sample index to prune by", "use a map-style dataset with __getitem__ and"),
    Bad("features of a layer that is not there", lambda at: lfp.geometry.features_of(users.Model(), DataLoader(users.Blobs(), 10), "fc"), ValueError, r"`layer` must be one of net, net\.0, net\.1, net\.2", "got 'fc'"),
    Bad("several loaders given to fit", given_to_fit(DataLoader(users.Blobs(), 10), DataLoader(users.Blobs(), 10)), TypeError, r"trainer\.fit\(\) may be given one", "got list of 2", "in one ConcatDataset"),
    Bad("pruned epoch that ends in a batch of one before batch normalisation", pruned(model=Normalised()), ValueError, "epoch of 41 samples ends in .* single sample", r"`net\.1`"),
    Bad("training step without a cross-entropy", pruned(model=NoLoss()), ValueError, "training_step: .*never called", "cross_entropy"),
    Bad("validation step without a loss", pruned(model=SilentValidation()), ValueError, "validation_step: ", "never called", steps=11),
    Bad("validation step without a loss, with a sanity check", pruned(model=SilentValidation(), trainer={"num_sanity_val_steps": 1}), ValueError, "validation_step: ", "never called"),
    Bad("validation more rarely than a pruned epoch ends", pruned(trainer={"val_check_interval": 6}), ValueError, "use a fraction such as", "exceeds the 5 batches of a pruned epoch"),
    Bad("overfit_batches", pruned(trainer={"overfit_batches": 2}), ValueError, "trains on a few fixed samples", "nothing to prune", "remove `overfit_batches` or DataPruning"),
]
# fmt: on
