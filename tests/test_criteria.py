"""Every criterion equals the obvious loop, and leaves the model exactly as it found it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import oracles_criteria as oracle
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

from lightning_fairprune import criteria
from lightning_fairprune.criteria import _fairprune

CE = nn.CrossEntropyLoss()


def mean(outputs: Tensor, target: Any) -> Tensor:
    return outputs.mean()


def same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    tolerance = tolerance or {"rtol": 1e-10, "atol": 1e-14}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **tolerance)


def line(*weight: float) -> nn.Linear:
    model = nn.Linear(len(weight), 1, bias=False)
    model.weight.data.copy_(torch.tensor([weight]))
    return model


def test_prunable_are_the_weights_of_linear_and_convolution_layers() -> None:
    kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d]
    layers = [kind(2, 2, 1) for kind in [*kinds, nn.ConvTranspose3d]]
    others = [nn.BatchNorm1d(2), nn.LayerNorm(2), nn.Embedding(3, 2), nn.PReLU()]
    model = nn.Sequential(*layers, *others, nn.Linear(2, 2))
    assert criteria.prunable(model) == (*(f"{i}.weight" for i in range(6)), "10.weight")
    assert criteria.prunable(nn.BatchNorm1d(2)) == ()


def test_prunable_names_a_shared_weight_once_and_leaves_embeddings() -> None:
    assert criteria.prunable(oracle.Shared()) == oracle.WEIGHTS["shared"]
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    tied[2].weight = tied[0].weight
    assert criteria.prunable(tied) == ("1.weight",)


def test_prunable_finds_the_originals_of_pruned_and_parametrised_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    parametrize.register_parametrization(model[1], "weight", nn.Tanh())
    names = {"0.weight_orig", "1.parametrizations.weight.original", "2.weight"}
    assert set(criteria.prunable(model)) == names
    for found in (
        criteria.gradient(model, [(torch.ones(2, 3), None)], mean),
        criteria.synflow(model, torch.ones(1, 3)),
    ):
        assert found.keys() == set(criteria.prunable(model))
        pruned = model[0].weight_mask == 0
        assert not found["0.weight_orig"][pruned].any()
        assert found["0.weight_orig"][~pruned].all()


def test_any_parameter_can_be_named() -> None:
    model, batches = oracle.network("shared")
    names = ["last.bias", "again.weight", "middle.weight"]
    found = criteria.gradient(model, batches, CE, parameters=iter(names))
    assert list(found) == ["middle.weight", "last.bias"]  # as in named_parameters
    grads = oracle.mean_grads(model, batches, found)
    same(found, oracle.each(model, grads, lambda t, g, _: abs(t * g)))


def test_magnitude() -> None:
    model, _ = oracle.network("cnn")
    found = criteria.magnitude(model)
    assert tuple(found) == oracle.WEIGHTS["cnn"]
    same(found, oracle.each(model, found, lambda t, _, __: abs(t)))


def test_random_depends_on_seed_name_and_shape_alone() -> None:
    model, _ = oracle.network("cnn")
    torch.manual_seed(1)
    found = criteria.random(model)
    torch.manual_seed(2)
    same(found, criteria.random(copy.deepcopy(model)))
    same(found, {n: v.double() for n, v in criteria.random(model.float()).items()})
    one = criteria.random(model, parameters=["7.weight"])
    torch.testing.assert_close(one["7.weight"].double(), found["7.weight"])
    assert not criteria.random(model, seed=1)["7.weight"].equal(one["7.weight"])
    twins = criteria.random(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    assert not twins["0.weight"].equal(twins["1.weight"])
    wide, high = (criteria.random(nn.Linear(*sizes))["weight"] for sizes in ((4, 2), (2, 4)))
    assert not wide.flatten().equal(high.flatten())


def test_random_is_uniform() -> None:
    values = criteria.random(nn.Linear(300, 100))["weight"]
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01  # 6 standard errors
    assert abs(values.var() - 1 / 12) < 0.005


def test_gradient_by_hand() -> None:
    batches = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), None), (torch.tensor([[8.0, 4.0]]), None)]
    found = criteria.gradient(line(2, -3), batches, mean)
    same(found, {"weight": torch.tensor([[8.0, 6.0]])})  # g = mean of three samples = (4, 2)


@pytest.mark.parametrize("name", oracle.NETWORKS)
def test_gradient_and_snip_equal_the_loop(name: str) -> None:
    model, batches = oracle.network(name)
    grads = oracle.mean_grads(model, batches, oracle.WEIGHTS[name])
    expected = oracle.each(model, grads, lambda t, g, _: abs(t * g))
    same(criteria.gradient(model, batches, CE), expected)
    whole = sum(float(value.sum()) for value in expected.values())
    found = criteria.snip(model, batches, CE)
    same(found, {n: v / whole for n, v in expected.items()})
    assert sum(float(value.sum()) for value in found.values()) == pytest.approx(1)


def test_snip_of_a_flat_loss_is_0() -> None:
    found = criteria.snip(line(1, 2), [(torch.ones(1, 2), None)], lambda z, y: (z * 0).mean())
    same(found, {"weight": torch.zeros(1, 2)})


@pytest.mark.parametrize("name", oracle.NETWORKS)
@pytest.mark.parametrize("several", [False, True])
def test_undecayed_equals_the_loop(name: str, several: bool) -> None:
    model, batches = oracle.network(name)
    names = oracle.WEIGHTS[name]
    eps = {n: 0.01 * (i + 1) if several else 0.03 for i, n in enumerate(names)}
    decay = eps if several else 0.03
    grads = oracle.mean_grads(model, batches, names)
    expected = oracle.each(model, grads, lambda t, g, n: abs(-t * g + eps[n] * t**2))
    same(criteria.undecayed(model, batches, CE, weight_decay=decay), expected)

    grads = oracle.mean_grads(model, batches, names, penalty=eps)
    expected = oracle.each(model, grads, lambda t, g, n: abs(-t * g + eps[n] * t**2))
    found = criteria.undecayed(model, batches, CE, weight_decay=decay, form="paper")
    same(found, expected)
    same(found, criteria.gradient(model, batches, CE))  # the decay cancels


def test_undecayed_on_a_resnet() -> None:
    """Recomputed by `backward` on the whole data at once, in float32 as users have it."""
    model = oracle.settled(oracle.resnet20(8)).float()
    x, y = torch.randn(12, 3, 16, 16), torch.randint(10, (12,))
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    decay = criteria.weight_decay_of(model, optimizer)
    found = criteria.undecayed(model, loader, CE, weight_decay=decay)

    twin = copy.deepcopy(model).double().eval()
    CE(twin(x.double()), y).backward()
    assert len(found) == 20
    for name, value in found.items():
        theta, grad = twin.get_parameter(name), twin.get_parameter(name).grad
        expected = (5e-4 * theta * theta - grad * theta).abs()
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-7)
    paper = criteria.undecayed(model, loader, CE, weight_decay=decay, form="paper")
    same(paper, criteria.gradient(model, loader, CE), rtol=1e-3, atol=1e-8)


def test_attention() -> None:
    """Fused kernels have no backward pass, or none for torch.func."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(40, 3)).double()
    x, y = torch.randn(6, 5, 8, dtype=torch.float64), torch.tensor([0, 1, 2] * 2)
    names = criteria.prunable(model)
    assert "0.layers.1.self_attn.out_proj.weight" in names
    grads = oracle.mean_grads(model, [(x, y)], names)
    expected = oracle.each(model, grads, lambda t, g, _: abs(t * g))
    same(criteria.gradient(model, [(x, y)], CE), expected)
    h0, h1 = (oracle.curvature(model, [(x, y)], names, odd, g) for g in (0, 1))
    expected = {n: model.get_parameter(n).detach() ** 2 / 2 * (h0[n] - h1[n]) for n in names}
    same(criteria.fairprune(model, [(x, y)], CE, groups=odd, beta=1.0), expected)
    for value in criteria.synflow(model, x).values():
        assert (value >= 0).all()
        assert value.any()


