"""The sparsity that is reported is that of the weights that layers compute with, or the fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_weight_pruning_kinds import WIDTH, Attention, Zeros, classifier, fit, made
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from users import DIM, NUM_CLASSES, Data, Model, trainer

from lightning_fairprune import DataPruning, WeightPruning, criteria
from lightning_fairprune._model.hidden import check_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(DIM, DIM)


class Function(nn.Module):
    """A parametrisation."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, weight: Tensor) -> Tensor:
        return self.function(weight)


def with_function(function: Callable[[Tensor], Tensor]) -> nn.Module:
    layer = linear()
    parametrize.register_parametrization(layer, "weight", Function(function))
    return layer


class Through(torch.autograd.Function):
    """Binary weights with the gradient of the others."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return torch.where(weight >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class Written(nn.Linear):
    """A linear layer that computes its weight in `forward`."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        torch.manual_seed(0)
        super().__init__(DIM, DIM)
        self.function = function
        self.register_buffer("lower", torch.ones(DIM, DIM).tril())
        self.small = nn.Parameter(torch.randn(DIM, 2))
        self.wide = nn.Parameter(torch.randn(2, DIM))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.function(self), self.bias)


class StandardConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / std, self.bias, padding=self.padding)


class BatchNormedConv(nn.Conv2d):
    """Standardises by a function of torch, in one call, as another library does."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def in_place(layer: Any) -> Tensor:
    weight = layer.weight.clone()
    weight -= weight.mean()
    return weight.div_(2)


def quantised(layer: Any) -> Tensor:
    scale = float(layer.weight.abs().max()) / 127
    return torch.fake_quantize_per_tensor_affine(layer.weight, scale, 0, -128, 127)


def four_levels(layer: Any) -> Tensor:
    weight = torch.tanh(layer.weight)
    weight = weight / (2 * weight.abs().max()) + 0.5
    return 2 * (3 * weight).round() / 3 - 1


def recurrent(function: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.LSTM(DIM, DIM)
    parametrize.register_parametrization(layer, "weight_hh_l0", Function(function))
    return layer


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "symmetric": lambda: with_function(lambda w: w.triu() + w.triu(1).mT),
    "binary": lambda: with_function(lambda w: torch.where(w >= 0, 1.0, -1.0)),
    "centred": lambda: with_function(lambda w: w - w.mean(1, keepdim=True)),
    "positive": lambda: with_function(F.softplus),
    "by_torch_prune": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "masked": lambda: Written(lambda layer: layer.weight * layer.lower),
    "with_adapter": lambda: Written(lambda layer: layer.weight + layer.small @ layer.wide),
    "in_place": lambda: Written(in_place),
    "straight_through": lambda: Written(lambda layer: Through.apply(layer.weight)),
    "four_levels": lambda: Written(four_levels),
    "standardised": lambda: StandardConv(2, 4, 3),
    "standardised_1x1": lambda: StandardConv(8, 4, 1),
    "standardised_by_batch_norm": lambda: BatchNormedConv(2, 4, 3),
    "recurrent": lambda: recurrent(lambda w: w - w.mean()),
}
KEPT: dict[str, Callable[[], nn.Module]] = {
    "plain": linear,
    "spectral_norm": lambda: parametrizations.spectral_norm(linear()),
    "spectral_norm_by_hook": lambda: nn.utils.spectral_norm(linear()),
    "tanh": lambda: with_function(torch.tanh),
    "scaled": lambda: with_function(lambda w: 3 * w / w.norm()),
    "normalised": lambda: Written(lambda layer: F.normalize(layer.weight)),
    "turned": lambda: Written(lambda layer: layer.weight.mT.mT.contiguous()),
    "quantised": lambda: Written(quantised),
    "dropped_out": lambda: Written(lambda layer: F.dropout(layer.weight, 0.5, True)),
    "recurrent": lambda: recurrent(torch.tanh),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_that_computes_with_other_zeros_is_refused(kind: str) -> None:
    layer = REFUSED[kind]()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    names = criteria.prunable(layer)
    with pytest.raises(ValueError, match="is not the weight that its layer computes with"):
        check_layers(layer, names, masked=True)
    if kind not in (
        "by_torch_prune",
        "masked",
    ):  # these have a saliency, of the weights that are left
        with pytest.raises(ValueError, match=r"leave it out .* `parameters` of a criterion"):
            criteria.magnitude(layer)
    after = layer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", KEPT)
def test_a_layer_that_keeps_zeros_is_not(kind: str) -> None:
    check_layers(KEPT[kind](), criteria.prunable(KEPT[kind]()), masked=True)


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_norm_by_hook", "tanh", "normalised"])
def test_the_sparsity_that_is_reported_is_that_of_the_weight_used(kind: str) -> None:
    layer = KEPT[kind]()
    (name,) = criteria.prunable(layer)
    callback = WeightPruning(sparsity=0.75, start=1, end=2)
    fit(callback, model=classifier(layer, DIM), max_epochs=3)
    used = layer.function(layer) if kind == "normalised" else layer.weight
    if kind == "spectral_norm_by_hook":
        layer(torch.zeros(1, DIM))
        used = layer.weight
    assert float((used == 0).float().mean()) == callback.history[-1].total == 0.75
    assert list(callback.masks) == [f"net.0.{name}"]


def test_every_layer_is_named_in_one_sentence() -> None:
    model = Model()
    model.net = nn.Sequential(
        *(REFUSED["centred"]() for _ in range(6)), nn.Linear(DIM, NUM_CLASSES)
    )
    told = (
        r"`net.0.parametrizations.weight.original` is not .* zeros in a trial become 0 there.*The same holds for "
        r"`net.1.\S+`, `net.2.\S+`, `net.3.\S+` and 2 more"
    )
    with pytest.raises(ValueError, match=told):
        fit(WeightPruning(), model=model, max_epochs=2)
    prune = WeightPruning(sparsity=0.5, exclude=["net.[1-5].*"], start=1, end=1)
    with pytest.raises(ValueError, match=r"`net.0.\S+` is not"):
        fit(prune, model=model, max_epochs=2)


class Adapted(nn.Module):
    """As libraries of adapters do: a sum of two products, each with a weight of its own."""

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(DIM, DIM)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(DIM, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, DIM, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_adapters_are_refused_and_what_is_beside_them_is_not() -> None:
    model = classifier(nn.Sequential(Adapted(), nn.Linear(DIM, WIDTH)))
    told = r"`net.0.0.base_layer.weight` is not .*: Adapted adds the product of its adapter"
    with pytest.raises(ValueError, match=told):
        fit(WeightPruning(), model=model, max_epochs=2)
    prune = WeightPruning(sparsity=0.5, start=1, end=1, exclude=["*.base_layer.*", "*.lora_*"])
    fit(prune, model=model, max_epochs=2)
    assert list(prune.masks) == ["net.0.1.weight"]


def test_a_direction_of_weight_norm_may_be_pruned_but_no_whole_row() -> None:
    for normed in (parametrizations.weight_norm, nn.utils.weight_norm):
        layer = normed(linear())
        name = next(n for n, _ in layer.named_parameters() if n.endswith(("weight_v", "original1")))
        prune = WeightPruning(sparsity=0.5, start=1, end=1, include=[f"net.0.{name}"])
        fit(prune, model=classifier(layer, DIM), max_epochs=2)
        layer(torch.zeros(1, DIM))
        assert float((layer.weight == 0).float().mean()) == 0.5
    for normed in (parametrizations.weight_norm, nn.utils.weight_norm):
        layer = linear()
        layer.weight.data[3] /= 100
        prune = WeightPruning(sparsity=0.5, start=1, end=1, include=["net.0.*v", "net.0.*1"][:1])
        if normed is parametrizations.weight_norm:
            prune = WeightPruning(sparsity=0.5, start=1, end=1, include=["net.0.*.original1"])
        with pytest.raises(ValueError, match="all weights of one row are removed"):
            fit(prune, model=classifier(normed(layer), DIM), max_epochs=2)


class Outside(nn.Module):
    """Computes with a function of the weight of its part, which does not know of it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.part.weight
        return F.linear(x, weight - weight.mean(1, keepdim=True), self.part.bias)


