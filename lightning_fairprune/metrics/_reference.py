"""The reference model that a metric compares with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_fairprune.counts import ClassCounts


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Counts or recalls (NaN without support) of a reference model; `accuracy` is for recalls only, None for their mean."""

    given: ClassCounts | Tensor
    size: int
    accuracy: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", _on_host(self.given))
        if self.recall.shape != (self.size,):
            raise ValueError(
                f"`reference` must be for {self.size} classes (or groups), "
                f"got {list(self.recall.shape)}."
            )
        if self.recall.isnan().all():
            raise ValueError("`reference` must have at least one class with support, got none.")
        if (impossible := (self.recall < 0) | (self.recall > 1)).any():
            k = int(impossible.nonzero()[0])
            raise ValueError(
                "`reference` must be recalls in [0, 1], NaN without support, "
                f"got {self.recall[k]:.4g} for class {k}."
            )
        if self.accuracy is None:
            return
        if isinstance(self.given, ClassCounts):
            raise ValueError(
                "`reference_accuracy` must be left out with counts, which have their own, "
                f"got {self.accuracy}."
            )
        if not 0 <= self.accuracy <= 1:
            raise ValueError(f"`reference_accuracy` must be in [0, 1], got {self.accuracy}.")

    @property
    def recall(self) -> Tensor:
        """Float64 [K]."""
        return self.given.recall if isinstance(self.given, ClassCounts) else self.given

    def compare(self, counts: ClassCounts) -> tuple[Tensor, Tensor, Tensor, float | Tensor | None]:
        """Returns recall, reference, accuracy and reference accuracy, over the classes seen in both."""
        both = (counts.support > 0) & ~self.recall.isnan()
        given = self.given
        accuracy = _share(given, both) if isinstance(given, ClassCounts) else self.accuracy
        return counts.recall, self.recall, _share(counts, both), accuracy


def _share(counts: ClassCounts, of: Tensor) -> Tensor:
    return counts.tp[of].sum().double() / counts.support[of].sum()


def _on_host(given: ClassCounts | Tensor) -> ClassCounts | Tensor:
    # Plain tensors on the host and not buffers: `model.half()` would round a buffer, a metric computes
    # on the host anyway, and float64 does not exist on every device.
    if isinstance(given, ClassCounts):
        return ClassCounts(given.tp.detach().cpu().clone(), given.support.detach().cpu().clone())
    if isinstance(given, Tensor) and given.is_floating_point():
        return given.detach().to("cpu", torch.float64, copy=True)
    found = given.dtype if isinstance(given, Tensor) else type(given).__name__
    raise TypeError(f"`reference` must be ClassCounts or floating point recalls [K], got {found}.")
