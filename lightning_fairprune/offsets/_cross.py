"""Predictions under offsets that were fitted on other samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_fairprune.offsets._samples import Reduce
from lightning_fairprune.offsets._search import check, check_loss, chosen, followed, samples_of

_FOLDS = 5


def cross_fitted(
    logits: Tensor,
    target: Tensor,
    *,
    max_average_loss: float = 0.01,
    weights: Tensor | Sequence[float] | None = None,
    groups: Tensor | None = None,
    folds: int = _FOLDS,
    seed: int = 0,
) -> Tensor:
    """Return predictions in which no sample had a part in its offsets, for honest recalls on validation data.

    The samples are split into folds at random, each class in equal parts; the predictions of a fold are those under the
    offsets that `fit` finds on the others. Recalls of the samples that `fit` saw are too high, most of all with few
    samples a class. The worst of these recalls may still be above that of new samples: on CIFAR-10 with 500 images a class
    it was by .01 to .03. Report final numbers on test data.

    Args:
        logits: Of validation samples, as in `fit`, [N, K].
        target: Their classes, int [N].
        max_average_loss: How much of the average recall the worst class may cost, in [0, 1].
        weights: The part of each class in the average recall, [K]; equal parts by default.
        groups: Groups of which none should be bad, int [N]; the classes by default.
        folds: Number of folds, in [2, N].
        seed: Of the split.

    Returns:
        Predicted classes, int64 [N], on the device of the logits; of equal logits the first.

    Raises:
        ValueError: If `folds` is out of range; else as `fit`.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
        >>> cross_fitted(logits, torch.tensor([0, 0, 1, 1]), folds=2)
        tensor([0, 0, 1, 1])
    """
    check_loss(max_average_loss)
    check(logits, target, groups)
    if not len(target):
        raise ValueError("`target` must hold at least one sample, got none.")
    if not 2 <= folds <= max(2, len(target)):
        raise ValueError(f"`folds` must be between 2 and the {len(target)} samples, got {folds}.")
    return predicted(logits, target, max_average_loss, weights, groups, folds, seed)


def predicted(
    logits: Tensor,
    target: Tensor,
    max_average_loss: float,
    weights: Tensor | Sequence[float] | None = None,
    groups: Tensor | None = None,
    folds: int = _FOLDS,
    seed: int = 0,
    reduce: Reduce = torch.clone,
    num_groups: int | None = None,
) -> Tensor:
    """Returns the predictions of the samples of this rank; all ranks must call this."""
    fold = _folds(target, folds, seed).to(logits.device)
    found = torch.empty(len(target), dtype=torch.int64, device=logits.device)
    for i in range(folds):
        held = fold == i
        rest = ~held
        if not int(reduce(rest.sum())):  # so few samples that each is alone
            found[held] = logits[held].argmax(1)
            continue
        of_group = None if groups is None else groups.to(logits.device)[rest]
        part = target.to(logits.device)[rest]
        given = logits[rest], part, weights, of_group, reduce, num_groups
        offsets = chosen(followed(*samples_of(*given)), max_average_loss)
        found[held] = logits[held].add(offsets).argmax(1)
    return found


def _folds(target: Tensor, folds: int, seed: int) -> Tensor:
    """Returns the fold of each sample, int64 [N]; those of a class differ in size by one at most."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(target), generator=generator)
    order = order[target.cpu()[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order)) % folds
    return fold