class Experts(nn.Module):
    """Matrices [expert, in, out] under a name of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(DIM, 3)
        self.up = nn.Parameter(torch.randn(3, DIM, WIDTH) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("be,bi,eio->bo", self.router(x).softmax(1), x, self.up)


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 3))
        self.other = nn.Parameter(torch.randn(3, DIM))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight @ self.other)


class Sum(nn.Module):
    """Splines with a scale for each, and an activation beside them, as Kolmogorov-Arnold networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.base_weight = nn.Parameter(torch.randn(WIDTH, DIM) / 3)
        self.spline_weight = nn.Parameter(torch.randn(WIDTH, DIM, 4) / 9)
        self.scaler = nn.Parameter(torch.randn(WIDTH, DIM))

    def forward(self, x: Tensor) -> Tensor:
        splines = torch.stack([x.sin(), x.cos(), x, x**2], 2).flatten(1)
        weight = self.spline_weight * self.scaler.unsqueeze(2)
        return F.linear(F.silu(x), self.base_weight) + F.linear(splines, weight.flatten(1))


class Dropped(nn.Module):
    """Puts a dropped-out copy of its parameter into an LSTM before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, WIDTH, batch_first=True)
        self.raw = nn.Parameter(self.lstm.weight_hh_l0.detach().clone())
        del self.lstm._parameters["weight_hh_l0"]
        self.lstm.weight_hh_l0 = self.raw.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.lstm.weight_hh_l0 = F.dropout(self.raw, 0.5, True)
        return self.lstm(x.unsqueeze(2))[0][:, -1]


class Noise(nn.Module):
    """A mean and a deviation, as noisy layers of reinforcement learning have."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.deviation = (nn.Parameter(torch.rand(WIDTH, DIM)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mean + self.deviation * torch.randn(WIDTH, DIM))


