"""Class weights in the loss: as a user would set them by hand, and gone outside the training step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import ranks
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from users import NUM_CLASSES, Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune import weighting
from lightning_fairprune.callbacks.class_weighting import ClassWeighting

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
DATA = {"n": 53, "batch_size": 8}  # 7 batches an epoch
VAL = Blobs(60, seed=1)  # what Data validates on


class LossModel(Model):
    """Has its loss as a module; notes the weights that steps saw."""

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss() if loss is None else loss
        self.seen: dict[str, list[list[float] | None]] = {"train": [], "val": [], "test": []}
        self.val_losses: list[float] = []

    def note(self, stage: str) -> None:
        weight = self.criterion.weight
        self.seen[stage].append(None if weight is None else weight.tolist())

    def loss_of(self, batch: Any) -> Tensor:
        x, y = batch
        loss: Tensor = self.criterion(self(x), y)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("train")
        return self.loss_of(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("val")
        self.val_losses.append(float(self.loss_of(batch)))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.note("test")
        self.loss_of(batch)

    def per_epoch(self, epochs: int) -> list[list[float] | None]:
        """The weights of each epoch, which must be the same in all its steps."""
        size = len(self.seen["train"]) // epochs
        parts = [self.seen["train"][e * size : (e + 1) * size] for e in range(epochs)]
        assert all(step == part[0] for part in parts for step in part)
        return [part[0] for part in parts]


class Functional(Model):
    """Calls the function, in a step that training and validation share."""

    weighting: ClassWeighting

    def shared(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y, weight=self.weighting.weight)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.shared(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.shared(batch), sync_dist=True)


class ByHand(Model):
    """A user who writes the whole of it without the callback."""

    def __init__(self, shrinkage: float = 10.0) -> None:
        super().__init__()
        self.shrinkage, self.weight = shrinkage, None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y, weight=self.weight)

    def on_validation_epoch_start(self) -> None:
        self.right, self.total = [0] * NUM_CLASSES, [0] * NUM_CLASSES

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for prediction, label in zip(self(x).argmax(1).tolist(), y.tolist(), strict=True):
            self.right[label] += prediction == label
            self.total[label] += 1

    def on_validation_epoch_end(self) -> None:
        mean = sum(r / n for r, n in zip(self.right, self.total, strict=True)) / NUM_CLASSES
        a = self.shrinkage
        recall = [(r + a * mean) / (n + a) for r, n in zip(self.right, self.total, strict=True)]
        tau = 2 / (1 + math.exp(1 - max(recall) / (min(recall) + 0.01)))
        raw = [(1 - r) ** tau for r in recall]
        self.weight = torch.tensor([NUM_CLASSES * w / sum(raw) for w in raw])


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def fit(
    model: Any, *callbacks: Any, data: Any = None, resume: str | None = None, **options: Any
) -> Any:
    pl.seed_everything(1, verbose=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    trainer = users.trainer(callbacks=list(callbacks), **options)
    trainer.fit(model, datamodule=Data(**DATA) if data is None else data, ckpt_path=resume)
    return model


def test_it_is_what_a_user_would_write_by_hand() -> None:
    by_hand = weights_of(fit(ByHand()))
    module = fit(LossModel(), ClassWeighting())
    callback = ClassWeighting(loss=None)
    functional = Functional()
    functional.weighting = callback
    fit(functional, callback)
    found = by_hand, weights_of(module), weights_of(functional)
    for expected, one, other in zip(*found, strict=True):
        assert torch.allclose(expected, one, atol=1e-6)
        assert torch.equal(one, other)
    plain = weights_of(fit(Model()))
    assert not torch.allclose(plain[0], by_hand[0], atol=1e-3)


class Recalls(pl.Callback):
    """The recalls of every validation, by a slow loop."""

    def __init__(self, pseudo: float) -> None:
        self.pseudo, self.recalls = pseudo, []

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        with torch.no_grad():
            right = module(VAL.x).argmax(1) == VAL.y
        tp = torch.bincount(VAL.y[right], minlength=NUM_CLASSES)
        counts = lfp.ClassCounts(tp, torch.bincount(VAL.y))
        self.recalls.append(counts.shrunk_recall(self.pseudo))


@pytest.mark.parametrize("shrinkage", [0.0, 10.0])
@pytest.mark.parametrize("weights", [weighting.cdb_w, partial(weighting.cdb_w, tau=1)])
def test_each_epoch_has_the_weights_of_the_validation_before(
    weights: Any, shrinkage: float
) -> None:
    recalls = Recalls(shrinkage)
    model = fit(LossModel(), ClassWeighting(weights, shrinkage=shrinkage), recalls)
    first, *later = model.per_epoch(4)
    assert first is None
    for found, recall in zip(later, recalls.recalls[:-1], strict=True):
        assert found == pytest.approx(weights(recall).tolist(), rel=1e-5)
    assert later[0] != later[1]


def test_every_second_validation_and_a_window_of_two() -> None:
    recalls = Recalls(0.0)
    callback = ClassWeighting(
        weighting.cdb_w_drop, update_every=2, recall_window=2, shrinkage=0, loss="criterion"
    )
    found = fit(LossModel(), callback, recalls, max_epochs=6).per_epoch(6)
    assert found[0] is None
    assert found[1] == found[2]
    assert found[3] == found[4]
    seen = [torch.tensor(w, dtype=torch.float64) for w in found if w is not None]
    assert torch.allclose(1 - seen[0], recalls.recalls[0], atol=1e-6)
    # The support is the same every time, so pooled counts are mean recalls.
    for epoch in (3, 5):
        pooled = (recalls.recalls[epoch - 2] + recalls.recalls[epoch - 1]) / 2
        assert torch.allclose(1 - seen[epoch - 1], pooled, atol=1e-6)


def test_validation_twice_an_epoch_changes_weights_in_the_middle() -> None:
    model = fit(LossModel(), ClassWeighting(), max_epochs=1, val_check_interval=0.5)
    seen = model.seen["train"]
    assert seen[:3] == [None] * 3
    assert None not in seen[3:]


def test_weights_are_gone_in_evaluation() -> None:
    model = LossModel()
    callback = ClassWeighting()
    trainer = users.trainer(callbacks=[callback], num_sanity_val_steps=2)
    trainer.fit(model, datamodule=Data(**DATA))
    trainer.test(model, datamodule=Data(**DATA), verbose=False)
    assert set(map(str, model.seen["val"] + model.seen["test"])) == {"None"}
    with torch.no_grad():
        expected = F.cross_entropy(model(VAL.x[:20]), VAL.y[:20])
    assert model.val_losses[-3] == pytest.approx(float(expected))
    assert model.criterion.weight is None
    assert callback.weight is not None  # the last ones, for whoever wants to look


def test_a_shared_step_reads_no_weights_in_evaluation() -> None:
    losses = []

    class Check(pl.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            with torch.no_grad():
                losses.append(float(F.cross_entropy(module(VAL.x), VAL.y)))
            assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(losses[-1])
            assert callback.weight is None

    callback, model = ClassWeighting(loss=None), Functional()
    model.weighting = callback
    fit(model, callback, Check())
    assert len(losses) == 4


def test_sanity_check_sets_nothing() -> None:
    model = fit(LossModel(), ClassWeighting(), num_sanity_val_steps=3, max_epochs=2)
    first, second = model.per_epoch(2)
    assert first is None
    assert second is not None


def test_a_class_without_an_error_leaves_the_loss_finite() -> None:
    """Predicts class 0 always: recalls 1 and 0, and batches of class 0 alone."""

    class Stuck(LossModel):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[:, :2] * 0 + torch.tensor([1.0, 0.0])

    def loader() -> Any:
        y = torch.tensor([0] * 8 + [1] * 4)
        return DataLoader(TensorDataset(torch.randn(12, users.DIM), y), batch_size=4)

    losses = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, out: Any, *_: Any) -> None:
            losses.append(float(out["loss"]))

    model, trainer = Stuck(), users.trainer(callbacks=[ClassWeighting(), Note()], max_epochs=2)
    trainer.fit(model, loader(), loader())
    assert model.per_epoch(2)[1][0] > 0
    assert all(map(math.isfinite, losses))


class TwoLoaders(Data):
    def val_dataloader(self) -> Any:
        wrong = TensorDataset(self.val.x, (self.val.y + 1) % NUM_CLASSES)
        return [DataLoader(wrong, batch_size=20), super().val_dataloader()]


def test_recalls_come_from_the_chosen_loader() -> None:
    class Two(LossModel):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    recalls = Recalls(10.0)
    options = {"data": TwoLoaders(**DATA), "max_epochs": 2}
    model = fit(Two(), ClassWeighting(recall_dataloader=1), recalls, **options)
    expected = weighting.cdb_w(recalls.recalls[0])
    assert model.per_epoch(2)[1] == pytest.approx(expected.tolist(), rel=1e-5)


class Nested(LossModel):
    """The loss lies deeper, takes log-probabilities, and there is a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = None
        self.head = nn.ModuleDict({"loss": nn.NLLLoss(), "spare": nn.CrossEntropyLoss()})

    def note(self, stage: str) -> None:
        weights = self.head["loss"].weight, self.head["spare"].weight
        assert weights[1] is None
        self.seen[stage].append(None if weights[0] is None else weights[0].tolist())

    def loss_of(self, batch: Any) -> Tensor:
        x, y = batch
        loss: Tensor = self.head["loss"](self(x).log_softmax(1), y)
        return loss


