"""How many labels of each class are wrong: confident learning on predicted probabilities.

Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021, arXiv 1911.00068).
The probabilities must be of samples that the model did not learn by heart: cross-fitted ones, or those of the early
epochs of training, as DataPruning records them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.records.label_errors import LabelErrors

__all__ = ["LabelErrors", "confident_joint", "estimate", "suspects", "wrong_labels"]

SIGNALS = ("loss", "margin", "rival")
"""What `wrong_labels` reads."""

LEAST_EPOCHS = 4
"""Of a warm-up that is worth an estimate: before, the model takes too many right labels for wrong ones."""

_ROUNDING = 1e-6  # of the mean of equal probabilities
_MOST_AT_ONCE = 1 << 22  # probabilities in a temporary


def confident_joint(probabilities: Tensor, target: Tensor) -> Tensor:
    r"""Return how many samples of each label are confidently of each class: the counts `C` of confident learning.

    The threshold `t_j` is the mean `p_j` of the samples labelled j. A sample counts in column
    `\argmax_{j: p_j >= t_j} p_j` (equations 1 and 2), in none if no class reaches its threshold. A class without samples has no
    threshold, and its column is 0. The package cleanlab takes the argmax over all classes as soon as two reach their thresholds,
    also if it reaches its own not; we follow the paper, which matters for rare classes.

    Args:
        probabilities: Predicted probabilities, in [0, 1], floating, [N, K].
        target: Labels, int64, [N]; negative for a sample to leave out.

    Returns:
        Counts by label (row) and confident class (column), int64, [K, K].

    Raises:
        ValueError: If shapes do not agree, a probability is not in [0, 1], or a label is K or more.
        TypeError: If a dtype is not one of those above.

    Example:
        Thresholds .75 and .65: the second sample is labelled 0 and confidently of class 1; the last one is of none.

        >>> p = torch.tensor(
        ...     [[0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.85, 0.15], [0.2, 0.8], [0.5, 0.5]]
        ... )
        >>> confident_joint(p, torch.tensor([0, 0, 0, 0, 1, 1]))
        tensor([[3, 1],
                [0, 1]])
    """
    likely = _likely(probabilities, target)
    num_classes = probabilities.shape[1]
    cells = (target * num_classes + likely)[likely >= 0]
    return cells.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def suspects(
    probabilities: Tensor, target: Tensor, by: Literal["margin", "confidence"] = "margin"
) -> Tensor:
    r"""Return the samples that are confidently of another class than their label, the most suspicious first.

    Arguments and errors are those of `confident_joint`.

    Args:
        probabilities: As there.
        target: As there.
        by: What is least for the most suspicious sample: "margin" is the normalised margin
            `p_y - \max_{j != y} p_j`, "confidence" the probability `p_y` of the label.

    Returns:
        Indices, equal ones of the same rank in ascending order, int64, [S].

    Example:
        >>> p = torch.tensor(
        ...     [[0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.85, 0.15], [0.2, 0.8], [0.5, 0.5]]
        ... )
        >>> suspects(p, torch.tensor([0, 0, 0, 0, 1, 1]))
        tensor([1])
    """
    if by not in ("margin", "confidence"):
        raise ValueError(f"`by` must be 'margin' or 'confidence', got {by!r}.")
    return _ranked(probabilities, target, _likely(probabilities, target), by)


def estimate(probabilities: Tensor, target: Tensor) -> LabelErrors:
    """Return the share of wrong labels of each class, its interval, and the suspects by normalised margin.

    Arguments and errors are those of `confident_joint`, which it is computed from.

    Example:
        >>> p = torch.tensor(
        ...     [[0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.85, 0.15], [0.2, 0.8], [0.5, 0.5]]
        ... )
        >>> errors = estimate(p, torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> errors.share
        tensor([0.2500, 0.0000], dtype=torch.float64)
        >>> errors.about(0)
        'about 25 % of its labels look wrong (5 to 70 %), most of these like class 1'
    """
    likely = _likely(probabilities, target)
    ranked = _ranked(probabilities, target, likely, "margin")
    return _errors(target, likely, ranked, probabilities.shape[1])


def wrong_labels(dynamics: Dynamics, num_classes: int | None = None) -> LabelErrors:
    r"""Return the estimate from what training recorded of each sample in its epochs.

    The probabilities are means over the epochs in which a sample was observed: `\bar p_y` of its label, and `\bar p_j` of
    each class j that was its rival, with 0 in the epochs in which j was not. The other classes stay below their thresholds,
    but for a class that is often second and never first. Every prediction is made before the step that learns the sample, so that those of
    the early epochs are of a model that has hardly learnt it by heart; after many epochs wrong labels are learnt, too, and the
    estimate falls. It wants at least four epochs: with fewer the model is too young, and classes without
    wrong labels get suspects.

    Args:
        dynamics: Record with the signals `loss`, `margin` and `rival`.
        num_classes: K; None takes the highest label or rival plus 1.

    Returns:
        The estimate; a sample that was never observed counts as unlabelled.

    Raises:
        ValueError: If a signal was not recorded, or there are more than `num_classes` classes.

    Example:
        The second sample is labelled 0 and looks like class 1.

        >>> p_true = torch.tensor([[0.9, 0.2, 0.9, 0.8], [0.9, 0.1, 0.7, 0.8]])
        >>> seen = Dynamics(
        ...     target=torch.tensor([0, 0, 0, 1]),
        ...     signals={
        ...         "loss": -p_true.log(),
        ...         "margin": (p_true / (1 - p_true)).log(),
        ...         "rival": torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(2, 1),
        ...     },
        ... )
        >>> errors = wrong_labels(seen)
        >>> errors.suspects, errors.likely, errors.share
        (tensor([1]), tensor([1]), tensor([0.3333, 0.0000], dtype=torch.float64))
    """
    loss, margin = dynamics.signal("loss"), dynamics.signal("margin")
    rival, observed = dynamics.signal("rival"), dynamics.observed
    rival = rival.nan_to_num(0).round().long()
    target = dynamics.target.where(observed.any(0), -1)
    highest = max((int(t.max()) for t in (target, rival) if t.numel()), default=-1)
    if num_classes is None:
        num_classes = highest + 1
    if highest >= num_classes:
        raise ValueError(f"`num_classes` is {num_classes}, but a label or a rival is {highest}.")
    epochs = observed.sum(0).clamp(min=1).double()
    p_true = (-loss.double()).exp().where(observed, 0.0)
    p_rival = (-loss.double() - margin.double()).exp().where(observed, 0.0)
    own = p_true.sum(0) / epochs
    labelled = target >= 0
    thresholds = _thresholds(own[labelled], target[labelled], num_classes) - _ROUNDING
    if not num_classes:
        thresholds = own.new_full((1,), 2.0)  # to be looked up by no sample
    # The label first, then each rival: the highest that reaches its threshold, of equal ones the lowest class.
    nobody = torch.full_like(target, -1)
    reached = labelled & (own >= thresholds[target.clamp(min=0)])
    likely, best = target.where(reached, nobody), own.where(reached, -1.0)
    first_other = torch.zeros_like(own)
    for of_class in rival:
        total = p_rival.where(rival == of_class, 0.0).sum(0) / epochs
        total = total.where(of_class != target, 0.0)
        first_other = torch.maximum(first_other, total)
        better = (total > best) | ((total == best) & (of_class < likely))
        better &= labelled & (total >= thresholds[of_class])
        likely, best = of_class.where(better, likely), total.where(better, best)
    chosen = ((likely >= 0) & (likely != target)).nonzero().squeeze(1)
    ranked = chosen[(own - first_other)[chosen].argsort(stable=True)]
    return _errors(target, likely, ranked, num_classes)


def _errors(target: Tensor, likely: Tensor, ranked: Tensor, num_classes: int) -> LabelErrors:
    return LabelErrors(
        sizes=target[target >= 0].bincount(minlength=num_classes),
        confident=target[likely >= 0].bincount(minlength=num_classes),
        suspects=ranked,
        given=target[ranked],
        likely=likely[ranked],
    )


def _likely(probabilities: Tensor, target: Tensor) -> Tensor:
    """Returns the class that each sample is confidently of, int64 [N]; -1 for none, or no label."""
    _check(probabilities, target)
    labelled = target >= 0
    thresholds = _thresholds(
        _of_label(probabilities, target)[labelled], target[labelled], probabilities.shape[1]
    )
    thresholds = thresholds - _ROUNDING
    found = []
    for rows in _chunks(probabilities):
        thresholds = thresholds.to(rows.dtype)
        highest, likely = rows.where(rows >= thresholds, -1.0).max(1)
        found.append(likely.masked_fill(highest < 0, -1))
    likely = torch.cat(found) if found else target.new_zeros(0)
    return likely.masked_fill(~labelled, -1)


def _thresholds(p_true: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Returns the mean probability of the label for each class, float64 [K]; above 1 for a class without samples."""
    sums = torch.zeros(num_classes, dtype=torch.float64, device=p_true.device)
    sums.index_add_(0, target, p_true.double())
    sizes = target.bincount(minlength=num_classes)
    # A class that the model never gives any probability must not be reached by a probability of 0.
    return (sums / sizes).clamp(min=2 * _ROUNDING).where(sizes > 0, 2.0)


def _ranked(
    probabilities: Tensor, target: Tensor, likely: Tensor, by: Literal["margin", "confidence"]
) -> Tensor:
    chosen = ((likely >= 0) & (likely != target)).nonzero().squeeze(1)
    label = target[chosen]
    if by == "confidence":
        value = _of_label(probabilities, target)[chosen]
    else:
        margins = [
            _margin(probabilities[part], target[part])
            for part in torch.split(chosen, max(1, _MOST_AT_ONCE // probabilities.shape[1]))
        ]
        value = torch.cat(margins) if margins else label
    return chosen[value.argsort(stable=True)]


def _margin(rows: Tensor, label: Tensor) -> Tensor:
    of_label = rows.gather(1, label.unsqueeze(1))
    others = rows.scatter(1, label.unsqueeze(1), -1.0)
    return of_label.squeeze(1) - others.amax(1)


def _of_label(probabilities: Tensor, target: Tensor) -> Tensor:
    return probabilities.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)


def _chunks(probabilities: Tensor) -> Iterator[Tensor]:
    rows = max(1, _MOST_AT_ONCE // max(1, probabilities.shape[1]))
    for part in torch.split(probabilities, rows):
        if len(part):
            yield part if part.dtype == torch.float64 else part.float()


def _check(probabilities: Tensor, target: Tensor) -> None:
    if (
        probabilities.ndim != 2
        or target.shape != probabilities.shape[:1]
        or not probabilities.shape[1]
    ):
        raise ValueError(
            "`probabilities` must be [N, K] with K at least 1 and `target` [N], got shapes "
            f"{list(probabilities.shape)} and {list(target.shape)}."
        )
    if not probabilities.is_floating_point():
        raise TypeError(f"`probabilities` must be floating, got {probabilities.dtype}.")
    if target.dtype != torch.int64:
        raise TypeError(f"`target` must be int64, got {target.dtype}.")
    num_classes = probabilities.shape[1]
    if (target >= num_classes).any():
        raise ValueError(
            f"`target` must be below the {num_classes} classes of `probabilities`, got {int(target.max())}."
        )
    for rows in _chunks(probabilities):
        # NaN compares as False.
        if not ((rows >= 0) & (rows <= 1 + _ROUNDING)).all():
            raise ValueError(
                "`probabilities` must be in [0, 1]; take the softmax of logits, and leave out samples without "
                "a prediction with a negative `target` and any numbers in [0, 1]."
            )
