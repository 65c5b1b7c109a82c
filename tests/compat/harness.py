"""What every project must show, whichever packages it is made of.

A test file names its `PROJECTS` and has one test, `def test_project(check, runs): check(runs)`; conftest.py runs it
for each project and each of the `CHECKS`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

import lightning_fairprune as lfp
from lightning_fairprune.report import report

EPOCHS, WARMUP = 4, 1
RESUMED_FROM = 2  # epochs that the run had finished when it was resumed

# What `trainer.fit` is given besides the model: a datamodule, loaders, or nothing.
Data = dict[str, Any]


@dataclass(frozen=True)
class Project:
    """A project, as its author would write it.

    Args:
        name: of the test.
        model: the LightningModule, new in every run.
        data: what `trainer.fit` is given besides, new in every run.
        ids: from a batch as the training step sees it to the numbers of its samples, int [B].
        labels: of all training samples, int [N].
        predict: from module and a batch of `val` to predicted and true class of its samples.
        val: from module and data to the batches that are validated, as the validation step sees them.
        prune: arguments of DataPruning besides density and warm-up.
        monitor: arguments of RecallMonitor.
        trainer: arguments of the Trainer.
        drop_last: whether the training loader drops a last batch that is not full.
        package: ``"lightning.pytorch"`` or ``"pytorch_lightning"``.
        reseed: sets random states of the data that are its own, as a resumed run must to be the same.
    """

    name: str
    model: Callable[[], pl.LightningModule]
    data: Callable[[], Data]
    ids: Callable[[Any], Tensor]
    labels: Tensor
    predict: Callable[[Any, Any], tuple[Tensor, Tensor]]
    val: Callable[[pl.LightningModule, Data], Iterable[Any]] | None = None
    prune: Mapping[str, Any] = field(default_factory=dict)
    monitor: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    drop_last: bool = False
    package: str = "lightning.pytorch"
    reseed: Callable[[Data, int], Any] = lambda data, seed: None


class Diary(pl.Callback):
    """Notes what the training steps were given and what the user's own metrics were.

    Args:
        ids: see `Project`.
        seeds: sets random states that the Trainer does not resume, so that each step starts from its own.
    """

    def __init__(
        self, ids: Callable[[Any], Tensor], seeds: Callable[[int], Any] | None = None
    ) -> None:
        self._ids, self._seeds = ids, seeds
        self.samples: dict[int, list[list[int]]] = {}  # of each batch of an epoch
        self.kept: dict[int, list[int]] = {}
        self.quota: dict[int, list[int] | None] = {}
        self.forms: set[str] = set()
        self.metrics: list[tuple[str, int, dict[str, float]]] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._seed(1000 * trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
        epoch = trainer.current_epoch
        # Again, as a resumed Trainer makes its iterator, which draws a number, at another moment.
        self._seed(1000 * epoch + i)
        self.samples.setdefault(epoch, []).append(self._ids(batch).tolist())
        self.forms.add(form(batch))
        for callback in trainer.callbacks:
            if isinstance(callback, lfp.DataPruning) and callback.selection is not None:
                self.kept[epoch] = callback.selection.indices.tolist()
                self.quota[epoch] = None if callback.quota is None else callback.quota.tolist()

    def _seed(self, seed: int) -> None:
        if self._seeds is not None:
            pl.seed_everything(seed, verbose=False)
            self._seeds(seed)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._note("validation", trainer)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._note("epoch", trainer)

    def on_test_end(self, trainer: Any, module: Any) -> None:
        self._note("test", trainer)

    def _note(self, when: str, trainer: Any) -> None:
        own = {k: float(v) for k, v in trainer.callback_metrics.items() if "/recall/" not in k}
        self.metrics.append((when, trainer.current_epoch, own))


def form(value: Any) -> str:
    """Returns what a batch looks like, whatever the number of its samples."""
    if isinstance(value, Tensor):
        return f"{type(value).__name__}({value.dtype}, {value.ndim})"
    if hasattr(value, "to_dict"):
        return f"{type(value).__name__}{form(value.to_dict())}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {form(value[key])}" for key in value)
        return f"{type(value).__name__}({inside})"
    if isinstance(value, list | tuple):
        kinds = [form(one) for one in value]
        if len(set(kinds)) == 1 and len(kinds) > 3:  # one a sample
            kinds = [*kinds[:1], "..."]
        return f"{type(value).__name__}({', '.join(kinds)})"
    return type(value).__name__


@dataclass
class Run:
    """What a run left behind."""

    module: pl.LightningModule
    data: Data
    diary: Diary
    callbacks: list[pl.Callback]
    folder: Path

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def checkpoint(self, epoch: int) -> str:
        """Returns the path of the checkpoint at the end of an epoch."""
        (found,) = self.folder.glob(f"checkpoints/epoch={epoch}-*.ckpt")
        return str(found)


class Runs:
    """The runs of a project that checks look at, each made when it is asked for."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project, self.folder = project, folder
        self._failed: dict[str, str] = {}

    def _trainer(
        self, name: str, callbacks: list[Any], seeds: Callable[[int], Any] | None = None
    ) -> tuple[Any, Diary]:
        diary = Diary(self.project.ids, seeds)
        folder = self.folder / name
        users = importlib.import_module(self.project.package)
        logging.getLogger(users.__name__).setLevel(logging.ERROR)
        save = users.callbacks.ModelCheckpoint(
            folder / "checkpoints",
            "{epoch}-{step}",
            save_top_k=-1 if name == "pruned" else 0,
            every_n_epochs=1,
        )
        options: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": EPOCHS,
            "logger": users.loggers.CSVLogger(str(folder), name="", version="log"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        } | dict(self.project.trainer)
        extra = options.pop("callbacks", [])
        return users.Trainer(callbacks=[*extra, *callbacks, diary, save], **options), diary

    def _fit(
        self, name: str, callbacks: list[Any], *, resume: str | None = None, seeds: bool = False
    ) -> Run:
        if name in self._failed:  # once is enough
            raise RuntimeError(f"{name}: {self._failed[name]}")
        pl.seed_everything(1, verbose=False)
        module, data = self.project.model(), self.project.data()
        reseed = partial(self.project.reseed, data) if seeds else None
        trainer, diary = self._trainer(name, callbacks, reseed)
        try:
            trainer.fit(module, **data, ckpt_path=resume)
        except Exception as error:
            self._failed[name] = str(error)
            raise
        return Run(module, data, diary, callbacks, self.folder / name)

    def _monitor(self) -> lfp.RecallMonitor:
        return lfp.RecallMonitor(figures=False, **self.project.monitor)

    def _prune(self) -> lfp.DataPruning:
        options = {"density": 0.5, "warmup_epochs": WARMUP} | dict(self.project.prune)
        return lfp.DataPruning(**options)

    @cached_property
    def plain(self) -> Run:
        """Without the library."""
        return self._fit("plain", [])

    @cached_property
    def monitored(self) -> Run:
        """With RecallMonitor alone."""
        return self._fit("monitored", [self._monitor()])

    @cached_property
    def pruned(self) -> Run:
        """With both callbacks; every step starts from a random state of its own."""
        return self._fit("pruned", [self._prune(), self._monitor()], seeds=True)

    @cached_property
    def resumed(self) -> Run:
        """The second half of the run before, from its checkpoint."""
        at = self.pruned.checkpoint(RESUMED_FROM - 1)
        return self._fit("resumed", [self._prune(), self._monitor()], resume=at, seeds=True)

    def tested(self) -> tuple[lfp.RecallMonitor, Diary]:
        """Returns the monitor and the diary of a test of the pruned run's last checkpoint."""
        pl.seed_everything(1, verbose=False)
        module, data = self.project.model(), self.project.data()
        monitor = self._monitor()
        trainer, diary = self._trainer("tested", [self._prune(), monitor])
        if "val_dataloaders" in data:
            data = {"dataloaders": data["val_dataloaders"]}
        trainer.test(module, **data, ckpt_path=self.pruned.checkpoint(EPOCHS - 1), verbose=False)
        return monitor, diary

    def validated(self, run: Run) -> Iterable[Any]:
        """Returns the batches of the validation data."""
        if self.project.val is not None:
            return self.project.val(run.module, run.data)
        if "datamodule" in run.data:
            return run.data["datamodule"].val_dataloader()
        return run.data.get("val_dataloaders") or run.module.val_dataloader()

    def recalls(self, run: Run) -> list[float]:
        """Returns the recall of each class on the validation data, by an obvious loop."""
        right, all_of = [0] * 100, [0] * 100
        run.module.eval()
        for batch in self.validated(run):
            with torch.no_grad():
                predicted, target = self.project.predict(run.module, batch)
            for p, t in zip(predicted.tolist(), target.tolist(), strict=True):
                right[t] += p == t
                all_of[t] += 1
        return [r / n for r, n in zip(right, all_of, strict=True) if n]