class Conditional(nn.Module):
    """A kernel for each sample, which its routing adds up from several."""

    def __init__(self) -> None:
        super().__init__()
        self.routing = nn.Linear(DIM, 3)
        self.weight = nn.Parameter(torch.randn(3, WIDTH * DIM) / 3)

    def forward(self, x: Tensor) -> Tensor:
        kernels = torch.matmul(self.routing(x).sigmoid(), self.weight)
        kernels = kernels.view(len(x) * WIDTH, DIM, 1)
        return F.conv1d(x.reshape(1, -1, 1), kernels, groups=len(x)).view(len(x), WIDTH)


class Generated(nn.Module):
    """A matrix that another layer computes; the weights of that one are used as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(4))
        self.generator = nn.Linear(4, WIDTH * DIM)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.generator(self.code).view(WIDTH, DIM))


def test_kernels_that_each_sample_mixes_are_refused_and_a_generator_of_weights_is_not() -> None:
    with pytest.raises(ValueError, match=r"`net.0.weight` is not .* a sum of several kernels"):
        fit(
            WeightPruning(sparsity=0.5, start=1, end=1),
            model=classifier(Conditional()),
            max_epochs=2,
        )
    prune = WeightPruning(sparsity=0.5, start=1, end=1, exclude=["net.0.weight"])
    fit(prune, model=classifier(Conditional()), max_epochs=2)
    prune = WeightPruning(sparsity=0.5, start=1, end=1)
    fit(prune, model=classifier(Generated()), max_epochs=2)
    assert list(prune.masks) == ["net.0.generator.weight"]


class Joined(nn.Module):
    """Puts the matrices of its parts together."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(DIM, WIDTH), nn.Linear(DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.linear(x, torch.cat([self.query.weight, self.key.weight])).chunk(2, 1)
        return query * key


