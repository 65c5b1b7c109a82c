"""Recalls of every class, logged, compared with a reference, kept in files and carried through checkpoints."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from users import Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune.callbacks._monitor.reference import ReferenceCounts
from lightning_fairprune.history import Evaluation, RecallHistory

DATA = {"n": 53, "batch_size": 8}
VAL = Blobs(60, seed=1)
K = 3
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2])


class Scripted(pl.LightningModule):
    """Predicts what the script of the epoch says."""

    def __init__(self, *scripts: list[int], width: int = K) -> None:
        super().__init__()
        self.scripts, self.width = torch.tensor(scripts), width
        self.weight = nn.Parameter(torch.zeros(()))
        self.fields: dict[str, Tensor] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, y = batch
        return F.cross_entropy(self.weight * F.one_hot(y, self.width).float(), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        i, y = batch
        script = self.scripts[min(self.current_epoch, len(self.scripts) - 1)]
        F.cross_entropy(F.one_hot(script[i], self.width).float(), y)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    *callbacks: Any, model: Any = None, data: Any = None, resume: Any = None, **options: Any
) -> Any:
    """One fit; the trainer."""
    trainer = users.trainer(callbacks=list(callbacks), **options)
    trainer.fit(model or Model(), data or Data(**DATA), ckpt_path=resume)
    return trainer


def validate(monitor: Any, model: Any, data: Any, **options: Any) -> Any:
    """What one validation logs, for each loader."""
    return users.trainer(callbacks=[monitor], **options).validate(model, data, verbose=False)


def loader(labels: Tensor = LABELS) -> Any:
    return DataLoader(TensorDataset(torch.arange(len(labels)), labels), batch_size=4)


def slow_recalls(predictions: list[int], labels: Tensor = LABELS) -> dict[int, float]:
    right: dict[int, list[bool]] = {}
    for prediction, label in zip(predictions, labels.tolist(), strict=True):
        right.setdefault(label, []).append(prediction == label)
    return {label: sum(hits) / len(hits) for label, hits in right.items()}


MIXED = [0, 0, 0, 1, 2, 1, 1, 0, 1, 1]  # recalls 3/5, 3/4, 0/1


def test_values_are_those_of_a_slow_loop() -> None:
    monitor = lfp.RecallMonitor()
    (logged,) = validate(monitor, Scripted(MIXED), loader())
    recalls = slow_recalls(MIXED)
    values = list(recalls.values())
    mean = sum(values) / K
    expected = {
        "val/recall/worst": min(values),
        "val/recall/gap": max(values) - min(values),
        "val/recall/mean": mean,
        "val/recall/std": (sum((v - mean) ** 2 for v in values) / K) ** 0.5,
    } | {f"val/recall/class/{k}": v for k, v in recalls.items()}
    assert logged == pytest.approx(expected)
    assert monitor.counts["val"].tp.tolist() == [3, 3, 0]
    assert monitor.counts["val"].support.tolist() == [5, 4, 1]


def test_checkpoint_keeps_the_epoch_with_the_best_worst_class(tmp_path: Any) -> None:
    # Accuracy is best in epoch 0, the worst class in epoch 1.
    scripts = [
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 1, 0, 0, 2],
        [0, 0, 1, 1, 1, 1, 1, 0, 0, 2],
    ]
    best = ModelCheckpoint(
        tmp_path, monitor="val/recall/worst", mode="max", filename="{epoch}", save_top_k=1
    )
    trainer = users.trainer(
        callbacks=[lfp.RecallMonitor(), best], enable_checkpointing=True, max_epochs=3
    )
    trainer.fit(Scripted(*scripts), loader(), loader())
    assert best.best_model_path.endswith("epoch=1.ckpt")
    assert float(best.best_model_score) == pytest.approx(0.5)


def test_sanity_check_is_not_logged() -> None:
    class Check(pl.Callback):
        def on_sanity_check_end(self, trainer: Any, module: Any) -> None:
            assert not any("recall" in name for name in trainer.callback_metrics)
            assert monitor.counts == {}

    monitor = lfp.RecallMonitor()
    trainer = users.trainer(callbacks=[monitor, Check()], max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(Scripted(MIXED), loader(), loader())
    assert "val/recall/worst" in trainer.callback_metrics
    assert int(monitor.counts["val"].support.sum()) == len(LABELS)


def test_testing_logs_under_test() -> None:
    monitor = lfp.RecallMonitor()
    (logged,) = users.trainer(callbacks=[monitor]).test(Scripted(MIXED), loader(), verbose=False)
    assert logged["test/recall/worst"] == 0
    assert logged["test/recall/class/1"] == pytest.approx(3 / 4)
    assert not any(name.startswith("val") for name in logged)
    assert set(monitor.counts) == {"test"}


def test_class_names_and_classes_without_samples() -> None:
    names = ["cat", "dog", "owl", "yak"]
    model = Scripted([0, 0, 1, 1, 3, 1, 1, 1, 1, 3], width=4)  # no label 3 in the data
    (logged,) = validate(lfp.RecallMonitor(class_names=names), model, loader())
    assert logged["val/recall/class/cat"] == pytest.approx(2 / 5)
    assert logged["val/recall/class/dog"] == 1
    assert logged["val/recall/class/owl"] == 0
    assert "val/recall/class/yak" not in logged
    assert logged["val/recall/mean"] == pytest.approx((2 / 5 + 1 + 0) / 3)


def test_second_loader_logs_under_its_number() -> None:
    labels = LABELS.flip(0)
    first, second = validate(lfp.RecallMonitor(), Scripted(MIXED), [loader(), loader(labels)])
    logged = first | second
    for prefix, recalls in (("val", slow_recalls(MIXED)), ("val/1", slow_recalls(MIXED, labels))):
        assert logged[f"{prefix}/recall/worst"] == pytest.approx(min(recalls.values()))
        for label, recall in recalls.items():
            assert logged[f"{prefix}/recall/class/{label}"] == pytest.approx(recall)


class Memory(pl.loggers.logger.DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= metrics


@pytest.mark.parametrize(("classes", "monitored"), [(100, True), (101, False)])
def test_many_classes_go_to_the_loggers_only(classes: int, monitored: bool) -> None:
    labels, logger = torch.arange(classes), Memory()
    model = Scripted((labels // 2 * 2).tolist(), width=classes)
    (logged,) = validate(lfp.RecallMonitor(), model, loader(labels), logger=logger)
    assert logged["val/recall/mean"] == pytest.approx((classes - classes // 2) / classes)
    assert ("val/recall/class/4" in logged) is monitored
    assert logger.metrics["val/recall/class/4"] == 1
    assert logger.metrics["val/recall/class/5"] == 0


def test_logits_fn_serves_the_monitor() -> None:
    def script(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        i, y = batch
        return F.one_hot(module.scripts[0][i], K).float(), y

    class NoLoss(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    (logged,) = validate(lfp.RecallMonitor(logits_fn=script), NoLoss(MIXED), loader())
    assert logged["val/recall/class/1"] == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match=r"validation_step: the step returned no 'logits'"):
        validate(lfp.RecallMonitor(), NoLoss(MIXED), loader())


def counts(model: Any, data: Any, ids: Tensor | None = None, size: int = 4) -> lfp.ClassCounts:
    """Those of a model, by a loop."""
    with torch.no_grad():
        right = model(data.x).argmax(1) == data.y
    tp, support = torch.zeros(size).long(), torch.zeros(size).long()
    ids = data.y if ids is None else ids
    for hit, k in zip(right.tolist(), ids.tolist(), strict=True):
        support[k] += 1
        tp[k] += hit
    return lfp.ClassCounts(tp, support)


def slow_alpha(now: lfp.ClassCounts, before: lfp.ClassCounts) -> float:
    pairs = []
    for k in range(now.num_classes):
        x = (float(before.recall[k]) - before.accuracy) / before.accuracy
        y = (float(now.recall[k]) - now.accuracy) / now.accuracy
        pairs.append((x, y))
    return sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)


def check_distortion(logged: Any, now: lfp.ClassCounts, before: lfp.ClassCounts) -> None:
    change = now.recall - before.recall
    assert float(logged["val/recall/alpha"]) == pytest.approx(slow_alpha(now, before))
    assert float(logged["val/recall/worst_change"]) == pytest.approx(float(change.min()))
    disparity = (now.accuracy - before.accuracy) - float(change.min())
    assert float(logged["val/recall/disparity"]) == pytest.approx(disparity)


def history_of(model: Any, **options: Any) -> RecallHistory:
    evaluation = Evaluation("val", 1, 9, False, counts(model, VAL))
    return RecallHistory((evaluation,), **options)


@pytest.mark.parametrize("form", ["folder", "run", "json", "safetensors", "object"])
def test_reference_from_what_another_run_left(tmp_path: Path, form: str) -> None:
    torch.manual_seed(1)
    history = history_of(Model())
    history.save(tmp_path / "fairprune")
    reference: Any = {
        "folder": tmp_path / "fairprune",
        "run": str(tmp_path),
        "json": str(tmp_path / "fairprune" / "recalls.json"),
        "safetensors": tmp_path / "fairprune" / "recalls.safetensors",
        "object": history,
    }[form]
    model, monitor = Model(), lfp.RecallMonitor(reference=reference)
    trainer = fit(monitor, model=model, max_epochs=2)
    check_distortion(trainer.callback_metrics, counts(model, VAL), history.last("val").counts)


def test_the_model_of_the_fit_start_is_validated_in_full() -> None:
    model = Model()
    before = counts(model, VAL)
    monitor = lfp.RecallMonitor(reference="fit_start")
    trainer = fit(monitor, model=model, max_epochs=2, num_sanity_val_steps=1)
    assert torch.equal(monitor.history.reference["val"].tp, before.tp)
    assert torch.equal(monitor.history.reference["val"].support, before.support)
    check_distortion(trainer.callback_metrics, counts(model, VAL), before)
    assert trainer.num_sanity_val_steps == 1
    assert [e.epoch for e in monitor.history.evaluations] == [1, 2]


@pytest.mark.parametrize("reference", ["fit_start", "checkpoint", "before_pruning"])
def test_a_reference_changes_nothing_in_the_fit(tmp_path: Path, reference: str) -> None:
    def fitted(*callbacks: Any) -> Any:
        pl.seed_everything(3, verbose=False)
        model = Model()
        fit(lfp.DataPruning(0.5, 2), *callbacks, model=model, max_epochs=4)
        return model

    torch.manual_seed(9)
    path = tmp_path / "dense.ckpt"
    torch.save({"state_dict": Model().state_dict(), "global_step": 5, "epoch": 1}, path)
    source = str(path) if reference == "checkpoint" else reference
    plain, watched = fitted(), fitted(lfp.RecallMonitor(reference=source))
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_with_the_counts_of_its_weights_is_not_evaluated(tmp_path: Path) -> None:
    dense, first = Model(), lfp.RecallMonitor()
    fit(first, model=dense, max_epochs=1).save_checkpoint(tmp_path / "dense.ckpt")
    monitor = lfp.RecallMonitor(reference=tmp_path / "dense.ckpt")
    other = fit(monitor, max_epochs=1, num_sanity_val_steps=0)
    assert torch.equal(monitor.history.reference["val"].tp, first.counts["val"].tp)
    check_distortion(other.callback_metrics, monitor.counts["val"], first.counts["val"])
    # Also where there is no sanity check: in a validation.
    monitor = lfp.RecallMonitor(reference=tmp_path / "dense.ckpt")
    validate(monitor, dense, Data(**DATA))
    assert "val" in monitor.history.reference


def test_weights_of_a_checkpoint_are_validated_before_training(tmp_path: Path) -> None:
    class Plain(pl.Callback):
        """The fit's own weights are back when it begins."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            assert torch.equal(module.net[0].weight, start)

    dense, model = Model(), Model()
    start = model.net[0].weight.detach().clone()
    fit(model=dense, max_epochs=3).save_checkpoint(tmp_path / "dense.ckpt")
    monitor = lfp.RecallMonitor(reference=tmp_path / "dense.ckpt")
    trainer = fit(monitor, Plain(), model=model, max_epochs=1)
    before = counts(dense, VAL)
    assert torch.equal(monitor.history.reference["val"].tp, before.tp)
    check_distortion(trainer.callback_metrics, counts(model, VAL), before)