# ---------------------------------------------------------------------------------------- checks


def monitor_changes_nothing(runs: Runs) -> None:
    """With RecallMonitor alone, weights and the user's own metrics are the same to the last bit."""
    plain, monitored = runs.plain, runs.monitored
    assert same(plain.weights, monitored.weights)
    assert plain.diary.samples == monitored.diary.samples
    assert plain.diary.metrics[-1][2], "the project logs no metric of its own"
    assert repr(plain.diary.metrics) == repr(monitored.diary.metrics)  # NaN is NaN


def recalls_are_those_of_the_network(runs: Runs) -> None:
    """The monitored recalls are those of the network's own predictions."""
    for run in (runs.monitored, runs.pruned):
        monitor = run.callbacks[-1]
        assert isinstance(monitor, lfp.RecallMonitor)
        found, expected = monitor.counts["val"].recall.tolist(), runs.recalls(run)
        assert found == expected
        assert len({round(r, 6) for r in expected}) > 1, "recalls that are all equal prove little"


def selection_is_what_is_trained_on(runs: Runs) -> None:
    """Every epoch after the swap trains on the selection, of the quota's classes, in batches of the same form."""
    diary, labels = runs.pruned.diary, runs.project.labels
    plain = runs.plain.diary
    everything, size = list(range(len(labels))), len(plain.samples[0][0])
    for epoch in range(EPOCHS):
        trained = sorted(i for batch in diary.samples[epoch] for i in batch)
        wanted = everything if epoch < WARMUP else diary.kept[epoch]
        if runs.project.drop_last:
            assert len(trained) == len(set(trained)) == len(wanted) // size * size
            assert set(trained) <= set(wanted)
        else:
            assert trained == wanted
        if epoch < WARMUP:
            continue
        quota = diary.quota[epoch]
        sizes = torch.bincount(labels[diary.kept[epoch]], minlength=int(labels.max()) + 1)
        assert quota is None or sizes.tolist() == quota
    prune = runs.pruned.callbacks[0]
    assert isinstance(prune, lfp.DataPruning)
    known = prune.record.target >= 0  # all but those that a last batch dropped
    assert torch.equal(prune.record.target[known], labels[known])
    assert int((~known).sum()) <= runs.project.drop_last * size
    assert sorted(diary.kept) == list(range(WARMUP, EPOCHS))
    assert diary.forms == plain.forms
    assert len(diary.samples[EPOCHS - 1][0]) == size