@pytest.mark.parametrize("start", [0, 1])
def test_zeros_of_one_part_are_no_mask_of_another(start: int) -> None:
    prune = WeightPruning(sparsity=0.5, start=start, end=1)
    fit(prune, model=classifier(Joined()), max_epochs=2)
    assert list(prune.masks) == ["net.0.query.weight", "net.0.key.weight"]


def test_an_adapter_that_begins_at_zero_is_refused_before_it_is_trained() -> None:
    layer = Written(lambda layer: layer.weight + layer.small @ layer.wide)
    nn.init.zeros_(layer.wide)
    with pytest.raises(ValueError, match="`weight` is not the weight that its layer computes with"):
        check_layers(layer, ["weight"])


@pytest.mark.parametrize(
    ("part", "names", "told"),
    [
        (Sum, ["base_weight", "spline_weight"], "`net.0.spline_weight` .*, `net.0.base_weight`"),
        (Dropped, ["raw"], r"`net.0.raw` \(\d+\.\d%\)"),
    ],
)
def test_parameters_under_other_names_and_what_is_made_of_them(
    part: Any, names: list[str], told: str
) -> None:
    model = classifier(nn.Sequential(part(), nn.Linear(WIDTH, WIDTH)))
    told = told.replace("net.0.", "net.0.0.")
    with pytest.warns(UserWarning, match=f"stay dense: {told}"):
        fit(WeightPruning(sparsity=0.5, start=1, end=1), model=model, max_epochs=2)
    prune = WeightPruning(sparsity=0.5, start=1, end=1, include=[f"net.0.0.{n}" for n in names])
    fit(prune, model=classifier(nn.Sequential(part(), nn.Linear(WIDTH, WIDTH))), max_epochs=2)
    assert list(prune.masks) == [f"net.0.0.{name}" for name in names]


def test_noise_on_a_weight_leaves_no_zeros() -> None:
    prune = WeightPruning(sparsity=0.5, start=1, end=1, include=["net.0.mean"])
    with pytest.raises(
        ValueError, match=r"`net.0.mean` is not .*, which is made of `net.0.deviation`"
    ):
        fit(prune, model=classifier(Noise()), max_epochs=2)


@pytest.mark.parametrize(
    ("kind", "name"), [("lstm", "weight_hh_l0"), ("attention", "in_proj_weight")]
)
def test_masks_of_torch_on_matrices_of_other_layers(kind: str, name: str) -> None:
    model = made(kind)
    part = next(p for p in model.modules() if isinstance(p, nn.LSTM | nn.MultiheadAttention))
    prune.l1_unstructured(part, name, 0.5)
    with pytest.raises(ValueError, match=rf"`\S+{name}_orig` is not .* weights are masked there"):
        fit(WeightPruning(sparsity=0.5, start=1, end=1), model=model, max_epochs=2)
    prune.remove(part, name)
    callback = WeightPruning(sparsity=0.75, start=1, end=1)
    fit(callback, model=model, max_epochs=2)
    assert any(mask.endswith(name) for mask in callback.masks)


def test_weight_norm_of_a_recurrent_layer_is_named() -> None:
    for normed in (parametrizations.weight_norm, nn.utils.weight_norm):
        model = made("lstm")
        part = next(p for p in model.modules() if isinstance(p, nn.LSTM))
        normed(part, "weight_hh_l1")
        with pytest.warns(UserWarning, match=r"stay dense: `net.0.layer.\S*(original1|_v)` "):
            fit(WeightPruning(sparsity=0.5, start=1, end=1), model=model, max_epochs=2)