def test_counts_of_other_weights_in_a_checkpoint_do_not_count(tmp_path: Path) -> None:
    dense = Model()
    trainer = fit(lfp.RecallMonitor(every_n_epochs=2), model=dense, max_epochs=3)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")  # counted after epoch 2, saved after 3
    monitor = lfp.RecallMonitor(reference=tmp_path / "dense.ckpt")
    fit(monitor, max_epochs=1)
    before = counts(dense, VAL)
    assert torch.equal(monitor.history.reference["val"].tp, before.tp)
    with pytest.raises(ValueError, match=r"holds no class counts of its weights. Run trainer.test"):
        users.trainer(callbacks=[lfp.RecallMonitor(reference=tmp_path / "dense.ckpt")]).test(
            Model(), Data(**DATA), verbose=False
        )


@pytest.mark.parametrize("every", [1, 3])
def test_the_last_epoch_before_pruning(every: int) -> None:
    class Note(pl.Callback):
        def __init__(self) -> None:
            self.alpha: dict[int, float] = {}
            self.counts: dict[int, lfp.ClassCounts] = {}

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            self.counts[trainer.current_epoch] = counts(module, VAL)
            self.alpha[trainer.current_epoch] = float(trainer.callback_metrics["val/recall/alpha"])

    monitor = lfp.RecallMonitor(reference="before_pruning", every_n_epochs=every)
    note = Note()
    fit(lfp.DataPruning(0.5, 2), monitor, note, max_epochs=6)
    assert torch.equal(monitor.history.reference["val"].tp, note.counts[1].tp)
    # A model next to itself.
    assert [note.alpha[0], note.alpha[1]] == pytest.approx([1, 1])
    assert note.alpha[5] == pytest.approx(slow_alpha(note.counts[5], note.counts[1]))
    expected = {1: range(1, 7), 3: (1, 2, 3, 6)}[every]
    assert [e.epoch for e in monitor.history.evaluations] == list(expected)
    assert [e.pruned for e in monitor.history.evaluations] == [e > 2 for e in expected]