def test_undecayed_ranks_by_magnitude_where_training_has_converged() -> None:
    """At g = -eps theta the code's form is 2 eps theta^2."""
    model = line(3, -1)
    eps = 0.1
    batches = [(-eps * torch.tensor([[3.0, -1.0]]), None)]
    found = criteria.undecayed(model, batches, mean, weight_decay=eps)
    same(found, {"weight": torch.tensor([[1.8, 0.2]])}, rtol=1e-6, atol=0.0)


def test_weight_decay_of() -> None:
    model = oracle.Shared()
    groups = [
        {"params": [model.middle.weight, model.last.weight], "weight_decay": 0.5},
        {"params": [model.first.weight]},
    ]
    found = criteria.weight_decay_of(model, torch.optim.SGD(groups, lr=1, weight_decay=0.25))
    assert found.keys() == dict(model.named_parameters()).keys()
    decayed = {"first.weight": 0.25, "middle.weight": 0.5, "last.weight": 0.5}
    assert {n: v for n, v in found.items() if v} == decayed
    with pytest.raises(ValueError, match="`optimizer` must hold parameters of `model`"):
        criteria.weight_decay_of(oracle.mlp(), torch.optim.SGD(model.parameters(), lr=1))


def bias_free(conv: bool) -> tuple[nn.Module, Tensor]:
    if conv:
        layers: list[nn.Module] = []
        for before, after in ((3, 8), (8, 4), (4, 6)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.ReLU()]
            layers += [nn.BatchNorm2d(after, affine=False, eps=0.0), nn.AvgPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(6, 5, bias=False)]
        return nn.Sequential(*layers), torch.ones(1, 3, 8, 8)
    layers = []
    for before, after in itertools.pairwise([7, 20, 3, 11, 4]):
        layers += [nn.Linear(before, after, bias=False), nn.ReLU()]
    return nn.Sequential(*layers), torch.ones(2, 7)