class Bases(nn.Module):
    """A matrix for each relation, made of two that all share."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, DIM, WIDTH))
        self.shares = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        every = (self.shares @ self.weight.flatten(1)).view(3, DIM, WIDTH)
        return sum(x @ weight for weight in every)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize(
    ("part", "name"), [(Outside, "part.weight"), (LowRank, "weight"), (Bases, "weight")]
)
def test_what_only_the_first_step_shows_is_refused_in_it(part: Any, name: str, start: int) -> None:
    model = classifier(part())
    told = f"`net.0.{name}` is not the weight that its layer computes with"
    with pytest.raises(ValueError, match=told):
        fit(WeightPruning(sparsity=0.5, start=start, end=1), model=model, max_epochs=2)
    assert "training_step" not in vars(model)
    assert model.trainer.global_step == 0


def test_what_stays_dense_is_named_with_its_share() -> None:
    told = (
        r"layers that have 5\.0% of the parameters; others are multiplied with activations, too, and stay dense: "
        r"`net.0.up` \(80\.2%\)\. Name"
    )
    with pytest.warns(UserWarning, match=told):
        fit(WeightPruning(sparsity=0.5, start=1, end=1), model=classifier(Experts()), max_epochs=2)
    for options in ({"exclude": ["*.up"]}, {"include": ["*.router.weight", "*.up"]}):
        prune = WeightPruning(sparsity=0.5, start=1, end=1, **options)  # type: ignore[arg-type]
        fit(prune, model=classifier(Experts()), max_epochs=2)
    assert list(prune.masks) == ["net.0.up", "net.0.router.weight"]


class Queries(nn.Module):
    """Parameters that are themselves put through layers, with others that scale, shift and choose."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.places = nn.Embedding(DIM, WIDTH)
        self.enter = nn.Linear(1, WIDTH)
        self.norm = nn.LayerNorm((3, WIDTH))
        self.own, self.cross = (nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in "ab")
        self.scale = nn.Parameter(torch.ones(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.enter(x.unsqueeze(2)) + self.places(torch.arange(DIM))
        queries = self.own(self.queries, self.queries, self.queries)[0].expand(len(x), -1, -1)
        found = self.norm(self.cross(queries, memory, memory)[0])
        return found.mean(1) * self.scale.squeeze(1)


@pytest.mark.parametrize("part", [Queries, Attention])
def test_parameters_that_take_the_place_of_activations_are_no_weights(part: Any) -> None:
    fit(WeightPruning(sparsity=0.5, start=1, end=1), model=classifier(part()), max_epochs=2)


class Tied(Model):
    """The decoder has the matrix of the embedding, and a scale of one vector is no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDTH)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(self.words(x.abs().long() % 50).mean(1))
        return self.last(hidden) + 0 * F.linear(hidden, self.words.weight).mean()


def test_embeddings_stay_dense_without_a_word() -> None:
    prune = WeightPruning(sparsity=0.5, start=1, end=1)
    fit(prune, model=Tied(), max_epochs=2)
    assert list(prune.masks) == ["net.0.weight", "net.2.weight", "first.weight"]


class Manual(Model):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_the_observed_step_is_the_same_step() -> None:
    """With DataPruning, which observes it as well, in both orders, and with manual optimisation."""
    found = []
    for first in (True, False):
        data = DataPruning(0.5, warmup_epochs=1, seed=3)
        weights = WeightPruning(sparsity=0.5, start=2, end=2)
        callbacks = [weights, data] if first else [data, weights]
        torch.manual_seed(1)
        model = Model()
        trainer(callbacks=[*callbacks, Zeros(weights)]).fit(model, Data(shuffle=False))
        found.append([p.tolist() for p in model.parameters()])
    assert found[0] == found[1]
    callback = WeightPruning(sparsity=0.5, start=1, end=1)
    fit(callback, model=Manual(), max_epochs=2)
    assert callback.pruned
