"""k-center: samples that cover all others, in order of choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_fairprune.geometry._arguments import (
    checked_features,
    checked_target,
    class_members,
    integer,
)
from lightning_fairprune.geometry._farthest import FarthestFirst


def k_center(
    features: Tensor, budget: int, *, first: int | None = None, centres: Tensor | None = None
) -> Tensor:
    r"""Return the samples that greedy farthest-first choice takes, in order of choice.

    Each next sample is the one farthest from all chosen so far, :math:`\arg\max_i \min_{c \in S} \|x_i - x_c\|_2`:
    the greedy k-center of Gonzalez (Theoretical Computer Science 38, 1985), whose covering radius is at most twice the
    least possible. As a coreset: Sener & Savarese, "Active Learning for Convolutional Neural Networks" (ICLR 2018,
    arXiv 1708.00489), Algorithm 1. Fewer samples are the first of more.

    The result is exact: distances are float64, and of equally far samples the lowest index is next. Half precision is
    computed in float32. Memory is a few copies of the features, and never a table of distances.

    Args:
        features: Float [N, D].
        budget: Number of samples to choose, at most those that are left to choose from.
        first: The sample to begin with. None takes the sample nearest to the mean of the features, as the code
            published with DRoP does.
        centres: What is covered already, in place of `first`: distinct indices int64 [M] of samples chosen before, which
            are not chosen again, or features float [M, D] from elsewhere.

    Returns:
        Distinct indices, int64 [budget], in order of choice.

    Raises:
        ValueError: If an index or the budget is out of range.

    Example:
        The mean of 0, 1, 2, 8, 9 is 4, and 2 is nearest; 9 is 7 away from it, then 0 is farthest with 2.

        >>> line = torch.tensor([[0.0], [1.0], [2.0], [8.0], [9.0]])
        >>> k_center(line, 3)
        tensor([2, 4, 0])
        >>> k_center(line, 2, centres=torch.tensor([2]))
        tensor([4, 0])
    """
    features = checked_features(features)
    budget = integer("budget", budget)
    given, taken = _given(features, centres)
    if not 0 <= budget <= len(features) - len(taken):
        raise ValueError(
            f"`budget` must be between 0 and the {len(features) - len(taken)} samples that can be "
            f"chosen, got {budget}."
        )
    if first is not None:
        first = integer("first", first)
        if centres is not None:
            raise ValueError("`first` has no effect with `centres`; pass one of them.")
        if not 0 <= first < len(features):
            raise ValueError(f"`first` must be in [0, {len(features)}), got {first}.")
    order, _ = _choose(features, budget, first, given, taken)
    return torch.tensor(order, dtype=torch.int64, device=features.device)


def k_center_distance(features: Tensor) -> Tensor:
    """Return how far each sample was from the centres of `k_center` when it was chosen, float64 [N], infinity for the first.

    `k_center` as a score >= 0, higher = chosen earlier: ``select(target, budget, score=..., keep="hard")`` keeps exactly
    the samples that it chooses, for every budget. Under quotas use `class_k_center`. Ordering all samples costs several
    times as much as `k_center` with a budget of a third.

    Example:
        The first is 2, nearest to the mean of 4; 9 is 7 away, then 0 is 2 away, 1 and 8 are 1 away.

        >>> k_center_distance(torch.tensor([[0.0], [1.0], [2.0], [8.0], [9.0]]))
        tensor([2., 1., inf, 1., 7.], dtype=torch.float64)
    """
    features = checked_features(features)
    none = torch.zeros(0, dtype=torch.int64, device=features.device)
    order, radius = _choose(features, len(features), None, features[:0], none)
    score = torch.empty(len(features), dtype=torch.float64, device=features.device)
    score[order] = torch.tensor(radius, dtype=torch.float64, device=score.device)
    return score


def class_k_center(
    features: Tensor, target: Tensor, quota: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Return how far each sample was from the centres of its class when it was chosen.

    `k_center` in each class, as a score: ``select(target, quota, score=..., keep="hard")`` keeps exactly the first
    `quota[k]` centres of every class, under any quota. The score is also the radius within which the samples chosen
    before cover the class, so with an int as quota `select` covers all classes to the same radius.

    Args:
        features: Float [N, D].
        target: Integer [N], the class of each sample; -1 is in no class.
        quota: Integer [K], as many centres as are needed of each class, at most its size; None orders all samples. Use
            the largest quota that will be selected: cost grows with it.

    Returns:
        Distances >= 0, higher = chosen earlier, float64 [N]: infinity for the first of each class, -infinity for
        samples beyond the quota, NaN for target -1.

    Example:
        Class 0 is 0, 1, 5 with mean 2: the first is 1, then 5 is 4 away, and 0 is 1 away.

        >>> from lightning_fairprune import select
        >>> features = torch.tensor([[0.0], [1.0], [5.0], [7.0]])
        >>> target = torch.tensor([0, 0, 0, 1])
        >>> score = class_k_center(features, target)
        >>> score
        tensor([1., inf, 4., inf], dtype=torch.float64)
        >>> select(target, torch.tensor([2, 1]), score=score, keep="hard").indices
        tensor([1, 2, 3])
    """
    features = checked_features(features)
    members = class_members(checked_target(target, features))
    wanted = [len(member) for member in members] if quota is None else _quota(quota, members)
    score = torch.full((len(features),), torch.nan, dtype=torch.float64, device=features.device)
    for budget, member in zip(wanted, members, strict=False):
        score[member] = -torch.inf
        own = features[member]
        order, radius = _choose(own, budget, None, own[:0], member[:0])
        score[member[order]] = torch.tensor(radius, dtype=torch.float64, device=score.device)
    return score