def test_alpha_can_be_monitored_from_the_first_epoch(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/recall/alpha", mode="min", filename="{epoch}")
    monitor = lfp.RecallMonitor(reference="before_pruning")
    fit(lfp.DataPruning(0.5, 2), monitor, best, enable_checkpointing=True)
    assert best.best_model_score is not None


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("reference", [None, "fit_start", "before_pruning"])
def test_a_resumed_fit_goes_on_counting(tmp_path: Path, reference: str | None) -> None:
    def history_of_fit(epochs: int, resume: Any = None) -> RecallHistory:
        monitor = lfp.RecallMonitor(reference=reference)
        folder = tmp_path / ("whole" if resume is None else "resumed")
        keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        pl.seed_everything(3, verbose=False)
        options = {"enable_checkpointing": True, "max_epochs": epochs}
        fit(lfp.DataPruning(0.5, 2), monitor, keep, resume=resume, **options)
        return monitor.history

    whole = history_of_fit(5)
    resumed = history_of_fit(5, tmp_path / "whole" / "epoch=2.ckpt")
    assert [e[:4] for e in resumed.evaluations] == [e[:4] for e in whole.evaluations]
    for one, other in zip(resumed.evaluations, whole.evaluations, strict=True):
        assert torch.equal(one.counts.tp, other.counts.tp)
    assert resumed.reference.keys() == whole.reference.keys() == ({"val"} if reference else set())
    for name in whole.reference:
        assert torch.equal(resumed.reference[name].tp, whole.reference[name].tp)


def test_a_test_after_the_fit_joins_its_history() -> None:
    monitor, model = lfp.RecallMonitor(), Model()
    trainer = fit(monitor, model=model, max_epochs=2)
    trainer.test(model, Data(**DATA), verbose=False)
    seen = [(e.name, e.epoch) for e in monitor.history.evaluations]
    assert seen == [("val", 1), ("val", 2), ("test", 2)]
    fit(monitor, model=model, max_epochs=1)
    assert [(e.name, e.epoch) for e in monitor.history.evaluations] == [("val", 1)]


class TwoLoaders(Data):
    """A second loader with other samples, as a list or as a dictionary."""

    def __init__(self, named: bool) -> None:
        super().__init__(**DATA)
        self.named = named

    def val_dataloader(self) -> Any:
        other = DataLoader(Blobs(40, seed=2), batch_size=20)
        main = super().val_dataloader()
        return {"plain": main, "spurious": other} if self.named else [main, other]


class TwoLoaderModel(Model):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        F.cross_entropy(self(x), y)


@pytest.mark.parametrize("named", [True, False])
def test_loaders_have_names(named: bool) -> None:
    names = None if named else ["plain", "spurious"]
    model, monitor = TwoLoaderModel(), lfp.RecallMonitor(dataloader_names=names)
    trainer = fit(monitor, model=model, data=TwoLoaders(named), max_epochs=1)
    assert monitor.history.names == ("val/plain", "val/spurious")
    for name, data in (("plain", VAL), ("spurious", Blobs(40, seed=2))):
        worst = float(trainer.callback_metrics[f"val/{name}/recall/worst"])
        assert worst == pytest.approx(counts(model, data).worst)
    trainer.test(model, Data(**DATA), verbose=False)
    assert monitor.history.names[-1] == "test"


def side(batch: Any) -> Tensor:
    """Label x attribute, where the attribute is the sign of a feature."""
    x, y = batch
    return 2 * y + (x[:, 1] > 0).long()


def group_counts(model: Any) -> lfp.ClassCounts:
    return counts(model, VAL, side((VAL.x, VAL.y)), 8)


def test_groups_are_counted_besides_the_classes(tmp_path: Path) -> None:
    names = [f"{letter}{sign}" for letter in "abcd" for sign in "-+"]
    model = Model()
    before = group_counts(model)
    options: Any = {"reference": "fit_start", "dirpath": tmp_path}
    monitor = lfp.RecallMonitor(group_by=side, group_names=names, **options)
    trainer = fit(monitor, model=model, max_epochs=2)
    now, logged = group_counts(model), trainer.callback_metrics
    assert torch.equal(monitor.counts["val/groups"].tp, now.tp)
    assert torch.equal(monitor.counts["val/groups"].support, now.support)
    assert torch.equal(monitor.history.reference["val/groups"].tp, before.tp)
    assert float(logged["val/groups/recall/worst"]) == pytest.approx(now.worst)
    assert float(logged["val/recall/worst"]) == pytest.approx(counts(model, VAL).worst)
    for k, name in enumerate(names):
        if now.support[k]:
            value = float(logged[f"val/groups/recall/group/{name}"])
            assert value == pytest.approx(float(now.recall[k]))
    assert math.isfinite(float(logged["val/groups/recall/alpha"]))
    read = RecallHistory.load(tmp_path)
    assert read.names == ("val", "val/groups")
    assert read.names_of("val/groups") == tuple(names)
    assert read.names_of("val") is None
    assert (tmp_path / "recalls-val-groups.png").is_file()


def test_groups_that_an_evaluation_never_meets() -> None:
    """Three in validation, one more in the test, one that nobody meets."""
    few = TensorDataset(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0]))
    more = TensorDataset(torch.tensor([0, 1, 3]), torch.tensor([0, 1, 0]))

    class Echo(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            F.cross_entropy(F.one_hot(torch.zeros_like(batch[1]), K).float(), batch[1])

    loaders = [DataLoader(few, batch_size=2), DataLoader(more, batch_size=2)]
    monitor = lfp.RecallMonitor(group_by=0)
    trainer = users.trainer(callbacks=[monitor])
    for data in (loaders[0], loaders[1], loaders[0]):
        (logged,) = trainer.validate(Echo([0]), data, verbose=False)
    evaluations = monitor.history.of("val/groups")
    support = [e.counts.support.tolist() for e in evaluations]
    assert support == [[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert evaluations[0].counts.tp.tolist() == [1, 0, 1, 0]
    assert logged["val/groups/recall/worst"] == 0
    assert "val/groups/recall/group/3" not in logged
    names = ["a", "b", "c", "d", "e"]
    monitor = lfp.RecallMonitor(group_by=0, group_names=names)
    validate(monitor, Echo([0]), loaders[0])
    assert monitor.counts["val/groups"].num_classes == 5
    monitor = lfp.RecallMonitor(group_by=0, group_names=names[:2])
    with pytest.raises(ValueError, match="`group_names` must name each of 3 groups, got 2"):
        validate(monitor, Echo([0]), loaders[0])


def test_a_run_leaves_its_counts_next_to_the_log(tmp_path: Path) -> None:
    pl.seed_everything(5, verbose=False)
    monitor = lfp.RecallMonitor(class_names=["a", "b", "c", "d"], reference="fit_start")
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = fit(monitor, max_epochs=2, logger=logger)
    files = {path.name for path in (tmp_path / "run" / "fairprune").iterdir()}
    assert files == {"recalls.json", "recalls.safetensors", "recalls-val.png"}
    read = RecallHistory.load(tmp_path / "run")
    assert [e.epoch for e in read.evaluations] == [1, 2]
    assert read.class_names == ("a", "b", "c", "d")
    assert read.seed == 5
    assert "val" in read.reference
    last = json.loads((tmp_path / "run" / "fairprune" / "recalls.json").read_text())["last"]
    assert last["val"]["tp"] == monitor.counts["val"].tp.tolist()
    head = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("worst", "gap", "std", "mean", "alpha", "worst_change", "disparity", "class/a"):
        assert f"val/recall/{name}" in head
    trainer.test(Model(), Data(**DATA), verbose=False)
    assert RecallHistory.load(tmp_path / "run").names == ("val", "test")
    assert (tmp_path / "run" / "fairprune" / "recalls-test.png").read_bytes()[1:4] == b"PNG"


def test_dirpath_and_no_figures(tmp_path: Path) -> None:
    monitor = lfp.RecallMonitor(dirpath=tmp_path / "here", figures=False)
    fit(monitor, max_epochs=1)
    found = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert found == ["recalls.json", "recalls.safetensors"]


def test_without_a_logger_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    fit(lfp.RecallMonitor(), max_epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_scalars_and_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    monitor = lfp.RecallMonitor(reference="fit_start")
    fit(monitor, max_epochs=2, logger=logger)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "val/recall/alpha" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["val/recall/classes"]
    assert len(events.Images("val/recall/classes")) == 2
    worst = events.Scalars("val/recall/worst")[-1].value
    assert worst == pytest.approx(monitor.counts["val"].worst)
    assert (tmp_path / "run" / "fairprune" / "recalls.safetensors").is_file()


class Service(Memory):
    """A logger of a service: runs share a folder, figures are taken as images."""

    name, version = "project", "a1b2"  # type: ignore[assignment]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.images = folder, []

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.images.append((key, type(images[0]).__name__, step))


def test_loggers_that_take_images_get_them(tmp_path: Path) -> None:
    logger = Service(tmp_path)
    fit(lfp.RecallMonitor(), max_epochs=1, logger=logger)
    assert logger.images == [("val/recall/classes", "Figure", 7)]
    assert (tmp_path / "project" / "a1b2" / "fairprune" / "recalls.json").is_file()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dataloader_names": ["x", "x"]}, "`dataloader_names` must differ"),
        ({"group_names": ["x"]}, "`group_names` needs `group_by`"),
        (
            {"num_classes": 3, "class_names": ["a", "b"]},
            "`class_names` must name each of 3 classes, got 2",
        ),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lfp.RecallMonitor(**options)


def reference(*support: int, **options: Any) -> RecallHistory:
    found = lfp.ClassCounts(torch.zeros(len(support)).long(), torch.tensor(support))
    return RecallHistory((Evaluation("val", 1, 1, False, found),), **options)


RIGHT = torch.bincount(VAL.y).tolist()
LETTERS = ["a", "b", "c", "d"]
BAD_REFERENCES: dict[str, tuple[RecallHistory, dict[str, Any], str]] = {
    "fewer classes": (
        reference(*RIGHT[:3]),
        {"num_classes": 4},
        "`reference` must have the 4 classes of `num_classes`, it has 3 for 'val'",
    ),
    "fewer than names": (
        reference(*RIGHT[:3]),
        {"class_names": LETTERS},
        "`reference` must have the 4 classes of `class_names`, it has 3 for 'val'",
    ),
    "other names": (
        reference(*RIGHT, class_names=("a", "b", "x", "d")),
        {"class_names": LETTERS},
        "class 2 is 'x' there and 'c' here",
    ),
    "other number of names": (
        reference(*RIGHT[:3], class_names=("a", "b", "x")),
        {"class_names": LETTERS},
        "must have the 4 classes of `class_names`, it has 3",
    ),
    "other data": (
        reference(500, 500, 500, 500),
        {},
        "the reference of 'val' must be counted on the same data: it has 500 samples of class 0",
    ),
    "nothing": (RecallHistory(), {}, "must hold at least one evaluation, it has none"),
}


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_a_reference_of_something_else_is_refused_before_training(name: str) -> None:
    class Untouched(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            pytest.fail("training began")

    history, options, match = BAD_REFERENCES[name]
    monitor = lfp.RecallMonitor(reference=history, **options)
    data = Data(**DATA)
    data.val_dataloader = lambda: DataLoader(  # type: ignore[method-assign]
        TensorDataset(data.val.x, data.val.y), batch_size=20
    )
    with pytest.raises(ValueError, match=match):
        fit(monitor, Untouched(), data=data, max_epochs=1)


def test_a_reference_with_other_classes_is_refused_at_the_first_evaluation() -> None:
    monitor = lfp.RecallMonitor(reference=reference(60, 60))
    with pytest.raises(ValueError, match="must have the 4 classes of the model, it has 2"):
        validate(monitor, Model(), Data(**DATA))


def test_a_few_samples_more_are_what_ranks_repeat() -> None:
    more = [size + 1 for size in RIGHT]
    monitor = lfp.RecallMonitor(reference=reference(*more))
    validate(monitor, Model(), Data(**DATA))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_reference_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    def fit_with(reference: Any, **options: Any) -> None:
        fit(lfp.RecallMonitor(reference=reference), max_epochs=2, **options)

    with pytest.raises(FileNotFoundError, match="no file 'absent"):
        fit_with("absent.ckpt")
    with pytest.raises(FileNotFoundError, match="There are no recalls in"):
        fit_with(tmp_path)
    with pytest.raises(ValueError, match="must be counted in validation, and this fit has none"):
        fit_with("fit_start", limit_val_batches=0)
    inside = ModelCheckpoint(tmp_path / "run", every_n_train_steps=3, filename="inside")
    fit(inside, max_steps=3, enable_checkpointing=True)
    with pytest.raises(ValueError, match="resumes inside an epoch from a checkpoint without"):
        fit_with("fit_start", resume=tmp_path / "run" / "inside.ckpt")


class Empty(Data):
    def val_dataloader(self) -> Any:
        return DataLoader(VAL, batch_size=100, drop_last=True)

    test_dataloader = val_dataloader


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader`")
@pytest.mark.parametrize("what", ["fit", "validate", "test"])
def test_an_empty_evaluation_is_named(what: str) -> None:
    trainer = users.trainer(callbacks=[lfp.RecallMonitor()], max_epochs=1)
    with pytest.raises(ValueError, match=r"loader 0 of the .* must give at least one batch"):
        getattr(trainer, what)(Model(), Empty(**DATA))


def test_loader_names_are_as_many_as_loaders() -> None:
    monitor = lfp.RecallMonitor(dataloader_names=["one", "two", "three"])
    told = "`dataloader_names` must name each of the 2 loaders, got 3"
    with pytest.raises(ValueError, match=told):
        fit(monitor, model=TwoLoaderModel(), data=TwoLoaders(False), max_epochs=1)


def test_sharded_weights_are_not_evaluated(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "dense.ckpt")
    options: Any = {"enable_validation": True, "limit_val_batches": 1.0}
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy(), **options)
    reference = ReferenceCounts(str(tmp_path / "dense.ckpt"), None)
    with pytest.raises(ValueError, match="FSDPStrategy shards the weights"):
        reference.setup(trainer, "fit")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_test_after_a_finished_fit_was_resumed_is_whole(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="last")
    fit(save, lfp.RecallMonitor(), max_epochs=2, enable_checkpointing=True)
    monitor, model = lfp.RecallMonitor(), Model()
    options = {"max_epochs": 2, "num_sanity_val_steps": 2, "resume": tmp_path / "last.ckpt"}
    trainer = fit(monitor, model=model, **options)
    # Fewer batches than the validation has, which no epoch of the resumed fit has run.
    trainer.test(model, DataLoader(users.Blobs(5), 10), verbose=False)
    assert monitor.history.last("test").counts.support.sum() == 5


@pytest.mark.parametrize(
    ("kind", "two"),
    [
        (lfp.RecallMonitor, (3, None)),
        (lfp.ClassWeighting, (lfp.weighting.cdb_w, "auto")),
        (lfp.DataPruning, (0.5, 1)),
        (lfp.WeightPruning, (lfp.criteria.magnitude, 0.5)),
    ],
)
def test_arguments_after_the_second_are_given_by_name_and_stay(kind: Any, two: Any) -> None:
    callback = kind(*two)
    with pytest.raises(TypeError, match="positional"):
        kind(*two, 1)
    for name in inspect.signature(kind).parameters:
        with pytest.raises(AttributeError):
            setattr(callback.settings, name, None)
    assert {f.name for f in dataclasses.fields(callback.settings)} == {
        *inspect.signature(kind).parameters
    }
