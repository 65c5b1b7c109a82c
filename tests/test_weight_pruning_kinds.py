"""Which weights are pruned in models of other layers than linear ones and convolutions, and what is said of the others."""

from __future__ import annotations

import json
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from test_weight_pruning import save_all
from torch import Tensor, nn
from users import DIM, NUM_CLASSES, Data, Model

from lightning_fairprune import WeightPruning, criteria, masks
from lightning_fairprune.records.sparsity_record import SparsityRecord

WIDTH = 16
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Reader(nn.Module):
    """Reads the features one by one."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(1, WIDTH, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unsqueeze(2))[0][:, -1]


class Cells(nn.Module):
    """The same with a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), WIDTH)
        for part in x.unsqueeze(2).unbind(1):
            state = self.cell(part, state)
        return state


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x.unsqueeze(2))).mean(1)


class Apart(nn.Module):
    """Attention to keys and values of other widths, which has a matrix for each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, kdim=1, vdim=1, batch_first=True)
        self.query = nn.Linear(DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2)
        return self.layer(self.query(x.mT), x, x)[0].squeeze(1)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(DIM, DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class OwnLinear(nn.Module):
    """As graph libraries have one, derived from nothing but a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(DIM, WIDTH) / 3)  # of [in, out], as in transformers
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Zeros(pl.Callback):
    """Looks at the removed weights after every step."""

    def __init__(self, prune: WeightPruning) -> None:
        self.prune = prune

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        parameters = dict(module.named_parameters())
        for name, mask in self.prune.masks.items():
            assert not parameters[name].detach()[~mask].any(), name


def fit(
    prune: WeightPruning, *more: Any, model: Any = None, resume: Any = None, **options: Any
) -> Any:
    pl.seed_everything(1, verbose=False)
    model = Model() if model is None else model
    trainer = users.trainer(callbacks=[prune, Zeros(prune), *more], **options)
    trainer.fit(model, Data(shuffle=False), ckpt_path=resume)
    return model


def classifier(first: nn.Module, width: int = WIDTH) -> Model:
    model = Model(lr=0.05)
    model.net = nn.Sequential(first, nn.ReLU(), nn.Linear(width, NUM_CLASSES))
    return model


# The first part of the model, and the names in it that are pruned by default.
KINDS: dict[str, tuple[Any, str]] = {
    "lstm": (
        lambda: Reader("LSTM", num_layers=2),
        "layer.weight_ih_l0 layer.weight_hh_l0 layer.weight_ih_l1 layer.weight_hh_l1",
    ),
    "projected": (
        lambda: Reader("LSTM", proj_size=8),
        "layer.weight_ih_l0 layer.weight_hh_l0 layer.weight_hr_l0",
    ),
    "both_ways": (
        lambda: Reader("GRU", bidirectional=True),
        "layer.weight_ih_l0 layer.weight_hh_l0 layer.weight_ih_l0_reverse layer.weight_hh_l0_reverse",
    ),
    "rnn": (lambda: Reader("RNN"), "layer.weight_ih_l0 layer.weight_hh_l0"),
    "cell": (Cells, "cell.weight_ih cell.weight_hh"),
    "attention": (
        Attention,
        "first.weight layer.self_attn.in_proj_weight layer.self_attn.out_proj.weight "
        "layer.linear1.weight layer.linear2.weight",
    ),
    "apart": (
        Apart,
        "layer.q_proj_weight layer.k_proj_weight layer.v_proj_weight layer.out_proj.weight query.weight",
    ),
    "bilinear": (Bilinear, "layer.weight"),
    "own_linear": (OwnLinear, "weight"),
}
OUT = {"projected": 8, "both_ways": 2 * WIDTH}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str) -> Model:
    torch.manual_seed(3)
    return classifier(KINDS[kind][0](), OUT.get(kind, WIDTH))


def share_of_zeros(model: nn.Module) -> float:
    values = torch.cat([p.detach().flatten() for p in model.parameters()])
    return float((values == 0).double().mean())


@every_kind
@pytest.mark.parametrize("criterion", ["magnitude", "undecayed"])
def test_matrices_of_other_layers_are_pruned(kind: str, criterion: str) -> None:
    prune = WeightPruning(getattr(criteria, criterion), 0.8, start=1, end=2)
    model = made(kind)
    fit(prune, model=model, max_epochs=3)
    expected = [f"net.0.{name}" for name in KINDS[kind][1].split()]
    assert list(prune.masks) == expected
    assert set(criteria.prunable(model)) == {*expected, "net.2.weight"}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    removed = round(0.8 * sum(sizes[name] for name in expected))
    assert sum(int((model.get_parameter(n) == 0).sum()) for n in expected) == removed
    assert prune.history[-1].total == masks.sparsity_of(prune.masks).total
    assert prune.history[-1].of_all == removed / sum(sizes.values())
    assert share_of_zeros(model) == pytest.approx(prune.history[-1].of_all, abs=0.01)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
@pytest.mark.parametrize("kind", ["lstm", "attention", "own_linear"])
def test_other_layers_from_every_checkpoint(kind: str, tmp_path: Any) -> None:
    def once(resume: Any = None) -> tuple[Model, WeightPruning]:
        prune = WeightPruning(criteria.gradient, 0.8, start=1, end=3)
        more = [] if resume else [save_all(tmp_path)]
        options = {"enable_checkpointing": not resume, "max_epochs": 5}
        return fit(prune, *more, model=made(kind), resume=resume, **options), prune

    whole, first = once()
    for path in sorted(tmp_path.glob("*.ckpt"))[:-1]:
        model, prune = once(path)
        assert prune.history == first.history
        for name, p in whole.named_parameters():
            assert torch.equal(p, model.get_parameter(name)), (path, name)


def test_the_classifier_that_stays_dense_is_no_matrix_of_a_recurrent_layer() -> None:
    model = Model()
    model.last = nn.Linear(WIDTH, NUM_CLASSES)
    model.net = nn.Sequential()
    model.first = Reader("LSTM")
    model.forward = lambda x: model.last(model.first(x))  # type: ignore[method-assign]
    prune = WeightPruning(sparsity=0.8, start=1, end=1)
    fit(prune, model=model, max_epochs=2)
    assert list(prune.masks) == ["first.layer.weight_ih_l0", "first.layer.weight_hh_l0"]


def test_embeddings_norms_and_scales_are_not_pruned_under_any_class() -> None:
    class Embed(OwnLinear):
        pass

    class GroupNorm2d(OwnLinear):
        pass

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 4, 1))

    layers = [
        Embed(),
        GroupNorm2d(),
        Scale(),
        nn.LayerNorm((3, 4)),
        nn.Embedding(3, 4),
        OwnLinear(),
    ]
    assert criteria.prunable(nn.Sequential(*layers)) == ("5.weight",)


def test_old_records_have_no_share_of_all(tmp_path: Any) -> None:
    prune = WeightPruning(sparsity=0.8, start=1, end=1)
    fit(prune, max_epochs=2)
    prune.record.save(tmp_path)
    assert SparsityRecord.load(tmp_path).steps == prune.record.steps
    file = tmp_path / "sparsity.json"
    content = json.loads(file.read_text()) | {"version": "1"}
    for step in content["steps"]:
        del step["of_all"]
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "checksum"}))
    with pytest.warns(UserWarning, match="version 1"):
        record = SparsityRecord.load(tmp_path)
    assert record.steps == (prune.history[0]._replace(of_all=None),)
