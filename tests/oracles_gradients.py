"""Gradient norms by the obvious loop, and the networks they are compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor],
    names: Iterable[str] | None = None,
) -> Tensor:
    """One forward and one backward pass per sample, eval mode."""
    model.eval()
    parameters = [
        p
        for n, p in model.named_parameters()
        if (p.requires_grad if names is None else n in set(names))
    ]
    norms = []
    for inputs, target in batches:
        for i in range(len(target)):
            if isinstance(inputs, Mapping):
                outputs = model(**{key: value[i : i + 1].clone() for key, value in inputs.items()})
            elif isinstance(inputs, tuple):
                outputs = model(*(value[i : i + 1].clone() for value in inputs))
            else:
                outputs = model(inputs[i : i + 1].clone())
            loss = loss_fn(outputs, target[i : i + 1]).sum()
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
            squares = [g.to_dense().square().sum() for g in grads if g is not None]
            norms.append(torch.stack(squares).sum().sqrt())
    return torch.stack(norms)


def settled(model: nn.Module) -> nn.Module:
    """Gives normalisation layers statistics, weights and biases other than 0 and 1."""
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
        if "Norm" in type(module).__name__:
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -1.0, 2.0)
    return model


class LeNet(nn.Sequential):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 30),
            nn.ReLU(inplace),
            nn.Linear(30, 10),
        )


class LanguageModel(nn.Module):
    """Token classifier whose output layer has the weight of the embedding."""

    def __init__(self, *, batch_first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        hidden = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=hidden.dtype)
        if padding is not None:
            padding = torch.zeros_like(padding, dtype=hidden.dtype).masked_fill(padding, -torch.inf)
        if not self.batch_first:
            hidden = hidden.transpose(0, 1)
        hidden = self.encoder(hidden, mask=mask, src_key_padding_mask=padding)
        if not self.batch_first:
            hidden = hidden.transpose(0, 1)
        return self.head(hidden)


def next_token(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over all tokens of all samples."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


class CrossAttention(nn.Module):
    """Queries, keys and values differ, and the attention weights come out, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.memory = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mixed, weights = self.attention(x, self.memory(y), y)
        return self.head(mixed.mean(1)) + weights.square().sum((1, 2)).unsqueeze(1)


class Recurrent(nn.Module):
    """One linear layer used at every step, and one whose weight is used without it."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(4, 4)
        self.twin = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.head(self.twin(x) + F.linear(x.square(), self.twin.weight))


class Doubled(nn.Linear):
    """A subclass that does something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.weight.sum()


class Prompted(nn.Module):
    """Raw parameters beside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(2, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.prompt.expand(len(x), -1, -1), x], 1)
        return self.head((self.scale * self.body(x)).tanh().mean(1))


class Experts(nn.Module):
    """Which layer a sample goes through depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 3)
        for sign, expert in zip((1, -1), self.experts, strict=True):
            mine = x[:, 0] * sign > 0
            if mine.any():
                out = out.index_put((mine.nonzero()[:, 0],), expert(x[mine]))
        return out


class Last(nn.Module):
    """The output of a recurrent layer at the last step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]
