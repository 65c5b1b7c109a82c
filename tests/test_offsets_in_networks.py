"""Offsets in a network: behind a layer, in its bias, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_fairprune import offsets
from lightning_fairprune.offsets import apply, export

OFFSETS = torch.tensor([0.5, -1.0, 0.75, -0.25])


class Head(nn.Module):
    """As the heads of timm: pooling, dropout and a layer `fc`."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.pool(x).flatten(1)))


class ResNet(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head = Head(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu())


class Output(dict[str, Any]):
    """As the outputs of transformers."""


class Classifier(nn.Module):
    """As the classifiers of transformers: a dictionary with the loss, if there are labels, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.out_proj = nn.Linear(75, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Output:
        return Output(logits=self.out_proj(self.dense(x.flatten(1)).tanh()), hidden=x)


class Tied(nn.Module):
    """As the language models that share the weight of embedding and head, and name the bias twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(4, 6), nn.Linear(6, 4)
        self.decoder.weight = self.embedding.weight
        self.bias = self.decoder.bias
        self.body = nn.Linear(75, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.body(x.flatten(1)))


class TwoHeads(nn.Module):
    """As DeiT: the mean of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = nn.Linear(75, 4), nn.Linear(75, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(x.flatten(1)) + self.head_dist(x.flatten(1))) / 2


class Cosine(nn.Linear):
    """A layer without a bias that scales what it computes."""

    def __init__(self) -> None:
        super().__init__(75, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 10 * nn.functional.linear(x, nn.functional.normalize(self.weight))


class Custom(nn.Module):
    """A network without any layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(75, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def flat(*more: nn.Module, **layer: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(75, 4, **layer), *more)


def convolution(*more: nn.Module, bias: bool = True) -> nn.Module:
    """As SqueezeNet, or with nothing behind it as a network that labels pixels."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=bias), *more)


GOOD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet": (ResNet, "head.fc"),
    "resnet without bias": (lambda: ResNet(bias=False), "head.fc"),
    "classifier": (Classifier, "out_proj"),
    "tied": (Tied, "decoder"),
    "linear": (flat, "1"),
    "frozen": (lambda: flat().requires_grad_(False), "1"),
    "softmax behind": (lambda: flat(nn.Softmax(1)), "1"),
    "log-softmax behind": (lambda: flat(nn.LogSoftmax(1)), "1"),
    "pixels": (convolution, "2"),
    "pixels without bias": (lambda: convolution(bias=False), "2"),
    "pooled": (lambda: convolution(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "2"),
    "double": (lambda: flat().double(), "1"),
}
FAMILY = pytest.mark.parametrize("name", GOOD)


def images(model: nn.Module) -> Tensor:
    x = torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return x.to(next(model.parameters()).dtype)


def logits(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        out = model(images(model))
    found: Tensor = out["logits"] if isinstance(out, dict) else out
    return found


def expected(name: str, before: Tensor) -> Tensor:
    """The predictions without the library: offsets added to what the network gave."""
    values = before.log() if name == "softmax behind" else before
    return (values + OFFSETS.reshape(-1, *[1] * (before.ndim - 2))).argmax(1)


@FAMILY
def test_applied_and_removed(name: str) -> None:
    model = GOOD[name][0]()
    before, weights = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    handle = apply(model, OFFSETS)
    assert torch.equal(logits(model).argmax(1), expected(name, before))
    assert not torch.equal(logits(model).argmax(1), before.argmax(1))
    assert model.state_dict().keys() == weights.keys()
    handle.remove()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@FAMILY
def test_exported_predictions_need_no_library(name: str) -> None:
    make, layer = GOOD[name]
    model = make()
    before = logits(model)
    with apply(model, OFFSETS):
        applied = logits(model)
    assert export(model, OFFSETS) == layer
    torch.testing.assert_close(logits(model), applied)
    assert torch.equal(logits(model).argmax(1), expected(name, before))


def test_saved_and_loaded_by_a_network_that_knows_nothing_of_it() -> None:
    model, other = ResNet(bias=False), ResNet(bias=True)
    export(model, OFFSETS)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


def test_one_logit_for_two_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 1))
    before = logits(model)
    with apply(model, [-0.5, 0.25]):
        torch.testing.assert_close(logits(model), before + 0.75)
    export(model, [-0.5, 0.25])
    torch.testing.assert_close(logits(model), before + 0.75)


@pytest.mark.parametrize("make", [Classifier, Custom, TwoHeads, lambda: flat(nn.LayerNorm(4))])
def test_behind_what_the_module_returns(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = logits(model)
    with apply(model, OFFSETS, layer=""):
        torch.testing.assert_close(logits(model), before + OFFSETS)
    assert torch.equal(logits(model), before)


def test_training_goes_through_the_hook() -> None:
    model = flat()
    with apply(model, OFFSETS):
        model(images(model)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_half_precision_stays_half() -> None:
    model = flat().bfloat16()
    with apply(model, OFFSETS):
        assert logits(model).dtype == torch.bfloat16
    export(model, OFFSETS)
    assert logits(model).dtype == torch.bfloat16


def test_a_named_head() -> None:
    model = TwoHeads()
    assert export(model, OFFSETS, layer="head_dist") == "head_dist"
    with pytest.raises(ValueError, match="no such module"):
        apply(model, OFFSETS, layer="head_3")


def shared_bias() -> nn.Module:
    model = TwoHeads()
    model.head_dist.bias = model.head.bias
    return model


def computed_bias() -> nn.Module:
    model = nn.Linear(75, 4)
    nn.utils.parametrize.register_parametrization(model, "bias", nn.Identity())
    return nn.Sequential(nn.Flatten(), model)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str | None, str]] = {
    "several heads": (TwoHeads, None, "'head', 'head_dist': name the one"),
    "none": (Custom, None, "there is none"),
    "followed by a rectifier": (lambda: convolution(nn.ReLU(), nn.Flatten()), None, "ReLU follows"),
    "scripted": (lambda: torch.jit.script(flat()), None, "before torch.jit.script"),
    "not a layer": (flat, "0", "it is a Flatten"),
    "another width": (ResNet, "conv", "has 6"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("function", [apply, export])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, function: Callable[..., Any]) -> None:
    make, layer, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        function(make(), OFFSETS, layer=layer)


@pytest.mark.parametrize(
    ("make", "layer", "words"),
    [
        (
            lambda: nn.Sequential(nn.Flatten(), Cosine()),
            None,
            "has a forward of its own|it has a forward",
        ),
        (shared_bias, "head", "'head_dist' shares it"),
        (computed_bias, None, "computed from other weights"),
    ],
)
def test_no_bias_to_export_into(make: Callable[[], nn.Module], layer: Any, words: str) -> None:
    model = make()
    before = logits(model)
    with pytest.raises(ValueError, match=words):
        export(model, OFFSETS, layer=layer)
    assert torch.equal(logits(model), before)
    with apply(model, OFFSETS, layer=layer):
        assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("wrong", [[0.0, float("nan"), 0.0, 0.0], torch.zeros(2, 2), float("inf")])
def test_offsets_that_are_none(wrong: Any) -> None:
    for function in (apply, export):
        with pytest.raises(ValueError, match="one finite number for each class"):
            function(flat(), wrong)


def test_a_module_that_returns_something_else() -> None:
    model = nn.Identity()
    with apply(model, OFFSETS, layer=""), pytest.raises(ValueError, match="logits of 4 classes"):
        model(torch.zeros(2, 3))
    with offsets.apply(model, OFFSETS, layer=""), pytest.raises(ValueError, match="return logits"):
        model((torch.zeros(2, 4),))
