"""Whatever runs a user's model leaves it as it was, also if the model fails on the way."""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

import lightning_fairprune as lfp
from lightning_fairprune import criteria, geometry, gradients, representation, scores
from lightning_fairprune._model.borrowed import borrowed
from lightning_fairprune.callbacks._weights.saliency import saliency
from lightning_fairprune.scoring import score_pass

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ("hidden.parametrizations.weight.original", "first.weight")


class Nasty(pl.LightningModule):
    """Writes to everything it has in every forward pass; its outputs depend on its weights alone."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.embedding = nn.Embedding(3, 4, max_norm=0.5)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.twice = self.first
        self.hidden = spectral_norm(nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 3)
        self.head.weight = self.embedding.weight
        self.dropout = nn.Dropout()
        self.dropout.eval()
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("written", torch.zeros(2), persistent=False)
        self.register_buffer("wide", torch.zeros(1).expand(3), persistent=False)
        self.metric, self.hidden_away = MeanMetric(), [MeanMetric(), nn.Linear(1, 1)]
        self.plain, self.last = torch.zeros(3), None
        self.lists: list[Any] = [[1]]
        self.dicts = OrderedDict(b={"n": 0, "x": torch.zeros(1)}, a={})
        self.sizes, self.recent, self.calls = {7}, deque([1], maxlen=2), Counter(before=1)
        self.pair, self.number, self.most = ([0], torch.zeros(1)), 0, most

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.number += 1
            self.calls["forward"] += 1
            self.replaced = self.replaced + 1
            self.written += 1
            self.plain += 1
            self.lists.append(x)
            self.lists[0].append(2)
            self.dicts["b"]["n"] += 1
            self.dicts["b"]["x"] += 1
            self.dicts["new"] = 1
            self.dicts.move_to_end("b")
            self.sizes.add(len(x))
            self.recent.append(2)
            self.pair[0].append(1)
            self.pair[1].add_(1)
            self.frozen.weight.mul_(1 + 1e-3)
            self.metric.update(1.0)
            self.hidden_away[0].update(2.0)
            self.hidden_away[1].weight.add_(1)
            np.random.rand(), random.random(), torch.rand(1)  # noqa: NPY002
            self.hidden.register_forward_hook(lambda *_: None)
        found = self.embedding((x[:, 0].abs() * 10).long() % 3) + self.bn(x)
        found = self.frozen(self.second(self.first(found).tanh()).tanh()).tanh()
        found = self.dropout(self.hidden(found).tanh())
        self.last, self.extra = found.detach(), x
        if self.number > self.most:
            raise ArithmeticError("in the middle")
        return self.head(found)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def looked_at(model: nn.Module) -> list[tuple[str, Any]]:
    """Returns all that one can see of a model and of the random states, with the places of tensors."""
    found: list[tuple[str, Any]] = []
    seen: list[Any] = []

    def look(path: str, thing: Any) -> None:
        if isinstance(thing, Tensor):
            bits = thing.detach().clone().contiguous().view(-1)
            found.append(
                (path, (id(thing), tuple(thing.shape), thing.requires_grad, bits.tolist()))
            )
            if thing.is_leaf and thing.grad is not None:
                look(f"{path}.grad", thing.grad)
        elif isinstance(thing, (nn.Module, list, tuple, dict, set, deque)):
            found.append((path, (type(thing), id(thing))))
            if any(thing is other for other in seen):
                return
            seen.append(thing)
            if isinstance(thing, nn.Module):
                thing = vars(thing)
            if isinstance(thing, set):
                found.append((path, sorted(thing)))
            else:
                pairs = thing.items() if isinstance(thing, dict) else enumerate(thing)
                for key, value in list(pairs):
                    look(f"{path}.{key}", value)
        else:
            found.append((path, repr(thing)))

    look("model", model)
    found.append(("torch", torch.get_rng_state().tolist()))
    found.append(("numpy", repr(np.random.get_state())))  # noqa: NPY002
    found.append(("random", random.getstate()))
    found.append(("attention", torch.backends.mha.get_fastpath_enabled()))
    found.append(("gradients", torch.is_grad_enabled()))
    return found


def same(first: list[tuple[str, Any]], second: list[tuple[str, Any]]) -> None:
    assert [path for path, _ in first] == [path for path, _ in second]
    for (path, one), (_, other) in zip(first, second, strict=True):
        assert one == other, path


X, Y = torch.linspace(-1, 1, 24).view(6, 4), torch.arange(6) % 3
DATA = TensorDataset(X, Y)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yields two batches, by chance."""
    for start in (0, 3):
        yield X[start : start + 3] + 0 * torch.rand(1), Y[start : start + 3]