def resumes_to_the_last_bit(runs: Runs) -> None:
    """A run resumed from a checkpoint is the same as the run that was not interrupted."""
    whole, resumed = runs.pruned, runs.resumed
    assert sorted(resumed.diary.samples) == list(range(RESUMED_FROM, EPOCHS))
    for epoch in range(RESUMED_FROM, EPOCHS):
        assert resumed.diary.samples[epoch] == whole.diary.samples[epoch]
    assert same(whole.weights, resumed.weights)


def checkpoint_can_be_tested(runs: Runs) -> None:
    """`trainer.test(ckpt_path=...)` gives the recalls of the checkpoint's weights."""
    monitor, diary = runs.tested()
    assert monitor.counts["test"].recall.tolist() == runs.recalls(runs.pruned)
    assert diary.metrics[-1][2], "the project's test logs no metric of its own"


def report_can_be_written(runs: Runs) -> None:
    """`fairprune report` compares the pruned run with the one on all the data."""
    out = runs.folder / "report"
    full, pruned = runs.monitored.folder / "log", runs.pruned.folder / "log"
    report([f"pruned={pruned}"], reference=f"full={full}", out=out, data="val")
    assert any(out.glob("*.html"))


CHECKS = (
    monitor_changes_nothing,
    recalls_are_those_of_the_network,
    selection_is_what_is_trained_on,
    resumes_to_the_last_bit,
    checkpoint_can_be_tested,
    report_can_be_written,
)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two state dictionaries have the same bits."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one if isinstance(one[name], Tensor)
    )


# ---------------------------------------------------------------------------------------- data


def labels_of(n: int, num_classes: int = 3, seed: int = 0) -> Tensor:
    """Returns long-tailed labels, int64 [n]."""
    share = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.1][:num_classes])
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(share, n, replacement=True, generator=generator)


def images_of(labels: Tensor, size: int = 8, channels: int = 1, seed: int = 0) -> Tensor:
    """Returns noisy images of the classes, float [n, channels, size, size]."""
    shape = (channels, size, size)
    centre = torch.randn(10, *shape, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(seed))
    return 0.3 * centre[labels] + noise