@pytest.mark.parametrize("name", oracle.NETWORKS)
def test_synflow_equals_the_loop(name: str) -> None:
    model, batches = oracle.network(name)
    shape = oracle.NETWORKS[name][1]
    expected = oracle.synflow(model, shape, oracle.WEIGHTS[name])
    same(criteria.synflow(model, batches[0][0]), expected)
    single = {name: value.float() for name, value in expected.items()}
    same(criteria.synflow(model.float(), batches[0][0]), single, rtol=1e-5, atol=1e-9)
    for rounds, sparsity in ((1, 0.6), (7, 0.9)):
        found = criteria.synflow_masks(model, batches[0][0], sparsity, rounds=rounds)
        masks = oracle.synflow_masks(model, shape, oracle.WEIGHTS[name], sparsity, rounds)
        same(found, masks, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("conv", [False, True])
def test_synflow_is_conserved_from_layer_to_layer(conv: bool) -> None:
    model, x = bias_free(conv)
    found = criteria.synflow(model.double(), x)
    assert len(found) == 4
    for value in found.values():
        assert float(value.sum()) == pytest.approx(1)
    # So is the flow into and out of each hidden unit.
    first, second = list(found.values())[:2]
    into = first.flatten(1).sum(1)
    out = second.transpose(0, 1).flatten(1).sum(1)
    torch.testing.assert_close(into, out)


def test_synflow_without_pruned_weights() -> None:
    model, x = bias_free(False)
    mask = torch.rand(20, 7) < 0.5
    mask[4] = False
    found = criteria.synflow(model, x, masks={"0.weight": mask})
    assert not found["0.weight"][~mask].any()
    assert not found["2.weight"][:, 4].any()  # nothing arrives there
    model[0].weight.data *= mask
    same(found, criteria.synflow(model, x), rtol=1e-6, atol=0.0)
    nothing = criteria.synflow(model, x, masks={"0.weight": torch.zeros(20, 7)})
    assert not any(value.any() for value in nothing.values())


def test_synflow_of_any_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.layer = nn.Embedding(3, 2), line(1, -3)
            self.words.weight.data.copy_(torch.tensor([[9.0, 9], [-1, 1], [9, 9]]))

        def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Any]:
            self.layer(scale)
            out = self.layer(self.words(tokens).mean(1) * scale)
            return {"out": (out, out), "n": torch.tensor(3)}

    inputs = {"scale": torch.zeros(5, 2), "tokens": torch.tensor([[1, 1]] + 4 * [[0, 0]])}
    found = criteria.synflow(Two(), inputs)
    same(found, {"layer.weight": torch.tensor([[0.25, 0.75]])})


def test_synflow_of_a_deep_network_fits() -> None:
    deep = nn.Sequential(*[line(1e6) for _ in range(40)])  # R = 1e240
    for value in criteria.synflow(deep, torch.ones(1, 1)).values():
        assert float(value) == pytest.approx(1)
    deeper = nn.Sequential(*[line(1e6) for _ in range(60)])
    with pytest.raises(ValueError, match="must fit into float64, got a flow of inf"):
        criteria.synflow(deeper, torch.ones(1, 1))
    first = line(1e-36, 1e-36)
    first.weight.data.mul_(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"its gradient must fit into float64, got a flow of 1"):
        criteria.synflow(nn.Sequential(first, *deeper[4:]), torch.ones(1, 2))