def mean_loss(outputs: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, target)


def loader() -> DataLoader[Any]:
    return DataLoader(DATA, 3)


def two_checkpoints(model: nn.Module, folder: Path) -> Any:
    files = [folder / "a.pt", folder / "b.pt"]
    for i, file in enumerate(files):
        other = {n: v + i if v.is_floating_point() else v for n, v in model.state_dict().items()}
        torch.save(other, file)
    return score_pass(model, loader(), scores.el2n, checkpoints=files, progress=False)


def by_group(batch: Any) -> Tensor:
    return (batch[1] > 0).long()


scored = partial(score_pass, loader=loader(), progress=False)
USES: dict[str, Callable[[Nasty, Path], Any]] = {
    "random": lambda m, _: criteria.random(m),
    "gradient": lambda m, _: criteria.gradient(m, batches(), mean_loss),
    "snip": lambda m, _: criteria.snip(m, batches(), mean_loss, parameters=NAMES),
    "undecayed": lambda m, _: criteria.undecayed(
        m, batches(), mean_loss, weight_decay=0.1, form="paper"
    ),
    "group_importance": lambda m, _: criteria.group_importance(
        m, batches(), mean_loss, num_groups=3
    ),
    "fairgrape_masks": lambda m, _: criteria.fairgrape_masks(
        m, batches(), mean_loss, 0.5, num_groups=3
    ),
    "synflow": lambda m, _: criteria.synflow(m, X),
    "synflow_masks": lambda m, _: criteria.synflow_masks(m, X, 0.5, rounds=3),
    "grad_norm": lambda m, _: gradients.grad_norm(m, batches()),
    "features_of": lambda m, _: geometry.features_of(m, batches(), "hidden"),
    "compare_layers": lambda m, _: representation.compare_layers(
        m, copy.deepcopy(m), batches(), ["hidden"]
    ),
    "compare_layers with itself": lambda m, _: representation.compare_layers(
        m, m, batches(), ["hidden", "frozen"]
    ),
    "score_pass": lambda m, _: scored(m, score=scores.el2n),
    "score_pass of a model": lambda m, _: scored(m, score=gradients.grad_norm),
    "score_pass of features": lambda m, _: scored(m, score=geometry.prototype_distance),
    "score_pass of checkpoints": two_checkpoints,
}


def used(most: int = 10**9) -> Nasty:
    """Returns a model in the middle of training, with gradients and with what a step has left."""
    torch.manual_seed(0)
    model = Nasty()
    mean_loss(model(X), Y).backward()
    model.most = model.number + most
    return model


@pytest.mark.parametrize("name", USES)
def test_it_is_as_it_was(name: str, tmp_path: Path) -> None:
    model = used()
    before = looked_at(model)
    USES[name](model, tmp_path)
    same(before, looked_at(model))


@pytest.mark.parametrize("name", sorted(USES.keys() - {"random"}))
def test_it_is_as_it_was_after_a_failure(name: str, tmp_path: Path) -> None:
    # The first of them have one pass, or few; the others start every sample with the counts that the model came with.
    at_once = name.startswith(("synflow", "grad_norm", "score_pass of a model"))
    model = used(most=0 if at_once else 1)
    before = looked_at(model)
    with pytest.raises(ArithmeticError, match="in the middle"):
        USES[name](model, tmp_path)
    same(before, looked_at(model))


