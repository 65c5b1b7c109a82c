"""Saliency by the obvious loops, and the networks it is compared on."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fairprune import criteria


class Shared(nn.Module):
    """An MLP that uses one weight three times, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.middle = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.middle.weight
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.middle(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.again(torch.tanh(self.middle(x)))))


class Block(nn.Module):
    """Two convolutions with a shortcut that pads channels, as in the ResNets for CIFAR."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.more = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(out + short)


def resnet20(width: int = 16) -> nn.Module:
    blocks: list[nn.Module] = []
    before = width
    for stage in range(3):
        for i in range(3):
            after = width * 2**stage
            blocks.append(Block(before, after, 2 if stage and not i else 1))
            before = after
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    return nn.Sequential(*stem, *blocks, *head)


def vgg16(width: int = 64, classes: int = 10) -> nn.Module:
    """VGG-16 for 32 pixels with batch normalisation; its widths are 1, 2, 4 and 8 times `width`."""
    layers: list[nn.Module] = []
    before = 3
    for step in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0):
        if step:
            after = width * step
            layers += [
                nn.Conv2d(before, after, 3, 1, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            before = after
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, classes))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.ConvTranspose2d(4, 3, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 6 * 6, 3),
    )


def settled(model: nn.Module) -> nn.Module:
    """Gives normalisation layers statistics, weights and biases other than 0 and 1; float64, train mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.double().train()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)),
    "cnn": (cnn, (2, 5, 5)),
    "shared": (Shared, (4,)),
}
WEIGHTS = {
    "mlp": ("0.weight", "3.weight"),
    "cnn": ("0.weight", "4.weight", "7.weight"),
    "shared": ("first.weight", "middle.weight", "last.weight"),
}