def _choose(
    features: Tensor, budget: int, first: int | None, given: Tensor, taken: Tensor
) -> tuple[list[int], list[float]]:
    """Return the samples in order of choice, and their distances when chosen."""
    if not budget:
        return [], []
    # Under autocast the products would be rounded to half precision.
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        search = FarthestFirst(features, given, budget)
        search.leave_out(taken)
        if len(given):
            return search.choose(budget)
        first = search.nearest_to_mean() if first is None else first
        search.add(first)
        order, radius = search.choose(budget - 1)
    return [first, *order], [torch.inf, *radius]


def _given(features: Tensor, centres: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the features of the centres that are there already, and which samples they are."""
    n, d = features.shape
    none = torch.zeros(0, dtype=torch.int64, device=features.device)
    if centres is None:
        return features[:0], none
    if not isinstance(centres, Tensor):
        raise TypeError(f"`centres` must be a tensor, got {type(centres).__name__}.")
    if centres.is_floating_point():
        centres = checked_features(centres, "centres").to(features.device)
        if centres.shape[1] != d:
            raise ValueError(
                f"`centres` must have the {d} features of `features`, got {centres.shape[1]}."
            )
        return centres, none
    if centres.dim() != 1 or centres.is_complex() or centres.dtype == torch.bool:
        raise ValueError(
            "`centres` must be indices int64 [M] or features float [M, D], got "
            f"{centres.dtype} of shape {list(centres.shape)}."
        )
    taken = centres.detach().to(features.device).long()
    if len(taken) and not 0 <= int(taken.min()) <= int(taken.max()) < n:
        raise ValueError(
            f"`centres` must lie in [0, {n}), got {int(taken.min())} to {int(taken.max())}."
        )
    if int(torch.bincount(taken, minlength=1).max()) > 1:
        raise ValueError("`centres` must name each sample once.")
    return features[taken], taken


def _quota(quota: Tensor | Sequence[int], members: tuple[Tensor, ...]) -> list[int]:
    wanted = torch.as_tensor(quota)
    if wanted.dim() != 1 or len(wanted) < len(members):
        raise ValueError(
            f"`quota` must be of shape [K] with an entry for each of the {len(members)} classes in "
            f"`target`, got {list(wanted.shape)}."
        )
    if wanted.numel() and (wanted.is_floating_point() or wanted.dtype == torch.bool):
        raise TypeError(f"`quota` must hold integers, got {wanted.dtype}.")
    numbers: list[int] = wanted.tolist()
    sizes = [len(member) for member in members] + [0] * (len(wanted) - len(members))
    for k, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
        if not 0 <= number <= size:
            raise ValueError(
                f"`quota` must be between 0 and the size of each class, got {number} for class {k}, "
                f"which has {size}."
            )
    return numbers