def test_fairprune(tmp_path: Path) -> None:
    # torch.func can do no layer that writes to a weight.
    model = used()
    before = looked_at(model)
    with pytest.raises(RuntimeError):
        criteria.fairprune(model, batches(), mean_loss, groups=by_group)
    same(before, looked_at(model))
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = looked_at(model)
    criteria.fairprune(model, batches(), mean_loss, groups=by_group)
    same(before, looked_at(model))


class Looking(pl.Callback):
    """Calls a criterion as WeightPruning does, and looks at the model before and after."""

    def __init__(self, criterion: Callable[..., Any], error: type[Exception] | None) -> None:
        self.criterion, self.error, self.looks = criterion, error, 0

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        logged, most = dict(trainer.callback_metrics), module.most
        if self.error:
            module.most = module.number + (self.criterion is not criteria.synflow)
        before = looked_at(module)
        try:
            groups = {"num_groups": 3} if self.criterion is criteria.fairgrape_masks else {}
            prune = lfp.WeightPruning(self.criterion, num_batches=2, criterion_options=groups)
            saliency(prune.settings, trainer, module, NAMES[:1], masks={}, sparsity=0.5, draw=1)
            assert self.error is None
        except ArithmeticError:
            assert self.error is not None
        same(before, looked_at(module))
        assert trainer.training
        assert logged == dict(trainer.callback_metrics)
        module.most = most
        self.looks += 1


def own_way(model: nn.Module, batches: Any, loss_fn: Any) -> dict[str, Tensor]:
    """A criterion of a user that leaves gradients behind."""
    for inputs, target in batches:
        loss_fn(model(*inputs), target).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return {name: grads[name].abs() for name in NAMES}


@pytest.mark.parametrize("error", [None, ArithmeticError], ids=["well", "failing"])
@pytest.mark.parametrize(
    "criterion",
    [criteria.gradient, criteria.fairgrape_masks, criteria.synflow, own_way],
    ids=lambda criterion: criterion.__name__,
)
def test_in_a_fit(
    criterion: Callable[..., Any], error: type[Exception] | None, tmp_path: Path
) -> None:
    looking = Looking(criterion, error)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[looking],
        default_root_dir=tmp_path,
    )
    torch.manual_seed(0)
    trainer.fit(Nasty(), loader())
    assert looking.looks == 2


def test_a_loan_inside_another_leaves_values_to_it() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    with borrowed(model), torch.no_grad():
        model.weight.zero_()
        with borrowed(model):
            model.weight.add_(1)
        assert model.weight.tolist() == [[1.0, 1.0]]
    assert torch.equal(model.weight, before)


def test_tensors_of_inference_mode_and_of_a_graph() -> None:
    model = nn.Linear(2, 1)
    with torch.inference_mode():
        model.seen = torch.zeros(2)
    model.register_buffer("total", torch.zeros(1))
    with borrowed(model, gradients=True):
        model.total += model.weight.sum()
        with torch.inference_mode():
            model.seen += 1
    assert model.seen.tolist() == [0.0, 0.0]
    assert model.total.tolist() == [0.0]
    assert model.total.is_leaf


def test_a_graph_that_was_there_stays_whole() -> None:
    model = nn.Linear(2, 1)
    loss = model(torch.ones(1, 2)).square().sum()
    criteria.gradient(model, [(torch.ones(1, 2), None)], lambda outputs, _: outputs.mean())
    loss.backward()


def test_a_lazy_layer_takes_its_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    assert geometry.features_of(model, [torch.ones(2, 5)], "0").shape == (2, 3)
    assert model[0].weight.shape == (3, 5)
    assert geometry.features_of(model, [torch.ones(2, 5)], "0").shape == (2, 3)
    assert not model[0]._forward_hooks


def test_a_scripted_model() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    model.train()
    with borrowed(model), torch.no_grad():
        assert not model.training
        model[0].weight.zero_()
    assert model.training
    assert model[0].weight.any()