def network(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Returns a network and batches of 4 and 3 float64 samples of 3 classes."""
    make, shape = NETWORKS[name]
    x = torch.randn(7, *shape, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 2, 1, 0])
    return settled(make()), list(zip(x.split(4), y.split(4), strict=True))


def named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    return {name: model.get_parameter(name) for name in names}


def mean_grads(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Iterable[str],
    penalty: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy over all samples, one sample at a time, decay inside the loss."""
    model = copy.deepcopy(model).eval()
    weights = named(model, names)
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    count = 0
    for inputs, target in batches:
        for x, y in zip(inputs, target, strict=True):
            model.zero_grad()
            loss = -torch.log_softmax(model(x[None].clone())[0], 0)[y]
            for name, eps in (penalty or {}).items():
                loss = loss + eps / 2 * weights[name].square().sum()
            loss.backward()
            for name, w in weights.items():
                sums[name] += w.grad
            count += 1
    return {name: value / count for name, value in sums.items()}


def synflow(model: nn.Module, shape: tuple[int, ...], names: Iterable[str]) -> dict[str, Tensor]:
    """Writes absolute values over everything, as the published code does."""
    model = copy.deepcopy(model).double().eval()
    for tensor in model.state_dict().values():
        tensor.abs_()
    whole = model(torch.ones(1, *shape, dtype=torch.float64)).sum()
    whole.backward()
    return {
        name: (w * w.grad).abs().detach() / whole.detach()
        for name, w in named(model, names).items()
    }


def synflow_masks(
    model: nn.Module, shape: tuple[int, ...], names: Iterable[str], sparsity: float, rounds: int
) -> dict[str, Tensor]:
    """Removes the lowest, last first among equals, one weight at a time."""
    masks = {name: torch.ones_like(w) for name, w in named(model, names).items()}
    size = sum(mask.numel() for mask in masks.values())
    for k in range(1, rounds + 1):
        twin = copy.deepcopy(model)
        for name, mask in masks.items():
            twin.get_parameter(name).data *= mask
        shares = synflow(twin, shape, names)
        left = [
            (float(shares[name].flatten()[i]), -place, -i, name)
            for place, name in enumerate(names)
            for i in range(masks[name].numel())
            if masks[name].flatten()[i]
        ]
        count = size - round(size * (1 - (1 - sparsity) ** (k / rounds)))
        for _, _, i, name in sorted(left)[: len(left) - count]:
            masks[name].view(-1)[-i] = 0
    return {name: mask.bool() for name, mask in masks.items()}


def group_importance(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Iterable[str],
    num_groups: int,
    groups: Callable[[Any], Tensor],
) -> dict[str, Tensor]:
    """Mean over the batches that have the group, of squares."""
    result = {name: [] for name in names}
    for g in range(num_groups):
        squares = []
        for x, y in batches:
            of = groups((x, y)) == g
            if of.any():
                grads = mean_grads(model, [(x[of], y[of])], names)
                squares.append({n: (model.get_parameter(n) * v).square() for n, v in grads.items()})
        for name, rows in result.items():
            rows.append(torch.stack([square[name] for square in squares]).mean(0).detach())
    return {name: torch.stack(rows) for name, rows in result.items()}


def keep_shares(importance: Tensor, count: int) -> Tensor:
    """FairGRAPE's loop, a weight at a time, in plain Python; importance [G, n]."""
    values = importance.tolist()
    num_groups, size = importance.shape
    dense = [sum(row) for row in values]
    target = [value / sum(dense) for value in dense]
    orders = [sorted(range(size), key=lambda i: (-row[i], i)) for row in values]
    kept: list[int] = []
    sums = [0.0] * num_groups
    while len(kept) < count:
        share = [s / sum(sums) if sum(sums) else 1 / num_groups for s in sums]
        g = min(range(num_groups), key=lambda g: (share[g] - target[g], g))
        w = next(i for i in orders[g] if i not in kept)
        kept.append(w)
        sums = [s + row[w] for s, row in zip(sums, values, strict=True)]
    mask = torch.zeros(size, dtype=torch.bool)
    mask[kept] = True
    return mask


def curvature(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Iterable[str],
    groups: Callable[[Any], Tensor],
    group: int,
) -> dict[str, Tensor]:
    """Mean over the samples of a group of diag(J^T H J), H = diag(p) - p p^T of cross-entropy."""
    model = copy.deepcopy(model).eval()
    weights = named(model, names)
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    count = 0
    for batch in batches:
        for x, g in zip(batch[0], groups(batch), strict=True):
            if g != group:
                continue
            z = model(x[None].clone())[0]
            p = z.softmax(0).detach()
            rows = [torch.autograd.grad(zc, list(weights.values()), retain_graph=True) for zc in z]
            for i, name in enumerate(weights):
                for a in range(len(z)):
                    for b in range(len(z)):
                        h = p[a] * (a == b) - p[a] * p[b]
                        sums[name] += h * rows[a][i] * rows[b][i]
            count += 1
    return {name: value / count for name, value in sums.items()}


def each(
    model: nn.Module, values: Mapping[str, Tensor], formula: Callable[[float, float, str], float]
) -> dict[str, Tensor]:
    """Applies a formula of (theta, value, name) to every weight, one at a time."""
    result = {}
    for name, value in values.items():
        theta = model.get_parameter(name).detach().flatten().tolist()
        numbers = [
            formula(t, v, name) for t, v in zip(theta, value.flatten().tolist(), strict=True)
        ]
        result[name] = torch.tensor(numbers, dtype=torch.float64).view(value.shape)
    return result


Loss = Callable[[Any, Any], Tensor]
CE = nn.CrossEntropyLoss()
RUNS: dict[str, Callable[[nn.Module, Iterable[Any], Loss], Any]] = {
    "magnitude": lambda m, b, f: criteria.magnitude(m),
    "random": lambda m, b, f: criteria.random(m),
    "prunable": lambda m, b, f: criteria.prunable(m),
    "weight_decay_of": lambda m, b, f: criteria.weight_decay_of(
        m, torch.optim.SGD(m.parameters(), lr=1)
    ),
    "gradient": criteria.gradient,
    "snip": criteria.snip,
    "undecayed": lambda m, b, f: criteria.undecayed(m, b, f, weight_decay=0.1, form="paper"),
    "group_importance": lambda m, b, f: criteria.group_importance(m, b, f, num_groups=3),
    "fairgrape_masks": lambda m, b, f: criteria.fairgrape_masks(m, b, f, 0.5, num_groups=3),
    "fairprune": lambda m, b, f: criteria.fairprune(m, b, f, groups=lambda batch: batch[1] % 2),
    "synflow": lambda m, b, f: criteria.synflow(m, torch.zeros(2, 4)),
    "synflow_masks": lambda m, b, f: criteria.synflow_masks(m, torch.zeros(2, 4), 0.5, rounds=3),
}
WITH_LOSS = ["gradient", "snip", "undecayed", "group_importance", "fairgrape_masks", "fairprune"]


def run_rank(rank: int, world: int, folder: str) -> None:
    """Scores every second batch; what each rank finds is left in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model, batches = network("cnn")
    found = {name: RUNS[name](model, batches[rank::world], CE) for name in WITH_LOSS}
    found["one idle"] = criteria.gradient(model, batches if rank else [], CE)

    def fails(outputs: Tensor, target: Tensor) -> Tensor:
        if rank:
            raise ZeroDivisionError("on purpose")
        return CE(outputs, target)

    found["error"] = message(lambda: criteria.gradient(model, batches, fails))
    found["none"] = message(lambda: criteria.gradient(model, [], CE))
    torch.save(found, f"{folder}/{rank}.pt")
    os._exit(0)  # the gloo of torch 2.4 may wait for ever for a rank that has gone already


def message(function: Callable[[], Any]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"