def test_synflow_of_outputs_below_0() -> None:
    model = nn.ModuleDict({"layer": line(1, -3)})
    model.forward = lambda x: -model["layer"](x)  # type: ignore[method-assign]
    same(criteria.synflow(model, torch.ones(1, 2)), {"layer.weight": torch.tensor([[0.25, 0.75]])})


def test_what_is_gone_does_not_come_back() -> None:
    """In round 1 all weights into the first unit go; those out of it then carry nothing, but one may stay."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.tensor([[0.1, 0.1, 0.1], [1.0, 1.0, 1.0]]))
    model[1].weight.data.copy_(torch.tensor([[0.1, 1.0], [0.1, 1.0]]))
    masks = criteria.synflow_masks(model, torch.ones(1, 3), 0.44, rounds=2)
    assert masks["0.weight"].tolist() == [[False] * 3, [True] * 3]
    assert masks["1.weight"].tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.987])
@pytest.mark.parametrize("rounds", [1, 10])
def test_synflow_masks_keep_an_exact_number(sparsity: float, rounds: int) -> None:
    model, x = bias_free(True)
    for layer in criteria.prunable(model):
        model.get_parameter(layer).data.fill_(0.1)  # ties everywhere
    masks = criteria.synflow_masks(model, x, sparsity, rounds=rounds)
    size = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(sparsity * size)
    assert all(mask.dtype == torch.bool for mask in masks.values())


def test_equal_weights_stay_in_order() -> None:
    model = nn.Linear(5, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, 1, 0, 0, 1]]))
    masks = criteria.synflow_masks(model, torch.ones(1, 5), 0.6, rounds=4)
    assert masks["weight"].tolist() == [[True, True, False, False, False]]


def test_synflow_keeps_every_layer_where_magnitude_empties_some() -> None:
    """VGG-16 at initialisation, compressed 1000 times; an eighth of the channels, for time."""
    model = oracle.vgg16(8)
    scores = criteria.magnitude(model)
    flat = torch.cat([value.flatten() for value in scores.values()])
    threshold = flat.topk(round(len(flat) * 0.001)).values[-1]
    by_magnitude = [int((value >= threshold).sum()) for value in scores.values()]
    masks = criteria.synflow_masks(model, torch.zeros(1, 3, 32, 32), 0.999)
    by_flow = [int(mask.sum()) for mask in masks.values()]
    assert len(by_flow) == 14
    assert min(by_magnitude) == 0
    assert min(by_flow) > 0
    assert sum(by_flow) == round(len(flat) * 0.001)


def test_bad_flows() -> None:
    model, x = bias_free(False)
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        criteria.synflow_masks(model, x, 1)
    with pytest.raises(ValueError, match="`rounds` must be at least 1, got 0"):
        criteria.synflow_masks(model, x, 0.5, rounds=0)
    with pytest.raises(ValueError, match=r"got \[2\] for `0.weight` of \[20, 7\]"):
        criteria.synflow(model, x, masks={"0.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="must be names of parameters of `model`, got 'first'"):
        criteria.synflow(model, x, masks={"first": torch.ones(2)})
    shared = oracle.Shared()
    with pytest.raises(ValueError, match=r"named_parameters\(\)`, got 'again.weight'"):
        criteria.synflow(shared, torch.ones(1, 4), masks={"again.weight": torch.ones(6, 6)})
    idle = nn.ModuleDict({"idle": line(1, 2)})
    idle.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="must depend on a parameter that is scored"):
        criteria.synflow(idle, torch.ones(1, 2))


def odd(batch: Any) -> Tensor:
    return batch[1] % 2


@pytest.mark.parametrize("name", oracle.NETWORKS)
@pytest.mark.parametrize("groups", [None, odd])
def test_group_importance_equals_the_loop(name: str, groups: Any) -> None:
    model, batches = oracle.network(name)
    batches.append((batches[1][0][:1], torch.tensor([0])))  # one group only
    num = 2 if groups else 3
    found = criteria.group_importance(model, batches, CE, num_groups=num, groups=groups)
    ids = groups or (lambda batch: batch[1])
    same(found, oracle.group_importance(model, batches, oracle.WEIGHTS[name], num, ids))


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = line(1, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(a.mul_(2) + b)  # writes to its input


def test_group_importance_of_inputs_of_any_form() -> None:
    a, b = torch.tensor([[0.5, 1], [0, 0], [2.5, 0]]), torch.tensor([[0.0, 3], [1, 1], [0, 0]])
    for inputs in ((a, b), {"b": b, "a": a}):
        found = criteria.group_importance(
            Sum(), [(inputs, {"y": b, "g": torch.tensor([1, 0, 1])})], mean,
            num_groups=2, groups=lambda batch: batch[1]["g"],
        )  # fmt: skip
        same(found, {"layer.weight": torch.tensor([[[1.0, 1]], [[9, 6.25]]])})


@pytest.mark.parametrize("name", oracle.NETWORKS)
@pytest.mark.parametrize("sparsity", [0.2, 0.8])
def test_fairgrape_with_blocks_of_1_equals_the_loop(name: str, sparsity: float) -> None:
    model, batches = oracle.network(name)
    importance = criteria.group_importance(model, batches, CE, num_groups=3)
    found = criteria.fairgrape_masks(model, batches, CE, sparsity, num_groups=3, block=1)
    for key, mask in found.items():
        count = mask.numel() - round(sparsity * mask.numel())
        expected = oracle.keep_shares(importance[key].flatten(1), count)
        assert mask.flatten().equal(expected)


@pytest.mark.parametrize("block", [None, 1, 3, 10_000])
def test_fairgrape_keeps_an_exact_number_in_each_layer(block: int | None) -> None:
    model, batches = oracle.network("cnn")
    sparsity = {"0.weight": 0.0, "4.weight": 0.37, "7.weight": 0.9, "other": 0.1}
    masks = criteria.fairgrape_masks(model, batches, CE, sparsity, num_groups=3, block=block)
    assert tuple(masks) == oracle.WEIGHTS["cnn"]
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert int((~mask).sum()) == round(sparsity[name] * mask.numel())


def test_fairgrape_without_any_importance_keeps_the_first() -> None:
    batches = [(torch.zeros(2, 4), torch.tensor([0, 1]))]
    masks = criteria.fairgrape_masks(line(1, 2, 3, 4), batches, mean, 0.5, num_groups=2)
    assert masks["weight"].tolist() == [[True, True, False, False]]


def test_fairgrape_gives_nothing_to_a_group_that_needs_nothing() -> None:
    batches = [(torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4]]), torch.tensor([0, 1]))]
    masks = criteria.fairgrape_masks(line(1, 1, 1, 1), batches, mean, 0.5, num_groups=2)
    assert masks["weight"].tolist() == [[False, False, True, True]]


def test_fairgrape_keeps_shares_where_magnitude_does_not() -> None:
    """Group 1 lives on features with small weights, which magnitude takes first."""
    size = 400
    model = nn.Linear(size, 1, bias=False)
    x = torch.rand(20, size)
    ids = torch.arange(20) % 2
    model.weight.data[:, : size // 2] = 1 + torch.rand(size // 2)
    model.weight.data[:, size // 2 :] = 0.5 * torch.rand(size // 2)
    x[ids == 0, size // 2 :] = 0
    x[ids == 1, : size // 2] = 0
    x[ids == 1] *= 6
    batches = [(x, ids)]
    importance = criteria.group_importance(model, batches, mean, num_groups=2)["weight"]

    def distance(mask: Tensor) -> float:
        dense, kept = importance.flatten(1).sum(1), (importance * mask).flatten(1).sum(1)
        return float((kept / kept.sum() - dense / dense.sum()).abs().max())

    magnitude = model.weight.abs() >= model.weight.abs().flatten().topk(200).values[-1]
    assert distance(magnitude) > 0.3
    for block in (None, 1, 10):
        masks = criteria.fairgrape_masks(model, batches, mean, 0.5, num_groups=2, block=block)
        assert distance(masks["weight"]) < 0.05


@pytest.mark.parametrize("name", oracle.NETWORKS)
@pytest.mark.parametrize("memory", [2**28, 3000, 1])
def test_fairprune_equals_the_loop(name: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fairprune, "_MEMORY", memory)
    model, batches = oracle.network(name)
    h0, h1 = (oracle.curvature(model, batches, oracle.WEIGHTS[name], odd, g) for g in (0, 1))
    half = {key: model.get_parameter(key).detach() ** 2 / 2 for key in h0}
    expected = {key: value * (h0[key] - 0.4 * h1[key]) for key, value in half.items()}
    found = criteria.fairprune(model, batches, CE, groups=odd, beta=0.4)
    same(found, expected)
    assert not any(value.requires_grad for value in found.values())
    assert any((value < 0).any() for value in found.values())


def test_fairprune_of_other_losses() -> None:
    """The second derivative of a squared error of a linear model is exact, with inputs by name."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = line(2, -3)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.layer(x * scale).squeeze(-1)

    x = torch.tensor([[1.0, 0], [2, 1], [0, 2]])
    batch = ({"scale": torch.full((3, 1), 2.0), "x": x}, torch.zeros(3))
    ids = torch.tensor([0, 1, 0])
    found = criteria.fairprune(Scaled(), [batch], nn.MSELoss(), groups=lambda b: ids, beta=0.5)
    # h0 = 2 * 4 * mean of (1, 0), (0, 4); h1 = 2 * 4 * (4, 1)
    expected = torch.tensor([[4 / 2 * (4 - 16.0), 9 / 2 * (16 - 4.0)]])
    same(found, {"layer.weight": expected}, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (lambda b: [0, 1], TypeError, r"`groups` must return group ids, .* \[B\], got list"),
        (lambda b: torch.ones(2), ValueError, r"got torch.float32 of shape \[2\] for B = 2"),
        (lambda b: torch.tensor([0]), ValueError, r"got torch.int64 of shape \[1\] for B = 2"),
        (lambda b: torch.tensor([0, 2]), ValueError, r"group ids must lie in \[0, 2\), got 2"),
        (lambda b: torch.tensor([-1, 0]), ValueError, r"group ids must lie in \[0, 2\), got -1"),
        (lambda b: torch.tensor([0, 0]), ValueError, "of all 2 groups, got none of group 1: take"),
        (
            None,
            ValueError,
            "the target must hold class ids, .* got torch.float32 .*; give `groups`",
        ),
    ],
)
def test_bad_groups(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        criteria.group_importance(line(1, 1), GOOD, mean, num_groups=2, groups=groups)
    if groups is not None:
        with pytest.raises(error, match=message):
            criteria.fairprune(line(1, 1), GOOD, mean, groups=groups)


def test_a_module_under_two_names() -> None:
    shared, tied = nn.Linear(3, 3), nn.Linear(3, 3)
    tied.weight = shared.weight
    model = nn.Sequential(shared, nn.Tanh(), shared, tied)
    batches = [(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))]
    masks = criteria.synflow_masks(model, torch.ones(1, 3), 0.5, rounds=3)
    assert int(masks["0.weight"].sum()) == 9 - round(4.5)
    found = criteria.fairprune(model, batches * 2, CE, groups=lambda batch: batch[1])
    again = criteria.fairprune(model, batches, CE, groups=lambda batch: batch[1])
    assert found["0.weight"].allclose(again["0.weight"])


