"""What the uses of a parameter add up to: its gradient is their sum."""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from torch import Tensor

from lightning_fairprune.gradients._layers import Rule, norm2, places, slices, squared, wide

_Use = tuple[Rule, Tensor, Tensor]


class Uses:
    """Collects inputs and output gradients of calls; keeps those of parameters with several uses."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._calls: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        self._terms: list[Tensor] = []
        self._kept: defaultdict[int, list[_Use]] = defaultdict(list)
        self._whole: dict[int, Tensor] = {}

    def expect(self, parameter: Tensor) -> None:
        """Notes a call that uses a parameter; all of them come before the first gradient."""
        self._calls[id(parameter)] += 1
        self._sizes[id(parameter)] = parameter.numel()

    def add(self, key: int, rule: Rule, x: Tensor, g: Tensor) -> None:
        """Takes one call's input and the gradient of its output, samples first."""
        if self._calls[key] > 1:
            self._kept[key].append((rule, x, g))
        else:
            self._terms.append(norm2(rule, x, g, self._memory))

    def add_whole(self, key: int, gradient: Tensor) -> None:
        """Takes the gradients [B, *shape] of the uses without a rule, after all others."""
        self._whole[key] = gradient

    def norms2(self, like: Tensor) -> Tensor:
        """Returns the squared norms of all parameters together, [B]."""
        terms = list(self._terms)
        terms += [self._together(key, self._kept[key]) for key in {**self._kept, **self._whole}]
        zero = wide(torch.zeros_like(like))
        return torch.stack([zero, *(term.to(zero) for term in terms)]).sum(0)

    def _together(self, key: int, uses: list[_Use]) -> Tensor:
        whole = self._whole.get(key)
        if not uses:
            assert whole is not None
            return squared(whole)
        if whole is None and all(rule.outer for rule, _, _ in uses):
            x = torch.cat([places(x) for _, x, _ in uses], 1)
            g = torch.cat([places(g) for _, _, g in uses], 1)
            return norm2(uses[0][0], x, g, self._memory)
        numbers = sum(rule.scratch(x, g) + 2 * self._sizes[key] for rule, x, g in uses)
        each = numbers * uses[0][2].element_size()
        pieces = []
        for i in slices(len(uses[0][1]), each, self._memory):
            gradient = sum(rule.gradient(x[i], g[i]) for rule, x, g in uses)
            if whole is not None:
                gradient = gradient + whole[i]
            assert isinstance(gradient, Tensor)
            pieces.append(squared(gradient))
        return torch.cat(pieces)