def test_a_loss_is_found_by_its_dotted_name() -> None:
    nested = fit(Nested(), ClassWeighting(loss="head.loss"))
    plain = fit(LossModel(), ClassWeighting())
    assert nested.per_epoch(4)[3] == pytest.approx(plain.per_epoch(4)[3], rel=1e-5)


def test_manual_optimisation() -> None:
    class Manual(LossModel):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    manual = fit(Manual(), ClassWeighting())
    automatic = fit(LossModel(), ClassWeighting())
    assert manual.per_epoch(4) == automatic.per_epoch(4)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6),
    reason="older compilers do not show the losses inside",
)
@pytest.mark.parametrize("what", ["loss", "module"])
def test_compiled_losses_see_the_weights(what: str) -> None:
    compiled: Any = LossModel()
    if what == "loss":
        compiled.criterion = torch.compile(compiled.criterion, backend="eager")
    else:
        compiled.loss_of = torch.compile(compiled.loss_of, backend="eager")
    options = {"loss": "criterion"} if what == "loss" else {}
    found = weights_of(fit(compiled, ClassWeighting(**options)))
    expected = weights_of(fit(LossModel(), ClassWeighting()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true", "32-true"])
def test_precisions(precision: str) -> None:
    kinds = set()

    class Kind(LossModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.criterion.weight is not None:
                kinds.add(self.criterion.weight.dtype)
            return super().training_step(batch, batch_idx)

    model = fit(Kind(), ClassWeighting(), max_epochs=2, precision=precision)
    assert all(p.isfinite().all() for p in model.parameters())
    true = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    assert kinds == {true.get(precision, torch.float32)}


class Cast(LossModel):
    """Computes its logits in one precision and its loss in another."""

    def __init__(self, to: torch.dtype) -> None:
        super().__init__()
        self.to_dtype = to

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.to_dtype)


@pytest.mark.parametrize(
    ("precision", "logits"),
    [
        ("16-true", torch.float32),
        ("bf16-true", torch.float32),
        ("32-true", torch.bfloat16),
        ("32-true", torch.float64),
        ("bf16-mixed", torch.float64),
    ],
)
def test_weights_have_the_precision_of_the_loss(precision: str, logits: torch.dtype) -> None:
    callback = ClassWeighting()
    fit(Cast(logits), callback, max_epochs=2, precision=precision)
    assert callback.weight.dtype == logits


def test_gradient_accumulation_and_other_callbacks_stay_together() -> None:
    prune = lfp.DataPruning(0.4, 2, score=lfp.scores.el2n, keep="hard")
    monitor = lfp.RecallMonitor()
    options = {"data": Data(), "accumulate_grad_batches": 2}
    model = fit(LossModel(), prune, ClassWeighting(), monitor, **options)
    assert prune.selection is not None
    assert len(model.seen["train"]) == 2 * 11 + 2 * 5
    assert None not in model.seen["train"][11:]
    assert len(monitor.history.of("val")) == 4


def own() -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))