def test_bad_arguments_of_group_criteria() -> None:
    model, batches = oracle.network("mlp")
    bad = ((torch.ones(2, 4), torch.ones(3)), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`num_groups` must be at least 1, got 0"):
        criteria.group_importance(model, batches, CE, num_groups=0)
    with pytest.raises(ValueError, match="got none of group 3 and 6 more"):
        criteria.group_importance(model, batches, CE, num_groups=10)
    with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
        criteria.group_importance(model, [], CE, num_groups=3)
    told = r"samples along its first axis, got shape \[3\] next to 2"
    with pytest.raises(ValueError, match=told):
        criteria.group_importance(model, [bad], CE, num_groups=2)
    with pytest.raises(ValueError, match="`block` must be at least 1, got 0"):
        criteria.fairgrape_masks(model, batches, CE, 0.5, num_groups=3, block=0)
    with pytest.raises(ValueError, match=r"removed, in \[0, 1\), got -0.1"):
        criteria.fairgrape_masks(model, batches, CE, -0.1, num_groups=3)
    with pytest.raises(ValueError, match="for every parameter that is pruned, got none for '3"):
        criteria.fairgrape_masks(model, batches, CE, {"0.weight": 0.5}, num_groups=3)
    with pytest.raises(ValueError, match="`beta` must be finite and >= 0, got -1"):
        criteria.fairprune(model, batches, CE, groups=odd, beta=-1)
    with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
        criteria.fairprune(model, [], CE, groups=odd)
    pair = nn.ModuleDict({"layer": line(1, 1)})
    pair.forward = lambda x: (x, x)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="`model` must return a tensor, got tuple"):
        criteria.fairprune(pair, GOOD, CE, groups=lambda b: torch.tensor([0, 1]))
    whole = nn.Sequential(line(1, 1), nn.Flatten(0))
    whole.forward = lambda x: x.sum()  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"along their first axis, got shape \[\] for 1 samples"):
        criteria.fairprune(whole, GOOD, CE, groups=lambda b: torch.tensor([0, 1]))


