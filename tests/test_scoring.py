"""One pass over the data set: what it computes, what it leaves alone, and where it goes on."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import scenario
import torch
import torch.nn.functional as F
import torchmetrics
import users
from lightning.pytorch.loggers.logger import DummyLogger
from test_resume import RESUMABLE, saved
from test_swap import launch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torchmetrics.classification import MulticlassPrecision, MulticlassRecall

import lightning_fairprune as lfp
from lightning_fairprune import geometry, gradients, scores, signals
from lightning_fairprune.scoring import _look
from lightning_fairprune.scoring import file as pass_file
from lightning_fairprune.scoring.file import text_of

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
N, CLASSES = 47, 3
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
score_pass = partial(lfp.score_pass, progress=False)


def annotated(kind: Any, score: Any) -> Any:
    """A lambda whose first parameter says what the score is computed from."""
    score.__annotations__ = {next(iter(inspect.signature(score).parameters)): kind}
    return score


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6)
        )
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def data(n: int = N) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, 5, generator=generator)
    return TensorDataset(x, torch.arange(n) % CLASSES)


def one_by_one(net: nn.Module, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The slow obvious way: a forward pass for every sample."""
    net.eval()
    return torch.stack(
        [value(net(x[None]), torch.tensor([int(y)])).detach().reshape(()) for x, y in data()]
    )


def own_norm(net: nn.Module) -> Tensor:
    def norm(logits: Tensor, target: Tensor) -> Tensor:
        grads = torch.autograd.grad(F.cross_entropy(logits, target), list(net.parameters()))
        return torch.cat([g.flatten() for g in grads]).norm()

    return one_by_one(net, norm)


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True}, {"num_workers": 2}, {"drop_last": True}]
)
def test_el2n_of_every_sample(options: dict[str, Any]) -> None:
    net = Net()
    loader = DataLoader(data(), batch_size=10, **options)
    found = score_pass(net, loader, scores.el2n)
    torch.testing.assert_close(found, one_by_one(net, signals.el2n))


def test_grand_of_every_sample() -> None:
    net = Net()
    found = score_pass(net, DataLoader(data(), 10), gradients.grad_norm)
    torch.testing.assert_close(found, own_norm(net))


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    net = Net()
    seen = []

    def score(features: Tensor, target: Tensor) -> Tensor:
        seen.append((features, target))
        return geometry.prototype_distance(features, target)

    found = score_pass(net, DataLoader(data(), 10), score)
    net.eval()
    x, y = data().tensors
    features = net.body(x).detach()
    torch.testing.assert_close(seen[0][0], features)
    assert torch.equal(seen[0][1], y)
    torch.testing.assert_close(found, geometry.prototype_distance(features, y))


def test_another_layer() -> None:
    net, widths = Net(), []

    def score(features: Tensor) -> Tensor:
        widths.append(features.shape[1])
        return features.sum(1)

    score_pass(net, DataLoader(data(), 10), score, layer="body.1")
    assert widths == [8]