def saving(folder: Path, when: str, steps: int, **options: Any) -> ModelCheckpoint:
    """Saves in the middle of an epoch, at its end, or after validation."""
    options |= {"save_top_k": -1, "save_on_train_epoch_end": when == "epoch"}
    return ModelCheckpoint(
        folder, every_n_train_steps=steps if when == "batch" else None, **options
    )


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, own])
def test_checkpoints_are_those_of_a_fit_without_it(loss: Any, tmp_path: Path) -> None:
    """Same entries, the loss's own values, and strict loading both ways."""
    for name, callbacks in (("with", [ClassWeighting()]), ("without", [])):
        for when in ("batch", "epoch", "validation"):
            save = saving(tmp_path / name / when, when, 10, filename="last")
            fit(LossModel(loss()), *callbacks, save, enable_checkpointing=True, max_epochs=2)
    for when in ("batch", "epoch", "validation"):
        states = {}
        for name in ("with", "without"):
            path = sorted((tmp_path / name / when).glob("*.ckpt"))[-1]
            states[name] = torch.load(path, weights_only=True)["state_dict"]
        assert states["with"].keys() == states["without"].keys()
        for state in states.values():
            LossModel(loss()).load_state_dict(state, strict=True)
        assert ("criterion.weight" in states["with"]) == (loss is own)
        if loss is own:
            assert states["with"]["criterion.weight"].tolist() == [1, 2, 3, 4]