def test_inputs_of_any_form() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    for inputs in ((a, b), [a, b], {"b": b, "a": a}):
        found = criteria.gradient(Sum(), [(inputs, None)], mean)
        same(found, {"layer.weight": torch.tensor([[2.0, 7.0]])})
    assert a.tolist() == [[1.0, 2.0]]


def test_batches_count_by_their_sizes() -> None:
    model, batches = oracle.network("cnn")
    whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    same(criteria.gradient(model, batches, CE), criteria.gradient(model, whole, CE))


def test_half_precision_is_averaged_in_float32() -> None:
    model = line(1.0).to(torch.bfloat16)
    batches = [(torch.full((1, 1), value).bfloat16(), None) for value in [256.0] + [1.0] * 256]
    found = criteria.gradient(model, batches, mean)  # 256 + 1 = 256 in bfloat16
    same(found, {"weight": torch.tensor([[512 / 257]])}, rtol=1e-6, atol=0.0)


def test_tensors_and_calls_in_inference_mode() -> None:
    model, batches = oracle.network("mlp")
    expected = criteria.gradient(model, batches, CE)
    with torch.inference_mode():
        batches = [(x.clone(), y.clone()) for x, y in batches]
        same(criteria.gradient(model, batches, CE), expected)
        found = [
            criteria.gradient(model, batches, CE),
            criteria.magnitude(model),
            criteria.random(model),
            criteria.undecayed(model, batches, CE, weight_decay=0.1, form="paper"),
        ]
        made = oracle.mlp()
    assert not any(value.is_inference() for values in found for value in values.values())
    with pytest.raises(ValueError, match="`model` must be made outside of inference mode"):
        criteria.gradient(made, [(torch.ones(1, 4), torch.tensor([0]))], CE)