def weights(folder: Path, *seeds: int) -> list[Path]:
    paths = [folder / f"{seed}.pt" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        torch.save(Net(seed).state_dict(), path)
    return paths


@pytest.mark.parametrize("form", ["state_dict", "checkpoint"])
@pytest.mark.parametrize("score", [scores.el2n, gradients.grad_norm])
def test_query_models_are_averaged(score: Callable[..., Tensor], form: str, tmp_path: Path) -> None:
    paths, net = weights(tmp_path, 1, 2, 3), Net()
    for path in paths if form == "checkpoint" else ():
        torch.save({"state_dict": torch.load(path, weights_only=True), "epoch": 3}, path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    loader = DataLoader(data(), 10)
    found = score_pass(net, loader, score, checkpoints=paths)
    each = [score_pass(Net(seed), loader, score) for seed in (1, 2, 3)]
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_query_models_are_the_epochs_of_the_dynamics(tmp_path: Path) -> None:
    paths = weights(tmp_path, 1, 2)
    loader = DataLoader(data(), 10)
    found = score_pass(Net(), loader, lambda seen: seen.signal("loss")[1], checkpoints=paths)
    torch.testing.assert_close(found, one_by_one(Net(2), signals.loss))


def test_batches_of_another_form() -> None:
    class Dicts(Dataset[Any]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> dict[str, Any]:
            x, y = data()[i]
            return {"image": x, "class": int(y)}

    net = Net()
    loader = DataLoader(Dicts(), 10)
    found = score_pass(net, loader, scores.el2n, logits_fn=lambda m, b: (m(b["image"]), b["class"]))
    torch.testing.assert_close(found, one_by_one(net, signals.el2n))
    with pytest.raises(ValueError, match=r"pairs \(input, target\), got dict: pass `logits_fn`"):
        score_pass(net, loader, scores.el2n)


class Collecting(users.Model):
    """Keeps what it has seen the way users do, in and out of metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []
        self.of_loader = {"val": deque([torch.zeros(())], maxlen=3)}
        self.same = self.outputs
        self.steps = 0
        self.hidden = [torchmetrics.MeanMetric()]
        self.values = torchmetrics.CatMetric()
        kinds = (MulticlassPrecision, MulticlassRecall)
        self.grouped = torchmetrics.MetricCollection([kind(users.NUM_CLASSES) for kind in kinds])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.outputs.append(loss)
        assert self.same is self.outputs
        self.of_loader["val"].append(loss)
        self.steps += 1
        self.extra = loss
        self.hidden[0].update(loss)
        self.values.update(logits[:, 0])
        self.grouped.update(logits, batch[1])
        self.log_dict(self.grouped)


def test_what_steps_collect_is_as_it_was() -> None:
    module = Collecting()
    x, y = torch.randn(3, users.DIM), torch.tensor([0, 1, 2])
    module.values.update(module(x)[:, 0])  # with its graph, which cannot be copied
    module.grouped.update(module(x), y)
    before = {name: value.clone() for name, value in module.grouped.compute().items()}
    groups, same, kept = dict(module.grouped.compute_groups), module.outputs, module.of_loader
    score_pass(module, DataLoader(users.Blobs(23), 5), scores.el2n)
    assert module.outputs is module.same is same
    assert same == []
    assert module.of_loader is kept
    assert list(kept["val"]) == [0]
    assert (module.steps, hasattr(module, "extra")) == (0, False)
    assert int(module.hidden[0].update_count) == 0
    assert len(module.values.value) == 1
    assert module.grouped.compute_groups == groups
    for metric in module.grouped.values(copy_state=False):
        metric._computed = None
    assert module.grouped.compute() == before


def test_loggers_see_nothing(tmp_path: Path) -> None:
    class Draws(users.Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.state.fn == "fit":
                self.logger.log_metrics({"drawn": 1.0})
            super().validation_step(batch, batch_idx)

    class Logger(DummyLogger):
        lines = 0

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.lines += "drawn" in metrics

    counts = []
    for score_on in ("training", "pass"):
        logger = Logger()
        trainer = users.trainer(callbacks=[prune(score_on=score_on)], logger=logger)
        trainer.fit(Draws(), datamodule=Plain())
        counts.append(logger.lines)
    assert counts[0] == counts[1] == 12  # three batches in four validations


@pytest.mark.parametrize("form", ["loss", "args", "positional", "keyword", "loader", "stage"])
def test_steps_take_what_the_trainer_gives_them(form: str) -> None:
    def loss(self: Any, batch: Any) -> None:
        F.cross_entropy(self(batch[0]), batch[1])

    def args(self: Any, *args: Any) -> None:
        batch, _ = args
        loss(self, batch)

    def positional(self: Any, batch: Any, _: int, loader: int, /) -> None:
        loss(self, batch)

    def keyword(self: Any, batch: Any, *, batch_idx: int) -> None:
        loss(self, batch)

    def loader(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 7) -> None:
        assert dataloader_idx == 0
        loss(self, batch)

    def stage(self: Any, batch: Any, i: int, stage: str = "val") -> None:
        assert stage == "val"
        loss(self, batch)

    kind = type("Model", (users.Model,), {"validation_step": locals()[form]})
    assert len(score_pass(kind(), DataLoader(users.Blobs(23), 5), scores.el2n)) == 23


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="needs torch 2.6")
def test_parts_that_are_compiled() -> None:
    module, loader = users.Model(), DataLoader(users.Blobs(23), 5)
    # EL2N first: it compiles the part without the hooks that look for features.
    every = (scores.el2n, geometry.prototype_distance, gradients.grad_norm)
    plain = [score_pass(module, loader, score) for score in every]
    module.net = torch.compile(module.net, backend="eager")
    for score, expected in zip(every, plain, strict=True):
        found = score_pass(module, loader, score)
        torch.testing.assert_close(found, expected)


def test_a_step_without_a_forward() -> None:
    class NoForward(users.Model):
        forward = pl.LightningModule.forward

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            F.cross_entropy(self.net(batch[0]), batch[1])

    module = NoForward()
    loader = DataLoader(users.Blobs(23), 5)
    found = score_pass(module, loader, scores.el2n)
    x, y = users.Blobs(23).x, users.Blobs(23).y
    torch.testing.assert_close(found, signals.el2n(module.net(x), y))
    with pytest.raises(ValueError, match=r"must have a forward\(input\) that returns logits"):
        score_pass(module, loader, gradients.grad_norm)


class Manual(users.Model):
    validation_step = pl.LightningModule.validation_step
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        raise AssertionError("trained")


def test_a_manual_step_is_not_run() -> None:
    with pytest.raises(ValueError, match=r"Manual must have a validation_step.*pass `logits_fn`"):
        score_pass(Manual(), DataLoader(users.Blobs(23), 5), scores.el2n)


def test_scores_of_users() -> None:
    loader, x, y = DataLoader(data(), 10), *data().tensors
    seen = partial(geometry.prototype_distance, target=y % 2)  # own classes
    found = score_pass(Net(), loader, seen)
    features = Net().eval().body(x).detach()
    torch.testing.assert_close(found, geometry.prototype_distance(features, y % 2))

    def target_is_third(features: Tensor, factor: int = 3, target: Tensor | None = None) -> Tensor:
        assert target is not None
        return features.sum(1) * factor + target

    found = score_pass(Net(), loader, target_is_third)
    torch.testing.assert_close(found, features.sum(1) * 3 + y)

    def label(model: nn.Module, loader: Any) -> Tensor:
        return torch.cat([target for _, target in loader])

    assert torch.equal(score_pass(Net(), loader, label), y)


def test_whole_numbers_are_averaged_too(tmp_path: Path) -> None:
    paths = weights(tmp_path, 0, 1)
    for score in (
        annotated(nn.Module, lambda model, batches: torch.cat([y for _, y in batches])),
        annotated(Tensor, lambda features, target: target),
    ):
        found = score_pass(Net(), DataLoader(data(), 10), score, checkpoints=paths)
        assert torch.equal(found, data().tensors[1].float())


class Fragile(Dataset[Any]):
    """Fails at one sample while it is told to, and counts what is asked of it."""

    def __init__(self) -> None:
        self.broken, self.fetched = True, 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if self.broken and i == 31:
            raise OSError("the disk is gone")
        self.fetched += 1
        return data()[i]


def write_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_look, "_SECONDS_BETWEEN_FILES", -1.0)
    monkeypatch.setattr(_look, "_TIMES_A_WRITE", 0.0)
    monkeypatch.setattr(_look, "_BATCHES_AT_ONCE", batches)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("score", [scores.el2n, gradients.grad_norm, geometry.prototype_distance])
def test_a_stopped_pass_goes_on(
    score: Callable[..., Tensor], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_after(2, monkeypatch)
    net, dataset, file = Net().to(device), Fragile(), tmp_path / "new" / "pass.safetensors"
    loader = DataLoader(dataset, 5)
    with pytest.raises(OSError, match="disk is gone"):
        score_pass(net, loader, score, resume=file)
    dataset.broken, dataset.fetched = False, 0
    found = score_pass(net, loader, score, resume=file)
    assert dataset.fetched == N - 30  # the first six batches were kept
    torch.testing.assert_close(found, score_pass(net, loader, score).cpu())
    dataset.fetched = 0
    again = score_pass(net, loader, score, resume=file)
    assert dataset.fetched == 0
    assert torch.equal(found, again)
    # Other weights, another score: nothing that is on disk counts.
    with torch.no_grad():
        net.head.bias += 1
    score_pass(net, loader, score, resume=file)
    assert dataset.fetched == N


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    net, file = Net(), tmp_path / "pass.safetensors"
    loader = DataLoader(data(), 5)
    score_pass(net, loader, scores.el2n, resume=file)
    (written,) = tmp_path.glob("*.safetensors")
    written.write_bytes(written.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        score_pass(net, loader, scores.el2n, resume=file)


def test_other_batches_or_arguments_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_after(1, monkeypatch)
    net, dataset, file = Net(), Fragile(), tmp_path / "pass"
    with pytest.raises(OSError, match="disk is gone"):  # as many batches of 16 as of 20
        score_pass(net, DataLoader(dataset, 16), scores.el2n, resume=file)
    dataset.broken = False
    loader = DataLoader(dataset, 20)
    found = score_pass(net, loader, scores.el2n, resume=file)
    torch.testing.assert_close(found, one_by_one(net, signals.el2n))
    each = []
    for parameters in (["head.bias"], ["head.weight"], list(net.head.parameters())):
        score = partial(gradients.grad_norm, parameters=parameters)
        each.append(score_pass(net, loader, score, resume=file))
    torch.testing.assert_close((each[0].square() + each[1].square()).sqrt(), each[2])
    # The same arguments in another process, where objects have other addresses.
    text = text_of(partial(one_by_one, Net, k=[object(), F.relu]))
    assert text == "one_by_one(Net, ('k', (<object object>, relu)))"


def test_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, dataset = Net(), Fragile()
    (tmp_path / "taken").touch()
    loader = DataLoader(dataset, 10)
    with pytest.raises(OSError, match="taken"):
        score_pass(net, loader, scores.el2n, resume=tmp_path / "taken" / "f")
    monkeypatch.setattr(pass_file.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"`resume`: .*new' cannot be written to"):
        score_pass(net, loader, scores.el2n, resume=tmp_path / "new" / "f")
    assert dataset.fetched == 0  # before the first sample
    monkeypatch.undo()
    dataset.broken, file = False, tmp_path / "f"
    score_pass(net, loader, scores.el2n, resume=file)
    (written,) = tmp_path.glob("f.*")
    before = written.read_bytes()

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pass_file, "write_tensors", full)
    with pytest.warns(UserWarning, match="cannot write .* continues without it .*No space left"):
        found = score_pass(net, loader, gradients.grad_norm, resume=file)
    torch.testing.assert_close(found, own_norm(net))
    assert written.read_bytes() == before


class Plain(users.Data):
    """Training data with noise, and the same without."""

    def train_dataloader(self) -> Any:
        class Noisy(Dataset[Any]):
            targets = self.train.y

            def __len__(this) -> int:
                return len(self.train)

            def __getitem__(this, i: int) -> Any:
                x, y = self.train[i]
                return torch.cat([x[:1], x[1:] + 3 * torch.randn(len(x) - 1)]), y

        return DataLoader(Noisy(), batch_size=10, shuffle=True)

    def plain(self) -> Any:
        return DataLoader(self.train, batch_size=7)

    def many(self) -> Any:
        return [self.plain(), self.plain()]

    def shorter(self) -> Any:
        return DataLoader(users.Blobs(self.n - 1), batch_size=7)

    def other(self) -> Any:
        blobs = users.Blobs(self.n, seed=9)
        return DataLoader(TensorDataset(blobs.x, blobs.y), batch_size=7)


def prune(score: Callable[..., Tensor] = scores.el2n, **options: Any) -> lfp.DataPruning:
    given = {"density": 0.4, "warmup_epochs": 2, "keep": "hard", "score_on": "pass"} | options
    return lfp.DataPruning(score=score, **given)


class WeightsAt(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.weights = {name: v.clone() for name, v in module.state_dict().items()}


@pytest.mark.parametrize("form", ["wrapper", "datamodule"])
@pytest.mark.parametrize(
    "score", [scores.el2n, gradients.grad_norm, geometry.class_k_center], ids=lambda f: f.__name__
)
def test_the_scores_are_those_of_the_model_at_the_end_of_the_warm_up(
    score: Callable[..., Tensor], form: str
) -> None:
    callback, at = prune(score, score_on=lfp.ScorePass("plain")), WeightsAt()
    users_data = Plain()
    module = users.Model()
    wrapped = lfp.FairPruneDataModule(users_data) if form == "wrapper" else users_data
    users.trainer(callbacks=[at, callback]).fit(module, datamodule=wrapped)
    module.load_state_dict(at.weights)
    module._trainer = None
    found = score_pass(module, users_data.plain(), score)
    torch.testing.assert_close(callback.run.decision.scores, found, equal_nan=True)
    assert callback.record.settings["score_on"].startswith("ScorePass(dataloader='plain'")
    if score is scores.el2n:
        assert callback.dynamics.num_epochs == 1
    assert users_data.train_dataloader().__class__ is DataLoader


@pytest.mark.parametrize("score", [scores.el2n, gradients.grad_norm])
def test_samples_that_the_warm_up_has_not_seen(score: Callable[..., Tensor]) -> None:
    callback = prune(score, density=1.0, score_on=lfp.ScorePass("plain"))
    # A warning that samples were never observed would be an error here.
    trainer = users.trainer(callbacks=[callback], limit_train_batches=3)
    trainer.fit(users.Model(), datamodule=Plain(drop_last=True))
    assert len(callback.selection) == 103


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_steps_that_show_nothing_are_refused_before_the_first() -> None:
    with pytest.raises(ValueError, match="Manual must have a validation_step"):
        users.trainer(callbacks=[prune(quota=None)]).fit(Manual(), datamodule=Plain())


def test_a_diverged_model_is_named() -> None:
    class Diverged(users.Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            F.cross_entropy(self(batch[0] * torch.nan), batch[1])

    with pytest.raises(ValueError, match="`score` is NaN for all 103 samples"):
        users.trainer(callbacks=[prune(quota=None)]).fit(Diverged(), datamodule=Plain())


@pytest.mark.parametrize(
    ("score_on", "message"),
    [
        (lfp.ScorePass("plane"), r"dataloader='plane' must be a method of Plain or Mo"),
        (lfp.ScorePass("many"), "`score_on`: a scoring pass needs one .* got list"),
        (lfp.ScorePass(resume=f"{__file__}/f"), "test_scoring"),
        (lfp.ScorePass("shorter"), "102 samples, the training set 103: it must hold"),
        (lfp.ScorePass("other"), "other labels than the training set for .* samples"),
        (lfp.ScorePass(checkpoints=("no.ckpt",)), "there is no file 'no.ckpt'"),
        (
            lfp.ScorePass(layer="net.7"),
            r"`layer` must be one of net, net.0, net.1, net.2, got 'net.7'",
        ),
    ],
)
def test_refused_before_the_first_step(score_on: lfp.ScorePass, message: str) -> None:
    module = users.Model()
    score = geometry.prototype_distance if score_on.layer else scores.el2n

    def training_step(batch: Any, batch_idx: int) -> Any:
        raise AssertionError("trained")

    module.training_step = training_step
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        users.trainer(callbacks=[prune(score, score_on=score_on)]).fit(module, datamodule=Plain())


def test_other_labels_are_found_in_the_pass_at_the_latest() -> None:
    class Hidden(Plain):
        def other(self) -> Any:
            class Lazy(Dataset[Any]):  # no labels to look at beforehand
                def __len__(this) -> int:
                    return self.n

                def __getitem__(this, i: int) -> Any:
                    return users.Blobs(self.n, seed=9)[i]

            return DataLoader(Lazy(), 20)

    trainer = users.trainer(callbacks=[prune(score_on=lfp.ScorePass("other"))])
    with pytest.raises(ValueError, match="other labels than the training set"):
        trainer.fit(users.Model(), datamodule=Hidden())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"score": gradients.grad_norm, "score_on": "training"},
            "from the model, not from training",
        ),
        ({"score": geometry.k_means_distance, "score_on": "training"}, "from features, not from"),
        ({"score": None, "keep": "random"}, "there is no `score` to compute"),
        ({"score": annotated(int, lambda k: k)}, "got a parameter 'k: int': change its annotation"),
    ],
)
def test_arguments_that_cannot_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**options)


@pytest.mark.parametrize("score_on", ["training", "pass"])
@pytest.mark.parametrize(
    ("signal", "name", "score"),
    [
        (signals.el2n, "el2n", "el2n"),
        (partial(signals.margin), "margin", "margin"),
        (signals.p_true, "p_true", "confidence"),
        (signals.correct, "correct", "forgetting"),
        (signals.rival, "rival", "margin"),
    ],
)
def test_signals_are_no_scores(signal: Any, name: str, score: str, score_on: str) -> None:
    told = rf"signals\.{name} is the value of one batch: .*\.{score}\.$"
    with pytest.raises(ValueError, match=told):
        prune(signal, score_on=score_on)


def test_a_resumed_fit_decides_the_same(tmp_path: Path) -> None:
    for name in ("el2n", "grad_norm"):
        folder = tmp_path / name
        settings = {"prune": {"score": name, "keep": "hard", "score_on": "pass"}}
        full = scenario.run(**settings, checkpoint={}, folder=str(folder))
        checkpoints = saved(folder)
        assert len(checkpoints) == 4
        for path in checkpoints:
            resumed = scenario.run(**settings, resume=path)
            assert {k: full[k] for k in RESUMABLE} == {k: resumed[k] for k in RESUMABLE}, path


def test_two_ranks_share_the_work(tmp_path: Path) -> None:
    ddp = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "use_distributed_sampler": True}
    # 104 samples, so that no rank gets one twice and both runs have the same weights but for rounding.
    base, prune = {"n": 104, "batch_size": 4, "trainer": ddp}, {"keep": "hard", "score_on": "pass"}
    fits = {
        name: base | {"prune": {"score": name, **prune, **more}}
        for name, more in (("el2n", {}), ("grad_norm", {"quota": "minimax"}), ("prototype", {}))
    }
    for name, (first, second) in launch(fits, tmp_path).items():
        for key in RESUMABLE:
            assert first[key] == second[key], (name, key)
        alone = scenario.run(**{**fits[name], "batch_size": 8, "trainer": {}})
        assert len(set(alone["kept"]) & set(first["kept"])) >= len(first["kept"]) - 2


def test_written_in_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonargparse import ArgumentParser

    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    score = "lightning_fairprune.gradients.grad_norm"
    given = {"density": 0.4, "warmup_epochs": 2, "score": score, "keep": "hard"}
    some = {"dataloader": "plain", "checkpoints": ["a.ckpt"]}
    for way, expected in (
        ("pass", lfp.ScorePass()),
        (some, lfp.ScorePass("plain", None, ("a.ckpt",))),
        ({"dataloader": None, "layer": None, "resume": None}, lfp.ScorePass()),
    ):
        parser = ArgumentParser()
        parser.add_class_arguments(lfp.DataPruning, "prune")
        config = parser.parse_object({"prune": {**given, "score_on": way}})
        text = parser.dump(config, skip_none=False)
        callback = parser.instantiate_classes(parser.parse_string(text)).prune
        assert callback.settings.score_on == expected
        assert callback.settings.score is gradients.grad_norm


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            annotated(Tensor, lambda features, target, k, *, scale: features),
            r"`score` <lambda> also needs k, scale: give it with functools.partial",
        ),
        (annotated(nn.Module, lambda model, batches, k: batches), "also needs k: give it"),
        (
            annotated(Tensor, lambda features: features[:, 0].numpy()),
            "tensor with one value per sample, got ndarray",
        ),
        (
            annotated(nn.Module, lambda m, batches: torch.cat([y > 0 for _, y in batches])),
            "tensor with one value per sample, got torch.bool",
        ),
        (annotated(nn.Module, lambda model, batches: torch.zeros(3)), "must use every batch once"),
        (lambda dynamics: torch.zeros(3), "one value per sample"),
    ],
)
def test_bad_scores(score: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_pass(Net(), DataLoader(data(), 10), score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoints": "last.pt"}, "must be a list of files, got 'last.pt'"),
        ({"checkpoints": ["gone.pt"]}, "there is no file 'gone.pt'"),
        (
            {"loader": DataLoader(data(), 10, collate_fn=lambda rows: default_collate(rows[1:]))},
            r"got \[42\] for 47 samples.*collate function .* must neither drop nor repeat",
        ),
        (
            {"loader": DataLoader(TensorDataset(torch.rand(3, 5), torch.tensor([0, -99, 3])), 2)},
            r"class indices in \[0, 3\), got -99 .*`logits_fn`",
        ),
        (
            {"logits_fn": lambda m, b: (m(b[0])[:, 0], b[1])},
            r"needs logits \[B, C\] and one class index per sample \[B\]",
        ),
        (
            {"model": nn.Conv1d(1, 1, 1), "score": geometry.prototype_distance},
            "Conv1d must have a linear layer",
        ),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": Net(), "loader": DataLoader(data(), 10), "score": scores.el2n}
    with pytest.raises(ValueError, match=message):
        score_pass(**(given | change))


def test_weights_that_half_fit_leave_the_model_alone(tmp_path: Path) -> None:
    path, net = tmp_path / "half.pt", Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(Net(1).state_dict() | {"head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="must fit the model"):
        score_pass(net, DataLoader(data(), 10), scores.el2n, checkpoints=[path])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_state_besides_tensors_is_put_back(tmp_path: Path) -> None:
    class Extra(Net):
        extra = 1

        def get_extra_state(self) -> Any:
            return {"extra": self.extra}

        def set_extra_state(self, state: Any) -> None:
            type(self).extra = state["extra"]

    path, net = tmp_path / "extra.pt", Extra()
    torch.save(net.state_dict() | {"_extra_state": {"extra": 5}}, path)
    score_pass(net, DataLoader(data(), 10), scores.el2n, checkpoints=[path])
    assert net.extra == 1


def test_modules_that_load_a_part(tmp_path: Path) -> None:
    module, path = users.Model(), tmp_path / "part.ckpt"
    state = module.state_dict()
    frozen = {name: value for name, value in state.items() if not name.startswith("net.0")}
    torch.save({"state_dict": frozen}, path)
    loader = DataLoader(users.Blobs(23), 5)
    with pytest.raises(ValueError, match=r"it has no net\.0\.weight and 1 more"):
        score_pass(module, loader, scores.el2n, checkpoints=[path])
    module.strict_loading = False
    found = score_pass(module, loader, scores.el2n, checkpoints=[path])
    assert torch.equal(found, score_pass(module, loader, scores.el2n))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    lfp.score_pass(Net(), DataLoader(data(), 10), scores.el2n)
    assert ("scoring pass" in capsys.readouterr().err) is terminal