def test_class_weights_of_the_loss_come_back() -> None:
    model = fit(LossModel(own()), ClassWeighting())
    mine = [1.0, 2.0, 3.0, 4.0]
    assert model.per_epoch(4)[0] == mine
    assert sum(model.per_epoch(4)[1]) == pytest.approx(4)
    assert all(seen == mine for seen in model.seen["val"])
    assert model.criterion.weight.tolist() == mine


def test_weights_are_taken_back_after_an_exception() -> None:
    class Fails(LossModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.criterion.weight is not None:
                raise KeyError("in the middle of a step")
            return super().training_step(batch, batch_idx)

    model = Fails()
    with pytest.raises(KeyError, match="in the middle"):
        fit(model, ClassWeighting())
    assert model.criterion.weight is None


def test_weights_are_taken_back_where_a_module_skips_the_epoch() -> None:
    class Skips(LossModel):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.trainer.current_epoch > 0 and batch_idx == 2 else None

    class Look(pl.Callback):
        looked = 0

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.looked += 1
            assert module.criterion.weight is None

    look = Look()
    model = fit(Skips(), ClassWeighting(), look)
    assert look.looked == 4
    assert len(model.seen["train"]) == 7 + 3 * 2
    assert None not in model.seen["train"][7:]


def test_second_fit_starts_afresh() -> None:
    callback = ClassWeighting()
    first, second = (fit(LossModel(), callback, max_epochs=2).per_epoch(2) for _ in range(2))
    assert first == second
    assert first[0] is None


@pytest.mark.parametrize("loss", ["auto", None])
@pytest.mark.parametrize("when", ["epoch", "validation", "batch"])
def test_a_resumed_fit_ends_with_the_same_weights(
    when: str, loss: str | None, tmp_path: Path
) -> None:
    def run(*more: Any, **options: Any) -> Any:
        # DataPruning makes the loader resumable inside an epoch.
        prune = lfp.DataPruning(0.5, 2, resample_every=None, update_every=None)
        callback = ClassWeighting(loss=loss, recall_window=2, update_every=2)
        model: Any = Functional() if loss is None else LossModel()
        model.weighting = callback
        fit(model, callback, prune, *more, **options)
        return weights_of(model), callback.weight

    save = saving(tmp_path, when, 5, filename="{step}")
    full, last = run(save, enable_checkpointing=True)
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert len(checkpoints) == 4
    for path in checkpoints:
        found, weight = run(resume=str(path))
        if path != checkpoints[-1]:  # after which there is nothing to do
            assert torch.equal(weight, last), path.name
        assert all(torch.equal(a, b) for a, b in zip(full, found, strict=True)), path.name


def test_a_state_is_a_moment_and_moves_to_the_device_of_the_module() -> None:
    states = []

    class Keep(pl.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            states.append(callback.state_dict()["weight"])

    callback = ClassWeighting()
    model = fit(LossModel(), callback, Keep())
    assert [state.tolist() for state in states[:-1]] == model.per_epoch(4)[1:]
    again: Any = ClassWeighting()
    again.load_state_dict(callback.state_dict())
    trainer = users.trainer()
    trainer.fit_loop.epoch_progress.current.completed = 4
    again.on_train_start(trainer, SimpleNamespace(device="meta"))
    assert again.weight.device.type == "meta"


def test_checkpoint_of_the_last_batch_is_told(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=7)
    fit(LossModel(), ClassWeighting(), save, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="taken on the last batch of epoch 1"):
        fit(LossModel(), ClassWeighting(), resume=str(tmp_path / "step=14.ckpt"))


def test_a_checkpoint_resumes_without_the_callback_and_one_without_with_it(tmp_path: Path) -> None:
    for name, first, second in (("gone", [ClassWeighting()], []), ("new", [], [ClassWeighting()])):
        save = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1)
        fit(LossModel(), *first, save, enable_checkpointing=True, max_epochs=2)
        path = tmp_path / name / "epoch=1.ckpt"
        warns = pytest.warns(UserWarning, match="ClassWeighting")  # the Trainer's
        with warns if name == "gone" else nullcontext():
            model = fit(LossModel(), *second, resume=str(path))
        assert model.criterion.weight is None
        assert (model.seen["train"][-1] is None) == (name == "gone")


def on_two_ranks() -> dict[str, Any]:
    """One fit: what a rank saw."""
    model, recalls = LossModel(), Recalls(10.0)
    data = Data(n=104, batch_size=5)
    fit(model, ClassWeighting(), recalls, devices=2, strategy="ddp", data=data)
    return {
        "seen": model.per_epoch(4),
        "expected": [weighting.cdb_w(recall).tolist() for recall in recalls.recalls[:-1]],
        "parameters": [p.tolist() for p in model.parameters()],
    }


def test_two_ranks_have_the_weights_of_all_samples(tmp_path: Path) -> None:
    [[one, other]] = ranks.launch(__file__, [{}], tmp_path)
    assert one == other
    first, *later = one["seen"]
    assert first is None
    for found, expected in zip(later, one["expected"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"recall_window": 0}, "`recall_window` must be at least 1 validation, got 0"),
        ({"update_every": 0}, "`update_every` must be at least 1 validation, got 0"),
        ({"shrinkage": -1.0}, "`shrinkage` must be 0 or more samples, got -1.0"),
        ({"shrinkage": float("nan")}, "`shrinkage` must be 0 or more samples, got nan"),
        ({"recall_dataloader": -1}, "`recall_dataloader` must be 0 or more, got -1"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ClassWeighting(**options)


@pytest.mark.parametrize(
    ("model", "loss", "match"),
    [
        (Model, "auto", "among the modules of Model, found none: .* pass `loss=None`"),
        (Nested, "auto", "found 'head.loss', 'head.spare': name one of them"),
        (LossModel, "loss", "'loss' is nothing; there is 'criterion'"),
        (LossModel, "net", "of LossModel, 'net' is Sequential; there is 'criterion'"),
        (Model, "head.loss", "'head.loss' is nothing; there is none"),
    ],
)
def test_a_loss_that_is_not_there_is_told_before_training(
    model: Any, loss: str, match: str
) -> None:
    class Untouched(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            pytest.fail("training began")

    with pytest.raises(ValueError, match=match):
        fit(model(), ClassWeighting(loss=loss), Untouched())


def test_validation_is_needed_and_the_loader_of_the_recalls() -> None:
    with pytest.raises(ValueError, match="there is no validation: give a val_dataloader"):
        fit(LossModel(), ClassWeighting(), limit_val_batches=0)
    with pytest.raises(ValueError, match=r"validation loader 3 \(`recall_dataloader`\) must give"):
        fit(LossModel(), ClassWeighting(recall_dataloader=3))


def test_weights_that_nobody_reads_are_told() -> None:
    with pytest.raises(ValueError, match="no training step has read `weight` in an epoch"):
        fit(Model(), ClassWeighting(loss=None))

    # Nor does it help to look at them in validation, or before there are any.
    class Early(Functional):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.current_epoch == 0:
                assert self.weighting.weight is None

        training_step = Model.training_step

    model = Early()
    model.weighting = callback = ClassWeighting(loss=None)
    with pytest.raises(ValueError, match="no training step has read"):
        fit(model, callback)


@pytest.mark.parametrize(
    ("found", "match"),
    [
        ([1.0, 2.0], r"one weight for each of 4 classes, got shape \[2\]"),
        (1.0, r"got shape \[\]"),
        ([1.0, -1.0, 1.0, 1.0], "finite weights of 0 or more, not all of them 0, got .*-1.0"),
        ([1.0, float("nan"), 1.0, 1.0], "got .*nan"),
        ([0.0] * 4, "not all of them 0"),
    ],
)
def test_weights_of_the_user_are_checked(found: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit(LossModel(), ClassWeighting(weights=lambda recall: found))


def test_own_weights_may_be_a_list_or_the_recalls_themselves() -> None:
    model = fit(LossModel(), ClassWeighting(lambda recall: [1, 2, 3, 4]), max_epochs=2)
    assert model.per_epoch(2)[1] == [1, 2, 3, 4]
    fit(LossModel(), ClassWeighting(lambda recall: recall), max_epochs=2, precision="64-true")


def test_what_the_users_function_returns_is_left_alone() -> None:
    returned: list[Tensor] = []

    def weights(recall: Tensor) -> Tensor:
        returned.append(torch.full((NUM_CLASSES,), 1.0 + len(returned), dtype=torch.float64))
        return returned[-1]

    fit(LossModel(), ClassWeighting(weights), precision="64-true")
    assert [float(tensor[0]) for tensor in returned] == [1, 2, 3, 4]


if __name__ == "__main__":
    ranks.main(on_two_ranks)