def test_a_parameter_that_the_loss_does_not_need_gets_0() -> None:
    model = nn.ModuleDict({"used": line(1, 2), "idle": line(1, 2)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    found = criteria.gradient(model, [(torch.ones(1, 2), None)], mean)
    assert found["idle.weight"].tolist() == [[0.0, 0.0]]
    assert found["used.weight"].tolist() == [[1.0, 2.0]]


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(4, 1, sparse=True), nn.Flatten(), nn.Linear(2, 1))
    batches = [(torch.tensor([[1, 1]]), None)]
    found = criteria.gradient(model, batches, mean, parameters=["0.weight"])
    assert (found["0.weight"] != 0).flatten().tolist() == [False, True, False, False]


GOOD = [(torch.ones(2, 2), torch.zeros(2))]


def test_a_scalar_besides_the_samples_is_no_size() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = line(1, 1)

        def forward(self, step: Tensor, x: Tensor) -> Any:
            return self.line(x) * step

    batch = {"step": torch.tensor(3), "x": torch.ones(2, 2)}
    found = criteria.gradient(Scaled(), [(batch, torch.zeros(2))], mean)
    same(found, {"line.weight": torch.full((1, 2), 3.0)})


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "`batches` must hold at least one batch, got none"),
        ([torch.ones(2, 2)], r"`batches` must yield pairs \(inputs, target\), got Tensor"),
        ([(1, 2, 3)], r"`batches` must yield pairs \(inputs, target\), got tuple of 3"),
        ([("a", 1)], "the first tensor of the inputs must have the samples .* got no such tensor"),
        ([(torch.tensor(1.0), 1)], "the samples along its first axis, got no such tensor"),
        ([(torch.ones(0, 2), 1)], r"the samples along its first axis, got shape \[0, 2\]"),
    ],
)
def test_bad_batches(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criteria.gradient(line(1, 1), batches, mean)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda z, y: z.flatten(), r"`loss_fn` must return the mean .* got shape \[2\]"),
        (lambda z, y: z.mean() * torch.nan, "finite loss, got nan for batch 0"),
        (lambda z, y: z.mean().detach(), "must return a loss that depends on a parameter"),
        (lambda z, y: torch.ones((), requires_grad=True), "must return a loss that depends on"),
        (
            lambda z, y: z.abs().sqrt().sum(),
            "every gradient must be finite, got NaN or infinity for `weight`",
        ),
    ],
)
def test_bad_losses(loss_fn: Callable[[Any, Any], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criteria.gradient(line(1, -1), GOOD, loss_fn)


def test_a_loss_that_is_no_tensor() -> None:
    with pytest.raises(TypeError, match="`loss_fn` must return a tensor, got float"):
        criteria.gradient(line(1, 1), GOOD, lambda z, y: z.mean().item())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("weight", "`parameters` must be an iterable of names, got the string 'weight'"),
        ([], "`parameters` must name at least one parameter, got none"),
        (["nobody"], "must be names of parameters of `model`, got 'nobody'; it has weight"),
    ],
)
def test_bad_names(names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criteria.magnitude(line(1, 1), parameters=names)


def test_bad_models() -> None:
    told = "must have a linear or convolution layer, got BatchNorm1d"
    with pytest.raises(ValueError, match=told):
        criteria.magnitude(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="got `weight` of a lazy layer: run the model once before"):
        criteria.magnitude(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"got DataParallel: pass `model\.module`"):
        criteria.magnitude(nn.DataParallel(line(1, 1)))
    whole = line(1, 1)
    whole.count = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match=r"must be floating point, got `count` of torch\.int64"):
        criteria.magnitude(whole, parameters=["count"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -0.1}, "`weight_decay` must be finite and >= 0, got -0.1 for 'weight'"),
        (
            {"weight_decay": {"bias": 1}},
            "for every parameter that is scored, got none for 'weight'",
        ),
        ({"weight_decay": 0.1, "form": "book"}, "`form` must be 'code' or 'paper', got 'book'"),
    ],
)
def test_bad_decay(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criteria.undecayed(line(1, 1), GOOD, mean, **options)


X, Y = torch.linspace(-1, 1, 24).view(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
OTHER = {"prunable", "weight_decay_of"}  # no tensors


def test_every_public_name_is_under_contract() -> None:
    assert oracle.RUNS.keys() == set(criteria.__all__)


@pytest.mark.parametrize("name", sorted(set(criteria.__all__) - OTHER))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_are_as_documented(name: str, dtype: torch.dtype) -> None:
    model = oracle.mlp().to(dtype)
    found = oracle.RUNS[name](model, [(X.to(dtype), Y)], lambda z, y: CE(z.float(), y))
    assert tuple(found) == criteria.prunable(model)
    for key, value in found.items():
        weight = model.get_parameter(key)
        assert value.shape == ((3, *weight.shape) if name == "group_importance" else weight.shape)
        assert value.device == weight.device
        assert not value.requires_grad
        assert value.data_ptr() != weight.data_ptr()
        if name.endswith("_masks"):
            assert value.dtype == torch.bool
        else:
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert value.isfinite().all()
            assert (value >= 0).all() or name == "fairprune"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("ranks"))
    mp.spawn(oracle.run_rank, (2, folder), nprocs=2)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", oracle.WITH_LOSS)
def test_ranks_agree_and_equal_one_process(name: str, two_ranks: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model, batches = oracle.network("cnn")
    expected = oracle.RUNS[name](model, batches, CE)
    for key, value in two_ranks[0][name].items():
        assert value.equal(two_ranks[1][name][key])
    same(two_ranks[0][name], expected)
    same(two_ranks[0]["one idle"], criteria.gradient(model, batches, CE))


def test_a_failing_rank_stops_all(two_ranks: list[dict[str, Any]]) -> None:
    told = "RuntimeError: 1 other rank(s) failed while scoring: see their error."
    assert two_ranks[0]["error"] == told
    assert two_ranks[1]["error"] == "ZeroDivisionError: on purpose"
    for found in two_ranks:
        assert found["none"].startswith("ValueError: `batches` must hold at least one batch")
