"""Functions of the recalls of a model and of a reference model."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_fairprune.recalls._alone import balance, normalised_balance, worst
from lightning_fairprune.recalls._arguments import pair, ratio


def change(recall: Tensor, reference: Tensor) -> Tensor:
    """Return the recall of each class minus that of the reference model.

    Args:
        recall: Recalls in [0, 1], NaN without support, [..., K].
        reference: Recalls of the reference model, [..., K].

    Returns:
        Changes in [-1, 1], [..., K]; NaN where either is.

    Raises:
        TypeError: If `recall` or `reference` is not floating point.
        ValueError: If their numbers of classes differ or are 0.

    Example:
        >>> change(torch.tensor([0.7, 0.5]), torch.tensor([0.9, 0.5]))
        tensor([-0.2000,  0.0000])
    """
    recall, reference = pair(recall, reference)
    return recall - reference


def retention(recall: Tensor, reference: Tensor) -> Tensor:
    """Return the recall of each class as a fraction of that of the reference model.

    Arguments and errors are those of `change`.

    Returns:
        Fractions, at least 0, [..., K]; NaN where either is and where the reference is 0.

    Example:
        >>> retention(torch.tensor([0.6, 0.5]), torch.tensor([0.8, 0.0]))
        tensor([0.7500,    nan])
    """
    return ratio(*pair(recall, reference))


def adjusted_change(
    recall: Tensor,
    reference: Tensor,
    accuracy: float | Tensor | None = None,
    reference_accuracy: float | Tensor | None = None,
) -> Tensor:
    """Return how much more each recall changed than the accuracy did.

    `(R^c - R_ref^c) - (A - A_ref)`: below 0, the class lost more than the model as a whole. Hooker et
    al., "What Do Compressed Deep Neural Networks Forget?" (arXiv 1911.05248), test this change per class.

    Args:
        recall: Recalls in [0, 1], NaN without support, [..., K].
        reference: Recalls of the reference model, [..., K].
        accuracy: Accuracy of the model in [0, 1], [...]; None for the mean recall over the classes seen
            in both.
        reference_accuracy: The same of the reference model.

    Returns:
        Changes in [-2, 2], [..., K]; NaN where either recall is.

    Raises:
        TypeError: If `recall` or `reference` is not floating point.
        ValueError: If their numbers of classes differ or are 0.

    Example:
        The mean recall fell by 0.2.

        >>> adjusted_change(torch.tensor([0.8, 0.4]), torch.tensor([0.9, 0.7]))
        tensor([ 0.1000, -0.1000])
    """
    recall, reference = pair(recall, reference)
    return balance(recall, accuracy) - balance(reference, reference_accuracy)


def disparity(
    recall: Tensor,
    reference: Tensor,
    accuracy: float | Tensor | None = None,
    reference_accuracy: float | Tensor | None = None,
) -> Tensor:
    r"""Return the largest loss of recall of a class, minus the loss of accuracy of the model.

    .. math:: \max_c \; (R_{ref}^c - R^c) - (A_{ref} - A)

    The maximum disparity of Hashemizadeh et al., "Balancing Act: Constraining Disparate Impact in Sparse
    Models" (ICLR 2024, arXiv 2310.20673), with classes as groups. Arguments and errors are those of
    `adjusted_change`.

    Returns:
        Disparities, [...]; NaN if no class has support in both.

    Example:
        The second class lost 0.3, the model 0.2.

        >>> disparity(torch.tensor([0.8, 0.4]), torch.tensor([0.9, 0.7]))
        tensor(0.1000)
    """
    return -worst(adjusted_change(recall, reference, accuracy, reference_accuracy))


def class_intensification(
    recall: Tensor,
    reference: Tensor,
    accuracy: float | Tensor | None = None,
    reference_accuracy: float | Tensor | None = None,
) -> Tensor:
    """Return how the distance of each recall from the accuracy grew: `I^c = Bn^c / Bn_ref^c`.

    The ratio of normalised recall balances of Good et al. (arXiv 2206.02976): above 1 the distance grew in
    the same direction, in (0, 1) it shrank, below 0 the class changed sides. Arguments and errors are those of
    `adjusted_change`.

    Returns:
        Ratios, [..., K]; NaN where either recall is, where the reference recall is the reference accuracy
        (but for rounding), and where an accuracy is 0.

    Example:
        1/8 of the accuracy became 1/6 of it, the example of the paper.

        >>> class_intensification(torch.tensor([0.7, 0.5]), torch.tensor([0.9, 0.7]))
        tensor([1.3333, 1.3333])
    """
    return ratio(*_balances(recall, reference, accuracy, reference_accuracy))


def intensification(
    recall: Tensor,
    reference: Tensor,
    accuracy: float | Tensor | None = None,
    reference_accuracy: float | Tensor | None = None,
) -> Tensor:
    r"""Return the intensification ratio: above 1, the distances of the recalls from the accuracy grew.

    .. math:: \alpha = \sum_c Bn_{ref}^c \, Bn^c \Big/ \sum_c (Bn_{ref}^c)^2

    The slope through the origin of the normalised recall balances over those of the reference: Good et al.
    (arXiv 2206.02976). A class whose reference recall is the accuracy has weight 0. Arguments and errors are those of
    `adjusted_change`.

    Returns:
        Ratios, [...]; NaN where an accuracy is 0, where all reference recalls are the reference accuracy
        (but for rounding), and if no class has support in both.

    Example:
        >>> intensification(torch.tensor([0.7, 0.5]), torch.tensor([0.9, 0.7]))
        tensor(1.3333)
    """
    now, before = _balances(recall, reference, accuracy, reference_accuracy)
    # NaN times anything is left out of the first sum; the second must leave out the same classes.
    return (before * now).nansum(-1) / before.masked_fill(now.isnan(), 0).square().nansum(-1)


def _balances(
    recall: Tensor,
    reference: Tensor,
    accuracy: float | Tensor | None,
    reference_accuracy: float | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the normalised balances of both, those of the reference within the rounding error as 0."""
    recall, reference = pair(recall, reference)
    before = normalised_balance(reference, reference_accuracy)
    # Equal recalls and their mean differ by rounding; ratios of such differences mean nothing.
    rounding = 16 * torch.finfo(before.dtype).eps
    before = before.masked_fill(before.abs() <= rounding, 0)
    return normalised_balance(recall, accuracy), before
